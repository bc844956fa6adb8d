/** Pages for operators, by keyset: `after` is the last key of the page before. `tenant` null means all tenants. */
import { queryRows } from '../../platform/db/connection.ts'
import type { Db } from '../../platform/db/connection.ts'
import { CONNECTED_SECONDS } from './gateways.ts'

export interface PageQuery {
  readonly tenant: string | null
  readonly after: readonly string[]
  readonly limit: number
  readonly now: Date
}

export interface DeviceRow {
  readonly identity: string
  readonly id: string
  readonly name: string
  readonly tenant: string
  readonly network: string
  readonly groups: string[]
  readonly addresses: string[]
  readonly possession: boolean
  readonly status: 'active' | 'revoked' | 'expired'
  readonly serial: string
  readonly notAfter: Date
}

export async function listDevices(db: Db, page: PageQuery): Promise<DeviceRow[]> {
  return queryRows(
    db,
    `select identity, id, name, tenant, network, groups,
        array(select host(a) from unnest(addresses) with ordinality as u (a, place) order by place) as addresses,
        possession, case when status = 'active' and not_after <= ?::timestamptz then 'expired' else status end as status,
        serial, not_after as "notAfter"
      from devices
      where (?::text is null or tenant = ?) and identity > ?
      order by identity limit ?`,
    [page.now.toISOString(), page.tenant, page.tenant, page.after[0] ?? '', page.limit],
  )
}

export interface CertificateRow {
  readonly serial: string
  readonly identity: string
  readonly name: string
  readonly role: string
  readonly status: 'good' | 'revoked' | 'expired'
  readonly possession: boolean | null
  readonly notBefore: Date
  readonly notAfter: Date
  readonly revokedAt: Date | null
  readonly reason: string | null
}

export async function listCertificates(db: Db, page: PageQuery): Promise<CertificateRow[]> {
  return queryRows(
    db,
    `select serial, identity, name, role,
        case when status = 'good' and not_after <= ?::timestamptz then 'expired' else status end as status,
        possession, not_before as "notBefore", not_after as "notAfter", revoked_at as "revokedAt",
        revocation_reason as reason
      from certificates
      where (?::text is null or tenant = ?) and serial > ?
      order by serial limit ?`,
    [page.now.toISOString(), page.tenant, page.tenant, page.after[0] ?? '', page.limit],
  )
}

export interface PeerRow {
  readonly networkId: string
  readonly tenant: string
  readonly network: string
  readonly identity: string
  readonly serial: string
  /** Null when the row holds something that no certificate of ours is. */
  readonly certificate: Buffer | null
  readonly revision: string
  /** The human name, when the projection has it. */
  readonly name: string | null
}

export async function listPeers(db: Db, page: PageQuery): Promise<PeerRow[]> {
  const [networkId = '0', identity = ''] = page.after
  return queryRows(
    db,
    `select p.network_id as "networkId", n.tenant, n.name as network, p.identity, p.serial,
        case when octet_length(p.certificate) <= 12288 then p.certificate end as certificate,
        p.revision, d.name
      from peers p
      join networks n on n.id = p.network_id
      left join devices d on d.identity = p.identity
      where (?::text is null or n.tenant = ?) and (p.network_id, p.identity) > (?::bigint, ?)
      order by p.network_id, p.identity limit ?`,
    [page.tenant, page.tenant, networkId, identity, page.limit],
  )
}

export interface GatewayRow {
  readonly identity: string
  readonly name: string
  readonly networks: string[]
  readonly addresses: string[]
  readonly certificate: Buffer | null
  readonly endpoint: string | null
  readonly connected: boolean
  readonly lastSeenAt: Date | null
  readonly notAfter: Date
  /** Applied revision per `<tenant>/<network>`, as text. */
  readonly revisions: Record<string, string>
}

/** A tenant's operator sees the gateways that serve the tenant, and of them only what concerns the tenant. */
export async function listGateways(db: Db, page: PageQuery): Promise<GatewayRow[]> {
  return queryRows(
    db,
    `select g.identity, g.name,
        array(select k from unnest(g.networks) as k where ?::text is null or split_part(k, '/', 1) = ? order by k)
          as networks,
        array(select host(a) from unnest(g.addresses) with ordinality as u (a, place) order by place) as addresses,
        case when octet_length(g.certificate) <= 12288 then g.certificate end as certificate,
        g.endpoint, g.last_seen_at as "lastSeenAt", g.not_after as "notAfter",
        (g.connected_to is not null and g.last_seen_at > now() - interval '${CONNECTED_SECONDS} seconds') as connected,
        coalesce((
          select json_object_agg(n.tenant || '/' || n.name, r.applied_revision::text)
          from gateway_revisions r join networks n on n.id = r.network_id
          where r.gateway = g.identity and (?::text is null or n.tenant = ?)
        ), '{}'::json) as revisions
      from gateways g
      where g.status = 'active' and g.identity > ?
        and (?::text is null or exists (select 1 from unnest(g.networks) as k where split_part(k, '/', 1) = ?))
      order by g.identity limit ?`,
    [
      ...[page.tenant, page.tenant, page.tenant, page.tenant],
      page.after[0] ?? '',
      ...[page.tenant, page.tenant],
      page.limit,
    ],
  )
}
