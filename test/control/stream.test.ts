import assert from 'node:assert/strict'
import { setTimeout as delay } from 'node:timers/promises'
import { describe, test } from 'node:test'
import type { Certificate } from '../../src/core/x509/certificate.ts'
import { testServer } from '../support/postgres.ts'
import { Stage, until } from './stage.ts'
import type { RunningServer, TestGateway } from './stage.ts'

const NETWORK = 'default/default'

async function provision(server: RunningServer, certificates: readonly Certificate[]): Promise<void> {
  await Promise.all(
    certificates.map(async (certificate) => {
      const client = server.api(certificate.der)
      await client.request({ method: 'PUT', path: '/v1/peer' })
      client.close()
    }),
  )
}

function devices(stage: Stage, from: number, count: number): Certificate[] {
  return Array.from({ length: count }, (_, index) => stage.device(from + index))
}

const inStep = (gateway: TestGateway, revision: number) => (): boolean => gateway.revisions.get(NETWORK) === revision

describe('the stream', () => {
  test('hello brings issuers, CRLs and documents first, then a snapshot, then each change in order', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    await provision(server, devices(stage, 2, 3))
    const certificate = stage.gateway('g1')
    await stage.projectGateway('g1', certificate)
    const gateway = await server.stream(certificate)
    await until('the snapshot is there', inStep(gateway, 3))
    const kinds = gateway.messages.map((message) => message.type)
    assert.deepEqual(kinds, ['issuers', 'crl', 'crl', 'crl', 'crl', 'network', 'snapshot'])
    assert.equal(gateway.peers.get(NETWORK)?.size, 3)
    const [released] = devices(stage, 5, 1)
    assert.ok(released)
    await provision(server, [released])
    await server.api(released.der).request({ method: 'DELETE', path: '/v1/peer' })
    await until('both changes are there', inStep(gateway, 5))
    assert.deepEqual(
      gateway.messages.slice(7).map((message) => message.type),
      ['set', 'remove'],
    )
    assert.deepEqual(gateway.of('remove')[0]?.serial, released.serial)
    const crl = stage.publish(stage.deviceCa, 'device-default', { revoke: [released.serial] })
    await until('the new CRL is there', () => gateway.of('crl').at(-1)?.crl === crl.der.toString('base64'))
    await stage.ca.raw('update networks set document = ?, document_number = 2', [
      await stage.networkDocument('default', 'default', 2, 1400),
    ])
    await stage.ca.raw(`select pg_notify('certpeer_networks', '{"network":"default/default"}')`)
    await until('the new document is there', () => gateway.of('network').length === 2)
  })

  test('a resume gets just what is missing; a gap in what is kept, or too much, gets a snapshot', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    const certificate = stage.gateway('g1')
    await stage.projectGateway('g1', certificate)
    await provision(server, devices(stage, 2, 6))
    const resumed = await server.stream(certificate, { revisions: { [NETWORK]: 4 } })
    await until('resumed', inStep(resumed, 6))
    assert.deepEqual([resumed.snapshots, resumed.of('set').map((set) => set.revision)], [0, [5, 6]])
    resumed.close()

    const same = await server.stream(certificate, { revisions: { [NETWORK]: 6 } })
    await until('the document is there', () => same.of('network').length === 1)
    await provision(server, devices(stage, 20, 1))
    await until('the next change', inStep(same, 7))
    assert.deepEqual([same.snapshots, same.gaps], [0, []])
    same.close()

    await stage.db.raw('delete from peer_changes where revision = 5')
    const holed = await server.stream(certificate, { revisions: { [NETWORK]: 3 } })
    await until('snapshot instead of a hole', inStep(holed, 7))
    assert.deepEqual([holed.snapshots, holed.peers.get(NETWORK)?.size], [1, 7])
    holed.close()

    const ahead = await server.stream(certificate, { revisions: { [NETWORK]: 99 } })
    await until('snapshot for a gateway that is ahead of the database', () => ahead.snapshots === 1)
    ahead.say({ type: 'resync', network: NETWORK })
    await until('snapshot on demand', () => ahead.snapshots === 2)
    ahead.close()
  })

  test('a snapshot in parts while changes go on: nothing lost, nothing twice', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    // Rows as the database may hold them: a real certificate each would only cost time.
    await stage.db.raw(
      `insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
        select n.id, 'spiffe://x/' || lpad(i::text, 6, '0'), to_hex(1000000 + i), sha256(i::text::bytea),
          sha256(i::text::bytea), now(), now() + interval '10 years', i
        from networks n, generate_series(1, 1100) i`,
    )
    await stage.db.raw('update networks set revision = 1100')
    const certificate = stage.gateway('g1')
    const gateway = await server.stream(certificate)
    await provision(server, devices(stage, 2, 20))
    await until('in step', inStep(gateway, 1120))
    assert.equal(gateway.snapshots, 1)
    assert.ok(gateway.of('snapshot').length >= 5)
    assert.deepEqual(gateway.gaps, [])
    const held = new Set(gateway.peers.get(NETWORK))
    for (const set of gateway.of('set')) held.add(set.certificate)
    assert.equal(held.size, 1120)
  })

  test('poisoned rows become removals or nothing; revisions stay without a gap', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    const certificate = stage.gateway('g1')
    const gateway = await server.stream(certificate)
    await until('in step', inStep(gateway, 0))
    await stage.db.raw(
      `insert into peer_changes (network_id, revision, kind, serial, certificate)
        select id, 1, 'set', 'NOT A SERIAL "}', convert_to(repeat('x', 100000), 'UTF8') from networks
        union all select id, 2, 'set', 'ab', '' from networks
        union all select id, 3, 'set', 'cd', 'garbage' from networks`,
    )
    await stage.db.raw('update networks set revision = 3')
    await stage.db.raw(`select pg_notify('certpeer_changes', 'not json')`)
    await stage.db.raw(`select pg_notify('certpeer_changes', '{"network":"default/default","revision":3}')`)
    await until('in step', inStep(gateway, 3))
    assert.deepEqual(
      gateway.messages.slice(-3).map((message) => [message.type, 'serial' in message ? message.serial : '']),
      [
        ['remove', '00'],
        ['remove', 'ab'],
        ['set', ''],
      ],
    )
    assert.deepEqual(gateway.gaps, [])
  })

  test(
    'a stalled gateway slows nobody, and is brought back in step when it reads again',
    { timeout: 60_000 },
    async () => {
      await using stage = await Stage.create()
      const server = await stage.startServer()
      const stalledCertificate = stage.gateway('slow')
      await stage.projectGateway('slow', stalledCertificate)
      const stalled = await server.rawStream(stalledCertificate)
      stalled.write(JSON.stringify({ type: 'hello', endpoint: '192.0.2.9:51820', revisions: {} }))
      const healthy = await server.stream(stage.gateway('g1'))
      await until('in step', inStep(healthy, 0))
      // More than any socket buffer holds, from a reader that takes nothing.
      await stage.db.raw(
        `insert into peer_changes (network_id, revision, kind, serial, certificate)
        select n.id, i, 'set', to_hex(1000000 + i), convert_to(repeat('x', 8000), 'UTF8')
        from networks n, generate_series(1, 3000) i`,
      )
      await stage.db.raw('update networks set revision = 3000')
      const startedAt = performance.now()
      await stage.db.raw(`select pg_notify('certpeer_changes', '{"network":"default/default","revision":3000}')`)
      await until('the healthy one is in step', inStep(healthy, 3000))
      assert.ok(performance.now() - startedAt < 10_000)
      assert.deepEqual(healthy.gaps, [])
      await provision(server, devices(stage, 2, 5))
      await until('and stays in step', inStep(healthy, 3005))

      let revision = 0
      let snapshots = 0
      const gaps: string[] = []
      const reading = (async () => {
        for await (const line of stalled.lines) {
          const message = JSON.parse(line) as { type: string; revision: number; more?: boolean }
          if (message.type === 'snapshot' && message.more === false) {
            snapshots += 1
            revision = message.revision
          } else if (message.type === 'set') {
            if (message.revision !== revision + 1) gaps.push(`${revision} -> ${message.revision}`)
            revision = message.revision
          }
          if (revision === 3005) return
        }
      })()
      await reading
      assert.deepEqual(gaps, [])
      assert.ok(snapshots >= 1)
      stalled.destroy()
    },
  )

  test('a stream ends when its certificate expires or is revoked, and a second one replaces the first', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    const expiring = stage.gateway('g1', [NETWORK], { notAfter: stage.later(60_000) })
    const revoked = stage.gateway('g2')
    const bystander = stage.gateway('g3')
    const streams = await Promise.all([expiring, revoked, bystander].map((certificate) => server.stream(certificate)))
    const [first, second, third] = streams
    assert.ok(first && second && third)
    await until('all in step', () => streams.every((gateway) => inStep(gateway, 0)()))
    const crl = stage.publish(stage.infrastructureCa, 'infrastructure', { revoke: [revoked.serial] })
    await until('the revoked one is cut', () => second.over)
    assert.ok(!first.over && !third.over)
    await until('the others have the CRL', () =>
      [first, third].every((gateway) => gateway.of('crl').some((sent) => sent.crl === crl.der.toString('base64'))),
    )
    stage.now = stage.later(60_001)
    await until('the expired one is cut', () => first.over)
    await assert.rejects(server.rawStream(expiring), { code: 'certificate_expired' })
    await assert.rejects(server.rawStream(revoked), { code: 'certificate_revoked' })
    const again = await server.stream(bystander)
    await until('the newer stream has taken over', () => third.over && inStep(again, 0)())
    assert.ok(!again.over)
  })

  test('a stream that does not speak the language is cut', async () => {
    await using stage = await Stage.create()
    const server = await stage.startServer()
    for (const [name, lines] of [
      ['no JSON', ['hello']],
      ['no hello first', [JSON.stringify({ type: 'pong' })]],
      ['unknown message', [JSON.stringify({ type: 'hello', endpoint: 'a:1', revisions: {} }), '{"type":"exec"}']],
      ['two hellos', Array<string>(2).fill(JSON.stringify({ type: 'hello', endpoint: 'a:1', revisions: {} }))],
    ] as const) {
      const stream = await server.rawStream(stage.gateway('g1'))
      for (const line of lines) stream.write(line)
      await until(`${name}: cut`, () => stream.closed.aborted)
    }
    const gateway = await server.stream(stage.gateway('g1'))
    gateway.say({ type: 'applied', network: 'other/secret', revision: 5, failed: [] })
    gateway.say({ type: 'applied', network: NETWORK, revision: 5, failed: [] })
    await until('in step', inStep(gateway, 0))
    assert.deepEqual(await stage.rows('select * from gateway_revisions where applied_revision > 0'), [])
  })

  test('a gateway sees the networks in its certificate and no other', async () => {
    await using stage = await Stage.create()
    await stage.projectNetwork('default', 'second')
    const server = await stage.startServer()
    const first = await server.stream(stage.gateway('g1', ['default/default']))
    const second = await server.stream(stage.gateway('g2', ['default/second']))
    const both = await server.stream(stage.gateway('g3', ['default/default', 'default/second']))
    await until('connected', () => both.snapshots === 2 && first.snapshots === 1 && second.snapshots === 1)
    await provision(server, [stage.device(2), stage.device(3, { network: 'second' })])
    await until('each its own', () => both.of('set').length === 2)
    await until('each its own', () => first.of('set').length === 1 && second.of('set').length === 1)
    assert.equal(first.of('set')[0]?.network, 'default/default')
    assert.equal(second.of('set')[0]?.network, 'default/second')
    assert.deepEqual([...second.revisions.keys()], ['default/second'])
  })
})

