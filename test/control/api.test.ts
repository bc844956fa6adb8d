import assert from 'node:assert/strict'
import { connect } from 'node:net'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { goneAnswerSchema, peerAnswerSchema } from '../../src/core/messages/views.ts'
import type { PeerAnswer } from '../../src/core/messages/views.ts'
import { derToPem } from '../../src/core/x509/pem.ts'
import type { ApiClient } from '../../src/platform/api-client/client.ts'
import { queryRows } from '../../src/platform/db/connection.ts'
import { makeDevice, makeDeviceCa, makeInfrastructureLeaf, makeRoot, TRUST_DOMAIN } from '../support/certificates.ts'
import { FRONT_SECRET, Stage, clientHeaders, until } from './stage.ts'
import type { RunningServer, TestGateway } from './stage.ts'

async function put(client: ApiClient): Promise<PeerAnswer> {
  return peerAnswerSchema.parse((await client.request({ method: 'PUT', path: '/v1/peer' })).json)
}

async function get(client: ApiClient, query: Record<string, string> = {}): Promise<PeerAnswer> {
  return peerAnswerSchema.parse((await client.request({ method: 'GET', path: '/v1/peer', query })).json)
}

describe('who may ask', () => {
  let stage: Stage
  let server: RunningServer

  before(async () => {
    stage = await Stage.create()
    server = await stage.startServer()
  })
  after(async () => {
    await stage[Symbol.asyncDispose]()
  })

  const peers = async (): Promise<number> => (await stage.rows('select 1 from peers')).length

  test('without a certificate, or with half of the headers, nobody gets in', async () => {
    const device = stage.device(100)
    const pem = clientHeaders(device.der)
    for (const [name, headers, code] of [
      ['no certificate', {}, 'client_certificate_required'],
      ['no verdict of nginx', { 'x-client-cert': pem['x-client-cert'] ?? '' }, 'client_certificate_required'],
      ['a failed verdict', { ...pem, 'x-client-verify': 'FAILED:unable to verify' }, 'bad_client_certificate'],
      ['a doubled verdict', { ...pem, 'x-client-verify': 'SUCCESS, SUCCESS' }, 'bad_client_certificate'],
      [
        'two certificates',
        { ...pem, 'x-client-cert': (pem['x-client-cert'] ?? '').repeat(2) },
        'bad_client_certificate',
      ],
      ['garbage', { ...pem, 'x-client-cert': 'AAAA' }, 'bad_client_certificate'],
      ['no front secret', { ...pem, 'x-certpeer-front': 'guess' }, 'front_refused'],
    ] as const) {
      await assert.rejects(put(server.api(undefined, headers)), { code }, name)
    }
    assert.equal(await peers(), 0)
  })

  test('a certificate that does not verify here, or is of another role, gets nowhere', async () => {
    const elsewhere = makeRoot()
    const foreignCa = makeDeviceCa(elsewhere)
    const expired = stage.device(101, { notAfter: stage.later(-1000) })
    const early = stage.device(102, { notBefore: stage.later(60_000) })
    const stranger = makeDevice(foreignCa)
    const otherTenant = makeDevice(stage.otherCa, { uri: `spiffe://default.${TRUST_DOMAIN}/network/default/device/d9` })
    const changed = Buffer.from(stage.device(103).der)
    changed[changed.length - 3] = (changed[changed.length - 3] ?? 0) ^ 1
    for (const [name, der, code] of [
      ['expired', expired.der, 'certificate_expired'],
      ['not valid yet', early.der, 'certificate_expired'],
      ['of another root', stranger.der, 'certificate_untrusted'],
      ["of another tenant's CA", otherTenant.der, 'certificate_untrusted'],
      ['a changed signature', changed, 'certificate_untrusted'],
      ['the CA itself', stage.deviceCa.certificate.der, 'certificate_untrusted'],
      ['a gateway', stage.gateway('g9').der, 'policy_denied'],
      ['an operator', stage.operator().der, 'policy_denied'],
      [
        'the authority',
        makeInfrastructureLeaf(stage.infrastructureCa, 'authority', `spiffe://${TRUST_DOMAIN}/authority/a1`).der,
        'bad_client_certificate',
      ],
    ] as const) {
      await assert.rejects(put(server.api(der)), { code }, name)
    }
    await assert.rejects(server.api(stage.device(104).der).get('/v1/devices'), { code: 'policy_denied' })
    await assert.rejects(server.rawStream(stage.device(104)), { code: 'policy_denied' })
    await assert.rejects(server.rawStream(stage.gateway('g9', undefined, { notAfter: stage.later(-1000) })), {
      code: 'certificate_expired',
    })
    assert.equal(await peers(), 0)
  })

  test('a certificate that expires or is revoked stops in the middle of a kept-alive connection', async () => {
    const now = stage.now
    const expiring = stage.device(105, { notAfter: stage.later(60_000) })
    const revoked = stage.device(106)
    const bystander = stage.device(107)
    const connections = [expiring, revoked, bystander].map((certificate) => new KeptConnection(server, certificate.der))
    try {
      const [first, second, third] = connections
      assert.ok(first && second && third)
      for (const connection of connections) assert.equal((await connection.put()).status, 200)
      stage.now = stage.later(61_000)
      assert.deepEqual(await first.put(), { status: 403, code: 'certificate_expired' })
      stage.publish(stage.deviceCa, 'device-default', { revoke: [revoked.serial] })
      await until('the revocation is known', async () => (await second.put()).status !== 200)
      assert.deepEqual(await second.put(), { status: 403, code: 'certificate_revoked' })
      assert.equal((await third.put()).status, 200)
    } finally {
      for (const connection of connections) connection.close()
      stage.now = now
    }
  })

  test('revocation is sticky: an older CRL is refused, and a newer one that forgets does not bring back', async () => {
    const device = stage.device(108)
    const client = server.api(device.der)
    const old = stage.crl(stage.deviceCa)
    stage.publish(stage.deviceCa, 'device-default', { revoke: [device.serial] })
    await until('the revocation is known', async () => {
      await assert.rejects(put(client), { code: 'certificate_revoked' })
      return true
    })
    stage.publishBytes('/crl/device-default.crl', old.der)
    await stage.projectCrl(stage.deviceCa, old)
    const forgetful = stage.publish(stage.deviceCa, 'device-default', { forget: true })
    assert.ok(forgetful.der.length < old.der.length + 100_000)
    // One full round of the poll.
    await new Promise((resolve) => setTimeout(resolve, 2500))
    await assert.rejects(put(client), { code: 'certificate_revoked' })
  })

  test('a CRL by NOTIFY counts at once; a forged row counts for nothing', async () => {
    const device = stage.device(109)
    const client = server.api(device.der)
    await put(client)
    stage.publishing = false
    const stranger = makeDeviceCa(makeRoot())
    await stage.projectCrl(stage.deviceCa, { ...stage.crl(stranger, { number: 10n ** 15n }), number: 10n ** 15n })
    await stage.projectCrl(stage.deviceCa, { der: Buffer.from('poison'), number: 10n ** 16n, nextUpdate: stage.now })
    await new Promise((resolve) => setTimeout(resolve, 200))
    assert.equal((await put(client)).state, 'pending')
    await stage.projectCrl(stage.deviceCa, stage.crl(stage.deviceCa, { revoke: [device.serial] }))
    await until(
      'the revocation is known',
      async () => {
        await assert.rejects(put(client), { code: 'certificate_revoked' })
        return true
      },
      1500,
    )
    stage.publishing = true
  })

  test('past nextUpdate nobody is let in (revocation_unknown, 503), and a new CRL opens again', async () => {
    const now = stage.now
    const client = server.api(stage.device(110).der)
    await put(client)
    stage.publishing = false
    stage.now = stage.later(86_400_000 + 60_000)
    const long = server.api(stage.device(111, { notAfter: stage.later(86_400_000) }).der)
    await assert.rejects(put(long), { code: 'revocation_unknown' })
    stage.publish(stage.deviceCa, 'device-default')
    stage.publish(stage.root, 'root')
    stage.publishing = true
    await until('a new CRL opens again', async () => (await put(long)).revision > 0)
    stage.now = now
  })

  test('a CA that the root revoked takes its certificates along', async () => {
    await using own = await Stage.create()
    const running = await own.startServer()
    const client = running.api(own.device(2).der)
    await until('the network is known', () =>
      put(client).then(
        () => true,
        () => false,
      ),
    )
    own.publish(own.root, 'root', { revoke: [own.deviceCa.certificate.serial] })
    await until('the CA is known to be revoked', async () => {
      await assert.rejects(put(client), { code: 'certificate_revoked' })
      return true
    })
  })
})

