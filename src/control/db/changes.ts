/** What the stream reads: the changes of a network in order, and its peers as a whole. */
import { queryRows } from '../../platform/db/connection.ts'
import type { Db } from '../../platform/db/connection.ts'

/**
 * Longest certificate that a stream message may carry (16 384 characters of base64). A longer one in a row is not
 * ours: it is read as null, so that a poisoned row cannot fill our memory or break a gateway's parser.
 */
const MAX_CERTIFICATE_BYTES = 12_288
const BOUNDED_CERTIFICATE = `case when octet_length(certificate) <= ${MAX_CERTIFICATE_BYTES} then certificate end as certificate`

export interface ChangeRow {
  readonly revision: number
  readonly kind: 'set' | 'remove'
  readonly serial: string
  readonly certificate: Buffer | null
}

export interface NetworkHead {
  readonly id: string
  readonly tenant: string
  readonly network: string
  readonly revision: number
}

/** Id and revision of every network. Tens of rows: one query serves all streams. */
export async function listNetworkHeads(db: Db): Promise<NetworkHead[]> {
  const rows = await queryRows<{ id: string; tenant: string; network: string; revision: string }>(
    db,
    'select id, tenant, name as network, revision from networks order by id',
  )
  return rows.map((row) => ({ ...row, revision: Number(row.revision) }))
}

/** Changes with revision > `after`, in order, at most `limit`. */
export async function listChanges(db: Db, networkId: string, after: number, limit: number): Promise<ChangeRow[]> {
  const rows = await queryRows<Omit<ChangeRow, 'revision'> & { revision: string }>(
    db,
    `select revision, kind, serial, ${BOUNDED_CERTIFICATE} from peer_changes
      where network_id = ?::bigint and revision > ?::bigint order by revision limit ?`,
    [networkId, after, limit],
  )
  return rows.map((row) => ({ ...row, revision: Number(row.revision) }))
}

/** A page of the peers of a network by identity: those after `after`, at most `limit`. */
export async function listPeerCertificates(
  db: Db,
  networkId: string,
  after: string,
  limit: number,
): Promise<{ identity: string; certificate: Buffer | null }[]> {
  const rows = await queryRows<{ identity: string; certificate: Buffer | null }>(
    db,
    `select identity, ${BOUNDED_CERTIFICATE} from peers
      where network_id = ?::bigint and identity > ? order by identity limit ?`,
    [networkId, after, limit],
  )
  return rows
}
