import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { clientCertificate } from '../../../src/platform/http/client-cert.ts'

/** Escapes as nginx does for $ssl_client_escaped_cert: everything but unreserved characters, upper-case hex. */
function escapePem(pem: string): string {
  return pem.replace(
    /[^A-Za-z0-9._~-]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`,
  )
}

function toPem(der: Buffer): string {
  const lines = der.toString('base64').match(/.{1,64}/g) ?? []
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`
}

const DER = Buffer.concat([Buffer.from('308201f4', 'hex'), Buffer.alloc(500, 7)])
const GOOD = escapePem(toPem(DER))

test('one verified certificate is read back byte for byte, whatever its length', () => {
  for (const length of [1, 2, 3, 47, 48, 49, 95, 96, 97, 800]) {
    const der = randomBytes(length)
    const headers = { 'x-client-verify': 'SUCCESS', 'x-client-cert': escapePem(toPem(der)) }
    assert.deepEqual(clientCertificate({ headers }), der)
  }
})

for (const { name, verify, cert, code } of [
  { name: 'no headers', verify: undefined, cert: undefined, code: 'client_certificate_required' },
  { name: 'no certificate shown', verify: 'NONE', cert: '', code: 'client_certificate_required' },
  { name: 'an empty verdict', verify: '', cert: GOOD, code: 'client_certificate_required' },
  { name: 'a certificate without a verdict', verify: undefined, cert: GOOD, code: 'client_certificate_required' },
  { name: 'a verdict without a certificate', verify: 'SUCCESS', cert: undefined, code: 'client_certificate_required' },
  { name: 'an empty certificate', verify: 'SUCCESS', cert: '', code: 'client_certificate_required' },
  { name: 'NONE beside a certificate', verify: 'NONE', cert: GOOD, code: 'client_certificate_required' },
  { name: 'a failed verdict', verify: 'FAILED:certificate revoked', cert: GOOD, code: 'bad_client_certificate' },
  { name: 'a verdict in lower case', verify: 'success', cert: GOOD, code: 'bad_client_certificate' },
  { name: 'a verdict with a space', verify: 'SUCCESS ', cert: GOOD, code: 'bad_client_certificate' },
  { name: 'a verdict sent twice', verify: 'SUCCESS, SUCCESS', cert: GOOD, code: 'bad_client_certificate' },
  { name: 'a folded verdict', verify: 'SUCCESS , NONE', cert: GOOD, code: 'bad_client_certificate' },
  { name: 'a certificate sent twice', verify: 'SUCCESS', cert: `${GOOD}, ${GOOD}`, code: 'bad_client_certificate' },
  { name: 'two certificates', verify: 'SUCCESS', cert: GOOD + GOOD, code: 'bad_client_certificate' },
  { name: 'bytes before it', verify: 'SUCCESS', cert: `a${GOOD}`, code: 'bad_client_certificate' },
  { name: 'bytes after it', verify: 'SUCCESS', cert: `${GOOD}a`, code: 'bad_client_certificate' },
  { name: 'an unescaped PEM', verify: 'SUCCESS', cert: toPem(DER), code: 'bad_client_certificate' },
  {
    name: 'lower-case escapes',
    verify: 'SUCCESS',
    cert: GOOD.replaceAll('%0A', '%0a'),
    code: 'bad_client_certificate',
  },
  { name: 'CRLF', verify: 'SUCCESS', cert: GOOD.replaceAll('%0A', '%0D%0A'), code: 'bad_client_certificate' },
  { name: 'a bare percent', verify: 'SUCCESS', cert: `${GOOD}%`, code: 'bad_client_certificate' },
  { name: 'an escaped NUL', verify: 'SUCCESS', cert: `%00${GOOD}`, code: 'bad_client_certificate' },
  { name: 'escapes that are not ASCII', verify: 'SUCCESS', cert: `%FF${GOOD}`, code: 'bad_client_certificate' },
  {
    name: 'another label',
    verify: 'SUCCESS',
    cert: GOOD.replaceAll('CERTIFICATE', 'X'),
    code: 'bad_client_certificate',
  },
  {
    name: 'base64 that says the same in other bits',
    verify: 'SUCCESS',
    cert: escapePem(toPem(Buffer.from([1]))).replace('AQ%3D%3D', 'AR%3D%3D'),
    code: 'bad_client_certificate',
  },
  {
    name: 'a certificate over 16 KiB',
    verify: 'SUCCESS',
    cert: escapePem(toPem(Buffer.alloc(16_384))),
    code: 'bad_client_certificate',
  },
]) {
  test(`${name} is ${code}`, () => {
    const headers = {
      ...(verify === undefined ? {} : { 'x-client-verify': verify }),
      ...(cert === undefined ? {} : { 'x-client-cert': cert }),
    }
    assert.throws(() => clientCertificate({ headers }), { code })
  })
}

test('a header of hostile text is refused in linear time', () => {
  const started = performance.now()
  for (const cert of [
    'A'.repeat(16_384),
    '%0A'.repeat(5000),
    escapePem(`-----BEGIN CERTIFICATE-----\n${'A\n'.repeat(4000)}`),
  ]) {
    const headers = { 'x-client-verify': 'SUCCESS', 'x-client-cert': cert }
    assert.throws(() => clientCertificate({ headers }), { code: 'bad_client_certificate' })
  }
  assert.ok(performance.now() - started < 200)
})
