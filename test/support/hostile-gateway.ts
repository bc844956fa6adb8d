/** A real gateway agent in a namespace of its own, so that it can be killed, cut off and given a wrong clock. */
import { type ChildProcess } from 'node:child_process'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import type { JournalRecord } from '../../src/core/messages/gateway-journal.ts'
import { eventually, PROGRAM, type Lab } from './lab.ts'

export class RemoteGateway {
  readonly #lab: Lab
  readonly namespace: string
  readonly name: string
  readonly dir: string
  readonly interface: string
  /** The tunnel address that devices ping. */
  readonly address: string
  readonly publicKey: string
  /** Everything that the agent has logged. */
  log = ''
  #agent: ChildProcess | undefined

  private constructor(
    lab: Lab,
    parts: { namespace: string; name: string; dir: string; interface: string; report: JoinReport },
  ) {
    this.#lab = lab
    this.namespace = parts.namespace
    this.name = parts.name
    this.dir = parts.dir
    this.interface = parts.interface
    this.address = parts.report.addresses.find((address) => address.includes('.')) ?? ''
    this.publicKey = parts.report.publicKey
  }

  /** Joins with a token; `n` is the last number of its address on the wire. It looks about once a second. */
  static async join(lab: Lab, name: string, n: number): Promise<RemoteGateway> {
    const namespace = await lab.addHost(name, n)
    const token = await lab.ok(lab.host, ['gateway', 'token', '--gateway', name])
    const dir = join(lab.dir, `gateway-${name}`)
    const args = ['gateway', 'join', '-', '--dir', dir, '--endpoint', `10.90.1.${n}:51820`]
    const interfaceName = lab.deviceInterface(name)
    const json = await lab.ok(namespace, [...args, '--interface', interfaceName, '--json'], { input: token })
    const path = join(dir, 'config.json')
    const config = JSON.parse(readFileSync(path, 'utf8')) as object
    writeFileSync(path, JSON.stringify({ ...config, pollSeconds: 1, reconcileSeconds: 1 }))
    const report = JSON.parse(json) as JoinReport
    return new RemoteGateway(lab, { namespace, name, dir, interface: interfaceName, report })
  }

  start(): void {
    const clock = pathToFileURL(fileURLToPath(new URL('./hostile-clock.js', import.meta.url))).href
    const agent = this.#lab.start(
      this.namespace,
      process.execPath,
      ['--import', clock, PROGRAM, 'gateway', 'run', '--dir', this.dir],
      { HOSTILE_CLOCK_FILE: this.#clockFile },
    )
    const keep = (chunk: Buffer) => (this.log = (this.log + chunk.toString()).slice(-200_000))
    agent.stdout?.on('data', keep)
    agent.stderr?.on('data', keep)
    this.#agent = agent
  }

  get pid(): number | undefined {
    return this.#agent?.exitCode === null && this.#agent.signalCode === null ? this.#agent.pid : undefined
  }

  /** Ends the agent. By SIGKILL it leaves the interface as it is, by SIGTERM it takes it along. */
  async stop(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const agent = this.#agent
    this.#agent = undefined
    if (agent?.exitCode !== null || agent.signalCode !== null) return
    const ended = new Promise((resolve) => agent.once('exit', resolve))
    agent.kill(signal)
    await ended
  }

  /** What this gateway's agent takes for the time, in milliseconds beside the machine's. */
  setClock(offsetMs: number): void {
    if (offsetMs === 0) rmSync(this.#clockFile, { force: true })
    else writeFileSync(this.#clockFile, String(offsetMs))
  }

  /** `wg show` of the real device: public key → prefixes. */
  async peers(): Promise<Map<string, string[]>> {
    const { stdout } = await this.#lab.run(this.namespace, 'wg', ['show', this.interface, 'allowed-ips'])
    const rows = stdout.split('\n').filter((line) => line !== '')
    return new Map(
      rows.map((line) => {
        const [key = '', rest = ''] = line.split('\t')
        return [key, rest.split(' ')]
      }),
    )
  }

  /** Waits until exactly these peers are on the device. */
  async has(what: string, keys: readonly string[], timeoutMs = 15_000): Promise<void> {
    const wanted = [...keys].sort().join(' ')
    let found = ''
    const look = async () => (found = [...(await this.peers()).keys()].sort().join(' ')) === wanted
    await eventually(what, look, timeoutMs).catch((error: unknown) => {
      throw new Error(
        `${what}: wanted ${wanted || 'none'}, on the device ${found || 'none'}\n${this.log.slice(-4000)}`,
        {
          cause: error,
        },
      )
    })
  }

  journal(): JournalRecord[] {
    const text = readFileSync(join(this.dir, 'peers', 'journal.ndjson'), 'utf8')
    return text
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as JournalRecord)
  }

  get #clockFile(): string {
    return `${this.dir}.clock`
  }
}

interface JoinReport {
  readonly publicKey: string
  readonly addresses: readonly string[]
}
