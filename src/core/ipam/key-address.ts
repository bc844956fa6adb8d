/**
 * Key addresses: every WireGuard key has one IPv6 address of its own inside its network, made from the key. Two keys of
 * one device (the old and the new one during a rotation) therefore never share an AllowedIP, and an address on the wire
 * names the key that it was sealed with.
 */
import { createHash } from 'node:crypto'
import { CertpeerError } from '../errors.ts'
import { wireGuardKeyToBytes } from '../wireguard/key.ts'
import type { WireGuardKey } from '../wireguard/key.ts'
import { formatPrefix, hostPrefix, prefixesEqual } from './prefix.ts'
import type { Prefix } from './prefix.ts'

/** The network's /64 followed by the first 64 bits of SHA-256(public key). Throws malformed_request for another prefix. */
export function keyAddress(keyPrefix: Prefix, key: WireGuardKey): Prefix {
  if (keyPrefix.family !== 6 || keyPrefix.length !== 64) {
    throw new CertpeerError('malformed_request', `key prefix ${formatPrefix(keyPrefix)} is not an IPv6 /64`)
  }
  const interfaceId = createHash('sha256').update(wireGuardKeyToBytes(key)).digest().readBigUInt64BE(0)
  return hostPrefix(6, keyPrefix.bits | interfaceId)
}

/** True when `prefix` is the key address of this key inside its own /64. */
export function isKeyAddressOf(prefix: Prefix, key: WireGuardKey): boolean {
  if (prefix.family !== 6 || prefix.length !== 128) return false
  const keyPrefix: Prefix = { family: 6, bits: (prefix.bits >> 64n) << 64n, length: 64 }
  return prefixesEqual(prefix, keyAddress(keyPrefix, key))
}
