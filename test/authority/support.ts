/** A whole authority in a temporary directory with a clock of its own, and those who ask it for something. */
import { createHash, generateKeyPairSync, randomBytes, sign, type KeyObject } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { openAuthority, type Authority } from '../../src/authority/authority.ts'
import { enroll } from '../../src/authority/enroll.ts'
import type { OpenFile } from '../../src/authority/ledger/ledger.ts'
import { applyNetwork } from '../../src/authority/networks.ts'
import { initializePki } from '../../src/authority/pki-init.ts'
import type { OperatorPrincipal } from '../../src/authority/principal.ts'
import { renew } from '../../src/authority/renew.ts'
import { createToken } from '../../src/authority/tokens.ts'
import { parsePrefix } from '../../src/core/ipam/prefix.ts'
import type { CertificateAnswer, EnrollRequest, TokenRequest } from '../../src/core/messages/enrollment.ts'
import { tokenRequestSchema } from '../../src/core/messages/enrollment.ts'
import { networkSettingsSchema } from '../../src/core/messages/network.ts'
import { parseToken } from '../../src/core/messages/token.ts'
import { wireGuardKeyFromBytes, type WireGuardKey } from '../../src/core/wireguard/key.ts'
import { createPossession, possessionInfo, renewalMessage, tokenMac } from '../../src/core/wireguard/possession.ts'
import { x25519PublicFromPrivate } from '../../src/core/wireguard/x25519.ts'
import { parseCertificate, type Certificate } from '../../src/core/x509/certificate.ts'
import { pemToDer } from '../../src/core/x509/pem.ts'
import { createCsr } from '../../src/core/x509/request.ts'
import { silentLogger } from '../../src/platform/log.ts'

export const ENDPOINTS = {
  enrollUrl: 'https://127.0.0.1:8443',
  authorityUrl: 'https://127.0.0.1:8444',
  apiUrl: 'https://127.0.0.1:8445',
  gatewaysUrl: 'https://127.0.0.1:8446',
  pkiUrl: 'http://127.0.0.1:8447',
}
export const ADMIN: OperatorPrincipal = {
  role: 'operator-admin',
  name: 'root',
  tenant: undefined,
  groups: [],
  uri: 'spiffe://certpeer.internal/operator/root',
}
const PLANS = {
  red: ['10.1.0.0/16', 'fd01:0:0:1::/64', 'fd01:0:0:8::/64'],
  blue: ['10.3.0.0/16', 'fd02:0:0:1::/64', 'fd02:0:0:8::/64'],
} as const
export type Tenant = keyof typeof PLANS

export class TestClock {
  private at: number

  constructor(start = Date.UTC(2026, 5, 1, 12)) {
    this.at = start
  }

  readonly now = (): Date => new Date(this.at)

  advance(seconds: number): void {
    this.at += seconds * 1000
  }
}

export interface Stage {
  authority: Authority
  readonly dir: string
  readonly clock: TestClock
  /** Closes and opens again, as a restart does. */
  restart(options?: { openFile?: OpenFile }): Promise<void>
}

export async function newStage(
  t: TestContext,
  options: { lifetimes?: Record<string, number>; openFile?: OpenFile } = {},
): Promise<Stage> {
  const base = mkdtempSync(join(tmpdir(), 'certpeer-authority-'))
  const dir = join(base, 'ca')
  const clock = new TestClock()
  const tenants = Object.entries(PLANS).map(([name, plan]) => ({ name, blocks: plan.map((text) => parsePrefix(text)) }))
  await initializePki({
    caDir: dir,
    rootDir: join(base, 'root'),
    trustDomain: 'certpeer.internal',
    pen: 32473,
    tenants,
    infrastructureBlocks: tenants.flatMap((tenant) => tenant.blocks),
    now: clock.now,
    log: silentLogger(),
  })
  mkdirSync(join(dir, 'crl'), { recursive: true })
  const start = (openFile?: OpenFile) =>
    openAuthority({
      dir,
      endpoints: ENDPOINTS,
      lifetimeSeconds: options.lifetimes ?? {},
      now: clock.now,
      random: randomBytes,
      log: silentLogger(),
      ...(openFile === undefined ? {} : { openFile }),
    })
  const stage: Stage = {
    authority: await start(options.openFile),
    dir,
    clock,
    async restart(again = {}) {
      await stage.authority.close()
      stage.authority = await start(again.openFile)
    },
  }
  t.after(async () => {
    await stage.authority.close()
    rmSync(base, { recursive: true, force: true })
  })
  return stage
}

export function settings(tenant: Tenant = 'red', changes: object = {}) {
  const [v4, v6, keyPrefix] = PLANS[tenant]
  return networkSettingsSchema.parse({ tenant, network: 'lan', pools: [v4, v6], keyPrefix, ...changes })
}

/** An authority with network red/lan. */
export async function newNetworkStage(
  t: TestContext,
  changes: object = {},
  options: Parameters<typeof newStage>[1] = {},
): Promise<Stage> {
  const stage = await newStage(t, options)
  await applyNetwork(stage.authority, ADMIN, settings('red', changes))
  return stage
}

export interface Keys {
  readonly tls: { readonly publicKey: KeyObject; readonly privateKey: KeyObject }
  readonly wireGuardPrivate: Buffer
  readonly wireGuard: WireGuardKey
}

