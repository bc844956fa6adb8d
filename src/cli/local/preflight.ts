/** What must be true before `up` starts anything: each fault is one line that says what to do. */
import { lookup } from 'node:dns/promises'
import { accessSync, constants, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { createSocket } from 'node:dgram'
import { isIPv6 } from 'node:net'
import { delimiter, join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import type { UpOptions } from './options.ts'

/** sun_path holds 108 bytes with its NUL (unix(7)). */
const MAX_SOCKET_PATH_BYTES = 107
const LONGEST_SOCKET_NAME = 'server-gateways.sock'
/** CAP_NET_ADMIN is bit 12 (capabilities(7)). */
const CAP_NET_ADMIN = 12n

export function checkSocketPaths(runDir: string): void {
  const longest = join(runDir, LONGEST_SOCKET_NAME)
  const excess = Buffer.byteLength(longest) - MAX_SOCKET_PATH_BYTES
  if (excess > 0) {
    throw new CertpeerError(
      'config_invalid',
      `the state directory's path is ${excess} bytes too long for unix sockets (${longest}); choose a shorter --state-dir`,
    )
  }
}

/** Finds a program on PATH or in the places where Debian keeps what root runs. */
export function findProgram(name: string): string | undefined {
  const places = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin', '/usr/local/sbin']
  return places
    .filter((place) => place !== '')
    .map((place) => join(place, name))
    .find((path) => isExecutable(path))
}

export function requireProgram(name: string, debianPackage: string): string {
  const path = findProgram(name)
  if (path) return path
  throw new CertpeerError(
    'missing_program',
    `${name} is missing; as root run: apt-get install --no-install-recommends ${debianPackage}`,
  )
}

export function hasNetAdmin(): boolean {
  const line = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]
  return line !== undefined && ((BigInt(`0x${line}`) >> CAP_NET_ADMIN) & 1n) === 1n
}

/** A gateway needs CAP_NET_ADMIN, and WireGuard in the kernel or wireguard-go with /dev/net/tun. */
export function checkGatewayPrivileges(): void {
  if (!hasNetAdmin()) {
    throw new CertpeerError(
      'missing_privilege',
      'the local gateway needs CAP_NET_ADMIN: run as root, or add --no-gateway to start everything else',
    )
  }
}

/** The gateway and this machine's operator use the same URLs as everybody else. */
export async function checkHostname(hostname: string): Promise<void> {
  try {
    await lookup(hostname)
  } catch (cause) {
    throw new CertpeerError(
      'config_invalid',
      `--hostname ${hostname} cannot be resolved on this machine; add it to the DNS or to /etc/hosts`,
      { cause },
    )
  }
}

/** `ownUdpPort` is held by an interface that our own gateway left behind and will take over again. */
export async function checkPortsFree(options: UpOptions, ownUdpPort?: number): Promise<void> {
  for (const [name, port] of Object.entries(options.ports)) await checkTcpPort(options.listen, port, name)
  if (!options.gateway || options.wireguardPort === ownUdpPort) return
  await checkUdpPort(options.wireguardPort, isIPv6(options.listen))
}

export async function isTcpPortFree(host: string, port: number): Promise<boolean> {
  return checkTcpPort(host, port, '').then(
    () => true,
    () => false,
  )
}

export async function isUdpPortFree(port: number, v6: boolean): Promise<boolean> {
  return checkUdpPort(port, v6).then(
    () => true,
    () => false,
  )
}

async function checkTcpPort(host: string, port: number, listener: string): Promise<void> {
  const server = createServer()
  const outcome = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
    server.once('error', resolve)
    server.listen({ host, port, exclusive: true }, () => resolve(undefined))
  })
  if (outcome) throw portError(outcome, `${host} port ${port} (listener ${listener})`, '--base-port or --listen')
  await new Promise<void>((resolve) => server.close(() => resolve()))
}

async function checkUdpPort(port: number, v6: boolean): Promise<void> {
  const socket = createSocket(v6 ? 'udp6' : 'udp4')
  const outcome = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
    socket.once('error', resolve)
    socket.bind(port, () => resolve(undefined))
  })
  socket.close()
  if (outcome) throw portError(outcome, `UDP port ${port} (WireGuard)`, '--wireguard-port')
}

function portError(error: NodeJS.ErrnoException, what: string, option: string): CertpeerError {
  if (error.code === 'EADDRINUSE') {
    return new CertpeerError('port_in_use', `${what} is in use; stop what uses it or choose another with ${option}`)
  }
  if (error.code === 'EACCES') {
    return new CertpeerError(
      'missing_privilege',
      `${what} may not be opened by this user; choose another with ${option}`,
    )
  }
  if (error.code === 'EADDRNOTAVAIL') {
    return new CertpeerError(
      'config_invalid',
      `${what}: this machine has no such address; choose another with --listen`,
    )
  }
  return new CertpeerError('unavailable', `${what} cannot be opened (${error.code ?? 'unknown'})`, { cause: error })
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