describe('a device and its peer', () => {
  test('pending, then active when every connected gateway has applied; refused peers and silent gateways are named', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    const device = stage.device(2)
    const client = server.api(device.der)
    assert.equal((await get(client)).state, 'absent')
    const alone = await put(client)
    assert.deepEqual([alone.state, alone.revision, alone.waitingFor], ['pending', 1, []])

    const gateways = await connectGateways(stage, server, ['g1', 'g2'])
    await until('active', async () => (await get(client)).state === 'active')
    const answer = await get(client, { wait: 'active' })
    assert.deepEqual([answer.state, answer.revision, answer.waitingFor], ['active', 1, []])
    assert.equal(answer.gateways.length, 2)
    assert.equal(answer.gateways[0]?.endpoint, '192.0.2.1:51820')
    assert.equal((await put(client)).state, 'active')

    gateways.get('g2')?.refuse([{ serial: stage.device(3).serial, code: 'stale_crl' }])
    const second = stage.device(3)
    gateways.get('g2')?.refuse([{ serial: second.serial, code: 'stale_crl' }])
    const refused = server.api(second.der)
    const put2 = await put(refused)
    assert.deepEqual([put2.state, put2.waitingFor.toSorted()], ['pending', ['g1', 'g2']])
    await until('g1 has applied', async () => (await get(refused)).waitingFor.join() === 'g2')
    const waiting = get(refused, { wait: 'active' })
    const g2 = gateways.get('g2')
    g2?.say({ type: 'applied', network: 'default/default', revision: 2, failed: [] })
    assert.equal((await waiting).state, 'active')

    const removed = peerAnswerSchema.parse((await client.request({ method: 'DELETE', path: '/v1/peer' })).json)
    assert.deepEqual([removed.state, removed.revision], ['absent', 3])
    await assert.rejects(get(client, { wait: 'forever' }), { code: 'malformed_request' })
    await stage.checkInvariants()
  })

  test('waiting ends after 30 seconds with the names of those who have not applied', { timeout: 60_000 }, async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    const gateways = await connectGateways(stage, server, ['g1', 'g2'])
    const mute = gateways.get('g2')
    assert.ok(mute)
    mute.acknowledge = false
    const client = server.api(stage.device(2).der)
    await put(client)
    const startedAt = performance.now()
    const answer = await get(client, { wait: 'active' })
    const elapsedMs = performance.now() - startedAt
    assert.deepEqual([answer.state, answer.waitingFor], ['pending', ['g2']])
    assert.ok(elapsedMs > 29_000 && elapsedMs < 33_000, `${elapsedMs} ms`)
  })
})

