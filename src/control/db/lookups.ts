/** Reads of single facts: documents, issuers, a device's peer, a certificate's record. */
import { queryRows } from '../../platform/db/connection.ts'
import type { Db } from '../../platform/db/connection.ts'

export interface DocumentRow {
  readonly tenant: string
  readonly network: string
  readonly document: string
}

/** Network documents, bounded: a longer one is not ours. */
export async function listNetworkDocuments(db: Db): Promise<DocumentRow[]> {
  const rows = await queryRows<DocumentRow>(
    db,
    `select tenant, name as network, document from networks where length(document) <= 65536 order by id`,
  )
  return rows
}

export interface IssuerRow {
  readonly keyId: string
  readonly certificate: Buffer
  /** Null when there is none; as text because it is wider than a number. */
  readonly crlNumber: string | null
}

/** Issuing CAs as the projection has them, each to be verified before use. */
export async function listIssuers(db: Db): Promise<IssuerRow[]> {
  const rows = await queryRows<IssuerRow>(
    db,
    `select key_id as "keyId", certificate, crl_number::text as "crlNumber" from issuers
      where octet_length(certificate) <= 16384 order by key_id limit 256`,
  )
  return rows
}

/** Far beyond a CRL of a million entries. The driver reads bytes as hex text, and ends the process over 512 MiB of it. */
const MAX_CRL_BYTES = 128 * 1024 * 1024

/** The CRL's DER; undefined when the row has none, or one that cannot be ours. */
export async function findCrl(db: Db, keyId: string): Promise<Buffer | undefined> {
  const rows = await queryRows<{ crl: Buffer | null }>(
    db,
    'select crl from issuers where key_id = ? and octet_length(crl) <= ?',
    [keyId, MAX_CRL_BYTES],
  )
  return rows[0]?.crl ?? undefined
}

export interface HeldPeer {
  readonly serial: string
  readonly revision: number
}

/** The peer of an identity in its network. */
export async function findPeer(
  db: Db,
  tenant: string,
  network: string,
  identity: string,
): Promise<HeldPeer | undefined> {
  const rows = await queryRows<{ serial: string; revision: string }>(
    db,
    `select p.serial, p.revision from peers p join networks n on n.id = p.network_id
      where n.tenant = ? and n.name = ? and p.identity = ?`,
    [tenant, network, identity],
  )
  return rows[0] === undefined ? undefined : { serial: rows[0].serial, revision: Number(rows[0].revision) }
}

export interface RemovalRecord {
  readonly issuerKeyId: string
  readonly role: string
  readonly tenant: string | null
  readonly network: string | null
  readonly notBefore: Date
  readonly notAfter: Date
  readonly revoked: boolean
  /** When the authority revoked it; null when no row says so. */
  readonly revokedAt: Date | null
  /** True while a peer stands on this certificate. */
  readonly provisioned: boolean
  /** The network's revision now; null when the network is not known. */
  readonly networkRevision: number | null
}

/** Everything that `gone` needs to know of a certificate, in one snapshot. */
export async function findRemovalRecord(db: Db, serial: string): Promise<RemovalRecord | undefined> {
  const rows = await queryRows<Omit<RemovalRecord, 'networkRevision'> & { networkRevision: string | null }>(
    db,
    `select c.issuer_key_id as "issuerKeyId", c.role, c.tenant, c.network, c.not_before as "notBefore",
        c.not_after as "notAfter",
        (c.status = 'revoked' or r.serial is not null) as revoked,
        coalesce(r.revoked_at, c.revoked_at) as "revokedAt",
        exists (select 1 from peers p where p.serial = c.serial) as provisioned,
        n.revision as "networkRevision"
      from certificates c
      left join networks n on n.tenant = c.tenant and n.name = c.network
      left join revocations r on r.serial = c.serial
      where c.serial = ?`,
    [serial],
  )
  const [row] = rows
  if (row === undefined) return undefined
  return { ...row, networkRevision: row.networkRevision === null ? null : Number(row.networkRevision) }
}
