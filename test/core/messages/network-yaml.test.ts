import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { parseNetworkSettings } from '../../../src/core/messages/network-yaml.ts'

const GOOD = `
tenant: default
network: office       # a label
pools:
  - 10.88.0.0/16
  - fd00:0:0:1::/64
keyPrefix: fd00:0:0:ff::/64
reserved: [10.88.0.0/28]
dns:
  servers: [10.88.0.1]
staleCrl: { action: keep, graceSeconds: 0 }
`

test('settings are read and the rest gets its defaults', () => {
  assert.deepEqual(parseNetworkSettings(GOOD), {
    tenant: 'default',
    network: 'office',
    pools: ['10.88.0.0/16', 'fd00:0:0:1::/64'],
    keyPrefix: 'fd00:0:0:ff::/64',
    reserved: ['10.88.0.0/28'],
    routes: [],
    dns: { servers: ['10.88.0.1'], search: [] },
    mtu: 1420,
    persistentKeepaliveSeconds: 25,
    possession: 'required',
    staleCrl: { action: 'keep', graceSeconds: 0 },
    quarantineSeconds: 86_400,
    renewAfterExpirySeconds: 2_592_000,
    deviceToDevice: false,
  })
})

test('JSON is YAML', () => {
  assert.equal(parseNetworkSettings('{"pools":["10.0.0.0/8"],"keyPrefix":"fd00::/64"}').network, 'default')
})

describe('refused, with the line', () => {
  for (const [name, text, message] of [
    ['an unknown key', `${GOOD}pool: x\n`, /pool/],
    ['a repeated key', `${GOOD}tenant: other\n`, /line 1[23]:.*unique/],
    ['a missing key', 'pools: [10.0.0.0/8]\n', /keyPrefix/],
    ['a wrong type', `${GOOD}mtu: big\n`, /line 12: mtu/],
    ['a nested fault', GOOD.replace('servers: [10.88.0.1]', 'servers: 10.88.0.1'), /line 10: dns\.servers/],
    ['out of bounds', `${GOOD}mtu: 100\n`, /line 12: mtu/],
    ['a fault in a list', GOOD.replace('- 10.88.0.0/16', '- 10'), /line 5: pools\.0/],
    ['YAML 1.1 booleans', `${GOOD}deviceToDevice: yes\n`, /line 12: deviceToDevice/],
    ['broken YAML', 'pools: [10.0.0.0/8\nkeyPrefix: x\n', /line [123]:/],
    ['a tab as indentation', 'dns:\n\tservers: []\n', /line 2:/],
    ['two documents', `${GOOD}---\n${GOOD}`, /line 1[23]:/],
    ['an alias', 'pools: &p [10.0.0.0/8]\nreserved: *p\nkeyPrefix: fd00::/64\n', /alias/],
    ['a tag', 'pools: !!set {10.0.0.0/8}\nkeyPrefix: fd00::/64\n', /line 1:/],
    ['a scalar', 'hello', /object/],
    ['nothing', '', /object/],
    ['too much', `# ${'x'.repeat(65_536)}`, /longer/],
  ] as const) {
    test(name, () => {
      assert.throws(() => parseNetworkSettings(text), { code: 'network_document_invalid', message })
    })
  }

  test('aliases that would grow to gigabytes', () => {
    const levels = Array.from({ length: 9 }, (_, i) => `l${i + 1}: &l${i + 1} [${`*l${i}, `.repeat(9)}]`)
    const text = `l0: &l0 [x]\n${levels.join('\n')}\n`
    assert.throws(() => parseNetworkSettings(text), { code: 'network_document_invalid' })
  })
})
