/**
 * Provisioning, measured end to end: load generator → nginx (TLS 1.3, client certificates, keep-alive) → program →
 * PostgreSQL, each answer after its durable commit. certpeer and a plain rival take turns in one run, so that whatever
 * else the machine does befalls both; figures are medians of the rounds.
 */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import pg from 'pg'
import { ApiClient } from '../../src/platform/api-client/client.ts'
import { OIDS, TRUST_DOMAIN } from '../../test/support/certificates.ts'
import { describeMachine, load, median, ms, spreadPercent, table } from './parts/figures.ts'
import { LoadGenerator } from './parts/load-client.ts'
import type { RunResult } from './parts/load-messages.ts'
import { startNginx } from './parts/nginx.ts'
import { makePki, type BenchPki, type Credential } from './parts/pki.ts'
import { startPostgres, type BenchDatabase } from './parts/postgres.ts'
import { Children, nodeProgram, until } from './parts/processes.ts'
import type { RivalConfig } from './rivals/plain-provision.ts'

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '3' },
    connections: { type: 'string', default: '256' },
    'in-flight': { type: 'string', default: '64,1' },
    profile: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})
if (options.help) {
  console.log(`Usage: scripts/bench/provision [options]
  --rounds N        rounds of each side, after one that does not count (5)
  --seconds S       length of a round (3)
  --connections N   kept-alive connections, each with its own device certificate (256)
  --in-flight LIST  requests under way at once, one table row each (64,1)
  --profile DIR     write a CPU profile of each program to DIR`)
  process.exit(0)
}
const rounds = Number(options.rounds)
const durationMs = Number(options.seconds) * 1000
const connectionCount = Number(options.connections)
const levels = options['in-flight'].split(',').map(Number)

interface Side {
  readonly name: string
  readonly port: number
  /** Connects to where its rows are. */
  readonly databaseUrl: string
}

const dir = mkdtempSync(join(tmpdir(), 'cpbench-'))
async function main(): Promise<void> {
  await using children = new Children()
  const say = (line: string) => process.stderr.write(`${line}\n`)
  say('making a PKI, starting PostgreSQL')
  const pki = makePki()
  mkdirSync(join(dir, 'pg'), { mode: 0o700 })
  const database = await startPostgres(join(dir, 'pg'), children)
  await pki.project(database.caUrl)
  const closePublisher = await pki.publish(join(dir, 'pki.sock'))
  try {
    const sides = [await startOurs(pki, database, children), await startRival(pki, database, children)] as const
    using generator = new LoadGenerator()
    console.log(`${describeMachine()}\n${database.description}`)
    const before = load()
    console.log(`load average before: ${before.toFixed(2)}\n`)
    for (const inFlight of levels) await compare(sides, { pki, generator, inFlight, say })
    console.log(`load average after: ${load().toFixed(2)} (the benchmark itself included)`)
  } catch (error) {
    say(children.lastWords())
    throw error
  } finally {
    await closePublisher()
  }
}

/** The program that users run, configured as `certpeer up` configures it. */
async function startOurs(pki: BenchPki, database: BenchDatabase, children: Children): Promise<Side> {
  const name = 'certpeer'
  const side = join(dir, name)
  const runDir = join(side, 'run')
  mkdirSync(runDir, { recursive: true, mode: 0o700 })
  const frontSecret = randomBytes(32).toString('hex')
  writeFileSync(join(side, 'front-secret'), `${frontSecret}\n`, { mode: 0o600 })
  writeFileSync(join(side, 'database-url'), `${database.serverUrl}\n`, { mode: 0o600 })
  writeFileSync(join(side, 'root.pem'), pki.rootPem)
  const config = {
    runDir,
    frontSecretFile: 'front-secret',
    databaseUrlFile: 'database-url',
    rootCertificate: 'root.pem',
    trustDomain: TRUST_DOMAIN,
    pen: OIDS.pen,
    pkiSource: `unix:${join(dir, 'pki.sock')}`,
    serverName: 'bench',
  }
  writeFileSync(join(side, 'config.json'), JSON.stringify(config))
  const program = nodeProgram('src/bin/certpeer.js', ['server', '--dir', side], options.profile)
  children.start({ name, ...program, logDir: side })
  const probe = new ApiClient({ base: `unix:${join(runDir, 'server-api.sock')}` })
  await until('the server is ready', () =>
    probe.get('/readyz').then(
      () => true,
      () => false,
    ),
  )
  probe.close()
  const port = await startNginx({ name: `nginx-${name}`, dir, runDir, pki, frontSecret, children })
  return { name, port, databaseUrl: database.ownerUrl }
}

async function startRival(pki: BenchPki, database: BenchDatabase, children: Children): Promise<Side> {
  const name = 'plain'
  const side = join(dir, name)
  mkdirSync(side, { mode: 0o700 })
  const frontSecret = randomBytes(32).toString('hex')
  const config: RivalConfig = {
    socketPath: join(side, 'server-api.sock'),
    databaseUrl: database.rivalUrl,
    issuerPem: pki.deviceCaPem,
    roleOid: OIDS.roles.device,
    frontSecret,
  }
  writeFileSync(join(side, 'config.json'), JSON.stringify(config), { mode: 0o600 })
  const program = nodeProgram('scripts/bench/rivals/plain-provision.js', [join(side, 'config.json')], options.profile)
  // As it would be run: express and its dependencies look at it.
  children.start({ name, ...program, env: { ...process.env, NODE_ENV: 'production' }, logDir: side })
  const port = await startNginx({ name: `nginx-${name}`, dir, runDir: side, pki, frontSecret, children })
  await until('the plain version listens', () => existsSync(config.socketPath))
  return { name, port, databaseUrl: database.rivalUrl }
}

