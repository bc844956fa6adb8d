import assert from 'node:assert/strict'
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import pg from 'pg'
import {
  SUPERUSER,
  adoptOrStop,
  ensureDatabase,
  findPostgresBinaries,
  findPostmaster,
  findRunAs,
  initializeCluster,
  numberWithName,
  makeSocketDirectory,
  postgresCommand,
  socketUrl,
  stopPostmaster,
  waitUntilReady,
  type ServerOptions,
} from '../../../src/platform/db/embedded.ts'
import { temporaryDirectory } from '../../support/http.ts'

const directory = temporaryDirectory()
const dataDir = join(directory.path, 'data')
const socketDir = join(directory.path, 'run')
const passwordFile = join(directory.path, 'password')
const password = '0123456789abcdef0123456789abcdef'
const url = socketUrl({ socketDir, user: SUPERUSER, password, database: 'postgres' })
let options: ServerOptions
let running: ChildProcess | undefined

before(async () => {
  const binaries = findPostgresBinaries(process.env['CERTPEER_TEST_POSTGRES'] === 'system' ? 'system' : 'embedded')
  const runAs = await findRunAs()
  writeFileSync(passwordFile, `${password}\n`, { mode: 0o600 })
  options = { binaries, runAs, dataDir, socketDir, settings: { shared_buffers: '16MB', fsync: 'off' } }
  assert.equal(await initializeCluster({ binaries, runAs, dataDir, superuserPasswordFile: passwordFile }), true)
  await makeSocketDirectory(socketDir, runAs)
})

after(async () => {
  await adoptOrStop(dataDir)
  directory.remove()
})

async function start(): Promise<ChildProcess> {
  const { command, args } = postgresCommand(options)
  running = spawn('setpriv', ['--pdeathsig', 'QUIT', '--', command, ...args], { stdio: 'ignore' })
  await waitUntilReady(url, { timeoutMs: 30_000 })
  return running
}

function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve()
  return new Promise((resolve) => child.once('exit', () => resolve()))
}

test('the cluster is made once, closed to others, with its password hashed and asked for', async () => {
  const { binaries, runAs } = options
  assert.equal(await initializeCluster({ binaries, runAs, dataDir, superuserPasswordFile: passwordFile }), false)
  assert.equal(statSync(dataDir).mode & 0o777, 0o700)
  assert.equal(existsSync(`${dataDir}.unfinished`), false)
  assert.equal(existsSync(`${dataDir}.unfinished.password`), false)
  const rules = readFileSync(join(dataDir, 'pg_hba.conf'), 'utf8')
    .split('\n')
    .filter((line) => /^[a-z]/.test(line))
  assert.ok(rules.length > 0)
  for (const rule of rules) assert.match(rule, rule.startsWith('local') ? /scram-sha-256$/ : /reject$/)
})

test('it listens on its socket alone, takes the password, and refuses a wrong one at once', async () => {
  const child = await start()
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  const { rows } = await client.query<{ listen: string; address: string | null }>(
    `select current_setting('listen_addresses') as listen, inet_server_addr()::text as address`,
  )
  assert.deepEqual(rows, [{ listen: '', address: null }])
  await client.end()
  const wrong = socketUrl({ socketDir, user: SUPERUSER, password: 'wrong', database: 'postgres' })
  await assert.rejects(waitUntilReady(wrong), { code: 'config_invalid' })
  await ensureDatabase(url, 'certpeer')
  await ensureDatabase(url, 'certpeer')
  await waitUntilReady(socketUrl({ socketDir, user: SUPERUSER, password, database: 'certpeer' }))
  // The command is the server itself: what a supervisor signals is the postmaster.
  assert.equal(findPostmaster(dataDir)?.pid, child.pid)
})

