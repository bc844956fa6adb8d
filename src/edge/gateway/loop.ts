/**
 * Brings the device to what the session wants, and tells the control plane only what the device has confirmed. A change
 * costs what it changes; every so often the whole device is read, and whatever somebody edited by hand is undone.
 */
import { errorCode } from '../../core/errors.ts'
import type { JournalRecord } from '../../core/messages/gateway-journal.ts'
import type { UpMessage } from '../../core/messages/stream.ts'
import { diffPeers } from '../../core/wireguard/diff.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import type { DeviceState, PeerChange } from '../../core/wireguard/types.ts'
import type { Now } from '../../platform/clock.ts'
import type { Logger } from '../../platform/log.ts'
import type { WireGuardDevice } from '../tunnel/port.ts'
import { isAborted } from './aborted.ts'
import type { Notice } from './outbox.ts'
import type { Acknowledgement, GatewaySession, Work } from './session.ts'

/** A device that can be put back in place when it has gone. */
export interface RepairableDevice extends WireGuardDevice {
  /** Makes sure that the interface is there and configured; gives what the device then has. */
  repair(): Promise<DeviceState>
}

export interface LoopOptions {
  readonly session: GatewaySession
  readonly device: RepairableDevice
  /** Writes down what the session has decided. Must not reject: a full disk does not stop tunnels. */
  readonly persist: (work: Work) => Promise<void>
  /**
   * Resolves when what was persisted would survive a power cut. Awaited before a removal is acknowledged, since whoever
   * was told "gone" must not see the peer come back with the machine. Must not reject.
   */
  readonly makeDurable?: () => Promise<void>
  /** Sends to the control plane; lost without harm when nobody is connected. */
  readonly send: (message: UpMessage) => void
  readonly clock: Now
  readonly log: Logger
  readonly reconcileMs: number
}

/** Peers that are tried one by one when the device refuses a batch; what is beyond waits for the next look. */
const MAX_SINGLE_FAILURES = 64
/** How long a re-added peer gets keepalives from our side, so that it shakes hands at once. */
const KICK_MS = 3000
const MAX_WAIT_MS = 5000
const MAX_BACKOFF_MS = 30_000

export class ReconcileLoop {
  readonly #options: LoopOptions
  #wakeUp: (() => void) | undefined
  #woken = false
  #repairDue = true
  #nextLookMs = 0
  #failures = 0
  #notBeforeMs = 0
  #pendingKeys = new Set<WireGuardKey>()
  readonly #pendingAcks = new Map<string, Acknowledgement>()
  /** What the device has confirmed and nobody has been told yet. */
  readonly #confirmed = new Map<string, Acknowledgement>()
  /** Access has been taken away, and it is not on disk for certain. */
  #mustSync = false
  #isTelling = false
  #failedKeys: ReadonlySet<WireGuardKey> = new Set()
  /** Where peers were last seen: after a re-add the device can start the handshake itself. */
  #lastEndpoints = new Map<WireGuardKey, string>()
  #isReconciled = false

  constructor(options: LoopOptions) {
    this.#options = options
  }

  /** True once the device has been brought to what the session wants, and nothing has failed since. */
  get isReconciled(): boolean {
    return this.#isReconciled
  }

  /** Something may have changed in the session. */
  wake(): void {
    this.#woken = true
    this.#wakeUp?.()
  }

  /** The device, or what it should look like, has changed: look at all of it. */
  lookAgain(): void {
    this.#repairDue = true
    this.#notBeforeMs = 0
    this.wake()
  }

