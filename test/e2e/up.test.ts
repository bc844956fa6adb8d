/**
 * `certpeer up` as people meet it: what it refuses and how it says so, interrupted starts, moved listeners, a second
 * one on the same directory, another database, another user.
 */
import assert from 'node:assert/strict'
import { chmodSync, chownSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { parseCertificate } from '../../src/core/x509/certificate.ts'
import { pemToDerAll } from '../../src/core/x509/pem.ts'
import { packageRoot } from '../../src/platform/package-root.ts'
import { cannotRunLab, Lab, PROGRAM, type Finished } from '../support/lab.ts'
import { createTestDatabase } from '../support/postgres.ts'

const skip = cannotRunLab()
/** nobody, whose number is the same everywhere. */
const NOBODY = 65_534

let lab: Lab

before(async () => {
  if (skip !== false) return
  lab = await Lab.create()
  // nobody may pass through, and sees nothing.
  chmodSync(lab.dir, 0o711)
  // What `ip netns exec` shows as /etc/hosts.
  for (const dir of hostsDirs()) {
    mkdirSync(dir, { recursive: true })
    writeFileSync(join(dir, 'hosts'), `127.0.0.1 localhost\n${lab.hostAddress} certpeer.example\n`)
  }
})

after(async () => {
  if (skip !== false) return
  await lab[Symbol.asyncDispose]()
  for (const dir of hostsDirs()) rmSync(dir, { recursive: true, force: true })
})

function hostsDirs(): string[] {
  return [lab.host, `${lab.id}-dev`].map((namespace) => join('/etc/netns', namespace))
}

/** `up` that is expected to refuse: its last line, and that it said it in one line and left nothing running. */
async function refused(args: readonly string[], prefix: readonly string[] = []): Promise<string> {
  const [command = process.execPath, ...rest] = [...prefix, process.execPath, PROGRAM, 'up', ...args]
  const { code, stdout, stderr } = await lab.run(lab.host, command, rest)
  assert.notEqual(code, 0, stderr)
  assert.equal(stdout, '')
  const lines = stderr.trimEnd().split('\n')
  assert.equal(lines.filter((line) => line.startsWith('certpeer: ')).length, 1, stderr)
  assert.deepEqual(await running(), [])
  return lines.at(-1) ?? ''
}

/** What runs in the host's namespace, by command line. */
async function running(): Promise<string[]> {
  const { stdout } = await lab.run(lab.host, 'sh', ['-c', `ip netns pids ${lab.host} | xargs -r ps -o args= -p`])
  const ours = /certpeer\.js|^nginx|postgres|wireguard-go/
  return stdout.split('\n').filter((line) => ours.test(line))
}

/** Listens on a port in the host's namespace until disposed of. */
async function occupy(listener: string): Promise<AsyncDisposable> {
  const child = lab.start(lab.host, process.execPath, ['-e', `${listener}; console.log('bound')`])
  await new Promise((resolve) => child.stdout?.once('data', resolve))
  return {
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL')
      await new Promise((resolve) => child.once('exit', resolve))
    },
  }
}

test('what it refuses, in one line', { skip }, async (t) => {
  const dir = join(lab.dir, 'refused')
  const cases: readonly { name: string; args: readonly string[]; says: RegExp; prefix?: readonly string[] }[] = [
    { name: 'listening everywhere without a name', args: ['--listen', '0.0.0.0'], says: /add --hostname NAME/ },
    { name: 'the same for IPv6', args: ['--listen', '::'], says: /add --hostname NAME/ },
    { name: 'a name to listen on', args: ['--listen', 'localhost'], says: /--listen takes an IP address/ },
    { name: 'an address of another machine', args: ['--listen', '192.0.2.7'], says: /192\.0\.2\.7 .*no such address/ },
    { name: 'a host name with capitals', args: ['--hostname', 'Host'], says: /--hostname takes a DNS name/ },
    {
      name: 'a host name nobody knows',
      args: ['--hostname', 'nobody.invalid'],
      says: /nobody\.invalid cannot be resolved/,
    },
    { name: 'too high a port', args: ['--base-port', '65532'], says: /room for five ports/ },
    { name: 'no port', args: ['--wireguard-port', 'x'], says: /--wireguard-port takes a port number/ },
    { name: 'too long an interface', args: ['--interface', 'a123456789012345'], says: /--interface takes 1 to 15/ },
    { name: 'no prefix', args: ['--network', '10.0.0.1'], says: /--network takes CIDR/ },
    { name: 'host bits', args: ['--network', '10.0.0.1/8'], says: /--network takes CIDR/ },
    { name: 'two of a family', args: ['--network', '10.1.0.0/16,10.2.0.0/16'], says: /one prefix an address family/ },
    { name: 'too small a pool', args: ['--network', '10.1.0.0/31'], says: /--network: .*too small/ },
    { name: 'multicast', args: ['--network', '224.0.0.0/8'], says: /--network: / },
    {
      name: 'a directory too deep',
      args: ['--state-dir', join(lab.dir, 'd'.repeat(100))],
      says: /too long for unix sockets/,
    },
    { name: 'a directory in a file', args: ['--state-dir', join(PROGRAM, 'x')], says: /cannot be made or written/ },
    {
      name: 'a gateway without privileges',
      args: [],
      prefix: ['setpriv', '--bounding-set=-net_admin', '--inh-caps=-net_admin', '--'],
      says: /CAP_NET_ADMIN: run as root, or add --no-gateway/,
    },
  ]
  for (const { name, args, says, prefix } of cases) {
    await t.test(name, async () => {
      assert.match(await refused(['--state-dir', dir, '--listen', lab.hostAddress, ...args], prefix), says)
    })
  }
})

