-- The schema that the migrations make, written by certpeer itself. Compared in the tests; not for running.

create table certificates (
  serial text not null,
  issuer_key_id text not null,
  identity text not null,
  name text not null,
  role text not null,
  tenant text,
  network text,
  wireguard_key bytea,
  possession boolean,
  der bytea not null,
  not_before timestamp with time zone not null,
  not_after timestamp with time zone not null,
  status text default 'good'::text not null,
  revoked_at timestamp with time zone,
  revocation_reason text,
  ledger_index bigint not null,
  constraint certificates_check CHECK (((status = 'revoked'::text) = (revoked_at IS NOT NULL))),
  constraint certificates_issuer_key_id_fkey FOREIGN KEY (issuer_key_id) REFERENCES issuers(key_id),
  constraint certificates_pkey PRIMARY KEY (serial),
  constraint certificates_status_check CHECK ((status = ANY (ARRAY['good'::text, 'revoked'::text])))
);

create table devices (
  identity text not null,
  id text not null,
  name text not null,
  tenant text not null,
  network text not null,
  groups text[] default '{}'::text[] not null,
  addresses inet[] default '{}'::inet[] not null,
  possession boolean not null,
  status text not null,
  serial text not null,
  not_after timestamp with time zone not null,
  created_at timestamp with time zone not null,
  constraint devices_pkey PRIMARY KEY (identity),
  constraint devices_status_check CHECK ((status = ANY (ARRAY['active'::text, 'revoked'::text])))
);

create table gateway_crls (
  gateway text not null,
  issuer_key_id text not null,
  number numeric(40,0) not null,
  updated_at timestamp with time zone default now() not null,
  constraint gateway_crls_gateway_fkey FOREIGN KEY (gateway) REFERENCES gateways(identity) ON DELETE CASCADE,
  constraint gateway_crls_pkey PRIMARY KEY (gateway, issuer_key_id)
);

create table gateway_revisions (
  gateway text not null,
  network_id bigint not null,
  applied_revision bigint not null,
  failed jsonb default '[]'::jsonb not null,
  updated_at timestamp with time zone default now() not null,
  constraint gateway_revisions_gateway_fkey FOREIGN KEY (gateway) REFERENCES gateways(identity) ON DELETE CASCADE,
  constraint gateway_revisions_network_id_fkey FOREIGN KEY (network_id) REFERENCES networks(id),
  constraint gateway_revisions_pkey PRIMARY KEY (gateway, network_id)
);

create table gateways (
  identity text not null,
  name text not null,
  networks text[] not null,
  addresses inet[] default '{}'::inet[] not null,
  serial text not null,
  certificate bytea not null,
  not_after timestamp with time zone not null,
  status text not null,
  endpoint text,
  connected_to text,
  last_seen_at timestamp with time zone,
  constraint gateways_name_key UNIQUE (name),
  constraint gateways_pkey PRIMARY KEY (identity),
  constraint gateways_status_check CHECK ((status = ANY (ARRAY['active'::text, 'revoked'::text])))
);

create table issuers (
  key_id text not null,
  name text not null,
  role text not null,
  tenant text,
  certificate bytea not null,
  crl bytea,
  crl_number numeric(40,0),
  crl_next_update timestamp with time zone,
  constraint issuers_name_key UNIQUE (name),
  constraint issuers_pkey PRIMARY KEY (key_id),
  constraint issuers_role_check CHECK ((role = ANY (ARRAY['root'::text, 'device'::text, 'infrastructure'::text])))
);

create table leases (
  tenant text not null,
  network text not null,
  address inet not null,
  identity text not null,
  held_until timestamp with time zone,
  constraint leases_pkey PRIMARY KEY (tenant, network, address)
);

create table networks (
  id bigint generated always as identity not null,
  tenant text not null,
  name text not null,
  document text not null,
  document_number bigint not null,
  revision bigint default 0 not null,
  constraint networks_pkey PRIMARY KEY (id),
  constraint networks_tenant_name_key UNIQUE (tenant, name)
);

