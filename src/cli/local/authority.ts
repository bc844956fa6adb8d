/** The authority's part of `up`: PKI on the first run, configuration and operator credential on every run. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { initializePki } from '../../authority/pki-init.ts'
import { issueCredential } from '../../authority/credential.ts'
import { parsePrefix } from '../../core/ipam/prefix.ts'
import type { Endpoints } from '../../core/messages/enrollment.ts'
import { parseCertificate } from '../../core/x509/certificate.ts'
import { pemToDerAll } from '../../core/x509/pem.ts'
import { makePrivateDirectory, readTextFile, writeFileAtomic } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import type { StatePaths } from './options.ts'
import type { LocalState } from './state-dir.ts'
import { randomBytes } from 'node:crypto'

export const LOCAL_TENANT = 'default'
export const LOCAL_OPERATOR = 'admin'

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
  const config = {
    runDir: paths.run,
    frontSecretFile: paths.frontSecret,
    databaseUrlFile: paths.caDatabaseUrl,
    endpoints,
  }
  await writeFileAtomic(join(paths.ca, 'config.json'), `${JSON.stringify(config, null, 2)}\n`, { mode: 0o600 })
}

/** The first operator-admin; made anew when it expired or when the listeners moved. */
export async function ensureOperatorCredential(
  paths: StatePaths,
  options: { endpoints: Endpoints; state: LocalState; renew: boolean; log: Logger },
): Promise<void> {
  if (!options.renew && (await isCurrent(paths.operator))) return
  await issueCredential({
    caDir: paths.ca,
    role: 'operator-admin',
    name: LOCAL_OPERATOR,
    out: paths.operator,
    endpoints: options.endpoints,
    log: options.log,
  })
}

/** True while the directory's certificate has at least an hour to live. */
export async function isCurrent(dir: string): Promise<boolean> {
  const path = join(dir, 'certificate.pem')
  if (!existsSync(path)) return false
  const [leaf] = pemToDerAll(await readTextFile(path, 'certificate'))
  return leaf !== undefined && parseCertificate(leaf).notAfter.getTime() > Date.now() + 3_600_000
}
