/** `certpeer up` after accidents: everything killed, a ledger that was torn or changed, credentials expired, disk full. */
import assert from 'node:assert/strict'
import { appendFileSync, mkdirSync, readdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { parseCertificate } from '../../src/core/x509/certificate.ts'
import { pemToDerAll } from '../../src/core/x509/pem.ts'
import { run, runOrThrow } from '../../src/platform/spawn.ts'
import { cannotRunLab, eventually, Lab, PROGRAM, type Finished } from '../support/lab.ts'

const skip = cannotRunLab()

let lab: Lab
let device: string
let laptop: string
let gatewayAddress: string

before(async () => {
  if (skip !== false) return
  lab = await Lab.create()
  const ready = await lab.up()
  gatewayAddress = ready.gateway?.addresses.find((address) => address.includes('.')) ?? ''
  device = await lab.addHost('dev', 10)
  laptop = await lab.enrollDevice(device, 'laptop')
})

after(async () => {
  if (skip === false) await lab[Symbol.asyncDispose]()
})

/** Pids in the host's namespace whose command line matches. */
async function pids(pattern: RegExp): Promise<number[]> {
  const { stdout } = await lab.run(lab.host, 'sh', ['-c', `ip netns pids ${lab.host} | xargs -r ps -o pid=,args= -p`])
  return stdout
    .split('\n')
    .filter((line) => pattern.test(line))
    .map((line) => Number.parseInt(line, 10))
}

const OURS = /certpeer\.js|nginx: |postgres/

async function killEverything(): Promise<void> {
  const all = await pids(OURS)
  const ended = lab.down('SIGKILL')
  for (const pid of all) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // Its parent took it along.
    }
  }
  await ended
}

/** `up` that is expected to refuse; what it left running is looked at, too. */
async function refusal(args: readonly string[] = []): Promise<Finished> {
  const command = ['up', '--state-dir', lab.stateDir, '--listen', lab.hostAddress, '--interface', lab.gatewayInterface]
  const finished = await lab.run(lab.host, process.execPath, [PROGRAM, ...command, ...args])
  assert.notEqual(finished.code, 0, finished.stderr)
  assert.deepEqual(await pids(OURS), [], 'nothing is left running')
  return finished
}

test('everything killed at once: the tunnel carries on, and the next run takes it over', { skip }, async () => {
  assert.ok(await lab.ping(device, gatewayAddress), lab.logs())
  const tunnel = await pids(new RegExp(`wireguard-go ${lab.gatewayInterface}$`))
  await killEverything()
  assert.ok(await lab.ping(device, gatewayAddress), 'with nobody there but wireguard-go')
  await lab.up()
  assert.deepEqual(await pids(new RegExp(`wireguard-go ${lab.gatewayInterface}$`)), tunnel, 'the same one')
  assert.ok(await lab.ping(device, gatewayAddress), lab.logs())
  assert.equal((await lab.gatewayPeers()).size, 1)
})

test('without its gateway, a run takes the interface away that another was killed with', { skip }, async () => {
  await killEverything()
  const ready = await lab.up(['--no-gateway'])
  assert.equal(ready.gateway, null)
  assert.equal(await lab.ping(device, gatewayAddress, 1), false)
  await lab.down()
})

function lastSegment(): string {
  const dir = join(lab.stateDir, 'ca', 'ledger')
  const name = readdirSync(dir)
    .filter((file) => file.endsWith('.segment'))
    .sort()
    .at(-1)
  return join(dir, name ?? '')
}

test('a torn tail of the ledger is cut off and reported', { skip }, async () => {
  const whole = readFileSync(lastSegment())
  // The first half of a group that was being written.
  appendFileSync(lastSegment(), whole.subarray(20, 20 + 100))
  await lab.up()
  assert.match(
    readFileSync(join(lab.stateDir, 'log', 'ca.log'), 'utf8'),
    /"tornBytes":100.*torn group that was never acknowledged/,
  )
  assert.match(await lab.ok(lab.host, ['list', 'devices', '--json']), /laptop/)
  await eventually('the device is carried again', () => lab.ping(device, gatewayAddress, 1))
  await lab.down()
})

test('a ledger that was changed or cut is refused: one line says so, and nothing stays', { skip }, async (t) => {
  const path = lastSegment()
  const whole = readFileSync(path)
  const head = readFileSync(join(lab.stateDir, 'ca', 'ledger', 'head'))
  const changed = Buffer.from(whole)
  changed.writeUInt8(changed.readUInt8(400) ^ 1, 400)
  const cases = [
    { name: 'changed', bytes: changed, says: /^certpeer: ca does not start: \S+\.segment is damaged after byte \d+/ },
    {
      name: 'cut',
      bytes: whole.subarray(0, whole.length >> 1),
      says: /^certpeer: ca does not start: \S+\.segment.*were acknowledged/,
    },
    { name: 'empty', bytes: Buffer.alloc(0), says: /^certpeer: ca does not start: \S+\.segment is damaged/ },
  ]
  for (const { name, bytes, says } of cases) {
    await t.test(name, async () => {
      writeFileSync(path, bytes)
      const startedAt = Date.now()
      const { code, stderr } = await refusal()
      assert.equal(code, 7)
      const lines = stderr
        .trimEnd()
        .split('\n')
        .filter((line) => line.startsWith('certpeer: '))
      assert.equal(lines.length, 1, stderr)
      assert.match(lines[0] ?? '', says)
      assert.ok(Date.now() - startedAt < 30_000)
      assert.deepEqual(readFileSync(path), bytes, 'the evidence is untouched')
    })
  }
  writeFileSync(path, whole)
  writeFileSync(join(lab.stateDir, 'ca', 'ledger', 'head'), head)
})