  /** Runs until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const onAbort = () => this.wake()
    signal.addEventListener('abort', onAbort, { once: true })
    while (!isAborted(signal)) {
      this.#woken = false
      await this.step()
      if (!isAborted(signal)) await this.#wait()
    }
    signal.removeEventListener('abort', onAbort)
    await this.#gather()
  }

  /** One turn: takes what the session has decided and brings the device to it. */
  async step(): Promise<void> {
    const { session, clock } = this.#options
    session.tick(clock())
    await this.#gather()
    const nowMs = performance.now()
    if (nowMs < this.#notBeforeMs) return
    try {
      if (this.#repairDue || nowMs >= this.#nextLookMs) await this.#lookAtAll()
      else if (this.#pendingKeys.size > 0) await this.#applyPending()
      this.#failures = 0
      this.#notBeforeMs = 0
      this.#isReconciled = true
      this.#acknowledge()
    } catch (err) {
      this.#fail(err)
    }
  }

  async #gather(): Promise<void> {
    const { session, persist, send } = this.#options
    if (!session.hasWork) return
    const work = session.takeWork()
    for (const key of work.changedKeys) this.#pendingKeys.add(key)
    for (const ack of work.acks) this.#pendingAcks.set(ack.kind === 'crl' ? ack.issuerKeyId : ack.network, ack)
    if (work.documents.length > 0) this.#repairDue = true
    if (work.crls.length > 0 || work.records.some(takesAway)) this.#mustSync = true
    for (const notice of work.notices) this.#log(notice)
    for (const reply of work.replies) send(reply)
    // Before the device: an agent that is killed in between finds its decision and carries it out.
    await persist(work)
  }

  /** Only what changed. Removals go first: a crash half-way must leave less access, never more. */
  async #applyPending(): Promise<void> {
    const { session } = this.#options
    const keys = this.#pendingKeys
    this.#pendingKeys = new Set()
    const removals: PeerChange[] = []
    const settings: PeerChange[] = []
    for (const publicKey of keys) {
      const wanted = session.wanted.get(publicKey)
      if (wanted === undefined) removals.push({ kind: 'remove', publicKey })
      else settings.push({ kind: 'set', peer: { publicKey, allowedIps: wanted.allowedIps } })
    }
    const failed = await this.#apply([...removals, ...settings])
    const others = [...this.#failedKeys].filter((key) => !keys.has(key))
    this.#tellFailures(new Set([...others, ...failed]))
  }

  /** Everything: the interface, then every peer that is there or should be. */
  async #lookAtAll(): Promise<void> {
    const { device, session, reconcileMs, log } = this.#options
    const startedMs = performance.now()
    const state = await device.repair()
    // From here on a change of the session is new again.
    this.#pendingKeys = new Set()
    this.#repairDue = false
    const changes = diffPeers(session.wanted, state.peers)
    const kicked = this.#rememberEndpoints(state)
    const readded = changes.map((change) => kick(change, kicked))
    const failed = await this.#apply(readded)
    this.#tellFailures(failed)
    const isKicking = readded.some((change, index) => change !== changes[index])
    this.#nextLookMs = performance.now() + (isKicking ? KICK_MS : reconcileMs)
    if (changes.length === 0) return
    const removed = changes.filter(({ kind }) => kind === 'remove').length
    const durationMs = Math.round(performance.now() - startedMs)
    log.info({ removed, set: changes.length - removed, failed: failed.size, durationMs }, 'device brought in line')
  }

  /** Applies; when the device refuses something, finds out what. Gives the keys it does not take. */
  async #apply(changes: readonly PeerChange[]): Promise<ReadonlySet<WireGuardKey>> {
    const { device, log } = this.#options
    const failed = new Set<WireGuardKey>()
    if (changes.length === 0) return failed
    try {
      await device.apply(changes)
      return failed
    } catch (err) {
      if (errorCode(err) !== 'device_failed') throw err
      log.warn({ err, changes: changes.length }, 'device refused a change')
    }
    const removals = changes.filter(({ kind }) => kind === 'remove')
    if (removals.length > 0) await device.apply(removals)
    await this.#applyHalves(
      changes.filter((change) => change.kind === 'set'),
      failed,
    )
    return failed
  }

  async #applyHalves(
    settings: readonly Extract<PeerChange, { kind: 'set' }>[],
    failed: Set<WireGuardKey>,
  ): Promise<void> {
    if (settings.length === 0) return
    if (failed.size >= MAX_SINGLE_FAILURES) {
      for (const { peer } of settings) failed.add(peer.publicKey)
      return
    }
    try {
      await this.#options.device.apply(settings)
    } catch (error) {
      if (errorCode(error) !== 'device_failed') throw error
      const [only] = settings
      if (settings.length === 1 && only !== undefined) {
        failed.add(only.peer.publicKey)
        return
      }
      const middle = settings.length >> 1
      await this.#applyHalves(settings.slice(0, middle), failed)
      await this.#applyHalves(settings.slice(middle), failed)
    }
  }

  #tellFailures(failed: ReadonlySet<WireGuardKey>): void {
    this.#failedKeys = failed
    this.#options.session.setDeviceFailures(failed)
  }

  /** Endpoints of peers that are wanted and not on the device though they were: they were taken away from outside. */
  #rememberEndpoints(state: DeviceState): ReadonlyMap<WireGuardKey, string> {
    const endpoints = new Map<WireGuardKey, string>()
    const missing = new Map<WireGuardKey, string>()
    for (const key of this.#options.session.wanted.keys()) {
      const actual = state.peers.get(key)
      const last = actual?.endpoint ?? this.#lastEndpoints.get(key)
      if (last === undefined) continue
      endpoints.set(key, last)
      if (actual === undefined) missing.set(key, last)
    }
    this.#lastEndpoints = endpoints
    return missing
  }

  #acknowledge(): void {
    for (const [what, ack] of this.#pendingAcks) this.#confirmed.set(what, ack)
    this.#pendingAcks.clear()
    if (!this.#isTelling) void this.#tell()
  }

  /** In order, and beside the loop: the next change does not wait for the disk. */
  async #tell(): Promise<void> {
    const { session, send, makeDurable } = this.#options
    this.#isTelling = true
    while (this.#confirmed.size > 0) {
      const acks = [...this.#confirmed.values()]
      this.#confirmed.clear()
      if (this.#mustSync && makeDurable !== undefined) {
        this.#mustSync = false
        await makeDurable()
      }
      for (const ack of acks) send(session.acknowledgement(ack))
    }
    this.#isTelling = false
  }

  #fail(err: unknown): void {
    const { log } = this.#options
    this.#failures += 1
    this.#isReconciled = false
    // Whatever was half done is seen when everything is read.
    this.#repairDue = true
    const waitMs = Math.min(MAX_BACKOFF_MS, 100 * 2 ** Math.min(this.#failures, 10))
    this.#notBeforeMs = performance.now() + waitMs
    const code = errorCode(err)
    // A programmer's mistake is loud each time, a device that is away once.
    if (this.#failures === 1 || code === 'internal') log.error({ err, waitMs }, 'device cannot be brought in line')
  }

  async #wait(): Promise<void> {
    const { session, clock } = this.#options
    const nowMs = performance.now()
    const clockMs = clock().getTime()
    const deadlineMs = session.nextDeadline(new Date(clockMs))?.getTime() ?? Infinity
    const lookMs = this.#repairDue ? this.#notBeforeMs : Math.max(this.#nextLookMs, this.#notBeforeMs)
    // Never long: the clock may be set.
    const waitMs = Math.min(MAX_WAIT_MS, lookMs - nowMs, deadlineMs - clockMs)
    await new Promise<void>((resolve) => {
      if (this.#woken) {
        resolve()
        return
      }
      const timer = setTimeout(resolve, Math.max(0, Math.ceil(waitMs)))
      this.#wakeUp = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    this.#wakeUp = undefined
  }

  #log({ level, message, fields }: Notice): void {
    this.#options.log[level](fields, message)
  }
}

function takesAway({ type }: JournalRecord): boolean {
  return type === 'gone' || type === 'revoked'
}

/** The peer's device goes on with its old session for up to 15 s; a handshake from this side ends that at once. */
function kick(change: PeerChange, endpoints: ReadonlyMap<WireGuardKey, string>): PeerChange {
  if (change.kind === 'remove') return change
  const endpoint = endpoints.get(change.peer.publicKey)
  if (endpoint === undefined) return change
  return { kind: 'set', peer: { ...change.peer, endpoint, persistentKeepaliveSeconds: 1 } }
}
