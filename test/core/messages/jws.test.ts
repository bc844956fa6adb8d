import assert from 'node:assert/strict'
import { createHmac, generateKeyPairSync, sign } from 'node:crypto'
import { describe, test } from 'node:test'
import { encodeJws, parseJws, verifyJws } from '../../../src/core/messages/jws.ts'

const TYPE = 'certpeer-test+jws'
const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const other = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const CERTIFICATES = [Buffer.from('leaf certificate'), Buffer.from('issuer certificate!')] as const
const PAYLOAD = Buffer.from('{"hello":"world"}')
const make = (options: { payload?: Buffer; typ?: string } = {}) =>
  encodeJws({
    payload: options.payload ?? PAYLOAD,
    typ: options.typ ?? TYPE,
    certificates: CERTIFICATES,
    sign: (data) => sign('sha256', data, privateKey),
  })
const encode = (value: unknown) =>
  Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')
const split = (jws: string): [string, string, string] => {
  const [header = '', payload = '', signature = ''] = jws.split('.')
  return [header, payload, signature]
}
const X5C = CERTIFICATES.map((certificate) => certificate.toString('base64'))

test('what is signed reads back and verifies', async () => {
  // Many signatures: R and S begin with zero octets now and then, and DER drops those.
  for (let round = 0; round < 300; round += 1) {
    const jws = parseJws(await make(), TYPE)
    verifyJws(jws, publicKey)
    assert.deepEqual(jws.payload, PAYLOAD)
    assert.deepEqual(jws.certificates, CERTIFICATES)
    assert.equal(jws.signature.length, 64)
  }
})

test('the header is exactly alg, typ and x5c', async () => {
  const [header] = split(await make())
  assert.equal(Buffer.from(header, 'base64url').toString(), JSON.stringify({ alg: 'ES256', typ: TYPE, x5c: X5C }))
})

test('another key, payload, certificate or signature does not verify', async () => {
  const jws = await make()
  const [header, payload, signature] = split(jws)
  const swapped = encode({ alg: 'ES256', typ: TYPE, x5c: [...X5C].reverse() })
  const foreign = encode({ alg: 'ES256', typ: TYPE, x5c: [X5C[1], X5C[1]] })
  const flipped = Buffer.from(signature, 'base64url')
  flipped[40] = (flipped[40] ?? 0) ^ 1
  for (const text of [
    `${header}.${encode('{"hello":"World"}')}.${signature}`,
    `${swapped}.${payload}.${signature}`,
    `${foreign}.${payload}.${signature}`,
    `${header}.${payload}.${flipped.toString('base64url')}`,
    `${header}.${payload}.${Buffer.alloc(64).toString('base64url')}`,
  ]) {
    assert.throws(() => verifyJws(parseJws(text, TYPE), publicKey), { code: 'malformed_message' })
  }
  assert.throws(() => verifyJws(parseJws(jws, TYPE), other.publicKey), { code: 'malformed_message' })
})

test('only P-256 keys verify', async () => {
  const jws = parseJws(await make(), TYPE)
  for (const key of [
    generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey,
    generateKeyPairSync('ed25519').publicKey,
    generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey,
  ]) {
    assert.throws(() => verifyJws(jws, key), { code: 'malformed_message' })
  }
})

describe('refused as malformed_message', async () => {
  const [header, payload, signature] = split(await make())
  const withHeader = (value: unknown) => `${encode(value)}.${payload}.${signature}`
  const good = { alg: 'ES256', typ: TYPE, x5c: X5C }
  const hmacInput = `${encode({ ...good, alg: 'HS256' })}.${payload}`
  const publicPem = publicKey.export({ type: 'spki', format: 'pem' })
  for (const [name, text] of [
    ['nothing', ''],
    ['two parts', `${header}.${payload}`],
    ['four parts', `${header}.${payload}.${signature}.`],
    ['no payload', `${header}..${signature}`],
    ['alg none', withHeader({ ...good, alg: 'none' })],
    ['alg none without a signature', `${encode({ ...good, alg: 'none' })}.${payload}.`],
    [
      'HMAC with the public key as its secret',
      `${hmacInput}.${createHmac('sha256', publicPem).update(hmacInput).digest('base64url')}`,
    ],
    ['another algorithm', withHeader({ ...good, alg: 'ES384' })],
    ['another type', withHeader({ ...good, typ: 'JWT' })],
    ['no type', withHeader({ alg: 'ES256', x5c: X5C })],
    ['a key in the header', withHeader({ ...good, jwk: publicKey.export({ format: 'jwk' }) })],
    ['a key id', withHeader({ ...good, kid: 'x' })],
    ['critical members', withHeader({ ...good, crit: ['b64'], b64: false })],
    ['one certificate', withHeader({ ...good, x5c: X5C.slice(1) })],
    ['three certificates', withHeader({ ...good, x5c: [...X5C, X5C[0]] })],
    ['a certificate in base64url', withHeader({ ...good, x5c: ['-_-_', X5C[1]] })],
    ['a certificate without padding', withHeader({ ...good, x5c: ['YQ', X5C[1]] })],
    ['a repeated member', withHeader(`{"alg":"none",${JSON.stringify(good).slice(1)}`)],
    ['members in another order', withHeader({ typ: TYPE, alg: 'ES256', x5c: X5C })],
    ['white space in the header', withHeader(JSON.stringify(good, null, 1))],
    ['a header that is no object', withHeader([])],
    ['a header that is no JSON', withHeader('{')],
    ['a padded payload', `${header}.${payload}=.${signature}`],
    ['a line end', `${header}.${payload}.${signature}\n`],
    [
      'a signature in DER',
      `${header}.${payload}.${sign('sha256', Buffer.from(`${header}.${payload}`), privateKey).toString('base64url')}`,
    ],
    ['a short signature', `${header}.${payload}.${signature.slice(0, 80)}`],
    ['too much', `${header}.${'A'.repeat(65_536)}.${signature}`],
  ] as const) {
    test(name, () => assert.throws(() => parseJws(text, TYPE), { code: 'malformed_message' }))
  }
})

test('a signer of another curve, or one that answers no DER, is a mistake of ours', async () => {
  const p384 = generateKeyPairSync('ec', { namedCurve: 'P-384' })
  const base = { payload: PAYLOAD, typ: TYPE, certificates: CERTIFICATES }
  await assert.rejects(encodeJws({ ...base, sign: (data) => sign('sha256', data, p384.privateKey) }))
  await assert.rejects(encodeJws({ ...base, sign: () => Buffer.alloc(64) }))
})
