/** The whole agent on a real wireguard-go, against a control plane and a pki listener of the test. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { spawn } from 'node:child_process'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { afterEach, before, beforeEach, describe, test } from 'node:test'
import type { DownMessage, UpMessage } from '../../../src/core/messages/stream.ts'
import type { Certificate } from '../../../src/core/x509/certificate.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import { runGateway } from '../../../src/edge/gateway/main.ts'
import { removeInterface } from '../../../src/edge/tunnel/interface.ts'
import { UAPI_DIRECTORY } from '../../../src/edge/tunnel/uapi.ts'
import type { Run } from '../../../src/edge/tunnel/wg.ts'
import { abortOnSignals } from '../../../src/platform/lifecycle.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { run as runProgram } from '../../../src/platform/spawn.ts'
import { GatewayWorld, NETWORK, newWireGuardKey } from '../../support/gateway-world.ts'
import { NOW } from '../../support/certificates.ts'
import { createNetworkNamespace, uniqueInterface, withoutWireGuard } from '../../support/network-namespace.ts'
import type { NetworkNamespace } from '../../support/network-namespace.ts'

/** Control plane and pki listener on one port; each part can be taken away. */
class FakeControl {
  readonly server: Server = createServer((request, response) => this.#serve(request, response))
  readonly received: UpMessage[] = []
  readonly published = new Map<string, Buffer>()
  acceptsStreams = true
  /** What a gateway is told at hello. */
  greeting: () => readonly DownMessage[] = () => []
  #streams = new Set<ServerResponse>()

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.server.listen(0, '127.0.0.1', resolve))
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`
  }

  tell(message: DownMessage): void {
    for (const stream of this.#streams) stream.write(`${JSON.stringify(message)}\n`)
  }

  cut(): void {
    for (const stream of this.#streams) stream.destroy()
  }

  async stop(): Promise<void> {
    this.cut()
    this.server.closeAllConnections()
    await new Promise((resolve) => this.server.close(resolve))
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    if (request.method === 'GET') {
      const body = this.published.get(request.url ?? '')
      response.writeHead(body === undefined ? 404 : 200).end(body)
      return
    }
    if (!this.acceptsStreams) {
      response.writeHead(503).end()
      return
    }
    response.writeHead(200, { 'content-type': 'application/x-ndjson' })
    response.flushHeaders()
    this.#streams.add(response)
    response.on('close', () => this.#streams.delete(response))
    request.on('error', () => response.destroy())
    const lines = createInterface({ input: request })
    lines.on('error', () => response.destroy())
    lines.on('line', (line) => {
      const message = JSON.parse(line) as UpMessage
      this.received.push(message)
      if (message.type === 'hello') for (const down of this.greeting()) response.write(`${JSON.stringify(down)}\n`)
    })
  }
}

async function eventually(what: string, condition: () => Promise<boolean> | boolean, timeoutMs = 10_000) {
  const deadline = performance.now() + timeoutMs
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

/** As a process of its own, for what only a process can show: this file again, told by its environment. */
const childDir = process.env['AGENT_TEST_DIR']
if (childDir !== undefined) {
  const namespaceName = process.env['AGENT_TEST_NAMESPACE']
  const inside: Run = (command, args, options) =>
    namespaceName === undefined
      ? runProgram(command, args, options)
      : runProgram('ip', ['netns', 'exec', namespaceName, command, ...args], options)
  const startedMs = performance.now()
  const now = () => new Date(NOW.getTime() + performance.now() - startedMs)
  await runGateway({ dir: childDir, log: silentLogger(), signal: abortOnSignals(), run: inside, now })
  process.exit(0)
}

describe('the gateway agent', { skip: withoutWireGuard() }, () => {
  let world: GatewayWorld
  let namespace: NetworkNamespace
  let control: FakeControl
  let dir: string
  let name: string
  let running: { stop: () => Promise<void> } | undefined
  const first = { key: newWireGuardKey() }
  const second = { key: newWireGuardKey() }
  let devices: Certificate[]

  before(async () => {
    world = await GatewayWorld.create()
    devices = [world.makeDevice(2, first), world.makeDevice(3, second)]
  })
  beforeEach(async () => {
    namespace = await createNetworkNamespace()
    control = new FakeControl()
    await control.start()
    dir = mkdtempSync(join(tmpdir(), 'certpeer-agent-'))
    name = uniqueInterface()
    const wireguardPort = 40_000 + Math.floor(Math.random() * 20_000)
    await world.writeCredential(dir, control.url, {
      interface: name,
      wireguardPort,
      reconcileSeconds: 1,
      pollSeconds: 1,
    })
    control.greeting = () => [...world.introduction(), world.snapshot(5, devices)]
    control.published.set(
      '/issuers.json',
      Buffer.from(
        JSON.stringify({
          root: derToPem(world.root.certificate.der, 'CERTIFICATE'),
          issuers: [world.deviceCa, world.infrastructureCa].map(({ certificate }, index) => ({
            name: `i${index}`,
            certificate: derToPem(certificate.der, 'CERTIFICATE'),
            crl: `/crl/i${index}.crl`,
          })),
        }),
      ),
    )
  })
  afterEach(async () => {
    await running?.stop()
    running = undefined
    await control.stop()
    await removeInterface(name, namespace.run)
    await namespace.remove()
    rmSync(dir, { recursive: true })
  })

  /** The clock runs on from the fixed instant, so that real timers and certificates agree. */
  function start(): Promise<void> {
    const stopped = new AbortController()
    const startedMs = performance.now()
    const now = () => new Date(NOW.getTime() + performance.now() - startedMs)
    const ended = runGateway({ dir, log: silentLogger(), signal: stopped.signal, run: namespace.run, now })
    running = {
      stop: async () => {
        stopped.abort()
        await ended
      },
    }
    ended.catch(() => undefined)
    return ended
  }

  async function peers(): Promise<Map<string, string>> {
    const { code, stdout } = await namespace.run('wg', ['show', name, 'allowed-ips'], { timeoutMs: 5000 })
    if (code !== 0) return new Map()
    return new Map(
      stdout
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => {
          const [key = '', list = ''] = line.split('\t')
          return [key, list.split(' ').sort().join(' ')]
        }),
    )
  }

  const has = (...keys: string[]) =>
    eventually(`exactly ${keys.length} peers`, async () => {
      const found = await peers()
      return found.size === keys.length && keys.every((key) => found.has(key))
    })

  test('takes what is certified, confirms it, and takes it away when told and when told to stop', async () => {
    void start()
    await has(first.key, second.key)
    const own = (await peers()).get(first.key)
    assert.match(own ?? '', /^10\.88\.0\.2\/32 fd00::ff:[0-9a-f:]+\/128$/)
    await eventually('applied 5', () =>
      control.received.some((message) => message.type === 'applied' && message.revision === 5),
    )
    assert.deepEqual(control.received[0], { type: 'hello', endpoint: 'gw.example:51820', revisions: { [NETWORK]: 0 } })
    const [device] = devices
    assert.ok(device)
    control.tell(world.remove(6, device))
    await eventually('applied 6', () =>
      control.received.some((message) => message.type === 'applied' && message.revision === 6),
    )
    assert.deepEqual([...(await peers()).keys()], [second.key])
    assert.match(await namespace.exec('ip', 'route', 'get', '10.88.4.5'), new RegExp(`dev ${name} src 10\\.88\\.0\\.1`))
    await running?.stop()
    assert.equal(await removeInterface(name, namespace.run), false)
    assert.ok(readdirSync(dir).includes('tls.key'))
  })

  test('undoes what somebody edits by hand', async () => {
    void start()
    await has(first.key, second.key)
    const before = await peers()
    await namespace.exec('wg', 'set', name, 'peer', newWireGuardKey(), 'allowed-ips', '10.88.0.2/32,10.88.7.7/32')
    await namespace.exec('wg', 'set', name, 'peer', second.key, 'remove')
    await namespace.exec('ip', 'link', 'set', 'dev', name, 'mtu', '1300')
    await eventually('everything as before', async () => {
      const found = await peers()
      return found.size === before.size && [...before].every(([key, list]) => found.get(key) === list)
    })
    await eventually('mtu as before', async () =>
      (await namespace.exec('ip', 'link', 'show', 'dev', name)).includes('mtu 1420'),
    )
  })

  test('leaves an interface alone that somebody has put in the place of its own', async () => {
    void start()
    await has(first.key, second.key)
    const keyFile = join(dir, 'other.key')
    writeFileSync(keyFile, randomBytes(32).toString('base64'), { mode: 0o600 })
    const theirs = newWireGuardKey()
    await namespace.exec('wg', 'set', name, 'private-key', keyFile)
    await namespace.exec('wg', 'set', name, 'peer', theirs, 'allowed-ips', '10.99.0.1/32')
    // Two looks at least.
    await new Promise((resolve) => setTimeout(resolve, 2500))
    const [device] = devices
    assert.ok(device)
    control.tell(world.remove(6, device))
    await new Promise((resolve) => setTimeout(resolve, 500))
    assert.ok((await peers()).has(theirs))
    assert.ok(!control.received.some((message) => message.type === 'applied' && message.revision === 6))
  })

  test('brings device and peers back after kill -9 of wireguard-go', async () => {
    void start()
    await has(first.key, second.key)
    const before = findWireGuardGo(name)
    process.kill(before ?? 0, 'SIGKILL')
    await eventually('another one', () => (findWireGuardGo(name) ?? before) !== before)
    await has(first.key, second.key)
    await eventually('configured', async () =>
      (await namespace.exec('ip', 'addr', 'show', 'dev', name)).includes('10.88.0.1/32'),
    )
  })

  test('drops a revoked peer by the CRL that it fetches itself while the stream says nothing', async () => {
    void start()
    await has(first.key, second.key)
    const crl = world.makeCrl(world.deviceCa, {
      thisUpdate: 1000,
      revoked: [devices[0]?.serial].filter((s) => s !== undefined),
    })
    control.published.set('/crl/i0.crl', crl)
    await has(second.key)
    // Whatever is said now, it does not come back.
    control.tell(world.snapshot(9, devices))
    await eventually('applied 9', () =>
      control.received.some(
        (message) =>
          message.type === 'applied' && message.revision === 9 && message.failed[0]?.code === 'certificate_revoked',
      ),
    )
    await has(second.key)
  })

  test('killed, leaves the tunnel; started again without anybody to ask, serves from its disk', async () => {
    void start()
    await has(first.key, second.key)
    await eventually('written', () =>
      readFileSync(join(dir, 'peers', 'journal.ndjson'), 'utf8').includes('"revision":5'),
    )
    // What kill -9 leaves: the files as they are now, and nobody's hand on the interface.
    const copy = mkdtempSync(join(tmpdir(), 'certpeer-agent-'))
    await namespace.exec('cp', '-a', `${dir}/.`, copy)
    await running?.stop()
    await control.stop()
    rmSync(dir, { recursive: true })
    dir = copy
    void start()
    await has(first.key, second.key)
  })

  test('kill -9 of the agent leaves the tunnel as it is; the next one adopts it without touching a peer', async () => {
    const agent = spawn(process.execPath, [...process.execArgv, fileURLToPath(import.meta.url)], {
      env: { ...process.env, AGENT_TEST_DIR: dir, AGENT_TEST_NAMESPACE: namespace.name },
      stdio: 'ignore',
    })
    const killed = new Promise((resolve) => agent.once('exit', resolve))
    await has(first.key, second.key)
    // A mark that lasts exactly as long as nobody removes the peer.
    await namespace.exec('wg', 'set', name, 'peer', first.key, 'endpoint', '127.0.0.1:9')
    await eventually('written', () =>
      readFileSync(join(dir, 'peers', 'journal.ndjson'), 'utf8').includes('"revision":5'),
    )
    const pid = findWireGuardGo(name)
    agent.kill('SIGKILL')
    await killed
    assert.equal((await peers()).size, 2)
    control.acceptsStreams = false
    void start()
    await eventually(
      'a look at the device',
      () => readFileSync(join(dir, 'lock'), 'utf8').trim() === String(process.pid),
    )
    await new Promise((resolve) => setTimeout(resolve, 1500))
    await has(first.key, second.key)
    assert.match(await namespace.exec('wg', 'show', name, 'endpoints'), /127\.0\.0\.1:9/)
    assert.equal(findWireGuardGo(name), pid)
  })

  test('needs CAP_NET_ADMIN and nothing else', async () => {
    // What an earlier run leaves on disk is enough to bring peers up without anybody to ask.
    void start()
    await has(first.key, second.key)
    await eventually('written', () =>
      readFileSync(join(dir, 'peers', 'journal.ndjson'), 'utf8').includes('"revision":5'),
    )
    await running?.stop()
    running = undefined
    await namespace.exec('chown', '-R', 'nobody', dir)
    const drop =
      '--reuid=nobody --regid=nogroup --clear-groups --inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin'
    // A socket directory of its own, as the service manager makes it.
    // /dev/net/tun is for everybody on most systems (udev's rule), and only in containers it may not be.
    const device = 'mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200'
    const script = `${device} && mkdir -p ${UAPI_DIRECTORY} && mount -t tmpfs -o uid=65534 none ${UAPI_DIRECTORY} && exec setpriv ${drop} --bounding-set=-all,+net_admin "$@"`
    const command = [process.execPath, ...process.execArgv, fileURLToPath(import.meta.url)]
    const agent = spawn(
      'ip',
      ['netns', 'exec', namespace.name, 'unshare', '-m', 'sh', '-c', script, 'sh', ...command],
      {
        env: { ...process.env, AGENT_TEST_DIR: dir },
        stdio: ['ignore', 'ignore', 'inherit'],
      },
    )
    const ended = new Promise((resolve) => agent.once('exit', resolve))
    try {
      await eventually('two peers', async () => {
        const inAgent = ['-t', String(agent.pid), '-m', '-n', 'wg', 'show', name, 'peers']
        const { stdout } = await runProgram('nsenter', inAgent, { timeoutMs: 5000 })
        return stdout.includes(first.key) && stdout.includes(second.key)
      })
      const status = readFileSync(`/proc/${agent.pid ?? 0}/status`, 'utf8')
      assert.match(status, /^CapEff:\s*0000000000001000$/m)
      assert.match(await namespace.exec('ip', 'addr', 'show', 'dev', name), /10\.88\.0\.1\/32/)
    } finally {
      agent.kill('SIGTERM')
      await ended
    }
    assert.doesNotMatch(await namespace.exec('ip', 'link'), new RegExp(name))
  })

  test('goes on through a stream that is cut, and says again what it has applied', async () => {
    void start()
    await has(first.key, second.key)
    control.greeting = () => []
    const seen = control.received.length
    control.cut()
    await eventually('a new hello', () =>
      control.received.slice(seen).some((m) => m.type === 'hello' && m.revisions[NETWORK] === 5),
    )
    await eventually('applied again', () => control.received.slice(seen).some((m) => m.type === 'applied'))
    await has(first.key, second.key)
  })

  test('a second agent for the same directory is refused, and so is one without its settings', async () => {
    void start()
    await has(first.key, second.key)
    const options = { dir, log: silentLogger(), signal: AbortSignal.timeout(5000), run: namespace.run }
    await assert.rejects(runGateway(options), { code: 'state_busy' })
    const other = mkdtempSync(join(tmpdir(), 'certpeer-agent-'))
    await world.writeCredential(other, control.url, {})
    await assert.rejects(runGateway({ ...options, dir: other }), { code: 'config_invalid' })
    rmSync(other, { recursive: true })
  })

  test('peers end at their notAfter with nobody left to say so', async () => {
    const short = { key: newWireGuardKey() }
    const brief = world.makeDevice(4, { ...short, notAfter: new Date(NOW.getTime() + 6000) })
    control.greeting = () => [...world.introduction(), world.snapshot(5, [...devices, brief])]
    void start()
    await has(first.key, second.key, short.key)
    await control.stop()
    await has(first.key, second.key)
  })
})

/** The process behind an interface of ours, found by its whole command line. */
function findWireGuardGo(name: string): number | undefined {
  for (const pid of readdirSync('/proc').filter((entry) => /^[0-9]+$/.test(entry))) {
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
      if (words[0]?.endsWith('wireguard-go') === true && words[1] === name) return Number(pid)
    } catch {
      // It ended while we looked.
    }
  }
  return undefined
}
