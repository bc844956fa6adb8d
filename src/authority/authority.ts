/**
 * The open authority: its CAs, its ledger and the state that the ledger adds up to. Every trip (enroll, renew, revoke,
 * …) takes it as first argument; `commit` is the one way anything becomes true.
 */
import { createHash, createPrivateKey, createPublicKey } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError } from '../core/errors.ts'
import type { Endpoints } from '../core/messages/enrollment.ts'
import { parseCertificate, type Certificate } from '../core/x509/certificate.ts'
import { parseCrl, verifyCrl } from '../core/x509/crl.ts'
import { signatureAlgorithmFor } from '../core/x509/encode.ts'
import { certpeerOids, type CertpeerOids } from '../core/x509/oids.ts'
import { verifyIssuer } from '../core/x509/path.ts'
import { pemToDer } from '../core/x509/pem.ts'
import type { Now } from '../platform/clock.ts'
import { readAuthorityFile } from '../platform/config/authority.ts'
import { readSecretFile, readTextFile } from '../platform/files.ts'
import type { Logger } from '../platform/log.ts'
import { Challenges } from './challenges.ts'
import { compileLeafProfiles, type LeafProfiles } from './issuing/profiles.ts'
import { requireKeyOf, softwareSigner, type IssuingCa, type Signer } from './issuing/signer.ts'
import { CheckpointSigner } from './ledger/checkpoint.ts'
import { encodeEntry, readEntry, type Entry } from './ledger/entry.ts'
import { openLedger, type Ledger, type OpenFile } from './ledger/ledger.ts'
import type { Witness } from './ledger/load.ts'
import { Reservations } from './reservations.ts'
import { LedgerState } from './state.ts'

const SWEEP_EVERY_ENTRIES = 50_000

export type EntryListener = (entry: Entry, index: number) => void

export interface Authority {
  readonly dir: string
  readonly trustDomain: string
  readonly organization: string | undefined
  readonly oids: CertpeerOids
  readonly root: Certificate
  readonly rootPem: string
  readonly issuers: readonly IssuingCa[]
  readonly profiles: LeafProfiles
  readonly endpoints: Endpoints
  readonly authoritySigner: Signer
  readonly tokenKey: Buffer
  readonly ledger: Ledger
  readonly state: LedgerState
  readonly reservations: Reservations
  readonly challenges: Challenges
  readonly now: Now
  readonly random: (bytes: number) => Buffer
  readonly log: Logger
  /** Told of each entry right after it was applied, before whoever wrote it goes on. Must not throw. */
  readonly listeners: Set<EntryListener>
  /** Resolves with the index when the entry is durable and applied; rejects with `unavailable`, and then it is neither. */
  commit(entry: Entry): Promise<number>
  close(): Promise<void>
}

export interface OpenAuthorityOptions {
  readonly dir: string
  readonly endpoints: Endpoints
  readonly lifetimeSeconds?: Readonly<Record<string, number>>
  readonly now: Now
  readonly random: (bytes: number) => Buffer
  readonly log: Logger
  readonly openFile?: OpenFile
}

