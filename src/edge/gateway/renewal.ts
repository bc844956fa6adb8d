/** Keeps the gateway's own certificate: renewed in the last third of its life, and also after its end. */
import type { Now } from '../../platform/clock.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import { renew } from '../enrollment.ts'
import { renewalDelayMs, retryDelayMs, type Validity } from '../renewal-window.ts'
import { isAborted } from './aborted.ts'

/** Looked at again at least this often: timers have a limit, and clocks are set. */
const MAX_SLEEP_MS = 60_000

export interface RenewalOptions {
  readonly dir: string
  readonly validity: Validity
  readonly onRenewed: () => Promise<void>
  readonly clock: Now
  readonly log: Logger
}

/** Runs until the signal aborts. A renewal that fails is tried again; nothing is ever deleted. */
export async function runRenewal(options: RenewalOptions, signal: AbortSignal): Promise<void> {
  const { dir, clock, log } = options
  let { validity } = options
  // One draw per certificate, so that the instant does not wander.
  let jitter = Math.random()
  let failures = 0
  while (!signal.aborted) {
    const delayMs = renewalDelayMs(validity, clock(), jitter)
    if (delayMs > 0) {
      await sleep(Math.min(delayMs, MAX_SLEEP_MS), signal)
      continue
    }
    try {
      const renewed = await renew({ dir, now: clock, signal })
      validity = renewed.verified.certificate
      jitter = Math.random()
      failures = 0
      const { serial, notAfter } = renewed.verified.certificate
      log.info({ serial, notAfter }, 'own certificate renewed')
      await options.onRenewed()
    } catch (err) {
      if (isAborted(signal)) return
      failures += 1
      log.warn({ err, failures, notAfter: validity.notAfter }, 'own certificate not renewed yet')
      await sleep(retryDelayMs(failures, Math.random()), signal)
    }
  }
}
