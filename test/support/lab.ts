/**
 * A lab of network namespaces made for one test: `host` runs everything that `certpeer up` starts, devices and further
 * gateways get a namespace each, all joined by one bridge. Nothing leaves the machine; all of it is removed at the end.
 */
import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { packageRoot } from '../../src/platform/package-root.ts'
import { hasNetAdmin } from '../../src/cli/local/preflight.ts'

export const PROGRAM = join(packageRoot(), 'dist', 'src', 'bin', 'certpeer.js')

/** Why end-to-end tests cannot run here, or false: for node:test's `skip`. */
export function cannotRunLab(): string | false {
  if (process.getuid?.() !== 0 || !hasNetAdmin()) return 'needs root with CAP_NET_ADMIN to make network namespaces'
  if (!existsSync('/dev/net/tun')) return 'needs /dev/net/tun for wireguard-go'
  return false
}

export interface Finished {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

export interface Ready {
  readonly enrollUrl: string
  readonly authorityUrl: string
  readonly apiUrl: string
  readonly gatewaysUrl: string
  readonly pkiUrl: string
  readonly rootCertificate: string
  readonly stateDir: string
  readonly operatorDir: string
  readonly gateway: {
    readonly name: string
    readonly interface: string
    readonly publicKey: string
    readonly endpoint: string
    readonly addresses: readonly string[]
  } | null
}

export interface RunOptions {
  readonly input?: string
  readonly timeoutMs?: number
  readonly env?: Readonly<Record<string, string>>
}

let labs = 0

export class Lab implements AsyncDisposable {
  /** Short and unique on this machine: names of namespaces and interfaces grow from it. */
  readonly id = `c${(process.pid % 46_656).toString(36)}${(labs++).toString(36)}`
  readonly dir = mkdtempSync(join(tmpdir(), 'certpeer-lab-'))
  readonly host = `${this.id}-host`
  readonly hostAddress = '10.90.1.1'
  readonly #namespaces: string[] = []
  readonly #children = new Set<ChildProcess>()
  #up: ChildProcess | undefined
  ready: Ready | undefined

  static async create(): Promise<Lab> {
    const lab = new Lab()
    await lab.#addNamespace(lab.host)
    await lab.#ip('-n', lab.host, 'link', 'add', 'wire', 'type', 'bridge')
    await lab.#ip('-n', lab.host, 'addr', 'add', `${lab.hostAddress}/24`, 'dev', 'wire')
    await lab.#ip('-n', lab.host, 'link', 'set', 'wire', 'up')
    return lab
  }

  get stateDir(): string {
    return join(this.dir, 's')
  }

  get gatewayInterface(): string {
    return `${this.id}g`
  }

  get operatorDir(): string {
    return join(this.stateDir, 'operator')
  }

  /** A namespace on the wire; returns its name. `n` is the last number of its address 10.90.1.n. */
  async addHost(name: string, n: number): Promise<string> {
    const namespace = `${this.id}-${name}`
    await this.#addNamespace(namespace)
    const inner = `${this.id}v${n}`
    await this.#ip('link', 'add', inner, 'netns', this.host, 'type', 'veth', 'peer', 'name', 'wire', 'netns', namespace)
    await this.#ip('-n', this.host, 'link', 'set', inner, 'master', 'wire', 'up')
    await this.#ip('-n', namespace, 'addr', 'add', `10.90.1.${n}/24`, 'dev', 'wire')
    await this.#ip('-n', namespace, 'link', 'set', 'wire', 'up')
    return namespace
  }

  /** Runs `certpeer up` in the host namespace and waits for its line of JSON. */
  async up(args: readonly string[] = []): Promise<Ready> {
    const command = ['up', '--state-dir', this.stateDir, '--listen', this.hostAddress, '--json']
    const child = this.start(this.host, process.execPath, [
      ...[PROGRAM, ...command, '--interface', this.gatewayInterface],
      ...args,
    ])
    this.#up = child
    let said = ''
    child.stderr?.on('data', (chunk: Buffer) => (said = (said + chunk.toString()).slice(-20_000)))
    const line = await new Promise<string>((resolve, reject) => {
      child.once('exit', (code) => reject(new Error(`up ended with ${code ?? 'a signal'}:\n${said}${this.logs()}`)))
      if (child.stdout) createInterface({ input: child.stdout }).once('line', resolve)
      setTimeout(() => reject(new Error(`up is not ready after 90 s:\n${said}${this.logs()}`)), 90_000).unref()
    })
    const ready = JSON.parse(line) as Ready
    this.ready = ready
    return ready
  }

  /** Ends `up` by a signal and waits until it has gone. */
  async down(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.#up
    this.#up = undefined
    if (child) await end(child, signal)
  }

  get upPid(): number | undefined {
    return this.#up?.pid
  }

  /** Runs the CLI in a namespace, as the local operator; never throws on a non-zero exit. */
  certpeer(namespace: string, args: readonly string[], options: RunOptions = {}): Promise<Finished> {
    return this.run(namespace, process.execPath, [PROGRAM, ...args], {
      ...options,
      env: { CERTPEER_OPERATOR: this.operatorDir, ...options.env },
    })
  }

