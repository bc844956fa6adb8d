/** The projection's SQL. Rows go in as one JSON parameter a statement; lock order: networks, certificates, leases. */
import { CertpeerError } from '../../core/errors.ts'
import { queryRows, transaction, type Db } from '../../platform/db/connection.ts'
import type { Authority } from '../authority.ts'
import type { PublishedCrl } from '../crl.ts'
import type { Batch, CertificateRow, NetworkRow, RevocationRow } from './batch.ts'

export async function readLedgerSize(db: Db): Promise<number> {
  const [row] = await queryRows<{ ledger_size: string }>(db, 'select ledger_size from projection')
  if (!row) throw new CertpeerError('unavailable', 'the database has no projection row; run certpeer migrate')
  return Number(row.ledger_size)
}

/** The root and the issuing CAs; whoever reads one verifies it under its own pinned root. */
export async function writeIssuers(db: Db, authority: Authority): Promise<void> {
  const rows = [
    { key_id: authority.root.keyId, name: 'root', role: 'root', tenant: null, der: authority.root.der.toString('hex') },
    ...authority.issuers.map(({ name, role, tenant, certificate }) => ({
      key_id: certificate.keyId,
      name,
      role,
      tenant: tenant ?? null,
      der: certificate.der.toString('hex'),
    })),
  ]
  await db.raw(
    `insert into issuers (key_id, name, role, tenant, certificate)
       select key_id, name, role, tenant, decode(der, 'hex')
       from jsonb_to_recordset(?::jsonb) as r (key_id text, name text, role text, tenant text, der text)
     on conflict (key_id) do update
       set name = excluded.name, role = excluded.role, tenant = excluded.tenant, certificate = excluded.certificate`,
    [JSON.stringify(rows)],
  )
}

export async function writeCrl(db: Db, issuerKeyId: string, crl: PublishedCrl): Promise<void> {
  await db.raw(
    // Told only when it changed something; a newer one is never replaced.
    `with written as (
       update issuers set crl = ?, crl_number = ?, crl_next_update = ?
       where key_id = ? and (crl_number is null or crl_number < ?)
       returning key_id)
     select pg_notify('certpeer_crl', json_build_object('issuerKeyId', key_id)::text) from written`,
    [crl.der, crl.number.toString(), crl.nextUpdate, issuerKeyId, crl.number.toString()],
  )
}

/** One transaction. Throws `unavailable` when another writer was there: `from` is then read anew. */
export async function writeBatch(db: Db, batch: Batch, from: number): Promise<void> {
  const [first, ...others] = batch.steps
  if (first?.kind === 'revocation' && others.length === 0) await writeLoneRevocation(db, first.row, from, batch.size)
  else await transaction(db, (trx) => writeSteps(trx, batch, from))
}

async function writeSteps(trx: Db, batch: Batch, from: number): Promise<void> {
  if (batch.networksToLock.length > 0) {
    await trx.raw(`select 1 from networks where tenant || '/' || name = any (?::text[]) order by id for update`, [
      [...batch.networksToLock],
    ])
  }
  const moved = await queryRows(
    trx,
    'update projection set ledger_size = ?, updated_at = now() where ledger_size = ? returning 1 as moved',
    [from + batch.size, from],
  )
  requireMoved(moved)
  for (const step of batch.steps) {
    if (step.kind === 'network') await writeNetwork(trx, step.row)
    else if (step.kind === 'certificates') await writeCertificates(trx, step.rows)
    else await writeRevocation(trx, step.row)
  }
}

/**
 * The batch that somebody waits for: one revocation, in one statement, which is a transaction by itself. Six round trips
 * less between the ledger and the gateways. project_revocation takes the networks' locks before it writes.
 */
async function writeLoneRevocation(db: Db, row: RevocationRow, from: number, size: number): Promise<void> {
  const identities = [...row.identities]
  const moved = await queryRows(
    db,
    `with moved as (
       update projection set ledger_size = ?, updated_at = now() where ledger_size = ? returning 1
     ), devices_ended as (
       update devices set status = 'revoked' from moved where identity = any (?::text[])
     ), gateways_ended as (
       update gateways set status = 'revoked' from moved where identity = any (?::text[])
     )
     select ${PROJECT_REVOCATION} from moved`,
    [from + size, from, identities, identities, ...revocationArguments(row)],
  )
  requireMoved(moved)
}

function requireMoved(moved: readonly unknown[]): void {
  if (moved.length !== 1) throw new CertpeerError('unavailable', 'the projection was moved by another writer')
}

