/**
 * `certpeer-pop-v1`: proof that whoever asks for a certificate holds the private WireGuard key named in it. An X25519
 * key cannot sign, so the authority sends an ephemeral public key E and a nonce N, and the requester answers with
 *
 *     Z    = X25519(w, E)
 *     info = "certpeer-pop-v1" ‖ for each field below: its length (16 bits, big-endian) ‖ its bytes
 *     K    = HKDF-SHA256(ikm = Z, salt = N, info, 32 bytes)                                        (RFC 5869)
 *     tag  = HMAC-SHA256(K, "requester" ‖ info)                                                     (RFC 2104)
 *
 * The tag is an attribute of the CSR, so the CSR's signature covers it; `info` holds the hash of the CSR's key. Each
 * key vouches for the other, for this challenge, this credential and this profile only. The same `info` is what a
 * token's HMAC and a renewal's signature are made over.
 */
import { createHash, createHmac, hkdfSync, timingSafeEqual } from 'node:crypto'
import { CertpeerError } from '../errors.ts'
import { wireGuardKeyFromBytes, wireGuardKeyToBytes, type WireGuardKey } from './key.ts'
import { importX25519Private, x25519, x25519PublicFromPrivate } from './x25519.ts'

const LABEL = Buffer.from('certpeer-pop-v1', 'ascii')
const REQUESTER = Buffer.from('requester', 'ascii')
const RENEWAL = Buffer.from('certpeer-renew-v1', 'ascii')
const TOKEN = Buffer.from('certpeer-token-v1', 'ascii')
const TAG_BYTES = 32

/** What a proof is bound to; in `info` the fields stand in this order. */
export interface PossessionFields {
  readonly trustDomain: string
  readonly challengeId: string
  /** E, the authority's ephemeral public key, 32 bytes. */
  readonly ephemeralKey: Buffer
  /** W, the requester's WireGuard public key, 32 bytes; empty when the certificate will carry none. */
  readonly wireGuardKey: Buffer
  /** SHA-256 of the CSR's SubjectPublicKeyInfo (DER). */
  readonly spkiHash: Buffer
  /** SHA-256 of the token's claims segment (ASCII), or of the current certificate (DER). */
  readonly credentialHash: Buffer
  readonly profile: string
}

/** A challenge as the requester got it. */
export interface Challenge {
  readonly id: string
  readonly publicKey: Buffer
  readonly nonce: Buffer
}

/** The value of the CSR attribute, parsed. */
export interface PossessionProof {
  readonly challengeId: string
  readonly tag: Buffer
}

/** The byte string that proof, token HMAC and renewal signature are made over. */
export function possessionInfo(fields: PossessionFields): Buffer {
  if (fields.wireGuardKey.length !== 0) requireLength(fields.wireGuardKey, 'wireGuardKey')
  return Buffer.concat([
    LABEL,
    prefixed(Buffer.from(fields.trustDomain, 'utf8')),
    prefixed(Buffer.from(fields.challengeId, 'utf8')),
    prefixed(requireLength(fields.ephemeralKey, 'ephemeralKey')),
    prefixed(fields.wireGuardKey),
    prefixed(requireLength(fields.spkiHash, 'spkiHash')),
    prefixed(requireLength(fields.credentialHash, 'credentialHash')),
    prefixed(Buffer.from(fields.profile, 'utf8')),
  ])
}

/** The tag over `info` under the shared secret Z and the challenge's nonce N. */
export function possessionTag(input: {
  readonly sharedSecret: Buffer
  readonly nonce: Buffer
  readonly info: Buffer
}): Buffer {
  // node:crypto bounds `info` at 1024 bytes; names and domains are bounded far below by the messages.
  const key = Buffer.from(hkdfSync('sha256', input.sharedSecret, input.nonce, input.info, TAG_BYTES))
  return createHmac('sha256', key).update(REQUESTER).update(input.info).digest()
}

