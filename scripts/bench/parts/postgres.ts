/** A PostgreSQL as `certpeer up` starts it: its own settings, so every commit is on the disk before it is answered. */
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import pg from 'pg'
import {
  SUPERUSER,
  ensureDatabase,
  findPostgresBinaries,
  findRunAs,
  initializeCluster,
  makeSocketDirectory,
  postgresCommand,
  socketUrl,
  waitUntilReady,
} from '../../../src/platform/db/embedded.ts'
import { migrate } from '../../../src/platform/db/migrate.ts'
import { CA_ROLE, SERVER_ROLE, ensureRoles } from '../../../src/platform/db/roles.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import type { Children } from './processes.ts'

export interface BenchDatabase {
  /** The migrated database of certpeer. */
  readonly ownerUrl: string
  readonly caUrl: string
  readonly serverUrl: string
  /** An empty database on the same server. */
  readonly rivalUrl: string
  /** Version and the settings that decide whether a commit is durable. */
  readonly description: string
}

export async function startPostgres(dir: string, children: Children): Promise<BenchDatabase> {
  const binaries = findPostgresBinaries()
  const runAs = await findRunAs()
  const passwords = [SUPERUSER, CA_ROLE, SERVER_ROLE].map(() => randomBytes(16).toString('hex'))
  const [superuserPassword = '', caPassword = '', serverPassword = ''] = passwords
  const superuserPasswordFile = join(dir, 'password')
  writeFileSync(superuserPasswordFile, `${superuserPassword}\n`, { mode: 0o600 })
  const dataDir = join(dir, 'data')
  const socketDir = join(dir, 'run')
  await initializeCluster({ binaries, runAs, dataDir, superuserPasswordFile })
  await makeSocketDirectory(socketDir, runAs)
  const command = postgresCommand({ binaries, runAs, dataDir, socketDir })
  children.start({ name: 'postgres', ...command, logDir: dir, stopSignal: 'SIGINT' })
  const url = (user: string, password: string, database: string) => socketUrl({ socketDir, user, password, database })
  const superuserUrl = url(SUPERUSER, superuserPassword, 'postgres')
  await waitUntilReady(superuserUrl)
  await ensureDatabase(superuserUrl, 'certpeer')
  await ensureDatabase(superuserUrl, 'rival')
  const ownerUrl = url(SUPERUSER, superuserPassword, 'certpeer')
  await ensureRoles(ownerUrl, { caPassword, serverPassword })
  await migrate({ ownerUrl, log: silentLogger() })
  return {
    ownerUrl,
    caUrl: url(CA_ROLE, caPassword, 'certpeer'),
    serverUrl: url(SERVER_ROLE, serverPassword, 'certpeer'),
    rivalUrl: url(SUPERUSER, superuserPassword, 'rival'),
    description: await describe(superuserUrl),
  }
}

async function describe(url: string): Promise<string> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    const settings = ['server_version', 'fsync', 'synchronous_commit', 'full_page_writes']
    const values: string[] = []
    for (const name of settings) {
      const { rows } = await client.query<{ value: string }>('select current_setting($1) as value', [name])
      values.push(`${name.replace('server_version', 'PostgreSQL')} ${rows[0]?.value ?? '?'}`)
    }
    return values.join(', ')
  } finally {
    await client.end()
  }
}
