/**
 * Enrollment and renewal from the requester's side: device, gateway, operator and front alike. Keys are made here and
 * stay here. What comes back is believed only after it verifies under the pinned root and holds our own keys and the
 * identity that the token (or the current certificate) names.
 */
import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { CertpeerError, errorCode } from '../core/errors.ts'
import { parseMessage } from '../core/messages/common.ts'
import { certificateAnswerSchema, challengeAnswerSchema } from '../core/messages/enrollment.ts'
import type { CertificateAnswer, TokenClaims } from '../core/messages/enrollment.ts'
import { verifyNetworkDocument } from '../core/messages/network-document.ts'
import type { VerifiedNetworkDocument } from '../core/messages/network-document.ts'
import { parseToken } from '../core/messages/token.ts'
import { x25519PublicFromPrivate } from '../core/wireguard/x25519.ts'
import { wireGuardKeyFromBytes } from '../core/wireguard/key.ts'
import type { WireGuardKey } from '../core/wireguard/key.ts'
import { createPossession, possessionInfo, renewalMessage, tokenMac } from '../core/wireguard/possession.ts'
import { parseCertificate } from '../core/x509/certificate.ts'
import type { Certificate } from '../core/x509/certificate.ts'
import { readServedNetworks, readWireGuardKey } from '../core/x509/certpeer-extensions.ts'
import type { Identity } from '../core/x509/identity.ts'
import { certpeerOids } from '../core/x509/oids.ts'
import type { CertpeerOids } from '../core/x509/oids.ts'
import { verifyCertificate } from '../core/x509/path.ts'
import type { VerifiedCertificate } from '../core/x509/path.ts'
import { pemToDer } from '../core/x509/pem.ts'
import { createCsr } from '../core/x509/request.ts'
import { ApiClient } from '../platform/api-client/client.ts'
import { systemNow } from '../platform/clock.ts'
import type { Now } from '../platform/clock.ts'
import {
  findPendingEnrollment,
  hasCredential,
  readCredential,
  removePendingEnrollment,
  writeCredential,
  writePendingEnrollment,
} from '../platform/credentials.ts'
import type { Credential, PendingEnrollment } from '../platform/credentials.ts'
import { sleep } from '../platform/lifecycle.ts'
import { acceptNetworkDocument } from './network-documents.ts'
import type { DocumentTrust } from './network-documents.ts'
import { fetchTrust } from './trust.ts'

export interface EnrollOptions {
  readonly token: string
  /** Credential directory; made if missing, refused if it already holds a certificate. */
  readonly dir: string
  /** Whether this kind of requester has a WireGuard key (device and gateway). */
  readonly wireGuard: boolean
  readonly now?: Now
  /** Refuses a token of any other role before anything is sent. */
  readonly expect?: 'device' | 'gateway' | 'operator'
  readonly signal?: AbortSignal
}

export interface Enrolled {
  readonly verified: VerifiedCertificate
  readonly documents: readonly VerifiedNetworkDocument[]
  readonly credential: Credential
}

/** What both trips need about the pinned authority. */
interface Pinned {
  readonly root: Certificate
  readonly oids: CertpeerOids
  readonly trustDomain: string
}

interface LocalKeys {
  readonly tlsKey: KeyObject
  /** Raw X25519 private key, 32 bytes. */
  readonly wireGuardPrivate?: Buffer
}

/** How often a request whose answer was lost is repeated before the caller is told. */
const SEND_ATTEMPTS = 4

