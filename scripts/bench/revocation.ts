/**
 * Revocation, measured end to end: operator → nginx → `ca` → ledger → PostgreSQL → `server` → nginx → gateways → device.
 * Everything that `certpeer up` starts runs as users run it, with one real gateway on wireguard-go; the further gateways
 * are the same agent on devices in memory. Runs inside a network namespace of its own (scripts/bench/revocation).
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { spawn } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { setTimeout as delay } from 'node:timers/promises'
import { revocationAnswerSchema } from '../../src/core/messages/revocation.ts'
import { tokenAnswerSchema } from '../../src/core/messages/enrollment.ts'
import { goneAnswerSchema, peerAnswerSchema } from '../../src/core/messages/views.ts'
import { parseCertificate } from '../../src/core/x509/certificate.ts'
import { readWireGuardKey } from '../../src/core/x509/certpeer-extensions.ts'
import { certpeerOids } from '../../src/core/x509/oids.ts'
import { pemToDer } from '../../src/core/x509/pem.ts'
import { enroll } from '../../src/edge/enrollment.ts'
import { joinGateway } from '../../src/edge/gateway/join.ts'
import { UAPI_DIRECTORY, UapiDevice } from '../../src/edge/tunnel/uapi.ts'
import { ApiClient } from '../../src/platform/api-client/client.ts'
import { readCredential, type Credential } from '../../src/platform/credentials.ts'
import { packageRoot } from '../../src/platform/package-root.ts'
import { AgentProcess } from './parts/agent-client.ts'
import { monotonicMs } from './parts/agent-messages.ts'
import { describeMachine, load, ms, percentile, table } from './parts/figures.ts'
import { stop, until } from './parts/processes.ts'

const { values: options } = parseArgs({
  options: {
    gateways: { type: 'string', default: '1,10,100' },
    revocations: { type: 'string', default: '50' },
    'agent-dir': { type: 'string', default: '/dev/shm' },
    profile: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})
if (options.help) {
  console.log(`Usage: scripts/bench/revocation [options]
  --gateways LIST    numbers of gateways, ascending, one table each (1,10,100)
  --revocations N    revocations for each (50)
  --agent-dir DIR    where the stand-in gateways keep their state (/dev/shm: a hundred gateways do not share one disk)
  --profile DIR      write a CPU profile of the stand-in gateways to DIR`)
  process.exit(0)
}
const levels = options.gateways.split(',').map(Number)
const revocationCount = Number(options.revocations)
const WARM_UP = 3
/** Agents in one process: more processes would only wait for each other on a small machine. */
const AGENTS_IN_PROCESS = 50
/** The device is asked again this soon after it answered; what the real gateway's figures are uncertain by. */
const DEVICE_POLL_MS = 0.5
const LIMIT_MS = 20_000

interface Ready {
  readonly authorityUrl: string
  readonly apiUrl: string
  readonly operatorDir: string
  readonly gateway: { readonly interface: string } | null
}

interface Device {
  readonly name: string
  readonly publicKey: string
}

/** Milliseconds since the request for the revocation was sent. */
interface Sample {
  readonly answerMs: number
  /** The real device's. */
  readonly realMs: number
  /** Every gateway's, the real one's included. */
  readonly removalsMs: readonly number[]
  readonly lastMs: number
  /** Until the last gateway's acknowledgement was recorded; by the clock of PostgreSQL, in whole milliseconds. */
  readonly acknowledgedMs: number
  /** Until the operator, who asked right after the answer, was told that no gateway carries the peer any more. */
  readonly proofMs: number
}

const say = (line: string) => process.stderr.write(`${line}\n`)
const dir = mkdtempSync(join(tmpdir(), 'cpbench-'))
const agentDir = mkdtempSync(join(options['agent-dir'], 'cpbench-'))

