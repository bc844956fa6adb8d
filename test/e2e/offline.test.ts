/**
 * Nobody to ask: a gateway that is away while a peer is revoked, a control plane that is dead until a certificate's end,
 * a clock that is set back, CRLs that grow old. Real gateway agent, real wireguard-go, real devices; what counts is what
 * `wg show` says.
 */
import assert from 'node:assert/strict'
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { formatPrefix } from '../../src/core/ipam/prefix.ts'
import type { WireGuardKey } from '../../src/core/wireguard/key.ts'
import type { Certificate } from '../../src/core/x509/certificate.ts'
import { readWireGuardKey } from '../../src/core/x509/certpeer-extensions.ts'
import { OIDS } from '../support/certificates.ts'
import { fromNow, mintDevice, readLabPki, readLeaf, readPayload, signCrl } from '../support/hostile-certificates.ts'
import { RemoteGateway } from '../support/hostile-gateway.ts'
import { childOf } from '../support/hostile-server.ts'
import { cannotRunLab, eventually, Lab } from '../support/lab.ts'

const skip = cannotRunLab()
const HOUR = 3_600_000
const SHORT_SECONDS = 30

let lab: Lab
let gateway: RemoteGateway
/** A device that stays up by itself, with a day to live. */
let phoneHost: string
let phone: Device
/** One under `device run` whose certificates live half a minute. */
let briefHost: string
let brief: Device
let briefRun: Running | undefined

interface Running {
  log: string
  readonly stop: () => Promise<void>
}

interface Device {
  readonly dir: string
  readonly key: WireGuardKey
  readonly interface: string
}