describe('several servers, and a database that goes away', () => {
  test('two servers: each serves its gateways whoever writes, and acknowledgements count everywhere', async () => {
    await using stage = await Stage.create()
    const a = await stage.startServer('server-a')
    const b = await stage.startServer('server-b')
    const certificates = ['g1', 'g2'].map((name) => stage.gateway(name))
    const [one, two] = certificates
    assert.ok(one && two)
    await stage.projectGateway('g1', one)
    await stage.projectGateway('g2', two)
    const g1 = await a.stream(one)
    const g2 = await b.stream(two)
    await until('in step', () => inStep(g1, 0)() && inStep(g2, 0)())
    const fleet = devices(stage, 2, 60)
    await Promise.all([provision(a, fleet.slice(0, 30)), provision(b, fleet.slice(30))])
    await until('both in step', () => inStep(g1, 60)() && inStep(g2, 60)())
    assert.deepEqual([g1.gaps, g2.gaps], [[], []])
    const [device] = fleet
    assert.ok(device)
    const answer = await b.api(device.der).get('/v1/peer?wait=active')
    assert.equal((answer.json as { state: string }).state, 'active')

    // The gateway moves to the other server; its rows follow, and the old end does not take them back.
    const moved = await b.stream(one, { revisions: { [NETWORK]: 60 } })
    g1.close()
    await until('moved', async () => {
      const rows = await stage.rows<{ server: string }>(
        `select split_part(connected_to, '/', 1) as server from gateways where name = 'g1'`,
      )
      return rows[0]?.server === 'server-b'
    })
    await delay(300)
    await provision(a, devices(stage, 100, 1))
    await until('in step there', inStep(moved, 61))
    assert.deepEqual([moved.snapshots, moved.gaps], [0, []])
    await stage.checkInvariants()
  })

  test(
    'PostgreSQL restarts: 503, streams stay up, CRLs still flow, and all is in step afterwards',
    { timeout: 90_000 },
    async () => {
      await using stage = await Stage.create()
      await stage.makeDurable()
      const server = await stage.startServer()
      const certificate = stage.gateway('g1')
      await stage.projectGateway('g1', certificate)
      const gateway = await server.stream(certificate)
      const fleet = devices(stage, 2, 3)
      await provision(server, fleet.slice(0, 2))
      await until('in step', inStep(gateway, 2))
      const [device, , late] = fleet
      assert.ok(device && late)
      const postgres = await testServer()
      await postgres.kill()
      try {
        await assert.rejects(server.api(late.der).request({ method: 'PUT', path: '/v1/peer' }), { code: 'unavailable' })
        await assert.rejects(server.api().get('/readyz'))
        const crl = stage.publish(stage.deviceCa, 'device-default', { revoke: [device.serial] })
        await until('the CRL reaches the gateway', () =>
          gateway.of('crl').some((sent) => sent.crl === crl.der.toString('base64')),
        )
        await assert.rejects(server.api(device.der).request({ method: 'PUT', path: '/v1/peer' }), {
          code: 'certificate_revoked',
        })
        gateway.say({ type: 'crl-applied', issuerKeyId: stage.deviceCa.certificate.keyId, number: '2' })
        const other = await server.stream(stage.gateway('g2'))
        await until(
          'a gateway that connects now gets CRLs and the document',
          () => other.of('crl').length === 4 && other.of('network').length === 1,
        )
      } finally {
        await postgres.restart()
      }
      assert.ok(!gateway.over)
      await until('provisioning works again', async () => {
        await provision(server, [late])
        return true
      })
      await until('in step', inStep(gateway, 3))
      assert.deepEqual([gateway.snapshots, gateway.gaps], [1, []])
      await until('reports from the outage are stored', async () => {
        const rows = await stage.rows<{ number: string }>('select number::text from gateway_crls')
        return rows[0]?.number === '2'
      })
      await until('connected again', async () => (await server.api().get('/readyz')).status === 200)
      await stage.checkInvariants()
    },
  )
})
