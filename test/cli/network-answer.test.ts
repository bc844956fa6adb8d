import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatDocument } from '../../src/cli/network-answer.ts'
import { parseNetworkSettings } from '../../src/core/messages/network-yaml.ts'

test('what network show prints is what network apply takes', () => {
  const settings = parseNetworkSettings(
    'tenant: default\nnetwork: lab\npools: [10.1.0.0/16, "fd00:1::/64"]\nkeyPrefix: "fd00:2::/64"\nmtu: 1380\n',
  )
  const document = { ...settings, trustDomain: 'example.internal', number: 7, issuedAt: '2026-01-02T03:04:05.000Z' }
  const text = formatDocument(document)
  assert.match(text, /^---\n# number 7, issued 2026-01-02T03:04:05\.000Z, trust domain example\.internal\n/)
  assert.deepEqual(parseNetworkSettings(text), settings)
})
