/**
 * kill -9 of every process at random moments while devices enroll, are provisioned, renew and are revoked. Whatever was
 * acknowledged must hold afterwards, and nobody must have to clean anything up.
 *
 * KILL_LOOP_SEED takes the seed of an earlier run, KILL_LOOP_ROUNDS and KILL_LOOP_SECONDS make it longer.
 */
import assert from 'node:assert/strict'
import { randomBytes, randomInt } from 'node:crypto'
import { mkdirSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, before, test, type TestContext } from 'node:test'
import pg from 'pg'
import { openAuthority } from '../../src/authority/authority.ts'
import { certpeerOids, DEFAULT_PEN } from '../../src/core/x509/oids.ts'
import { parseCertificate, type Certificate } from '../../src/core/x509/certificate.ts'
import { parseCrl, verifyCrl } from '../../src/core/x509/crl.ts'
import { encodeOcspRequest, verifyOcspResponse } from '../../src/core/x509/ocsp.ts'
import { pemToDer } from '../../src/core/x509/pem.ts'
import { ApiClient } from '../../src/platform/api-client/client.ts'
import { readAuthorityConfig } from '../../src/platform/config/authority.ts'
import { socketUrl, SUPERUSER } from '../../src/platform/db/embedded.ts'
import { packageRoot } from '../../src/platform/package-root.ts'
import { sleep } from '../../src/platform/lifecycle.ts'
import { silentLogger } from '../../src/platform/log.ts'
import { cannotRunLab, eventually, Lab } from '../support/lab.ts'
import { seededRandom } from '../support/random.ts'
import type { Acknowledged } from '../support/storm.ts'

const skip = cannotRunLab()
const SEED = Number(process.env['KILL_LOOP_SEED'] ?? randomInt(2 ** 31))
const ROUNDS = Number(process.env['KILL_LOOP_ROUNDS'] ?? 120)
const SECONDS = Number(process.env['KILL_LOOP_SECONDS'] ?? 70)
const CLIENTS = 6
const CHECKPOINTS = 3

/** The supervisor gives a part up at the fifth end within a minute; here each dies less often than that. */
const MAX_KILLS_A_MINUTE = 3
const SUPERVISED = ['ca', 'server', 'front', 'gateway', 'nginx', 'postgres'] as const
type Victim = (typeof SUPERVISED)[number] | 'nginx worker' | 'postgres backend' | 'wireguard-go' | 'up' | 'everything'
/** Shuffled and dealt to the end, so that everyone has a turn; `up` takes seconds to come back and has fewer. */
const DECK: readonly Victim[] = [
  ...SUPERVISED,
  ...SUPERVISED,
  ...([
    'nginx worker',
    'postgres backend',
    'wireguard-go',
    'nginx worker',
    'postgres backend',
    'wireguard-go',
  ] as const),
  'up',
  'everything',
]

interface Device {
  readonly certificates: Extract<Acknowledged, { kind: 'certificate' }>[]
  isPeer: boolean
  /** An operator has asked; it counts as revoked only when that was acknowledged. */
  revoking: boolean
  revoked: boolean
}

let lab: Lab
const random = seededRandom(SEED)
const deck: Victim[] = []
const times = new Map<Victim, number[]>()
const devices = new Map<string, Device>()
const revokedSerials = new Set<string>()
const failures: string[] = []
const kills = new Map<Victim, number>()
const violations: string[] = []
let retries = 0

before(async () => {
  if (skip !== false) return
  lab = await Lab.create()
  await lab.up()
})

after(async () => {
  if (skip === false) await lab[Symbol.asyncDispose]()
})

test(
  'kill -9 of each process loses nothing that was acknowledged',
  { skip, timeout: 600_000 + SECONDS * 2000 },
  async (t) => {
    t.diagnostic(`seed ${SEED}`)
    const startedAt = Date.now()
    const storm = startStorm()
    let rounds = 0
    for (let checkpoint = 1; checkpoint <= CHECKPOINTS; checkpoint++) {
      const share = checkpoint / CHECKPOINTS
      const killing = new AbortController()
      const killer = killAtRandom(killing.signal)
      const watcher = watchPeers(killing.signal)
      do {
        const batch = Math.ceil(ROUNDS / CHECKPOINTS / 2)
        await storm.run(String(batch))
        rounds += batch
      } while (rounds < ROUNDS * share || Date.now() - startedAt < SECONDS * share * 1000)
      killing.abort()
      await Promise.all([killer, watcher])
      assert.deepEqual(failures, [], `rounds that were given up (seed ${SEED})${lab.logs()}`)
      assert.deepEqual(violations, [], `peers that came back (seed ${SEED})${lab.logs()}`)
      await checkService(storm)
    }
    storm.end()
    await lab.down()
    await checkNothingLeft()
    await checkLedger()
    report(t, rounds, Date.now() - startedAt)
  },
)