/** Spends a token: makes keys, proves them, writes the credential directory. */
export async function enroll(options: EnrollOptions): Promise<Enrolled> {
  const { dir, wireGuard, signal, now = systemNow } = options
  const { claims, segment, secret } = parseToken(options.token)
  refuseWrongToken(claims, options)
  if (hasCredential(dir)) {
    throw new CertpeerError(
      'already_exists',
      `${dir} already holds a credential: choose another directory or remove it`,
    )
  }
  await mkdir(dir, { recursive: true, mode: 0o700 })

  const { root, rootPem, oids, trustDomain } = await fetchTrust(
    { url: claims.url, rootFingerprint: claims.root, trustDomain: claims.trustDomain, pen: claims.pen },
    now(),
  )
  const api = new ApiClient({ base: claims.url, root: rootPem })
  const pinned: Pinned = { root, oids, trustDomain }

  const left = await findPendingEnrollment(dir, segment)
  const keys = left === undefined ? makeKeys(wireGuard) : keysOf(left)
  const prepare = async (): Promise<PendingEnrollment> => {
    const prepared = await prepareEnrollment({ api, pinned, claims, segment, secret, keys })
    await writePendingEnrollment(dir, prepared)
    return prepared
  }
  let pending = left ?? (await prepare())
  let body: unknown
  try {
    body = await sendAgain(api, '/v1/certificates', pending.request, signal)
  } catch (error) {
    // The authority has forgotten the challenge (it was started again, or the request was kept for long), and it looks
    // for a spent token first: nothing was issued.
    if (errorCode(error) !== 'challenge_unknown') throw error
    pending = await prepare()
    body = await sendAgain(api, '/v1/certificates', pending.request, signal).catch(throwFirstFailure)
  }
  const answer = parseMessage(certificateAnswerSchema, body, 'certificate answer')
  const verified = verifyAnswer(answer, keys, pinned, now())
  refuseOtherIdentity(verified.identity, verified.role, claims)
  const documents = await acceptDocuments(dir, answer.networkDocuments, networksOf(claims), {
    ...pinned,
    now: now(),
  })

  const credential = await writeCredential(dir, {
    certificate: answer.certificate,
    issuer: answer.issuer,
    root: rootPem,
    tlsKey: pending.tlsKey,
    ...(pending.wireGuardKey === undefined ? {} : { wireGuardKey: pending.wireGuardKey }),
    config: {
      role: verified.role,
      identity: answer.identity,
      name: claims.name,
      trustDomain,
      pen: claims.pen,
      ...answer.endpoints,
    },
  })
  await removePendingEnrollment(dir)
  return { verified, documents, credential }
}

export interface RenewOptions {
  readonly dir: string
  readonly now?: Now
  /** Another way to the enroll listener than the credential's own `enrollUrl` (the front beside it uses the socket). */
  readonly source?: { readonly base: string; readonly headers?: Readonly<Record<string, string>> }
  readonly signal?: AbortSignal
}

/**
 * Renews the credential in `dir` with the keys it has; works also after expiry, for as long as the network allows.
 * The old certificate stays until the new one is verified; nothing here ever deletes a credential.
 */
