/** A receipt is worth what the gateway's device has confirmed: nothing else may make `active` or `gone` true. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { MAX_FAILED } from '../../src/core/messages/stream.ts'
import type { GoneAnswer, PeerAnswer } from '../../src/core/messages/views.ts'
import type { Certificate } from '../../src/core/x509/certificate.ts'
import { Stage, until } from './stage.ts'
import type { RunningServer } from './stage.ts'

const NETWORK = 'default/default'

async function get<A>(server: RunningServer, certificate: Certificate, path: string): Promise<A> {
  const client = server.api(certificate.der)
  try {
    return (await client.get(path)).json as A
  } finally {
    client.close()
  }
}

async function put(server: RunningServer, certificate: Certificate): Promise<void> {
  const client = server.api(certificate.der)
  await client.request({ method: 'PUT', path: '/v1/peer' })
  client.close()
}

const appliedRevisions = (stage: Stage) =>
  stage.rows<{ revision: string }>('select applied_revision::text as revision from gateway_revisions')

async function gatewayWithPeer() {
  const stage = await Stage.create()
  const server = await stage.startServer()
  const certificate = stage.gateway('g1')
  await stage.projectGateway('g1', certificate)
  const device = stage.device(2)
  await stage.projectDevice(device, 'laptop')
  const gateway = await server.stream(certificate)
  await put(server, device)
  await until('the peer is confirmed', async () => (await appliedRevisions(stage))[0]?.revision === '1')
  return { stage, server, certificate, device, gateway }
}

describe('receipts', () => {
  test('what a gateway says when it connects is what it was told, not what its device has done', async () => {
    const { stage, server, certificate, device, gateway } = await gatewayWithPeer()
    await using _ = stage
    // Its device hangs: the removal arrives and is not confirmed.
    gateway.acknowledge = false
    await stage.projectRevocation([device])
    await until('the removal has arrived', () => gateway.revisions.get(NETWORK) === 2)
    gateway.close()
    const again = await server.stream(certificate, { revisions: { [NETWORK]: 2 } })
    again.say({ type: 'crl-applied', issuerKeyId: stage.infrastructureCa.certificate.keyId, number: '1' })
    await until('its reports are stored', async () => (await stage.rows('select 1 from gateway_crls')).length === 1)
    const path = `/v1/peers/gone?serial=${device.serial}`
    const before = await get<GoneAnswer>(server, stage.operator(), path)
    assert.deepEqual([before.state, before.gateways.map(({ state }) => state)], ['pending', ['pending']])
    again.say({ type: 'applied', network: NETWORK, revision: 2, failed: [] })
    await until('confirmed', async () => (await get<GoneAnswer>(server, stage.operator(), path)).state === 'gone')
  })

  test('a gateway that comes back with less than it had confirmed is not active before it confirms again', async () => {
    const { stage, server, certificate, device, gateway } = await gatewayWithPeer()
    await using _ = stage
    assert.equal((await get<PeerAnswer>(server, device, '/v1/peer')).state, 'active')
    gateway.close()
    // Its disk was replaced: it asks for everything, and its device has nothing.
    const empty = await server.rawStream(certificate)
    empty.write(JSON.stringify({ type: 'hello', endpoint: '192.0.2.1:51820', revisions: {} }))
    await until('lowered', async () => (await appliedRevisions(stage))[0]?.revision === '0')
    assert.deepEqual((await get<PeerAnswer>(server, device, '/v1/peer')).waitingFor, ['g1'])
    empty.write(JSON.stringify({ type: 'applied', network: NETWORK, revision: 1, failed: [] }))
    await until('active', async () => (await get<PeerAnswer>(server, device, '/v1/peer')).state === 'active')
    empty.destroy()
  })

  test('a list of refused peers that is full may have left this one out', async () => {
    const { stage, server, device, gateway } = await gatewayWithPeer()
    await using _ = stage
    const failed = Array.from({ length: MAX_FAILED }, (_, index) => ({
      serial: (0x10_0000 + index).toString(16),
      code: 'stale_crl',
    }))
    gateway.say({ type: 'applied', network: NETWORK, revision: 1, failed })
    await until('not active', async () => {
      const { state, waitingFor } = await get<PeerAnswer>(server, device, '/v1/peer')
      return state === 'pending' && waitingFor.join() === 'g1'
    })
    gateway.say({ type: 'applied', network: NETWORK, revision: 1, failed: failed.slice(1) })
    await until('active', async () => (await get<PeerAnswer>(server, device, '/v1/peer')).state === 'active')
  })

  test('a report counts although this server has not read the change yet; one ahead of the network does not', async () => {
    const { stage, gateway } = await gatewayWithPeer()
    await using _ = stage
    // No notification: the server learns of it seconds later. The gateway had it from another server.
    await stage.db.raw(
      `insert into peer_changes (network_id, revision, kind, serial) select id, 2, 'remove', 'ab' from networks`,
    )
    await stage.db.raw('update networks set revision = 2')
    gateway.say({ type: 'applied', network: NETWORK, revision: 2, failed: [] })
    await until('stored', async () => (await appliedRevisions(stage))[0]?.revision === '2')
    gateway.say({ type: 'applied', network: NETWORK, revision: 99, failed: [] })
    gateway.say({ type: 'crl-applied', issuerKeyId: stage.deviceCa.certificate.keyId, number: '1' })
    await until('both are looked at', async () => (await stage.rows('select 1 from gateway_crls')).length === 1)
    assert.equal((await appliedRevisions(stage))[0]?.revision, '2')
  })
})