// The storm of clients

interface Storm {
  run(command: string): Promise<Map<string, string>>
  end(): void
}

function startStorm(): Storm {
  const workDir = join(lab.dir, 'devices')
  mkdirSync(workDir)
  const program = join(packageRoot(), 'dist', 'test', 'support', 'storm.js')
  const args = [program, lab.operatorDir, workDir, String(CLIENTS), String(SEED)]
  const child = lab.start(lab.host, process.execPath, args, {})
  child.stderr?.on('data', (chunk: Buffer) => failures.push(chunk.toString()))
  let answers = new Map<string, string>()
  let done: () => void = () => undefined
  assert.ok(child.stdout)
  createInterface({ input: child.stdout }).on('line', (line) => {
    const fact = JSON.parse(line) as Acknowledged
    if (fact.kind === 'answer') answers.set(fact.device, fact.code)
    else if (fact.kind === 'done') {
      retries = fact.retries
      done()
    } else remember(fact)
  })
  child.once('exit', () => done())
  return {
    async run(command) {
      answers = new Map()
      const finished = new Promise<void>((resolve) => (done = resolve))
      child.stdin?.write(`${command}\n`)
      await finished
      assert.equal(child.exitCode, null, 'the clients go on')
      return answers
    },
    end: () => child.stdin?.end(),
  }
}

function remember(fact: Exclude<Acknowledged, { kind: 'answer' | 'done' }>): void {
  if (fact.kind === 'failed') {
    failures.push(`${fact.device} at ${fact.step}: ${fact.message}`)
    return
  }
  const device = devices.get(fact.device) ?? { certificates: [], isPeer: false, revoking: false, revoked: false }
  devices.set(fact.device, device)
  if (fact.kind === 'certificate') device.certificates.push(fact)
  else if (fact.kind === 'peer') device.isPeer = true
  else if (fact.kind === 'revoking') device.revoking = true
  else {
    device.revoked = true
    for (const { serial } of device.certificates) {
      assert.ok(fact.serials.includes(serial), `the revocation of ${fact.device} covers ${serial}`)
    }
    for (const serial of fact.serials) revokedSerials.add(serial)
  }
}

// The killer

async function killAtRandom(signal: AbortSignal): Promise<void> {
  for (;;) {
    await sleep(300 + 1500 * random(), signal)
    if (signal.aborted) return
    const victim = draw()
    const minute = (times.get(victim) ?? []).filter((at) => Date.now() - at < 61_000)
    const isSupervised = SUPERVISED.some((name) => name === victim)
    if (isSupervised && minute.length >= MAX_KILLS_A_MINUTE) continue
    const pids = findPids(victim)
    if (pids.length === 0) continue
    times.set(victim, [...minute, Date.now()])
    kills.set(victim, (kills.get(victim) ?? 0) + 1)
    if (victim !== 'up' && victim !== 'everything') {
      kill(pids[Math.floor(random() * pids.length)] ?? 0)
      continue
    }
    const before = lab.down('SIGKILL')
    for (const pid of pids) kill(pid)
    await before
    if (random() < 0.5) await sleep(1000 * random(), signal)
    await lab.up()
    // A new supervisor counts anew.
    times.clear()
  }
}

function draw(): Victim {
  if (deck.length === 0) deck.push(...DECK)
  const [victim = 'ca'] = deck.splice(Math.floor(random() * deck.length), 1)
  return victim
}

interface Process {
  readonly pid: number
  readonly parent: number
  readonly command: string
}

/** Pids that a kill of `victim` is for: `up` itself is ended by the lab. */
function findPids(victim: Victim): number[] {
  const all = listProcesses()
  const children = all.filter(({ parent }) => parent === lab.upPid)
  const supervised = (name: string) => {
    const isIt: Readonly<Record<string, RegExp>> = {
      nginx: /^nginx: master|\bnginx\0-p\0/,
      postgres: /\bpostgres\0-D\0/,
    }
    const pattern = isIt[name] ?? new RegExp(`certpeer\\.js\0${name}\0`)
    return children.filter(({ command }) => pattern.test(command)).map(({ pid }) => pid)
  }
  const below = (name: string, pattern: RegExp) => {
    const [parent] = supervised(name)
    return all.filter((one) => one.parent === parent && pattern.test(one.command)).map(({ pid }) => pid)
  }
  if (victim === 'nginx worker') return below('nginx', /^nginx: worker/)
  if (victim === 'postgres backend') return below('postgres', /^postgres: certpeer_/)
  if (victim === 'up') return lab.upPid === undefined ? [] : [lab.upPid]
  const tunnel = all.filter(({ command }) => command === `wireguard-go\0${lab.gatewayInterface}`).map(({ pid }) => pid)
  if (victim === 'wireguard-go') return tunnel
  if (victim === 'everything') {
    const family = new Set([lab.upPid])
    for (const { pid, parent } of all) if (family.has(parent)) family.add(pid)
    return [...family].flatMap((pid) => pid ?? []).concat(random() < 0.5 ? tunnel : [])
  }
  return supervised(victim)
}

