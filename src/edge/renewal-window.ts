/** When to renew: in the last third of a certificate's life, spread by jitter so that a fleet does not come at once. */

export interface Validity {
  readonly notBefore: Date
  readonly notAfter: Date
}

/** The share of the last third over which renewals are spread. */
const JITTER_SHARE = 0.5

/** The instant the last third begins. */
export function renewalOpensAt({ notBefore, notAfter }: Validity): Date {
  return new Date(notBefore.getTime() + (2 * (notAfter.getTime() - notBefore.getTime())) / 3)
}

export function isRenewalDue(validity: Validity, now: Date): boolean {
  return now >= renewalOpensAt(validity)
}

/** Milliseconds to wait before renewing; `random` is in [0, 1). Never negative. */
export function renewalDelayMs(validity: Validity, now: Date, random: number): number {
  const opensAt = renewalOpensAt(validity).getTime()
  const lastThirdMs = validity.notAfter.getTime() - opensAt
  return Math.max(0, opensAt + random * JITTER_SHARE * lastThirdMs - now.getTime())
}

/** Exponential back-off with full jitter after `failures` failures in a row, between one second and five minutes. */
export function retryDelayMs(failures: number, random: number): number {
  const ceilingMs = Math.min(300_000, 1_000 * 2 ** Math.min(failures, 9))
  return Math.max(500, ceilingMs * (0.5 + random / 2))
}
