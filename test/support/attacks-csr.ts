/**
 * Enrollment and renewal requests made by hand from docs/enrollment.md and pki/certpeer.asn1, with nothing of our own
 * encoders: an attacker's program asks for what ours would never write.
 */
import {
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  hkdfSync,
  randomBytes,
  sign,
  type KeyObject,
} from 'node:crypto'
import { call, type Answered } from './attacks.ts'
import type { Lab } from './lab.ts'

const ARC = '1.3.6.1.4.1.32473.51820'
const TRUST_DOMAIN = 'certpeer.internal'

export interface AttackKeys {
  readonly tlsKey: KeyObject
  /** What the request names as its WireGuard key: any bytes. */
  readonly claimedKey: Buffer
  /** Z of the proof of possession. */
  readonly sharedSecret: (ephemeralKey: Buffer) => Buffer
}

/** An honest pair, unless `claimed` says otherwise. */
export function newAttackKeys(claimed?: Buffer, privateKey = randomBytes(32)): AttackKeys {
  const own = x25519Private(privateKey)
  return {
    tlsKey: generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey,
    claimedKey: claimed ?? rawPublic(own),
    sharedSecret: (ephemeralKey) => diffieHellman({ privateKey: own, publicKey: x25519Public(ephemeralKey) }),
  }
}

export function rawPublic(privateKey: KeyObject): Buffer {
  return createPublicKey(privateKey).export({ type: 'spki', format: 'der' }).subarray(-32)
}

export function x25519Private(raw: Buffer): KeyObject {
  const key = Buffer.concat([Buffer.from('302e020100300506032b656e04220420', 'hex'), raw])
  return createPrivateKey({ key, format: 'der', type: 'pkcs8' })
}

function x25519Public(raw: Buffer): KeyObject {
  const key = Buffer.concat([Buffer.from('302a300506032b656e032100', 'hex'), raw])
  return createPublicKey({ key, format: 'der', type: 'spki' })
}

export interface Challenge {
  readonly id: string
  readonly publicKey: Buffer
  readonly nonce: Buffer
}

export async function askChallenge(lab: Lab, namespace: string, credential: Buffer): Promise<Challenge> {
  const answer = await call(lab, namespace, {
    url: `${lab.ready?.enrollUrl ?? ''}/v1/challenges`,
    method: 'POST',
    json: { credential: sha256(credential).toString('base64url') },
  })
  if (answer.status !== 201) throw new Error(`no challenge: ${JSON.stringify(answer)}`)
  const { id, publicKey, nonce } = answer.json as { id: string; publicKey: string; nonce: string }
  return { id, publicKey: Buffer.from(publicKey, 'base64url'), nonce: Buffer.from(nonce, 'base64url') }
}

export interface EnrollBody {
  readonly claims: string
  readonly mac: string
  readonly challenge: string
  readonly csr: string
}

/** Everything as it should be for this token; `wish` spoils it. */
export interface EnrollWish {
  readonly keys?: AttackKeys
  readonly challenge?: Challenge
  /** Other claims than the token's. */
  readonly claims?: string
  /** Leaves the proof of possession out, or puts another text in its place. */
  readonly possession?: string | null
}

export async function makeEnrollment(
  lab: Lab,
  namespace: string,
  token: string,
  wish: EnrollWish = {},
): Promise<EnrollBody> {
  const [, tokenClaims = '', secret = ''] = token.trim().split('.')
  const claims = wish.claims ?? tokenClaims
  const keys = wish.keys ?? newAttackKeys()
  const challenge = wish.challenge ?? (await askChallenge(lab, namespace, Buffer.from(claims, 'ascii')))
  const { info, tag } = prove(keys, challenge, Buffer.from(claims, 'ascii'))
  const possession = wish.possession === undefined ? `${challenge.id}.${tag.toString('base64url')}` : wish.possession
  const mac = createHmac('sha256', Buffer.from(secret, 'base64url'))
    .update(Buffer.concat([Buffer.from('certpeer-token-v1'), info]))
    .digest('base64url')
  const csr = encodeCsr(keys, possession === null ? [] : [attribute(`${ARC}.4.1`, tlv(0x0c, Buffer.from(possession)))])
  return { claims, mac, challenge: challenge.id, csr: csr.toString('base64') }
}

export interface RenewBody {
  readonly challenge: string
  readonly csr: string
}

