/**
 * The statements that change which peers should exist. Whoever calls holds the rows of the networks: lock order is
 * networks (by id), revocations, peers, everywhere and also in the authority's projection, so writers queue instead of
 * deadlocking and the order of revisions is the order of commits.
 */
import { queryRows } from '../../platform/db/connection.ts'
import type { Db } from '../../platform/db/connection.ts'

export interface NetworkName {
  readonly tenant: string
  readonly network: string
}

export interface LockedNetwork extends NetworkName {
  readonly id: string
  readonly revision: string
}

/** What a certificate asks for, as one row. `networkId` is the id of a network that the caller has locked. */
export interface PeerRow {
  readonly networkId: string
  readonly identity: string
  readonly serial: string
  readonly wireguardKey: Buffer
  readonly certificate: Buffer
  readonly notBefore: Date
  readonly notAfter: Date
}

export type PutVerdict = 'set' | 'unchanged' | 'revoked' | 'older' | 'key_held'

export interface PutResult {
  readonly verdict: PutVerdict
  /** Revision that carries the peer; null for a refusal of an identity that has none. */
  readonly revision: number | null
}

/** Locks the networks in the order of their ids and returns those that exist. First statement of every change. */
export async function lockNetworks(db: Db, names: readonly NetworkName[]): Promise<LockedNetwork[]> {
  const rows = await queryRows<LockedNetwork>(
    db,
    `select id, tenant, name as network, revision from networks
      where (tenant, name) in (select * from unnest(?::text[], ?::text[]))
      order by id for update`,
    [names.map((name) => name.tenant), names.map((name) => name.network)],
  )
  return rows
}

/**
 * Puts many peers in one statement and says of each what became of it; a refused row leaves its neighbours alone.
 * `rows` hold an identity, and a key, at most once per network (the caller splits what does not).
 *
 * judged:   revoked beats everything; an identity keeps its newest certificate; a key belongs to one identity.
 * accepted: gives each change the network's next revision. The locks make `n.revision` current and nobody else's.
 * notified: one notification for each network, sent by PostgreSQL at the commit, so nobody hears of what is not there.
 */
export async function putPeers(db: Db, rows: readonly PeerRow[]): Promise<PutResult[]> {
  const answer = await queryRows<{ verdict: PutVerdict; revision: string | null }>(
    db,
    `with input as (
      select * from unnest(
        ?::bigint[], ?::text[], ?::text[], ?::bytea[], ?::bytea[], ?::timestamptz[], ?::timestamptz[]
      ) with ordinality as i (
        network_id, identity, serial, wireguard_key, certificate, not_before, not_after, place
      )
    ), judged as (
      select i.*, own.revision as held_revision,
        case
          when exists (select 1 from revocations r where r.serial = i.serial) then 'revoked'
          when own.certificate = i.certificate and own.serial = i.serial and own.wireguard_key = i.wireguard_key
            and own.not_after = i.not_after then 'unchanged'
          when own.not_before > i.not_before then 'older'
          when exists (
            select 1 from peers other
            where other.network_id = i.network_id and other.wireguard_key = i.wireguard_key
              and other.identity <> i.identity
          ) then 'key_held'
          else 'set'
        end as verdict
      from input i
      left join peers own on own.network_id = i.network_id and own.identity = i.identity
    ), accepted as (
      select j.*, n.revision + row_number() over (partition by j.network_id order by j.place) as revision
      from judged j join networks n on n.id = j.network_id
      where j.verdict = 'set'
    ), upserted as (
      insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
      select network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision from accepted
      on conflict on constraint peers_one_per_identity do update set
        serial = excluded.serial, wireguard_key = excluded.wireguard_key, certificate = excluded.certificate,
        not_before = excluded.not_before, not_after = excluded.not_after, revision = excluded.revision
    ), appended as (
      insert into peer_changes (network_id, revision, kind, serial, certificate)
      select network_id, revision, 'set', serial, certificate from accepted
    ), advanced as (
      update networks n set revision = last.revision
      from (select network_id, max(revision) as revision from accepted group by network_id) last
      where n.id = last.network_id
      returning n.tenant, n.name, n.revision
    ), notified as (
      select pg_notify(
        'certpeer_changes', json_build_object('network', tenant || '/' || name, 'revision', revision)::text
      ) from advanced
    )
    select j.verdict, coalesce(a.revision, j.held_revision) as revision, (select count(*) from notified)
    from judged j left join accepted a on a.place = j.place
    order by j.place`,
    [
      rows.map((row) => row.networkId),
      rows.map((row) => row.identity),
      rows.map((row) => row.serial),
      rows.map((row) => row.wireguardKey),
      rows.map((row) => row.certificate),
      rows.map((row) => row.notBefore.toISOString()),
      rows.map((row) => row.notAfter.toISOString()),
    ],
  )
  return answer.map((row) => ({
    verdict: row.verdict,
    revision: row.revision === null ? null : Number(row.revision),
  }))
}