test('a port in use: each of the five, and the one of WireGuard', { skip }, async (t) => {
  const args = ['--state-dir', join(lab.dir, 'ports'), '--listen', lab.hostAddress]
  const names = ['enroll', 'authority', 'api', 'gateways', 'pki']
  for (const [index, name] of names.entries()) {
    await t.test(name, async () => {
      await using _listener = await occupy(`require('net').createServer().listen(${8443 + index})`)
      assert.match(
        await refused(args),
        new RegExp(`port ${8443 + index} \\(listener ${name}\\) is in use.*--base-port`),
      )
    })
  }
  await t.test('WireGuard', async () => {
    await using _socket = await occupy(`require('dgram').createSocket('udp4').bind(51820)`)
    assert.match(await refused(args), /UDP port 51820 \(WireGuard\) is in use.*--wireguard-port/)
  })
})

test('too old a Node.js: by ./scripts/up, and by the program itself', { skip }, async () => {
  const bin = join(lab.dir, 'bin')
  mkdirSync(bin)
  const fake = `#!/bin/sh\n[ "$1" = --version ] && { echo v18.20.4; exit 0; }\nexit 1\n`
  writeFileSync(join(bin, 'node'), fake, { mode: 0o755 })
  const up = join(packageRoot(), 'scripts', 'up')
  const script = await lab.run(lab.host, up, [], { env: { PATH: `${bin}:${process.env['PATH'] ?? ''}` } })
  assert.equal(script.code, 7)
  assert.equal(
    script.stderr.trim(),
    'certpeer: Node.js v18.20.4 is too old; install 20.19 or later, then run this again',
  )

  const older = `Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '20.18.3' } })`
  const preload = `data:text/javascript,${encodeURIComponent(older)}`
  const program = await lab.run(lab.host, process.execPath, ['--import', preload, PROGRAM, 'up'])
  assert.equal(program.code, 7)
  assert.equal(program.stderr.trim(), 'certpeer: Node.js 20.18.3 is too old; install 20.19 or later')
})

test('Ctrl-C at any moment of the first start leaves nothing running, and the next run works', { skip }, async () => {
  for (const share of [0.05, 0.3, 0.6, 0.9]) {
    // About as long as a first start takes on a small machine.
    await interruptAfter(5000 * (share + 0.1 * Math.random()))
    assert.deepEqual(await running(), [])
  }
  const ready = await lab.up(['--network', '10.77.0.0/24'])
  assert.equal(ready.gateway?.addresses.filter((address) => address.startsWith('10.77.0.')).length, 1)
})

async function interruptAfter(ms: number): Promise<void> {
  const args = ['up', '--state-dir', lab.stateDir, '--listen', lab.hostAddress, '--interface', lab.gatewayInterface]
  const child = lab.start(lab.host, process.execPath, [PROGRAM, ...args, '--network', '10.77.0.0/24'])
  let said = ''
  child.stderr?.on('data', (chunk: Buffer) => (said += chunk.toString()))
  await new Promise((resolve) => setTimeout(resolve, ms))
  const ended = new Promise<number | string | null>((resolve) =>
    child.once('exit', (code, signal) => resolve(code ?? signal)),
  )
  child.kill('SIGINT')
  // On a slow machine the signal may come before the program listens for it: then there is nothing to stop.
  const how = await ended
  assert.ok(how === 0 || (how === 'SIGINT' && said === ''), `ended with ${how}: ${said}`)
}

