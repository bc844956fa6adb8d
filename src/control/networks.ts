/**
 * The network documents this server hands out: from rows, each verified under the pinned root before it is passed on,
 * and never one with a lower number than the one held. Receivers verify them again; here it keeps a poisoned row from
 * reaching anybody, and a good document in memory while the database is away.
 */
import { CertpeerError } from '../core/errors.ts'
import { networkKey } from '../core/x509/identity.ts'
import { requireNotOlder, verifyNetworkDocument } from '../core/messages/network-document.ts'
import type { VerifiedNetworkDocument } from '../core/messages/network-document.ts'
import type { CertpeerOids } from '../core/x509/oids.ts'
import type { Now } from '../platform/clock.ts'
import type { Db } from '../platform/db/connection.ts'
import type { Logger } from '../platform/log.ts'
import { listNetworkDocuments } from './db/lookups.ts'
import type { Issuers } from './issuers.ts'
import type { Revocations } from './revocations.ts'

/** A refused row is looked at again after this long: the fault may have been a clock. */
const RETRY_MS = 60_000

export interface NetworkDocuments {
  /** By `<tenant>/<network>`. */
  find(key: string): VerifiedNetworkDocument | undefined
  /** Reads the rows again. Bad ones are logged once and passed over. */
  refresh(db: Db): Promise<void>
  onChanged(listener: (key: string) => void): void
}

export function createNetworkDocuments(options: {
  issuers: Issuers
  revocations: Revocations
  oids: CertpeerOids
  trustDomain: string
  now: Now
  log: Logger
}): NetworkDocuments {
  const { issuers, revocations, oids, trustDomain, now, log } = options
  const held = new Map<string, VerifiedNetworkDocument>()
  /** Text that was refused, per network, so that a bad row is not told every few seconds. */
  const refused = new Map<string, { readonly jws: string; readonly atMs: number }>()
  const listeners: ((key: string) => void)[] = []

  function offer(key: string, jws: string): void {
    const current = held.get(key)
    if (current?.jws === jws) return
    const refusal = refused.get(key)
    if (refusal?.jws === jws && now().getTime() - refusal.atMs < RETRY_MS) return
    try {
      const verified = verifyNetworkDocument({
        jws,
        root: issuers.root,
        now: now(),
        oids,
        trustDomain,
        isRevoked: (serial, issuerKeyId) => revocations.isRevoked(issuerKeyId, serial),
      })
      const { document } = verified
      if (networkKey(document.tenant, document.network) !== key) {
        throw new CertpeerError('network_document_invalid', 'the document is that of another network')
      }
      if (current !== undefined) requireNotOlder(current, verified)
      held.set(key, verified)
      refused.delete(key)
      log.info({ network: key, number: document.number }, 'network document taken in')
      for (const listener of listeners) listener(key)
    } catch (err) {
      refused.set(key, { jws, atMs: now().getTime() })
      log.warn({ network: key, err }, 'network document refused')
    }
  }

  return {
    find: (key) => held.get(key),
    async refresh(db) {
      for (const row of await listNetworkDocuments(db)) offer(networkKey(row.tenant, row.network), row.document)
    },
    onChanged(listener) {
      listeners.push(listener)
    },
  }
}
