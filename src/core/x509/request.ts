/** Makes certification requests (PKCS #10), for whoever enrolls with the CLI. Not hot: @peculiar/x509 does the work. */
import { createPublicKey, webcrypto, type KeyObject } from 'node:crypto'
import { derOctetString, derSequence, derUtf8String } from '../der/writer.ts'
import { CertpeerError } from '../errors.ts'
import { wireGuardKeyToBytes, type WireGuardKey } from '../wireguard/key.ts'
import { parseCsr } from './csr.ts'
import { encodeExtension } from './encode.ts'
import { OID, type CertpeerOids } from './oids.ts'

export interface CsrContent {
  /** ECDSA P-256 private key: the certificate's subject key. */
  readonly tlsKey: KeyObject
  /** Empty: no name, as in the certificate that is renewed. */
  readonly commonName: string
  /** Absent for operators and servers. */
  readonly wireGuardKey?: WireGuardKey
  readonly attributes: {
    /** `challengeId.base64url(tag)`, as `createPossession` gives it. */
    readonly possession?: string
    /** ECDSA signature (DER) by the key of `renewalCertificate`. */
    readonly renewalSignature?: Buffer
    /** The current certificate, DER. */
    readonly renewalCertificate?: Buffer
  }
  readonly oids: CertpeerOids
}

/** A signed CSR in DER. It has been read back by `parseCsr`, so the authority can read it too. */
export async function createCsr(content: CsrContent): Promise<Buffer> {
  const { tlsKey, oids, wireGuardKey } = content
  if (tlsKey.asymmetricKeyDetails?.namedCurve !== 'prime256v1' || tlsKey.type !== 'private') {
    throw new CertpeerError('malformed_request', 'a certificate is asked for with a private key on P-256')
  }
  const { Attribute, Name, Pkcs10CertificateRequestGenerator } = await import('./peculiar.ts')
  const { possession, renewalSignature, renewalCertificate } = content.attributes
  const attributes: [type: string, value: Buffer][] = []
  if (wireGuardKey !== undefined) attributes.push([OID.extensionRequest, encodeExtensionRequest(wireGuardKey, oids)])
  if (possession !== undefined) attributes.push([oids.attributes.possession, derUtf8String(possession)])
  if (renewalSignature !== undefined) {
    attributes.push([oids.attributes.renewalSignature, derOctetString(renewalSignature)])
  }
  if (renewalCertificate !== undefined) attributes.push([oids.attributes.renewalCertificate, renewalCertificate])
  const request = await Pkcs10CertificateRequestGenerator.create(
    {
      name: new Name(content.commonName === '' ? [] : [{ CN: [{ utf8String: content.commonName }] }]),
      keys: await cryptoKeyPair(tlsKey),
      signingAlgorithm: { name: 'ECDSA', hash: 'SHA-256' },
      // The library writes a SET OF in the order given; DER wants it sorted (X.690 11.6), and parseCsr insists.
      attributes: attributes
        .map(([type, value]) => new Attribute(type, [new Uint8Array(value)]))
        .toSorted((a, b) => Buffer.compare(Buffer.from(a.rawData), Buffer.from(b.rawData))),
    },
    webcrypto as Crypto,
  )
  const der = Buffer.from(request.rawData)
  parseCsr(der, oids)
  return der
}

/** WireGuardKey of pki/certpeer.asn1 without the possession field: that one only the authority writes. */
function encodeExtensionRequest(key: WireGuardKey, oids: CertpeerOids): Buffer {
  const value = derSequence(derOctetString(wireGuardKeyToBytes(key)))
  return derSequence(encodeExtension(oids.wireGuardKey, false, value))
}

async function cryptoKeyPair(tlsKey: KeyObject): Promise<CryptoKeyPair> {
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256' }
  const pkcs8 = tlsKey.export({ type: 'pkcs8', format: 'der' })
  const spki = createPublicKey(tlsKey).export({ type: 'spki', format: 'der' })
  try {
    return {
      privateKey: await webcrypto.subtle.importKey('pkcs8', pkcs8, algorithm, false, ['sign']),
      publicKey: await webcrypto.subtle.importKey('spki', spki, algorithm, true, ['verify']),
    }
  } finally {
    pkcs8.fill(0)
  }
}