async function main(): Promise<void> {
  await using up = await startUp()
  const operator = await readCredential(up.ready.operatorDir)
  const authority = clientOf(operator, up.ready.authorityUrl)
  const api = clientOf(operator, up.ready.apiUrl)
  const real = new UapiDevice({ socketPath: join(UAPI_DIRECTORY, `${up.ready.gateway?.interface ?? ''}.sock`) })
  await using agents = new AgentProcesses()
  const { processes } = agents
  let gateways = 1
  console.log(`${describeMachine()}\nload average before: ${load().toFixed(2)}\n`)
  for (const level of levels) {
    while (gateways < level) {
      const count = Math.min(AGENTS_IN_PROCESS, level - gateways)
      say(`joining ${count} stand-in gateways`)
      const dirs = await joinGateways(authority, gateways, count)
      processes.push(await AgentProcess.start(dirs, options.profile))
      gateways += count
    }
    await until('all gateways are connected', async () => (await countConnected(api)) === level, 60_000)
    say(`enrolling ${revocationCount + WARM_UP} devices`)
    const devices = await enrollDevices(authority, level)
    const samples: Sample[] = []
    for (const [index, device] of devices.entries()) {
      const sample = await revoke(device, { authority, api, real, processes })
      if (index >= WARM_UP) samples.push(sample)
      // CRLs are published 50 ms after a revocation: the next one shall not meet the work of this one.
      await delay(150 + Math.random() * 100)
    }
    report(level, samples)
  }
  console.log(`load average after: ${load().toFixed(2)} (the benchmark itself included)`)
  real.close()
  for (const client of [authority, api]) client.close()
}

class AgentProcesses implements AsyncDisposable {
  readonly processes: AgentProcess[] = []

  async [Symbol.asyncDispose](): Promise<void> {
    for (const agents of this.processes) await agents[Symbol.asyncDispose]()
  }
}

