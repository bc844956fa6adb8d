/** nginx with `front`, and the server's configuration. */
import { connect, isIP } from 'node:net'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { issueCredential } from '../../authority/credential.ts'
import { formatPrefix, parseAddress } from '../../core/ipam/prefix.ts'
import type { Endpoints } from '../../core/messages/enrollment.ts'
import { runFront } from '../../edge/front/main.ts'
import { mergeConfig } from '../../platform/config/config-file.ts'
import { makePrivateDirectory } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import { findCurrent, updateConfig } from './authority.ts'
import { endNginx } from './leftovers.ts'
import type { StatePaths, UpOptions } from './options.ts'
import { requireProgram } from './preflight.ts'
import { certpeerChild, waitUntil } from './processes.ts'
import type { LocalState } from './state-dir.ts'
import type { Supervisor } from './supervisor.ts'

interface FrontStart {
  readonly options: UpOptions
  readonly endpoints: Endpoints
  readonly state: LocalState
  readonly log: Logger
  readonly supervisor: Supervisor
  readonly signal: AbortSignal
}

/** Renders nginx's configuration with verified CRLs, starts nginx, waits for its ports, then lets `front` keep it. */
export async function startFront(paths: StatePaths, start: FrontStart): Promise<void> {
  const { options, supervisor, signal, log } = start
  const nginx = requireProgram('nginx', 'nginx-light')
  await makePrivateDirectory(paths.front)
  await ensureServerCertificate(paths, start)
  await mergeConfig(join(paths.front, 'config.json'), {
    listen: options.listen,
    ports: options.ports,
    roles: ['authority', 'control'],
    hostnames: [...new Set(['localhost', options.host])],
    runDir: paths.run,
    pkiSource: `unix:${paths.run}/ca-pki.sock`,
    enrollSource: `unix:${paths.run}/ca-enroll.sock`,
    rootCertificate: paths.rootCertificate,
    frontSecretFile: paths.frontSecret,
    trustDomain: start.state.trustDomain,
    pen: start.state.pen,
    nginx,
  })
  await runFront({ dir: paths.front, log, signal, once: true })
  supervisor.start({
    name: 'nginx',
    command: nginx,
    args: ['-p', `${paths.front}/`, '-c', join(paths.front, 'nginx.conf'), '-e', join(paths.log, 'nginx-error.log')],
    stopSignal: 'SIGQUIT',
    // Old streams would hold a graceful shutdown; ours are level-based and resume.
    stopTimeoutMs: 3_000,
    beforeRestart: () => endNginx(paths),
  })
  const host = isWildcard(options.listen) ? (isIP(options.listen) === 6 ? '::1' : '127.0.0.1') : options.listen
  for (const port of Object.values(options.ports)) await waitUntil(() => accepts(host, port), 'nginx', signal)
  supervisor.start(certpeerChild('front', ['front', '--dir', paths.front]))
}

export async function writeServerConfig(paths: StatePaths, state: LocalState): Promise<void> {
  await mergeConfig(join(paths.server, 'config.json'), {
    runDir: paths.run,
    frontSecretFile: paths.frontSecret,
    databaseUrlFile: paths.serverDatabaseUrl,
    rootCertificate: paths.rootCertificate,
    trustDomain: state.trustDomain,
    pen: state.pen,
    pkiSource: `unix:${paths.run}/ca-pki.sock`,
  })
}

/** Made anew when it ends soon, and when it does not speak for exactly the names and addresses that are listened on. */
async function ensureServerCertificate(paths: StatePaths, { options, endpoints, log }: FrontStart): Promise<void> {
  const out = join(paths.front, 'server')
  const dns = isIP(options.host) === 0 ? [...new Set(['localhost', options.host])] : ['localhost']
  const ips = [...new Set([options.listen, options.host].filter((host) => isIP(host) !== 0 && !isWildcard(host)))]
  const current = await findCurrent(out)
  if (current !== undefined && sameSet(current.sanDnsNames, dns) && sameAddresses(current.sanIpAddresses, ips)) {
    await updateConfig(out, endpoints)
    return
  }
  await issueCredential({ caDir: paths.ca, role: 'server', name: 'nginx', out, dns, ips, endpoints, log })
}

function sameSet(some: readonly string[], others: readonly string[]): boolean {
  return isDeepStrictEqual(new Set(some), new Set(others))
}

/** IPv6 has several spellings. */
function sameAddresses(some: readonly string[], others: readonly string[]): boolean {
  const canonical = (addresses: readonly string[]) => addresses.map((address) => formatPrefix(parseAddress(address)))
  return sameSet(canonical(some), canonical(others))
}

function isWildcard(address: string): boolean {
  return address === '0.0.0.0' || address === '::'
}

function accepts(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port })
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => {
      socket.destroy()
      resolve(false)
    })
  })
}