/** In order of their pids, so that parents mostly come first. */
function listProcesses(): Process[] {
  const pids = readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))
  return pids
    .map(Number)
    .sort((a, b) => a - b)
    .flatMap((pid) => {
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
        const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
        return [{ pid, parent, command: readFileSync(`/proc/${pid}/cmdline`, 'utf8').replace(/\0$/, '') }]
      } catch {
        return []
      }
    })
}

function kill(pid: number): void {
  try {
    if (pid > 1) process.kill(pid, 'SIGKILL')
  } catch {
    // It has ended meanwhile.
  }
}

// What must hold

/** At every moment: a peer that a gateway has taken off for its revocation is never there again. */
async function watchPeers(signal: AbortSignal): Promise<void> {
  const seen = new Map<string, string>()
  const gone = new Map<string, string>()
  while (!signal.aborted) {
    const revoked = new Set([...devices].filter(([, device]) => device.revoked).map(([name]) => name))
    const peers = await lab.gatewayPeers()
    const at = new Date().toISOString()
    for (const [name, { certificates }] of devices) {
      const isPeer = certificates.some(({ publicKey }) => peers.has(publicKey))
      const before = gone.get(name)
      if (isPeer && before !== undefined)
        violations.push(`${name} seen ${seen.get(name) ?? ''}, gone ${before}, back ${at}`)
      if (isPeer) seen.set(name, at)
      // An empty list may only be a new interface, before its agent has filled it.
      else if (revoked.has(name) && seen.has(name) && peers.size > 0) gone.set(name, before ?? at)
    }
    await sleep(250, signal)
  }
}

/** With nobody killing any more the service comes back by itself and tells what it acknowledged. */
async function checkService(storm: Storm): Promise<void> {
  const context = `(seed ${SEED})${lab.logs()}`
  const serials = [...devices.values()].flatMap(({ certificates }) => certificates)
  await eventually(
    'the lists follow',
    async () => {
      const { code, stdout } = await lab.certpeer(lab.host, ['list', 'certificates', '--json'])
      if (code !== 0) return false
      const listed = new Map(
        (JSON.parse(stdout) as { serial: string; status: string }[]).map(({ serial, status }) => [serial, status]),
      )
      return serials.every(({ serial }) => {
        const status = listed.get(serial)
        return status !== undefined && (revokedSerials.has(serial) ? status === 'revoked' : true)
      })
    },
    60_000,
  )

  await eventually(
    `the gateway carries exactly the live devices ${context}`,
    async () => {
      const wanted = new Map<string, string>()
      for (const { certificates, isPeer, revoked, revoking } of devices.values()) {
        const newest = certificates.at(-1)
        if (isPeer && !revoked && !revoking && newest)
          wanted.set(newest.publicKey, [...newest.allowedIps].sort().join())
      }
      const peers = await lab.gatewayPeers()
      const carried = new Map([...peers].map(([key, prefixes]) => [key, [...prefixes].sort().join()]))
      return carried.size === wanted.size && [...wanted].every(([key, prefixes]) => carried.get(key) === prefixes)
    },
    30_000,
  )
  const peers = await lab.gatewayPeers()
  assertNoneTwice([...peers.values()].flat(), 'wg show')

  let told = new Map<string, string>()
  await eventually(
    'every device is answered',
    async () => {
      told = await storm.run('check')
      return [...told.values()].every(
        (code) => code !== 'unavailable' && code !== 'timeout' && code !== 'revocation_unknown',
      )
    },
    30_000,
  )
  for (const [name, { revoked }] of devices) {
    if (revoked)
      assert.match(told.get(name) ?? '', /^(certificate_revoked|bad_client_certificate)$/, `${name} ${context}`)
    else assert.equal(told.get(name), 'ok', `${name} ${context}`)
  }
  await checkPublished()
  await checkDatabase()
}

