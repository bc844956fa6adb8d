/** X25519 (RFC 7748) on raw 32-byte keys, by node:crypto. */
import { createPrivateKey, createPublicKey, diffieHellman, type KeyObject } from 'node:crypto'
import { CertpeerError } from '../errors.ts'

/** PrivateKeyInfo of id-X25519 up to the 32 key bytes, RFC 8410 section 7. */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b656e04220420', 'hex')
/** SubjectPublicKeyInfo of id-X25519 up to the 32 key bytes, RFC 8410 section 4. */
const SPKI_PREFIX = Buffer.from('302a300506032b656e032100', 'hex')

/** The public key of a raw private key; clamping is X25519's own (RFC 7748 section 5). */
export function x25519PublicFromPrivate(privateKey: Buffer): Buffer {
  const spki = createPublicKey(importPrivate(privateKey)).export({ type: 'spki', format: 'der' })
  return Buffer.from(spki.subarray(SPKI_PREFIX.length))
}

/**
 * The shared secret. Throws bad_wireguard_key when it is all zero (RFC 7748 section 6.1: the other side's key has low
 * order). Does not ask for a canonical public key: `wireGuardKeyFromBytes` does.
 */
export function x25519(privateKey: Buffer, publicKey: Buffer): Buffer {
  if (publicKey.length !== 32) throw new TypeError('an X25519 public key has 32 bytes')
  const theirs = createPublicKey({ key: Buffer.concat([SPKI_PREFIX, publicKey]), format: 'der', type: 'spki' })
  const ours = importPrivate(privateKey)
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

function lowOrder(cause?: unknown): CertpeerError {
  return new CertpeerError('bad_wireguard_key', 'the X25519 key has low order: the shared secret would be zero', {
    cause,
  })
}

function importPrivate(privateKey: Buffer): KeyObject {
  if (privateKey.length !== 32) throw new TypeError('an X25519 private key has 32 bytes')
  const pkcs8 = Buffer.concat([PKCS8_PREFIX, privateKey])
  try {
    return createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' })
  } finally {
    pkcs8.fill(0)
  }
}
