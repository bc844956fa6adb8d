/**
 * A real PostgreSQL for tests: one server per test file, started when first asked for, and a database per test cloned
 * from a migrated template. Debian's server where it is installed, else the embedded one; CERTPEER_TEST_POSTGRES says
 * `system` or `embedded`. It ends with the file, also when that is killed.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after } from 'node:test'
import pg from 'pg'
import {
  SUPERUSER,
  adoptOrStop,
  findPostgresBinaries,
  findRunAs,
  initializeCluster,
  makeSocketDirectory,
  postgresCommand,
  socketUrl,
  waitUntilReady,
} from '../../src/platform/db/embedded.ts'
import { migrate } from '../../src/platform/db/migrate.ts'
import { CA_ROLE, SERVER_ROLE, ensureRoles } from '../../src/platform/db/roles.ts'
import { silentLogger } from '../../src/platform/log.ts'

export interface TestDatabase {
  readonly name: string
  /** Owns the database and may make roles; no superuser. */
  readonly ownerUrl: string
  readonly caUrl: string
  readonly serverUrl: string
  /** For what only an operator of the server may do: ending other sessions. */
  readonly superuserUrl: string
  /** Drops the database; whoever is still connected is cut off. */
  close(): Promise<void>
}

export interface TestServer {
  readonly pid: number
  url(user: string, database: string): string
  /** SIGKILL to the postmaster, as a crash would, until the last backend has gone; `restart` brings it back. */
  kill(): Promise<void>
  /** Clean stop. */
  stop(): Promise<void>
  restart(): Promise<void>
}

const OWNER = 'certpeer_owner'
const TEMPLATE = 'certpeer_template'

let server: Promise<Server> | undefined
let databases = 0

after(async () => {
  const running = await server?.catch(() => undefined)
  await running?.close()
})

/** A fresh database with all migrations applied (or without, for tests of the migrations themselves). */
export async function createTestDatabase(options: { migrated?: boolean } = {}): Promise<TestDatabase> {
  const running = await startServer()
  const name = `t${++databases}`
  const template = options.migrated === false ? 'template1' : TEMPLATE
  await running.asSuperuser(`create database ${name} owner ${OWNER} template ${template}`)
  const ownerUrl = running.url(OWNER, name)
  // Who may connect is a property of the database, which a clone does not inherit.
  await ensureRoles(ownerUrl)
  return {
    name,
    ownerUrl,
    caUrl: running.url(CA_ROLE, name),
    serverUrl: running.url(SERVER_ROLE, name),
    superuserUrl: running.url(SUPERUSER, name),
    // A file's own hooks may run after the one that stops the server.
    close: async () => {
      if (running.isRunning) await running.asSuperuser(`drop database if exists ${name} with (force)`)
    },
  }
}

/** The server under the databases, for tests that take it away. */
export async function testServer(): Promise<TestServer> {
  return startServer()
}

function startServer(): Promise<Server> {
  server ??= Server.start()
  return server
}

class Server implements TestServer {
  readonly #dir: string
  readonly #passwords: ReadonlyMap<string, string>
  readonly #command: { command: string; args: string[] }
  #child: ChildProcess | undefined

  private constructor(
    dir: string,
    passwords: ReadonlyMap<string, string>,
    command: { command: string; args: string[] },
  ) {
    this.#dir = dir
    this.#passwords = passwords
    this.#command = command
  }

  get isRunning(): boolean {
    return this.#child !== undefined
  }

  get pid(): number {
    const pid = this.#child?.pid
    if (pid === undefined) throw new TypeError('the test server is not running')
    return pid
  }

  static async start(): Promise<Server> {
    const wanted = process.env['CERTPEER_TEST_POSTGRES'] === 'embedded' ? 'embedded' : 'system'
    const binaries = findPostgresBinaries(wanted)
    const runAs = await findRunAs()
    const dir = mkdtempSync(join(tmpdir(), 'certpeer-pg-'))
    process.once('exit', () => rmSync(dir, { recursive: true, force: true }))
    const passwords = new Map(
      [SUPERUSER, OWNER, CA_ROLE, SERVER_ROLE].map((user) => [user, randomBytes(16).toString('hex')]),
    )
    const superuserPasswordFile = join(dir, 'password')
    writeFileSync(superuserPasswordFile, `${passwords.get(SUPERUSER) ?? ''}\n`, { mode: 0o600 })
    const dataDir = join(dir, 'data')
    const socketDir = join(dir, 'run')
    await initializeCluster({ binaries, runAs, dataDir, superuserPasswordFile })
    await makeSocketDirectory(socketDir, runAs)
    // Nothing here has to outlive a power cut.
    const settings = { fsync: 'off', full_page_writes: 'off', synchronous_commit: 'off', shared_buffers: '32MB' }
    const started = new Server(dir, passwords, postgresCommand({ binaries, runAs, dataDir, socketDir, settings }))
    process.once('exit', () => started.#abandon())
    await started.restart()
    await started.#makeTemplate()
    return started
  }

  async restart(): Promise<void> {
    const log = openSync(join(this.#dir, 'log'), 'a', 0o600)
    const { command, args } = this.#command
    // The kernel ends it when this process is killed and can no longer do it.
    const child = spawn('setpriv', ['--pdeathsig', 'QUIT', '--', command, ...args], { stdio: ['ignore', log, log] })
    closeSync(log)
    this.#child = child
    const failed = new Promise<never>((_, reject) => {
      child.once('error', reject)
      child.once('exit', () => reject(new Error(`PostgreSQL ended: ${readFileSync(join(this.#dir, 'log'), 'utf8')}`)))
    })
    failed.catch(() => undefined)
    await Promise.race([waitUntilReady(this.url(SUPERUSER, 'postgres')), failed])
  }

  stop(): Promise<void> {
    return this.#end('SIGINT')
  }

  async kill(): Promise<void> {
    await this.#end('SIGKILL')
    // A backend answers until it has noticed that its postmaster is gone.
    await adoptOrStop(join(this.#dir, 'data'))
  }

  async close(): Promise<void> {
    await this.#end('SIGQUIT')
    rmSync(this.#dir, { recursive: true, force: true })
  }

  url(user: string, database: string): string {
    const password = this.#passwords.get(user)
    if (password === undefined) throw new TypeError(`no such user: ${user}`)
    return socketUrl({ socketDir: join(this.#dir, 'run'), user, password, database })
  }

  async asSuperuser(sql: string): Promise<void> {
    const client = new pg.Client({ connectionString: this.url(SUPERUSER, 'postgres') })
    await client.connect()
    try {
      await client.query(sql)
    } finally {
      await client.end()
    }
  }

  async #makeTemplate(): Promise<void> {
    await this.asSuperuser(`create role ${OWNER} login createrole password '${this.#passwords.get(OWNER) ?? ''}'`)
    await this.asSuperuser(`create database ${TEMPLATE} owner ${OWNER}`)
    const ownerUrl = this.url(OWNER, TEMPLATE)
    await ensureRoles(ownerUrl, {
      caPassword: this.#passwords.get(CA_ROLE) ?? '',
      serverPassword: this.#passwords.get(SERVER_ROLE) ?? '',
    })
    await migrate({ ownerUrl, log: silentLogger() })
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    const child = this.#child
    this.#child = undefined
    if (child?.exitCode !== null || child.signalCode !== null) return
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.kill(signal)
    await ended
  }

  /** The process is ending without its hooks: no time to be polite. */
  #abandon(): void {
    this.#child?.kill('SIGQUIT')
  }
}
