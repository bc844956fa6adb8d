/**
 * The `server` is the enemy: a hostile one stands behind the real nginx and says what it likes to a real gateway agent
 * with a real wireguard-go and to a real device. It can refuse service. It cannot add a peer, swap a key, move an
 * address, keep a revoked peer, hand a device a foreign gateway, or change its routes and DNS.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { parseAddress, formatPrefix } from '../../src/core/ipam/prefix.ts'
import type { NetworkDocument } from '../../src/core/messages/network.ts'
import type { DownMessage, UpMessage } from '../../src/core/messages/stream.ts'
import { wireGuardKeyToBytes, type WireGuardKey } from '../../src/core/wireguard/key.ts'
import { parseCertificate, type Certificate } from '../../src/core/x509/certificate.ts'
import { readWireGuardKey } from '../../src/core/x509/certpeer-extensions.ts'
import { derToPem } from '../../src/core/x509/pem.ts'
import type { PeerAnswer } from '../../src/core/messages/views.ts'
import { makeInfrastructureCa, makeRoot, OIDS, type Authority } from '../support/certificates.ts'
import {
  changePayload,
  fromNow,
  makeTenantCa,
  mintDevice,
  mintGateway,
  newKey,
  readLabPki,
  readLeaf,
  readPayload,
  signCrl,
  signDocument,
  type LabPki,
} from '../support/hostile-certificates.ts'
import { RemoteGateway } from '../support/hostile-gateway.ts'
import { HostileServer } from '../support/hostile-server.ts'
import { cannotRunLab, eventually, Lab, type Finished } from '../support/lab.ts'

const skip = cannotRunLab()
const NETWORK = 'default/default'
const HOUR = 3_600_000

type Applied = Extract<UpMessage, { type: 'applied' }>

let lab: Lab
let pki: LabPki
let hostile: HostileServer
let gateway: RemoteGateway
let device: string
/** Credential directories. */
let aliceDir: string
let bobDir: string
let serverDir: string
let alice: Certificate
let bob: Certificate
let aliceKey: WireGuardKey
/** The network document of the beginning, number 1. */
let firstDocument: string
let revision = 0

before(async () => {
  if (skip !== false) return
  lab = await Lab.create()
  await lab.up(['--no-gateway'])
  pki = readLabPki(lab)
  device = await lab.addHost('dev', 10)
  gateway = await RemoteGateway.join(lab, 'gw', 20)
  aliceDir = await lab.enrollDevice(device, 'alice', { up: false })
  bobDir = await lab.enrollDevice(device, 'bob', { up: false })
  serverDir = join(lab.dir, 'evil-server')
  const credential = ['--role', 'server', '--name', 'evil', '--ip', '10.90.1.66', '--out', serverDir]
  await lab.ok(lab.host, ['ca', 'credential', '--dir', join(lab.stateDir, 'ca'), ...credential])
  alice = readLeaf(aliceDir)
  bob = readLeaf(bobDir)
  aliceKey = readWireGuardKey(alice, OIDS).key
  firstDocument = readFileSync(join(aliceDir, 'networks', 'default.default.jws'), 'utf8').trim()
  hostile = await HostileServer.takeOver(lab)
  hostile.greeting = () => [...introduction(), snapshot([alice])]
  gateway.start()
})

after(async () => {
  if (skip !== false) return
  // Whatever failed before: the lab is taken down.
  try {
    await gateway.stop('SIGTERM')
    await hostile[Symbol.asyncDispose]()
  } finally {
    await lab[Symbol.asyncDispose]()
  }
})

async function publishedDocument(): Promise<string> {
  const url = `${lab.ready?.pkiUrl ?? ''}/networks/default/default.jws`
  return (await lab.run(device, 'curl', ['-sS', url])).stdout.trim()
}

const base64 = (der: Buffer) => der.toString('base64')

/** What an honest server says first. */
function introduction(): DownMessage[] {
  const issuers = [pki.deviceCa, pki.infrastructureCa].map(({ certificate }) => base64(certificate.der))
  return [
    { type: 'issuers', certificates: issuers },
    ...['root.crl', 'crl/infrastructure.crl', 'crl/device-default.crl'].map((name): DownMessage => ({
      type: 'crl',
      crl: base64(readFileSync(join(lab.stateDir, 'ca', name))),
    })),
    { type: 'network', document: firstDocument },
  ]
}