test('operator, server and gateway certificates that expired while it was down are made anew', { skip }, async () => {
  const config = join(lab.stateDir, 'ca', 'config.json')
  const settings = JSON.parse(readFileSync(config, 'utf8')) as object
  const lifetimeSeconds = { 'operator-admin': 40, server: 40, gateway: 40 }
  writeFileSync(config, JSON.stringify({ ...settings, lifetimeSeconds }))
  // Lost, so that new ones are made, which live as long as that.
  for (const dir of ['operator', 'gateway', 'front/server']) rmSync(join(lab.stateDir, dir), { recursive: true })
  await lab.up()
  const key = lab.ready?.gateway?.publicKey
  await killEverything()
  const ends = ['operator', 'gateway', 'front/server'].map((dir) => {
    const [leaf = Buffer.alloc(0)] = pemToDerAll(readFileSync(join(lab.stateDir, dir, 'certificate.pem'), 'utf8'))
    return parseCertificate(leaf).notAfter.getTime()
  })
  const waitMs = Math.max(...ends) + 1000 - Date.now()
  assert.ok(waitMs < 60_000)
  await new Promise((resolve) => setTimeout(resolve, waitMs))
  writeFileSync(config, JSON.stringify(settings))
  const ready = await lab.up()
  assert.notEqual(ready.gateway?.publicKey, key, 'the gateway has joined anew')
  const certificates = JSON.parse(await lab.ok(lab.host, ['list', 'certificates', '--json'])) as {
    role: string
    status: string
  }[]
  assert.equal(certificates.filter(({ role, status }) => role === 'gateway' && status === 'good').length, 1)
  await lab.ok(device, ['device', 'up', '--dir', laptop])
  await eventually('the device finds the new key of the gateway', () => lab.ping(device, gatewayAddress, 1))
  await lab.down()
})

test('a full disk: what cannot be written is refused and nothing acknowledged is lost', { skip }, async () => {
  const state = join(lab.dir, 'full')
  mkdirSync(state, { mode: 0o700 })
  await mount(state)
  try {
    await lab.up(['--state-dir', state])
    const operator = ['--operator', join(state, 'operator')]
    const token = (name: string) => lab.certpeer(lab.host, ['token', 'create', '--device', name, ...operator])
    const enroll = (name: string, secret: string) =>
      lab.certpeer(device, ['device', 'enroll', '-', '--dir', join(lab.dir, name)], { input: secret })
    const ready = [await token('a'), await token('b'), await token('c')].map(({ stdout }) => stdout)
    assert.equal((await enroll('a', ready[0] ?? '')).code, 0)

    fill(state)
    // What still fits into the last block of the ledger's file is written.
    let refused = await token('d')
    for (let count = 0; refused.code === 0 && count < 20; count++) refused = await token('d')
    for (const { code, stderr } of [refused, await enroll('b', ready[1] ?? '')]) {
      assert.equal(code, 6, stderr)
      assert.match(stderr, /the ledger cannot be written: its disk is full; nothing was changed/)
    }
    const revoke = await lab.certpeer(lab.host, ['revoke', '--device', 'a', ...operator])
    assert.notEqual(revoke.code, 0)
    assert.match(await lab.ok(lab.host, ['list', 'devices', '--json', ...operator]), /"status":"active"/)

    rmSync(join(state, 'ballast'))
    await eventually('it goes on by itself', async () => (await token('e')).code === 0, 30_000)
    assert.equal((await enroll('b', ready[1] ?? '')).code, 0, 'with the token that could not be spent')
    assert.equal((await enroll('c', ready[2] ?? '')).code, 0)
    await lab.ok(lab.host, ['revoke', '--device', 'c', '--wait', ...operator])
    await lab.down()
    await lab.up(['--state-dir', state])
    await eventually('everything acknowledged is listed', async () => {
      const { stdout } = await lab.certpeer(lab.host, ['list', 'devices', '--json', ...operator])
      const devices = JSON.parse(stdout) as { name: string; status: string }[]
      const status = new Map(devices.map((one) => [one.name, one.status]))
      return (
        status.get('a') === 'active' &&
        status.get('b') === 'active' &&
        status.get('c') === 'revoked' &&
        status.size === 3
      )
    })
    await lab.down()
  } finally {
    await lab.down()
    await run('umount', ['-l', state], { timeoutMs: 10_000 })
  }
})

async function mount(path: string): Promise<void> {
  await runOrThrow('mount', ['-t', 'tmpfs', '-o', 'size=200m,mode=0700', 'tmpfs', path], { timeoutMs: 10_000 })
}

/** Until not one byte more goes on the disk. */
function fill(dir: string): void {
  const ballast = join(dir, 'ballast')
  writeFileSync(ballast, '')
  for (let bytes = 1 << 24; bytes >= 1; bytes >>= 1) {
    for (;;) {
      try {
        appendFileSync(ballast, Buffer.alloc(bytes))
      } catch {
        break
      }
    }
  }
  assert.equal(statfsSync(dir).bavail, 0)
}