export async function renew({ dir, now = systemNow, source, signal }: RenewOptions): Promise<Enrolled> {
  const credential = await readCredential(dir)
  const { config } = credential
  const oids = certpeerOids(config.pen)
  const pinned: Pinned = {
    root: parseCertificate(pemToDer(credential.root)),
    oids,
    trustDomain: config.trustDomain,
  }
  const current = parseCertificate(pemToDer(credential.certificate))
  const keys: LocalKeys = {
    tlsKey: createPrivateKey(credential.tlsKey),
    ...(credential.wireGuardKey === undefined
      ? {}
      : { wireGuardPrivate: Buffer.from(credential.wireGuardKey, 'base64') }),
  }
  const api = new ApiClient({
    base: source?.base ?? config.enrollUrl,
    root: credential.root,
    ...(source?.headers === undefined ? {} : { headers: source.headers }),
  })

  const send = async () => {
    const request = await prepareRenewal({ api, pinned, current, keys, profile: config.role })
    return sendAgain(api, '/v1/certificates/renew', request, signal)
  }
  const body = await send().catch((error: unknown) => {
    // The authority was started again since it made the challenge.
    if (errorCode(error) !== 'challenge_unknown') throw error
    return send().catch(throwFirstFailure)
  })
  const answer = parseMessage(certificateAnswerSchema, body, 'certificate answer')
  const verified = verifyAnswer(answer, keys, pinned, now())
  const [uri] = verified.certificate.sanUris
  if (uri === undefined || uri !== current.sanUris[0] || verified.role !== config.role) {
    throw new CertpeerError('certificate_untrusted', 'the authority renewed to another identity or role: not accepted')
  }
  if (verified.certificate.notBefore <= current.notBefore) {
    throw new CertpeerError(
      'older_certificate',
      'the authority answered with a certificate that is not newer than ours',
    )
  }
  const documents = await acceptDocuments(dir, answer.networkDocuments, renewableNetworks(verified, oids), {
    ...pinned,
    now: now(),
  })
  const renewed = await writeCredential(dir, {
    certificate: answer.certificate,
    issuer: answer.issuer,
    root: credential.root,
    tlsKey: credential.tlsKey,
    ...(credential.wireGuardKey === undefined ? {} : { wireGuardKey: credential.wireGuardKey }),
    config: { ...config, ...answer.endpoints },
  })
  return { verified, documents, credential: renewed }
}

function refuseWrongToken(claims: TokenClaims, { expect, wireGuard, now = systemNow }: EnrollOptions): void {
  const kind = claims.role.startsWith('operator-') ? 'operator' : claims.role
  if (expect !== undefined && kind !== expect) {
    throw new CertpeerError(
      'token_invalid',
      `this token is for the role ${kind}, not ${expect}: use certpeer ${commandFor(kind)}`,
    )
  }
  if (wireGuard !== (kind !== 'operator')) {
    throw new CertpeerError('token_invalid', `a token for the role ${kind} cannot be used here`)
  }
  // A convenience, not a guard: the authority decides by its own clock.
  if (claims.exp * 1000 < now().getTime()) {
    throw new CertpeerError(
      'token_expired',
      `the token expired at ${new Date(claims.exp * 1000).toISOString()}: ask for a new one`,
    )
  }
}

function commandFor(kind: string): string {
  return kind === 'device' ? 'device enroll' : `${kind} join`
}

function makeKeys(wireGuard: boolean): LocalKeys {
  const tlsKey = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
  if (!wireGuard) return { tlsKey }
  const wireGuardPrivate = randomBytes(32)
  // Clamped as wg genkey does (RFC 7748 section 5), so that every tool shows the same key.
  wireGuardPrivate.writeUInt8(wireGuardPrivate.readUInt8(0) & 248, 0)
  wireGuardPrivate.writeUInt8((wireGuardPrivate.readUInt8(31) & 127) | 64, 31)
  return { tlsKey, wireGuardPrivate }
}

function keysOf(pending: PendingEnrollment): LocalKeys {
  const tlsKey = createPrivateKey(pending.tlsKey)
  if (pending.wireGuardKey === undefined) return { tlsKey }
  return { tlsKey, wireGuardPrivate: Buffer.from(pending.wireGuardKey, 'base64') }
}

interface EnrollmentInput {
  readonly api: ApiClient
  readonly pinned: Pinned
  readonly claims: TokenClaims
  readonly segment: string
  readonly secret: Buffer
  readonly keys: LocalKeys
}

async function prepareEnrollment({
  api,
  pinned,
  claims,
  segment,
  secret,
  keys,
}: EnrollmentInput): Promise<PendingEnrollment> {
  const credentialHash = createHash('sha256').update(segment, 'ascii').digest()
  const proof = await answerChallenge({ api, pinned, keys, credentialHash, profile: claims.profile })
  const wireGuardKey = wireGuardKeyOf(keys)
  const csr = await createCsr({
    tlsKey: keys.tlsKey,
    commonName: claims.name,
    ...(wireGuardKey === undefined ? {} : { wireGuardKey }),
    attributes: claims.possession && proof.possession !== undefined ? { possession: proof.possession } : {},
    oids: pinned.oids,
  })
  return {
    version: 1,
    request: {
      claims: segment,
      mac: tokenMac(secret, proof.info).toString('base64url'),
      challenge: proof.challengeId,
      csr: csr.toString('base64'),
    },
    tlsKey: keys.tlsKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    ...(keys.wireGuardPrivate === undefined ? {} : { wireGuardKey: keys.wireGuardPrivate.toString('base64') }),
  }
}

