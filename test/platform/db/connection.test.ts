import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { errorCode } from '../../../src/core/errors.ts'
import { isDatabaseReady, openDatabase, queryRows, transaction, type Db } from '../../../src/platform/db/connection.ts'
import { constraintOf, sqlStateOf, toDatabaseError } from '../../../src/platform/db/errors.ts'
import { listen } from '../../../src/platform/db/listen.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { until } from '../../support/http.ts'
import { createTestDatabase, testServer, type TestDatabase } from '../../support/postgres.ts'

const log = silentLogger()
let database: TestDatabase
let db: Db
let admin: Db

before(async () => {
  database = await createTestDatabase()
  db = openDatabase({ url: database.ownerUrl, log, max: 4, name: 'certpeer-test' })
  admin = openDatabase({ url: database.superuserUrl, log, max: 1 })
  await db.raw('create table things (id int primary key, big bigint, at timestamptz, bytes bytea, address inet)')
})

after(async () => {
  await Promise.all([db.destroy(), admin.destroy()])
  await database.close()
})

async function endSessions(name: string): Promise<number> {
  const rows = await queryRows<{ ended: boolean }>(
    admin,
    'select pg_terminate_backend(pid) as ended from pg_stat_activity where application_name = ?',
    [name],
  )
  return rows.length
}

test('types arrive as they should', async () => {
  await db.raw('insert into things values (?, ?, ?, ?, ?)', [
    1,
    '9223372036854775807',
    new Date(1e12),
    Buffer.from([1, 255]),
    '2001:db8::1',
  ])
  const [row] = await queryRows<Record<string, unknown>>(db, 'select * from things where id = ?', [1])
  assert.deepEqual(row, {
    id: 1,
    big: '9223372036854775807',
    at: new Date(1e12),
    bytes: Buffer.from([1, 255]),
    address: '2001:db8::1',
  })
  const [array] = await queryRows<{ n: number }>(
    db,
    'select count(*)::int as n from unnest(?::bytea[], ?::text[]) as u (a, b)',
    [
      [Buffer.from([1]), Buffer.from([2])],
      ['x', 'it\'s "quoted", {braced} \\ and ?'],
    ],
  )
  assert.equal(array?.n, 2)
})

test('a transaction is all or nothing', async () => {
  const failure = new Error('changed my mind')
  await assert.rejects(
    transaction(db, async (trx) => {
      await trx.raw('insert into things (id) values (2)')
      throw failure
    }),
    failure,
  )
  assert.equal((await queryRows(db, 'select 1 from things where id = 2')).length, 0)
  assert.equal(await transaction(db, async (trx) => (await queryRows(trx, 'select 1')).length), 1)
})

test('a session that is killed fails its statement as unavailable, and the pool goes on', async () => {
  const sleeping = assert.rejects(db.raw('select pg_sleep(10)'), { code: 'unavailable' })
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.ok((await endSessions('certpeer-test')) > 0)
  await sleeping
  // The idle ones of the pool learn of their end a moment later than the busy one.
  while (!(await isDatabaseReady(db))) await new Promise((resolve) => setTimeout(resolve, 5))
  const inTransaction = assert.rejects(
    transaction(db, async (trx) => {
      await trx.raw('insert into things (id) values (3)')
      await endSessions('certpeer-test')
      await trx.raw('insert into things (id) values (4)')
    }),
    { code: 'unavailable' },
  )
  await inTransaction
  assert.equal((await queryRows(db, 'select 1 from things where id in (3, 4)')).length, 0)
})

test('faults get a meaning where they have one, and stay what they are where not', async () => {
  const refused = async (sql: string): Promise<unknown> =>
    db.raw(sql).then(
      () => undefined,
      (error: unknown) => error,
    )
  await db.raw(`insert into networks (tenant, name, document, document_number) values ('t', 'n', '', 1)`)
  const peer = (identity: string, key: string): string =>
    `insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
     select id, '${identity}', '0a', decode(repeat('${key}', 32), 'hex'), '', now(), now(), 1 from networks`
  await db.raw(peer('a', '01'))
  for (const { sql, code, constraint, state } of [
    { sql: peer('b', '01'), code: 'key_conflict', constraint: 'peers_one_per_key', state: '23505' },
    { sql: peer('a', '02'), code: 'already_exists', constraint: 'peers_one_per_identity', state: '23505' },
    { sql: 'insert into things (id) values (1)', code: 'internal', constraint: 'things_pkey', state: '23505' },
    { sql: 'select nonsense', code: 'internal', constraint: undefined, state: '42703' },
    { sql: 'select 1/0', code: 'internal', constraint: undefined, state: '22012' },
    {
      sql: `set statement_timeout = 20; select pg_sleep(5)`,
      code: 'unavailable',
      constraint: undefined,
      state: '57014',
    },
  ]) {
    const error = await refused(sql)
    assert.deepEqual([errorCode(error), constraintOf(error), sqlStateOf(error)], [code, constraint, state], sql)
  }
})