  /** The same, and throws with everything it said unless it ends with 0. */
  async ok(namespace: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
    const { code, stdout, stderr } = await this.certpeer(namespace, args, options)
    if (code !== 0) throw new Error(`certpeer ${args.join(' ')} ended with ${code}:\n${stderr}${stdout}${this.logs()}`)
    return stdout
  }

  /** Token, enrollment and `device up` in one: the directory of the device. */
  async enrollDevice(namespace: string, name: string, options: { up?: boolean } = {}): Promise<string> {
    const token = await this.ok(this.host, ['token', 'create', '--device', name])
    const dir = join(this.dir, name)
    await this.ok(namespace, ['device', 'enroll', '-', '--dir', dir], { input: token })
    if (options.up !== false)
      await this.ok(namespace, ['device', 'up', '--dir', dir, '--interface', this.deviceInterface(name)])
    return dir
  }

  /** 15 bytes at most; unique because UAPI sockets of all namespaces share one folder. */
  deviceInterface(name: string): string {
    return `${this.id}${name}`.slice(0, 15)
  }

  /** True when one of `count` pings is answered. */
  async ping(namespace: string, address: string, count = 3): Promise<boolean> {
    const args = ['-n', '-c', String(count), '-i', '0.2', '-W', '1', address]
    return (await this.run(namespace, 'ping', args)).code === 0
  }

  /** `wg show … allowed-ips` of the host's gateway: public key → prefixes. */
  async gatewayPeers(interfaceName = this.gatewayInterface): Promise<Map<string, string[]>> {
    const { stdout } = await this.run(this.host, 'wg', ['show', interfaceName, 'allowed-ips'])
    const rows = stdout.split('\n').filter((line) => line !== '')
    return new Map(
      rows.map((line) => {
        const [key = '', rest = ''] = line.split('\t')
        return [key, rest.split(' ').filter((prefix) => prefix !== '(none)' && prefix !== '')]
      }),
    )
  }

  run(namespace: string, command: string, args: readonly string[], options: RunOptions = {}): Promise<Finished> {
    return new Promise((resolve) => {
      const child = execFile(
        'ip',
        ['netns', 'exec', namespace, command, ...args],
        {
          timeout: options.timeoutMs ?? 60_000,
          maxBuffer: 64 * 1024 * 1024,
          env: { ...process.env, ...options.env },
        },
        (error, stdout, stderr) => {
          const code = error ? (typeof error.code === 'number' ? error.code : 255) : 0
          resolve({ code, stdout, stderr })
        },
      )
      // Whoever ends before it has read its input is no fault of the test.
      child.stdin?.on('error', () => undefined)
      child.stdin?.end(options.input ?? '')
    })
  }

  /** Starts something that stays; it is ended with the lab. */
  start(
    namespace: string,
    command: string,
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
  ): ChildProcess {
    const child = spawn('ip', ['netns', 'exec', namespace, command, ...args], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    })
    this.#children.add(child)
    child.once('exit', () => this.#children.delete(child))
    return child
  }

  /** The ends of all logs, for the message of a failure. */
  logs(): string {
    const names = ['ca', 'server', 'front', 'gateway', 'nginx-error', 'postgres']
    return names
      .map((name) => join(this.stateDir, 'log', `${name}.log`))
      .filter((path) => existsSync(path))
      .map((path) => `\n--- ${path}\n${readFileSync(path, 'utf8').slice(-3_000)}`)
      .join('')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down()
    for (const child of [...this.#children].reverse()) await end(child, 'SIGTERM')
    for (const namespace of this.#namespaces) {
      // What was left running in a namespace of ours is ours: wireguard-go outlives its agent on purpose.
      const { stdout } = await exec('ip', ['netns', 'pids', namespace])
      for (const pid of stdout.split('\n').map(Number)) if (pid > 1) kill(pid, 'SIGTERM')
      await exec('ip', ['netns', 'del', namespace])
    }
    if (process.env['CERTPEER_KEEP_LAB'] === undefined) rmSync(this.dir, { recursive: true, force: true })
  }

  async #addNamespace(name: string): Promise<void> {
    await this.#ip('netns', 'add', name)
    this.#namespaces.push(name)
    await this.#ip('-n', name, 'link', 'set', 'lo', 'up')
  }

  async #ip(...args: string[]): Promise<void> {
    const { code, stderr } = await exec('ip', args)
    if (code !== 0) throw new Error(`ip ${args.join(' ')}: ${stderr}`)
  }
}

/** Polls until `condition` holds; throws naming `what` after `timeoutMs`. */
export async function eventually(
  what: string,
  condition: () => Promise<boolean> | boolean,
  timeoutMs = 15_000,
): Promise<void> {
  const deadline = Date.now() + timeoutMs
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

function exec(command: string, args: readonly string[]): Promise<Finished> {
  return new Promise((resolve) => {
    execFile(command, args, (error, stdout, stderr) => resolve({ code: error ? 1 : 0, stdout, stderr }))
  })
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  child.kill(signal)
  const timer = setTimeout(() => child.kill('SIGKILL'), 30_000)
  await ended
  clearTimeout(timer)
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended meanwhile.
  }
}
