import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { formatPrefix, hostPrefix, parsePrefix, type Prefix } from '../../../src/core/ipam/prefix.ts'
import { diffPeers, type ActualPeer, type WantedPeer } from '../../../src/core/wireguard/diff.ts'
import { wireGuardKeyFromBytes, type WireGuardKey } from '../../../src/core/wireguard/key.ts'
import type { PeerChange } from '../../../src/core/wireguard/types.ts'
import { x25519PublicFromPrivate } from '../../../src/core/wireguard/x25519.ts'

const KEYS = Array.from({ length: 6 }, (_, index) =>
  wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, index + 1))),
)
const [A, B, C] = KEYS as [WireGuardKey, WireGuardKey, WireGuardKey]
const P1 = parsePrefix('10.88.0.1/32')
const P2 = parsePrefix('10.88.0.2/32')
const P3 = parsePrefix('fd00::3/128')

interface Peer {
  readonly allowedIps: readonly Prefix[]
  readonly endpoint?: string
  readonly persistentKeepaliveSeconds?: number
}

function peers(...entries: [WireGuardKey, Peer][]): Map<WireGuardKey, Peer> {
  return new Map(entries)
}

/**
 * What a WireGuard device does with one change. It hands an AllowedIP over silently when another peer has it; `stolen`
 * remembers that.
 */
class Device {
  readonly peers = new Map<WireGuardKey, { allowedIps: Map<string, Prefix>; endpoint?: string; keepalive: number }>()
  readonly stolen: string[] = []
  readonly readded: WireGuardKey[] = []
  readonly #removed = new Set<WireGuardKey>()

  constructor(initial: ReadonlyMap<WireGuardKey, Peer>) {
    for (const [publicKey, peer] of initial) this.apply({ kind: 'set', peer: { publicKey, ...peer } })
  }

