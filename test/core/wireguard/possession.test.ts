import assert from 'node:assert/strict'
import { createHash, createHmac, generateKeyPairSync, hkdfSync, randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { wireGuardKeyFromBytes, wireGuardKeyToBytes, type WireGuardKey } from '../../../src/core/wireguard/key.ts'
import {
  createPossession,
  formatPossession,
  parsePossession,
  possessionInfo,
  possessionTag,
  renewalMessage,
  tokenMac,
  tokenMacMatches,
  verifyPossession,
  type PossessionFields,
} from '../../../src/core/wireguard/possession.ts'
import { x25519, x25519PublicFromPrivate } from '../../../src/core/wireguard/x25519.ts'

const REFUSED = { name: 'CertpeerError', code: 'bad_possession_proof' }

function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest()
}

/** One enrollment: what the authority knows, what the requester holds, and the proof between them. */
function story() {
  const ephemeralPrivateKey = randomBytes(32)
  const privateKey = randomBytes(32)
  const nonce = randomBytes(32)
  const challengeId = randomBytes(16).toString('base64url')
  const spki = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ type: 'spki', format: 'der' })
  const credentialHash = sha256(Buffer.from('claims'))
  const binding = { trustDomain: 'certpeer.internal', spki, credentialHash, profile: 'device' }
  const challenge = { id: challengeId, publicKey: x25519PublicFromPrivate(ephemeralPrivateKey), nonce }
  const created = createPossession({ privateKey, challenge, ...binding })
  const { tag } = parsePossession(created.attribute)
  const fields = {
    trustDomain: binding.trustDomain,
    challengeId,
    spkiHash: sha256(spki),
    credentialHash,
    profile: binding.profile,
  }
  const verification = { ephemeralPrivateKey, nonce, fields, wireGuardKey: created.wireGuardKey, tag }
  return { privateKey, challenge, binding, created, verification }
}

test('a proof made with the private key verifies', () => {
  const { verification, created, privateKey } = story()
  verifyPossession(verification)
  assert.equal(created.wireGuardKey, x25519PublicFromPrivate(privateKey).toString('base64'))
  assert.equal(
    created.attribute,
    formatPossession({ challengeId: verification.fields.challengeId, tag: verification.tag }),
  )
})

const anotherKey: WireGuardKey = wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, 9)))
type Verification = ReturnType<typeof story>['verification']
const withField = (v: Verification, field: Partial<Verification['fields']>): Verification => ({
  ...v,
  fields: { ...v.fields, ...field },
})

for (const { name, change } of [
  { name: 'trust domain', change: (v: Verification) => withField(v, { trustDomain: 'certpeer.internal2' }) },
  { name: 'challenge id', change: (v: Verification) => withField(v, { challengeId: `${v.fields.challengeId}x` }) },
  { name: 'ephemeral key', change: (v: Verification) => ({ ...v, ephemeralPrivateKey: Buffer.alloc(32, 5) }) },
  { name: 'WireGuard key', change: (v: Verification) => ({ ...v, wireGuardKey: anotherKey }) },
  { name: 'CSR key', change: (v: Verification) => withField(v, { spkiHash: sha256(Buffer.from('other')) }) },
  { name: 'credential', change: (v: Verification) => withField(v, { credentialHash: sha256(Buffer.from('other')) }) },
  { name: 'profile', change: (v: Verification) => withField(v, { profile: 'gateway' }) },
  { name: 'nonce', change: (v: Verification) => ({ ...v, nonce: Buffer.alloc(32, 1) }) },
  { name: 'tag', change: (v: Verification) => ({ ...v, tag: Buffer.from(v.tag.map((byte) => byte ^ 1)) }) },
  { name: 'tag, cut short', change: (v: Verification) => ({ ...v, tag: v.tag.subarray(0, 16) }) },
  { name: 'tag, empty', change: (v: Verification) => ({ ...v, tag: Buffer.alloc(0) }) },
]) {
  test(`a proof for another ${name} is refused`, () => {
    const { verification } = story()
    assert.throws(() => verifyPossession(change(verification)), REFUSED)
  })
}

test('without the private key the secret of a known public key does not help: only X25519 gives Z', () => {
  const { verification, created, challenge } = story()
  const sharedSecret = x25519(randomBytes(32), challenge.publicKey)
  const tag = possessionTag({ sharedSecret, nonce: challenge.nonce, info: created.info })
  assert.throws(() => verifyPossession({ ...verification, tag }), REFUSED)
})

test('a challenge of low order is refused by the requester before it answers', () => {
  const { privateKey, challenge, binding } = story()
  assert.throws(
    () => createPossession({ privateKey, challenge: { ...challenge, publicKey: Buffer.alloc(32) }, ...binding }),
    { code: 'bad_wireguard_key' },
  )
})

const FIELDS: PossessionFields = {
  trustDomain: 'td',
  challengeId: 'id',
  ephemeralKey: Buffer.alloc(32, 1),
  wireGuardKey: Buffer.alloc(32, 2),
  spkiHash: Buffer.alloc(32, 3),
  credentialHash: Buffer.alloc(32, 4),
  profile: 'device',
}

