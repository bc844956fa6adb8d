/**
 * Does this machine's OpenSSL, the one nginx and Node.js verify with, enforce RFC 3779? A throw-away CA with a block for
 * 10.0.0.0/8 issues one leaf inside it and one outside; only the first may verify.
 */
import { generateKeyPairSync, randomBytes, sign, type KeyObject } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parsePrefix, type Prefix } from '../../core/ipam/prefix.ts'
import { parseCertificate, type Certificate } from '../../core/x509/certificate.ts'
import { assembleSigned, encodeName, encodeTbsCertificate, signatureAlgorithmFor } from '../../core/x509/encode.ts'
import {
  authorityKeyIdentifier,
  basicConstraints,
  ipAddrBlocks,
  keyUsage,
  subjectKeyIdentifier,
} from '../../core/x509/extensions.ts'
import { derToPem } from '../../core/x509/pem.ts'
import { newSerial } from '../../core/x509/serial.ts'
import { run } from '../../platform/spawn.ts'
import { findProgram } from '../local/preflight.ts'
import { fail, pass, warn, type Check } from './check.ts'

interface Subject {
  readonly name: string
  readonly keys: { readonly publicKey: KeyObject; readonly privateKey: KeyObject }
}

export const checkAddressBlocks: Check = async ({ now }) => {
  const openssl = findProgram('openssl')
  if (!openssl) return [warn('rfc3779', 'openssl is missing, so this was not tried', 'apt-get install openssl')]
  const at = now()
  const root = newSubject('doctor root')
  const rootDer = certify(root, root, parsePrefix('10.0.0.0/8'), true, at)
  const issuer = parseCertificate(rootDer)
  const inside = certify(newSubject('inside'), root, parsePrefix('10.1.2.3/32'), false, at, issuer)
  const outside = certify(newSubject('outside'), root, parsePrefix('192.0.2.1/32'), false, at, issuer)
  const dir = await mkdtemp(join(tmpdir(), 'certpeer-doctor-'))
  try {
    await writeFile(join(dir, 'root.pem'), derToPem(rootDer))
    const verifies = async (name: string, der: Buffer) => {
      await writeFile(join(dir, name), derToPem(der))
      const args = ['verify', '-CAfile', join(dir, 'root.pem'), join(dir, name)]
      return (await run(openssl, args, { timeoutMs: 10_000 })).code === 0
    }
    const good = await verifies('inside.pem', inside)
    const bad = await verifies('outside.pem', outside)
    if (good && !bad) return [pass('rfc3779', 'OpenSSL refuses a leaf outside its CA’s address block')]
    if (!good) return [fail('rfc3779', 'OpenSSL refuses a leaf inside its CA’s block', 'use OpenSSL 3.0 or later')]
    const advice =
      'nginx is no second fence for addresses here; certpeer itself still enforces them. Use a build with RFC 3779'
    return [warn('rfc3779', 'OpenSSL accepts a leaf outside its CA’s address block', advice)]
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

function newSubject(name: string): Subject {
  return { name, keys: generateKeyPairSync('ec', { namedCurve: 'prime256v1' }) }
}

function certify(
  subject: Subject,
  signer: Subject,
  block: Prefix,
  isCa: boolean,
  at: Date,
  issuer?: Pick<Certificate, 'subjectKeyId'>,
): Buffer {
  const algorithm = signatureAlgorithmFor(signer.keys.publicKey)
  const spki = subject.keys.publicKey.export({ type: 'spki', format: 'der' })
  const tbs = encodeTbsCertificate({
    serial: newSerial(randomBytes(16)),
    signatureAlgorithm: algorithm.der,
    issuerDer: encodeName(signer.name),
    notBefore: new Date(at.getTime() - 60_000),
    notAfter: new Date(at.getTime() + 600_000),
    subjectDer: encodeName(subject.name),
    spki,
    extensions: [
      basicConstraints(isCa),
      keyUsage(isCa ? ['keyCertSign'] : ['digitalSignature']),
      subjectKeyIdentifier(spki),
      ...(issuer ? [authorityKeyIdentifier(issuer)] : []),
      ipAddrBlocks([block]),
    ],
  })
  return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, signer.keys.privateKey))
}