create table peer_changes (
  network_id bigint not null,
  revision bigint not null,
  kind text not null,
  serial text not null,
  certificate bytea,
  created_at timestamp with time zone default now() not null,
  constraint peer_changes_check CHECK (((kind = 'set'::text) = (certificate IS NOT NULL))),
  constraint peer_changes_kind_check CHECK ((kind = ANY (ARRAY['set'::text, 'remove'::text]))),
  constraint peer_changes_network_id_fkey FOREIGN KEY (network_id) REFERENCES networks(id),
  constraint peer_changes_pkey PRIMARY KEY (network_id, revision)
);

create table peers (
  network_id bigint not null,
  identity text not null,
  serial text not null,
  wireguard_key bytea not null,
  certificate bytea not null,
  not_before timestamp with time zone not null,
  not_after timestamp with time zone not null,
  revision bigint not null,
  constraint peers_network_id_fkey FOREIGN KEY (network_id) REFERENCES networks(id),
  constraint peers_one_per_identity PRIMARY KEY (network_id, identity),
  constraint peers_wireguard_key_check CHECK ((octet_length(wireguard_key) = 32))
);

create table projection (
  only_row boolean default true not null,
  ledger_size bigint default 0 not null,
  updated_at timestamp with time zone default now() not null,
  constraint projection_only_row_check CHECK (only_row),
  constraint projection_pkey PRIMARY KEY (only_row)
);

create table revocations (
  serial text not null,
  issuer_key_id text not null,
  revoked_at timestamp with time zone not null,
  reason text not null,
  ledger_index bigint not null,
  constraint revocations_pkey PRIMARY KEY (serial)
);

CREATE INDEX certificates_by_identity ON public.certificates USING btree (identity);
CREATE INDEX certificates_by_not_after ON public.certificates USING btree (not_after);
CREATE INDEX devices_by_name ON public.devices USING btree (tenant, network, name);
CREATE INDEX peer_changes_by_age ON public.peer_changes USING btree (created_at);
CREATE INDEX peers_by_not_after ON public.peers USING btree (not_after);
CREATE INDEX peers_by_serial ON public.peers USING btree (serial);
CREATE UNIQUE INDEX peers_one_per_key ON public.peers USING btree (network_id, wireguard_key);

CREATE OR REPLACE FUNCTION public.project_revocation(p_networks text[], p_serials text[], p_issuer_key_ids text[], p_revoked_at timestamp with time zone, p_reason text, p_ledger_index bigint)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'public', 'pg_temp'
AS $function$
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
$function$
;

grant execute on function project_revocation(text[],text[],text[],timestamp with time zone,text,bigint) to certpeer_ca;
grant usage on schema public to certpeer_ca;
grant usage on schema public to certpeer_server;
grant insert, select, update on table certificates to certpeer_ca;
grant select on table certificates to certpeer_server;
grant insert, select, update on table devices to certpeer_ca;
grant select on table devices to certpeer_server;
grant select on table gateway_crls to certpeer_ca;
grant delete, insert, select, update on table gateway_crls to certpeer_server;
grant select on table gateway_revisions to certpeer_ca;
grant delete, insert, select, update on table gateway_revisions to certpeer_server;
grant insert (addresses, certificate, identity, name, networks, not_after, serial, status), select, update (addresses, certificate, name, networks, not_after, serial, status) on table gateways to certpeer_ca;
grant select, update (connected_to, endpoint, last_seen_at) on table gateways to certpeer_server;
grant insert, select, update on table issuers to certpeer_ca;
grant select on table issuers to certpeer_server;
grant delete, insert, select, update on table leases to certpeer_ca;
grant select on table leases to certpeer_server;
grant insert (document, document_number, name, tenant), select, update (document, document_number) on table networks to certpeer_ca;
grant select, update (revision) on table networks to certpeer_server;
grant select on table peer_changes to certpeer_ca;
grant delete, insert, select on table peer_changes to certpeer_server;
grant select on table peers to certpeer_ca;
grant delete, insert, select, update on table peers to certpeer_server;
grant insert, select, update on table projection to certpeer_ca;
grant select on table projection to certpeer_server;
grant select on table revocations to certpeer_ca;
grant select on table revocations to certpeer_server;