describe('offline', { skip }, () => {
  before(async () => {
    lab = await Lab.create()
    await lab.up(['--no-gateway'])
    gateway = await RemoteGateway.join(lab, 'gw', 20)
    gateway.start()
    phoneHost = await lab.addHost('ph', 10)
    briefHost = await lab.addHost('br', 11)
    phone = await enroll(phoneHost, 'phone')
    await eventually('the gateway is connected', async () =>
      (await lab.certpeer(lab.host, ['list', 'gateways', '--json'])).stdout.includes('"connected":true'),
    )
    await lab.ok(phoneHost, ['device', 'up', '--dir', phone.dir, '--interface', phone.interface])
    others = {
      tablet: await enroll(lab.host, 'tablet'),
      laptop: await enroll(lab.host, 'laptop'),
      late: await enroll(lab.host, 'late'),
    }
    await configureAuthority({ lifetimeSeconds: { device: SHORT_SECONDS }, crlNextUpdateSeconds: 600 })
    await gateway.has('phone', [phone.key])
  })

  after(async () => {
    // Whatever failed before: the lab is taken down.
    try {
      await briefRun?.stop()
      await gateway.stop('SIGTERM')
    } finally {
      await lab[Symbol.asyncDispose]()
    }
  })

  let others: { tablet: Device; laptop: Device; late: Device }
  let firstBrief: Certificate

  test('cut from the wire during the revocation, the gateway drops the peer when it is back', async () => {
    const { tablet } = others
    await provision(tablet)
    await gateway.has('tablet too', [phone.key, tablet.key])
    await lab.run(gateway.namespace, 'ip', ['link', 'set', 'wire', 'down'])
    await lab.ok(lab.host, ['revoke', '--device', 'tablet', '--reason', 'keyCompromise'])
    assert.ok((await gateway.peers()).has(tablet.key), 'nobody could tell')
    await lab.run(gateway.namespace, 'ip', ['link', 'set', 'wire', 'up'])
    await gateway.has('phone, and no tablet', [phone.key], 20_000)
  })

  test('killed during the revocation, the next agent drops the peer that the last one left', async () => {
    const { laptop } = others
    await provision(laptop)
    await gateway.has('laptop too', [phone.key, laptop.key])
    await gateway.stop('SIGKILL')
    await lab.ok(lab.host, ['revoke', '--device', 'laptop'])
    assert.ok((await gateway.peers()).has(laptop.key), 'nobody was there to take it away')
    // The server says nothing: what the pki listener publishes has to be enough.
    const server = childOf(lab, 'server')
    process.kill(server, 'SIGSTOP')
    try {
      gateway.start()
      await gateway.has('phone, and no laptop', [phone.key])
    } finally {
      process.kill(server, 'SIGCONT')
    }
    assert.ok(await lab.ping(phoneHost, gateway.address))
  })

  test('under an old CRL nobody is added; who is there stays or goes by the rule of the network', async () => {
    const { late } = others
    await applyRule({ action: 'keep', graceSeconds: 0 })
    // The CRL lives ten minutes.
    gateway.setClock(HOUR)
    await provision(late)
    const refused = new RegExp(`"serial":"${readLeaf(late.dir).serial}","code":"stale_crl"`)
    await eventually('late is refused', () => refused.test(gateway.log))
    await new Promise((resolve) => setTimeout(resolve, 1500))
    await gateway.has('phone alone: kept under an old CRL', [phone.key])

    await applyRule({ action: 'remove', graceSeconds: 0 })
    await gateway.has('nobody: removed under an old CRL', [])
    gateway.setClock(0)
    await eventually('phone and late are back with the clock', async () => {
      const peers = await gateway.peers()
      return peers.has(phone.key) && peers.has(late.key)
    })
    await lab.ok(lab.host, ['revoke', '--device', 'late'])
    await gateway.has('phone', [phone.key])
  })

  test('device run renews in time with the same key and address, and the gateway follows', async () => {
    brief = await enroll(briefHost, 'brief')
    firstBrief = readLeaf(brief.dir)
    const running = runDevice(briefHost, brief)
    briefRun = running
    await gateway.has('brief too', [phone.key, brief.key])
    await eventually('packets pass', () => lab.ping(briefHost, gateway.address, 1))
    assert.equal(readLeaf(brief.dir).serial, firstBrief.serial, 'nothing is renewed before its time')
    // Its peer was away for a moment: WireGuard notices within 15 s, and the tunnel goes on.
    await eventually('packets of the phone pass again', () => lab.ping(phoneHost, gateway.address, 1), 30_000)
    await eventually(
      'a renewed certificate that the gateway has accepted',
      async () => {
        const leaf = readLeaf(brief.dir)
        const isFresh = leaf.notAfter.getTime() - Date.now() > (SHORT_SECONDS - 8) * 1000
        return leaf.serial !== firstBrief.serial && isFresh && accepted(leaf) && (await gateway.peers()).has(brief.key)
      },
      45_000,
    )
    const leaf = readLeaf(brief.dir)
    assert.equal(readWireGuardKey(leaf, OIDS).key, brief.key)
    assert.deepEqual(leaf.addressBlocks?.map(formatPrefix), firstBrief.addressBlocks?.map(formatPrefix))
    assert.ok(leaf.notBefore > firstBrief.notBefore)
    assert.ok(await lab.ping(briefHost, gateway.address))
    const renewals = running.log.match(/"msg":"renewed"/g)?.length ?? 0
    assert.ok(renewals >= 1 && renewals <= 2, `${renewals} renewals`)
  })

  test('control dead: tunnels go on, also over a restart of the gateway, and end at notAfter all the same', async () => {
    const { notAfter } = readLeaf(brief.dir)
    await lab.down()
    assert.ok(await lab.ping(phoneHost, gateway.address))
    assert.ok(await lab.ping(briefHost, gateway.address))

    await gateway.stop('SIGKILL')
    gateway.start()
    assert.ok(await lab.ping(phoneHost, gateway.address), 'phone')
    assert.ok(await lab.ping(briefHost, gateway.address), 'brief')

    await gateway.stop('SIGTERM')
    assert.equal((await gateway.peers()).size, 0, 'told to stop, it takes the tunnel along')
    gateway.start()
    await gateway.has('both from disk, with nobody to ask', [phone.key, brief.key])
    const phonePasses = eventually('phone passes', () => lab.ping(phoneHost, gateway.address, 1), 30_000)

    let lastSeenMs = 0
    await eventually(
      'brief ends by itself',
      async () => {
        const lookedAtMs = Date.now()
        const isThere = (await gateway.peers()).has(brief.key)
        if (isThere) lastSeenMs = lookedAtMs
        return !isThere
      },
      SHORT_SECONDS * 1000 + 10_000,
    )
    const endsMs = notAfter.getTime()
    assert.ok(lastSeenMs > endsMs - 1500, `was seen last ${endsMs - lastSeenMs} ms before notAfter`)
    assert.ok(lastSeenMs < endsMs + 1500, `was still there ${lastSeenMs - endsMs} ms after notAfter`)
    await gateway.has('phone alone', [phone.key])
    await phonePasses
    assert.equal(await lab.ping(briefHost, gateway.address, 1), false)
    // It has tried, and waited longer each time.
    const failures = [...(briefRun?.log ?? '').matchAll(/"failures":(\d+),"msg":"not renewed yet"/g)].map(([, n]) =>
      Number(n),
    )
    assert.ok(failures.length >= 2 && failures.length <= 8, `tried ${failures.length} times in vain`)
    assert.deepEqual(
      failures,
      failures.map((_, index) => index + 1),
    )
  })

  test('a clock that is set back revives nothing', async () => {
    await gateway.stop('SIGTERM')
    const pki = readLabPki(lab)
    // The lab is only minutes old: this CRL of the very newest date stands for those of an older one.
    const { infrastructureCa, deviceCa } = pki
    const notBefore = new Date(deviceCa.certificate.notBefore.getTime() + 1000)
    const crl = signCrl(infrastructureCa, { number: 1n << 80n, thisUpdate: fromNow(5 * 60_000) })
    writeFileSync(join(gateway.dir, 'peers', `${infrastructureCa.certificate.keyId}.crl`), crl)
    const ended = mintDevice(pki, {
      id: 'ended',
      address: '10.88.200.1/32',
      notBefore,
      notAfter: fromNow(-60_000),
    })
    const living = mintDevice(pki, { id: 'living', address: '10.88.200.2/32', notBefore })
    // As an agent leaves them that was switched off before the end of one.
    for (const certificate of [ended, living]) {
      const record = { type: 'peer', network: 'default/default', certificate: certificate.der.toString('base64') }
      appendFileSync(join(gateway.dir, 'peers', 'journal.ndjson'), `${JSON.stringify(record)}\n`)
    }
    gateway.setClock(-4 * 60_000)
    gateway.start()
    const expected = [phone.key, readWireGuardKey(living, OIDS).key]
    await gateway.has('phone and the one that lives', expected)
    // A few turns of the loop later it is not different; nor for one whose end this gateway has seen itself.
    await new Promise((resolve) => setTimeout(resolve, 2500))
    await gateway.has('still', expected)
    gateway.setClock(0)
  })

  test('control back: device run renews after the end, and has its address and its tunnel again', async () => {
    await lab.up(['--no-gateway'])
    await eventually('brief is a peer again', async () => (await gateway.peers()).has(brief.key), 45_000)
    const leaf = readLeaf(brief.dir)
    assert.deepEqual(leaf.addressBlocks?.map(formatPrefix), firstBrief.addressBlocks?.map(formatPrefix))
    assert.deepEqual((await gateway.peers()).get(brief.key)?.sort(), leaf.addressBlocks?.map(formatPrefix).sort())
    await eventually('packets pass', () => lab.ping(briefHost, gateway.address, 1), 30_000)
  })

  async function enroll(namespace: string, name: string): Promise<Device> {
    const dir = await lab.enrollDevice(namespace, name, { up: false })
    return { dir, key: readWireGuardKey(readLeaf(dir), OIDS).key, interface: lab.deviceInterface(name) }
  }

  /** A peer without a tunnel of its own: what `device up` asks of the server. */
  async function provision({ dir }: Device): Promise<void> {
    const { code, stdout, stderr } = await lab.run(lab.host, 'curl', [
      ...['-sS', '--fail-with-body', '-X', 'PUT', '--cacert', join(dir, 'root.pem')],
      ...['--cert', join(dir, 'certificate.pem'), '--key', join(dir, 'tls.key')],
      `${lab.ready?.apiUrl ?? ''}/v1/peer`,
    ])
    assert.equal(code, 0, stderr + stdout)
  }

  /** Puts settings into the authority's configuration and has it started again with them. */
  async function configureAuthority(settings: object): Promise<void> {
    const path = join(lab.stateDir, 'ca', 'config.json')
    writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, 'utf8')) as object), ...settings }))
    const pid = childOf(lab, 'ca')
    process.kill(pid, 'SIGTERM')
    await eventually('another authority', () => {
      try {
        return childOf(lab, 'ca') !== pid
      } catch {
        return false
      }
    })
    await eventually('the authority answers', async () => {
      const args = ['-sS', '-o', '/dev/null', '-w', '%{http_code}', `${lab.ready?.pkiUrl ?? ''}/issuers.json`]
      return (await lab.run(lab.host, 'curl', args)).stdout === '200'
    })
  }

  async function applyRule(staleCrl: object): Promise<void> {
    const { pools, keyPrefix } = readPayload(readFileSync(join(phone.dir, 'networks', 'default.default.jws'), 'utf8'))
    const input = JSON.stringify({ pools, keyPrefix, staleCrl })
    const { number } = JSON.parse(await lab.ok(lab.host, ['network', 'apply', '-', '--json'], { input })) as {
      number: number
    }
    await eventually(`network document ${number}`, () =>
      new RegExp(`"number":${number},"msg":"network document accepted"`).test(gateway.log),
    )
  }

  /** Whether the gateway has written down that it took this very certificate. */
  function accepted(certificate: Certificate): boolean {
    const text = certificate.der.toString('base64')
    return gateway.journal().some((record) => record.type === 'peer' && record.certificate === text)
  }

  function runDevice(namespace: string, device: Device): Running {
    const program = join(import.meta.dirname, '..', 'support', 'hostile-device.js')
    const intervals = JSON.stringify({ repairIntervalMs: 1000, refreshIntervalMs: 2000 })
    const child = lab.start(namespace, process.execPath, [program, device.dir, device.interface, intervals])
    const running = {
      log: '',
      stop: async () => {
        if (child.exitCode !== null || child.signalCode !== null) return
        const ended = new Promise((resolve) => child.once('exit', resolve))
        child.kill('SIGTERM')
        await ended
      },
    }
    const keep = (chunk: Buffer) => (running.log += chunk.toString())
    child.stdout?.on('data', keep)
    child.stderr?.on('data', keep)
    return running
  }
})
