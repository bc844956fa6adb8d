import assert from 'node:assert/strict'
import { inspect } from 'node:util'
import { test } from 'node:test'
import fc from 'fast-check'
import { CertpeerError } from '../../../src/core/errors.ts'
import { formatPrefix, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { parseNumericEndpoint } from '../../../src/core/wireguard/endpoint.ts'
import { parseWireGuardKey, wireGuardKeyFromBytes, wireGuardKeyToHex } from '../../../src/core/wireguard/key.ts'
import type { DeviceConfig } from '../../../src/core/wireguard/types.ts'
import { encodeSet, parseGet, parseSetAnswer, UAPI_GET } from '../../../src/core/wireguard/uapi.ts'
import { x25519PublicFromPrivate } from '../../../src/core/wireguard/x25519.ts'

const PRIVATE = Buffer.alloc(32, 0x41)
const PRESHARED_HEX = '5a'.repeat(32)
const A = wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, 1)))
const B = wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, 2)))
const DEVICE_FAILED = { name: 'CertpeerError', code: 'device_failed' }

test('a set request, word by word', () => {
  const config: DeviceConfig = {
    privateKey: PRIVATE,
    listenPort: 51820,
    changes: [
      { kind: 'remove', publicKey: B },
      {
        kind: 'set',
        peer: {
          publicKey: A,
          allowedIps: [parsePrefix('10.88.0.2/32'), parsePrefix('fd00::2/128')],
          endpoint: '[2001:DB8::1]:51820',
          persistentKeepaliveSeconds: 25,
        },
      },
      { kind: 'set', peer: { publicKey: B, allowedIps: [] } },
    ],
  }
  assert.equal(
    encodeSet(config),
    [
      'set=1',
      `private_key=${'41'.repeat(32)}`,
      'listen_port=51820',
      `public_key=${wireGuardKeyToHex(B)}`,
      'remove=true',
      `public_key=${wireGuardKeyToHex(A)}`,
      'endpoint=[2001:db8::1]:51820',
      'persistent_keepalive_interval=25',
      'replace_allowed_ips=true',
      'allowed_ip=10.88.0.2/32',
      'allowed_ip=fd00::2/128',
      `public_key=${wireGuardKeyToHex(B)}`,
      'replace_allowed_ips=true',
      '',
      '',
    ].join('\n'),
  )
})

test('a request without changes is still complete, and ends in the blank line that makes the device answer', () => {
  assert.equal(encodeSet({ changes: [] }), 'set=1\n\n')
  assert.equal(UAPI_GET, 'get=1\n\n')
})

for (const { name, config } of [
  { name: 'a private key of 31 bytes', config: { privateKey: Buffer.alloc(31), changes: [] } },
  { name: 'a port above 65535', config: { listenPort: 65_536, changes: [] } },
  { name: 'a port that is no integer', config: { listenPort: 1.5, changes: [] } },
]) {
  test(`${name} is a programming mistake, not a request`, () => assert.throws(() => encodeSet(config), TypeError))
}

for (const endpoint of [
  'gateway.example:51820',
  '192.0.2.1',
  '192.0.2.1:0',
  '192.0.2.1:65536',
  '192.0.2.1:051820',
  '192.0.2.256:51820',
  '2001:db8::1:51820',
  '[192.0.2.1]:51820',
  '[fe80::1%eth0]:51820',
  '192.0.2.1:51820\nremove=true',
]) {
  test(`the endpoint ${JSON.stringify(endpoint)} never becomes a line of the request`, () => {
    const peer = { publicKey: A, allowedIps: [], endpoint }
    assert.throws(() => encodeSet({ changes: [{ kind: 'set', peer }] }), { code: 'malformed_request' })
  })
}

test('endpoints get their canonical text', () => {
  assert.equal(parseNumericEndpoint('192.0.2.1:51820'), '192.0.2.1:51820')
  assert.equal(parseNumericEndpoint('[2001:0db8:0:0::1]:1'), '[2001:db8::1]:1')
})

/** As wireguard-go 0.0.20220316 answers. */
const GET_ANSWER = [
  `private_key=${'41'.repeat(32)}`,
  'listen_port=51820',
  'fwmark=0',
  `public_key=${wireGuardKeyToHex(A)}`,
  `preshared_key=${PRESHARED_HEX}`,
  'protocol_version=1',
  'endpoint=[2001:db8::1]:40000',
  'last_handshake_time_sec=1795176000',
  'last_handshake_time_nsec=250000000',
  'tx_bytes=1200',
  'rx_bytes=3400',
  'persistent_keepalive_interval=25',
  'allowed_ip=10.88.0.2/32',
  'allowed_ip=fd00::2/128',
  `public_key=${wireGuardKeyToHex(B)}`,
  `preshared_key=${'00'.repeat(32)}`,
  'protocol_version=1',
  'last_handshake_time_sec=0',
  'last_handshake_time_nsec=0',
  'tx_bytes=0',
  'rx_bytes=0',
  'persistent_keepalive_interval=0',
  'errno=0',
  '',
  '',
].join('\n')

