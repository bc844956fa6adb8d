import assert from 'node:assert/strict'
import { inspect } from 'node:util'
import { test } from 'node:test'
import { CertpeerError } from '../../../src/core/errors.ts'
import { parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { wireGuardKeyFromBytes } from '../../../src/core/wireguard/key.ts'
import { parseWgDump } from '../../../src/core/wireguard/showconf.ts'
import { x25519PublicFromPrivate } from '../../../src/core/wireguard/x25519.ts'

const SECRET = Buffer.alloc(32, 0x41).toString('base64')
const PRESHARED = Buffer.alloc(32, 0x5a).toString('base64')
const OWN = wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, 0x41)))
const A = wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, 1)))
const B = wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, 2)))

/** Columns as wg(8) gives them for `wg show INTERFACE dump`. */
const INTERFACE = [SECRET, OWN, '51820', 'off']
const PEER_A = [A, PRESHARED, '192.0.2.7:40000', '10.88.0.2/32,fd00::2/128', '1795176000', '3400', '1200', '25']
const PEER_B = [B, '(none)', '(none)', '(none)', '0', '0', '0', 'off']

function dump(...lines: string[][]): string {
  return lines.map((columns) => `${columns.join('\t')}\n`).join('')
}

test('a dump becomes the same kind of state as a UAPI answer', () => {
  const state = parseWgDump(dump(INTERFACE, PEER_A, PEER_B))
  assert.equal(state.publicKey, OWN)
  assert.equal(state.listenPort, 51820)
  assert.deepEqual(
    [...state.peers.values()],
    [
      {
        publicKey: A,
        allowedIps: [parsePrefix('10.88.0.2/32'), parsePrefix('fd00::2/128')],
        endpoint: '192.0.2.7:40000',
        latestHandshakeAt: new Date(1_795_176_000_000),
        receiveBytes: 3400,
        transmitBytes: 1200,
        persistentKeepaliveSeconds: 25,
      },
      { publicKey: B, allowedIps: [], receiveBytes: 0, transmitBytes: 0, persistentKeepaliveSeconds: 0 },
    ],
  )
})

test('a device without a private key has no public key', () => {
  assert.deepEqual(parseWgDump(dump(['(none)', '(none)', '0', 'off'])), { listenPort: 0, peers: new Map() })
})

test('neither the private key nor a preshared key is anywhere in the state', () => {
  const shown = inspect(parseWgDump(dump(INTERFACE, PEER_A)), { depth: 10, maxStringLength: null })
  assert.ok(!shown.includes(SECRET) && !shown.includes(PRESHARED))
})

const without = (columns: string[], index: number) => columns.filter((_, at) => at !== index)
const replaced = (columns: string[], index: number, value: string) => columns.with(index, value)

for (const { name, text } of [
  { name: 'nothing', text: '' },
  { name: 'a last line that is cut short', text: dump(INTERFACE, PEER_A).slice(0, -3) },
  { name: 'an interface line of three columns', text: dump(without(INTERFACE, 3)) },
  { name: 'a peer line of seven columns', text: dump(INTERFACE, without(PEER_A, 1)) },
  { name: 'a peer twice', text: dump(INTERFACE, PEER_A, PEER_A) },
  { name: 'a key that is not base64', text: dump(INTERFACE, replaced(PEER_A, 0, 'no')) },
  { name: 'an AllowedIP that is none', text: dump(INTERFACE, replaced(PEER_A, 3, '10.88.0.2')) },
  { name: 'an empty AllowedIP', text: dump(INTERFACE, replaced(PEER_A, 3, '')) },
  { name: 'a port that is no number', text: dump(replaced(INTERFACE, 2, 'x')) },
  { name: 'a keepalive that is no number', text: dump(INTERFACE, replaced(PEER_A, 7, 'on')) },
]) {
  test(`a dump with ${name} is refused, and the message holds no secret`, () => {
    assert.throws(
      () => parseWgDump(text),
      (error) => {
        assert.ok(error instanceof CertpeerError)
        assert.equal(error.code, 'device_failed')
        const shown = inspect(error, { depth: 10 })
        assert.ok(!shown.includes(SECRET.slice(0, 20)) && !shown.includes(PRESHARED.slice(0, 20)))
        return true
      },
    )
  })
}
