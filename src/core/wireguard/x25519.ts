/** X25519 (RFC 7748) on raw 32-byte keys, by node:crypto. */
import { createPrivateKey, createPublicKey, diffieHellman, type KeyObject } from 'node:crypto'
import { CertpeerError } from '../errors.ts'

/** PrivateKeyInfo of id-X25519 up to the 32 key bytes, RFC 8410 section 7. */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b656e04220420', 'hex')
/** Bytes of a SubjectPublicKeyInfo of id-X25519 before the 32 key bytes, RFC 8410 section 4. */
const SPKI_PREFIX_BYTES = 12

/** The public key of a private key; clamping is X25519's own (RFC 7748 section 5). */
export function x25519PublicFromPrivate(privateKey: Buffer | KeyObject): Buffer {
  const spki = createPublicKey(asPrivate(privateKey)).export({ type: 'spki', format: 'der' })
  return Buffer.from(spki.subarray(SPKI_PREFIX_BYTES))
}

/**
 * The shared secret. Throws bad_wireguard_key when it is all zero (RFC 7748 section 6.1: the other side's key has low
 * order). Does not ask for a canonical public key: `wireGuardKeyFromBytes` does.
 */
export function x25519(privateKey: Buffer | KeyObject, publicKey: Buffer): Buffer {
  if (publicKey.length !== 32) throw new TypeError('an X25519 public key has 32 bytes')
  const ours = asPrivate(privateKey)
  // As JWK: OpenSSL's SPKI decoder would take longer than the multiplication itself.
  const jwk = { kty: 'OKP', crv: 'X25519', x: publicKey.toString('base64url') }
  const theirs = createPublicKey({ key: jwk, format: 'jwk' })
  let shared: Buffer
  try {
    shared = diffieHellman({ privateKey: ours, publicKey: theirs })
  } catch (cause) {
    // OpenSSL itself refuses to hand out an all-zero secret.
    throw lowOrder(cause)
  }
  if (shared.every((byte) => byte === 0)) throw lowOrder()
  return shared
}

/** A raw private key, imported once for whoever uses it more than once. */
export function importX25519Private(privateKey: Buffer): KeyObject {
  if (privateKey.length !== 32) throw new TypeError('an X25519 private key has 32 bytes')
  const pkcs8 = Buffer.concat([PKCS8_PREFIX, privateKey])
  try {
    return createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' })
  } finally {
    pkcs8.fill(0)
  }
}

function asPrivate(privateKey: Buffer | KeyObject): KeyObject {
  return Buffer.isBuffer(privateKey) ? importX25519Private(privateKey) : privateKey
}

function lowOrder(cause?: unknown): CertpeerError {
  return new CertpeerError('bad_wireguard_key', 'the X25519 key has low order: the shared secret would be zero', {
    cause,
  })
}
