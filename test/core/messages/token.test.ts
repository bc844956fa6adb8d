import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { describe, test } from 'node:test'
import { encodeClaims, encodeToken, parseClaims, parseToken, tokenSecret } from '../../../src/core/messages/token.ts'
import type { TokenClaims } from '../../../src/core/messages/enrollment.ts'

const KEY = Buffer.alloc(32, 7)
const CLAIMS: TokenClaims = {
  v: 1,
  jti: 'AAAAAAAAAAAAAAAAAAAAAA',
  role: 'device',
  name: 'laptop-7',
  tenant: 'default',
  networks: ['default'],
  groups: ['eng'],
  profile: 'device',
  possession: true,
  replace: false,
  exp: 1_800_000_000,
  root: 'ab'.repeat(32),
  trustDomain: 'certpeer.internal',
  pen: 32473,
  url: 'https://10.0.0.1:8441',
}
const TOKEN = encodeToken({ claims: CLAIMS, tokenKey: KEY })
const segment = (json: unknown) =>
  Buffer.from(typeof json === 'string' ? json : JSON.stringify(json)).toString('base64url')
const parts = (token: string): [string, string, string] => {
  const [prefix = '', claims = '', secret = ''] = token.split('.')
  return [prefix, claims, secret]
}

test('a token reads back as what it was made of', () => {
  const token = parseToken(TOKEN)
  assert.deepEqual(token.claims, CLAIMS)
  assert.equal(token.segment, encodeClaims(CLAIMS))
  assert.deepEqual(token.secret, tokenSecret(KEY, token.segment))
})

test('the secret is HMAC-SHA256 of the claims segment, and not the token key', () => {
  const [, claims, secret] = parts(TOKEN)
  assert.equal(secret, createHmac('sha256', KEY).update(claims).digest('base64url'))
  assert.ok(!TOKEN.includes(KEY.toString('base64url')))
})

test('changed claims or another token key have another secret', () => {
  const { segment: claims, secret } = parseToken(TOKEN)
  const admin = encodeClaims({ ...CLAIMS, role: 'operator-admin' })
  assert.notDeepEqual(tokenSecret(KEY, admin), secret)
  assert.notDeepEqual(tokenSecret(Buffer.alloc(32, 8), claims), secret)
  // Read without complaint, as anyone may write claims: only the authority can tell, by the secret.
  const forged = parseToken(`cpt1.${admin}.${parts(TOKEN)[2]}`)
  assert.notDeepEqual(forged.secret, tokenSecret(KEY, forged.segment))
})

test('a token key of another length is a mistake of the program', () => {
  assert.throws(() => tokenSecret(Buffer.alloc(31), 'x'), TypeError)
})

describe('refused as malformed_token', () => {
  const [prefix, claims, secret] = parts(TOKEN)
  for (const [name, text] of [
    ['nothing', ''],
    ['another prefix', `cpt2.${claims}.${secret}`],
    ['no secret', `${prefix}.${claims}`],
    ['an empty secret', `${prefix}.${claims}.`],
    ['a part more', `${TOKEN}.x`],
    ['a line end', `${TOKEN}\n`],
    ['a space before', ` ${TOKEN}`],
    ['a short secret', `${prefix}.${claims}.${secret.slice(0, -2)}`],
    ['a long secret', `${prefix}.${claims}.${secret}AA`],
    ['a padded secret', `${prefix}.${claims}.${secret}=`],
    ['a secret with spare bits', `${prefix}.${claims}.${secret.slice(0, -1)}${secret.endsWith('B') ? 'F' : 'B'}`],
    ['standard base64', `${prefix}.${claims}.${'+'.repeat(43)}`],
    ['padded claims', `${prefix}.${claims}==.${secret}`],
    ['claims that are not JSON', `${prefix}.${segment('{')}.${secret}`],
    ['claims that are not UTF-8', `${prefix}.${Buffer.from([0xff, 0xfe]).toString('base64url')}.${secret}`],
    ['no claims', `${prefix}..${secret}`],
    ['an array', `${prefix}.${segment([])}.${secret}`],
    ['an unknown claim', `${prefix}.${segment({ ...CLAIMS, admin: true })}.${secret}`],
    ['a missing claim', `${prefix}.${segment({ ...CLAIMS, exp: undefined })}.${secret}`],
    ['version 2', `${prefix}.${segment({ ...CLAIMS, v: 2 })}.${secret}`],
    ['a role that no token gives', `${prefix}.${segment({ ...CLAIMS, role: 'authority' })}.${secret}`],
    ['a name with a slash', `${prefix}.${segment({ ...CLAIMS, name: '../x' })}.${secret}`],
    ['a URL of another kind', `${prefix}.${segment({ ...CLAIMS, url: 'file:///etc/passwd' })}.${secret}`],
    ['a repeated claim', `${prefix}.${segment(JSON.stringify(CLAIMS).replace('{', '{"v":1,'))}.${secret}`],
    ['claims with white space', `${prefix}.${segment(JSON.stringify(CLAIMS, null, 1))}.${secret}`],
    ['claims in another order', `${prefix}.${segment(Object.fromEntries(Object.entries(CLAIMS).reverse()))}.${secret}`],
    [
      'too much',
      `${prefix}.${segment({ ...CLAIMS, groups: Array.from({ length: 60 }, () => 'g'.repeat(60)) })}.${secret}`,
    ],
  ] as const) {
    test(name, () => assert.throws(() => parseToken(text), { code: 'malformed_token' }))
  }

  test('the message never quotes the token', () => {
    for (const text of [`${TOKEN}.x`, `${prefix}.${claims}.${secret}=`, `cpt2.${claims}.${secret}`]) {
      assert.throws(
        () => parseToken(text),
        (error: Error) => !error.message.includes(secret) && !error.message.includes(claims),
      )
    }
  })

  test('a claims segment alone', () => {
    assert.deepEqual(parseClaims(claims), CLAIMS)
    assert.throws(() => parseClaims('e30'), { code: 'malformed_token' })
    assert.throws(() => parseClaims('A'.repeat(4097)), { code: 'malformed_token' })
  })
})

test('a flipped character anywhere in the claims changes the secret or is refused', () => {
  const [prefix, claims, secret] = parts(TOKEN)
  for (let at = 0; at < claims.length; at += 1) {
    const flipped = claims.slice(0, at) + (claims[at] === 'A' ? 'B' : 'A') + claims.slice(at + 1)
    try {
      const token = parseToken(`${prefix}.${flipped}.${secret}`)
      assert.notDeepEqual(tokenSecret(KEY, token.segment), token.secret, `position ${at}`)
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'malformed_token', `position ${at}`)
    }
  }
})