  apply(change: PeerChange): void {
    if (change.kind === 'remove') {
      this.peers.delete(change.publicKey)
      this.#removed.add(change.publicKey)
      return
    }
    const { publicKey, allowedIps, endpoint, persistentKeepaliveSeconds } = change.peer
    if (this.#removed.has(publicKey)) this.readded.push(publicKey)
    const peer = this.peers.get(publicKey) ?? { allowedIps: new Map<string, Prefix>(), keepalive: 0 }
    peer.allowedIps.clear()
    for (const prefix of allowedIps) {
      const text = formatPrefix(prefix)
      for (const other of this.peers.values()) {
        if (other !== peer && other.allowedIps.delete(text)) this.stolen.push(text)
      }
      peer.allowedIps.set(text, prefix)
    }
    if (endpoint !== undefined) peer.endpoint = endpoint
    if (persistentKeepaliveSeconds !== undefined) peer.keepalive = persistentKeepaliveSeconds
    this.peers.set(publicKey, peer)
  }

  read(): Map<WireGuardKey, ActualPeer> {
    return new Map(
      [...this.peers].map(([publicKey, { allowedIps, endpoint, keepalive }]) => [
        publicKey,
        {
          allowedIps: [...allowedIps.values()],
          ...(endpoint === undefined ? {} : { endpoint }),
          persistentKeepaliveSeconds: keepalive,
        },
      ]),
    )
  }
}

function texts(allowedIps: readonly Prefix[]): string[] {
  return allowedIps.map(formatPrefix).toSorted((a, b) => (a < b ? -1 : 1))
}

function access(state: ReadonlyMap<WireGuardKey, Peer>): Set<string> {
  return new Set([...state].flatMap(([key, { allowedIps }]) => allowedIps.map((p) => `${key} ${formatPrefix(p)}`)))
}

const STORIES: readonly {
  name: string
  wanted: Map<WireGuardKey, Peer>
  actual: Map<WireGuardKey, Peer>
  changes: string[]
}[] = [
  { name: 'nothing on both sides', wanted: peers(), actual: peers(), changes: [] },
  {
    name: 'the same on both sides, in another order',
    wanted: peers([A, { allowedIps: [P1, P3] }], [B, { allowedIps: [P2] }]),
    actual: peers([B, { allowedIps: [P2] }], [A, { allowedIps: [P3, P1] }]),
    changes: [],
  },
  { name: 'a new peer', wanted: peers([A, { allowedIps: [P1] }]), actual: peers(), changes: ['set A 10.88.0.1/32'] },
  { name: 'a peer that is gone', wanted: peers(), actual: peers([A, { allowedIps: [P1] }]), changes: ['remove A'] },
  {
    name: 'an address that goes to a new peer: the old one is removed first',
    wanted: peers([B, { allowedIps: [P1] }]),
    actual: peers([A, { allowedIps: [P1] }]),
    changes: ['remove A', 'set B 10.88.0.1/32'],
  },
  {
    name: 'an address that moves between peers that stay: taken first, given then',
    wanted: peers([A, { allowedIps: [] }], [B, { allowedIps: [P1, P2] }]),
    actual: peers([A, { allowedIps: [P1] }], [B, { allowedIps: [P2] }]),
    changes: ['set A ', 'set B 10.88.0.1/32,10.88.0.2/32'],
  },
  {
    name: 'two peers that swap addresses',
    wanted: peers([A, { allowedIps: [P2] }], [B, { allowedIps: [P1] }]),
    actual: peers([A, { allowedIps: [P1] }], [B, { allowedIps: [P2] }]),
    changes: ['set A ', 'set B ', 'set A 10.88.0.2/32', 'set B 10.88.0.1/32'],
  },
  {
    name: 'an AllowedIP too many, put there by hand',
    wanted: peers([A, { allowedIps: [P1] }]),
    actual: peers([A, { allowedIps: [P1, parsePrefix('0.0.0.0/0')] }]),
    changes: ['set A 10.88.0.1/32'],
  },
  {
    name: 'removals before everything else, whatever the order of the maps',
    wanted: peers([C, { allowedIps: [P3] }], [A, { allowedIps: [] }]),
    actual: peers([A, { allowedIps: [P1] }], [B, { allowedIps: [P3] }]),
    changes: ['remove B', 'set A ', 'set C fd00::3/128'],
  },
]

const NAMES = new Map(KEYS.map((key, index) => [key, 'ABCDEF'.charAt(index)]))
function describe(change: PeerChange): string {
  if (change.kind === 'remove') return `remove ${NAMES.get(change.publicKey) ?? '?'}`
  return `set ${NAMES.get(change.peer.publicKey) ?? '?'} ${texts(change.peer.allowedIps).join(',')}`
}

for (const { name, wanted, actual, changes } of STORIES) {
  test(`diff: ${name}`, () => assert.deepEqual(diffPeers(wanted, actual).map(describe), changes))
}

test('keepalive is written when it differs, and only then', () => {
  const wanted = peers([A, { allowedIps: [P1], persistentKeepaliveSeconds: 25 }])
  const peer = { publicKey: A, allowedIps: [P1], persistentKeepaliveSeconds: 25 }
  assert.deepEqual(diffPeers(wanted, peers([A, { allowedIps: [P1] }])), [{ kind: 'set', peer }])
  assert.deepEqual(diffPeers(wanted, peers([A, { allowedIps: [P1], persistentKeepaliveSeconds: 25 }])), [])
})

test('an endpoint is given to a device that has none, and never forced on one that roamed', () => {
  const wanted = peers([A, { allowedIps: [P1], endpoint: '192.0.2.1:1' }])
  const peer = { publicKey: A, allowedIps: [P1], endpoint: '192.0.2.1:1' }
  assert.deepEqual(diffPeers(wanted, peers([A, { allowedIps: [P1] }])), [{ kind: 'set', peer }])
  assert.deepEqual(diffPeers(wanted, peers([A, { allowedIps: [P1], endpoint: '198.51.100.9:4' }])), [])
})

test('two wanted peers with one AllowedIP are refused: the device would give it to the last', () => {
  const wanted = peers([A, { allowedIps: [P1] }], [B, { allowedIps: [P1] }])
  assert.throws(() => diffPeers(wanted, peers()), { name: 'CertpeerError', code: 'address_conflict' })
})

const prefixes = Array.from({ length: 8 }, (_, index) => hostPrefix(4, 0x0a580000n + BigInt(index)))
/** A state a device can have: every prefix at one peer at most. */
const stateArbitrary = fc
  .tuple(
    fc.subarray(KEYS),
    fc.array(fc.integer({ min: -1, max: KEYS.length - 1 }), { minLength: prefixes.length, maxLength: prefixes.length }),
    fc.constantFrom(undefined, 0, 25),
  )
  .map(([keys, owners, persistentKeepaliveSeconds]) => {
    const state = new Map<WireGuardKey, WantedPeer>()
    for (const key of keys) {
      const allowedIps = prefixes.filter((_, index) => KEYS[owners[index] ?? -1] === key)
      state.set(key, {
        allowedIps,
        ...(persistentKeepaliveSeconds === undefined ? {} : { persistentKeepaliveSeconds }),
      })
    }
    return state
  })

test('applied to the device, the diff reaches what is wanted, safely at every step', () => {
  fc.assert(
    fc.property(stateArbitrary, stateArbitrary, (wanted, actual) => {
      const device = new Device(actual)
      const before = access(device.read())
      const allowed = access(wanted)
      const changes = diffPeers(wanted, device.read())
      const firstSet = changes.findIndex(({ kind }) => kind === 'set')
      assert.ok(firstSet === -1 || changes.slice(firstSet).every(({ kind }) => kind === 'set'), 'removals come first')
      for (const change of changes) {
        device.apply(change)
        for (const grant of access(device.read()))
          assert.ok(before.has(grant) || allowed.has(grant), `${grant} appeared`)
      }
      assert.deepEqual(device.stolen, [], 'no AllowedIP is taken silently')
      assert.deepEqual(device.readded, [], 'no peer is removed and added again')
      const reached = device.read()
      assert.deepEqual([...reached.keys()].toSorted(), [...wanted.keys()].toSorted())
      for (const [key, { allowedIps, persistentKeepaliveSeconds }] of wanted) {
        assert.deepEqual(texts(reached.get(key)?.allowedIps ?? []), texts(allowedIps))
        if (persistentKeepaliveSeconds !== undefined) {
          assert.equal(reached.get(key)?.persistentKeepaliveSeconds, persistentKeepaliveSeconds)
        }
      }
      assert.deepEqual(diffPeers(wanted, reached), [], 'a second diff finds nothing to do')
    }),
    { numRuns: 500 },
  )
})

test('cut off after any change, there is never more access than before or wanted, and the rest still gets there', () => {
  fc.assert(
    fc.property(stateArbitrary, stateArbitrary, fc.nat(20), (wanted, actual, cut) => {
      const device = new Device(actual)
      for (const change of diffPeers(wanted, device.read()).slice(0, cut)) device.apply(change)
      for (const change of diffPeers(wanted, device.read())) device.apply(change)
      assert.deepEqual(access(device.read()), access(wanted))
    }),
    { numRuns: 200 },
  )
})
