import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isKeyAddressOf, keyAddress } from '../../../src/core/ipam/key-address.ts'
import { formatPrefix, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { parseWireGuardKey } from '../../../src/core/wireguard/key.ts'

// The public key of RFC 7748 section 6.1 (Alice).
const KEY = parseWireGuardKey('hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=')
const OTHER = parseWireGuardKey('3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=')

test('a key address is the key prefix and 64 bits of SHA-256 of the key', () => {
  // echo hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo= | base64 -d | sha256sum | cut -c1-16
  assert.equal(
    formatPrefix(keyAddress(parsePrefix('fd12:3456:789a:1::/64'), KEY)),
    'fd12:3456:789a:1:300c:9c96:3b9:2a4b/128',
  )
})

test('only that key has that address, in any network', () => {
  for (const prefix of ['fd12:3456:789a:1::/64', '2001:db8::/64'].map(parsePrefix)) {
    const address = keyAddress(prefix, KEY)
    assert.equal(isKeyAddressOf(address, KEY), true)
    assert.equal(isKeyAddressOf(address, OTHER), false)
    assert.equal(isKeyAddressOf({ ...address, bits: address.bits ^ 1n }, KEY), false)
  }
  assert.equal(isKeyAddressOf(parsePrefix('fd12:3456:789a:1::/64'), KEY), false)
  assert.equal(isKeyAddressOf(parsePrefix('10.0.0.1/32'), KEY), false)
})

test('a key prefix is an IPv6 /64', () => {
  for (const prefix of ['fd00::/63', 'fd00::/65', '10.0.0.0/8', 'fd00::/128']) {
    assert.throws(() => keyAddress(parsePrefix(prefix), KEY), { code: 'malformed_request' })
  }
})
