/**
 * The credential directory of a device, gateway, operator or front: certificate.pem (leaf, then issuing CA), tls.key,
 * wireguard.key where there is one, root.pem (the pinned root) and config.json. It changes in one step: after a crash at
 * any moment a reader finds the old credential or the new one, never a certificate beside another's key.
 */
import { X509Certificate, createPrivateKey } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { CertpeerError } from '../core/errors.ts'
import { nameSchema, roleSchema, urlSchema } from '../core/messages/common.ts'
import { enrollRequestSchema } from '../core/messages/enrollment.ts'
import { readConfig } from './config/config-file.ts'
import { makePrivateDirectory, readSecretFile, readTextFile, syncDirectory, writeFileAtomic } from './files.ts'

export const credentialConfigSchema = z.strictObject({
  role: roleSchema,
  /** The certificate's SAN URI. */
  identity: z.string().max(512),
  /** The name people gave; a device's identity holds a random id instead. */
  name: nameSchema.optional(),
  trustDomain: z.string().max(253),
  pen: z.int().positive(),
  enrollUrl: urlSchema,
  authorityUrl: urlSchema,
  apiUrl: urlSchema,
  gatewaysUrl: urlSchema,
  pkiUrl: urlSchema,
  /** Device and gateway: the WireGuard interface. */
  interface: z.string().max(15).optional(),
  /** Gateway: HOST:PORT where devices reach it, and the UDP port it listens on. */
  endpoint: z.string().max(300).optional(),
  wireguardPort: z.int().min(1).max(65_535).optional(),
  /** Gateway: how to drive the interface, how often to look for hand edits, how often to ask the pki listener. */
  backend: z.enum(['auto', 'uapi', 'wg']).optional(),
  reconcileSeconds: z.int().min(1).max(3600).optional(),
  pollSeconds: z.int().min(1).max(3600).optional(),
})
export type CredentialConfig = z.output<typeof credentialConfigSchema>

export interface CredentialFiles {
  /** PEM, leaf alone. */
  readonly certificate: string
  /** PEM, issuing CA. */
  readonly issuer: string
  /** PEM, PKCS#8. */
  readonly tlsKey: string
  /** Base64 of the raw X25519 private key, as `wg genkey` prints it. */
  readonly wireGuardKey?: string
  /** PEM, the pinned root. */
  readonly root: string
  readonly config: CredentialConfig
}

export interface Credential extends CredentialFiles {
  readonly dir: string
  /** Leaf and issuer, as certificate.pem holds them and TLS sends them. */
  readonly chain: string
}

/** A complete new generation; its rename to COMMITTED is the moment the credential changes. */
const STAGED = '.next'
const COMMITTED = '.commit'

/** Writes or replaces the credential in `dir`. Other files in it (pending requests, network documents) stay. */
export async function writeCredential(dir: string, files: CredentialFiles): Promise<Credential> {
  await makePrivateDirectory(dir)
  await rollForward(dir)
  const staged = join(dir, STAGED)
  await rm(staged, { recursive: true, force: true })
  await mkdir(staged, { mode: 0o700 })
  const chain = `${files.certificate.trimEnd()}\n${files.issuer.trimEnd()}\n`
  const write = (name: string, text: string, mode: number) => writeFileAtomic(join(staged, name), text, { mode })
  await write('tls.key', files.tlsKey, 0o600)
  if (files.wireGuardKey !== undefined) await write('wireguard.key', `${files.wireGuardKey.trim()}\n`, 0o600)
  await write('root.pem', files.root, 0o644)
  await write('config.json', `${JSON.stringify(files.config, null, 2)}\n`, 0o600)
  await write('certificate.pem', chain, 0o644)
  await rename(staged, join(dir, COMMITTED))
  await syncDirectory(dir)
  await rollForward(dir)
  return { ...files, dir, chain }
}

/** Changes settings that are no part of the identity: interface, endpoint, port. */
export async function updateCredentialConfig(dir: string, changes: Partial<CredentialConfig>): Promise<Credential> {
  const { config, ...rest } = await readCredential(dir)
  return writeCredential(dir, { ...rest, config: { ...config, ...changes } })
}