test('a get answer becomes a state without secrets', () => {
  const state = parseGet(GET_ANSWER)
  assert.equal(state.publicKey, x25519PublicFromPrivate(PRIVATE).toString('base64'))
  assert.equal(state.listenPort, 51820)
  assert.deepEqual([...state.peers.keys()], [A, B])
  assert.deepEqual(state.peers.get(A), {
    publicKey: A,
    allowedIps: [parsePrefix('10.88.0.2/32'), parsePrefix('fd00::2/128')],
    endpoint: '[2001:db8::1]:40000',
    latestHandshakeAt: new Date(1_795_176_000_250),
    receiveBytes: 3400,
    transmitBytes: 1200,
    persistentKeepaliveSeconds: 25,
  })
  assert.deepEqual(state.peers.get(B), {
    publicKey: B,
    allowedIps: [],
    receiveBytes: 0,
    transmitBytes: 0,
    persistentKeepaliveSeconds: 0,
  })
})

/** Every spelling in which a 32-byte secret could leak. */
function spellings(secret: Buffer): string[] {
  return [secret.toString('hex'), secret.toString('base64'), secret.toString('base64').slice(0, 20)]
}

test('neither the private key nor a preshared key is anywhere in the state', () => {
  const shown = inspect(parseGet(GET_ANSWER), { depth: 10, maxStringLength: null })
  for (const secret of [PRIVATE, Buffer.from(PRESHARED_HEX, 'hex')]) {
    for (const spelling of spellings(secret)) assert.ok(!shown.includes(spelling))
  }
})

test('a device without a private key has no public key', () => {
  assert.equal(parseGet('listen_port=0\nfwmark=0\nerrno=0\n\n').publicKey, undefined)
  assert.equal(parseGet(`private_key=${'00'.repeat(32)}\nerrno=0\n\n`).publicKey, undefined)
})

test('a peer that was put there by hand under a non-canonical key can be named, and so removed', () => {
  const alias = Buffer.alloc(32, 0xff)
  const state = parseGet(`public_key=${alias.toString('hex')}\nerrno=0\n\n`)
  const [publicKey] = state.peers.keys()
  assert.ok(publicKey !== undefined)
  assert.match(encodeSet({ changes: [{ kind: 'remove', publicKey }] }), new RegExp(`public_key=${'ff'.repeat(32)}\n`))
  assert.throws(() => parseWireGuardKey(publicKey), { code: 'bad_wireguard_key' })
})

for (const { name, answer } of [
  { name: 'an errno', answer: 'errno=-22\n\n' },
  { name: 'nothing', answer: '' },
  { name: 'no errno', answer: `private_key=${'41'.repeat(32)}\nlisten_port=1\n\n` },
  { name: 'an answer that was cut short', answer: GET_ANSWER.slice(0, -9) },
  { name: 'text behind the errno', answer: 'errno=0\n\nerrno=0 ' },
  { name: 'a key that is not hex', answer: GET_ANSWER.replace(wireGuardKeyToHex(A), 'zz'.repeat(32)) },
  { name: 'a short private key', answer: `private_key=${'41'.repeat(31)}\nerrno=0\n\n` },
  { name: 'a peer twice', answer: GET_ANSWER.replace(wireGuardKeyToHex(B), wireGuardKeyToHex(A)) },
  { name: 'an AllowedIP that is none', answer: GET_ANSWER.replace('10.88.0.2/32', '10.88.0.2/33') },
  { name: 'a counter that is none', answer: GET_ANSWER.replace('rx_bytes=3400', 'rx_bytes=-1') },
]) {
  test(`a get answer with ${name} is refused, and the message holds no secret`, () => {
    assert.throws(
      () => parseGet(answer),
      (error) => {
        assert.ok(error instanceof CertpeerError)
        assert.equal(error.code, 'device_failed')
        const shown = inspect(error, { depth: 10 })
        for (const spelling of ['4141414141', '5a5a5a5a5a']) assert.ok(!shown.includes(spelling))
        return true
      },
    )
  })
}

test('unknown lines are skipped, as the protocol asks', () => {
  const state = parseGet(GET_ANSWER.replaceAll('protocol_version=1', 'colour=green'))
  assert.equal(state.peers.size, 2)
})

for (const { name, answer } of [
  { name: 'an invalid line', answer: 'errno=-22\n\n' },
  { name: 'a line over 64 KiB', answer: 'errno=-5\n\n' },
  { name: 'a connection that ended', answer: '' },
  { name: 'half an answer', answer: 'errno=' },
]) {
  test(`a set answered with ${name} failed`, () => assert.throws(() => parseSetAnswer(answer), DEVICE_FAILED))
}

test('a set answered errno=0 succeeded', () => {
  parseSetAnswer('errno=0\n\n')
})

test('whatever a device answers: a state or device_failed', () => {
  const lines = fc.array(
    fc.oneof(
      fc.constantFrom(...GET_ANSWER.split('\n')),
      fc.string({ maxLength: 40 }),
      fc
        .tuple(fc.constantFrom('public_key', 'allowed_ip', 'endpoint', 'private_key', 'rx_bytes'), fc.string())
        .map((p) => p.join('=')),
    ),
    { maxLength: 30 },
  )
  fc.assert(
    fc.property(lines, fc.boolean(), (parts, ended) => {
      try {
        for (const peer of parseGet(`${parts.join('\n')}\n${ended ? 'errno=0\n\n' : ''}`).peers.values()) {
          peer.allowedIps.forEach(formatPrefix)
        }
      } catch (error) {
        assert.ok(error instanceof CertpeerError && error.code === 'device_failed')
      }
    }),
    { numRuns: 300 },
  )
})
