/**
 * The pool. bigint and numeric arrive as strings, timestamptz as Date, bytea as Buffer, inet and cidr as strings.
 * Statements are raw SQL with `?` for values; a literal question mark is written `\?`.
 */
import { createRequire } from 'node:module'
import knex, { type Knex } from 'knex'
import type { Logger } from '../log.ts'
import { toDatabaseError } from './errors.ts'

/** A pool or a transaction of it. */
export type Db = Knex

export interface DatabaseOptions {
  /** `postgresql://USER:PASSWORD@HOST:PORT/NAME`, or with a unix socket `postgresql://USER:PASSWORD@/NAME?host=/DIR`. */
  readonly url: string
  readonly log: Logger
  /** Connections at most. */
  readonly max?: number
  /** Connections that stay open while nobody asks; default none. Those that died meanwhile are replaced. */
  readonly min?: number
  /** Shown in pg_stat_activity. */
  readonly name?: string
  /** For one statement; default 30 s, which is long past what any caller waits. */
  readonly statementTimeoutMs?: number
}

const CONNECT_TIMEOUT_MS = 5_000
const STATEMENT_TIMEOUT_MS = 30_000
const LOCK_TIMEOUT_MS = 10_000
const IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000

/** Knex finds a dialect's class by name only; a subclass of it needs the class. */
const PostgresClient = createRequire(import.meta.url)('knex/lib/dialects/postgres/index.js') as typeof Knex.Client

/** Every statement of every pool and transaction passes here, so its faults get their meaning in one place. */
class CertpeerClient extends PostgresClient {
  override async acquireConnection(): Promise<unknown> {
    try {
      return (await super.acquireConnection()) as unknown
    } catch (error) {
      throw toDatabaseError(error)
    }
  }

  override async query(connection: unknown, statement: unknown): Promise<unknown> {
    try {
      return await (super.query(connection, statement) as Promise<unknown>)
    } catch (error) {
      throw toDatabaseError(error)
    }
  }
}

/** Makes the pool; connects when first asked to. Close it with `destroy()`. */
export function openDatabase(options: DatabaseOptions): Db {
  const { log } = options
  return knex({
    client: CertpeerClient,
    connection: {
      connectionString: options.url,
      application_name: options.name ?? 'certpeer',
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      ...serverLimits(options.statementTimeoutMs ?? STATEMENT_TIMEOUT_MS),
      keepAlive: true,
    },
    pool: { min: options.min ?? 0, max: options.max ?? 10 },
    acquireConnectionTimeout: CONNECT_TIMEOUT_MS,
    // Bindings are certificates and, for roles, password verifiers: they stay out of error texts.
    compileSqlOnError: false,
    asyncStackTraces: false,
    log: {
      // Said again by whoever handles the error.
      warn: (message: unknown) => log.debug({ said: String(message) }, 'database driver warns'),
      error: (message: unknown) => log.debug({ said: String(message) }, 'database driver fails'),
      deprecate: () => undefined,
      debug: () => undefined,
    },
  })
}

function serverLimits(statementTimeoutMs: number): Record<string, number> {
  return {
    statement_timeout: statementTimeoutMs,
    // The server's own limit comes first; this one is for a server that no longer answers at all.
    query_timeout: statementTimeoutMs + CONNECT_TIMEOUT_MS,
    lock_timeout: LOCK_TIMEOUT_MS,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_TIMEOUT_MS,
  }
}

/**
 * Runs `work` in one transaction and commits when it resolves. A commit whose answer is lost throws unavailable and may
 * have happened: what runs here must be safe to do again.
 */
export function transaction<T>(db: Db, work: (trx: Db) => Promise<T>): Promise<T> {
  return db.transaction((trx) => work(trx))
}

/** Rows of one statement. The row type is a claim about the SQL beside it. */
export async function queryRows<Row>(db: Db, sql: string, bindings: readonly unknown[] = []): Promise<Row[]> {
  const { rows } = await db.raw<{ rows: Row[] }>(sql, bindings as Knex.RawBinding[])
  return rows
}

/** False when the database cannot be asked, for readiness probes. */
export async function isDatabaseReady(db: Db): Promise<boolean> {
  try {
    await db.raw('select 1')
    return true
  } catch {
    return false
  }
}
