/** The authority's part of `up`: PKI on the first run, configuration and operator credential on every run. */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { initializePki } from '../../authority/pki-init.ts'
import { issueCredential } from '../../authority/credential.ts'
import { parsePrefix } from '../../core/ipam/prefix.ts'
import type { Endpoints } from '../../core/messages/enrollment.ts'
import { parseCertificate, type Certificate } from '../../core/x509/certificate.ts'
import { pemToDer } from '../../core/x509/pem.ts'
import { mergeConfig } from '../../platform/config/config-file.ts'
import {
  hasCredential,
  readCredential,
  updateCredentialConfig,
  type CredentialConfig,
} from '../../platform/credentials.ts'
import { makePrivateDirectory, writeFileAtomic } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import type { StatePaths } from './options.ts'
import type { LocalState } from './state-dir.ts'

export const LOCAL_TENANT = 'default'
export const LOCAL_OPERATOR = 'admin'
/** A credential that ends sooner is made anew at start. */
const MIN_LIFE_MS = 3_600_000

/** Makes root, issuing CAs and ledger on the first run; true when it did. Their blocks are the network's addresses. */
export async function ensurePki(paths: StatePaths, state: LocalState, log: Logger): Promise<boolean> {
  if (existsSync(join(paths.ca, 'authority.json'))) return false
  const blocks = [...state.pools, state.keyPrefix].map((text) => parsePrefix(text))
  await initializePki({
    caDir: paths.ca,
    rootDir: paths.root,
    trustDomain: state.trustDomain,
    pen: state.pen,
    tenants: [{ name: LOCAL_TENANT, blocks }],
    infrastructureBlocks: blocks,
    log,
  })
  return true
}

/** The secret that tells nginx's requests from anyone else's on the sockets; made once. */
async function ensureFrontSecret(paths: StatePaths): Promise<void> {
  await makePrivateDirectory(paths.front)
  if (existsSync(paths.frontSecret)) return
  await writeFileAtomic(paths.frontSecret, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 })
}

export async function writeAuthorityConfig(paths: StatePaths, endpoints: Endpoints): Promise<void> {
  await ensureFrontSecret(paths)
  await mergeConfig(join(paths.ca, 'config.json'), {
    runDir: paths.run,
    frontSecretFile: paths.frontSecret,
    databaseUrlFile: paths.caDatabaseUrl,
    endpoints,
  })
}

/** The first operator-admin: made anew when it ends, told when the listeners moved. */
export async function ensureOperatorCredential(
  paths: StatePaths,
  { endpoints, log }: { endpoints: Endpoints; log: Logger },
): Promise<void> {
  const { operator } = paths
  if ((await findCurrent(operator)) !== undefined) {
    await updateConfig(operator, endpoints)
    return
  }
  await issueCredential({
    caDir: paths.ca,
    role: 'operator-admin',
    name: LOCAL_OPERATOR,
    out: operator,
    endpoints,
    log,
  })
}

/** Settings of a credential directory. Compared with what the directory says and not with the last run, which may have been killed half-way. */
export async function updateConfig(dir: string, wanted: Partial<CredentialConfig>): Promise<void> {
  const { config } = await readCredential(dir)
  const changed = { ...config, ...wanted }
  if (!isDeepStrictEqual(changed, config)) await updateCredentialConfig(dir, wanted)
}

/** The directory's certificate while it has at least an hour to live. */
export async function findCurrent(dir: string): Promise<Certificate | undefined> {
  if (!hasCredential(dir)) return undefined
  const certificate = parseCertificate(pemToDer((await readCredential(dir)).certificate))
  return certificate.notAfter.getTime() > Date.now() + MIN_LIFE_MS ? certificate : undefined
}