/** A renewal of `current` (DER), signed with `signer`. */
export async function makeRenewal(
  lab: Lab,
  namespace: string,
  current: Buffer,
  signer: KeyObject,
  wish: { keys?: AttackKeys; challenge?: Challenge } = {},
): Promise<RenewBody> {
  const keys = wish.keys ?? newAttackKeys()
  const challenge = wish.challenge ?? (await askChallenge(lab, namespace, current))
  const { info, tag } = prove(keys, challenge, current)
  const signature = sign('sha256', Buffer.concat([Buffer.from('certpeer-renew-v1'), info]), signer)
  const csr = encodeCsr(keys, [
    attribute(`${ARC}.4.1`, tlv(0x0c, Buffer.from(`${challenge.id}.${tag.toString('base64url')}`))),
    attribute(`${ARC}.4.2`, tlv(0x04, signature)),
    attribute(`${ARC}.4.3`, current),
  ])
  return { challenge: challenge.id, csr: csr.toString('base64') }
}

export function sendEnrollment(lab: Lab, namespace: string, body: object): Promise<Answered> {
  return call(lab, namespace, { url: `${lab.ready?.enrollUrl ?? ''}/v1/certificates`, method: 'POST', json: body })
}

export function sendRenewal(lab: Lab, namespace: string, body: object): Promise<Answered> {
  return call(lab, namespace, {
    url: `${lab.ready?.enrollUrl ?? ''}/v1/certificates/renew`,
    method: 'POST',
    json: body,
  })
}

function prove(keys: AttackKeys, challenge: Challenge, credential: Buffer): { info: Buffer; tag: Buffer } {
  const fields = [
    Buffer.from(TRUST_DOMAIN),
    Buffer.from(challenge.id),
    challenge.publicKey,
    keys.claimedKey,
    sha256(spkiOf(keys.tlsKey)),
    sha256(credential),
    Buffer.from('device'),
  ]
  const info = Buffer.concat([
    Buffer.from('certpeer-pop-v1'),
    ...fields.flatMap((field) => [Buffer.from([field.length >> 8, field.length & 0xff]), field]),
  ])
  const key = Buffer.from(hkdfSync('sha256', keys.sharedSecret(challenge.publicKey), challenge.nonce, info, 32))
  const tag = createHmac('sha256', key)
    .update(Buffer.concat([Buffer.from('requester'), info]))
    .digest()
  return { info, tag }
}

function encodeCsr({ tlsKey, claimedKey }: AttackKeys, attributes: readonly Buffer[]): Buffer {
  const name = tlv(0x30, tlv(0x31, tlv(0x30, oid('2.5.4.3'), tlv(0x0c, Buffer.from('attacker')))))
  const extension = tlv(0x30, oid(`${ARC}.1`), tlv(0x04, tlv(0x30, tlv(0x04, claimedKey))))
  const all = [attribute('1.2.840.113549.1.9.14', tlv(0x30, extension)), ...attributes].sort((a, b) => a.compare(b))
  const info = tlv(0x30, tlv(0x02, Buffer.of(0)), name, spkiOf(tlsKey), tlv(0xa0, ...all))
  const signature = tlv(0x03, Buffer.of(0), sign('sha256', info, tlsKey))
  return tlv(0x30, info, tlv(0x30, oid('1.2.840.10045.4.3.2')), signature)
}

function attribute(type: string, value: Buffer): Buffer {
  return tlv(0x30, oid(type), tlv(0x31, value))
}

function tlv(tag: number, ...parts: readonly Buffer[]): Buffer {
  const content = Buffer.concat(parts)
  const { length } = content
  if (length < 0x80) return Buffer.concat([Buffer.of(tag, length), content])
  if (length < 0x100) return Buffer.concat([Buffer.of(tag, 0x81, length), content])
  return Buffer.concat([Buffer.of(tag, 0x82, length >> 8, length & 0xff), content])
}

function oid(text: string): Buffer {
  const [first = 0, second = 0, ...rest] = text.split('.').map(Number)
  const bytes = [first * 40 + second, ...rest].flatMap((arc) => {
    const groups = [arc & 0x7f]
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) groups.unshift((left & 0x7f) | 0x80)
    return groups
  })
  return tlv(0x06, Buffer.from(bytes))
}

function spkiOf(privateKey: KeyObject): Buffer {
  return createPublicKey(privateKey).export({ type: 'spki', format: 'der' })
}

function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest()
}