export function newKeys(): Keys {
  const wireGuardPrivate = randomBytes(32)
  return {
    tls: generateKeyPairSync('ec', { namedCurve: 'P-256' }),
    wireGuardPrivate,
    wireGuard: wireGuardKeyFromBytes(x25519PublicFromPrivate(wireGuardPrivate)),
  }
}

export async function newToken(stage: Stage, request: Partial<TokenRequest> & { name: string }): Promise<string> {
  const parsed = tokenRequestSchema.parse({ tenant: 'red', networks: ['lan'], ...request })
  return (await createToken(stage.authority, ADMIN, parsed)).token
}

function spkiOf(keys: Keys): Buffer {
  return keys.tls.publicKey.export({ type: 'spki', format: 'der' })
}

function sha256(bytes: Buffer | string): Buffer {
  return createHash('sha256').update(bytes).digest()
}

interface ProofOptions {
  readonly keys: Keys
  readonly credential: Buffer | string
  readonly profile: string
  /** Claims another key than the one whose private half is at hand. */
  readonly claimedKey?: WireGuardKey
  readonly withoutPossession?: boolean
  readonly withoutWireGuard?: boolean
}

function challengeFor(stage: Stage, options: ProofOptions) {
  const { authority } = stage
  const credentialHash = sha256(options.credential)
  const challenge = authority.challenges.issue(credentialHash, '192.0.2.1', authority.now())
  const common = { trustDomain: authority.trustDomain, credentialHash, profile: options.profile }
  if (options.withoutWireGuard) {
    const info = possessionInfo({
      ...common,
      challengeId: challenge.id,
      ephemeralKey: challenge.publicKey,
      wireGuardKey: Buffer.alloc(0),
      spkiHash: sha256(spkiOf(options.keys)),
    })
    return { challenge, info, attribute: undefined }
  }
  const { attribute, info } = createPossession({
    ...common,
    privateKey: options.keys.wireGuardPrivate,
    challenge,
    spki: spkiOf(options.keys),
  })
  if (options.claimedKey === undefined) return { challenge, info, attribute }
  const claimed = possessionInfo({
    ...common,
    challengeId: challenge.id,
    ephemeralKey: challenge.publicKey,
    wireGuardKey: Buffer.from(options.claimedKey, 'base64'),
    spkiHash: sha256(spkiOf(options.keys)),
  })
  return { challenge, info: claimed, attribute }
}

export async function enrollmentRequest(
  stage: Stage,
  token: string,
  keys: Keys,
  options: Partial<ProofOptions> = {},
): Promise<EnrollRequest> {
  const { claims, segment, secret } = parseToken(token)
  const { challenge, info, attribute } = challengeFor(stage, {
    keys,
    credential: segment,
    profile: claims.profile,
    ...options,
  })
  const csr = await createCsr({
    tlsKey: keys.tls.privateKey,
    commonName: claims.name,
    ...(options.withoutWireGuard ? {} : { wireGuardKey: options.claimedKey ?? keys.wireGuard }),
    attributes: attribute === undefined || options.withoutPossession ? {} : { possession: attribute },
    oids: stage.authority.oids,
  })
  return {
    claims: segment,
    mac: tokenMac(secret, info).toString('base64url'),
    challenge: challenge.id,
    csr: csr.toString('base64'),
  }
}

export interface Enrolled {
  readonly answer: CertificateAnswer
  readonly certificate: Certificate
  readonly keys: Keys
}

export async function enrollDevice(stage: Stage, name: string, keys = newKeys()): Promise<Enrolled> {
  const token = await newToken(stage, { name })
  const answer = await enroll(stage.authority, await enrollmentRequest(stage, token, keys))
  return { answer, certificate: certificateOf(answer), keys }
}

export async function renewalRequest(
  stage: Stage,
  enrolled: Pick<Enrolled, 'certificate' | 'keys'>,
  options: Partial<ProofOptions> & { newKeys?: Keys; signer?: KeyObject } = {},
) {
  const keys = options.newKeys ?? enrolled.keys
  const profile = options.profile ?? 'device'
  const { challenge, info, attribute } = challengeFor(stage, {
    credential: enrolled.certificate.der,
    ...options,
    keys,
    profile,
  })
  const csr = await createCsr({
    tlsKey: keys.tls.privateKey,
    commonName: enrolled.certificate.commonName ?? '',
    ...(options.withoutWireGuard ? {} : { wireGuardKey: options.claimedKey ?? keys.wireGuard }),
    attributes: {
      ...(attribute === undefined || options.withoutPossession ? {} : { possession: attribute }),
      renewalSignature: sign('sha256', renewalMessage(info), options.signer ?? enrolled.keys.tls.privateKey),
      renewalCertificate: enrolled.certificate.der,
    },
    oids: stage.authority.oids,
  })
  return { challenge: challenge.id, csr: csr.toString('base64') }
}

export async function renewDevice(
  stage: Stage,
  enrolled: Pick<Enrolled, 'certificate' | 'keys'>,
  options: Parameters<typeof renewalRequest>[2] = {},
): Promise<Enrolled> {
  const answer = await renew(stage.authority, await renewalRequest(stage, enrolled, options))
  return { answer, certificate: certificateOf(answer), keys: options.newKeys ?? enrolled.keys }
}

export function certificateOf(answer: CertificateAnswer): Certificate {
  return parseCertificate(pemToDer(answer.certificate))
}