describe('gone', () => {
  test('gone when the gateways have dropped the peer, by revision or by CRL; those away are named', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    const gateways = await connectGateways(stage, server, ['g1', 'g2', 'g3'])
    await stage.projectGateway('never-here', stage.gateway('never-here'))
    // The database's clock is not the stage's: the certificate must begin before both.
    const device = stage.device(2, { notBefore: new Date('2026-11-01T00:00:00Z') })
    await stage.projectDevice(device, 'laptop')
    const client = server.api(device.der)
    await put(client)
    assert.equal((await get(client, { wait: 'active' })).state, 'active')
    const operator = server.api(stage.operator().der)
    const gone = async (query: Record<string, string>) =>
      goneAnswerSchema.parse(
        (await operator.request({ method: 'GET', path: '/v1/peers/gone', query: { serial: device.serial, ...query } }))
          .json,
      )
    assert.equal((await gone({})).state, 'pending')

    // g3 leaves, g2 learns of nothing but the CRL.
    gateways.get('g3')?.close()
    const g2 = gateways.get('g2')
    assert.ok(g2)
    g2.acknowledge = false
    await until('g3 is away', async () =>
      (await gone({})).gateways.some((gateway) => gateway.name === 'g3' && gateway.state === 'disconnected'),
    )
    const waiting = gone({ wait: 'gone' })
    const crl = stage.publish(stage.deviceCa, 'device-default', { revoke: [device.serial] })
    assert.ok(crl.der.length > 0)
    await stage.projectRevocation([device])
    await until('g2 has the CRL', () => g2.of('crl').length > 4)
    g2.say({ type: 'crl-applied', issuerKeyId: stage.deviceCa.certificate.keyId, number: '2' })
    const answer = await waiting
    assert.deepEqual(
      answer.gateways.map((gateway) => [gateway.name, gateway.state]),
      [
        ['g1', 'gone'],
        ['g2', 'gone'],
        ['g3', 'disconnected'],
      ],
    )
    assert.equal(answer.state, 'pending')
    assert.equal(answer.endsAt, device.notAfter.toISOString())
    const back = await server.stream(stage.gateway('g3'), { revisions: { 'default/default': 1 } })
    await until('g3 has caught up', async () => (await gone({})).state === 'gone')
    assert.deepEqual(back.gaps, [])
    await assert.rejects(client.get('/v1/peers/gone?serial=00'), { code: 'certificate_revoked' })
    await assert.rejects(operator.get('/v1/peers/gone?serial=zz'), { code: 'malformed_request' })
    await assert.rejects(operator.get('/v1/peers/gone?serial=0badf00d'), { code: 'not_found' })
    await assert.rejects(
      server.api(stage.operator('operator-auditor', 'other').der).get(`/v1/peers/gone?serial=${device.serial}`),
      { code: 'not_found' },
    )
  })
})

