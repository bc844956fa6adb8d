/** A root, two TLS certificates and an empty CRL that exist for one self-test and are trusted by nobody else. */
import { createPrivateKey, generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import { parseCertificate } from '../../core/x509/certificate.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import { encodeTbsCertList } from '../../core/x509/crl.ts'
import { assembleSigned, encodeName, encodeTbsCertificate, signatureAlgorithmFor } from '../../core/x509/encode.ts'
import {
  authorityKeyIdentifier,
  basicConstraints,
  extendedKeyUsage,
  keyUsage,
  subjectAltName,
  subjectKeyIdentifier,
} from '../../core/x509/extensions.ts'
import { certpeerOids, DEFAULT_PEN, OID } from '../../core/x509/oids.ts'
import { derToPem } from '../../core/x509/pem.ts'
import { newSerial } from '../../core/x509/serial.ts'

interface Pair {
  readonly certificatePem: string
  readonly keyPem: string
}

export interface ThrowawayPki {
  readonly rootPem: string
  readonly crlPem: string
  readonly server: Pair
  readonly caller: Pair
}

const LIFE_MS = 10 * 60_000

export function makeThrowawayPki(now: Date): ThrowawayPki {
  const notBefore = new Date(now.getTime() - 60_000)
  const notAfter = new Date(now.getTime() + LIFE_MS)
  const rootKey = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const subjectDer = encodeName('certpeer self-test')
  const rootSpki = rootKey.publicKey.export({ type: 'spki', format: 'der' })
  const algorithm = signatureAlgorithmFor(rootKey.publicKey)
  const seal = (tbs: Buffer) => assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, rootKey.privateKey))
  const certify = (issuerDer: Buffer, subject: Buffer, spki: Buffer, extensions: readonly Buffer[]): Certificate =>
    parseCertificate(
      seal(
        encodeTbsCertificate({
          serial: newSerial(randomBytes(16)),
          signatureAlgorithm: algorithm.der,
          issuerDer,
          notBefore,
          notAfter,
          subjectDer: subject,
          spki,
          extensions: [...extensions, subjectKeyIdentifier(spki)],
        }),
      ),
    )
  const root = certify(subjectDer, subjectDer, rootSpki, [basicConstraints(true), keyUsage(['keyCertSign', 'cRLSign'])])
  const leaf = (name: string, purpose: string): Pair => {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const certificate = certify(subjectDer, encodeName(name), publicKey.export({ type: 'spki', format: 'der' }), [
      basicConstraints(false),
      keyUsage(['digitalSignature']),
      extendedKeyUsage([purpose]),
      subjectAltName({ dns: ['localhost'] }),
      authorityKeyIdentifier(root),
    ])
    return { certificatePem: derToPem(certificate.der), keyPem: pemOf(privateKey) }
  }
  const crl = seal(
    encodeTbsCertList({
      issuer: root,
      thisUpdate: notBefore,
      nextUpdate: notAfter,
      number: 1n,
      entries: Buffer.alloc(0),
      oids: certpeerOids(DEFAULT_PEN),
    }),
  )
  return {
    rootPem: derToPem(root.der),
    crlPem: derToPem(crl, 'X509 CRL'),
    server: leaf('server', OID.serverAuth),
    caller: leaf('caller', OID.clientAuth),
  }
}

function pemOf(key: KeyObject): string {
  const pem = key.export({ type: 'pkcs8', format: 'pem' }).toString()
  // Read back once: a key that nginx could not load should fail here, not there.
  createPrivateKey(pem)
  return pem
}
