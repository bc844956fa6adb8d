/** What the two roles may not do, each refused by PostgreSQL itself; and the little that they may. */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { openDatabase, queryRows, type Db } from '../../../src/platform/db/connection.ts'
import { sqlStateOf } from '../../../src/platform/db/errors.ts'
import { dumpSchema } from '../../../src/platform/db/schema-dump.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { createTestDatabase, type TestDatabase } from '../../support/postgres.ts'

const INSUFFICIENT_PRIVILEGE = '42501'

let database: TestDatabase
let owner: Db
let ca: Db
let server: Db

before(async () => {
  database = await createTestDatabase()
  const open = (url: string): Db => openDatabase({ url, log: silentLogger(), max: 2 })
  owner = open(database.ownerUrl)
  ca = open(database.caUrl)
  server = open(database.serverUrl)
  await seed(owner)
})

after(async () => {
  await Promise.all([owner, ca, server].map((db) => db.destroy()))
  await database.close()
})

async function seed(db: Db): Promise<void> {
  await db.raw(`
    insert into networks (tenant, name, document, document_number) values ('t', 'n', 'jws', 1);
    insert into issuers (key_id, name, role, certificate) values ('k', 'device-t', 'device', 'der');
    insert into devices (identity, id, name, tenant, network, possession, status, serial, not_after, created_at)
      values ('spiffe://d', 'd', 'laptop', 't', 'n', true, 'active', '0a', now() + '1 day', now());
    insert into certificates (serial, issuer_key_id, identity, name, role, der, not_before, not_after, ledger_index)
      values ('0a', 'k', 'spiffe://d', 'laptop', 'device', 'der', now(), now() + '1 day', 1);
    insert into revocations (serial, issuer_key_id, revoked_at, reason, ledger_index) values ('0b', 'k', now(), 'unspecified', 2);
    insert into leases (tenant, network, address, identity) values ('t', 'n', '10.0.0.1', 'spiffe://d');
    insert into gateways (identity, name, networks, serial, certificate, not_after, status)
      values ('spiffe://g', 'g', '{t/n}', '0c', 'der', now() + '1 day', 'active');
    insert into gateway_revisions (gateway, network_id, applied_revision) select 'spiffe://g', id, 0 from networks;
    insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
      select id, 'spiffe://d', '0a', decode(repeat('07', 32), 'hex'), 'der', now(), now() + '1 day', 1 from networks;
    insert into peer_changes (network_id, revision, kind, serial, certificate) select id, 1, 'set', '0a', 'der' from networks;`)
}

/** The whole database as text: nothing a refused statement left behind goes unseen. */
async function contents(): Promise<string> {
  const tables = await queryRows<{ name: string }>(
    owner,
    "select relname as name from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1",
  )
  const rows = await Promise.all(tables.map(({ name }) => queryRows(owner, `select * from ${name} order by 1`)))
  return JSON.stringify(rows)
}

const PEER = `insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
  select id, 'spiffe://evil', '0e', decode(repeat('08', 32), 'hex'), 'der', now(), now() + '1 day', 2 from networks`
const NEWER = `create table more (a int)`

/** The authority decides who is who and takes away; it never adds to what gateways carry out. */
const FORBIDDEN_TO_CA: readonly [string, string][] = [
  ['add a peer', PEER],
  ['change a peer', `update peers set wireguard_key = decode(repeat('09', 32), 'hex')`],
  ['delete a peer around the function', 'delete from peers'],
  [
    'append a change',
    `insert into peer_changes (network_id, revision, kind, serial) select id, 2, 'remove', '0a' from networks`,
  ],
  ['forget changes', 'delete from peer_changes'],
  ['set a revision', 'update networks set revision = 99'],
  [
    'choose a revision for a new network',
    `insert into networks (tenant, name, document, document_number, revision) values ('t', 'm', 'x', 1, 7)`,
  ],
  ['rename a network', `update networks set name = 'other'`],
  ['delete a network', 'delete from networks'],
  ['un-revoke', `delete from revocations`],
  ['move a revocation', `update revocations set revoked_at = now() + '1 year'`],
  [
    'revoke around the function',
    `insert into revocations (serial, issuer_key_id, revoked_at, reason, ledger_index) values ('0a', 'k', now(), 'x', 3)`,
  ],
  ['delete a certificate', 'delete from certificates'],
  ['delete a device', 'delete from devices'],
  ['delete a gateway', 'delete from gateways'],
  ['delete an issuer', 'delete from issuers'],
  ['acknowledge for a gateway', 'update gateway_revisions set applied_revision = 99'],
  ['say where a gateway is', `update gateways set endpoint = '192.0.2.1:1'`],
  ['say that a gateway is there', `update gateways set last_seen_at = now()`],
  ['acknowledge a CRL', `insert into gateway_crls (gateway, issuer_key_id, number) values ('spiffe://g', 'k', 9)`],
]

