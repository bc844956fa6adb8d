/**
 * `certpeer up`: everything on one machine. Order: lock, PKI, PostgreSQL, migrations, operator credential, ca, front and
 * nginx, server, network document, gateway. Whatever was started is stopped again, in reverse, however it ends.
 */
import { CertpeerError } from '../../core/errors.ts'
import type { Endpoints } from '../../core/messages/enrollment.ts'
import { aborted } from '../../platform/lifecycle.ts'
import { createLogger } from '../../platform/log.ts'
import { startPostgres } from './postgres.ts'
import { endpointsOf, gatewayEndpoint, parseUpOptions, type UpArguments, type UpOptions } from './options.ts'
import { checkGatewayPrivileges, checkPortsFree, checkSocketPaths, requireProgram } from './preflight.ts'
import { defaultNetwork, openStateDir, writeState, type LocalState, type OpenState } from './state-dir.ts'
import { Supervisor } from './supervisor.ts'
import { ensurePki, ensureOperatorCredential, writeAuthorityConfig } from './authority.ts'
import { startFront, writeServerConfig } from './edges.ts'
import { ensureNetwork } from './network.ts'
import { ensureGateway, type LocalGateway } from './gateway.ts'
import { certpeerChild, waitForSocket } from './processes.ts'

/** What `--json` prints when ready: the contract of scripts built on `up`. */
interface ReadyReport extends Endpoints {
  readonly rootCertificate: string
  readonly stateDir: string
  readonly operatorDir: string
  readonly gateway: LocalGateway | null
}

export interface UpIo {
  /** Progress, for people: stderr. */
  readonly say: (line: string) => void
  /** The result: stdout. */
  readonly print: (line: string) => void
}

const DEFAULT_TRUST_DOMAIN = 'certpeer.internal'
const DEFAULT_PEN = 32473

/** Runs until `signal` aborts; throws when it cannot start or a part was given up. Nothing half-started is left. */
export async function runUp(args: UpArguments, io: UpIo, signal: AbortSignal): Promise<void> {
  const options = parseUpOptions(args)
  checkSocketPaths(`${options.stateDir}/run`)
  requireProgram('setpriv', 'util-linux')
  requireProgram('nginx', 'nginx-light')
  if (options.gateway) {
    requireProgram('ip', 'iproute2')
    checkGatewayPrivileges()
  }
  const state = await openStateDir(options)
  const supervisor = new Supervisor(state.paths.log, io.say)
  try {
    const report = await Promise.race([start(options, state, supervisor, io, signal), supervisor.failed])
    if (report) {
      io.print(options.json ? JSON.stringify(report) : whatNext(report))
      await Promise.race([aborted(signal), supervisor.failed])
      io.say('stopping')
    }
  } finally {
    await supervisor.stop()
    await state.release()
  }
}

/** Starts all parts in order; undefined when it was told to stop on the way. */
async function start(
  options: UpOptions,
  opened: OpenState,
  supervisor: Supervisor,
  io: UpIo,
  signal: AbortSignal,
): Promise<ReadyReport | undefined> {
  const { paths } = opened
  // A function, because it changes while this one waits.
  const stopped = () => signal.aborted
  const endpoints = endpointsOf(options)
  const state = resolveState(options, opened.previous)
  await checkPortsFree(options)
  const log = createLogger({ name: 'up', destination: { file: `${paths.log}/up.log` } })

  const firstRun = await ensurePki(paths, state, log)
  if (firstRun) io.say(`made a root CA and issuing CAs in ${paths.root} and ${paths.ca}`)
  await writeState(paths, state)

  io.say(process.env['DATABASE_URL'] === undefined ? 'starting PostgreSQL' : 'using the database of DATABASE_URL')
  await startPostgres(paths, supervisor, log, signal)
  if (stopped()) return undefined

  await writeAuthorityConfig(paths, endpoints)
  const moved = opened.previous !== undefined && !sameAddresses(opened.previous, state)
  await ensureOperatorCredential(paths, { endpoints, state, renew: moved, log })
  if (stopped()) return undefined

  io.say('starting the authority')
  supervisor.start(certpeerChild('ca', ['ca', '--dir', paths.ca]))
  await waitForSocket(`${paths.run}/ca-enroll.sock`, 'ca', signal)

  io.say('starting nginx')
  await startFront(paths, { options, endpoints, state, renew: moved, log, supervisor, signal })

  io.say('starting the server')
  await writeServerConfig(paths, state)
  supervisor.start(certpeerChild('server', ['server', '--dir', paths.server]))
  await waitForSocket(`${paths.run}/server-api.sock`, 'server', signal)
  if (stopped()) return undefined

  await ensureNetwork(paths, state)
  let gateway: LocalGateway | null = null
  if (options.gateway) {
    io.say('starting the gateway')
    gateway = await ensureGateway(paths, { options, endpoint: gatewayEndpoint(options), moved, supervisor, signal })
  }
  return {
    ...endpoints,
    rootCertificate: paths.rootCertificate,
    stateDir: options.stateDir,
    operatorDir: paths.operator,
    gateway,
  }
}

/** What the first run fixed stays; where it listens follows the options. */
function resolveState(options: UpOptions, previous: LocalState | undefined): LocalState {
  const { host, listen, basePort } = options
  if (previous === undefined) {
    const base = { version: 1, trustDomain: DEFAULT_TRUST_DOMAIN, pen: DEFAULT_PEN } as const
    return { ...base, ...defaultNetwork(options.network), host, listen, basePort }
  }
  if (options.network !== undefined && options.network !== previous.pools.join(',')) {
    throw new CertpeerError(
      'config_invalid',
      `the network was fixed as ${previous.pools.join(',')} on the first run; leave --network out, or choose a new --state-dir`,
    )
  }
  return { ...previous, host, listen, basePort }
}

function sameAddresses(a: LocalState, b: LocalState): boolean {
  return a.host === b.host && a.listen === b.listen && a.basePort === b.basePort
}

function whatNext(report: ReadyReport): string {
  const lines = [
    'certpeer is up.',
    '',
    `  enroll     ${report.enrollUrl}`,
    `  authority  ${report.authorityUrl}`,
    `  api        ${report.apiUrl}`,
    `  gateways   ${report.gatewaysUrl}`,
    `  pki        ${report.pkiUrl}`,
    `  root       ${report.rootCertificate}`,
    `  operator   ${report.operatorDir}`,
  ]
  if (report.gateway) {
    const { name, interface: interfaceName, endpoint, addresses } = report.gateway
    lines.push(`  gateway    ${name} on ${interfaceName}, ${endpoint}, ${addresses.join(' ')}`)
  }
  lines.push(
    '',
    'Next, in another terminal:',
    `  export CERTPEER_OPERATOR=${report.operatorDir}`,
    '  ./scripts/certpeer token create --device laptop      # prints a token',
    '  ./scripts/certpeer device enroll TOKEN --dir laptop  # on the device',
    '  ./scripts/certpeer device up --dir laptop            # on the device, as root',
    '  ./scripts/certpeer revoke --device laptop --wait',
    '',
    'Ctrl-C stops everything; the next run resumes.',
  )
  return lines.join('\n')
}
