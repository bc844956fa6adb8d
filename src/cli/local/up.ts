/**
 * `certpeer up`: everything on one machine. Order: lock, PKI, PostgreSQL, migrations, operator credential, ca, front and
 * nginx, server, network document, gateway. Whatever was started is stopped again, in reverse, however it ends.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { parseMessage } from '../../core/messages/common.ts'
import type { Endpoints } from '../../core/messages/enrollment.ts'
import { networkSettingsSchema } from '../../core/messages/network.ts'
import { readNetworkSettings } from '../../core/policy/network.ts'
import { aborted } from '../../platform/lifecycle.ts'
import { createLogger, type Logger } from '../../platform/log.ts'
import { packageRoot } from '../../platform/package-root.ts'
import { startPostgres } from './postgres.ts'
import { endpointsOf, gatewayEndpoint, parseUpOptions, type UpArguments, type UpOptions } from './options.ts'
import { checkGatewayPrivileges, checkHostname, checkPortsFree, checkSocketPaths, requireProgram } from './preflight.ts'
import { defaultNetwork, openStateDir, writeState, type LocalState, type OpenState } from './state-dir.ts'
import { Supervisor } from './supervisor.ts'
import { ensurePki, ensureOperatorCredential, LOCAL_TENANT, writeAuthorityConfig } from './authority.ts'
import { startFront, writeServerConfig } from './edges.ts'
import { ensureNetwork, LOCAL_NETWORK } from './network.ts'
import { ensureGateway, type LocalGateway } from './gateway.ts'
import { endLeftovers, findLeftInterface, removeLeftInterface } from './leftovers.ts'
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
  if (options.hostname !== undefined) await checkHostname(options.hostname)
  const state = await openStateDir(options)
  const { paths } = state
  const log = createLogger({ name: 'up', destination: { file: `${paths.log}/up.log` } })
  const supervisor = new Supervisor(paths.log, io.say)
  const givenUp = new AbortController()
  supervisor.failed.catch(() => givenUp.abort())
  const either = AbortSignal.any([signal, givenUp.signal])
  const starting = start({ options, state, supervisor, io, log, signal: either })
  try {
    const report = await Promise.race([starting, supervisor.failed])
    if (report) {
      io.print(options.json ? JSON.stringify(report) : whatNext(report))
      await Promise.race([aborted(signal), supervisor.failed])
      io.say('stopping')
    }
  } catch (error) {
    // What fails because it is to stop is no failure.
    if (!signal.aborted) throw error
  } finally {
    givenUp.abort()
    await supervisor.stop()
    // It may be in the middle of a step, and must not start anything more.
    await starting.catch(() => undefined)
    // nginx that had to be killed, or was just then, leaves workers; an agent that was leaves its interface.
    await endLeftovers(paths).catch((error: unknown) => log.error({ err: error }))
    if (options.gateway) await removeLeftInterface(paths, log).catch((error: unknown) => log.error({ err: error }))
    await state.release()
  }
}

interface Start {
  readonly options: UpOptions
  readonly state: OpenState
  readonly supervisor: Supervisor
  readonly io: UpIo
  readonly log: Logger
  readonly signal: AbortSignal
}

/** Starts all parts in order; undefined when it was told to stop on the way. */
async function start({ options, state: opened, supervisor, io, log, signal }: Start): Promise<ReadyReport | undefined> {
  const { paths } = opened
  // A function, because it changes while this one waits.
  const stopped = () => signal.aborted
  const endpoints = endpointsOf(options)
  const state = resolveState(options, opened.previous)
  await endLeftovers(paths)
  const left = await findLeftInterface(paths, log)
  if (left !== undefined && !options.gateway) await removeLeftInterface(paths, log)
  await checkPortsFree(options, left?.listenPort)
  if (stopped()) return undefined

  // First, because the PKI is made for this network's addresses: a run that is killed between the two starts anew.
  await writeState(paths, state)
  const firstRun = await ensurePki(paths, state, log)
  if (firstRun) io.say(`made a root CA and issuing CAs in ${paths.root} and ${paths.ca}`)

  io.say(process.env['DATABASE_URL'] === undefined ? 'starting PostgreSQL' : 'using the database of DATABASE_URL')
  await startPostgres(paths, supervisor, log, signal)
  if (stopped()) return undefined

  await writeAuthorityConfig(paths, endpoints)
  await ensureOperatorCredential(paths, { endpoints, log })
  if (stopped()) return undefined

  io.say('starting the authority')
  supervisor.start(certpeerChild('ca', ['ca', '--dir', paths.ca]))
  await waitForSocket(`${paths.run}/ca-enroll.sock`, 'ca', signal)
  if (stopped()) return undefined

  io.say('starting nginx')
  await startFront(paths, { options, endpoints, state, log, supervisor, signal })
  if (stopped()) return undefined

  io.say('starting the server')
  await writeServerConfig(paths, state)
  supervisor.start(certpeerChild('server', ['server', '--dir', paths.server]))
  await waitForSocket(`${paths.run}/server-api.sock`, 'server', signal)
  if (stopped()) return undefined

  await ensureNetwork(paths, state, signal)
  let gateway: LocalGateway | null = null
  if (options.gateway && !stopped()) {
    io.say('starting the gateway')
    const endpoint = gatewayEndpoint(options)
    gateway = await ensureGateway(paths, { options, endpoint, endpoints, log, supervisor, signal })
  }
  if (stopped()) return undefined
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
  const { host, listen, basePort, pools } = options
  if (previous === undefined) {
    const base = { version: 1, trustDomain: DEFAULT_TRUST_DOMAIN, pen: DEFAULT_PEN } as const
    const network = defaultNetwork(pools)
    checkNetwork(network)
    return { ...base, ...network, host, listen, basePort }
  }
  if (pools !== undefined && pools.join(',') !== previous.pools.join(',')) {
    throw new CertpeerError(
      'config_invalid',
      `the network was fixed as ${previous.pools.join(',')} on the first run; leave --network out, or choose a new --state-dir`,
    )
  }
  return { ...previous, host, listen, basePort }
}

/** Before a CA is made for these addresses: afterwards they cannot be changed any more. */
function checkNetwork({ pools, keyPrefix }: Pick<LocalState, 'pools' | 'keyPrefix'>): void {
  const asked = { tenant: LOCAL_TENANT, network: LOCAL_NETWORK, pools, keyPrefix }
  try {
    readNetworkSettings(parseMessage(networkSettingsSchema, asked, '--network'))
  } catch (error) {
    if (errorCode(error) !== 'network_document_invalid' || !(error instanceof Error)) throw error
    throw new CertpeerError('usage', `--network: ${error.message}`, { cause: error })
  }
}

/** What to type for this program here: in a checkout its script, otherwise what the package installed. */
function programName(): string {
  const script = join(packageRoot(), 'scripts', 'certpeer')
  if (!existsSync(script)) return 'certpeer'
  return packageRoot() === process.cwd() ? './scripts/certpeer' : forShell(script)
}

/** Quoted where a shell would take it apart. */
function forShell(text: string): string {
  return /^[A-Za-z0-9_./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
}

export function whatNext(report: ReadyReport, program = programName()): string {
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
    `  export CERTPEER_OPERATOR=${forShell(report.operatorDir)}`,
    `  ${program} token create --device laptop      # prints a token`,
    `  ${program} device enroll TOKEN --dir laptop  # on the device`,
    `  ${program} device up --dir laptop            # on the device, as root`,
    `  ${program} revoke --device laptop --wait`,
    '',
    'Ctrl-C stops everything; the next run resumes.',
  )
  return lines.join('\n')
}