export function hasCredential(dir: string): boolean {
  return existsSync(join(dir, 'certificate.pem')) || existsSync(join(dir, COMMITTED))
}

/** Throws not_found when `dir` holds no credential, config_invalid when it is damaged or its keys are open to others. */
export async function readCredential(dir: string): Promise<Credential> {
  if (!hasCredential(dir)) {
    throw new CertpeerError('not_found', `${dir} holds no credential: enroll or join first, or name another directory`)
  }
  await rollForward(dir)
  const first = await readFiles(dir)
  if (belongTogether(first)) return first
  // Another process may just have been replacing it; its change is complete by the second look.
  const second = await readFiles(dir)
  if (belongTogether(second)) return second
  throw new CertpeerError(
    'config_invalid',
    `${dir}: tls.key is not the key of certificate.pem; restore them or enroll again`,
  )
}

const PENDING_FILE = 'pending.json'
/** A request as it was sent, with the keys it speaks for: a retry after a lost answer repeats it byte for byte. */
const pendingSchema = z.strictObject({
  version: z.literal(1),
  request: enrollRequestSchema,
  tlsKey: z.string(),
  wireGuardKey: z.string().optional(),
})
export type PendingEnrollment = z.output<typeof pendingSchema>

export async function writePendingEnrollment(dir: string, pending: PendingEnrollment): Promise<void> {
  await writeFileAtomic(join(dir, PENDING_FILE), `${JSON.stringify(pending)}\n`, { mode: 0o600 })
}

/** What was sent with this very token and never answered; what another token left behind is of no use. */
export async function findPendingEnrollment(dir: string, claims: string): Promise<PendingEnrollment | undefined> {
  const path = join(dir, PENDING_FILE)
  if (!existsSync(path)) return undefined
  // Read as a secret first: the keys in it count like those beside a certificate.
  await readSecretFile(path, 'the pending request')
  const pending = readConfig(pendingSchema, path)
  return pending.request.claims === claims ? pending : undefined
}

export async function removePendingEnrollment(dir: string): Promise<void> {
  await rm(join(dir, PENDING_FILE), { force: true })
}

async function readFiles(dir: string): Promise<Credential> {
  const config = readConfig(credentialConfigSchema, join(dir, 'config.json'))
  const chain = await readTextFile(join(dir, 'certificate.pem'), 'the certificate')
  const [certificate, issuer, ...more] = chain.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
  if (certificate === undefined || issuer === undefined || more.length > 0) {
    throw new CertpeerError(
      'config_invalid',
      `${dir}/certificate.pem must hold two certificates: the leaf, then its issuer`,
    )
  }
  const tlsKey = await readSecretFile(join(dir, 'tls.key'), 'the TLS key')
  const root = await readTextFile(join(dir, 'root.pem'), 'the root certificate')
  const wireGuardPath = join(dir, 'wireguard.key')
  const wireGuardKey = existsSync(wireGuardPath)
    ? (await readSecretFile(wireGuardPath, 'the WireGuard key')).trim()
    : undefined
  return {
    dir,
    chain,
    certificate: `${certificate}\n`,
    issuer: `${issuer}\n`,
    tlsKey,
    ...(wireGuardKey === undefined ? {} : { wireGuardKey }),
    root,
    config,
  }
}

function belongTogether({ certificate, tlsKey }: CredentialFiles): boolean {
  try {
    return new X509Certificate(certificate).checkPrivateKey(createPrivateKey(tlsKey))
  } catch (cause) {
    throw new CertpeerError('config_invalid', 'certificate.pem or tls.key cannot be read', { cause })
  }
}

/** Finishes a change that was committed. Two processes may do it at once: each file moves once, whoever moves it. */
async function rollForward(dir: string): Promise<void> {
  const committed = join(dir, COMMITTED)
  if (!existsSync(committed)) return
  for (const name of await readdir(committed).catch(ignoreMissing([]))) {
    await rename(join(committed, name), join(dir, name)).catch(ignoreMissing(undefined))
  }
  await syncDirectory(dir)
  await rm(committed, { recursive: true, force: true })
}

function ignoreMissing<T>(value: T): (error: unknown) => T {
  return (error) => {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return value
    throw error
  }
}
