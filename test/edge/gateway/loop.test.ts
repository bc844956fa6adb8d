/** The loop on a device that remembers: order, faults in every form, and acknowledgements only for what is there. */
import assert from 'node:assert/strict'
import { before, beforeEach, describe, test } from 'node:test'
import { CertpeerError } from '../../../src/core/errors.ts'
import { parsePrefix } from '../../../src/core/ipam/prefix.ts'
import type { UpMessage } from '../../../src/core/messages/stream.ts'
import { ReconcileLoop } from '../../../src/edge/gateway/loop.ts'
import type { GatewaySession, Work } from '../../../src/edge/gateway/session.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { NOW } from '../../support/certificates.ts'
import { FakeDevice, type Fault } from '../../support/fake-device.ts'
import { at, GatewayWorld, NETWORK, newWireGuardKey } from '../../support/gateway-world.ts'

let world: GatewayWorld
before(async () => {
  world = await GatewayWorld.create()
})

let session: GatewaySession
let device: FakeDevice
let loop: ReconcileLoop
let sent: UpMessage[]
let persisted: Work[]
let onPersist: () => void
let clockMs: number

beforeEach(async () => {
  session = world.readySession()
  device = new FakeDevice(world.gatewayKey)
  sent = []
  persisted = []
  onPersist = () => undefined
  clockMs = 0
  loop = new ReconcileLoop({
    session,
    device: { read: () => device.read(), apply: (changes) => device.apply(changes), repair: () => device.read() },
    persist: async (work) => {
      persisted.push(work)
      onPersist()
    },
    send: (message) => sent.push(message),
    clock: () => at(clockMs),
    log: silentLogger(),
    reconcileMs: 3_600_000,
  })
  await loop.step()
  sent.length = 0
})

const applied = () => sent.filter((message) => message.type === 'applied')
const revisions = () => applied().map(({ revision }) => revision)

