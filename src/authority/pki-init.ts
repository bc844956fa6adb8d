/**
 * The ceremony for one machine: root, issuing CAs, the authority's key, token key and the first ledger entry. It happens
 * once: everything is built beside its place and moved there in one step, so that what was interrupted left nothing.
 */
import { generateKeyPairSync, randomBytes, type KeyObject } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, readdir, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { CertpeerError } from '../core/errors.ts'
import { parsePrefix, type Prefix } from '../core/ipam/prefix.ts'
import { parseCertificate, type Certificate } from '../core/x509/certificate.ts'
import { encodeTbsCertList } from '../core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../core/x509/encode.ts'
import { requireTrustDomain, tenantHost } from '../core/x509/identity.ts'
import { certpeerOids, type CertpeerOids } from '../core/x509/oids.ts'
import { verifyIssuer } from '../core/x509/path.ts'
import { derToPem } from '../core/x509/pem.ts'
import { newSerial } from '../core/x509/serial.ts'
import type { AuthorityFile } from '../platform/config/authority.ts'
import { makePrivateDirectory, syncDirectory, writeFileAtomic } from '../platform/files.ts'
import type { Logger } from '../platform/log.ts'
import { systemNow, type Now } from '../platform/clock.ts'
import { prepare, type CertificateFacts } from './issuing/prepare.ts'
import { compileProfile } from './issuing/profiles.ts'
import { keySigner, signVerified, type Signer } from './issuing/signer.ts'
import { CheckpointSigner } from './ledger/checkpoint.ts'
import { encodeEntry } from './ledger/entry.ts'
import { createLedger } from './ledger/ledger.ts'

const ROOT_CRL_DAYS = 396 // 13 months; the next one is made at the ceremony before it ends
const DAY_MS = 86_400_000
/** Its CA is named after it, and common names have 64 characters (RFC 5280 A.1). */
const MAX_TENANT_CHARACTERS = 45
/** IPv4 and IPv6 as a whole: the root holds the plan of plans. */
const EVERYTHING: readonly Prefix[] = [parsePrefix('0.0.0.0/0'), parsePrefix('::/0')]

export interface InitializePkiOptions {
  /** Becomes the authority's directory; must not exist, or be empty. */
  readonly caDir: string
  /** Where the root key goes; to be moved off this machine. */
  readonly rootDir: string
  readonly trustDomain: string
  readonly pen: number
  readonly organization?: string
  /** One device CA for each, constrained to its blocks and to its tenant's host. */
  readonly tenants: readonly { readonly name: string; readonly blocks: readonly Prefix[] }[]
  /** The address plan: pools, key prefixes and routes of all networks. */
  readonly infrastructureBlocks: readonly Prefix[]
  /** Listener *pki*, when it is known already: goes into the CA certificates. */
  readonly pkiUrl?: string
  readonly now?: Now
  readonly log: Logger
}

