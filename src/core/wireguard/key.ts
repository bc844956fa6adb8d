/**
 * WireGuard (X25519) public keys in the one form that we accept. X25519 ignores bit 255 and reduces modulo
 * 2^255 − 19 (RFC 7748 section 5), so one secret has several byte strings that act as its public key; an alias would
 * pass a comparison by bytes and still reach the same peer. Hence: canonical only, and nothing of low order.
 */
import { CertpeerError } from '../errors.ts'

declare const wireGuardKeyBrand: unique symbol
/** A public key as `wg pubkey` prints it: 44 characters of base64. Canonical and not of low order. */
export type WireGuardKey = string & { readonly [wireGuardKeyBrand]: true }

export const WIREGUARD_KEY_BYTES = 32

/** 43 significant characters hold 258 bits: the last one carries only four, so its two low bits are zero. */
const KEY_TEXT = /^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$/

/**
 * Every u-coordinate below 2^255 − 19 whose order divides 8, on the curve or on its twist: the shared secret with one
 * of them is zero whatever the private key is. The other members of the usual lists (p, p + 1, bit 255 set) are not
 * canonical and are refused before. Hex, little-endian as on the wire.
 */
const LOW_ORDER_KEYS: ReadonlySet<string> = new Set([
  '0000000000000000000000000000000000000000000000000000000000000000', // 0, order 2
  '0100000000000000000000000000000000000000000000000000000000000000', // 1, order 4
  'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800', // order 8
  '5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157', // order 8
  'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f', // p − 1, order 4 on the twist
])

/** The key in the base64 text that people and `wg` use. Throws bad_wireguard_key; never repairs. */
export function parseWireGuardKey(text: string): WireGuardKey {
  if (!KEY_TEXT.test(text)) {
    throw new CertpeerError('bad_wireguard_key', 'a WireGuard key is 44 characters of base64, as `wg pubkey` prints it')
  }
  return wireGuardKeyFromBytes(Buffer.from(text, 'base64'))
}

/** The key of 32 bytes as they stand in a certificate or on the wire. Throws bad_wireguard_key. */
export function wireGuardKeyFromBytes(bytes: Buffer): WireGuardKey {
  if (bytes.length !== WIREGUARD_KEY_BYTES) {
    throw new CertpeerError('bad_wireguard_key', `a WireGuard key has 32 bytes, this one has ${bytes.length}`)
  }
  const top = bytes[31] ?? 0
  if (top > 0x7f) {
    throw new CertpeerError('bad_wireguard_key', 'bit 255 of the WireGuard key is set: it is an alias of another key')
  }
  if (isFieldPrimeOrMore(bytes)) {
    throw new CertpeerError(
      'bad_wireguard_key',
      'the WireGuard key is not below 2^255 - 19: it is an alias of another key',
    )
  }
  if (LOW_ORDER_KEYS.has(bytes.toString('hex'))) {
    throw new CertpeerError('bad_wireguard_key', 'the WireGuard key is a point of low order: it protects nothing')
  }
  return bytes.toString('base64') as WireGuardKey // checked just above
}

/**
 * The key of a peer that our own device reports. Somebody may have put an alias or a low-order key there by hand, and
 * it must stay nameable so that it can be removed: such a key equals no wanted key. For nothing that comes from outside.
 */
export function reportedWireGuardKey(bytes: Buffer): WireGuardKey {
  if (bytes.length !== WIREGUARD_KEY_BYTES) {
    throw new CertpeerError('device_failed', `the device reports a peer key of ${bytes.length} bytes`)
  }
  return bytes.toString('base64') as WireGuardKey // unchecked on purpose, see above
}

export function wireGuardKeyToBytes(key: WireGuardKey): Buffer {
  return Buffer.from(key, 'base64')
}

/** Lower-case hex, as UAPI writes keys. */
export function wireGuardKeyToHex(key: WireGuardKey): string {
  return Buffer.from(key, 'base64').toString('hex')
}

/** 2^255 − 19 is, little-endian, ed ff … ff 7f; bit 255 is known to be clear. */
function isFieldPrimeOrMore(bytes: Buffer): boolean {
  if (bytes[31] !== 0x7f || (bytes[0] ?? 0) < 0xed) return false
  for (let index = 1; index < 31; index++) if (bytes[index] !== 0xff) return false
  return true
}
