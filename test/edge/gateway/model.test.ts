/**
 * Random orders of honest and hostile messages, faults of the device and restarts at any point. After each step: the
 * device holds nobody who was not certified and is not in force, and nobody who was revoked is ever back.
 */
import assert from 'node:assert/strict'
import { before, test } from 'node:test'
import fc from 'fast-check'
import type { JournalRecord } from '../../../src/core/messages/gateway-journal.ts'
import type { DownMessage } from '../../../src/core/messages/stream.ts'
import { formatPrefix, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import type { Certificate } from '../../../src/core/x509/certificate.ts'
import { ReconcileLoop } from '../../../src/edge/gateway/loop.ts'
import type { GatewaySession, Work } from '../../../src/edge/gateway/session.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { NOW } from '../../support/certificates.ts'
import { FakeDevice, type Fault } from '../../support/fake-device.ts'
import { at, deviceUri, GatewayWorld, HOUR, MINUTE, newWireGuardKey } from '../../support/gateway-world.ts'

const DEVICES = 4
const GENERATIONS = 3
const CRLS = 6
const RUNS = Number(process.env['CERTPEER_MODEL_RUNS'] ?? 150)

let world: GatewayWorld
/** By device, then generation: 0 and 1 share a key, 2 has another; each newer than the one before. */
let certificates: Certificate[][]
/** Certified by the CA and never to be a peer here. */
let foreign: Certificate[]
/** Rising numbers and growing lists of revocations: entry i revokes what `revokedBy(i)` says. */
let crls: DownMessage[]
const certificateOfRevocation: Certificate[] = []

before(async () => {
  world = await GatewayWorld.create()
  certificates = Array.from({ length: DEVICES }, (_, n) => {
    const keys = [newWireGuardKey(), newWireGuardKey()]
    return Array.from({ length: GENERATIONS }, (_unused, generation) => {
      const key = keys[generation === 2 ? 1 : 0]
      return world.makeDevice(n + 2, {
        ...(key !== undefined && { key }),
        notBefore: at((generation - 10) * MINUTE),
        notAfter: at((generation + 1) * 20 * MINUTE),
      })
    })
  })
  foreign = [
    world.makeDevice(8, { uri: deviceUri(8, 'default', 'lab') }),
    world.makeDevice(9, { key: world.gatewayKey }),
    world.makeDevice(10, { addresses: [parsePrefix('10.88.0.1/32')] }),
    world.makeDevice(11, { possession: false }),
    world.makeDevice(12, { notAfter: at(-7 * MINUTE), notBefore: at(-HOUR) }),
  ]
  for (let index = 0; index < CRLS; index++) {
    const certificate = certificates[index % DEVICES]?.[index % GENERATIONS]
    assert.ok(certificate)
    certificateOfRevocation.push(certificate)
  }
  crls = Array.from({ length: CRLS }, (_, index) => {
    // The last one forgets everything: revocation must stay all the same.
    const revoked = index === CRLS - 1 ? [] : certificateOfRevocation.slice(0, index).map(({ serial }) => serial)
    return world.crlMessage(world.deviceCa, { thisUpdate: index * 3 * MINUTE, revoked: [...new Set(revoked)] })
  })
})

type Step =
  | { kind: 'set' | 'remove'; device: number; generation: number; skip: number }
  | { kind: 'snapshot'; picks: readonly (readonly [number, number])[]; parts: boolean }
  | { kind: 'foreign'; which: number; inSnapshot: boolean }
  | { kind: 'crl'; index: number; byPoll: boolean }
  | { kind: 'time'; minutes: number }
  | { kind: 'fault'; fault: Fault }
  | { kind: 'edit'; device: number; generation: number; victim: number }
  | { kind: 'reconnect' }
  | { kind: 'restart'; keepDevice: boolean; lostRecords: number }
  | { kind: 'reconcile' }

const device = fc.nat(DEVICES - 1)
const generation = fc.nat(GENERATIONS - 1)
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constantFrom('set', 'remove'),
      device,
      generation,
      skip: fc.constantFrom(0, 0, 0, 0, 1, -1),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('snapshot'),
      picks: fc.array(fc.tuple(device, generation), { maxLength: 6 }),
      parts: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('foreign'), which: fc.nat(4), inSnapshot: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('crl'), index: fc.nat(CRLS - 1), byPoll: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('time'), minutes: fc.integer({ min: -30, max: 15 }) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('fault'),
      fault: fc.constantFrom<Fault>('failed', 'done-but-failed', 'half-done'),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('edit'), device, generation, victim: device }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('reconnect') }) },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant('restart'), keepDevice: fc.boolean(), lostRecords: fc.nat(2) }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('reconcile') }) },
)