test('a second one on the same directory', { skip }, async () => {
  const args = ['up', '--state-dir', lab.stateDir, '--listen', lab.hostAddress, '--base-port', '9443']
  const { code, stderr } = await lab.run(lab.host, process.execPath, [PROGRAM, ...args])
  assert.equal(code, 7)
  assert.match(stderr, /^certpeer: another certpeer uses .*; stop it, or choose another --state-dir\n$/)
})

test('doctor on what runs: nothing is wrong, and the ports are ours', { skip }, async () => {
  const { code, stdout } = await lab.certpeer(lab.host, ['doctor', '--state-dir', lab.stateDir, '--json'])
  const results = JSON.parse(stdout) as { name: string; status: string; detail: string }[]
  const of = (name: string) => results.find((result) => result.name === name)?.detail ?? ''
  assert.deepEqual(
    results.filter(({ status }) => status === 'fail'),
    [],
  )
  assert.equal(code, 0)
  assert.match(of('ports'), /held by the certpeer that runs from/)
  assert.match(of('wireguard port'), /held by the gateway/)
  assert.match(of('database certpeer_ca'), /connects, and may not insert into peers/)
  assert.match(of('database certpeer_server'), /connects, and may not insert into certificates/)
})

test(
  'moved listeners: certificate and configuration are made anew, and devices of before are told',
  { skip },
  async () => {
    const namespace = await lab.addHost('dev', 10)
    const dir = await lab.enrollDevice(namespace, 'laptop')
    const address = lab.ready?.gateway?.addresses.find((one) => one.startsWith('10.77.0.')) ?? ''
    assert.ok(await lab.ping(namespace, address), lab.logs())
    const before = lab.ready?.gateway?.publicKey
    await lab.down()
    assert.match(
      await refused(['--state-dir', lab.stateDir, '--network', '10.78.0.0/24']),
      /fixed as 10\.77\.0\.0\/24 on/,
    )

    // Another port for everything, and another name for the interface.
    const renamed = `${lab.id}h`
    const moved = ['--base-port', '9443', '--wireguard-port', '51999', '--interface', renamed]
    const ready = await lab.up(moved)
    assert.equal(ready.enrollUrl, `https://${lab.hostAddress}:9443`)
    assert.equal(ready.gateway?.endpoint, `${lab.hostAddress}:51999`)
    assert.equal(ready.gateway.interface, renamed)
    assert.equal(ready.gateway.publicKey, before, 'the gateway is the same')
    assert.match(await lab.ok(lab.host, ['list', 'devices', '--json']), /laptop/)
    assert.equal((await lab.gatewayPeers(renamed)).size, 1, 'its peers are there')
    const answer = await lab.certpeer(namespace, ['device', 'renew', '--dir', dir])
    assert.equal(answer.code, 6)
    assert.match(answer.stderr, /cannot reach https:\/\/10\.90\.1\.1:8443\//)
    await lab.down()

    // Back at the old port, with a name: the address stays in the server's certificate, so stored URLs go on.
    const named = await lab.up(['--hostname', 'certpeer.example', '--network', '10.77.0.0/24'])
    assert.equal(named.enrollUrl, 'https://certpeer.example:8443')
    assert.deepEqual(serverNames().dns.sort(), ['certpeer.example', 'localhost'])
    assert.deepEqual(serverNames().ips, [lab.hostAddress])
    await lab.ok(namespace, ['device', 'renew', '--dir', dir])
    await lab.down()

    const v6 = await lab.up(['--listen', '::1'])
    assert.equal(v6.enrollUrl, 'https://[::1]:8443')
    assert.equal(v6.gateway?.endpoint, '[::1]:51820')
    assert.deepEqual(serverNames(), { dns: ['localhost'], ips: ['::1'] })
    assert.match(await lab.ok(lab.host, ['list', 'gateways', '--json']), /\[::1\]:51820/)
    await lab.down()

    await lab.up(['--listen', '0.0.0.0', '--hostname', 'localhost'])
    assert.deepEqual(serverNames(), { dns: ['localhost'], ips: [] })
    await lab.down()
    assert.deepEqual(await running(), [])
  },
)

function serverNames(): { dns: string[]; ips: string[] } {
  const [leaf = Buffer.alloc(0)] = pemToDerAll(
    readFileSync(join(lab.stateDir, 'front', 'server', 'certificate.pem'), 'utf8'),
  )
  const { sanDnsNames, sanIpAddresses } = parseCertificate(leaf)
  return { dns: [...sanDnsNames], ips: [...sanIpAddresses] }
}

test('as nobody, in a directory of its own that nobody else can enter, without a gateway', { skip }, async () => {
  const dir = join(lab.dir, 'nobody')
  mkdirSync(dir, { mode: 0o700 })
  chownSync(dir, NOBODY, NOBODY)
  const as = ['--reuid=65534', '--regid=65534', '--clear-groups', '--inh-caps=-all', '--', process.execPath, PROGRAM]
  const state = join(dir, 's')
  const asked = ['up', '--state-dir', state, '--listen', lab.hostAddress, '--json']
  const withGateway = await lab.run(lab.host, 'setpriv', [...as, ...asked])
  assert.equal(withGateway.code, 7)
  assert.match(withGateway.stderr, /^certpeer: the local gateway needs CAP_NET_ADMIN[^\n]*\n$/)

  const child = lab.start(lab.host, 'setpriv', [...as, ...asked, '--no-gateway'])
  let said = ''
  child.stderr?.on('data', (chunk: Buffer) => (said += chunk.toString()))
  const line = await new Promise<string>((resolve, reject) => {
    child.stdout?.once('data', (chunk: Buffer) => resolve(chunk.toString()))
    child.once('exit', () => reject(new Error(said)))
  })
  assert.equal((JSON.parse(line) as { gateway: unknown }).gateway, null)
  const cli = (...args: string[]) =>
    lab.run(lab.host, 'setpriv', [...as, ...args], { env: { CERTPEER_OPERATOR: join(state, 'operator') } })
  const token = await cli('token', 'create', '--device', 'd')
  assert.equal(token.code, 0, token.stderr)
  const enrolled = await cli('device', 'enroll', token.stdout.trim(), '--dir', join(dir, 'd'))
  assert.equal(enrolled.code, 0, enrolled.stderr)
  const put = await lab.run(lab.host, 'curl', [
    ...['-sS', '-X', 'PUT', '--cacert', join(dir, 'd', 'root.pem'), '--cert', join(dir, 'd', 'certificate.pem')],
    ...['--key', join(dir, 'd', 'tls.key'), `https://${lab.hostAddress}:8445/v1/peer`],
  ])
  assert.match(put.stdout, /"state":"(active|pending)"/)
  const revoked = await cli('revoke', '--device', 'd', '--wait')
  assert.equal(revoked.code, 0, revoked.stderr)
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.kill('SIGINT')
  assert.equal(await ended, 0, said)
  assert.deepEqual(await running(), [])
})

test('with the database of DATABASE_URL', { skip }, async () => {
  const database = await createTestDatabase({ migrated: false })
  const state = join(lab.dir, 'other')
  const elsewhere = database.ownerUrl.replace(/host=[^&]+/, `host=${encodeURIComponent(join(lab.dir, 'nowhere'))}`)
  const unreachable = await upWith(elsewhere, state)
  assert.equal(unreachable.code, 6)
  assert.match(unreachable.stderr, /\ncertpeer: the database of DATABASE_URL does not answer \(ENOENT\)[^\n]*\n$/)
  const wrong = await upWith(database.ownerUrl.replace(/:[^:@]+@/, ':wrong-password-here@'), state)
  assert.match(wrong.stderr, /certpeer: the PostgreSQL server refuses the credentials/)
  assert.equal(wrong.code, 7)

  process.env['DATABASE_URL'] = database.ownerUrl
  try {
    const ready = await lab.up(['--state-dir', state])
    assert.equal(ready.stateDir, state)
  } finally {
    delete process.env['DATABASE_URL']
  }
  const token = await lab.ok(lab.host, ['token', 'create', '--device', 'd', '--operator', join(state, 'operator')])
  const dir = join(lab.dir, 'd')
  await lab.ok(lab.host, ['device', 'enroll', '-', '--dir', dir], { input: token })
  assert.ok(!(await running()).some((line) => line.includes(join(state, 'postgres'))), 'no database of its own')
  assert.match(await lab.ok(lab.host, ['list', 'devices', '--operator', join(state, 'operator')]), /active/)
  await lab.down()
  await database.close()
})

function upWith(databaseUrl: string, state: string): Promise<Finished> {
  const args = [PROGRAM, 'up', '--state-dir', state, '--listen', lab.hostAddress, '--interface', lab.gatewayInterface]
  return lab.run(lab.host, process.execPath, args, { env: { DATABASE_URL: databaseUrl } })
}
