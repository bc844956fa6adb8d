/**
 * Copies the ledger into PostgreSQL for queries and for the server. One writer, in batches, in the ledger's order; the
 * row `projection` says how many entries are in, and moves in the same transaction, so doing a batch again changes
 * nothing. The authority never waits for it and never reads anything back: with the database down it works on, and the
 * projection catches up from the ledger's files.
 */
import { CertpeerError } from '../../core/errors.ts'
import { openDatabase, type Db } from '../../platform/db/connection.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import type { Authority } from '../authority.ts'
import type { PublishedCrl } from '../crl.ts'
import type { IssuingCa } from '../issuing/signer.ts'
import { readEntry, type Entry } from '../ledger/entry.ts'
import { collectBatch, type IndexedEntry } from './batch.ts'
import { readLedgerSize, writeBatch, writeCrl, writeIssuers } from './statements.ts'

const MAX_BATCH = 500
/** Entries kept in memory for a projection that keeps up; what is older is read from the files. */
const MAX_TAIL = 5_000
const RETRY_MS = 500
const MAX_RETRY_MS = 10_000

export interface Projection {
  /** Ledger entries that are not in the database yet; undefined while its state is not known. */
  lag(): number | undefined
  crlPublished(issuer: IssuingCa, crl: PublishedCrl): void
  close(): Promise<void>
}

/** Starts at once and for good; a database that cannot be reached is tried again and again. */
export function startProjection(options: { authority: Authority; url: string; log: Logger }): Projection {
  return new Projector(options)
}

class Projector implements Projection {
  private readonly authority: Authority
  private readonly log: Logger
  private readonly db: Db
  private readonly stopping = new AbortController()
  private readonly done: Promise<void>
  private tail: IndexedEntry[] = []
  /** Newest CRL of each issuer that the database does not have yet. */
  private readonly crls = new Map<string, { readonly issuer: IssuingCa; readonly crl: PublishedCrl }>()
  private projected: number | undefined
  private wake: (() => void) | undefined

  constructor(options: { authority: Authority; url: string; log: Logger }) {
    this.authority = options.authority
    this.log = options.log
    // One connection stays open: a revocation after a quiet hour does not wait for a new session.
    this.db = openDatabase({ url: options.url, log: options.log, min: 1, max: 2, name: 'certpeer ca' })
    this.authority.listeners.add(this.onEntry)
    this.done = this.run()
  }

  lag(): number | undefined {
    return this.projected === undefined ? undefined : this.authority.ledger.head.size - this.projected
  }

  crlPublished(issuer: IssuingCa, crl: PublishedCrl): void {
    this.crls.set(issuer.certificate.keyId, { issuer, crl })
    this.wake?.()
  }

  async close(): Promise<void> {
    this.authority.listeners.delete(this.onEntry)
    this.stopping.abort()
    this.wake?.()
    await this.done
    await this.db.destroy()
  }

  private readonly onEntry = (entry: Entry, index: number): void => {
    this.tail.push({ entry, index })
    if (this.tail.length > MAX_TAIL) this.tail = this.tail.slice(-MAX_TAIL / 2)
    this.wake?.()
  }

  private async run(): Promise<void> {
    let retryMs = RETRY_MS
    let failing = false
    while (!this.stopping.signal.aborted) {
      try {
        await this.follow(() => {
          if (failing) this.log.info({ lag: this.lag() }, 'projection goes on')
          failing = false
          retryMs = RETRY_MS
        })
      } catch (err) {
        if (!failing) this.log.warn({ err, lag: this.lag() }, 'projection waits for the database')
        failing = true
        this.projected = undefined
        await sleep(retryMs, this.stopping.signal)
        retryMs = Math.min(retryMs * 2, MAX_RETRY_MS)
      }
    }
  }

  /** From connect to the first error. */
  private async follow(onProgress: () => void): Promise<void> {
    const size = await readLedgerSize(this.db)
    if (size > this.authority.ledger.head.size) {
      throw new CertpeerError(
        'ledger_truncated',
        `the database was projected from a ledger of ${size} entries, this one has ${this.authority.ledger.head.size}; ` +
          'it is of another authority, or the ledger lost entries',
      )
    }
    await writeIssuers(this.db, this.authority)
    this.projected = size
    onProgress()
    while (!this.stopping.signal.aborted) {
      const worked = (await this.projectNext()) || (await this.projectCrl())
      if (worked) onProgress()
      else await this.idle()
    }
  }

  private async projectNext(): Promise<boolean> {
    const from = this.projected ?? 0
    const entries = this.entriesFrom(from)
    if (entries.length === 0) return false
    const startedAt = Date.now()
    const batch = await collectBatch(this.authority, entries)
    await writeBatch(this.db, batch, from)
    this.projected = from + entries.length
    this.tail = this.tail.filter(({ index }) => index >= from + entries.length)
    this.log.debug({ entries: entries.length, lag: this.lag(), durationMs: Date.now() - startedAt }, 'projected')
    return true
  }

  private async projectCrl(): Promise<boolean> {
    const [next] = this.crls
    if (!next) return false
    const [keyId, { crl }] = next
    await writeCrl(this.db, keyId, crl)
    // A newer one may have come meanwhile.
    if (this.crls.get(keyId)?.crl === crl) this.crls.delete(keyId)
    return true
  }

  private entriesFrom(index: number): IndexedEntry[] {
    if (index >= this.authority.ledger.head.size) return []
    const first = this.tail[0]
    if (first !== undefined && first.index <= index) {
      return this.tail.slice(index - first.index, index - first.index + MAX_BATCH)
    }
    return this.authority.ledger
      .read(index, MAX_BATCH)
      .map((read) => ({ entry: readEntry(read.payload, read.index), index: read.index }))
  }

  private async idle(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.wake = resolve
      // What came between the last look and this line.
      if (this.stopping.signal.aborted || this.crls.size > 0 || this.lag() !== 0) resolve()
    })
    this.wake = undefined
  }
}
