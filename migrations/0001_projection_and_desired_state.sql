-- The projection (what the authority decided, copied for queries) and the desired state (which peers should be on which
-- network). Nothing the authority decides is ever decided from a row: its ledger is the truth.
--
-- Lock order everywhere: networks (by id), certificates and revocations (by serial), leases, peers.

create table projection (
  only_row boolean primary key default true check (only_row),
  -- Number of ledger entries already projected.
  ledger_size bigint not null default 0,
  updated_at timestamptz not null default now()
);
insert into projection default values;

create table networks (
  id bigint generated always as identity primary key,
  tenant text not null,
  name text not null,
  -- The signed network document (JWS) and its number; readers verify it before they believe it.
  document text not null,
  document_number bigint not null,
  -- Revision of the desired state: one step per change, commit order = revision order (the row lock sees to it).
  revision bigint not null default 0,
  unique (tenant, name)
);

create table issuers (
  -- SHA-256 of the SubjectPublicKeyInfo, lower-case hex.
  key_id text primary key,
  name text not null unique,
  role text not null check (role in ('root', 'device', 'infrastructure')),
  tenant text,
  certificate bytea not null,
  crl bytea,
  crl_number numeric(40),
  crl_next_update timestamptz
);

create table devices (
  -- SPIFFE ID.
  identity text primary key,
  id text not null,
  name text not null,
  tenant text not null,
  network text not null,
  groups text[] not null default '{}',
  addresses inet[] not null default '{}',
  possession boolean not null,
  status text not null check (status in ('active', 'revoked')),
  serial text not null,
  not_after timestamptz not null,
  created_at timestamptz not null
);
create index devices_by_name on devices (tenant, network, name);

create table certificates (
  serial text primary key,
  issuer_key_id text not null references issuers (key_id),
  identity text not null,
  -- The human name that goes with the identity.
  name text not null,
  role text not null,
  tenant text,
  network text,
  wireguard_key bytea,
  possession boolean,
  der bytea not null,
  not_before timestamptz not null,
  not_after timestamptz not null,
  status text not null default 'good' check (status in ('good', 'revoked')),
  revoked_at timestamptz,
  revocation_reason text,
  ledger_index bigint not null,
  check ((status = 'revoked') = (revoked_at is not null))
);
create index certificates_by_identity on certificates (identity);
create index certificates_by_not_after on certificates (not_after);

-- Kept apart from certificates so that provisioning can ask "revoked?" also before the certificate's row has arrived.
create table revocations (
  serial text primary key,
  issuer_key_id text not null,
  revoked_at timestamptz not null,
  reason text not null,
  ledger_index bigint not null
);

create table leases (
  tenant text not null,
  network text not null,
  address inet not null,
  identity text not null,
  -- Null while a certificate in force carries it; else the end of quarantine.
  held_until timestamptz,
  primary key (tenant, network, address)
);

create table gateways (
  identity text primary key,
  name text not null unique,
  -- `<tenant>/<network>`.
  networks text[] not null,
  addresses inet[] not null default '{}',
  serial text not null,
  certificate bytea not null,
  not_after timestamptz not null,
  status text not null check (status in ('active', 'revoked')),
  -- Below: written by the server that holds the stream.
  endpoint text,
  connected_to text,
  last_seen_at timestamptz
);

create table gateway_revisions (
  gateway text not null references gateways (identity) on delete cascade,
  network_id bigint not null references networks (id),
  applied_revision bigint not null,
  failed jsonb not null default '[]',
  updated_at timestamptz not null default now(),
  primary key (gateway, network_id)
);

create table gateway_crls (
  gateway text not null references gateways (identity) on delete cascade,
  issuer_key_id text not null,
  number numeric(40) not null,
  updated_at timestamptz not null default now(),
  primary key (gateway, issuer_key_id)
);