/** Control carries out; it decides nothing that the authority has decided. */
const FORBIDDEN_TO_SERVER: readonly [string, string][] = [
  ['un-revoke', 'delete from revocations'],
  ['move a revocation', `update revocations set revoked_at = now() + '1 year'`],
  [
    'revoke',
    `insert into revocations (serial, issuer_key_id, revoked_at, reason, ledger_index) values ('0a', 'k', now(), 'x', 3)`,
  ],
  ['revoke through the function', `select project_revocation('{}', '{0a}', '{k}', now(), 'unspecified', 3)`],
  [
    'add a certificate',
    `insert into certificates (serial, issuer_key_id, identity, name, role, der, not_before, not_after, ledger_index) values ('0e', 'k', 'x', 'x', 'device', 'der', now(), now(), 9)`,
  ],
  ['change a certificate', `update certificates set der = 'other'`],
  ['make a certificate good again', `update certificates set status = 'good', revoked_at = null`],
  ['delete a certificate', 'delete from certificates'],
  [
    'add a device',
    `insert into devices (identity, id, name, tenant, network, possession, status, serial, not_after, created_at) values ('x', 'x', 'x', 't', 'n', true, 'active', '0e', now(), now())`,
  ],
  ['change a device', `update devices set groups = '{admins}'`],
  ['add an issuer', `insert into issuers (key_id, name, role, certificate) values ('e', 'evil', 'root', 'der')`],
  ['change a CRL', `update issuers set crl = 'old'`],
  ['change a network document', `update networks set document = 'other'`],
  ['lower its number', `update networks set document_number = 0`],
  ['add a network', `insert into networks (tenant, name, document, document_number) values ('t', 'm', 'x', 1)`],
  ['delete a network', 'delete from networks'],
  ['move a lease', `update leases set identity = 'spiffe://evil'`],
  ['free a lease', 'delete from leases'],
  ['take a lease', `insert into leases (tenant, network, address, identity) values ('t', 'n', '10.0.0.9', 'x')`],
  [
    'add a gateway',
    `insert into gateways (identity, name, networks, serial, certificate, not_after, status) values ('x', 'x', '{}', '0e', 'der', now(), 'active')`,
  ],
  ['give a gateway another network', `update gateways set networks = '{t/other}'`],
  ['change a gateway’s certificate', `update gateways set certificate = 'other'`],
  ['make a gateway active again', `update gateways set status = 'active'`],
  ['rewrite a change', `update peer_changes set certificate = 'other'`],
  ['move the projection', 'update projection set ledger_size = 99'],
]

const FORBIDDEN_TO_BOTH: readonly [string, string][] = [
  ['make a table', NEWER],
  ['make a temporary table', `create temporary table sneaky (a int)`],
  ['make a function', `create function f() returns int language sql as 'select 1'`],
  [
    'change the function',
    `create or replace function project_revocation(text[], text[], text[], timestamptz, text, bigint) returns void language sql as 'select null::void'`,
  ],
  ['make a schema', 'create schema sneaky'],
  ['empty a table', 'truncate peers'],
  ['drop a table', 'drop table revocations'],
  ['add a column', 'alter table peers add column a int'],
  [
    'add a trigger',
    `create trigger t before insert on peers for each row execute function suppress_redundant_updates_trigger()`,
  ],
  ['become the owner', 'set role certpeer_owner'],
  ['make a role', 'create role sneaky superuser'],
  ['say which migrations ran', `update schema_migrations set name = 'x'`],
  ['read files', `select pg_read_file('/etc/passwd')`],
  ['run programs', `copy peers to program 'true'`],
  ['end other sessions', "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'certpeer_owner'"],
]

