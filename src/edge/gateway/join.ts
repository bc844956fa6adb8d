/** `certpeer gateway join`: spends a token and leaves a complete credential directory, in one step. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { parseToken } from '../../core/messages/token.ts'
import { hasCredential, readCredential, writeCredential, type Credential } from '../../platform/credentials.ts'
import { verifyOwn } from '../client-certificate.ts'
import { enroll } from '../enrollment.ts'
import { acceptNetworkDocument } from '../network-documents.ts'

export interface JoinOptions {
  readonly token: string
  /** Credential directory. One that holds this gateway's earlier credential gets the new one in its place. */
  readonly dir: string
  /** HOST:PORT where devices reach the WireGuard port. */
  readonly endpoint: string
  readonly interface: string
  readonly wireguardPort: number
  readonly signal?: AbortSignal
}

/** HOST is a name, an IPv4 address, or an IPv6 address in brackets. */
const ENDPOINT = /^(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})$/

/**
 * Enrolls beside what the directory holds and takes its place only when the new credential is complete. Throws what
 * `enroll` throws, already_exists when the directory is somebody else's, usage for an endpoint that is none.
 */
export async function joinGateway(options: JoinOptions): Promise<Credential> {
  const { token, dir, endpoint, wireguardPort, signal } = options
  requireEndpoint(endpoint)
  const { name } = parseToken(token).claims
  if (hasCredential(dir)) await requireSameGateway(dir, name)
  const staging = join(dir, '.join')
  const start = {
    token,
    dir: staging,
    wireGuard: true,
    expect: 'gateway',
    ...(signal !== undefined && { signal }),
  } as const
  // A join that was killed may have left a whole credential: it is used, since its token is spent.
  const enrolled = hasCredential(staging) ? undefined : await enroll(start)
  if (enrolled === undefined) await requireSameGateway(staging, name)
  const joined = enrolled?.credential ?? (await readCredential(staging))
  const config = { ...joined.config, endpoint, interface: options.interface, wireguardPort }
  const credential = await writeCredential(dir, { ...joined, config })
  const now = new Date()
  const { root, oids, trustDomain } = verifyOwn(credential, now)
  for (const { jws, document } of enrolled?.documents ?? []) {
    await acceptNetworkDocument(dir, jws, document, { root, oids, trustDomain, now }).catch(ignoreOlder)
  }
  await rm(staging, { recursive: true, force: true })
  return credential
}

async function requireSameGateway(dir: string, name: string): Promise<void> {
  const { config } = await readCredential(dir)
  if (config.role === 'gateway' && config.name === name) return
  throw new CertpeerError(
    'already_exists',
    `${dir} holds the credential of ${config.role} ${config.name ?? config.identity}, and the token is for gateway ${name}`,
  )
}

/** The directory may know a newer document from before. */
function ignoreOlder(error: unknown): void {
  if (errorCode(error) !== 'network_document_stale') throw error
}

function requireEndpoint(endpoint: string): void {
  const port = Number(ENDPOINT.exec(endpoint)?.[1])
  if (port >= 1 && port <= 65_535) return
  throw new CertpeerError('usage', `endpoint ${JSON.stringify(endpoint.slice(0, 80))} must be HOST:PORT`)
}
