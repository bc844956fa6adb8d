/**
 * The root's CRL comes from the ceremony; the authority only serves it. The file is looked at again while it is served,
 * so publishing the next one takes no restart. What does not verify under the root, or has no higher number, is
 * reported and changes nothing; one that begins later waits for its time.
 */
import { readFileSync, statSync } from 'node:fs'
import { CertpeerError } from '../core/errors.ts'
import { parseCrl, verifyCrl, type Crl } from '../core/x509/crl.ts'
import type { Authority } from './authority.ts'

const LOOK_AGAIN_MS = 1000
const DAY_MS = 86_400_000
const WARNING_DAYS = 60
/** Relying parties' clocks may be that far behind ours before they take a CRL for one of the future. */
const CLOCK_SKEW_MS = 300_000

export class RootCrl {
  private readonly authority: Pick<Authority, 'root' | 'now' | 'log'>
  private readonly path: string
  private served: Crl
  private waiting: Crl | undefined
  /** What the file was when it was last read: it is read again when it is another. */
  private stamp: string
  private lookedAtMs: number

  /** Throws config_invalid when the file holds no CRL of the root. */
  constructor(authority: Pick<Authority, 'root' | 'now' | 'log'>, path: string) {
    this.authority = authority
    this.path = path
    this.lookedAtMs = authority.now().getTime()
    try {
      this.stamp = stampOf(path)
      this.served = this.read()
    } catch (cause) {
      const why = cause instanceof CertpeerError ? `: ${cause.message}` : ''
      throw new CertpeerError(
        'config_invalid',
        `${path} is not a CRL of the root in DER${why}; copy the one from the ceremony`,
        { cause },
      )
    }
    this.warnBeforeEnd()
  }

  /** The one in force. Never throws. */
  get current(): Crl {
    const nowMs = this.authority.now().getTime()
    if (Math.abs(nowMs - this.lookedAtMs) >= LOOK_AGAIN_MS) {
      this.lookedAtMs = nowMs
      this.look()
      this.takeWaiting(nowMs)
    }
    return this.served
  }

  private look(): void {
    try {
      const stamp = stampOf(this.path)
      if (stamp === this.stamp) return
      // Also when it is refused: it is reported once, and read again when somebody has put it right.
      this.stamp = stamp
      const next = this.read()
      if (next.der.equals(this.served.der)) return
      if (next.number <= this.served.number) {
        throw new CertpeerError(
          'malformed_crl',
          `its number ${next.number} is not higher than ${this.served.number}, which is served already`,
        )
      }
      this.waiting = next
    } catch (err) {
      this.authority.log.error({ err, path: this.path }, 'root CRL not taken over; the one before is served')
    }
  }

  private takeWaiting(nowMs: number): void {
    if (!this.waiting || this.waiting.thisUpdate.getTime() > nowMs + CLOCK_SKEW_MS) return
    this.served = this.waiting
    this.waiting = undefined
    const { number, entries, nextUpdate } = this.served
    this.authority.log.info({ number: number.toString(), entries: entries.size, nextUpdate }, 'root CRL taken over')
    this.warnBeforeEnd()
  }

  private read(): Crl {
    const crl = parseCrl(readFileSync(this.path))
    verifyCrl(crl, this.authority.root)
    return crl
  }

  private warnBeforeEnd(): void {
    const { nextUpdate } = this.served
    const days = Math.floor((nextUpdate.getTime() - this.authority.now().getTime()) / DAY_MS)
    if (days >= WARNING_DAYS) return
    this.authority.log.warn({ nextUpdate, days }, 'the root CRL ends soon: publish the next one from the ceremony')
  }
}

function stampOf(path: string): string {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false })
  return stat === undefined ? 'missing' : [stat.ino, stat.size, stat.mtimeNs, stat.ctimeNs].join(' ')
}
