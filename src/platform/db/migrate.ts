/**
 * Migrations: plain `NNNN_name.sql`, forward only, each in its own transaction. One session-level lock of PostgreSQL
 * keeps two from running at once and ends with its holder, so a killed migration leaves nothing to clean by hand.
 */
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Knex } from 'knex'
import pg from 'pg'
import { CertpeerError } from '../../core/errors.ts'
import type { Logger } from '../log.ts'
import { packageRoot } from '../package-root.ts'
import { openDatabase, queryRows, type Db } from './connection.ts'
import { sqlStateOf, toDatabaseError } from './errors.ts'
import { ensureRoles } from './roles.ts'

export interface MigrateOptions {
  /** `DATABASE_URL`: the owner's. */
  readonly ownerUrl: string
  /** Default: the package's own migrations/. */
  readonly directory?: string
  readonly log: Logger
}

const TABLE = 'schema_migrations'
const FILE_NAME = /^\d{4}_[a-z0-9_]+\.sql$/
/** Any constant of ours: ASCII "certpeer" as a bigint. */
const LOCK_KEY = '7162258777133114738'
const UNDEFINED_TABLE = '42P01'
/** A migration may rewrite a table; it is not a request. */
const STATEMENT_TIMEOUT_MS = 3_600_000

export function migrationsDirectory(): string {
  return join(packageRoot(), 'migrations')
}

/** Brings the schema up to date; returns the names applied now. Throws schema_newer, unavailable, missing_privilege. */
export async function migrate({ ownerUrl, directory, log }: MigrateOptions): Promise<string[]> {
  const names = migrationNames(directory ?? migrationsDirectory())
  await ensureRoles(ownerUrl)
  const lock = new pg.Client({ connectionString: ownerUrl, connectionTimeoutMillis: 5_000, keepAlive: true })
  lock.on('error', () => undefined)
  const db = openDatabase({
    url: ownerUrl,
    log,
    max: 2,
    name: 'certpeer-migrate',
    statementTimeoutMs: STATEMENT_TIMEOUT_MS,
  })
  try {
    await lock.connect()
    await lock.query(`select pg_advisory_lock(${LOCK_KEY})`)
    refuseNewer(names, await appliedMigrations(db))
    const config = { tableName: TABLE, migrationSource: new SqlFiles(directory ?? migrationsDirectory()) }
    // Knex keeps a lock row of its own that outlives a killed process; ours has just been taken, so it is a dead one's.
    await db.migrate.forceFreeMigrationsLock(config)
    const [, applied] = (await db.migrate.latest(config)) as [number, string[]]
    for (const migration of applied) log.info({ migration }, 'migration applied')
    return applied
  } catch (error) {
    throw toDatabaseError(error)
  } finally {
    await db.destroy()
    await lock.end().catch(() => undefined)
  }
}

/**
 * Refuses to work on another schema than this program was written for: schema_newer when the database has migrations
 * that are unknown here, unavailable while it lacks some (they may be on their way).
 */
export async function requireSchema(db: Db, directory = migrationsDirectory()): Promise<void> {
  const names = migrationNames(directory)
  const applied = await appliedMigrations(db)
  refuseNewer(names, applied)
  const missing = names.filter((name) => !applied.includes(name))
  if (missing.length > 0) {
    throw new CertpeerError('unavailable', `the database lacks ${missing.join(', ')}: run certpeer migrate`)
  }
}

async function appliedMigrations(db: Db): Promise<string[]> {
  try {
    const rows = await queryRows<{ name: string }>(db, `select name from ${TABLE} order by id`)
    return rows.map(({ name }) => name)
  } catch (error) {
    if (sqlStateOf(error) === UNDEFINED_TABLE) return []
    throw error
  }
}

function refuseNewer(names: readonly string[], applied: readonly string[]): void {
  const unknown = applied.filter((name) => !names.includes(name))
  if (unknown.length === 0) return
  throw new CertpeerError(
    'schema_newer',
    `the database has ${unknown.join(', ')}, which this version does not know: use the version that brought it`,
  )
}

function migrationNames(directory: string): string[] {
  const files = readdirSync(directory).filter((name) => name.endsWith('.sql') && name !== 'schema.sql')
  const bad = files.find((name) => !FILE_NAME.test(name))
  if (bad !== undefined) throw new TypeError(`a migration is named NNNN_name.sql, not ${bad}`)
  return files.sort()
}

class SqlFiles implements Knex.MigrationSource<string> {
  readonly #directory: string

  constructor(directory: string) {
    this.#directory = directory
  }

  async getMigrations(): Promise<string[]> {
    return migrationNames(this.#directory)
  }

  getMigrationName(name: string): string {
    return name
  }

  async getMigration(name: string): Promise<Knex.Migration> {
    const sql = readFileSync(join(this.#directory, name), 'utf8')
    return {
      // Knex takes every question mark for a value, in comments too.
      up: async (trx) => {
        await trx.raw(sql.replaceAll('?', String.raw`\?`))
      },
      down: () => Promise.reject(new TypeError('migrations go forward only')),
    }
  }
}