describe('gone: the instant', () => {
  test('is when the gateway reported the removal, and null where there was nothing to remove', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    await connectGateways(stage, server, ['g1'])
    const [held, never] = [stage.device(2), stage.device(3)]
    for (const device of [held, never]) await stage.projectDevice(device, `d-${device.serial.slice(0, 8)}`)
    await put(server.api(held.der))
    assert.equal((await get(server.api(held.der), { wait: 'active' })).state, 'active')
    // The gateways' reports bear the database's time.
    const [row] = await queryRows<{ now: Date }>(stage.ca, 'select now() as now')
    assert.ok(row)
    await stage.projectRevocation([never], 'default/default', row.now)
    const operator = server.api(stage.operator().der)
    const appliedAt = async (serial: string) => {
      const query = { serial, wait: 'gone' }
      const { json } = await operator.request({ method: 'GET', path: '/v1/peers/gone', query })
      const { state, gateways } = goneAnswerSchema.parse(json)
      assert.equal(state, 'gone')
      return gateways.map((gateway) => gateway.appliedAt)
    }
    assert.deepEqual(await appliedAt(never.serial), [null])
    await stage.projectRevocation([held], 'default/default', row.now)
    const [at] = await appliedAt(held.serial)
    assert.ok(at && new Date(at) >= row.now, at ?? 'null')
  })
})

describe('probes', () => {
  test('healthz and readyz answer without a front; readyz says what is missing', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    const probe = server.api(undefined, { 'x-certpeer-front': 'none' })
    assert.equal((await probe.get('/healthz')).status, 200)
    assert.equal((await probe.get('/readyz')).status, 200)
    stage.now = stage.later(2 * 86_400_000)
    await assert.rejects(probe.get('/readyz'))
  })
})

async function connectGateways(
  stage: Stage,
  server: RunningServer,
  names: string[],
): Promise<Map<string, TestGateway>> {
  const gateways = new Map<string, TestGateway>()
  for (const name of names) {
    const certificate = stage.gateway(name)
    await stage.projectGateway(name, certificate)
    gateways.set(name, await server.stream(certificate))
  }
  await until('the gateways are connected and in step', async () => {
    const rows = await stage.rows<{ count: string }>(
      'select count(*) from gateways g join gateway_revisions r on r.gateway = g.identity where g.connected_to is not null',
    )
    return rows[0]?.count === String(names.length)
  })
  return gateways
}

/** One TCP connection for all requests, whatever the answers: what an attacker would hold on to. */
class KeptConnection {
  readonly #socket
  readonly #head: string
  #buffer = ''
  #wake: () => void = () => undefined

  constructor(server: RunningServer, der: Buffer) {
    this.#socket = connect(join(server.runDir, 'server-api.sock'))
    const headers = { host: 'api', 'x-certpeer-front': FRONT_SECRET, ...clientHeaders(der), 'content-length': '0' }
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
    this.#head = `PUT /v1/peer HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`
    assert.ok(derToPem(der, 'CERTIFICATE').length > 0)
    this.#socket.setEncoding('utf8').on('data', (chunk: string) => {
      this.#buffer += chunk
      this.#wake()
    })
  }

  async put(): Promise<{ status: number; code?: string }> {
    this.#buffer = ''
    this.#socket.write(this.#head)
    for (;;) {
      const [head, body] = this.#buffer.split('\r\n\r\n')
      const length = Number(/content-length: ([0-9]+)/i.exec(head ?? '')?.[1])
      if (head !== undefined && body !== undefined && Buffer.byteLength(body) >= length) {
        const status = Number(head.split(' ')[1])
        const { code } = JSON.parse(body) as { code?: string }
        return { status, ...(code !== undefined && { code }) }
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  close(): void {
    this.#socket.destroy()
  }
}