function snapshot(certificates: readonly Certificate[], more = false): DownMessage {
  revision += 1
  return {
    type: 'snapshot',
    network: NETWORK,
    revision,
    certificates: certificates.map(({ der }) => base64(der)),
    more,
  }
}

/** Says it and waits until the gateway has done with it: the codes of what it refuses, by serial. */
async function say(message: DownMessage): Promise<Record<string, string>> {
  const from = hostile.received.length
  const stated = revision
  hostile.say(message)
  const applied = await hostile.heard(
    `applied ${stated}`,
    (each): each is Applied => each.type === 'applied' && each.revision >= stated,
    from,
  )
  return Object.fromEntries(applied.failed.map(({ serial, code }) => [serial, code]))
}

function offer(der: Buffer): Promise<Record<string, string>> {
  revision += 1
  return say({ type: 'set', network: NETWORK, revision, certificate: base64(der) })
}

/** Waits until everything that was said so far has been dealt with. */
async function settled(): Promise<void> {
  await offer(alice.der)
}

async function onlyAlice(what: string): Promise<void> {
  const allowed = (alice.addressBlocks ?? []).map(formatPrefix).sort()
  const peers = await gateway.peers()
  assert.deepEqual([...peers.keys()], [aliceKey], what)
  assert.deepEqual(peers.get(aliceKey)?.sort(), allowed, what)
}

/** The same certificate with other bytes at one place: what somebody makes who has no key of a CA. */
function patch(certificate: Certificate, from: Buffer, to: Buffer): Buffer {
  const at = certificate.der.indexOf(from)
  assert.ok(at > 0 && from.length === to.length)
  const der = Buffer.from(certificate.der)
  to.copy(der, at)
  return der
}