/** `certpeer up` as a child, ended with the benchmark. */
async function startUp(): Promise<AsyncDisposable & { readonly ready: Ready }> {
  say('starting certpeer up')
  const program = join(packageRoot(), 'dist', 'src', 'bin', 'certpeer.js')
  const name = `cpb${process.pid.toString(36)}`
  const args = [program, 'up', '--state-dir', join(dir, 's'), '--interface', name, '--json']
  const child = spawn('setpriv', ['--pdeathsig', 'TERM', '--', process.execPath, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const line = await new Promise<string>((resolve, reject) => {
    child.once('exit', (code) => reject(new Error(`certpeer up ended with ${code ?? 'a signal'}`)))
    createInterface({ input: child.stdout }).once('line', resolve)
  })
  return { ready: JSON.parse(line) as Ready, [Symbol.asyncDispose]: () => stop(child, 'SIGTERM') }
}

function clientOf(credential: Credential, base: string): ApiClient {
  const clientCertificate = { certificate: credential.chain, key: credential.tlsKey }
  return new ApiClient({ base, root: credential.root, clientCertificate })
}

async function makeToken(authority: ApiClient, json: object): Promise<string> {
  const answer = await authority.request({ method: 'POST', path: '/v1/tokens', json })
  return tokenAnswerSchema.parse(answer.json).token
}

async function joinGateways(authority: ApiClient, first: number, count: number): Promise<string[]> {
  const dirs: string[] = []
  for (let n = first; n < first + count; n += 1) {
    const gateway = join(agentDir, `g${n}`)
    await joinGateway({
      token: await makeToken(authority, { role: 'gateway', name: `standin-${n}`, networks: ['default'] }),
      dir: gateway,
      endpoint: `192.0.2.1:${20_000 + n}`,
      interface: `memory${n}`,
      wireguardPort: 20_000 + n,
    })
    dirs.push(gateway)
  }
  return dirs
}

async function countConnected(api: ApiClient): Promise<number> {
  const { json } = await api.get('/v1/gateways?limit=200')
  return (json as { items: readonly { connected: boolean }[] }).items.filter(({ connected }) => connected).length
}

let nextDevice = 0

/** Enrolls, provisions and waits until every gateway has said that it carries them. */
async function enrollDevices(authority: ApiClient, gateways: number): Promise<Device[]> {
  const devices: Device[] = []
  const clients: ApiClient[] = []
  for (let n = 0; n < revocationCount + WARM_UP; n += 1) {
    const name = `device-${nextDevice++}`
    const token = await makeToken(authority, { role: 'device', name, networks: ['default'] })
    const { credential } = await enroll({ token, dir: join(dir, name), wireGuard: true })
    const client = clientOf(credential, credential.config.apiUrl)
    await client.request({ method: 'PUT', path: '/v1/peer' })
    const { key } = readWireGuardKey(
      parseCertificate(pemToDer(credential.certificate)),
      certpeerOids(credential.config.pen),
    )
    devices.push({ name, publicKey: key })
    clients.push(client)
  }
  for (const [index, client] of clients.entries()) {
    const answer = await client.get('/v1/peer?wait=active', { timeoutMs: 40_000 })
    const { state, waitingFor } = peerAnswerSchema.parse(answer.json)
    const name = devices[index]?.name ?? ''
    if (state !== 'active') throw new Error(`${name} is ${state} on ${gateways} gateways: ${waitingFor.join(', ')}`)
    client.close()
  }
  return devices
}

async function revoke(
  device: Device,
  parts: { authority: ApiClient; api: ApiClient; real: UapiDevice; processes: readonly AgentProcess[] },
): Promise<Sample> {
  const { authority, api, real, processes } = parts
  if (!(await holds(real, device))) throw new Error(`the real device does not have ${device.name}`)
  const standIns = processes.map((agents) => agents.removed(device.publicKey))
  const sentAt = Date.now()
  const sentMs = monotonicMs()
  const answered = authority.request({
    method: 'POST',
    path: '/v1/revocations',
    json: { target: { kind: 'device', name: device.name }, reason: 'keyCompromise' },
  })
  const watched = watch(real, device)
  const { json } = await answered
  const answerMs = monotonicMs() - sentMs
  const { certificates } = revocationAnswerSchema.parse(json)
  const [certificate] = certificates
  if (certificate === undefined) throw new Error(`${device.name} had no certificate in force`)
  const path = `/v1/peers/gone?serial=${certificate.serial}&wait=gone`
  const gone = goneAnswerSchema.parse((await api.get(path, { timeoutMs: LIMIT_MS })).json)
  const proofMs = monotonicMs() - sentMs
  if (gone.state !== 'gone') throw new Error(`${device.name} is not gone: ${JSON.stringify(gone.gateways)}`)
  // A gateway that told it by the CRL it enforces has no instant of its own.
  const acknowledged = gone.gateways.flatMap(({ appliedAt }) => (appliedAt === null ? [] : [Date.parse(appliedAt)]))
  const acknowledgedMs = Math.max(...acknowledged) - sentAt
  const realMs = (await watched) - sentMs
  const removalsMs = [realMs, ...(await Promise.all(standIns)).flat().map((atMs) => atMs - sentMs)]
  return { answerMs, realMs, removalsMs, lastMs: Math.max(...removalsMs), acknowledgedMs, proofMs }
}

async function holds(real: UapiDevice, { publicKey }: Device): Promise<boolean> {
  const { peers } = await real.read()
  return [...peers.keys()].some((key) => key === publicKey)
}

/** The instant at which the real device is first seen without the peer. */
async function watch(real: UapiDevice, device: Device): Promise<number> {
  const deadlineMs = monotonicMs() + LIMIT_MS
  for (;;) {
    const askedMs = monotonicMs()
    if (!(await holds(real, device))) return monotonicMs()
    if (askedMs > deadlineMs) throw new Error(`${device.name} is still on the real device after ${LIMIT_MS} ms`)
    await delay(DEVICE_POLL_MS)
  }
}

function report(gateways: number, samples: readonly Sample[]): void {
  const row = (name: string, values: readonly number[]) => [
    name,
    // What it takes when nothing else wants the machine, as far as anything that ran meanwhile lets it be seen.
    ms(percentile(values, 0.1)),
    ms(percentile(values, 0.5)),
    ms(percentile(values, 0.99)),
    ms(Math.max(...values)),
    String(values.length),
  ]
  const rows = [
    row(
      'answer to the operator',
      samples.map(({ answerMs }) => answerMs),
    ),
    row(
      'removed from the real device (wireguard-go)',
      samples.map(({ realMs }) => realMs),
    ),
    row(
      'removed from a device, any gateway',
      samples.flatMap(({ removalsMs }) => removalsMs),
    ),
    row(
      'removed from the last device',
      samples.map(({ lastMs }) => lastMs),
    ),
    row(
      'last acknowledgement recorded',
      samples.map(({ acknowledgedMs }) => acknowledgedMs),
    ),
    row(
      'operator told: gone everywhere',
      samples.map(({ proofMs }) => proofMs),
    ),
  ]
  console.log(
    `${gateways} ${gateways === 1 ? 'gateway' : 'gateways'}, ${samples.length} revocations; ms since the request was sent`,
  )
  console.log(`${table(['', 'p10', 'p50', 'p99', 'max', 'samples'], rows)}\n`)
}

try {
  await main()
} finally {
  rmSync(dir, { recursive: true, force: true })
  rmSync(agentDir, { recursive: true, force: true })
}
