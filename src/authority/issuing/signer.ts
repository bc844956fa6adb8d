/** The keys that sign: a port, so that a key in hardware needs no other path through the house. */
import { createPrivateKey, createPublicKey, sign, type KeyObject } from 'node:crypto'
import { CertpeerError } from '../../core/errors.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import { publicKeyOf, verifySignature } from '../../core/x509/certificate.ts'
import { signatureAlgorithmFor, type SignatureAlgorithm } from '../../core/x509/encode.ts'

export interface Signer {
  readonly publicKey: KeyObject
  /** ECDSA over the hash that goes with the key's curve; Ecdsa-Sig-Value in DER. */
  sign(data: Buffer): Promise<Buffer>
}

/** A CA that this authority signs with. */
export interface IssuingCa {
  readonly name: string
  readonly role: 'device' | 'infrastructure'
  readonly tenant: string | undefined
  readonly certificate: Certificate
  readonly signer: Signer
  readonly algorithm: SignatureAlgorithm
}

/** A private key in memory, from a PKCS#8 PEM. Throws config_invalid, never with the key. */
export function softwareSigner(privateKeyPem: string, what: string): Signer {
  let privateKey: KeyObject
  try {
    privateKey = createPrivateKey(privateKeyPem)
  } catch {
    throw new CertpeerError('config_invalid', `${what} is not a private key in PEM`)
  }
  return keySigner(privateKey)
}

export function keySigner(privateKey: KeyObject): Signer {
  const publicKey = createPublicKey(privateKey)
  const { hash } = signatureAlgorithmFor(publicKey)
  return {
    publicKey,
    // In place: on P-256 a hop to the thread pool costs more than the signature.
    sign: (data) => Promise.resolve(sign(hash, data, privateKey)),
  }
}

/** Throws config_invalid unless the signer holds the key of the certificate. */
export function requireKeyOf(signer: Signer, certificate: Certificate, what: string): void {
  if (signer.publicKey.equals(publicKeyOf(certificate))) return
  throw new CertpeerError('config_invalid', `${what}: the private key is not the certificate's; restore the pair`)
}

/**
 * Signs and verifies what came out before anyone sees it: a faulty computation in a signing device could give the key
 * away (fault attacks), and a wrong key would go unnoticed until a gateway refuses. Throws `internal`.
 */
export async function signVerified(signer: Signer, algorithm: SignatureAlgorithm, data: Buffer): Promise<Buffer> {
  const signature = await signer.sign(data)
  if (!verifySignature(data, algorithm.oid, signature, signer.publicKey)) {
    throw new CertpeerError('internal', 'a signature does not verify right after it was made')
  }
  return signature
}