describe('a hostile server and a gateway', { skip }, () => {
  test('told the truth, the gateway serves: what is refused below is refused for its guard', async () => {
    await gateway.has('alice', [aliceKey])
    await onlyAlice('at the beginning')
    const added = mintDevice(pki, { id: 'good', address: '10.88.200.9/32' })
    assert.deepEqual(await offer(added.der), {})
    assert.equal((await gateway.peers()).size, 2)
    revision += 1
    await say({ type: 'remove', network: NETWORK, revision, serial: added.serial })
    await onlyAlice('when it is removed')
  })

  const own = () => readLeaf(gateway.dir)
  const foreign = (): Certificate => {
    const ca = makeTenantCa(pki, 'other')
    hostile.say({ type: 'issuers', certificates: [base64(ca.certificate.der)] })
    hostile.say({ type: 'crl', crl: base64(signCrl(ca, { number: 1n })) })
    return mintDevice(pki, { id: 'mallory', address: '10.88.200.1/32', tenant: 'other', ca })
  }
  const attackersOwn = (): Certificate => {
    const root = makeRoot()
    const ca = { ...makeTenantCa({ ...pki, root }, 'default') }
    hostile.say({ type: 'issuers', certificates: [base64(root.certificate.der), base64(ca.certificate.der)] })
    hostile.say({ type: 'crl', crl: base64(signCrl(ca, { number: 1n })) })
    return mintDevice(pki, { id: 'mallory', address: '10.88.200.2/32', ca })
  }
  const REFUSED: readonly [string, () => Buffer, string][] = [
    ["a foreign tenant's device, whose CA the same root has signed", () => foreign().der, 'foreign_network'],
    [
      'a device of another network of the tenant',
      () => mintDevice(pki, { id: 'd1', address: '10.88.200.3/32', network: 'lab' }).der,
      'foreign_network',
    ],
    ['a device of a CA of its own', () => attackersOwn().der, 'certificate_untrusted'],
    [
      'the right certificate with its own WireGuard key in it',
      () => patch(alice, wireGuardKeyToBytes(aliceKey), wireGuardKeyToBytes(newKey())),
      'certificate_untrusted',
    ],
    [
      'the right certificate with another address in it',
      () => patch(bob, addressBytes(bob), Buffer.from([10, 88, 200, 4])),
      'certificate_untrusted',
    ],
    ["the gateway's own certificate", () => own().der, 'bad_client_certificate'],
    ["a server's certificate", () => readLeaf(serverDir).der, 'bad_client_certificate'],
    [
      'a device that has expired',
      () => mintDevice(pki, { id: 'd2', address: '10.88.200.5/32', ...endedMeanwhile(pki.deviceCa) }).der,
      'certificate_expired',
    ],
    [
      'a second device with the key of a peer',
      () => mintDevice(pki, { id: 'd3', address: '10.88.200.6/32', key: aliceKey }).der,
      'key_conflict',
    ],
    [
      'a second device with the address of a peer',
      () => mintDevice(pki, { id: 'd4', address: formatPrefix(firstAddress(alice)) }).der,
      'address_conflict',
    ],
    [
      "a device with the gateway's key",
      () => mintDevice(pki, { id: 'd5', address: '10.88.200.7/32', key: gateway.publicKey as WireGuardKey }).der,
      'key_conflict',
    ],
    [
      "a device with the gateway's address",
      () => mintDevice(pki, { id: 'd6', address: formatPrefix(parseAddress(gateway.address)) }).der,
      'address_conflict',
    ],
  ]
  for (const [what, make, code] of REFUSED) {
    test(`${what} is refused as ${code}`, async () => {
      const der = make()
      const failed = await offer(der)
      const { serial } = parseCertificate(der)
      // An issuing CA that is not known yet, or another certificate of the identity, may have been refused before.
      assert.equal(failed[serial], code)
      await onlyAlice(what)
      // Said as a whole it is not different.
      assert.equal((await say(snapshot([alice, parseCertificate(der)])))[serial], code)
      await onlyAlice(what)
      assert.deepEqual(await say(snapshot([alice])), {})
    })
  }

  test('what is said of a network that the gateway does not serve, nobody hears', async () => {
    const { der, serial } = mintDevice(pki, { id: 'd7', address: '10.88.200.8/32', network: 'lab' })
    for (const network of ['default/lab', 'other/default', '', '__proto__', 'default']) {
      hostile.say({ type: 'set', network, revision: 1, certificate: base64(der) })
      hostile.say({ type: 'snapshot', network, revision: 2, certificates: [base64(der)], more: false })
      hostile.say({ type: 'remove', network, revision: 3, serial: alice.serial })
    }
    await settled()
    await onlyAlice('a network that is not served')
    assert.ok(serial)
  })

  test('the certificate of before a renewal is not taken back, nor after a restart', async () => {
    const old = alice
    await lab.ok(device, ['device', 'renew', '--dir', aliceDir])
    alice = readLeaf(aliceDir)
    assert.notEqual(alice.serial, old.serial)
    assert.deepEqual(await offer(alice.der), {})
    await onlyAlice('renewed')

    assert.equal((await offer(old.der))[old.serial], 'older_certificate')
    await onlyAlice('the old one is offered')
    // Only the old one: that refuses service, and nothing else.
    assert.equal((await say(snapshot([old])))[old.serial], 'older_certificate')
    await gateway.has('nobody', [])

    await gateway.stop('SIGTERM')
    const from = hostile.received.length
    hostile.greeting = () => [...introduction(), snapshot([old])]
    gateway.start()
    const applied = await hostile.heard(
      'applied after a restart',
      (each): each is Applied => each.type === 'applied' && each.revision === revision,
      from,
    )
    assert.deepEqual(applied.failed, [{ serial: old.serial, code: 'older_certificate' }])
    await gateway.has('nobody', [])
    hostile.greeting = () => [...introduction(), snapshot([alice])]
    assert.deepEqual(await say(snapshot([alice])), {})
    await onlyAlice('the new one again')
  })

  test('a revoked peer goes though nobody tells, and nothing that is said brings it back', async () => {
    const crlPath = join(lab.stateDir, 'ca', 'crl', 'device-default.crl')
    const oldCrl = readFileSync(crlPath)
    assert.deepEqual(await offer(bob.der), {})
    await gateway.has('alice and bob', [aliceKey, readWireGuardKey(bob, OIDS).key])
    // A snapshot that never ends must not hold the revocation back.
    hostile.say(snapshot([alice, bob], true))
    await lab.ok(lab.host, ['revoke', '--device', 'bob', '--reason', 'keyCompromise'])
    await gateway.has('alice alone: the CRL came from the pki listener', [aliceKey])

    assert.equal((await say(snapshot([alice, bob])))[bob.serial], 'certificate_revoked')
    assert.equal((await offer(bob.der))[bob.serial], 'certificate_revoked')
    await onlyAlice('set again')

    const from = hostile.received.length
    hostile.say({ type: 'crl', crl: base64(oldCrl) })
    assert.equal((await offer(bob.der))[bob.serial], 'certificate_revoked')
    assert.equal(
      hostile.received.slice(from).some(({ type }) => type === 'crl-applied'),
      false,
      'an older CRL is not applied',
    )
    await onlyAlice('under an old CRL')

    // A CRL that no longer names it, as after the certificate's end: what was seen once stays.
    const number = (1n << 100n) + 1n
    hostile.say({ type: 'crl', crl: base64(signCrl(pki.deviceCa, { number })) })
    assert.equal((await offer(bob.der))[bob.serial], 'certificate_revoked')
    await onlyAlice('under a CRL without it')

    await gateway.stop('SIGKILL')
    await onlyAlice('killed')
    hostile.greeting = () => [{ type: 'crl', crl: base64(oldCrl) }, snapshot([alice, bob])]
    const seen = hostile.received.length
    gateway.start()
    const applied = await hostile.heard(
      'applied after a restart',
      (each): each is Applied => each.type === 'applied' && each.revision === revision,
      seen,
    )
    assert.deepEqual(applied.failed, [{ serial: bob.serial, code: 'certificate_revoked' }])
    await onlyAlice('started again')
    hostile.greeting = () => [...introduction(), snapshot([alice])]
  })

  test('a forged CRL revokes nobody, and no other CA ends our peers', async () => {
    const other = makeTenantCa(pki, 'third')
    hostile.say({ type: 'issuers', certificates: [base64(other.certificate.der)] })
    const number = 1n << 101n
    for (const crl of [
      signCrl(pki.deviceCa, { number, revoked: [alice.serial], signer: other }),
      signCrl(other, { number, revoked: [alice.serial] }),
      // Would be the end of all peers, if its date counted for more than its own certificates.
      signCrl(other, { number: number + 1n, thisUpdate: fromNow(1000 * HOUR) }),
    ]) {
      hostile.say({ type: 'crl', crl: base64(crl) })
    }
    await settled()
    await onlyAlice('after forged CRLs')
  })

  test('a changed, foreign or older network document changes nothing', async () => {
    const link = async () => (await lab.run(gateway.namespace, 'ip', ['link', 'show', gateway.interface])).stdout
    const routes = async () =>
      (await lab.run(gateway.namespace, 'ip', ['-o', 'route', 'show', 'dev', gateway.interface])).stdout
    const { pools, keyPrefix } = readPayload(firstDocument)
    await lab.ok(lab.host, ['network', 'apply', '-'], { input: JSON.stringify({ pools, keyPrefix, mtu: 1380 }) })
    await eventually('the second document', async () => (await link()).includes('mtu 1380'))
    const before = await routes()
    const second = await publishedDocument()
    const evil: Partial<NetworkDocument> = { number: 99, mtu: 1281, pools: ['0.0.0.0/0'], possession: 'optional' }
    const documents = [
      firstDocument,
      changePayload(second, { number: 99, mtu: 1281 }),
      changePayload(second, evil),
      await signDocument(second, { number: 99, mtu: 1281 }, serverDir),
      await signDocument(second, { number: 99, network: 'lab' }, serverDir),
      'a.b.c',
    ]
    gateway.log = ''
    for (const document of documents) hostile.say({ type: 'network', document })
    await settled()
    await onlyAlice('after changed documents')
    // Longer than a look at the interface takes.
    await new Promise((resolve) => setTimeout(resolve, 1500))
    assert.match(await link(), /mtu 1380/)
    assert.equal(await routes(), before)
    const refused = gateway.log.match(/"code":"[a-z_]+"[^\n]*"msg":"network document refused"/g) ?? []
    assert.equal(refused.length, documents.length, gateway.log.slice(-4000))
  })

  test('garbage, too many lines of it and a line without end: the agent goes on with what it has', async () => {
    const { pid } = gateway
    const good = mintDevice(pki, { id: 'd8', address: '10.88.200.10/32' })
    const set = { type: 'set', network: NETWORK, revision: revision + 1, certificate: base64(good.der) }
    for (const line of [
      'nothing',
      '{}',
      '[]',
      'null',
      '"set"',
      '{"type":"constructor"}',
      '{"type":"__proto__","network":"default/default"}',
      JSON.stringify({ ...set, publicKey: newKey() }),
      JSON.stringify({ ...set, allowedIps: ['0.0.0.0/0'] }),
      JSON.stringify({ ...set, revision: -1 }),
      JSON.stringify({ ...set, revision: 1.5 }),
      JSON.stringify({ ...set, revision: '7' }),
      JSON.stringify({ ...set, certificate: '' }),
      JSON.stringify({ ...set, certificate: 'A'.repeat(20_000) }),
      JSON.stringify({ type: 'remove', network: NETWORK, revision: revision + 1, serial: 'zz' }),
      `${'['.repeat(100_000)}${']'.repeat(100_000)}`,
      '\u0000\u0001\ufffd',
    ]) {
      hostile.raw(`${line}\n`)
    }
    hostile.raw(Buffer.from([0x7b, 0x0d, 0x0a]))
    await settled()
    await onlyAlice('after garbage')

    // Not UTF-8, then more bad lines than a stream may have: each time it begins anew.
    for (const bytes of [Buffer.from([0xff, 0xfe, 0x0a]), Buffer.from('no\n'.repeat(200))]) {
      await reconnects(() => void hostile.raw(bytes))
      await onlyAlice('after a bad stream')
    }
    await reconnects(() => pour(256))
    await onlyAlice('after a line without end')
    assert.equal(gateway.pid, pid, 'the same process all the time')
    const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid ?? 0}/status`, 'utf8'))?.[1]
    assert.ok(Number(peak) < 700_000, `${peak} kB at its peak`)
  })

  test('revisions out of order, removals of others and made-up ends: service refused at most', async () => {
    const good = mintDevice(pki, { id: 'd9', address: '10.88.200.11/32' })
    for (const far of [Number.MAX_SAFE_INTEGER, revision + 50, 0]) {
      hostile.say({ type: 'set', network: NETWORK, revision: far, certificate: base64(alice.der) })
      hostile.say({ type: 'remove', network: NETWORK, revision: far, serial: good.serial })
    }
    await say(snapshot([alice]))
    await onlyAlice('after a gap')
    // Removed, offered again under the number it had, and under the next.
    revision += 1
    await say({ type: 'remove', network: NETWORK, revision, serial: alice.serial })
    await gateway.has('nobody', [])
    assert.deepEqual(await offer(alice.der), {})
    await onlyAlice('back')
  })

  test('a snapshot that leaves everybody out refuses service; told the truth, the gateway serves again', async () => {
    await say(snapshot([]))
    await gateway.has('nobody', [])
    assert.deepEqual(await say(snapshot([alice])), {})
    await onlyAlice('served again')
  })

  /** Waits until the gateway has given up the stream and begun another, which was told the truth. */
  async function reconnects(act: () => Promise<void> | void): Promise<void> {
    const from = hostile.received.length
    await act()
    await hostile.heard('hello again', (each): each is UpMessage => each.type === 'hello', from, 30_000)
    await settled()
  }

  /** A line without end, as fast as the gateway takes it, until it has had enough; never more than `maxMegabytes`. */
  async function pour(maxMegabytes: number): Promise<void> {
    const chunk = Buffer.alloc(1_048_576, 0x61)
    for (let megabytes = 0; megabytes < maxMegabytes; megabytes++) {
      if (hostile.streamCount === 0) return
      if (!hostile.raw(chunk)) await hostile.drained()
    }
    assert.fail(`the gateway has taken a line of ${maxMegabytes} MB`)
  }
})

describe('a hostile server and a device', { skip }, () => {
  let real: PeerAnswer['gateways'][number]
  let secondDocument: string
  let aliceInterface: string

  before(() => {
    if (skip !== false) return
    real = hintOf(readLeaf(gateway.dir), '10.90.1.20:51820')
    aliceInterface = lab.deviceInterface('alice')
    secondDocument = ''
  })

  function hintOf(
    certificate: Certificate | Buffer,
    endpoint: string,
    issuer = pki.infrastructureCa.certificate,
  ): PeerAnswer['gateways'][number] {
    const der = Buffer.isBuffer(certificate) ? certificate : certificate.der
    return { certificate: derToPem(der), issuer: derToPem(issuer.der), endpoint }
  }

  function answers(changes: Partial<PeerAnswer>): void {
    const answer: PeerAnswer = {
      state: 'active',
      revision,
      waitingFor: [],
      networkDocument: secondDocument,
      gateways: [real],
      ...changes,
    }
    hostile.answer = () => ({ status: 200, contentType: 'application/json', body: JSON.stringify(answer) })
  }

  const up = (): Promise<Finished> =>
    lab.certpeer(device, ['device', 'up', '--dir', aliceDir, '--interface', aliceInterface])

  async function peers(): Promise<string[]> {
    const { stdout } = await lab.run(device, 'wg', ['show', aliceInterface, 'peers'])
    return stdout.split('\n').filter((line) => line !== '')
  }

  const routes = async () => (await lab.run(device, 'ip', ['-o', 'route', 'show'])).stdout

  test('told the truth, the device comes up and its packets pass', async () => {
    await gateway.has('alice', [aliceKey])
    secondDocument = await publishedDocument()
    answers({})
    const { code, stderr } = await up()
    assert.equal(code, 0, stderr)
    assert.deepEqual(await peers(), [gateway.publicKey])
    assert.ok(await lab.ping(device, gateway.address))
  })

  const BAD_GATEWAYS: readonly [string, () => PeerAnswer['gateways'][number], RegExp][] = [
    [
      'of a CA of its own',
      () => {
        const ca = makeInfrastructureCa(makeRoot())
        const certificate = mintGateway(ca, { name: 'gw', network: NETWORK })
        return hintOf(certificate, '10.90.1.66:51820', ca.certificate)
      },
      /root|issu|chain|sign/i,
    ],
    [
      'of another network',
      () => hintOf(mintGateway(pki.infrastructureCa, { name: 'lab', network: 'default/lab' }), '10.90.1.66:51820'),
      /is not certified for default\/default/,
    ],
    ['that is a device', () => hintOf(bob, '10.90.1.66:51820', pki.deviceCa.certificate), /device/],
    ['that is a server', () => hintOf(readLeaf(serverDir), '10.90.1.66:51820'), /server/],
    [
      'that has expired',
      () =>
        hintOf(
          mintGateway(pki.infrastructureCa, { name: 'gw', network: NETWORK, ...endedMeanwhile(pki.infrastructureCa) }),
          '10.90.1.66:51820',
        ),
      /expired/,
    ],
    [
      'with another key in the right certificate',
      () => {
        const leaf = readLeaf(gateway.dir)
        const from = wireGuardKeyToBytes(readWireGuardKey(leaf, OIDS).key)
        return hintOf(patch(leaf, from, wireGuardKeyToBytes(newKey())), '10.90.1.66:51820')
      },
      /sign/,
    ],
  ]
  for (const [what, make, says] of BAD_GATEWAYS) {
    test(`a gateway ${what} is refused`, async () => {
      answers({ gateways: [make()] })
      const { code, stderr } = await up()
      assert.notEqual(code, 0)
      assert.match(stderr, says)
      assert.deepEqual(await peers(), [gateway.publicKey])
    })
  }

  test('bad gateways beside the right one are left out', async () => {
    answers({ gateways: [...BAD_GATEWAYS.map(([, make]) => make()), real] })
    const { code, stderr } = await up()
    assert.equal(code, 0, stderr)
    assert.equal(stderr.match(/gateway refused/g)?.length, BAD_GATEWAYS.length)
    assert.deepEqual(await peers(), [gateway.publicKey])
  })

  test('changed routes and DNS, an older document and one that is signed by no authority change nothing', async () => {
    const before = await routes()
    const keptPath = join(aliceDir, 'networks', 'default.default.jws')
    const kept = readFileSync(keptPath, 'utf8')
    const dns = { servers: ['10.90.1.66'], search: ['bank.example'] }
    for (const [document, says] of [
      [firstDocument, /older/],
      [changePayload(secondDocument, { number: 99, routes: ['10.20.0.0/16'] }), /sign/],
      [changePayload(secondDocument, { number: 99, dns }), /sign/],
      [await signDocument(secondDocument, { number: 99, dns }, serverDir), /server/],
      [await signDocument(secondDocument, { number: 99, dns }, aliceDir), /device/],
      ['', /./],
    ] as const) {
      answers({ networkDocument: document })
      const { code, stderr } = await up()
      assert.notEqual(code, 0, document)
      assert.match(stderr, says)
      assert.equal(await routes(), before)
      assert.equal(readFileSync(keptPath, 'utf8'), kept)
    }
    assert.deepEqual(await peers(), [gateway.publicKey])
  })

  test('garbage and too much of it: the tunnel stays as it was', async () => {
    const json = 'application/json'
    for (const [contentType, body, isRefused] of [
      ['text/html', '<html>', true],
      [json, '{"state":"active","gateways":"all"}', true],
      [json, `${'['.repeat(50_000)}${']'.repeat(50_000)}`, true],
      // Nobody who answers so is a server: as good as away, and the gateways of last time are used.
      [json, Buffer.alloc(20_000_000, 0x5b), false],
    ] as const) {
      hostile.answer = () => ({ status: 200, contentType, body })
      const { code, stderr } = await up()
      assert.equal(code !== 0, isRefused, stderr)
      assert.match(stderr, /^(?:certpeer: .+\n)+$/)
      assert.deepEqual(await peers(), [gateway.publicKey])
    }
    assert.ok(await lab.ping(device, gateway.address))
  })

  test('a revoked gateway leaves the tunnel and is refused, however often the server names it', async () => {
    const second = await RemoteGateway.join(lab, 'gw2', 21)
    const other = hintOf(readLeaf(second.dir), '10.90.1.21:51820')
    answers({ gateways: [real, other] })
    assert.equal((await up()).code, 0)
    assert.deepEqual((await peers()).sort(), [gateway.publicKey, second.publicKey].sort())

    let asked = 0
    const honest = hostile.answer
    hostile.answer = (request) => {
      asked += 1
      return honest(request)
    }
    const running = lab.start(device, process.execPath, [
      join(import.meta.dirname, '..', 'support', 'hostile-device.js'),
      aliceDir,
      aliceInterface,
      JSON.stringify({ revocationIntervalMs: 500, repairIntervalMs: 300 }),
    ])
    let said = ''
    running.stdout?.on('data', (chunk: Buffer) => (said += chunk.toString()))
    running.stderr?.on('data', (chunk: Buffer) => (said += chunk.toString()))
    await eventually('device run asks the server', () => asked > 0)
    assert.deepEqual((await peers()).sort(), [gateway.publicKey, second.publicKey].sort())
    await lab.ok(lab.host, ['revoke', '--gateway', 'gw2'])
    await eventually('device run drops the revoked gateway', async () => (await peers()).length === 1, 15_000).catch(
      (error: unknown) => {
        throw new Error(said, { cause: error })
      },
    )
    assert.deepEqual(await peers(), [gateway.publicKey])
    assert.ok(await lab.ping(device, gateway.address))
    // Killed: it takes nothing along, and what another one may find is still there.
    running.kill('SIGKILL')

    const beside = await up()
    assert.equal(beside.code, 0, beside.stderr)
    assert.match(beside.stderr, /gateway refused.*revoked/)
    assert.deepEqual(await peers(), [gateway.publicKey])

    // On the interface by hand, or from before: it is taken off also when the server names nothing else.
    await lab.run(device, 'wg', ['set', aliceInterface, 'peer', second.publicKey, 'allowed-ips', '10.88.0.2/32'])
    answers({ gateways: [other] })
    const alone = await up()
    assert.notEqual(alone.code, 0)
    assert.match(alone.stderr, /revoked/)
    assert.equal((await peers()).includes(second.publicKey), false)
  })
})

/** A life that was in order and is over: the CA was there all the time, however young the lab is. */
function endedMeanwhile({ certificate }: Authority): { notBefore: Date; notAfter: Date } {
  return { notBefore: new Date(certificate.notBefore.getTime() + 1000), notAfter: fromNow(-60_000) }
}

function firstAddress(certificate: Certificate) {
  const found = certificate.addressBlocks?.find(({ family }) => family === 4)
  assert.ok(found)
  return found
}

function addressBytes(certificate: Certificate): Buffer {
  const { bits } = firstAddress(certificate)
  return Buffer.from(bits.toString(16).padStart(8, '0'), 'hex')
}
