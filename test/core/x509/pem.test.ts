import assert from 'node:assert/strict'
import { test } from 'node:test'
import { derToPem, pemToDer, pemToDerAll } from '../../../src/core/x509/pem.ts'

const DER = Buffer.from(Array.from({ length: 100 }, (_, index) => index))
const PEM = derToPem(DER)

test('PEM is written in lines of 64 and read back, also with CRLF and white space around', () => {
  assert.match(PEM, /^-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/]{64}\n[A-Za-z0-9+/]{64}\n/)
  for (const text of [PEM, PEM.replaceAll('\n', '\r\n'), `\n \n${PEM}\n\n`, PEM.trimEnd()]) {
    assert.deepEqual(pemToDer(text), DER)
  }
  assert.deepEqual(pemToDerAll(PEM + PEM), [DER, DER])
  assert.deepEqual(pemToDer(derToPem(DER, 'X509 CRL'), 'X509 CRL'), DER)
})

const base64 = DER.toString('base64')
for (const [name, text] of [
  ['nothing', ''],
  ['white space', '\n'],
  ['two blocks', PEM + PEM],
  ['another label', derToPem(DER, 'CERTIFICATE REQUEST')],
  ['text before it', `subject=CN\n${PEM}`],
  ['text behind it', `${PEM}x`],
  ['text behind its last line', PEM.replace('-----\n', '-----\n').trimEnd() + ' x'],
  ['no end', PEM.replace('-----END CERTIFICATE-----', '')],
  ['an empty body', '-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----'],
  ['no line break', `-----BEGIN CERTIFICATE-----${base64}-----END CERTIFICATE-----`],
  ['a space inside', PEM.replace('A', ' A')],
  ['missing padding', PEM.replace(/=+/, '')],
  ['too much padding', PEM.replace('=\n', '==\n').replace('===', '====')],
  [
    'stray bits',
    PEM.replace(/(.)==\n/, (_, last: string) => `${last === 'w' ? 'x' : 'w'}==\n`).replace('Yw==', 'Yx=='),
  ],
  ['base64url', derToPem(Buffer.alloc(30, 0xff)).replaceAll('/', '_')],
  ['headers', PEM.replace('-----\n', '-----\nProc-Type: 4,ENCRYPTED\n\n')],
  ['another first line of the same length', PEM.replace('BEGIN', 'BEGUN')],
  ['a NUL', PEM.replace('\n', '\n\0')],
] as const) {
  test(`PEM with ${name} is refused`, () => assert.throws(() => pemToDer(text), { code: 'malformed_certificate' }))
}

test('several blocks stand on lines of their own, and there is at least one', () => {
  for (const text of ['', `${PEM.trimEnd()}${PEM}`, `${PEM}x\n${PEM}`]) {
    assert.throws(() => pemToDerAll(text), { code: 'malformed_certificate' })
  }
})

for (const [label, code] of [
  ['CERTIFICATE REQUEST', 'malformed_csr'],
  ['X509 CRL', 'malformed_crl'],
  ['PRIVATE KEY', 'malformed_request'],
] as const) {
  test(`a bad ${label} is ${code}`, () => assert.throws(() => pemToDer('x', label), { code }))
}