create table peers (
  network_id bigint not null references networks (id),
  identity text not null,
  serial text not null,
  wireguard_key bytea not null check (octet_length(wireguard_key) = 32),
  -- The certificate is the peer: a gateway takes key and AllowedIPs from it and from nothing else.
  certificate bytea not null,
  not_before timestamptz not null,
  not_after timestamptz not null,
  revision bigint not null,
  constraint peers_one_per_identity primary key (network_id, identity)
);
create unique index peers_one_per_key on peers (network_id, wireguard_key);
create index peers_by_serial on peers (serial);
create index peers_by_not_after on peers (not_after);

-- Append-only, kept 7 days; a resume from before that gets a snapshot.
create table peer_changes (
  network_id bigint not null references networks (id),
  revision bigint not null,
  kind text not null check (kind in ('set', 'remove')),
  serial text not null,
  certificate bytea,
  created_at timestamptz not null default now(),
  primary key (network_id, revision),
  check ((kind = 'set') = (certificate is not null))
);
create index peer_changes_by_age on peer_changes (created_at);

-- The authority's one way to touch desired state: it can take peers away, never add one.
create function project_revocation(
  p_networks text[], p_serials text[], p_issuer_key_ids text[], p_revoked_at timestamptz, p_reason text,
  p_ledger_index bigint
) returns void
-- pg_temp last: unnamed, it would come first, and its tables and types are the caller's.
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
  target record;
  next_revision bigint;
begin
  -- `p_networks` are the `<tenant>/<network>` these certificates could be provisioned in. Their rows are locked whether
  -- or not a peer is seen yet: a provision that is under way either commits before this lock and its peer is seen below,
  -- or takes the lock after this commit and sees the revocation.
  perform 1 from public.networks n where n.tenant || '/' || n.name = any (p_networks) order by n.id for update;
  insert into public.revocations (serial, issuer_key_id, revoked_at, reason, ledger_index)
    select s, k, p_revoked_at, p_reason, p_ledger_index from unnest(p_serials, p_issuer_key_ids) as u (s, k) order by s
    on conflict (serial) do nothing;
  update public.certificates c set status = 'revoked', revoked_at = p_revoked_at, revocation_reason = p_reason
    where c.serial = any (p_serials) and c.status = 'good';
  for target in select p.network_id, p.identity, p.serial, n.tenant, n.name
      from public.peers p join public.networks n on n.id = p.network_id
      where p.serial = any (p_serials) order by p.network_id, p.serial
  loop
    update public.networks n set revision = n.revision + 1 where n.id = target.network_id returning n.revision into next_revision;
    delete from public.peers p where p.network_id = target.network_id and p.identity = target.identity;
    insert into public.peer_changes (network_id, revision, kind, serial)
      values (target.network_id, next_revision, 'remove', target.serial);
    perform pg_notify('certpeer_changes', json_build_object('network', target.tenant || '/' || target.name, 'revision', next_revision)::text);
  end loop;
end
$$;
revoke all on function project_revocation(text[], text[], text[], timestamptz, text, bigint) from public;

-- Grants. Roles are made by `certpeer migrate`, before this file runs.
revoke all on schema public from public;
grant usage on schema public to certpeer_ca, certpeer_server;

grant select on all tables in schema public to certpeer_ca;
grant insert, update on projection, issuers, devices, certificates, leases to certpeer_ca;
grant delete on leases to certpeer_ca;
grant insert (tenant, name, document, document_number), update (document, document_number) on networks to certpeer_ca;
grant insert (identity, name, networks, addresses, serial, certificate, not_after, status),
  update (name, networks, addresses, serial, certificate, not_after, status) on gateways to certpeer_ca;
grant execute on function project_revocation(text[], text[], text[], timestamptz, text, bigint) to certpeer_ca;

grant select on all tables in schema public to certpeer_server;
grant update (revision) on networks to certpeer_server;
grant insert, update, delete on peers to certpeer_server;
grant insert, delete on peer_changes to certpeer_server;
grant update (endpoint, connected_to, last_seen_at) on gateways to certpeer_server;
grant insert, update, delete on gateway_revisions, gateway_crls to certpeer_server;
