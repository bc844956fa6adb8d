/** PEM in the strict form of RFC 7468 section 3: nothing but white space around the blocks, canonical base64 inside. */
import { CertpeerError, type ErrorCode } from '../errors.ts'

const CODES: Readonly<Record<string, ErrorCode>> = {
  CERTIFICATE: 'malformed_certificate',
  'CERTIFICATE REQUEST': 'malformed_csr',
  'X509 CRL': 'malformed_crl',
}

/** Exactly one block of this label. Throws malformed_certificate, malformed_csr, malformed_crl or malformed_request. */
export function pemToDer(pem: string, label = 'CERTIFICATE'): Buffer {
  const [der, ...more] = pemToDerAll(pem, label)
  if (der === undefined || more.length > 0)
    throw malformed(label, `holds ${more.length + 1} blocks; exactly one is needed`)
  return der
}

/** Every block in order; at least one, all of this label. */
export function pemToDerAll(pem: string, label = 'CERTIFICATE'): Buffer[] {
  const begin = `-----BEGIN ${label}-----`
  const end = `-----END ${label}-----`
  const blocks: Buffer[] = []
  let rest = pem.trim()
  while (rest !== '') {
    if (!rest.startsWith(begin)) throw malformed(label, `must begin with ${begin}`)
    const endAt = rest.indexOf(end)
    if (endAt < 0) throw malformed(label, `has no ${end}`)
    blocks.push(decodeBody(rest.slice(begin.length, endAt), label))
    rest = rest.slice(endAt + end.length)
    if (rest !== '' && !/^[\r\n]/.test(rest)) throw malformed(label, `has text after ${end}`)
    rest = rest.trimStart()
  }
  if (blocks.length === 0) throw malformed(label, 'is empty')
  return blocks
}

export function derToPem(der: Buffer, label = 'CERTIFICATE'): string {
  const lines = der.toString('base64').match(/.{1,64}/g) ?? []
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`
}

function decodeBody(body: string, label: string): Buffer {
  if (!/^\r?\n/.test(body) || !body.endsWith('\n')) throw malformed(label, 'must have its base64 on lines of its own')
  const base64 = body.replaceAll(/\r?\n/g, '')
  const der = Buffer.from(base64, 'base64')
  // Node skips what is not base64 and ignores stray bits; one certificate must have one text.
  if (base64 === '' || der.toString('base64') !== base64) throw malformed(label, 'is not canonical base64')
  return der
}

function malformed(label: string, fault: string): CertpeerError {
  return new CertpeerError(CODES[label] ?? 'malformed_request', `PEM ${label} ${fault}`)
}
