/** `certpeer ca credential`: a credential directory made on the authority's own host, whether or not the ca runs. */
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError, errorCode } from '../core/errors.ts'
import { parseMessage } from '../core/messages/common.ts'
import { certificateAnswerSchema, type CertificateAnswer, type Endpoints } from '../core/messages/enrollment.ts'
import { localCredentialRequestSchema, type LocalRole } from '../core/messages/local-credential.ts'
import { ApiClient } from '../platform/api-client/client.ts'
import { systemNow } from '../platform/clock.ts'
import { readAuthorityConfig, readAuthorityFile } from '../platform/config/authority.ts'
import { writeCredential } from '../platform/credentials.ts'
import { readTextFile } from '../platform/files.ts'
import type { Logger } from '../platform/log.ts'
import { certificateAnswer } from './answer.ts'
import { openAuthority } from './authority.ts'
import { issueLocal } from './local-credential.ts'

export interface IssueCredentialOptions {
  readonly caDir: string
  readonly role: LocalRole
  readonly name: string
  /** Credential directory to write. */
  readonly out: string
  readonly tenant?: string
  readonly groups?: readonly string[]
  readonly dns?: readonly string[]
  readonly ips?: readonly string[]
  /** Where the listeners are; the authority's own configuration says so unless given. */
  readonly endpoints?: Endpoints
  readonly log: Logger
}

/** Makes the key here, has it certified, writes the directory. Throws ledger_locked when neither way is open. */
export async function issueCredential(options: IssueCredentialOptions): Promise<void> {
  const { caDir, role, name, out } = options
  const keys = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const request = {
    role,
    name,
    ...(options.tenant === undefined ? {} : { tenant: options.tenant }),
    groups: [...(options.groups ?? [])],
    dns: [...(options.dns ?? [])],
    ips: [...(options.ips ?? [])],
    spki: keys.publicKey.export({ type: 'spki', format: 'der' }).toString('base64'),
  }
  const answer = (await askRunning(caDir, request)) ?? (await openAndIssue(options, request))
  const { trustDomain, pen } = readAuthorityFile(caDir)
  await writeCredential(out, {
    certificate: answer.certificate,
    issuer: answer.issuer,
    root: await readTextFile(join(caDir, 'root.pem'), 'the root certificate'),
    tlsKey: keys.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    config: {
      role,
      identity: answer.identity,
      name,
      trustDomain,
      pen,
      ...(options.endpoints ?? answer.endpoints),
    },
  })
}

/** Through ca-admin.sock; undefined when no ca listens there. */
async function askRunning(caDir: string, request: object): Promise<CertificateAnswer | undefined> {
  if (!existsSync(join(caDir, 'config.json'))) return undefined
  const socketPath = join(readAuthorityConfig(caDir).runDir, 'ca-admin.sock')
  if (!existsSync(socketPath)) return undefined
  const api = new ApiClient({ base: `unix:${socketPath}` })
  try {
    const { json } = await api.request({ method: 'GET', path: '/healthz' })
    if (json === undefined) return undefined
  } catch (error) {
    // What kill -9 leaves is a socket file that nobody answers on.
    if (errorCode(error) === 'unavailable') return undefined
    throw error
  }
  const { json } = await api.request({ method: 'POST', path: '/v1/credentials', json: request })
  return parseMessage(certificateAnswerSchema, json, 'credential answer')
}

async function openAndIssue(options: IssueCredentialOptions, request: object): Promise<CertificateAnswer> {
  const config = existsSync(join(options.caDir, 'config.json')) ? readAuthorityConfig(options.caDir) : undefined
  const endpoints = options.endpoints ?? config?.endpoints
  if (endpoints === undefined) {
    throw new CertpeerError(
      'config_invalid',
      `${options.caDir}/config.json is missing: write it first, it says where the listeners are`,
    )
  }
  const { spki, ...wanted } = parseMessage(localCredentialRequestSchema, request, 'credential request')
  const authority = await openAuthority({
    dir: options.caDir,
    endpoints,
    ...(config === undefined ? {} : { lifetimeSeconds: config.lifetimeSeconds }),
    now: systemNow,
    random: randomBytes,
    log: options.log,
  })
  try {
    return certificateAnswer(authority, await issueLocal(authority, { ...wanted, spki: Buffer.from(spki, 'base64') }))
  } finally {
    await authority.close()
  }
}
