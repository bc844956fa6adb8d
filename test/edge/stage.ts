/** A real authority and its front with nginx on free ports, without a database: what enrolling needs. */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { issueCredential } from '../../src/authority/credential.ts'
import { runAuthority } from '../../src/authority/main.ts'
import { initializePki } from '../../src/authority/pki-init.ts'
import { runProgram } from '../../src/cli/program.ts'
import { parsePrefix } from '../../src/core/ipam/prefix.ts'
import { runFront } from '../../src/edge/front/main.ts'
import { captureLog, until } from '../support/http.ts'

export const BLOCKS = ['10.88.0.0/16', 'fd88:0:0:1::/64', 'fd88:0:0:ff::/64']
const NETWORK = 'pools: [10.88.0.0/16, "fd88:0:0:1::/64"]\nkeyPrefix: "fd88:0:0:ff::/64"\nmtu: 1400\n'

export interface Finished {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

export class AuthorityStage implements AsyncDisposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'cp-edge-'))
  readonly captured = captureLog()
  readonly #stop = new AbortController()
  readonly #running: Promise<void>[] = []

  static async start(): Promise<AuthorityStage> {
    const stage = new AuthorityStage()
    try {
      await stage.#start()
      return stage
    } catch (error) {
      await stage[Symbol.asyncDispose]()
      throw error
    }
  }

  at(...parts: string[]): string {
    return join(this.dir, ...parts)
  }

  /** The command line as in a terminal; `input` is standard input. */
  async certpeer(args: readonly string[], input = ''): Promise<Finished> {
    const out: string[] = []
    const err: string[] = []
    const code = await runProgram(args, {
      env: { CERTPEER_OPERATOR: this.at('operator') },
      print: (text) => void out.push(text),
      say: (text) => void err.push(text),
      readInput: () => Promise.resolve(input),
      stopSignal: () => this.#stop.signal,
    })
    return { code, stdout: out.join('\n'), stderr: err.join('\n') }
  }

  async token(name: string, ...more: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.certpeer(['token', 'create', '--device', name, ...more])
    if (code !== 0) throw new Error(stderr)
    return stdout
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    await Promise.allSettled(this.#running)
    rmSync(this.dir, { recursive: true, force: true })
  }

  async #start(): Promise<void> {
    const { log } = this.captured
    const [enroll, authority, api, gateways, pki] = await freePorts(5)
    const endpoints = {
      enrollUrl: `https://127.0.0.1:${enroll}`,
      authorityUrl: `https://127.0.0.1:${authority}`,
      apiUrl: `https://127.0.0.1:${api}`,
      gatewaysUrl: `https://127.0.0.1:${gateways}`,
      pkiUrl: `http://127.0.0.1:${pki}`,
    }
    mkdirSync(this.at('run'))
    mkdirSync(this.at('front'))
    writeFileSync(this.at('secret'), randomBytes(32).toString('hex'), { mode: 0o600 })
    const blocks = BLOCKS.map(parsePrefix)
    await initializePki({
      caDir: this.at('ca'),
      rootDir: this.at('root'),
      trustDomain: 'certpeer.test',
      pen: 32_473,
      tenants: [{ name: 'default', blocks }],
      infrastructureBlocks: blocks,
      log,
    })
    const ca = { runDir: this.at('run'), frontSecretFile: this.at('secret'), endpoints }
    writeFileSync(this.at('ca', 'config.json'), JSON.stringify(ca))
    const made = { caDir: this.at('ca'), endpoints, log }
    await issueCredential({ ...made, role: 'operator-admin', name: 'admin', out: this.at('operator') })
    await issueCredential({
      ...made,
      role: 'server',
      name: 'nginx',
      out: this.at('front', 'server'),
      ips: ['127.0.0.1'],
    })
    this.#running.push(runAuthority({ dir: this.at('ca'), log, signal: this.#stop.signal }))
    await Promise.race([until(() => existsSync(this.at('run', 'ca-pki.sock')), 10_000), ...this.#running])
    const front = {
      listen: '127.0.0.1',
      ports: { enroll, authority, api, gateways, pki },
      roles: ['authority'],
      runDir: this.at('run'),
      pkiSource: `unix:${this.at('run', 'ca-pki.sock')}`,
      enrollSource: `unix:${this.at('run', 'ca-enroll.sock')}`,
      rootCertificate: this.at('ca', 'root.pem'),
      frontSecretFile: this.at('secret'),
      trustDomain: 'certpeer.test',
      pen: 32_473,
      workers: 1,
      pollSeconds: 1,
    }
    writeFileSync(this.at('front', 'config.json'), JSON.stringify(front))
    this.#running.push(runFront({ dir: this.at('front'), log, signal: this.#stop.signal, startNginx: true }))
    let up = false
    const poll = setInterval(() => {
      fetch(`${endpoints.pkiUrl}/issuers.json`).then(
        () => (up = true),
        () => undefined,
      )
    }, 50)
    await Promise.race([until(() => up, 15_000), ...this.#running]).finally(() => clearInterval(poll))
    const applied = await this.certpeer(['network', 'apply', '-'], NETWORK)
    if (applied.code !== 0) throw new Error(applied.stderr)
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer())
  const ports: number[] = []
  for (const server of servers) {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const address = server.address()
    if (typeof address === 'object' && address !== null) ports.push(address.port)
  }
  for (const server of servers) await new Promise((resolve) => server.close(resolve))
  return ports
}
