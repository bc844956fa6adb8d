/** Gateways: who is connected, where they can be reached, and what they have applied. */
import { queryRows } from '../../platform/db/connection.ts'
import type { Db } from '../../platform/db/connection.ts'

/** A gateway counts as connected while the server that holds its stream has said so within this time. */
export const CONNECTED_SECONDS = 15
const IS_CONNECTED = `(g.connected_to is not null and g.last_seen_at > now() - interval '${CONNECTED_SECONDS} seconds')`

export interface GatewayHintRow {
  readonly identity: string
  readonly certificate: Buffer
  readonly endpoint: string
  readonly connected: boolean
  readonly lastSeenAt: Date | null
}

/** Gateways in force that have told an endpoint. */
export async function listGatewayHints(db: Db): Promise<GatewayHintRow[]> {
  const rows = await queryRows<GatewayHintRow>(
    db,
    `select g.identity, g.certificate, g.endpoint, ${IS_CONNECTED} as connected, g.last_seen_at as "lastSeenAt"
      from gateways g
      where g.status = 'active' and g.endpoint is not null and octet_length(g.certificate) <= 12288
      order by g.identity`,
  )
  return rows
}

export interface Connection {
  /** The gateway's SPIFFE ID. */
  readonly identity: string
  /** Names this stream among all streams of all servers. */
  readonly connectedTo: string
  readonly endpoint: string
}

/** Says that the gateway's newest stream is this one. False while the authority's projection has no row for it yet. */
export async function takeConnection(db: Db, connection: Connection): Promise<boolean> {
  const rows = await queryRows<unknown>(
    db,
    `with taken as (
      update gateways set endpoint = ?, connected_to = ?, last_seen_at = now() where identity = ? returning name
    )
    select pg_notify('certpeer_gateways', json_build_object('gateway', name)::text) from taken`,
    [connection.endpoint, connection.connectedTo, connection.identity],
  )
  return rows.length > 0
}

/**
 * Refreshes the streams this server holds; returns the identities refreshed. One that another stream has taken over is
 * left alone, unless that one has gone silent. Rows are locked by identity: several servers do this at once.
 */
export async function refreshConnections(db: Db, connections: readonly Connection[]): Promise<string[]> {
  const rows = await queryRows<{ identity: string }>(
    db,
    `with mine as (
      select g.identity, u.connected_to, u.endpoint
      from gateways g join unnest(?::text[], ?::text[], ?::text[]) as u (identity, connected_to, endpoint)
        on u.identity = g.identity
      where g.connected_to = u.connected_to or not ${IS_CONNECTED} or g.connected_to is null
      order by g.identity for update of g
    )
    update gateways g set connected_to = mine.connected_to, endpoint = mine.endpoint, last_seen_at = now()
    from mine where g.identity = mine.identity
    returning g.identity`,
    [
      connections.map((connection) => connection.identity),
      connections.map((connection) => connection.connectedTo),
      connections.map((connection) => connection.endpoint),
    ],
  )
  return rows.map((row) => row.identity)
}

/** Says that the stream has ended, unless the gateway has a newer one. */
export async function dropConnection(db: Db, connection: Pick<Connection, 'identity' | 'connectedTo'>): Promise<void> {
  await db.raw(
    `with dropped as (
      update gateways set connected_to = null, last_seen_at = now() where identity = ? and connected_to = ?
      returning name
    )
    select pg_notify('certpeer_gateways', json_build_object('gateway', name)::text) from dropped`,
    [connection.identity, connection.connectedTo],
  )
}

export interface AppliedRow {
  readonly gateway: string
  readonly tenant: string
  readonly network: string
  readonly revision: number
  /** Peers refused, the whole list; null for what a gateway says it was told, when it connects. */
  readonly failed: readonly { readonly serial: string; readonly code: string }[] | null
}

/**
 * Stores what gateways report, one row per gateway and network, and tells every server. Returns `gateway network` of
 * each row that needs no further try; one is missing while the projection lacks its gateway or network. A report that
 * is ahead of the network (a database that was restored) counts for nothing. One with `failed: null` only lowers what is
 * stored: it says what the gateway was told, and not that its device has it; but what it was not told, it does not have.
 */