interface RenewalInput {
  readonly api: ApiClient
  readonly pinned: Pinned
  readonly current: Certificate
  readonly keys: LocalKeys
  readonly profile: string
}

async function prepareRenewal({ api, pinned, current, keys, profile }: RenewalInput) {
  const credentialHash = createHash('sha256').update(current.der).digest()
  const proof = await answerChallenge({ api, pinned, keys, credentialHash, profile })
  const wireGuardKey = wireGuardKeyOf(keys)
  const csr = await createCsr({
    tlsKey: keys.tlsKey,
    commonName: current.commonName ?? '',
    ...(wireGuardKey === undefined ? {} : { wireGuardKey }),
    attributes: {
      ...(proof.possession === undefined ? {} : { possession: proof.possession }),
      renewalSignature: sign('sha256', renewalMessage(proof.info), keys.tlsKey),
      renewalCertificate: current.der,
    },
    oids: pinned.oids,
  })
  return { challenge: proof.challengeId, csr: csr.toString('base64') }
}

interface ChallengeInput {
  readonly api: ApiClient
  readonly pinned: Pinned
  readonly keys: LocalKeys
  readonly credentialHash: Buffer
  readonly profile: string
}

/** Fetches a challenge and computes certpeer-pop-v1 over it; `possession` is absent where there is no WireGuard key. */
async function answerChallenge({ api, pinned, keys, credentialHash, profile }: ChallengeInput) {
  const { json } = await api.request({
    method: 'POST',
    path: '/v1/challenges',
    json: { credential: credentialHash.toString('base64url') },
  })
  const answer = parseMessage(challengeAnswerSchema, json, 'challenge')
  const challenge = {
    id: answer.id,
    publicKey: Buffer.from(answer.publicKey, 'base64url'),
    nonce: Buffer.from(answer.nonce, 'base64url'),
  }
  const spki = spkiOf(keys.tlsKey)
  const { trustDomain } = pinned
  if (keys.wireGuardPrivate === undefined) {
    const info = possessionInfo({
      trustDomain,
      challengeId: challenge.id,
      ephemeralKey: challenge.publicKey,
      wireGuardKey: Buffer.alloc(0),
      spkiHash: createHash('sha256').update(spki).digest(),
      credentialHash,
      profile,
    })
    return { challengeId: challenge.id, info }
  }
  const privateKey = keys.wireGuardPrivate
  const { attribute, info } = createPossession({ privateKey, challenge, trustDomain, spki, credentialHash, profile })
  return { challengeId: challenge.id, info, possession: attribute }
}

/** Sends `body`, byte for byte the same again while the answer is lost; what the authority refuses is thrown at once. */
async function sendAgain(api: ApiClient, path: string, body: unknown, signal?: AbortSignal): Promise<unknown> {
  const raw = Buffer.from(JSON.stringify(body))
  let first: unknown
  for (let attempt = 1; ; attempt++) {
    try {
      const { json } = await api.request({ method: 'POST', path, raw: { contentType: 'application/json', body: raw } })
      return json
    } catch (error) {
      if (errorCode(error) === 'challenge_unknown' && first !== undefined) {
        throw new CertpeerError('challenge_unknown', 'the challenge was spent by an attempt that failed', {
          cause: first,
        })
      }
      const lost = errorCode(error) === 'unavailable' || errorCode(error) === 'timeout'
      first ??= error
      if (!lost || attempt === SEND_ATTEMPTS || signal?.aborted === true) throw error
      await sleep(250 * 2 ** attempt, signal)
    }
  }
}