async function writeNetwork(trx: Db, row: NetworkRow): Promise<void> {
  await trx.raw(
    `with written as (
       insert into networks (tenant, name, document, document_number) values (?, ?, ?, ?)
       on conflict (tenant, name) do update
         set document = excluded.document, document_number = excluded.document_number
         where networks.document_number < excluded.document_number
       returning tenant, name)
     select pg_notify('certpeer_networks', json_build_object('network', tenant || '/' || name)::text) from written`,
    [row.tenant, row.name, row.document, row.document_number],
  )
}

const CERTIFICATE_COLUMNS = `serial text, issuer_key_id text, identity text, id text, name text, role text, tenant text,
  network text, networks text[], groups text[], addresses inet[], wireguard_key text, possession boolean, der text,
  not_before timestamptz, not_after timestamptz, held_until timestamptz, ledger_index bigint, issued_at timestamptz`

async function writeCertificates(trx: Db, rows: readonly CertificateRow[]): Promise<void> {
  const bindings = [JSON.stringify(rows)]
  await trx.raw(
    `insert into certificates (serial, issuer_key_id, identity, name, role, tenant, network, wireguard_key, possession,
         der, not_before, not_after, ledger_index)
       select serial, issuer_key_id, identity, name, role, tenant, network, decode(wireguard_key, 'hex'), possession,
         decode(der, 'hex'), not_before, not_after, ledger_index
       from jsonb_to_recordset(?::jsonb) as r (${CERTIFICATE_COLUMNS}) order by serial
     on conflict (serial) do nothing`,
    bindings,
  )
  if (rows.some((row) => row.role === 'device')) {
    await trx.raw(
      `insert into devices (identity, id, name, tenant, network, groups, addresses, possession, status, serial,
           not_after, created_at)
         select identity, id, name, tenant, network, groups, addresses, possession, 'active', serial, not_after, issued_at
         from jsonb_to_recordset(?::jsonb) as r (${CERTIFICATE_COLUMNS}) where role = 'device' order by identity
       on conflict (identity) do update
         set groups = excluded.groups, addresses = excluded.addresses, possession = excluded.possession,
             status = 'active', serial = excluded.serial, not_after = excluded.not_after`,
      bindings,
    )
  }
  if (rows.some((row) => row.role === 'gateway')) {
    await trx.raw(
      `insert into gateways (identity, name, networks, addresses, serial, certificate, not_after, status)
         select identity, name, networks, addresses, serial, decode(der, 'hex'), not_after, 'active'
         from jsonb_to_recordset(?::jsonb) as r (${CERTIFICATE_COLUMNS}) where role = 'gateway' order by identity
       on conflict (identity) do update
         set networks = excluded.networks, addresses = excluded.addresses, serial = excluded.serial,
             certificate = excluded.certificate, not_after = excluded.not_after, status = 'active'`,
      bindings,
    )
  }
  await trx.raw(
    // An address is in every network whose pools or key prefix it was taken from; a device has one network, and a
    // gateway's addresses are listed under its first.
    `insert into leases (tenant, network, address, identity, held_until)
       select split_part(networks[1], '/', 1), split_part(networks[1], '/', 2), address, identity, held_until
       from jsonb_to_recordset(?::jsonb) as r (${CERTIFICATE_COLUMNS}), unnest(addresses) as address
       where held_until is not null order by 1, 2, 3
     on conflict (tenant, network, address) do update
       set identity = excluded.identity, held_until = excluded.held_until`,
    bindings,
  )
}

const PROJECT_REVOCATION = 'project_revocation(?::text[], ?::text[], ?::text[], ?::timestamptz, ?, ?)'

function revocationArguments(row: RevocationRow): unknown[] {
  const { networks, serials, issuerKeyIds, revokedAt, reason, ledgerIndex } = row
  return [[...networks], [...serials], [...issuerKeyIds], revokedAt, reason, ledgerIndex]
}

async function writeRevocation(trx: Db, row: RevocationRow): Promise<void> {
  if (row.serials.length > 0) await queryRows(trx, `select ${PROJECT_REVOCATION}`, revocationArguments(row))
  if (row.identities.length > 0) {
    await trx.raw(`update devices set status = 'revoked' where identity = any (?::text[])`, [[...row.identities]])
    await trx.raw(`update gateways set status = 'revoked' where identity = any (?::text[])`, [[...row.identities]])
  }
}
