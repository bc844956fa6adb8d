/**
 * How far the gateways are: *active* (every connected gateway has applied the revision) and *gone* (every gateway that
 * could hold the peer has dropped it). Whoever waits asks again when a gateway reports, and once a second in case the
 * report's notification was lost; many who wait for one network share one query.
 */
import { CertpeerError } from '../core/errors.ts'
import { MAX_FAILED } from '../core/messages/stream.ts'
import type { GoneAnswer } from '../core/messages/views.ts'
import { createBatcher } from '../platform/batcher.ts'
import type { Db } from '../platform/db/connection.ts'
import { sleep } from '../platform/lifecycle.ts'
import { listGatewayProgress } from './db/gateways.ts'
import type { GatewayProgress } from './db/gateways.ts'
import { findRemovalRecord } from './db/lookups.ts'
import type { RemovalRecord } from './db/lookups.ts'
import type { Revocations } from './revocations.ts'

const ASK_AGAIN_MS = 1000
const CLOCKS_MS = 3_600_000

export interface Progress {
  /** Something was reported, anywhere: those who wait look again. */
  notify(): void
  /** Gateways that serve the network, as they are now. */
  read(tenant: string, network: string): Promise<readonly GatewayProgress[]>
  /** Resolves at the next report, after a second, or when the signal aborts. */
  next(signal: AbortSignal): Promise<void>
}

export function createProgress(db: Db): Progress {
  /** There while somebody waits: a hundred gateways report at once, and mostly nobody does. */
  let waiting: AbortController | undefined
  const reader = createBatcher<string, readonly GatewayProgress[]>({
    maxItems: 10_000,
    async flush(keys) {
      const answers = new Map<string, readonly GatewayProgress[]>()
      for (const key of new Set(keys)) {
        const [tenant = '', network = ''] = key.split('/')
        answers.set(key, await listGatewayProgress(db, tenant, network))
      }
      return keys.map((key) => answers.get(key) ?? [])
    },
  })
  return {
    notify() {
      // A reason of our own, because the default one is an error with its stack each time.
      waiting?.abort('reported')
      waiting = undefined
    },
    read: (tenant, network) => reader.submit(`${tenant}/${network}`),
    async next(signal) {
      waiting ??= new AbortController()
      await sleep(ASK_AGAIN_MS, AbortSignal.any([waiting.signal, signal]))
    },
  }
}

/** Names of those among `gateways` that have not applied the revision, or have refused the peer. */
export function listWaitingFor(gateways: readonly GatewayProgress[], revision: number, serial: string): string[] {
  return gateways
    .filter(
      ({ appliedRevision, failedSerials }) =>
        (appliedRevision ?? -1) < revision ||
        failedSerials.includes(serial) ||
        // A list that is full may have left this one out.
        failedSerials.length >= MAX_FAILED,
    )
    .map((gateway) => gateway.name)
}

export interface ActiveAnswer {
  readonly state: 'pending' | 'active'
  readonly waitingFor: readonly string[]
}

/**
 * Whether every gateway connected at the call has applied the revision; with `waitMs` 0 as it is now, else as soon as
 * it is so. Pending while no gateway is connected at all: nobody carries the tunnel. Throws unavailable when the
 * database could not be asked by the end.
 */
export async function awaitActive(options: {
  progress: Progress
  tenant: string
  network: string
  revision: number
  serial: string
  waitMs: number
  signal: AbortSignal
}): Promise<ActiveAnswer> {
  const { progress, tenant, network, revision, serial } = options
  let atCall: ReadonlySet<string> = new Set()
  return poll(options, async () => {
    const gateways = await progress.read(tenant, network)
    if (atCall.size === 0) {
      atCall = new Set(gateways.filter((gateway) => gateway.connected).map((gateway) => gateway.name))
    }
    // One that was revoked meanwhile is no longer listed, and carries nothing.
    const asked = gateways.filter((gateway) => atCall.has(gateway.name))
    const waitingFor = listWaitingFor(asked, revision, serial)
    const state = asked.length > 0 && waitingFor.length === 0 ? 'active' : 'pending'
    return { answer: { state, waitingFor }, isFinal: state === 'active' }
  })
}

/**
 * Whether a certificate's peer is gone from every gateway that could hold it; waits up to `waitMs` for those that are
 * connected. `record` may be missing at first: the authority answers a revocation before its projection is written.
 * Throws not_found, policy_denied (a certificate of another tenant), unavailable.
 */