/** A spent challenge is no news; why the attempt that spent it failed (a full disk) is. */
function throwFirstFailure(error: unknown): never {
  throw errorCode(error) === 'challenge_unknown' && error instanceof Error ? (error.cause ?? error) : error
}

/** The certificate verifies under the pinned root and holds our own two keys. */
function verifyAnswer(answer: CertificateAnswer, keys: LocalKeys, pinned: Pinned, now: Date): VerifiedCertificate {
  const certificate = parseCertificate(pemToDer(answer.certificate))
  const issuer = parseCertificate(pemToDer(answer.issuer))
  const verified = verifyCertificate({ certificate, issuers: [issuer], now, ...pinned })
  if (!certificate.spki.equals(spkiOf(keys.tlsKey))) {
    throw new CertpeerError('certificate_untrusted', 'the certificate answered is for another TLS key than ours')
  }
  const wireGuardKey = wireGuardKeyOf(keys)
  if (wireGuardKey !== undefined && readWireGuardKey(certificate, pinned.oids).key !== wireGuardKey) {
    throw new CertpeerError('certificate_untrusted', 'the certificate answered is for another WireGuard key than ours')
  }
  return verified
}

/** The identity is the token's: a device's id is the authority's choice, everything else is not. */
function refuseOtherIdentity(identity: Identity, role: string, claims: TokenClaims): void {
  if (role === claims.role && isTokensIdentity(identity, claims)) return
  throw new CertpeerError(
    'certificate_untrusted',
    'the certificate answered is for another identity than the token names',
  )
}

function isTokensIdentity(identity: Identity, claims: TokenClaims): boolean {
  switch (identity.kind) {
    case 'device':
      return identity.tenant === claims.tenant && identity.network === claims.networks[0]
    case 'gateway':
      return identity.name === claims.name
    case 'operator':
      return identity.name === claims.name && (identity.tenant === undefined || identity.tenant === claims.tenant)
    case 'authority':
    case 'server':
      return false
    default:
      return identity satisfies never
  }
}

/** The networks whose documents an answer may bring, as `<tenant>/<network>`. */
function networksOf(claims: TokenClaims): readonly string[] {
  return claims.networks.map((network) => `${claims.tenant}/${network}`)
}

function renewableNetworks({ certificate, identity }: VerifiedCertificate, oids: CertpeerOids): readonly string[] {
  if (identity.kind === 'device') return [`${identity.tenant}/${identity.network}`]
  return identity.kind === 'gateway' ? readServedNetworks(certificate, oids) : []
}

/** Each document verifies, belongs to one of `expected`, and is no older than what we have seen of its network. */
async function acceptDocuments(
  dir: string,
  jwsTexts: readonly string[],
  expected: readonly string[],
  trust: DocumentTrust,
): Promise<readonly VerifiedNetworkDocument[]> {
  const accepted: VerifiedNetworkDocument[] = []
  for (const jws of jwsTexts) {
    const { document } = verifyNetworkDocument({ jws, ...trust })
    const { tenant, network } = document
    if (!expected.includes(`${tenant}/${network}`)) {
      throw new CertpeerError(
        'foreign_network',
        `the answer brings the document of ${tenant}/${network}, which is not ours`,
      )
    }
    accepted.push(await acceptNetworkDocument(dir, jws, { tenant, network }, trust))
  }
  return accepted
}

function spkiOf(privateKey: KeyObject): Buffer {
  return createPublicKey(privateKey).export({ type: 'spki', format: 'der' })
}

function wireGuardKeyOf({ wireGuardPrivate }: LocalKeys): WireGuardKey | undefined {
  return wireGuardPrivate === undefined ? undefined : wireGuardKeyFromBytes(x25519PublicFromPrivate(wireGuardPrivate))
}
