/** nginx with `front`, and the server's configuration. */
import { join } from 'node:path'
import { issueCredential } from '../../authority/credential.ts'
import type { Endpoints } from '../../core/messages/enrollment.ts'
import { runFront } from '../../edge/front/main.ts'
import { isIP } from 'node:net'
import { makePrivateDirectory, writeFileAtomic } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import { isCurrent } from './authority.ts'
import type { StatePaths, UpOptions } from './options.ts'
import { requireProgram } from './preflight.ts'
import { certpeerChild, waitUntil } from './processes.ts'
import type { LocalState } from './state-dir.ts'
import type { Supervisor } from './supervisor.ts'
import { connect } from 'node:net'

interface FrontStart {
  readonly options: UpOptions
  readonly endpoints: Endpoints
  readonly state: LocalState
  readonly renew: boolean
  readonly log: Logger
  readonly supervisor: Supervisor
  readonly signal: AbortSignal
}

/** Renders nginx's configuration with verified CRLs, starts nginx, waits for its ports, then lets `front` keep it. */
export async function startFront(paths: StatePaths, start: FrontStart): Promise<void> {
  const { options, supervisor, signal, log } = start
  const nginx = requireProgram('nginx', 'nginx-light')
  await makePrivateDirectory(paths.front)
  const serverDir = join(paths.front, 'server')
  if (start.renew || !(await isCurrent(serverDir))) {
    await issueCredential({
      caDir: paths.ca,
      role: 'server',
      name: 'nginx',
      out: serverDir,
      dns: isIP(options.host) === 0 ? ['localhost', options.host] : ['localhost'],
      ips: [...new Set([options.listen, options.host].filter((host) => isIP(host) !== 0 && !isWildcard(host)))],
      endpoints: start.endpoints,
      log,
    })
  }
  const config = {
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
  }
  await writeFileAtomic(join(paths.front, 'config.json'), `${JSON.stringify(config, null, 2)}\n`, { mode: 0o600 })
  await runFront({ dir: paths.front, log, signal, once: true })
  supervisor.start({
    name: 'nginx',
    command: nginx,
    args: ['-p', `${paths.front}/`, '-c', join(paths.front, 'nginx.conf'), '-e', join(paths.log, 'nginx-error.log')],
    stopSignal: 'SIGQUIT',
    // Old streams would hold a graceful shutdown; ours are level-based and resume.
    stopTimeoutMs: 3_000,
  })
  const host = isWildcard(options.listen) ? (isIP(options.listen) === 6 ? '::1' : '127.0.0.1') : options.listen
  for (const port of Object.values(options.ports)) await waitUntil(() => accepts(host, port), 'nginx', signal)
  supervisor.start(certpeerChild('front', ['front', '--dir', paths.front]))
}

export async function writeServerConfig(paths: StatePaths, state: LocalState): Promise<void> {
  const config = {
    runDir: paths.run,
    frontSecretFile: paths.frontSecret,
    databaseUrlFile: paths.serverDatabaseUrl,
    rootCertificate: paths.rootCertificate,
    trustDomain: state.trustDomain,
    pen: state.pen,
    pkiSource: `unix:${paths.run}/ca-pki.sock`,
  }
  await writeFileAtomic(join(paths.server, 'config.json'), `${JSON.stringify(config, null, 2)}\n`, { mode: 0o600 })
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
