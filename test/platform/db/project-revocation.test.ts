/** The authority's one way to touch desired state: what it takes away, what it leaves, and who sees what when. */
import assert from 'node:assert/strict'
import { after, before, beforeEach, test } from 'node:test'
import { openDatabase, queryRows, transaction, type Db } from '../../../src/platform/db/connection.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { createTestDatabase, type TestDatabase } from '../../support/postgres.ts'

let database: TestDatabase
let owner: Db
let ca: Db
let server: Db

before(async () => {
  database = await createTestDatabase()
  const open = (url: string): Db => openDatabase({ url, log: silentLogger(), max: 4 })
  owner = open(database.ownerUrl)
  ca = open(database.caUrl)
  server = open(database.serverUrl)
  await owner.raw(`
    insert into networks (tenant, name, document, document_number) values ('t', 'one', '', 1), ('t', 'two', '', 1);
    insert into issuers (key_id, name, role, certificate) values ('k', 'device-t', 'device', '')`)
})

beforeEach(async () => {
  await owner.raw(`
    truncate peers, peer_changes, revocations, certificates;
    update networks set revision = 10;
    insert into certificates (serial, issuer_key_id, identity, name, role, der, not_before, not_after, ledger_index)
      select s, 'k', 'id-' || s, 'laptop', 'device', '', now(), now() + '1 day', 1 from unnest('{0a,0b,0c}'::text[]) s`)
  await putPeer('one', '0a')
  await putPeer('one', '0b')
  await putPeer('two', '0c')
})

after(async () => {
  await Promise.all([owner, ca, server].map((db) => db.destroy()))
  await database.close()
})

async function putPeer(network: string, serial: string, db = owner): Promise<void> {
  await db.raw(
    `insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
       select id, 'id-' || ?, ?, decode(repeat(?, 32), 'hex'), '', now(), now() + '1 day', revision from networks where name = ?`,
    [serial, serial, serial, network],
  )
}

async function revoke(serials: readonly string[], networks: readonly string[], db = ca): Promise<void> {
  await queryRows(db, 'select project_revocation(?, ?, ?, now(), ?, 7)', [
    networks.map((name) => `t/${name}`),
    serials,
    serials.map(() => 'k'),
    'keyCompromise',
  ])
}

interface State {
  readonly peers: string
  readonly revoked: string
  readonly changes: string
  readonly revisions: string
}

async function state(): Promise<State> {
  const [row] = await queryRows<State>(
    owner,
    `select (select coalesce(string_agg(serial, ',' order by serial), '') from peers) as peers,
       (select coalesce(string_agg(serial, ',' order by serial), '') from revocations) as revoked,
       (select coalesce(string_agg(n.name || ':' || c.revision || ':' || c.kind || ':' || c.serial, ',' order by n.name, c.revision), '')
          from peer_changes c join networks n on n.id = c.network_id) as changes,
       (select string_agg(name || ':' || revision, ',' order by name) from networks) as revisions`,
  )
  assert.ok(row)
  return row
}

test('takes the peer away, appends the change with the next revision, marks the certificate', async () => {
  await revoke(['0a'], ['one'])
  assert.deepEqual(await state(), {
    peers: '0b,0c',
    revoked: '0a',
    changes: 'one:11:remove:0a',
    revisions: 'one:11,two:10',
  })
  const rows = await queryRows<{ serial: string; status: string; reason: string | null }>(
    owner,
    'select serial, status, revocation_reason as reason from certificates order by serial',
  )
  assert.deepEqual(
    rows.map(({ serial, status, reason }) => [serial, status, reason]),
    [
      ['0a', 'revoked', 'keyCompromise'],
      ['0b', 'good', null],
      ['0c', 'good', null],
    ],
  )
})

test('several at once, over several networks: each its own revision, without a gap', async () => {
  await revoke(['0a', '0b', '0c'], ['one', 'two'])
  assert.deepEqual(await state(), {
    peers: '',
    revoked: '0a,0b,0c',
    changes: 'one:11:remove:0a,one:12:remove:0b,two:11:remove:0c',
    revisions: 'one:12,two:11',
  })
})

test('again: nothing more happens, and the first record stays', async () => {
  await revoke(['0a'], ['one'])
  const first = await state()
  const [before] = await queryRows<{ at: Date }>(owner, 'select revoked_at as at from revocations')
  await revoke(['0a'], ['one'])
  assert.deepEqual(await state(), first)
  const [now] = await queryRows<{ at: Date }>(owner, 'select revoked_at as at from revocations')
  assert.deepEqual(now, before)
})