interface Comparison {
  readonly pki: BenchPki
  readonly generator: LoadGenerator
  readonly inFlight: number
  readonly say: (line: string) => void
}

let nextDevice = 0

async function compare(sides: readonly [Side, Side], comparison: Comparison): Promise<void> {
  const { pki, inFlight, say } = comparison
  const results = new Map<Side, RunResult[]>(sides.map((side) => [side, []]))
  for (let round = 0; round <= rounds; round += 1) {
    // New devices each round, because the service limits how often one device asks; the same ones for both sides.
    const devices = Array.from({ length: connectionCount }, () => pki.makeDevice(nextDevice++))
    for (const side of round % 2 === 0 ? sides : [...sides].reverse()) {
      const result = await runRound(side, devices, comparison)
      const rate = requestsPerSecond(result).toFixed(0)
      const generatorLoad = ((100 * result.cpuMs) / result.elapsedMs).toFixed(0)
      say(
        `${inFlight} in flight, ${round === 0 ? 'warm-up' : `round ${round}`}, ${side.name}: ${rate}/s, ` +
          `p50 ${ms(result.p50Ms)} ms, p99 ${ms(result.p99Ms)} ms (load generator ${generatorLoad} % of a core)`,
      )
      if (round > 0) results.get(side)?.push(result)
    }
  }
  report(sides, results, inFlight)
}

async function runRound(side: Side, devices: readonly Credential[], comparison: Comparison): Promise<RunResult> {
  const { pki, generator, inFlight } = comparison
  const before = await countRows(side)
  await generator.open(side.port, pki.rootPem, devices)
  const result = await generator.run(inFlight, durationMs)
  await generator.close()
  const after = await countRows(side)
  requireEqual(`${side.name}: revisions for answered requests`, after.revision - before.revision, result.requests)
  requireEqual(`${side.name}: changes recorded`, after.changes, after.revision)
  requireEqual(`${side.name}: last change`, after.lastChange, after.revision)
  requireEqual(`${side.name}: peers`, after.peers - before.peers, result.put)
  return result
}

interface Rows {
  readonly revision: number
  readonly changes: number
  readonly lastChange: number
  readonly peers: number
}

/** Both schemas name these tables alike. A change has a unique revision, so as many as the last one is no gap. */
async function countRows({ databaseUrl }: Side): Promise<Rows> {
  const client = new pg.Client({ connectionString: databaseUrl })
  await client.connect()
  try {
    const { rows } = await client.query<Record<keyof Rows, string>>(
      `select (select revision from networks) as revision, (select count(*) from peer_changes) as changes,
        (select coalesce(max(revision), 0) from peer_changes) as "lastChange", (select count(*) from peers) as peers`,
    )
    const [row] = rows
    if (row === undefined) throw new TypeError('no row')
    return {
      revision: Number(row.revision),
      changes: Number(row.changes),
      lastChange: Number(row.lastChange),
      peers: Number(row.peers),
    }
  } finally {
    await client.end()
  }
}

function requireEqual(what: string, actual: number, wanted: number): void {
  if (actual !== wanted) throw new Error(`${what}: ${actual}, not ${wanted}`)
}

function requestsPerSecond({ requests, elapsedMs }: RunResult): number {
  return (requests / elapsedMs) * 1000
}

function report(sides: readonly [Side, Side], results: ReadonlyMap<Side, RunResult[]>, inFlight: number): void {
  const [ours, rival] = [figures(results.get(sides[0])), figures(results.get(sides[1]))]
  const row = (name: string, { rates, p50Ms, p99Ms }: Figures) => [
    name,
    median(rates).toFixed(0),
    ms(p50Ms),
    ms(p99Ms),
    `${spreadPercent(rates).toFixed(0)} %`,
  ]
  const perRound = ours.rates.map((rate, round) => rate / (rival.rates[round] ?? Number.NaN))
  console.log(
    `${connectionCount} connections, ${inFlight} in flight, ${rounds} rounds of ${durationMs / 1000} s each, medians; every request one durable commit`,
  )
  console.log(table(['', 'requests/s', 'p50 ms', 'p99 ms', 'spread'], [row('certpeer', ours), row('plain', rival)]))
  console.log(
    `  ${(median(ours.rates) / median(rival.rates)).toFixed(1)} × the plain version (single rounds ` +
      `${Math.min(...perRound).toFixed(1)} to ${Math.max(...perRound).toFixed(1)}), p99 1/${(rival.p99Ms / ours.p99Ms).toFixed(1)}\n`,
  )
}

interface Figures {
  readonly rates: readonly number[]
  readonly p50Ms: number
  readonly p99Ms: number
}

function figures(results: readonly RunResult[] = []): Figures {
  return {
    rates: results.map(requestsPerSecond),
    p50Ms: median(results.map((result) => result.p50Ms)),
    p99Ms: median(results.map((result) => result.p99Ms)),
  }
}

try {
  await main()
} finally {
  rmSync(dir, { recursive: true, force: true })
}
