/**
 * `certpeer device run`: keeps the tunnel for as long as it runs. Renews in the last third of the certificate's life
 * with the same keys, so a renewal is an idempotent re-set and no packet is lost; repairs what was changed by hand;
 * takes revoked gateways off the tunnel; carries on with what is signed and on disk while control is away.
 */
import { errorCode } from '../../core/errors.ts'
import { systemNow } from '../../platform/clock.ts'
import { updateCredentialConfig } from '../../platform/credentials.ts'
import { sleep } from '../../platform/lifecycle.ts'
import { readOwnIdentity } from '../client-certificate.ts'
import { renew } from '../enrollment.ts'
import { renewalDelayMs, retryDelayMs } from '../renewal-window.ts'
import { dropRevoked, provisionOrKept, requireDevice } from './commands.ts'
import type { DeviceOptions } from './commands.ts'
import { refresh, withoutRevoked } from './peer.ts'
import type { PeerContext, Peering } from './peer.ts'
import { GatewayRevocations } from './revocations.ts'
import { bringDown, bringUp, DEFAULT_INTERFACE } from './tunnel.ts'

export interface DeviceRunOptions extends DeviceOptions {
  readonly interface?: string
  readonly signal: AbortSignal
  /** In [0, 1); for tests. */
  readonly random?: () => number
  readonly repairIntervalMs?: number
  readonly refreshIntervalMs?: number
  readonly revocationIntervalMs?: number
}

const REPAIR_INTERVAL_MS = 15_000
const REFRESH_INTERVAL_MS = 5 * 60_000
const REVOCATION_INTERVAL_MS = 60_000

/** Runs until `signal` aborts, then takes the interface away. Throws only for what waiting cannot mend. */
export async function deviceRun(options: DeviceRunOptions): Promise<void> {
  const { dir, log, signal, now = systemNow, random = Math.random } = options
  const { repairIntervalMs = REPAIR_INTERVAL_MS, refreshIntervalMs = REFRESH_INTERVAL_MS } = options
  const { revocationIntervalMs = REVOCATION_INTERVAL_MS } = options
  let own = await readOwnIdentity(dir, now())
  const { key } = requireDevice(own)
  const name = options.interface ?? own.credential.config.interface ?? DEFAULT_INTERFACE
  if (own.credential.config.interface !== name) {
    await updateCredentialConfig(dir, { interface: name })
    own = await readOwnIdentity(dir, now())
  }

  // One jitter per certificate, so that the instant does not wander with every turn of the loop.
  let jitter = random()
  let renewFailures = 0
  // Intervals are of the monotonic clock: one that is set back must not stop the asking.
  let renewNotBeforeMs = 0
  let setFailures = 0
  let peering: Peering | undefined
  let askAgainAtMs = 0
  const revocations = await GatewayRevocations.open({ own, now, log })
  let checkAgainAtMs = 0

  while (!signal.aborted) {
    const nowMs = performance.now()
    if (nowMs >= renewNotBeforeMs && renewalDelayMs(own.verified.certificate, now(), jitter) === 0) {
      try {
        await renew({ dir, now, signal })
        own = await readOwnIdentity(dir, now())
        log.info({ serial: own.verified.certificate.serial, notAfter: own.verified.certificate.notAfter }, 'renewed')
        jitter = random()
        renewFailures = 0
        peering = undefined
      } catch (error) {
        renewNotBeforeMs = nowMs + retryDelayMs(renewFailures, random())
        renewFailures += 1
        log.warn({ err: error, failures: renewFailures }, 'not renewed yet')
      }
    }
    const context = { own, revocations, now, log }
    try {
      if (nowMs >= checkAgainAtMs) {
        // Spread a little: devices that were started together shall not ask together.
        checkAgainAtMs = nowMs + revocationIntervalMs * (0.9 + 0.2 * random())
        await revocations.refresh(signal)
        await dropRevoked(name, context)
      }
      if (peering !== undefined) {
        const known: Peering = peering
        peering = withoutRevoked(known, context)
        // Another gateway may stand in for it.
        if (peering !== known) askAgainAtMs = 0
      }
      if (peering === undefined || nowMs >= askAgainAtMs) {
        const asked = await askServer(context, peering)
        peering = asked.peering
        // Only after an answer is the long interval right; what comes from disk is asked for again soon.
        askAgainAtMs = nowMs + (asked.fresh ? refreshIntervalMs : Math.min(refreshIntervalMs, 2 * repairIntervalMs))
      }
      await bringUp({ dir, interface: name, log }, peering)
      setFailures = 0
    } catch (error) {
      if (errorCode(error) === 'missing_privilege' || errorCode(error) === 'missing_program') throw error
      setFailures += 1
      log.warn({ err: error, failures: setFailures }, 'tunnel not set; trying again')
    }
    const certificate = own.verified.certificate
    const toRenewalMs = Math.max(renewalDelayMs(certificate, now(), jitter), renewNotBeforeMs - performance.now(), 250)
    const pauseMs = setFailures === 0 ? repairIntervalMs : Math.min(60_000, retryDelayMs(setFailures - 1, random()))
    await sleep(Math.min(toRenewalMs, pauseMs), signal)
  }
  await bringDown(name, key)
}

async function askServer(
  context: PeerContext,
  known: Peering | undefined,
): Promise<{ peering: Peering; fresh: boolean }> {
  if (known === undefined) {
    const peering = await provisionOrKept(context)
    return { peering, fresh: peering.state === 'active' }
  }
  try {
    const heard = await refresh(context)
    // Withdrawn or lost on the other side: ask for it again instead of waiting behind a dead tunnel.
    if (heard.state !== 'absent') return { peering: heard, fresh: true }
    return { peering: await provisionOrKept(context), fresh: true }
  } catch (error) {
    context.log.warn({ err: error }, 'server not asked; carrying on with what is known')
    return { peering: known, fresh: false }
  }
}
