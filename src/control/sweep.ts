/** Housekeeping that any server may do at any time: peers past their end, and changes nobody resumes from any more. */
import type { Now } from '../platform/clock.ts'
import { transaction } from '../platform/db/connection.ts'
import type { Db } from '../platform/db/connection.ts'
import { deleteOldChanges, findNetworksWithExpiredPeers, lockNetworks, removeExpiredPeers } from './db/provisioning.ts'

const ROWS_PER_TRANSACTION = 1000
export const CHANGES_KEPT_MS = 7 * 86_400_000

/**
 * Removes peers whose certificate has ended, as changes like any other; returns how many. Gateways end them by
 * themselves at that instant: this keeps the rows, and the gateways that come back, in step.
 */
export async function sweepExpiredPeers(db: Db, now: Now): Promise<number> {
  const at = now()
  const names = await findNetworksWithExpiredPeers(db, at)
  if (names.length === 0) return 0
  let removed = 0
  for (;;) {
    const count = await transaction(db, async (trx) => {
      const locked = await lockNetworks(trx, names)
      const ids = locked.map((network) => network.id)
      return removeExpiredPeers(trx, ids, at, ROWS_PER_TRANSACTION)
    })
    removed += count
    if (count < ROWS_PER_TRANSACTION) return removed
  }
}

/** Deletes changes older than 7 days, a piece at a time; returns how many. */
export async function sweepOldChanges(db: Db, now: Now): Promise<number> {
  const before = new Date(now().getTime() - CHANGES_KEPT_MS)
  let deleted = 0
  for (;;) {
    const count = await deleteOldChanges(db, before, ROWS_PER_TRANSACTION)
    deleted += count
    if (count < ROWS_PER_TRANSACTION) return deleted
  }
}
