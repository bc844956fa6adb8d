/**
 * Challenges for the proof of possession: single use, 120 s, and only here in memory. The ephemeral private key must
 * never be stored: whoever could read it could forge the proof for any public key. A restart forgets them all.
 */
import { x25519PublicFromPrivate } from '../core/wireguard/x25519.ts'
import { CertpeerError } from '../core/errors.ts'
import { addressKey } from '../platform/http/rate-limit.ts'

export const CHALLENGE_SECONDS = 120
const MAX_PER_ADDRESS = 256
const MAX_IN_ALL = 50_000

export interface IssuedChallenge {
  readonly id: string
  readonly publicKey: Buffer
  readonly nonce: Buffer
  readonly expiresAt: Date
}

/** What the authority keeps of one. */
export interface HeldChallenge {
  readonly id: string
  readonly ephemeralPrivateKey: Buffer
  readonly publicKey: Buffer
  readonly nonce: Buffer
  readonly credentialHash: Buffer
  /** IPv4 address or IPv6 /64 that asked for it. */
  readonly from: string
  readonly expiresAt: Date
}

export class Challenges {
  private readonly random: (bytes: number) => Buffer
  private readonly maxPerAddress: number
  private readonly maxInAll: number
  /** In the order of their making, hence of their end. */
  private readonly held = new Map<string, HeldChallenge>()
  private readonly perAddress = new Map<string, number>()

  constructor(options: { random: (bytes: number) => Buffer; maxPerAddress?: number; maxInAll?: number }) {
    this.random = options.random
    this.maxPerAddress = options.maxPerAddress ?? MAX_PER_ADDRESS
    this.maxInAll = options.maxInAll ?? MAX_IN_ALL
  }

  get size(): number {
    return this.held.size
  }

  /** A fresh challenge, bound to the credential it will be answered with. Throws rate_limited. */
  issue(credentialHash: Buffer, remoteAddress: string, now: Date): IssuedChallenge {
    this.dropExpired(now)
    const from = addressKey(remoteAddress)
    const open = this.perAddress.get(from) ?? 0
    if (open >= this.maxPerAddress || this.held.size >= this.maxInAll) {
      throw new CertpeerError('rate_limited', `too many open challenges; try again in ${CHALLENGE_SECONDS} seconds`)
    }
    const ephemeralPrivateKey = this.random(32)
    const challenge: HeldChallenge = {
      id: this.random(16).toString('base64url'),
      ephemeralPrivateKey,
      publicKey: x25519PublicFromPrivate(ephemeralPrivateKey),
      nonce: this.random(32),
      credentialHash,
      from,
      expiresAt: new Date(now.getTime() + CHALLENGE_SECONDS * 1000),
    }
    this.held.set(challenge.id, challenge)
    this.perAddress.set(from, open + 1)
    const { id, publicKey, nonce, expiresAt } = challenge
    return { id, publicKey, nonce, expiresAt }
  }

  /** Takes the challenge away, whatever comes of the attempt. Throws challenge_unknown. */
  consume(id: string, credentialHash: Buffer, now: Date): HeldChallenge {
    this.dropExpired(now)
    const challenge = this.held.get(id)
    if (challenge) this.drop(challenge)
    if (!challenge?.credentialHash.equals(credentialHash)) {
      throw new CertpeerError(
        'challenge_unknown',
        'the challenge is unknown, used, expired, or was made for another credential; ask for a new one',
      )
    }
    return challenge
  }

  private dropExpired(now: Date): void {
    for (const challenge of this.held.values()) {
      if (challenge.expiresAt > now) return
      this.drop(challenge)
    }
  }

  private drop(challenge: HeldChallenge): void {
    this.held.delete(challenge.id)
    const open = (this.perAddress.get(challenge.from) ?? 1) - 1
    if (open > 0) this.perAddress.set(challenge.from, open)
    else this.perAddress.delete(challenge.from)
  }
}