/** CRL and OCSP, verified, straight from the authority. */
async function checkPublished(): Promise<void> {
  const pki = new ApiClient({ base: `unix:${join(lab.stateDir, 'run', 'ca-pki.sock')}` })
  const issuer = readIssuer()
  const crl = parseCrl(
    (await pki.request({ method: 'GET', path: '/crl/device-default.crl' })).raw,
    certpeerOids(DEFAULT_PEN),
  )
  verifyCrl(crl, issuer)
  for (const serial of revokedSerials)
    assert.ok(
      [...crl.entries.keys()].some((listed) => listed === serial),
      `the CRL lists ${serial}`,
    )
  for (const { certificates, revoked, revoking } of devices.values()) {
    if (revoking && !revoked) continue
    for (const { certificate: pem, serial } of certificates) {
      const certificate = parseCertificate(pemToDer(pem))
      const nonce = randomBytes(16)
      const body = encodeOcspRequest({ certificate, issuer, nonce })
      const raw = { contentType: 'application/ocsp-request', body }
      const answer = await pki.request({ method: 'POST', path: '/ocsp/device-default', raw })
      const { status } = verifyOcspResponse({ response: answer.raw, certificate, issuer, now: new Date(), nonce })
      assert.equal(status, revoked ? 'revoked' : 'good', `OCSP of ${serial}`)
    }
  }
  pki.close()
}

async function checkDatabase(): Promise<void> {
  const directory = join(lab.stateDir, 'postgres')
  const password = readFileSync(join(directory, 'superuser-password'), 'utf8').trim()
  const url = socketUrl({ socketDir: join(directory, 'run'), user: SUPERUSER, password, database: 'certpeer' })
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    const { rows } = await client.query<{ address: string }>(
      `select host(unnest(addresses)) as address from devices where status = 'active'
       union all select host(unnest(addresses)) from gateways where status = 'active'`,
    )
    assertNoneTwice(
      rows.map(({ address }) => address),
      'the database',
    )
    const poisoned = await client.query<{ serial: string }>(
      'select p.serial from peers p join revocations r on r.serial = p.serial',
    )
    assert.deepEqual(poisoned.rows, [], 'no peer stands on a revoked certificate')
  } finally {
    await client.end()
  }
}

/** The ledger verifies from its first byte, and holds every acknowledgement. */
async function checkLedger(): Promise<void> {
  const dir = join(lab.stateDir, 'ca')
  const { endpoints } = readAuthorityConfig(dir)
  const authority = await openAuthority({
    dir,
    endpoints,
    now: () => new Date(),
    random: randomBytes,
    log: silentLogger(),
  })
  try {
    const { certificates } = authority.state
    for (const { certificates: acknowledged, revoked } of devices.values()) {
      for (const { serial, certificate } of acknowledged) {
        const record = [...certificates.values()].find((one) => one.serial === serial)
        assert.ok(record, `the ledger holds ${serial}`)
        assert.ok(
          record.tbs.equals(parseCertificate(pemToDer(certificate)).tbs),
          `the ledger holds these bytes of ${serial}`,
        )
        assert.equal(record.revoked !== undefined, revoked, `revocation of ${serial}`)
      }
    }
    const holders = new Map<string, string>()
    for (const { addresses, uri, revoked } of certificates.values()) {
      if (revoked) continue
      for (const address of addresses) {
        assert.equal(holders.get(address) ?? uri, uri, `${address} is held once`)
        holders.set(address, uri)
      }
    }
  } finally {
    await authority.close()
  }
}

/** Nothing runs any more, and the interface has gone. */
async function checkNothingLeft(): Promise<void> {
  let left: string[] = []
  await eventually('no process is left', async () => {
    const { stdout } = await lab.run(lab.host, 'sh', ['-c', `ip netns pids ${lab.host} | xargs -r ps -o args= -p`])
    left = stdout.split('\n').filter((line) => /certpeer\.js|^nginx|postgres|wireguard-go/.test(line))
    return left.length === 0
  }).catch((error: unknown) => assert.fail(`${String(error)}: ${left.join(', ')}`))
  const { stdout } = await lab.run(lab.host, 'ip', ['-br', 'link'])
  assert.ok(!stdout.includes(lab.gatewayInterface), 'the interface has gone')
}

function readIssuer(): Certificate {
  return parseCertificate(pemToDer(readFileSync(join(lab.stateDir, 'ca', 'issuers', 'device-default.pem'), 'utf8')))
}

function assertNoneTwice(values: readonly string[], where: string): void {
  const twice = values.filter((value, at) => values.indexOf(value) !== at)
  assert.deepEqual(twice, [], `addresses held twice in ${where}`)
}

function report(t: TestContext, rounds: number, ms: number): void {
  const killed = [...kills].map(([victim, times]) => `${victim} ${times}`).join(', ')
  const total = [...kills.values()].reduce((sum, times) => sum + times, 0)
  const revoked = [...devices.values()].filter((device) => device.revoked).length
  t.diagnostic(
    `${rounds} rounds, ${revoked} revoked, ${retries} retries, ${total} kills (${killed}) in ${Math.round(ms / 1000)} s`,
  )
}
