/** The database of `up`: an embedded server on a unix socket, or the one that DATABASE_URL names. Roles and schema. */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import {
  adoptOrStop,
  ensureDatabase,
  findPostgresBinaries,
  findRunAs,
  initializeCluster,
  makeSocketDirectory,
  postgresCommand,
  socketUrl,
  SUPERUSER,
  waitUntilReady,
} from '../../platform/db/embedded.ts'
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { migrate } from '../../platform/db/migrate.ts'
import { CA_ROLE, ensureRoles, SERVER_ROLE } from '../../platform/db/roles.ts'
import { makePrivateDirectory, readSecretFile, writeFileAtomic } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import type { StatePaths } from './options.ts'
import type { Supervisor } from './supervisor.ts'

const DATABASE = 'certpeer'
const GIVEN_TIMEOUT_MS = 10_000

/** Starts or finds the database, brings roles and schema up to date, and leaves each process its own URL file. */
export async function startPostgres(
  paths: StatePaths,
  supervisor: Supervisor,
  log: Logger,
  signal: AbortSignal,
): Promise<void> {
  const given = process.env['DATABASE_URL']
  const ownerUrl = given ?? (await startEmbedded(paths, supervisor, signal))
  if (signal.aborted) return
  if (given !== undefined) await waitForGiven(given, signal)
  await migrate({ ownerUrl, log })
  const caPassword = await passwordOf(paths.caDatabaseUrl)
  const serverPassword = await passwordOf(paths.serverDatabaseUrl)
  await ensureRoles(ownerUrl, { caPassword, serverPassword })
  await writeUrl(paths.ca, paths.caDatabaseUrl, roleUrl(ownerUrl, CA_ROLE, caPassword))
  await writeUrl(paths.server, paths.serverDatabaseUrl, roleUrl(ownerUrl, SERVER_ROLE, serverPassword))
}

/** A database of somebody else's: it should be there already, and its log is not ours to point at. */
async function waitForGiven(url: string, signal: AbortSignal): Promise<void> {
  try {
    await waitUntilReady(url, { signal, timeoutMs: GIVEN_TIMEOUT_MS })
  } catch (error) {
    if (errorCode(error) !== 'timeout') throw error
    const { cause } = error as Error
    const why = cause instanceof Error && 'code' in cause ? ` (${String(cause.code)})` : ''
    throw new CertpeerError('unavailable', `the database of DATABASE_URL does not answer${why}; is it running there?`, {
      cause,
    })
  }
}

async function startEmbedded(paths: StatePaths, supervisor: Supervisor, signal: AbortSignal): Promise<string> {
  const binaries = findPostgresBinaries()
  const runAs = await findRunAs()
  const passwordFile = join(paths.postgres, 'superuser-password')
  const dataDir = join(paths.postgres, 'data')
  const socketDir = join(paths.postgres, 'run')
  await makePrivateDirectory(paths.postgres)
  if (!existsSync(passwordFile)) await writeFileAtomic(passwordFile, `${newPassword()}\n`, { mode: 0o600 })
  await adoptOrStop(dataDir)
  await initializeCluster({ binaries, runAs, dataDir, superuserPasswordFile: passwordFile })
  await makeSocketDirectory(socketDir, runAs)
  supervisor.start({
    name: 'postgres',
    ...postgresCommand({ binaries, runAs, dataDir, socketDir }),
    stopSignal: 'SIGINT',
    stopTimeoutMs: 30_000,
  })
  const password = (await readSecretFile(passwordFile, 'the database password')).trim()
  const url = (database: string) => socketUrl({ socketDir, user: SUPERUSER, password, database })
  await waitUntilReady(url('postgres'), { signal })
  if (!signal.aborted) await ensureDatabase(url('postgres'), DATABASE)
  return url(DATABASE)
}

/** The password that the URL file holds, or a new one. */
async function passwordOf(urlFile: string): Promise<string> {
  if (!existsSync(urlFile)) return newPassword()
  const url = (await readSecretFile(urlFile, 'the database URL')).trim()
  const password = /^postgres(?:ql)?:\/\/[^:@/]*:([^@/]+)@/.exec(url)?.[1]
  return password === undefined ? newPassword() : decodeURIComponent(password)
}

function newPassword(): string {
  return randomBytes(24).toString('base64url')
}

/** The owner's URL with another user: host, port, database and parameters stay. */
function roleUrl(ownerUrl: string, role: string, password: string): string {
  return ownerUrl.replace(/^(postgres(?:ql)?:\/\/)(?:[^@/?#]*@)?/, `$1${role}:${encodeURIComponent(password)}@`)
}

async function writeUrl(dir: string, path: string, url: string): Promise<void> {
  await makePrivateDirectory(dir)
  await writeFileAtomic(path, `${url}\n`, { mode: 0o600 })
}