test('a certificate that has no row and no peer is revoked all the same', async () => {
  await revoke(['0f'], ['one'])
  assert.deepEqual(await state(), { peers: '0a,0b,0c', revoked: '0f', changes: '', revisions: 'one:10,two:10' })
})

test('a peer in a network that was not named goes too', async () => {
  await revoke(['0c'], [])
  assert.equal((await state()).changes, 'two:11:remove:0c')
})

test('an identity that has a newer certificate by now keeps its peer', async () => {
  await owner.raw(`update peers set serial = '0d' where serial = '0a'`)
  await revoke(['0a'], ['one'])
  assert.equal((await state()).peers, '0b,0c,0d')
})

test('a provision under way commits first and its peer is taken, or comes later and sees the revocation', async () => {
  for (const first of ['provision', 'revocation'] as const) {
    await owner.raw(`truncate peers, peer_changes, revocations`)
    let locked: () => void = () => undefined
    const holds = new Promise<void>((resolve) => {
      locked = resolve
    })
    const provision = (wait: Promise<void> | undefined, pauseMs: number): Promise<'put' | 'revoked'> =>
      transaction(server, async (trx) => {
        await wait
        await trx.raw(`select id from networks where name = 'one' order by id for update`)
        locked()
        await new Promise((resolve) => setTimeout(resolve, pauseMs))
        const revoked = await queryRows(trx, `select 1 from revocations where serial = '0a'`)
        if (revoked.length > 0) return 'revoked'
        await putPeer('one', '0a', trx)
        return 'put'
      })
    const revocation = (wait: Promise<void> | undefined, pauseMs: number): Promise<void> =>
      transaction(ca, async (trx) => {
        await wait
        await revoke(['0a'], ['one'], trx)
        locked()
        await new Promise((resolve) => setTimeout(resolve, pauseMs))
      })
    const [outcome] =
      first === 'provision'
        ? await Promise.all([provision(undefined, 80), revocation(holds, 0)])
        : await Promise.all([provision(holds, 0), revocation(undefined, 80)])
    assert.equal(outcome, first === 'provision' ? 'put' : 'revoked')
    const { peers, revoked } = await state()
    assert.deepEqual([peers, revoked], ['', '0a'], first)
  }
})

test('tables of the caller’s own cannot stand in for the real ones', async () => {
  // The owner may make temporary tables; for the role of the authority that is refused (grants.test.ts).
  await transaction(owner, async (trx) => {
    await trx.raw('create temporary table revocations (like public.revocations) on commit drop')
    await trx.raw('create temporary table peers (like public.peers) on commit drop')
    await revoke(['0a'], ['one'], trx)
  })
  assert.equal((await state()).peers, '0b,0c')
  assert.equal((await state()).revoked, '0a')
})

test('many revocations and provisions at once: every revision once, none skipped, no peer of a revoked certificate', async () => {
  await owner.raw('truncate peers, peer_changes, revocations; update networks set revision = 0')
  const serials = Array.from({ length: 24 }, (_, index) => (16 + index).toString(16))
  const provision = (serial: string): Promise<void> =>
    transaction(server, async (trx) => {
      await trx.raw(`select id from networks where name = 'one' order by id for update`)
      if ((await queryRows(trx, 'select 1 from revocations where serial = ?', [serial])).length > 0) return
      await trx.raw(`update networks set revision = revision + 1 where name = 'one'`)
      await putPeer('one', serial, trx)
      await trx.raw(
        `insert into peer_changes (network_id, revision, kind, serial, certificate)
           select id, revision, 'set', ?, '' from networks where name = 'one'`,
        [serial],
      )
    })
  await Promise.all(serials.flatMap((serial) => [provision(serial), revoke([serial], ['one'])]))
  const [row] = await queryRows<{ changes: string; highest: string; current: string; wrong: string }>(
    owner,
    `select count(*) as changes, coalesce(max(c.revision), 0) as highest,
       (select revision from networks where name = 'one') as current,
       (select count(*) from peers p join revocations r using (serial)) as wrong
     from peer_changes c`,
  )
  assert.ok(row)
  assert.deepEqual([row.changes, row.highest, row.wrong], [row.current, row.current, '0'])
  assert.equal((await state()).peers, '')
})