export async function awaitGone(options: {
  db: Db
  progress: Progress
  revocations: Revocations
  serial: string
  /** The operator's tenant; undefined for all. */
  tenant: string | undefined
  waitMs: number
  signal: AbortSignal
}): Promise<GoneAnswer> {
  const { db, progress, revocations, serial } = options
  /** The network's revision when its peer was first seen to be gone: whoever has applied that has dropped it. */
  let goneRevision: number | undefined
  const answer = await poll<GoneAnswer | undefined>(options, async () => {
    const record = await findRemovalRecord(db, serial)
    if (record === undefined) return { answer: undefined, isFinal: false }
    // Another tenant's certificates do not exist for a tenant's operator.
    if (options.tenant !== undefined && record.tenant !== options.tenant) {
      throw new CertpeerError('not_found', `no certificate ${serial}`)
    }
    const isRevoked = record.revoked || revocations.isRevoked(record.issuerKeyId, serial)
    if (isRevoked && !record.provisioned) goneRevision ??= record.networkRevision ?? undefined
    const crlNumber = revocations.findFirstNumber(record.issuerKeyId, serial)
    const gateways = isCarried(record)
      ? (await progress.read(record.tenant, record.network)).filter((gateway) => couldHold(gateway, record))
      : []
    const states = gateways.map((gateway) => goneState(gateway, record, goneRevision, crlNumber))
    const isGone = isRevoked && states.every(({ state }) => state === 'gone')
    return {
      answer: { serial, state: isGone ? 'gone' : 'pending', gateways: states, endsAt: record.notAfter.toISOString() },
      isFinal: isRevoked && states.every(({ state }) => state !== 'pending'),
    }
  })
  if (answer === undefined) throw new CertpeerError('not_found', `no certificate ${serial}`)
  return answer
}

/** Only a device's certificate is ever a peer. */
function isCarried(record: RemovalRecord): record is RemovalRecord & { tenant: string; network: string } {
  return record.role === 'device' && record.tenant !== null && record.network !== null
}

/** A gateway that was last here before the certificate began has never heard of it; the clocks may differ by an hour. */
function couldHold(gateway: GatewayProgress, record: RemovalRecord): boolean {
  return (
    gateway.connected ||
    (gateway.lastSeenAt !== null && gateway.lastSeenAt.getTime() >= record.notBefore.getTime() - CLOCKS_MS)
  )
}

/**
 * By revision, or because the gateway enforces a CRL that holds the serial: both are reports that the peer is off. The
 * instant is that of the gateway's newest report; one from before the revocation is about no removal: there was nothing
 * to remove.
 */
function goneState(
  gateway: GatewayProgress,
  { issuerKeyId, revokedAt }: RemovalRecord,
  goneRevision: number | undefined,
  crlNumber: bigint | undefined,
): GoneAnswer['gateways'][number] {
  const byRevision = goneRevision !== undefined && (gateway.appliedRevision ?? -1) >= goneRevision
  const enforced = gateway.crls[issuerKeyId]
  const byCrl = crlNumber !== undefined && enforced !== undefined && BigInt(enforced) >= crlNumber
  if (byRevision || byCrl) {
    const { appliedAt } = gateway
    const isRemoval = byRevision && appliedAt !== null && revokedAt !== null && appliedAt >= revokedAt
    return { name: gateway.name, state: 'gone', appliedAt: isRemoval ? appliedAt.toISOString() : null }
  }
  return { name: gateway.name, state: gateway.connected ? 'pending' : 'disconnected', appliedAt: null }
}

/** Asks until the answer is final or the time is up; the last answer then stands. */
async function poll<A>(
  options: { readonly progress: Progress; readonly waitMs: number; readonly signal: AbortSignal },
  ask: () => Promise<{ readonly answer: A; readonly isFinal: boolean }>,
): Promise<A> {
  const { progress, waitMs } = options
  const deadline = AbortSignal.timeout(waitMs)
  const signal = AbortSignal.any([deadline, options.signal])
  for (;;) {
    // Begun before asking: a report that comes while we ask must not be missed.
    const next = progress.next(signal)
    let result: { readonly answer: A; readonly isFinal: boolean } | undefined
    let fault: unknown
    try {
      result = await ask()
    } catch (error) {
      // A restart of the database is waited out by whoever waits anyway.
      if (!(error instanceof CertpeerError && error.code === 'unavailable')) throw error
      fault = error
    }
    if (result !== undefined && (result.isFinal || waitMs === 0 || signal.aborted)) return result.answer
    if (result === undefined && (waitMs === 0 || signal.aborted)) throw fault
    await next
  }
}