/** A gateway whose disk and device are in memory, and an observer who knows what must never be. */
class Model {
  session: GatewaySession
  fake = new FakeDevice(world.gatewayKey)
  loop: ReconcileLoop
  clockMs = 0
  /** Newest signed instant, in milliseconds from the fixed one. */
  signedMs = -MINUTE
  revision = 1
  readonly revokedSerials = new Set<string>()
  /** Something was edited by hand, or a fault left half a change, since everything was last read. */
  isDisturbed = false
  records: JournalRecord[] = []
  readonly crls = new Map<string, Buffer>()
  readonly documents = new Map<string, string>()

  constructor() {
    this.session = world.newSession()
    this.loop = this.newLoop()
    this.session.connected(this.clock)
    for (const message of world.introduction()) this.session.receive(message, this.clock)
    this.session.receive(world.snapshot(1, []), this.clock)
  }

  get clock(): Date {
    return at(this.clockMs)
  }

  newLoop(): ReconcileLoop {
    const { fake } = this
    return new ReconcileLoop({
      session: this.session,
      device: { read: () => fake.read(), apply: (changes) => fake.apply(changes), repair: () => fake.read() },
      persist: async (work) => this.persist(work),
      send: () => undefined,
      clock: () => this.clock,
      log: silentLogger(),
      reconcileMs: 3_600_000,
    })
  }

  persist({ records, crls: lists, documents }: Work): void {
    this.records.push(...records)
    for (const { issuerKeyId, crl } of lists) this.crls.set(issuerKeyId, crl.der)
    for (const { jws, document } of documents) this.documents.set(document.network, jws)
  }

  async take(next: Step): Promise<void> {
    switch (next.kind) {
      case 'set':
      case 'remove': {
        const certificate = pick(next.device, next.generation)
        const revision = this.revision + 1 + next.skip
        if (next.skip === 0) this.revision = revision
        this.session.receive(
          next.kind === 'set' ? world.set(revision, certificate) : world.remove(revision, certificate),
          this.clock,
        )
        break
      }
      case 'snapshot': {
        this.revision += 1
        const list = next.picks.map(([n, g]) => pick(n, g))
        if (next.parts) this.session.receive(world.snapshot(this.revision, list.slice(0, 2), true), this.clock)
        this.session.receive(world.snapshot(this.revision, next.parts ? list.slice(2) : list), this.clock)
        break
      }
      case 'foreign': {
        this.revision += 1
        const hostile = foreign[next.which]
        assert.ok(hostile)
        this.session.receive(
          next.inSnapshot ? world.snapshot(this.revision, [hostile]) : world.set(this.revision, hostile),
          this.clock,
        )
        break
      }
      case 'crl': {
        const message = crls[next.index]
        assert.ok(message?.type === 'crl')
        if (next.byPoll) {
          try {
            this.session.acceptCrl(Buffer.from(message.crl, 'base64'), this.clock)
          } catch {
            // A lower number than before.
          }
        } else {
          this.session.receive(message, this.clock)
        }
        this.observeCrls()
        break
      }
      case 'time':
        this.clockMs += next.minutes * MINUTE
        break
      case 'fault':
        this.fake.faults.push(next.fault)
        this.isDisturbed = true
        break
      case 'edit': {
        const victim = pick(next.victim, 0)
        this.fake.edit(newWireGuardKey(), victim.addressBlocks ?? [])
        this.isDisturbed = true
        break
      }
      case 'reconnect':
        this.session.connected(this.clock)
        break
      case 'restart':
        await this.restart(next)
        break
      case 'reconcile':
        this.loop.lookAgain()
        break
      default:
        next satisfies never
    }
    await this.loop.step()
    if (this.fake.faults.length === 0 && next.kind === 'reconcile') {
      // A fault of this very step makes another one due.
      this.loop.lookAgain()
      await this.loop.step()
      this.isDisturbed = false
    }
  }

