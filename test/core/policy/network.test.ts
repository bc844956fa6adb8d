import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { formatPrefix, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { networkSettingsSchema } from '../../../src/core/messages/network.ts'
import { checkNetworkSettings } from '../../../src/core/policy/network.ts'

const BLOCKS = {
  deviceBlock: ['10.88.0.0/16', 'fd00:0:0:1::/64', 'fd00:0:0:ff::/64'].map(parsePrefix),
  infrastructureBlock: ['10.0.0.0/8', 'fd00::/16'].map(parsePrefix),
}
const GOOD = { pools: ['10.88.0.0/16', 'fd00:0:0:1::/64'], keyPrefix: 'fd00:0:0:ff::/64' }
const check = (settings: object, blocks = BLOCKS) =>
  checkNetworkSettings(networkSettingsSchema.parse({ ...GOOD, ...settings }), blocks)

test('a good network comes out typed, canonical and sorted', () => {
  const checked = check({
    pools: ['FD00:0:0:1:0::/64', '10.88.0.0/16'],
    reserved: ['10.88.0.9', '10.88.0.0/29', 'fd00:0:0:1::1'],
    routes: ['fd00:5::/32', '10.1.0.0/16', '10.0.0.0/8'],
    dns: { servers: ['FD00:0:0:1::53', '10.1.0.53'], search: ['corp.example'] },
  })
  assert.deepEqual(checked.settings.pools, ['10.88.0.0/16', 'fd00:0:0:1::/64'])
  assert.deepEqual(checked.settings.reserved, ['10.88.0.0/29', '10.88.0.9/32', 'fd00:0:0:1::1/128'])
  assert.deepEqual(checked.settings.routes, ['10.0.0.0/8', '10.1.0.0/16', 'fd00:5::/32'])
  assert.deepEqual(checked.settings.dns, { servers: ['fd00:0:0:1::53', '10.1.0.53'], search: ['corp.example'] })
  assert.deepEqual(checked.pools.map(formatPrefix), checked.settings.pools)
  assert.deepEqual(checked.routes.map(formatPrefix), checked.settings.routes)
  assert.equal(formatPrefix(checked.keyPrefix), 'fd00:0:0:ff::/64')
  // Checking again changes nothing.
  assert.deepEqual(checkNetworkSettings(checked.settings, BLOCKS), checked)
})

test('everything through the tunnel, when the address plan is everything', () => {
  const everything = { ...BLOCKS, infrastructureBlock: ['0.0.0.0/0', '::/0'].map(parsePrefix) }
  for (const routes of [
    ['0.0.0.0/0', '::/0'],
    ['0.0.0.0/1', '128.0.0.0/1'],
  ]) {
    assert.deepEqual(check({ routes }, everything).settings.routes, routes)
  }
})

describe('refused, naming the field', () => {
  for (const [field, settings] of [
    ['pools.0', { pools: ['10.88.0.0'] }],
    ['pools.0', { pools: ['10.88.0.1/16'] }],
    ['pools.1', { pools: ['10.88.0.0/16', 'nonsense/64'] }],
    ['pools', { pools: ['10.88.0.0/17', '10.88.128.0/17'] }],
    ['pools', { pools: ['10.88.0.0/31'] }],
    ['pools', { pools: ['fd00:0:0:1::/127'] }],
    ['pools', { pools: ['10.89.0.0/16'] }],
    ['pools', { pools: ['10.0.0.0/8'] }],
    ['pools', { pools: ['fd00:0:0:2::/64'] }],
    ['pools', { pools: ['127.0.0.0/16'] }],
    ['pools', { pools: ['169.254.0.0/24'] }],
    ['pools', { pools: ['224.0.0.0/8'] }],
    ['pools', { pools: ['240.0.0.0/8'] }],
    ['pools', { pools: ['0.0.0.0/0'] }],
    ['pools', { pools: ['fe80::/64'] }],
    ['pools', { pools: ['ff02::/64'] }],
    ['pools', { pools: ['::ffff:10.88.0.0/112'] }],
    ['reserved.1', { reserved: ['10.88.0.1', '10.88.0.300'] }],
    ['reserved', { reserved: ['10.89.0.1'] }],
    ['reserved', { reserved: ['10.0.0.0/8'] }],
    ['reserved', { reserved: ['10.88.0.0/16'] }],
    ['reserved', { reserved: ['10.88.0.0/17', '10.88.128.0/17'] }],
    ['keyPrefix', { keyPrefix: 'fd00:0:0:ff::/63' }],
    ['keyPrefix', { keyPrefix: 'fd00:0:0:fe::/63' }],
    ['keyPrefix', { keyPrefix: 'fd00:0:0:fe::/64' }],
    ['keyPrefix', { keyPrefix: 'fd00:0:0:1::/64' }],
    ['keyPrefix', { keyPrefix: '10.88.0.0/24' }],
    ['keyPrefix', { keyPrefix: 'fe80::/64' }],
    ['routes.0', { routes: ['10.1.0.0'] }],
    ['routes', { routes: ['10.88.1.0/24'] }],
    ['routes', { routes: ['10.88.0.0/16'] }],
    ['routes', { routes: ['fd00:0:0:ff::/80'] }],
    ['routes', { routes: ['10.1.0.0/16', '10.1.0.0/16'] }],
    ['routes', { routes: ['192.168.0.0/16'] }],
    ['routes', { routes: ['224.0.0.0/8'] }],
    ['routes', { routes: ['0.0.0.0/0'] }],
    ['dns.servers.1', { dns: { servers: ['10.88.0.1', 'dns.example'], search: [] } }],
    ['dns.servers.0', { dns: { servers: ['127.0.0.1'], search: [] } }],
    ['dns.servers.0', { dns: { servers: ['10.88.0.1/32'], search: [] } }],
    ['dns.search.0', { dns: { servers: [], search: ['a..b'] } }],
    ['dns.search.0', { dns: { servers: [], search: ['corp example'] } }],
    ['dns.search.0', { dns: { servers: [], search: ['x\nnameserver 6.6.6.6'] } }],
  ] as const) {
    test(`${field}: ${JSON.stringify(settings)}`, () => {
      const message = new RegExp(`^network settings: ${field.replaceAll('.', '\\.')}: `)
      assert.throws(() => check(settings), { code: 'network_document_invalid', message })
    })
  }

  test('a pool that gateways could not be certified for', () => {
    const blocks = { ...BLOCKS, infrastructureBlock: [parsePrefix('fd00::/16')] }
    assert.throws(() => check({}, blocks), { code: 'network_document_invalid', message: /infrastructure CA's block/ })
  })
})
