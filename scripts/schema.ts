/**
 * Writes migrations/schema.sql from what the migrations make on a real PostgreSQL, or with `--check` says whether it is
 * still that. Run after every new migration: `npm run build && node dist/scripts/schema.js`.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import assert from 'node:assert/strict'
import { openDatabase } from '../src/platform/db/connection.ts'
import { dumpSchema } from '../src/platform/db/schema-dump.ts'
import { silentLogger } from '../src/platform/log.ts'
import { packageRoot } from '../src/platform/package-root.ts'
import { createTestDatabase } from '../test/support/postgres.ts'

const file = join(packageRoot(), 'migrations', 'schema.sql')

// As a test, because the test database ends with the run that it belongs to.
test('schema.sql', async () => {
  const database = await createTestDatabase()
  const db = openDatabase({ url: database.ownerUrl, log: silentLogger(), max: 1 })
  try {
    const schema = await dumpSchema(db)
    if (process.argv.includes('--check')) assert.equal(readFileSync(file, 'utf8'), schema)
    else writeFileSync(file, schema)
  } finally {
    await db.destroy()
    await database.close()
  }
})
