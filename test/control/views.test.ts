import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { z } from 'zod'
import {
  certificateViewSchema,
  deviceViewSchema,
  gatewayViewSchema,
  pageSchema,
  peerAnswerSchema,
  peerViewSchema,
} from '../../src/core/messages/views.ts'
import type { ApiClient } from '../../src/platform/api-client/client.ts'
import { makeDevice, makeDeviceCa, makeGateway, makeRoot, TRUST_DOMAIN } from '../support/certificates.ts'
import { Stage, until } from './stage.ts'
import type { RunningServer } from './stage.ts'

async function all<T extends z.ZodType>(
  client: ApiClient,
  path: string,
  item: T,
  limit: number,
): Promise<z.infer<T>[]> {
  const items: z.infer<T>[] = []
  let cursor: string | undefined
  do {
    const answer = await client.request({
      method: 'GET',
      path,
      query: { limit, ...(cursor !== undefined && { cursor }) },
    })
    const page = pageSchema(item).parse(answer.json)
    assert.ok(page.items.length <= limit)
    items.push(...(page.items as z.infer<T>[]))
    cursor = page.next ?? undefined
  } while (cursor !== undefined)
  return items
}

describe('views', () => {
  let stage: Stage
  let server: RunningServer
  let everybody: ApiClient
  let ofDefault: ApiClient
  let ofOther: ApiClient

  before(async () => {
    stage = await Stage.create()
    await stage.projectNetwork('other', 'default')
    server = await stage.startServer()
    everybody = server.api(stage.operator('operator-auditor').der)
    ofDefault = server.api(stage.operator('operator-auditor', 'default').der)
    ofOther = server.api(stage.operator('operator-auditor', 'other').der)
    for (let n = 2; n < 9; n += 1) {
      const device = stage.device(n)
      await stage.projectDevice(device, `laptop-${n}`)
      if (n < 6) await server.api(device.der).request({ method: 'PUT', path: '/v1/peer' })
    }
    const foreign = makeDevice(stage.otherCa, { uri: `spiffe://other.${TRUST_DOMAIN}/network/default/device/z1` })
    await stage.projectDevice(foreign, 'theirs', stage.otherCa, 'other')
    const gateway = stage.gateway('g1', ['default/default', 'other/default'])
    await stage.projectGateway('g1', gateway, ['default/default', 'other/default'])
    await stage.projectGateway('g2', stage.gateway('g2'))
    const stream = await server.stream(gateway)
    await until('g1 has applied', () => stream.revisions.get('default/default') === 4)
  })
  after(async () => {
    await stage[Symbol.asyncDispose]()
  })

  test('pages hold everything once, whatever their size', async () => {
    for (const limit of [1, 3, 500]) {
      const devices = await all(everybody, '/v1/devices', deviceViewSchema, limit)
      assert.deepEqual(devices.map((device) => device.name).toSorted(), [
        ...Array.from({ length: 7 }, (_, index) => `laptop-${index + 2}`),
        'theirs',
      ])
      assert.equal((await all(everybody, '/v1/certificates', certificateViewSchema, limit)).length, 8)
      assert.equal((await all(everybody, '/v1/peers', peerViewSchema, limit)).length, 4)
      assert.equal((await all(everybody, '/v1/gateways', gatewayViewSchema, limit)).length, 2)
    }
    const [peer] = await all(everybody, '/v1/peers', peerViewSchema, 500)
    assert.deepEqual([peer?.device, peer?.network, peer?.allowedIps.length], ['laptop-2', 'default/default', 3])
  })

  test("a tenant's operator sees the tenant and nothing else, with a forged cursor too", async () => {
    const names = (await all(ofOther, '/v1/devices', deviceViewSchema, 500)).map((device) => device.name)
    assert.deepEqual(names, ['theirs'])
    assert.equal((await all(ofDefault, '/v1/devices', deviceViewSchema, 500)).length, 7)
    assert.equal((await all(ofOther, '/v1/certificates', certificateViewSchema, 500)).length, 1)
    assert.deepEqual(await all(ofOther, '/v1/peers', peerViewSchema, 500), [])
    const gateways = await all(ofOther, '/v1/gateways', gatewayViewSchema, 500)
    assert.deepEqual(
      gateways.map((gateway) => [gateway.name, gateway.networks, Object.keys(gateway.revisions)]),
      [['g1', ['other/default'], ['other/default']]],
    )
    const cursor = Buffer.from('["0",""]').toString('base64url')
    const page = pageSchema(peerViewSchema).parse((await ofOther.get(`/v1/peers?cursor=${cursor}`)).json)
    assert.deepEqual(page.items, [])
    for (const bad of ['cursor=%00', 'cursor=W10', 'limit=0', 'limit=501', 'limit=1e3']) {
      await assert.rejects(everybody.get(`/v1/peers?${bad}`), { code: 'malformed_request' }, bad)
    }
    // Not a number where one belongs: the caller's fault, not ours.
    const text = Buffer.from('["x","y"]').toString('base64url')
    await assert.rejects(everybody.get(`/v1/peers?cursor=${text}`), { code: 'malformed_request' })
  })

  test('forged rows: no foreign peer is listed, no foreign gateway or document reaches a device', async () => {
    const stranger = makeDevice(makeDeviceCa(makeRoot()))
    const swapped = stage.device(3)
    await stage.db.raw(
      `insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
        select id, 'spiffe://evil/1', 'aa', sha256('1'), ?::bytea, now(), now() + interval '1 year', 90 from networks
          where tenant = 'default'
        union all
        select id, 'spiffe://evil/2', 'bb', sha256('2'), ?::bytea, now(), now() + interval '1 year', 91 from networks
          where tenant = 'default'
        union all
        select id, 'spiffe://evil/3', 'cc', sha256('3'), 'garbage', now(), now() + interval '1 year', 92 from networks
          where tenant = 'default'`,
      [stranger.der, swapped.der],
    )
    assert.equal((await all(everybody, '/v1/peers', peerViewSchema, 2)).length, 4)
    await stage.db.raw(`delete from peers where identity like 'spiffe://evil/%'`)

    const evil = makeGateway(makeDeviceCa(makeRoot()))
    await stage.projectGateway('evil', evil)
    await stage.ca.raw(`update networks set document = 'x.y.z', document_number = 99 where tenant = 'default'`)
    await stage.db.raw(`update gateways set endpoint = '198.51.100.1:1', last_seen_at = now() where name = 'evil'`)
    await stage.db.raw(`select pg_notify('certpeer_gateways', '{}'), pg_notify('certpeer_networks', '{}')`)
    await new Promise((resolve) => setTimeout(resolve, 300))
    const answer = peerAnswerSchema.parse((await server.api(stage.device(2).der).get('/v1/peer')).json)
    assert.deepEqual(
      answer.gateways.map((gateway) => gateway.endpoint),
      ['192.0.2.1:51820'],
    )
    assert.equal(answer.networkDocument.split('.').length, 3)
    assert.ok(answer.networkDocument.length > 500)
  })
})