export async function saveApplied(db: Db, rows: readonly AppliedRow[]): Promise<ReadonlySet<string>> {
  const answer = await queryRows<{ key: string }>(
    db,
    `with reported as (
      select u.gateway, n.id as network_id, n.tenant || '/' || n.name as network, u.revision, u.failed::jsonb as failed
      from unnest(?::text[], ?::text[], ?::text[], ?::bigint[], ?::text[]) as u (gateway, tenant, name, revision, failed)
      join networks n on n.tenant = u.tenant and n.name = u.name
      join gateways g on g.identity = u.gateway
    ), stored as (
      insert into gateway_revisions (gateway, network_id, applied_revision, failed, updated_at)
      select r.gateway, r.network_id, r.revision, coalesce(r.failed, held.failed, '[]'), now()
      from reported r join networks n on n.id = r.network_id
      left join gateway_revisions held on held.gateway = r.gateway and held.network_id = r.network_id
      where r.revision <= n.revision and (r.failed is not null or r.revision < held.applied_revision)
      order by r.gateway, r.network_id
      on conflict (gateway, network_id) do update set
        applied_revision = excluded.applied_revision, failed = excluded.failed, updated_at = excluded.updated_at
      returning gateway, network_id, applied_revision
    ), notified as (
      select pg_notify('certpeer_applied', json_build_object(
        'gateway', s.gateway, 'network', r.network, 'revision', s.applied_revision
      )::text) from stored s join reported r on r.gateway = s.gateway and r.network_id = s.network_id
    )
    select gateway || ' ' || network as key, (select count(*) from notified) from reported`,
    [
      rows.map((row) => row.gateway),
      rows.map((row) => row.tenant),
      rows.map((row) => row.network),
      rows.map((row) => row.revision),
      rows.map((row) => (row.failed === null ? null : JSON.stringify(row.failed))),
    ],
  )
  return new Set(answer.map((row) => row.key))
}

export interface CrlAppliedRow {
  readonly gateway: string
  readonly issuerKeyId: string
  readonly number: string
}

/** Stores which CRLs gateways enforce, and tells every server. Returns `gateway issuerKeyId` of each row stored. */
export async function saveCrlApplied(db: Db, rows: readonly CrlAppliedRow[]): Promise<ReadonlySet<string>> {
  const answer = await queryRows<{ key: string }>(
    db,
    `with stored as (
      insert into gateway_crls (gateway, issuer_key_id, number, updated_at)
      select u.gateway, u.issuer_key_id, u.number, now()
      from unnest(?::text[], ?::text[], ?::numeric[]) as u (gateway, issuer_key_id, number)
      join gateways g on g.identity = u.gateway
      order by u.gateway, u.issuer_key_id
      on conflict (gateway, issuer_key_id) do update set number = excluded.number, updated_at = excluded.updated_at
      returning gateway, issuer_key_id, number
    )
    select gateway || ' ' || issuer_key_id as key, pg_notify('certpeer_applied', json_build_object(
      'gateway', gateway, 'issuerKeyId', issuer_key_id, 'number', number::text
    )::text) from stored`,
    [rows.map((row) => row.gateway), rows.map((row) => row.issuerKeyId), rows.map((row) => row.number)],
  )
  return new Set(answer.map((row) => row.key))
}

/** What one gateway has applied of one network. */
export interface GatewayProgress {
  readonly name: string
  readonly connected: boolean
  readonly lastSeenAt: Date | null
  readonly notAfter: Date
  readonly appliedRevision: number | null
  readonly appliedAt: Date | null
  readonly failedSerials: readonly string[]
  /** CRL number that the gateway enforces, per issuer key id. */
  readonly crls: Readonly<Record<string, string>>
}

/** Progress of every gateway in force that serves the network. */
export async function listGatewayProgress(db: Db, tenant: string, network: string): Promise<GatewayProgress[]> {
  const rows = await queryRows<
    Omit<GatewayProgress, 'appliedRevision' | 'failedSerials'> & {
      appliedRevision: string | null
      failed: unknown
    }
  >(
    db,
    `select g.name, ${IS_CONNECTED} as connected, g.last_seen_at as "lastSeenAt", g.not_after as "notAfter",
        r.applied_revision as "appliedRevision", r.updated_at as "appliedAt", r.failed,
        coalesce((
          select json_object_agg(c.issuer_key_id, c.number::text) from gateway_crls c where c.gateway = g.identity
        ), '{}'::json) as crls
      from gateways g
      join networks n on n.tenant = ? and n.name = ?
      left join gateway_revisions r on r.gateway = g.identity and r.network_id = n.id
      where g.status = 'active' and (n.tenant || '/' || n.name) = any (g.networks)
      order by g.name`,
    [tenant, network],
  )
  return rows.map(({ failed, ...row }) => ({
    ...row,
    appliedRevision: row.appliedRevision === null ? null : Number(row.appliedRevision),
    failedSerials: readFailedSerials(failed),
  }))
}

/** A row may hold anything: what is not a list of `{serial}` is an empty list. */
function readFailedSerials(failed: unknown): string[] {
  if (!Array.isArray(failed)) return []
  return failed.flatMap((entry: unknown) =>
    typeof entry === 'object' && entry !== null && 'serial' in entry && typeof entry.serial === 'string'
      ? [entry.serial]
      : [],
  )
}
