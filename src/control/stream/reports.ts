/**
 * What gateways report (revisions applied, CRLs enforced), on its way to the database: only the newest report of each
 * kind counts, so what waits is bounded by gateways × networks, and one statement takes all of it.
 */
import type { Db } from '../../platform/db/connection.ts'
import type { Logger } from '../../platform/log.ts'
import { saveApplied, saveCrlApplied } from '../db/gateways.ts'
import type { AppliedRow, CrlAppliedRow } from '../db/gateways.ts'

const MAX_ROWS = 500

interface Waiting<R> {
  readonly row: R
  /** False once the stream that brought it is over: then it is tried once more and let go. */
  readonly isLive: () => boolean
}

export interface Reports {
  applied(row: AppliedRow, isLive: () => boolean): void
  crlApplied(row: CrlAppliedRow, isLive: () => boolean): void
  /** Tries again what could not be stored. Called every second and when the database is back. */
  retry(): void
  /** Resolves when nothing is being written. */
  drain(): Promise<void>
}

export function createReports(db: Db, log: Logger): Reports {
  const applied = createLane<AppliedRow>(
    (row) => `${row.gateway} ${row.tenant}/${row.network}`,
    (rows) => saveApplied(db, rows),
    log,
  )
  const crls = createLane<CrlAppliedRow>(
    (row) => `${row.gateway} ${row.issuerKeyId}`,
    (rows) => saveCrlApplied(db, rows),
    log,
  )
  return {
    applied: (row, isLive) => applied.put(row, isLive),
    crlApplied: (row, isLive) => crls.put(row, isLive),
    retry() {
      applied.flush()
      crls.flush()
    },
    async drain() {
      await Promise.all([applied.drain(), crls.drain()])
    },
  }
}

/** `save` returns the keys it stored; the others wait for the next try. */
function createLane<R>(keyOf: (row: R) => string, save: (rows: R[]) => Promise<ReadonlySet<string>>, log: Logger) {
  const waiting = new Map<string, Waiting<R>>()
  let running: Promise<void> | undefined

  async function run(): Promise<void> {
    // One turn of the microtask queue: what one read brings goes together.
    await Promise.resolve()
    let goOn = true
    while (goOn && waiting.size > 0) {
      const batch = [...waiting].slice(0, MAX_ROWS)
      for (const [key] of batch) waiting.delete(key)
      let stored: ReadonlySet<string> = new Set()
      try {
        stored = await save(batch.map(([, entry]) => entry.row))
      } catch (err) {
        log.warn({ err, rows: batch.length }, 'gateway reports not stored yet')
      }
      for (const [key, entry] of batch) {
        if (stored.has(key)) continue
        goOn = false
        // A newer report of the same gateway has meanwhile taken the place; and what a stream that is over brought
        // must not overwrite what the gateway's next stream brings elsewhere.
        if (!waiting.has(key) && entry.isLive()) waiting.set(key, entry)
      }
    }
    running = undefined
  }

  function flush(): void {
    if (waiting.size > 0) running ??= run()
  }

  return {
    put(row: R, isLive: () => boolean): void {
      waiting.set(keyOf(row), { row, isLive })
      flush()
    },
    flush,
    async drain(): Promise<void> {
      while (running !== undefined) await running
    },
  }
}