test('values never stand in an error', async () => {
  const error = await db.raw('select ?::int', ['s3cret-value']).then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  assert.ok(error instanceof Error)
  // PostgreSQL itself quotes a value it cannot read; the statement that knex adds has only its places.
  assert.match(error.message, /select \$1::int/)
})

test('a deadlock is unavailable for the one that loses', async () => {
  await db.raw('insert into things (id) values (10), (11) on conflict do nothing')
  const both = await Promise.allSettled(
    [
      [10, 11],
      [11, 10],
    ].map((order) =>
      transaction(db, async (trx) => {
        for (const id of order) {
          await trx.raw('update things set big = 1 where id = ?', [id])
          await new Promise((resolve) => setTimeout(resolve, 60))
        }
      }),
    ),
  )
  const lost = both.filter((result) => result.status === 'rejected')
  assert.equal(lost.length, 1)
  assert.equal(errorCode(lost[0]?.reason), 'unavailable')
})

test('driver faults without a code are known by what they are', () => {
  for (const message of ['Connection terminated unexpectedly', 'Connection terminated', 'timeout expired']) {
    assert.equal(errorCode(toDatabaseError(new Error(message))), 'unavailable')
  }
  assert.equal(errorCode(toDatabaseError(new Error('something else'))), 'internal')
  assert.equal(toDatabaseError('text'), 'text')
})

describe('listen', () => {
  interface Heard {
    readonly notified: [string, string][]
    begun: number
    readonly stop: () => void
    readonly first: Promise<void>
  }

  function hear(url: string, onNotify?: () => void): Heard {
    const controller = new AbortController()
    const heard: { notified: [string, string][]; begun: number } = { notified: [], begun: 0 }
    const first = listen({
      url,
      channels: ['certpeer_changes', 'certpeer_crl'],
      log,
      signal: controller.signal,
      onNotify: (channel, payload) => {
        heard.notified.push([channel, payload])
        onNotify?.()
      },
      onReconnect: () => heard.begun++,
      heartbeatMs: 50,
    })
    return Object.assign(heard, { stop: () => controller.abort(), first })
  }

  test('hears what is committed, and nothing that is rolled back', async () => {
    const heard = hear(database.serverUrl)
    await heard.first
    assert.equal(heard.begun, 1)
    await transaction(db, async (trx) => {
      await trx.raw(`select pg_notify('certpeer_changes', 'lost')`)
      throw new Error('rolled back')
    }).catch(() => undefined)
    await db.raw(`select pg_notify('certpeer_changes', '{"network":"t/n","revision":1}')`)
    await db.raw(`select pg_notify('certpeer_crl', '')`)
    await db.raw(`select pg_notify('other', 'x')`)
    await until(() => heard.notified.length === 2)
    assert.deepEqual(heard.notified, [
      ['certpeer_changes', '{"network":"t/n","revision":1}'],
      ['certpeer_crl', ''],
    ])
    heard.stop()
  })

  test('comes back after its backend was terminated, and says so', async () => {
    const heard = hear(database.serverUrl)
    await heard.first
    for (let round = 1; round <= 3; round++) {
      assert.ok((await endSessions('certpeer-listen')) >= 1)
      await until(() => heard.begun === round + 1)
      await db.raw(`select pg_notify('certpeer_changes', '${round}')`)
      await until(() => heard.notified.length === round)
    }
    heard.stop()
  })

  test('a listener that throws does not end the listening', async () => {
    let calls = 0
    const heard = hear(database.serverUrl, () => {
      calls++
      throw new Error('cannot cope')
    })
    await heard.first
    await db.raw(`select pg_notify('certpeer_changes', '1'), pg_notify('certpeer_changes', '2')`)
    await until(() => calls === 2)
    assert.equal(heard.begun, 1)
    heard.stop()
  })

  test('stops when told, also while the database is away', async () => {
    const heard = hear('postgresql://u:p@/x?host=/nonexistent')
    setTimeout(heard.stop, 80)
    await heard.first
    assert.equal(heard.begun, 0)
  })

  test('a channel is a name of ours', () => {
    const options = {
      url: '',
      log,
      signal: AbortSignal.abort(),
      onNotify: () => undefined,
      onReconnect: () => undefined,
    }
    assert.throws(() => listen({ ...options, channels: ['a; drop table peers'] }), TypeError)
  })
})

test('a server that is killed and comes back is used again, by the pool and by the listener', async () => {
  const server = await testServer()
  let begun = 0
  const controller = new AbortController()
  await listen({
    url: database.serverUrl,
    channels: ['certpeer_changes'],
    log,
    signal: controller.signal,
    onNotify: () => undefined,
    onReconnect: () => begun++,
  })
  assert.equal(await isDatabaseReady(db), true)
  await server.kill()
  assert.equal(await isDatabaseReady(db), false)
  await assert.rejects(db.raw('select 1'), { code: 'unavailable' })
  await server.restart()
  await until(() => begun === 2, 15_000)
  assert.equal(await isDatabaseReady(db), true)
  controller.abort()
})