/** Requester's side: the value of the CSR attribute, and the `info` that the token HMAC or renewal signature needs. */
export function createPossession(input: {
  readonly privateKey: Buffer
  readonly challenge: Challenge
  readonly trustDomain: string
  readonly spki: Buffer
  readonly credentialHash: Buffer
  readonly profile: string
}): { readonly attribute: string; readonly info: Buffer; readonly wireGuardKey: WireGuardKey } {
  const publicKey = x25519PublicFromPrivate(input.privateKey)
  const wireGuardKey = wireGuardKeyFromBytes(publicKey)
  const info = possessionInfo({
    trustDomain: input.trustDomain,
    challengeId: input.challenge.id,
    ephemeralKey: input.challenge.publicKey,
    wireGuardKey: publicKey,
    spkiHash: sha256(input.spki),
    credentialHash: input.credentialHash,
    profile: input.profile,
  })
  const sharedSecret = x25519(input.privateKey, input.challenge.publicKey)
  const tag = possessionTag({ sharedSecret, nonce: input.challenge.nonce, info })
  sharedSecret.fill(0)
  return { attribute: formatPossession({ challengeId: input.challenge.id, tag }), info, wireGuardKey }
}

/**
 * Authority's side: throws bad_possession_proof unless `tag` was made with the private key of `fields.wireGuardKey`
 * for exactly these fields. The caller has consumed the challenge before, so a wrong guess cannot be repeated.
 */
export function verifyPossession(input: {
  readonly ephemeralPrivateKey: Buffer
  readonly nonce: Buffer
  readonly fields: Omit<PossessionFields, 'wireGuardKey' | 'ephemeralKey'>
  readonly wireGuardKey: WireGuardKey
  readonly tag: Buffer
}): void {
  const wireGuardKey = wireGuardKeyToBytes(input.wireGuardKey)
  const ephemeralPrivate = importX25519Private(input.ephemeralPrivateKey)
  const ephemeralKey = x25519PublicFromPrivate(ephemeralPrivate)
  const info = possessionInfo({ ...input.fields, ephemeralKey, wireGuardKey })
  const sharedSecret = x25519(ephemeralPrivate, wireGuardKey)
  const expected = possessionTag({ sharedSecret, nonce: input.nonce, info })
  sharedSecret.fill(0)
  if (input.tag.length !== TAG_BYTES || !timingSafeEqual(expected, input.tag)) {
    throw new CertpeerError(
      'bad_possession_proof',
      'the proof of possession does not fit the WireGuard key, the challenge, the CSR key and the credential',
    )
  }
}

/** What the current certificate's key signs (ECDSA with SHA-256, DER) in a renewal. */
export function renewalMessage(info: Buffer): Buffer {
  return Buffer.concat([RENEWAL, info])
}

/** HMAC of an enrollment under the token's secret: proves the token without sending it. */
export function tokenMac(secret: Buffer, info: Buffer): Buffer {
  return createHmac('sha256', secret).update(TOKEN).update(info).digest()
}

/** Compares a token HMAC that was received, in constant time. */
export function tokenMacMatches(secret: Buffer, info: Buffer, mac: Buffer): boolean {
  const expected = tokenMac(secret, info)
  return mac.length === expected.length && timingSafeEqual(expected, mac)
}

/** `challengeId.base64url(tag)`, the text inside the CSR attribute. */
export function formatPossession(proof: PossessionProof): string {
  return `${proof.challengeId}.${proof.tag.toString('base64url')}`
}

/** Reads the text of the CSR attribute; throws bad_possession_proof. Says nothing about whether the tag is right. */
export function parsePossession(text: string): PossessionProof {
  const match = /^([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]{43})$/.exec(text)
  const [, challengeId, tagText] = match ?? []
  if (challengeId === undefined || tagText === undefined) {
    throw new CertpeerError(
      'bad_possession_proof',
      'the proof of possession must be CHALLENGE-ID.TAG with the 32-byte tag in base64url',
    )
  }
  const tag = Buffer.from(tagText, 'base64url')
  // Two of the last character's bits are beyond the tag: one text per tag.
  if (tag.toString('base64url') !== tagText) {
    throw new CertpeerError('bad_possession_proof', 'the tag of the proof of possession is not canonical base64url')
  }
  return { challengeId, tag }
}

function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest()
}

function prefixed(bytes: Buffer): Buffer {
  if (bytes.length > 0xffff) throw new TypeError('a field of the possession info is longer than 65535 bytes')
  const length = Buffer.alloc(2)
  length.writeUInt16BE(bytes.length)
  return Buffer.concat([length, bytes])
}

function requireLength(bytes: Buffer, field: keyof PossessionFields): Buffer {
  if (bytes.length !== 32) throw new TypeError(`${field} of the possession info has ${bytes.length} bytes, not 32`)
  return bytes
}
