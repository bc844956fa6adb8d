import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { findCrl } from '../../src/control/db/lookups.ts'
import { openDatabase } from '../../src/platform/db/connection.ts'
import type { Db } from '../../src/platform/db/connection.ts'
import { silentLogger } from '../../src/platform/log.ts'
import { createTestDatabase } from '../support/postgres.ts'
import type { TestDatabase } from '../support/postgres.ts'

let database: TestDatabase
let owner: Db

before(async () => {
  database = await createTestDatabase()
  owner = openDatabase({ url: database.ownerUrl, log: silentLogger(), max: 1 })
})

after(async () => {
  await owner.destroy()
  await database.close()
})

test('a CRL row larger than any of ours is not read', async () => {
  const bytes = (count: number) => `convert_to(repeat('0', ${count}), 'UTF8')`
  await owner.raw(`insert into issuers (key_id, name, role, certificate, crl) values
    ('a', 'a', 'device', '', ${bytes(3)}), ('b', 'b', 'device', '', null), ('c', 'c', 'device', '', ${bytes(128 * 2 ** 20 + 1)})`)
  assert.deepEqual(await findCrl(owner, 'a'), Buffer.from('000'))
  assert.equal(await findCrl(owner, 'b'), undefined)
  assert.equal(await findCrl(owner, 'c'), undefined)
})