/** Throws already_exists, config_invalid, or lint_failed for blocks and names that no CA can hold. */
export async function initializePki(options: InitializePkiOptions): Promise<void> {
  const { caDir, rootDir, trustDomain, pen, log } = options
  requireTrustDomain(trustDomain)
  if (options.tenants.length === 0) throw new CertpeerError('config_invalid', 'at least one tenant is needed')
  const long = options.tenants.find((tenant) => tenant.name.length > MAX_TENANT_CHARACTERS)
  if (long)
    throw new CertpeerError('config_invalid', `tenant ${long.name} is longer than ${MAX_TENANT_CHARACTERS} characters`)
  const staged = `${caDir}.partial`
  const stagedRoot = `${rootDir}.partial`
  if (!existsSync(join(caDir, 'authority.json')) && existsSync(join(staged, 'authority.json'))) {
    // Everything was built; whoever built it died while moving it.
    await moveToPlace(options)
    log.info({ trustDomain }, 'PKI of an interrupted run moved to its place')
    return
  }
  for (const path of [join(caDir, 'authority.json'), join(rootDir, 'root.key')]) {
    if (existsSync(path)) throw new CertpeerError('already_exists', `${path} exists: a PKI is made once`)
  }
  for (const path of [staged, stagedRoot]) await rm(path, { recursive: true, force: true })
  for (const path of [staged, stagedRoot, join(staged, 'issuers'), join(staged, 'keys'), join(staged, 'crl')]) {
    await makePrivateDirectory(path)
  }
  const oids = certpeerOids(pen)
  const now = (options.now ?? systemNow)()
  const ceremony = new Ceremony({ options, oids, now })
  const root = await ceremony.makeRoot()
  await writeKey(join(stagedRoot, 'root.key'), root.privateKey)
  await writeFileAtomic(join(stagedRoot, 'root.pem'), derToPem(root.certificate.der), { mode: 0o644 })
  await writeFileAtomic(join(staged, 'root.pem'), derToPem(root.certificate.der), { mode: 0o644 })
  await writeFileAtomic(join(staged, 'root.crl'), await ceremony.makeRootCrl(root), { mode: 0o644 })

  const file = await writeIssuers(staged, options, ceremony, root)
  const authorityKey = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  await writeKey(join(staged, 'keys', 'authority.key'), authorityKey.privateKey)
  await writeFileAtomic(join(staged, 'token.key'), `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 })
  await createLedger({
    dir: join(staged, 'ledger'),
    signer: new CheckpointSigner(authorityKey, trustDomain),
    genesis: encodeEntry({
      kind: 'genesis',
      at: now.toISOString(),
      version: 1,
      trustDomain,
      pen,
      root: root.certificate.fingerprint,
    }),
  })
  // The file that says "this is an authority" comes last.
  await writeFileAtomic(join(staged, 'authority.json'), `${JSON.stringify(file, null, 2)}\n`, { mode: 0o644 })
  await moveToPlace(options)
  log.info({ trustDomain, root: root.certificate.fingerprint }, 'PKI made; move the root key off this machine')
}

/** The root's key first: an authority must not come to be without it. */
async function moveToPlace({ caDir, rootDir }: InitializePkiOptions): Promise<void> {
  if (existsSync(`${rootDir}.partial`)) await moveInto(`${rootDir}.partial`, rootDir)
  await moveInto(`${caDir}.partial`, caDir)
}

interface MadeCa {
  readonly certificate: Certificate
  readonly privateKey: KeyObject
  readonly signer: Signer
}

async function writeIssuers(
  dir: string,
  options: InitializePkiOptions,
  ceremony: Ceremony,
  root: MadeCa,
): Promise<AuthorityFile> {
  const { trustDomain, pen, organization } = options
  const issuers: AuthorityFile['issuers'] = []
  const write = async (name: string, ca: MadeCa) => {
    const paths = { certificate: `issuers/${name}.pem`, key: `keys/${name}.key` }
    await writeFileAtomic(join(dir, paths.certificate), derToPem(ca.certificate.der), { mode: 0o644 })
    await writeKey(join(dir, paths.key), ca.privateKey)
    return paths
  }
  for (const tenant of options.tenants) {
    const name = `device-${tenant.name}`
    const hosts = [tenantHost(tenant.name, trustDomain)]
    const ca = await ceremony.makeIssuer(root, 'device-ca', `certpeer device CA ${tenant.name}`, tenant.blocks, hosts)
    issuers.push({ name, role: 'device', tenant: tenant.name, ...(await write(name, ca)) })
  }
  const hosts = [trustDomain, `.${trustDomain}`]
  const blocks = options.infrastructureBlocks
  const ca = await ceremony.makeIssuer(root, 'infrastructure-ca', 'certpeer infrastructure CA', blocks, hosts)
  issuers.push({ name: 'infrastructure', role: 'infrastructure', ...(await write('infrastructure', ca)) })
  return { version: 1, trustDomain, pen, ...(organization === undefined ? {} : { organization }), issuers }
}

class Ceremony {
  private readonly options: InitializePkiOptions
  private readonly oids: CertpeerOids
  private readonly now: Date

  constructor(parts: { options: InitializePkiOptions; oids: CertpeerOids; now: Date }) {
    this.options = parts.options
    this.oids = parts.oids
    this.now = new Date(Math.floor(parts.now.getTime() / 1000) * 1000)
  }

  async makeRoot(): Promise<MadeCa> {
    const profile = compileProfile('root', this.oids)
    const keys = generateKeyPairSync('ec', { namedCurve: profile.keyTypes[0] ?? 'P-384' })
    return await this.make('root', keys, undefined, {
      commonName: `certpeer root ${this.options.trustDomain}`.slice(0, 64),
      addressBlocks: EVERYTHING,
    })
  }

  async makeIssuer(
    root: MadeCa,
    profile: 'device-ca' | 'infrastructure-ca',
    commonName: string,
    addressBlocks: readonly Prefix[],
    permittedUriHosts: readonly string[],
  ): Promise<MadeCa> {
    const keys = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const { pkiUrl } = this.options
    const made = await this.make(profile, keys, root, {
      commonName: commonName.slice(0, 64),
      addressBlocks,
      permittedUriHosts,
      ...(pkiUrl === undefined
        ? {}
        : { urls: { crl: `${pkiUrl}/crl/root.crl`, caIssuers: `${pkiUrl}/certs/root.crt` } }),
    })
    verifyIssuer({ issuer: made.certificate, root: root.certificate, now: this.now, oids: this.oids })
    return made
  }

  /** The root has revoked nothing yet; a CRL must be there all the same, because nginx asks for one of every CA. */
  async makeRootCrl(root: MadeCa): Promise<Buffer> {
    const algorithm = signatureAlgorithmFor(root.signer.publicKey)
    const tbs = encodeTbsCertList({
      issuer: root.certificate,
      thisUpdate: root.certificate.notBefore,
      nextUpdate: new Date(this.now.getTime() + ROOT_CRL_DAYS * DAY_MS),
      number: BigInt(this.now.getTime()),
      entries: Buffer.alloc(0),
      oids: this.oids,
    })
    return assembleSigned(tbs, algorithm.der, await signVerified(root.signer, algorithm, tbs))
  }

  private async make(
    profileName: 'root' | 'device-ca' | 'infrastructure-ca',
    keys: { publicKey: KeyObject; privateKey: KeyObject },
    parent: MadeCa | undefined,
    facts: Pick<CertificateFacts, 'commonName' | 'addressBlocks' | 'permittedUriHosts' | 'urls'>,
  ): Promise<MadeCa> {
    const profile = compileProfile(profileName, this.oids)
    const signer = keySigner(keys.privateKey)
    const parentSigner = parent?.signer ?? signer
    const algorithm = signatureAlgorithmFor(parentSigner.publicKey)
    const ends = this.now.getTime() + profile.lifetimeSeconds * 1000
    const prepared = prepare(
      {
        ...facts,
        organization: this.options.organization,
        spki: keys.publicKey.export({ type: 'spki', format: 'der' }),
        serial: newSerial(randomBytes(20)),
        notBefore: new Date(this.now.getTime() - profile.backdateSeconds * 1000),
        notAfter: new Date(Math.min(ends, parent?.certificate.notAfter.getTime() ?? ends)),
      },
      {
        profile,
        ...(parent === undefined ? {} : { issuer: parent.certificate }),
        algorithm,
        oids: this.oids,
        trustDomain: this.options.trustDomain,
        now: this.now,
        isSerialUsed: () => false,
      },
    )
    const signature = await signVerified(parentSigner, algorithm, prepared.tbs)
    const certificate = parseCertificate(assembleSigned(prepared.tbs, algorithm.der, signature))
    return { certificate, privateKey: keys.privateKey, signer }
  }
}

async function writeKey(path: string, key: KeyObject): Promise<void> {
  await writeFileAtomic(path, key.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 })
}

/** One rename when the place is free; else file by file (a directory that was made before, for its configuration). */
async function moveInto(staged: string, place: string): Promise<void> {
  await mkdir(dirname(place), { recursive: true, mode: 0o700 })
  if (!existsSync(place)) {
    await rename(staged, place)
  } else {
    const names = (await readdir(staged)).sort(
      (a, b) => Number(a === 'authority.json') - Number(b === 'authority.json'),
    )
    for (const name of names) {
      await rm(join(place, name), { recursive: true, force: true })
      await rename(join(staged, name), join(place, name))
    }
    await rm(staged, { recursive: true })
  }
  await syncDirectory(dirname(place))
}