describe('the loop', () => {
  test('acknowledges a revision after the device has it, and not before', async () => {
    let release: () => void = () => undefined
    device.gate = new Promise((resolve) => (release = resolve))
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    const step = loop.step()
    await new Promise((resolve) => setImmediate(resolve))
    assert.deepEqual(revisions(), [])
    release()
    await step
    assert.deepEqual(revisions(), [2])
    assert.deepEqual(device.keys(), [...session.wanted.keys()])
  })

  test('writes down what was decided before the device hears of it', async () => {
    onPersist = () => assert.equal(device.keys().length, 0)
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    await loop.step()
    assert.ok(persisted.at(-1)?.records.some(({ type }) => type === 'peer'))
    assert.equal(device.keys().length, 1)
  })

  test('says that a peer is gone when that is on disk for certain; the device does not wait for it', async () => {
    let release: () => void = () => undefined
    const patient = new ReconcileLoop({
      session,
      device: { read: () => device.read(), apply: (changes) => device.apply(changes), repair: () => device.read() },
      persist: () => Promise.resolve(),
      makeDurable: () => new Promise((resolve) => (release = resolve)),
      send: (message) => sent.push(message),
      clock: () => at(0),
      log: silentLogger(),
      reconcileMs: 3_600_000,
    })
    const certificate = world.makeDevice(2)
    session.receive(world.set(2, certificate), NOW)
    await patient.step()
    assert.deepEqual(revisions(), [2])
    session.receive(world.remove(3, certificate), NOW)
    await patient.step()
    assert.deepEqual(device.keys(), [])
    session.receive(world.set(4, world.makeDevice(3)), NOW)
    await patient.step()
    assert.equal(device.keys().length, 1)
    assert.deepEqual(revisions(), [2], 'revision 4 would say that 3 is done')
    release()
    await new Promise((resolve) => setImmediate(resolve))
    assert.deepEqual(revisions(), [2, 3, 4])
  })

  test('touches only what has changed, removals first, and never removes what is only renewed', async () => {
    const [a, b, c] = [newWireGuardKey(), newWireGuardKey(), newWireGuardKey()]
    const first = world.makeDevice(2, { key: a })
    session.receive(world.set(2, first), NOW)
    session.receive(world.set(3, world.makeDevice(3, { key: b })), NOW)
    await loop.step()
    const reads = device.reads
    device.applied.length = 0
    session.receive(world.set(4, world.makeDevice(3, { key: b, notBefore: at(-1000) })), NOW)
    session.receive(world.set(5, world.makeDevice(4, { key: c })), NOW)
    session.receive(world.remove(6, first), NOW)
    await loop.step()
    assert.deepEqual(
      device.applied.map((change) =>
        change.kind === 'remove' ? ['remove', change.publicKey] : ['set', change.peer.publicKey],
      ),
      [
        ['remove', a],
        ['set', b],
        ['set', c],
      ],
    )
    assert.equal(device.reads, reads, 'a change must not read the whole device')
    assert.deepEqual(revisions(), [3, 6])
  })

  for (const fault of ['failed', 'done-but-failed', 'half-done'] as const satisfies Fault[]) {
    test(`a change that is reported as failed (${fault}) is made all the same, and acknowledged then`, async () => {
      const keys = [newWireGuardKey(), newWireGuardKey(), newWireGuardKey()]
      device.faults.push(fault)
      for (const [index, key] of keys.entries()) {
        session.receive(world.set(index + 2, world.makeDevice(index + 2, { key })), NOW)
      }
      await loop.step()
      await loop.step()
      assert.deepEqual(device.keys().sort(), [...keys].sort())
      assert.deepEqual(applied().at(-1), { type: 'applied', network: NETWORK, revision: 4, failed: [] })
    })
  }

  test('a peer that the device refuses is named, its neighbours are there, and it is tried again', async () => {
    const keys = Array.from({ length: 5 }, () => newWireGuardKey())
    const [bad, ...good] = keys
    assert.ok(bad)
    device.refused.add(bad)
    const certificates = keys.map((key, index) => world.makeDevice(index + 2, { key }))
    session.receive(world.snapshot(2, certificates), NOW)
    await loop.step()
    await loop.step()
    assert.deepEqual(device.keys().sort(), [...good].sort())
    assert.deepEqual(applied().at(-1)?.failed, [{ serial: certificates[0]?.serial, code: 'device_failed' }])
    device.refused.clear()
    loop.lookAgain()
    await loop.step()
    await loop.step()
    assert.deepEqual(device.keys().sort(), [...keys].sort())
    assert.deepEqual(applied().at(-1)?.failed, [])
  })

  test('a device that cannot be reached is not acknowledged; when it is back everything is', async () => {
    device.reachable = false
    const certificate = world.makeDevice(2)
    session.receive(world.set(2, certificate), NOW)
    await loop.step()
    assert.equal(loop.isReconciled, false)
    assert.deepEqual(revisions(), [])
    // What happens meanwhile is written down all the same.
    session.receive(world.set(3, world.makeDevice(3)), NOW)
    await loop.step()
    assert.ok(persisted.at(-1)?.records.some((record) => record.type === 'revision' && record.revision === 3))
    device.reachable = true
    device.reset()
    loop.lookAgain()
    await loop.step()
    assert.deepEqual(revisions(), [3])
    assert.equal(device.keys().length, 2)
  })

  test('undoes hand edits: foreign peers, moved and changed AllowedIPs, a removed peer, a keepalive', async () => {
    const keys = [newWireGuardKey(), newWireGuardKey()] as const
    session.receive(
      world.snapshot(2, [world.makeDevice(2, { key: keys[0] }), world.makeDevice(3, { key: keys[1] })]),
      NOW,
    )
    await loop.step()
    const right = device.dump()
    const foreign = newWireGuardKey()
    const edits: (() => void)[] = [
      () => device.edit(foreign, [parsePrefix('10.88.9.9/32')]),
      () => device.edit(foreign, [parsePrefix('10.88.0.2/32')]),
      () => device.edit(keys[1], [parsePrefix('10.88.0.2/32'), parsePrefix('10.88.0.3/32')]),
      () => device.edit(keys[0], [parsePrefix('0.0.0.0/0')]),
      () => device.edit(keys[0], []),
      () => device.reset(),
    ]
    for (const edit of edits) {
      edit()
      assert.notDeepEqual(device.dump(), right)
      loop.lookAgain()
      await loop.step()
      assert.deepEqual(device.dump(), right)
    }
  })

  test('a peer that was taken away from outside gets a handshake from this side, and no keepalive afterwards', async () => {
    const key = newWireGuardKey()
    session.receive(world.set(2, world.makeDevice(2, { key })), NOW)
    await loop.step()
    await device.apply([
      {
        kind: 'set',
        peer: { publicKey: key, allowedIps: session.wanted.get(key)?.allowedIps ?? [], endpoint: '192.0.2.7:9' },
      },
    ])
    loop.lookAgain()
    await loop.step()
    device.reset()
    loop.lookAgain()
    await loop.step()
    const kicked = (await device.read()).peers.get(key)
    assert.equal(kicked?.endpoint, '192.0.2.7:9')
    assert.equal(kicked.persistentKeepaliveSeconds, 1)
    loop.lookAgain()
    await loop.step()
    assert.equal((await device.read()).peers.get(key)?.persistentKeepaliveSeconds, 0)
  })

  test('ends a peer at its notAfter by its own timer, and stops when told to', async () => {
    const stopped = new AbortController()
    const startedMs = performance.now()
    const clock = () => at(performance.now() - startedMs)
    const running = new ReconcileLoop({
      session,
      device: { read: () => device.read(), apply: (changes) => device.apply(changes), repair: () => device.read() },
      persist: () => Promise.resolve(),
      send: (message) => sent.push(message),
      clock,
      log: silentLogger(),
      reconcileMs: 3_600_000,
    })
    const ended = running.run(stopped.signal)
    session.receive(world.set(2, world.makeDevice(2, { notAfter: at(1000) })), clock())
    running.wake()
    while (device.keys().length === 0) await new Promise((resolve) => setTimeout(resolve, 5))
    while (device.keys().length > 0) await new Promise((resolve) => setTimeout(resolve, 5))
    const endedMs = clock().getTime() - NOW.getTime()
    assert.ok(endedMs >= 1000 && endedMs < 1500, `${endedMs} ms`)
    stopped.abort()
    await ended
  })

  test('a device that dies in the middle of a batch is not believed to have any of it', async () => {
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    device.gate = Promise.resolve().then(() => {
      device.reachable = false
    })
    await loop.step()
    assert.deepEqual(revisions(), [])
    await assert.rejects(device.read(), (error) => error instanceof CertpeerError && error.code === 'unavailable')
  })
})
