/** What `certpeer up` was asked for, checked, and what follows from it. */
import { isIP } from 'node:net'
import { join, resolve } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { formatPrefix, parsePrefix } from '../../core/ipam/prefix.ts'
import type { Endpoints } from '../../core/messages/enrollment.ts'

export interface UpArguments {
  readonly stateDir: string
  readonly basePort: string
  readonly listen: string
  readonly hostname?: string
  readonly network?: string
  readonly interface: string
  readonly wireguardPort: string
  readonly gateway: boolean
  readonly json: boolean
}

export interface UpOptions {
  readonly stateDir: string
  readonly basePort: number
  readonly listen: string
  /** The host in every URL and endpoint: --hostname, else the address that is listened on. */
  readonly host: string
  readonly hostname: string | undefined
  /** --network: at most one prefix a family. */
  readonly pools: readonly string[] | undefined
  readonly interface: string
  readonly wireguardPort: number
  readonly gateway: boolean
  readonly json: boolean
  readonly ports: Readonly<Record<'enroll' | 'authority' | 'api' | 'gateways' | 'pki', number>>
}

/** Linux: 15 characters and a NUL; no slash, no white space. */
const INTERFACE_NAME = /^[A-Za-z0-9_.-]{1,15}$/
const HOSTNAME = /^(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$/

/** Throws usage with one line that names the option and what it takes. */
export function parseUpOptions(args: UpArguments): UpOptions {
  const basePort = parsePort(args.basePort, '--base-port')
  if (basePort > 65_531) throw usage('--base-port must leave room for five ports: at most 65531')
  const wireguardPort = parsePort(args.wireguardPort, '--wireguard-port')
  if (isIP(args.listen) === 0) throw usage(`--listen takes an IP address, not "${args.listen}"`)
  const wildcard = args.listen === '0.0.0.0' || args.listen === '::'
  if (wildcard && args.hostname === undefined) {
    throw usage(`--listen ${args.listen} means every address: add --hostname NAME, the name that devices will use`)
  }
  if (args.hostname !== undefined && !HOSTNAME.test(args.hostname)) {
    throw usage(`--hostname takes a DNS name in lower case, not "${args.hostname}"`)
  }
  if (!INTERFACE_NAME.test(args.interface)) {
    throw usage(`--interface takes 1 to 15 letters, digits, ".", "_" or "-", not "${args.interface}"`)
  }
  return {
    stateDir: resolve(args.stateDir),
    basePort,
    listen: args.listen,
    host: args.hostname ?? args.listen,
    hostname: args.hostname,
    pools: args.network === undefined ? undefined : parsePools(args.network),
    interface: args.interface,
    wireguardPort,
    gateway: args.gateway,
    json: args.json,
    ports: {
      enroll: basePort,
      authority: basePort + 1,
      api: basePort + 2,
      gateways: basePort + 3,
      pki: basePort + 4,
    },
  }
}

export function endpointsOf(options: Pick<UpOptions, 'host' | 'ports'>): Endpoints {
  const host = isIP(options.host) === 6 ? `[${options.host}]` : options.host
  return {
    enrollUrl: `https://${host}:${options.ports.enroll}`,
    authorityUrl: `https://${host}:${options.ports.authority}`,
    apiUrl: `https://${host}:${options.ports.api}`,
    gatewaysUrl: `https://${host}:${options.ports.gateways}`,
    pkiUrl: `http://${host}:${options.ports.pki}`,
  }
}

/** HOST:PORT where devices reach the local gateway. */
export function gatewayEndpoint(options: Pick<UpOptions, 'host' | 'wireguardPort'>): string {
  return isIP(options.host) === 6
    ? `[${options.host}]:${options.wireguardPort}`
    : `${options.host}:${options.wireguardPort}`
}

/** The state directory's rooms, as docs/operations.md lists them. */
export function statePaths(stateDir: string) {
  const at = (...parts: string[]) => join(stateDir, ...parts)
  return {
    state: at('state.json'),
    root: at('root'),
    ca: at('ca'),
    server: at('server'),
    front: at('front'),
    frontSecret: at('front', 'front.secret'),
    nginxPid: at('front', 'nginx.pid'),
    gateway: at('gateway'),
    operator: at('operator'),
    postgres: at('postgres'),
    run: at('run'),
    log: at('log'),
    caDatabaseUrl: at('ca', 'database-url'),
    serverDatabaseUrl: at('server', 'database-url'),
    rootCertificate: at('ca', 'root.pem'),
  } as const
}
export type StatePaths = ReturnType<typeof statePaths>

function parsePools(text: string): string[] {
  try {
    const pools = text.split(',').map((part) => parsePrefix(part.trim()))
    if (pools.length > 2 || (pools.length === 2 && pools[0]?.family === pools[1]?.family)) {
      throw new CertpeerError('usage', 'one prefix an address family')
    }
    return pools.map(formatPrefix)
  } catch (error) {
    const reason = error instanceof Error ? error.message : ''
    throw usage(`--network takes CIDR[,CIDR6], for example 10.88.0.0/16,fd00:88::/64: ${reason}`)
  }
}

function parsePort(text: string, option: string): number {
  const port = /^[0-9]{1,5}$/.test(text) ? Number(text) : 0
  if (port < 1 || port > 65_535) throw usage(`${option} takes a port number from 1 to 65535, not "${text}"`)
  return port
}

function usage(message: string): CertpeerError {
  return new CertpeerError('usage', message)
}