for (const { role, db, cases } of [
  { role: 'certpeer_ca', db: () => ca, cases: [...FORBIDDEN_TO_CA, ...FORBIDDEN_TO_BOTH] },
  { role: 'certpeer_server', db: () => server, cases: [...FORBIDDEN_TO_SERVER, ...FORBIDDEN_TO_BOTH] },
]) {
  describe(`${role} may not`, () => {
    for (const [name, sql] of cases) {
      test(name, async () => {
        const before = await contents()
        await assert.rejects(db().raw(sql), (error) => {
          // Roles, schemas and owned objects have no other state for "not yours".
          assert.equal(sqlStateOf(error), INSUFFICIENT_PRIVILEGE, String(error))
          return true
        })
        assert.equal(await contents(), before)
      })
    }
  })
}

test('what one may do is not for one to give away', async () => {
  const before = await dumpSchema(owner)
  for (const db of [ca, server]) {
    // PostgreSQL only warns; what counts is that nobody got anything.
    await db.raw('grant select, delete on revocations to public').catch(() => undefined)
    await db.raw('grant execute on all functions in schema public to public').catch(() => undefined)
  }
  assert.equal(await dumpSchema(owner), before)
})

describe('certpeer_ca may', () => {
  for (const [name, sql] of [
    [
      'project a document',
      `insert into networks (tenant, name, document, document_number) values ('t', 'n', 'newer', 2)
       on conflict (tenant, name) do update set document = excluded.document, document_number = excluded.document_number`,
    ],
    [
      'project a certificate',
      `insert into certificates (serial, issuer_key_id, identity, name, role, der, not_before, not_after, ledger_index)
       values ('0d', 'k', 'spiffe://d', 'laptop', 'device', 'der', now(), now(), 3) on conflict (serial) do nothing`,
    ],
    [
      'project a gateway',
      `insert into gateways (identity, name, networks, serial, certificate, not_after, status)
       values ('spiffe://g', 'g', '{t/n}', '0d', 'der', now(), 'active')
       on conflict (identity) do update set serial = excluded.serial, certificate = excluded.certificate`,
    ],
    ['free a lease', `delete from leases where address = '10.0.0.200'`],
    [
      'publish a CRL',
      `update issuers set crl = 'crl', crl_number = 1732100000000, crl_next_update = now() + '1 day' where key_id = 'k'`,
    ],
    ['move the projection', 'update projection set ledger_size = ledger_size + 1, updated_at = now()'],
    ['revoke through the function', `select project_revocation('{t/n}', '{0f}', '{k}', now(), 'unspecified', 4)`],
    ['notify', `select pg_notify('certpeer_crl', '{}')`],
    ['see which migrations ran', 'select name from schema_migrations'],
  ] as const) {
    test(name, async () => {
      await ca.raw(sql)
    })
  }
})

describe('certpeer_server may', () => {
  for (const [name, sql] of [
    ['lock networks', 'select id from networks order by id for update'],
    ['advance a revision', `update networks set revision = revision + 1 where name = 'n'`],
    ['put a peer', `${PEER} on conflict on constraint peers_one_per_identity do update set serial = excluded.serial`],
    ['take it away', `delete from peers where identity = 'spiffe://evil'`],
    [
      'append a change',
      `insert into peer_changes (network_id, revision, kind, serial) select id, 5, 'remove', '0e' from networks`,
    ],
    ['forget old changes', `delete from peer_changes where created_at < now() - interval '7 days'`],
    [
      'say where a gateway is',
      `update gateways set endpoint = '192.0.2.1:51820', connected_to = 's', last_seen_at = now()`,
    ],
    [
      'acknowledge',
      `insert into gateway_revisions (gateway, network_id, applied_revision) select 'spiffe://g', id, 1 from networks
       on conflict (gateway, network_id) do update set applied_revision = excluded.applied_revision`,
    ],
    [
      'acknowledge a CRL',
      `insert into gateway_crls (gateway, issuer_key_id, number) values ('spiffe://g', 'k', 1732100000000)`,
    ],
    ['notify', `select pg_notify('certpeer_applied', '{}')`],
    ['see which migrations ran', 'select name from schema_migrations'],
  ] as const) {
    test(name, async () => {
      await server.raw(sql)
    })
  }
})