/**
 * The tail of every removal: numbers, appends, advances, notifies. `victims` are rows that were just deleted, `place`
 * is what they are known by in the answer.
 */
function appendRemovals(place: string): string {
  return `
    numbered as (
      select v.network_id, v.serial, ${place} as place,
        n.revision + row_number() over (partition by v.network_id order by v.identity) as revision
      from victims v join networks n on n.id = v.network_id
    ), appended as (
      insert into peer_changes (network_id, revision, kind, serial)
      select network_id, revision, 'remove', serial from numbered
    ), advanced as (
      update networks n set revision = last.revision
      from (select network_id, max(revision) as revision from numbered group by network_id) last
      where n.id = last.network_id
      returning n.tenant, n.name, n.revision
    ), notified as (
      select pg_notify(
        'certpeer_changes', json_build_object('network', tenant || '/' || name, 'revision', revision)::text
      ) from advanced
    )`
}

/** Whose peer goes: that of the identity, unless a newer certificate than the one that asks has replaced it. */
export interface Removal {
  readonly networkId: string
  readonly identity: string
  readonly notBefore: Date
}

/**
 * Removes many peers in one statement and gives for each the revision of its removal; null when there was nothing to
 * remove. The networks are locked, and `removals` hold an identity at most once per network.
 */
export async function removePeers(db: Db, removals: readonly Removal[]): Promise<(number | null)[]> {
  const rows = await queryRows<{ revision: string; place: string }>(
    db,
    `with input as (
      select * from unnest(?::bigint[], ?::text[], ?::timestamptz[]) with ordinality
        as i (network_id, identity, not_before, place)
    ), victims as (
      delete from peers p using input i
      where p.network_id = i.network_id and p.identity = i.identity and p.not_before <= i.not_before
      returning p.network_id, p.identity, p.serial, i.place
    ), ${appendRemovals('v.place')}
    select revision, place, (select count(*) from notified) from numbered`,
    [
      removals.map(({ networkId }) => networkId),
      removals.map(({ identity }) => identity),
      removals.map(({ notBefore }) => notBefore.toISOString()),
    ],
  )
  const revisions = new Map(rows.map(({ place, revision }) => [Number(place), Number(revision)]))
  return removals.map((_, index) => revisions.get(index + 1) ?? null)
}

/** Networks that hold a peer past its end. Without locks: only a hint whom to lock. */
export async function findNetworksWithExpiredPeers(db: Db, now: Date): Promise<NetworkName[]> {
  const rows = await queryRows<NetworkName>(
    db,
    `select n.tenant, n.name as network from networks n
      where exists (select 1 from peers p where p.network_id = n.id and p.not_after <= ?::timestamptz)`,
    [now.toISOString()],
  )
  return rows
}

/** Removes at most `limit` peers whose certificate has ended; returns how many. The networks are locked. */
export async function removeExpiredPeers(
  db: Db,
  networkIds: readonly string[],
  now: Date,
  limit: number,
): Promise<number> {
  const rows = await queryRows<unknown>(
    db,
    `with due as (
      select network_id, identity from peers
      where network_id = any (?::bigint[]) and not_after <= ?::timestamptz
      order by not_after limit ?
    ), victims as (
      delete from peers p using due
      where p.network_id = due.network_id and p.identity = due.identity
      returning p.network_id, p.identity, p.serial
    ), ${appendRemovals('v.identity')}
    select place, (select count(*) from notified) from numbered`,
    [networkIds, now.toISOString(), limit],
  )
  return rows.length
}

/** Deletes at most `limit` changes older than `before`; returns how many. A resume from before them gets a snapshot. */
export async function deleteOldChanges(db: Db, before: Date, limit: number): Promise<number> {
  const rows = await queryRows<unknown>(
    db,
    `delete from peer_changes c using (
        select network_id, revision from peer_changes where created_at < ?::timestamptz order by created_at limit ?
      ) old
      where c.network_id = old.network_id and c.revision = old.revision
      returning 1`,
    [before.toISOString(), limit],
  )
  return rows.length
}