test('a living server is adopted where it is wanted, and stopped where it is not', async () => {
  const child = running
  assert.ok(child)
  assert.deepEqual(await adoptOrStop(dataDir, { adoptAt: socketDir }), { kind: 'adopted', pid: child.pid })
  assert.deepEqual(await adoptOrStop(dataDir, { adoptAt: directory.path }), { kind: 'stopped' })
  await ended(child)
  assert.equal(findPostmaster(dataDir), undefined)
  assert.deepEqual(await adoptOrStop(dataDir, { adoptAt: socketDir }), { kind: 'absent' })
})

test('after kill -9 of the postmaster a new one starts as soon as adoptOrStop says so', async () => {
  for (let round = 0; round < 3; round++) {
    const child = await start()
    const client = new pg.Client({ connectionString: url })
    client.on('error', () => undefined)
    await client.connect()
    child.kill('SIGKILL')
    await ended(child)
    assert.deepEqual(await adoptOrStop(dataDir), { kind: 'absent' })
  }
  const child = await start()
  await stopPostmaster(dataDir, child.pid ?? 0)
  await ended(child)
})

test('a pid file that names somebody else’s process is no server of ours', async () => {
  const file = join(dataDir, 'postmaster.pid')
  for (const content of [`${process.pid}\n`, '1\n', '0\n', '-1\n', 'x\n', '']) {
    writeFileSync(file, content)
    assert.equal(findPostmaster(dataDir), undefined)
    assert.deepEqual(await adoptOrStop(dataDir), { kind: 'absent' })
    // It would keep the next server from starting.
    assert.equal(existsSync(file), false)
  }
})

test('an initdb that was killed is cleared and made anew', async () => {
  const other = join(directory.path, 'other')
  mkdirSync(`${other}.unfinished`)
  writeFileSync(join(`${other}.unfinished`, 'PG_VERSION'), 'half')
  writeFileSync(`${other}.unfinished.password`, 'old', { mode: 0o600 })
  const { binaries, runAs } = options
  assert.equal(await initializeCluster({ binaries, runAs, dataDir: other, superuserPasswordFile: passwordFile }), true)
  assert.match(readFileSync(join(other, 'PG_VERSION'), 'utf8'), /^\d+\n$/)
})

test('a password file open to others is refused', async () => {
  const loose = join(directory.path, 'loose')
  writeFileSync(loose, `${password}\n`, { mode: 0o644 })
  const { binaries, runAs } = options
  await assert.rejects(
    initializeCluster({ binaries, runAs, dataDir: join(directory.path, 'x'), superuserPasswordFile: loose }),
    { code: 'config_invalid' },
  )
  assert.equal(existsSync(join(directory.path, 'x')), false)
})

test('a socket directory that cannot work is refused before anything starts', () => {
  for (const bad of [`/tmp/${'x'.repeat(100)}`, '/tmp/a,b', '/tmp/a"b']) {
    assert.throws(() => postgresCommand({ ...options, socketDir: bad }), { code: 'config_invalid' })
  }
})

test('waiting for a server that never comes ends', async () => {
  const nowhere = socketUrl({ socketDir: '/nonexistent', user: 'u', password: 'p', database: 'd' })
  await assert.rejects(waitUntilReady(nowhere, { timeoutMs: 100 }), { code: 'timeout' })
  await assert.rejects(waitUntilReady(nowhere, { signal: AbortSignal.abort() }), { code: 'unavailable' })
})

test('a socket directory reached by another name is the same', async () => {
  const child = await start()
  const alias = join(directory.path, 'alias')
  symlinkSync(socketDir, alias)
  assert.deepEqual(await adoptOrStop(dataDir, { adoptAt: alias }), { kind: 'adopted', pid: child.pid })
})

test('root becomes, in its namespace, a number that this machine has a name for', () => {
  const daemon = 'daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin'
  const root = 'root:x:0:0:root:/root:/bin/bash'
  assert.equal(numberWithName(`${root}\n${daemon}\n`), 1)
  assert.throws(() => numberWithName(`${root}\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n`), {
    code: 'missing_privilege',
  })
})