/** Opens what `pki init` made. Throws config_invalid, certificate_untrusted, or one of the ledger's refusals. */
export async function openAuthority(options: OpenAuthorityOptions): Promise<Authority> {
  const { dir, now, log } = options
  const file = readAuthorityFile(dir)
  const oids = certpeerOids(file.pen)
  const rootPem = await readTextFile(join(dir, 'root.pem'), 'the root certificate')
  const root = parseCertificate(pemToDer(rootPem))
  const issuers: IssuingCa[] = []
  for (const issuer of file.issuers) {
    const certificate = parseCertificate(
      pemToDer(await readTextFile(join(dir, issuer.certificate), `issuer ${issuer.name}`)),
    )
    verifyIssuer({ issuer: certificate, root, now: now(), oids })
    const signer = softwareSigner(await readSecretFile(join(dir, issuer.key), `key of ${issuer.name}`), issuer.key)
    requireKeyOf(signer, certificate, `issuer ${issuer.name}`)
    issuers.push({
      name: issuer.name,
      role: issuer.role,
      tenant: issuer.role === 'device' ? issuer.tenant : undefined,
      certificate,
      signer,
      algorithm: signatureAlgorithmFor(signer.publicKey),
    })
  }
  const authorityKeyPem = await readSecretFile(join(dir, 'keys', 'authority.key'), "the authority's key")
  const tokenKey = Buffer.from((await readSecretFile(join(dir, 'token.key'), 'the token key')).trim(), 'hex')
  if (tokenKey.length !== 32) throw new CertpeerError('config_invalid', `${dir}/token.key must be 64 hex digits`)

  const state = new LedgerState()
  const listeners = new Set<EntryListener>()
  const privateKey = createPrivateKey(authorityKeyPem)
  const ledger = await openLedger({
    dir: join(dir, 'ledger'),
    signer: new CheckpointSigner({ privateKey, publicKey: createPublicKey(privateKey) }, file.trustDomain),
    witnesses: publishedHeads(dir, issuers, oids, log),
    ...(options.openFile === undefined ? {} : { openFile: options.openFile }),
    onHeadFailure: (err) => log.error({ err }, 'ledger head file not written'),
    onCommitted: (payload, index) => {
      const entry = readEntry(payload, index)
      state.apply(entry, index)
      // While replaying, what ended long ago must not pile up.
      if (index % SWEEP_EVERY_ENTRIES === SWEEP_EVERY_ENTRIES - 1) state.sweep(new Date(entry.at))
      for (const listener of listeners) listener(entry, index)
    },
  })
  if (ledger.repair) log.warn({ ...ledger.repair }, 'ledger: a torn group that was never acknowledged was cut off')
  const fingerprint = root.fingerprint
  if (
    state.genesis?.root !== fingerprint ||
    state.genesis.trustDomain !== file.trustDomain ||
    state.genesis.pen !== file.pen
  ) {
    await ledger.close()
    throw new CertpeerError(
      'config_invalid',
      `${dir}/ledger belongs to another root, trust domain or PEN than authority.json`,
    )
  }
  state.sweep(now())
  return {
    dir,
    trustDomain: file.trustDomain,
    organization: file.organization,
    oids,
    root,
    rootPem,
    issuers,
    profiles: compileLeafProfiles(oids, options.lifetimeSeconds),
    endpoints: options.endpoints,
    authoritySigner: softwareSigner(authorityKeyPem, 'keys/authority.key'),
    tokenKey,
    ledger,
    state,
    reservations: new Reservations(),
    challenges: new Challenges({ random: options.random }),
    now,
    random: options.random,
    log,
    listeners,
    commit: (entry) => ledger.append(encodeEntry(entry)),
    close: () => ledger.close(),
  }
}

export function sha256(bytes: Buffer | string): Buffer {
  return createHash('sha256').update(bytes).digest()
}

/** Throws not_found when this authority has no device CA for the tenant. */
export function getDeviceIssuer(authority: Authority, tenant: string): IssuingCa {
  const issuer = authority.issuers.find((ca) => ca.role === 'device' && ca.tenant === tenant)
  if (issuer) return issuer
  throw new CertpeerError('not_found', `there is no device CA for tenant ${tenant}; make one at the ceremony`)
}

/** Throws not_found when this authority holds no infrastructure CA. */
export function getInfrastructureIssuer(authority: Authority): IssuingCa {
  const issuer = authority.issuers.find((ca) => ca.role === 'infrastructure')
  if (issuer) return issuer
  throw new CertpeerError('not_found', 'this authority has no infrastructure CA')
}

export function findIssuerByKeyId(authority: Authority, keyId: string): IssuingCa | undefined {
  return authority.issuers.find((issuer) => issuer.certificate.keyId === keyId)
}

export function crlPath(dir: string, issuerName: string): string {
  return join(dir, 'crl', `${issuerName}.crl`)
}

/** Ledger heads inside the CRLs that were published from this directory; only what our own CAs signed counts. */
function publishedHeads(dir: string, issuers: readonly IssuingCa[], oids: CertpeerOids, log: Logger): Witness[] {
  const folder = join(dir, 'crl')
  if (!existsSync(folder)) return []
  return readdirSync(folder).flatMap((name) => {
    const issuer = issuers.find((ca) => name === `${ca.name}.crl`)
    if (!issuer) return []
    try {
      const crl = parseCrl(readFileSync(join(folder, name)), oids)
      verifyCrl(crl, issuer.certificate)
      return crl.ledgerHead ? [{ ...crl.ledgerHead, source: join('crl', name) }] : []
    } catch (err) {
      // It will be published anew; a damaged copy proves nothing.
      log.warn({ err, file: name }, 'published CRL cannot be read')
      return []
    }
  })
}