test('info is the label and each field behind its 16-bit length, in the written order', () => {
  const expected =
    Buffer.from('certpeer-pop-v1').toString('hex') +
    `0002${Buffer.from('td').toString('hex')}0002${Buffer.from('id').toString('hex')}` +
    `0020${'01'.repeat(32)}0020${'02'.repeat(32)}0020${'03'.repeat(32)}0020${'04'.repeat(32)}` +
    `0006${Buffer.from('device').toString('hex')}`
  assert.equal(possessionInfo(FIELDS).toString('hex'), expected)
})

test('without a WireGuard key (operators) the field is there and empty', () => {
  const info = possessionInfo({ ...FIELDS, wireGuardKey: Buffer.alloc(0) })
  assert.equal(info.length, possessionInfo(FIELDS).length - 32)
})

test('bytes cannot move from one field to the next', () => {
  const a = possessionInfo({ ...FIELDS, trustDomain: 'ab', challengeId: 'c' })
  const b = possessionInfo({ ...FIELDS, trustDomain: 'a', challengeId: 'bc' })
  assert.notDeepEqual(a, b)
})

for (const field of ['ephemeralKey', 'wireGuardKey', 'spkiHash', 'credentialHash'] as const) {
  test(`a ${field} of 31 bytes is a programming mistake`, () => {
    assert.throws(() => possessionInfo({ ...FIELDS, [field]: Buffer.alloc(31) }), TypeError)
  })
}

test('the tag is HMAC-SHA256 under HKDF-SHA256 as written', () => {
  const sharedSecret = Buffer.alloc(32, 7)
  const nonce = Buffer.alloc(32, 8)
  const info = possessionInfo(FIELDS)
  const key = Buffer.from(hkdfSync('sha256', sharedSecret, nonce, info, 32))
  const expected = createHmac('sha256', key)
    .update(Buffer.concat([Buffer.from('requester'), info]))
    .digest()
  assert.deepEqual(possessionTag({ sharedSecret, nonce, info }), expected)
})

test('token HMAC, renewal message and tag are over different bytes', () => {
  const info = possessionInfo(FIELDS)
  assert.deepEqual(renewalMessage(info), Buffer.concat([Buffer.from('certpeer-renew-v1'), info]))
  const secret = Buffer.alloc(32, 6)
  const mac = createHmac('sha256', secret)
    .update(Buffer.concat([Buffer.from('certpeer-token-v1'), info]))
    .digest()
  assert.deepEqual(tokenMac(secret, info), mac)
})

test('a token HMAC matches only itself', () => {
  const secret = Buffer.alloc(32, 6)
  const info = possessionInfo(FIELDS)
  const mac = tokenMac(secret, info)
  assert.equal(tokenMacMatches(secret, info, mac), true)
  assert.equal(tokenMacMatches(Buffer.alloc(32, 5), info, mac), false)
  assert.equal(tokenMacMatches(secret, possessionInfo({ ...FIELDS, profile: 'x' }), mac), false)
  assert.equal(tokenMacMatches(secret, info, mac.subarray(0, 31)), false)
  assert.equal(tokenMacMatches(secret, info, Buffer.alloc(0)), false)
})

const TAG_TEXT = Buffer.alloc(32, 0xfb).toString('base64url')
test('the attribute text is the challenge id, a dot and the tag', () => {
  assert.deepEqual(parsePossession(`Abc_-9.${TAG_TEXT}`), { challengeId: 'Abc_-9', tag: Buffer.alloc(32, 0xfb) })
})

for (const { name, text } of [
  { name: 'no dot', text: `abc${TAG_TEXT}` },
  { name: 'no challenge id', text: `.${TAG_TEXT}` },
  { name: 'two dots', text: `a.b.${TAG_TEXT}` },
  { name: 'a tag of 31 bytes', text: `abc.${Buffer.alloc(31, 1).toString('base64url')}` },
  { name: 'a tag of 33 bytes', text: `abc.${Buffer.alloc(33, 1).toString('base64url')}` },
  { name: 'a tag with bits beyond 32 bytes', text: `abc.${TAG_TEXT.slice(0, -1)}t` },
  { name: 'padding', text: `abc.${TAG_TEXT}=` },
  { name: 'plain base64', text: `abc.${Buffer.alloc(32, 0xfb).toString('base64').slice(0, 43)}` },
  { name: 'a challenge id over 64 characters', text: `${'a'.repeat(65)}.${TAG_TEXT}` },
  { name: 'a newline', text: `abc.${TAG_TEXT}\n` },
]) {
  test(`the attribute text: ${name} is refused`, () => assert.throws(() => parsePossession(text), REFUSED))
}

test('the WireGuard key in the proof is the one that goes into the certificate', () => {
  const { created, verification } = story()
  assert.deepEqual(wireGuardKeyToBytes(created.wireGuardKey), wireGuardKeyToBytes(verification.wireGuardKey))
})