  /** Killed at any point: the last records may be lost with the page cache, the device may live on or be gone. */
  async restart({ keepDevice, lostRecords }: Extract<Step, { kind: 'restart' }>): Promise<void> {
    // The journal ends where it was cut; CRLs are files of their own.
    const kept = this.records.length - Math.min(lostRecords, Math.max(0, this.records.length - 20))
    this.records = this.records.slice(0, kept)
    if (!keepDevice) this.fake.reset()
    this.fake.faults.length = 0
    const saved = {
      records: this.records,
      crls: [...this.crls.values()],
      documents: [...this.documents.values()],
    }
    this.session = world.newSession(saved, this.clock)
    this.loop = this.newLoop()
    await this.loop.step()
    this.isDisturbed = false
    this.session.connected(this.clock)
  }

  observeCrls(): void {
    for (const [keyId, crl] of this.session.trust.crls) {
      if (keyId !== world.deviceCa.certificate.keyId) continue
      for (const serial of crl.entries.keys()) this.revokedSerials.add(serial)
      this.signedMs = Math.max(this.signedMs, crl.thisUpdate.getTime() - NOW.getTime())
    }
  }

  check(): void {
    const trueMs = Math.max(this.clockMs, this.signedMs - 5 * MINUTE)
    const byKey = new Map(certificates.flat().map((certificate) => [keyOf(certificate), [] as Certificate[]]))
    for (const certificate of certificates.flat()) byKey.get(keyOf(certificate))?.push(certificate)
    const holders = new Map<string, string>()
    for (const [key, { allowedIps }] of this.session.wanted) {
      const candidates = byKey.get(key) ?? []
      const inForce = candidates.filter(
        ({ serial, notAfter }) => !this.revokedSerials.has(serial) && notAfter.getTime() > NOW.getTime() + trueMs,
      )
      assert.ok(inForce.length > 0, 'a peer has no certificate that is in force')
      const texts = allowedIps.map(formatPrefix)
      assert.ok(
        inForce.some(({ addressBlocks = [] }) => addressBlocks.map(formatPrefix).join() === texts.join()),
        'a peer has other AllowedIPs than certified',
      )
      for (const text of texts) {
        assert.equal(holders.get(text), undefined, 'two peers have one address')
        holders.set(text, key)
      }
    }
    if (!this.isDisturbed && this.fake.faults.length === 0 && this.loop.isReconciled) {
      const wanted = Object.fromEntries(
        [...this.session.wanted].map(([key, { allowedIps }]) => [key, allowedIps.map(formatPrefix).sort()]),
      )
      assert.deepEqual(this.fake.dump(), wanted, 'the device differs from what is wanted')
    }
  }
}

function pick(n: number, g: number): Certificate {
  const certificate = certificates[n]?.[g]
  assert.ok(certificate)
  return certificate
}

/** Devices here have one key address each, and it is made of the key. */
const keyByCertificate = new WeakMap<Certificate, string>()
function keyOf(certificate: Certificate): string {
  const known = keyByCertificate.get(certificate)
  if (known !== undefined) return known
  const session = world.readySession()
  session.receive(world.snapshot(2, [certificate]), NOW)
  const [key] = session.wanted.keys()
  assert.ok(key !== undefined)
  keyByCertificate.set(certificate, key)
  return key
}

test(`${RUNS} random histories keep the invariants after every step`, async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 30 }), async (steps) => {
      const model = new Model()
      await model.loop.step()
      for (const next of steps) {
        await model.take(next)
        model.check()
      }
      // In the end, told everything and left in peace, device and session agree.
      model.fake.faults.length = 0
      model.loop.lookAgain()
      await model.loop.step()
      model.isDisturbed = false
      model.check()
      assert.deepEqual(model.fake.keys().sort(), [...model.session.wanted.keys()].sort())
    }),
    { numRuns: RUNS },
  )
})
