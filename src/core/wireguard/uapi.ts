/**
 * The cross-platform userspace protocol of WireGuard (https://www.wireguard.com/xplatform/): text in, text out. Pure;
 * the socket lives in edge/tunnel. There is no transaction: at the first bad line the device answers an error and what
 * stood before it stays applied. So everything is checked here, before a byte is written.
 */
import { CertpeerError } from '../errors.ts'
import { formatPrefix, parsePrefix, type Prefix } from '../ipam/prefix.ts'
import { parseNumericEndpoint } from './endpoint.ts'
import { reportedWireGuardKey, wireGuardKeyToHex, type WireGuardKey } from './key.ts'
import type { DeviceConfig, DeviceState, PeerConfig, PeerState } from './types.ts'
import { x25519PublicFromPrivate } from './x25519.ts'

/** The whole request for the device's state. Its answer holds the private key and every preshared key: never log it. */
export const UAPI_GET = 'get=1\n\n'

/** A whole `set` request, blank line included. Throws before anything could be half applied. */
export function encodeSet(config: DeviceConfig): string {
  const lines = ['set=1']
  if (config.privateKey !== undefined) {
    if (config.privateKey.length !== 32) throw new TypeError('a WireGuard private key has 32 bytes')
    lines.push(`private_key=${config.privateKey.toString('hex')}`)
  }
  if (config.listenPort !== undefined) {
    lines.push(`listen_port=${requireInteger(config.listenPort, 65_535, 'listenPort')}`)
  }
  for (const change of config.changes) {
    switch (change.kind) {
      case 'remove':
        lines.push(`public_key=${wireGuardKeyToHex(change.publicKey)}`, 'remove=true')
        break
      case 'set':
        pushPeer(lines, change.peer)
        break
      default:
        change satisfies never
    }
  }
  return `${lines.join('\n')}\n\n`
}

/** Throws device_failed unless the answer to a `set` says `errno=0`. The answer never says whether anything changed. */
export function parseSetAnswer(text: string): void {
  const errno = readErrno(text)
  if (errno !== 0) {
    throw new CertpeerError(
      'device_failed',
      `the WireGuard device refused the change (errno ${errno}); what came before the refused line may be applied`,
    )
  }
}

/**
 * The state in an answer to `get=1`. The private key is turned into the public one at once and preshared keys are
 * dropped: neither is in the result, nor in any error message. Unknown lines are skipped, as the protocol asks.
 */
export function parseGet(text: string): DeviceState {
  const errno = readErrno(text)
  if (errno !== 0) throw new CertpeerError('device_failed', `the WireGuard device cannot be read (errno ${errno})`)
  let publicKey: WireGuardKey | undefined
  let listenPort = 0
  const peers = new Map<WireGuardKey, PeerState>()
  let peer: OpenPeer | undefined
  const close = () => {
    if (peer === undefined) return
    if (peers.has(peer.publicKey)) throw unreadable('public_key')
    peers.set(peer.publicKey, closePeer(peer))
  }
  for (const line of text.split('\n')) {
    const equals = line.indexOf('=')
    if (equals < 0) continue
    const name = line.slice(0, equals)
    const value = line.slice(equals + 1)
    if (name === 'public_key') {
      close()
      peer = openPeer(reportedWireGuardKey(hexKey(value, name)))
    } else if (peer !== undefined) {
      readPeerLine(peer, name, value)
    } else if (name === 'private_key') {
      publicKey = publicKeyOf(hexKey(value, name))
    } else if (name === 'listen_port') {
      listenPort = integer(value, name)
    }
  }
  close()
  return { ...(publicKey === undefined ? {} : { publicKey }), listenPort, peers }
}

function pushPeer(lines: string[], peer: PeerConfig): void {
  lines.push(`public_key=${wireGuardKeyToHex(peer.publicKey)}`)
  if (peer.endpoint !== undefined) lines.push(`endpoint=${parseNumericEndpoint(peer.endpoint)}`)
  if (peer.persistentKeepaliveSeconds !== undefined) {
    const seconds = requireInteger(peer.persistentKeepaliveSeconds, 65_535, 'persistentKeepaliveSeconds')
    lines.push(`persistent_keepalive_interval=${seconds}`)
  }
  // Replaced in place: removing and re-adding a peer would stall it until its own 15 s timer.
  lines.push('replace_allowed_ips=true')
  for (const prefix of peer.allowedIps) lines.push(`allowed_ip=${formatPrefix(prefix)}`)
}

interface OpenPeer {
  readonly publicKey: WireGuardKey
  readonly allowedIps: Prefix[]
  endpoint: string | undefined
  handshakeSeconds: number
  handshakeNanoseconds: number
  receiveBytes: number
  transmitBytes: number
  persistentKeepaliveSeconds: number
}

function openPeer(publicKey: WireGuardKey): OpenPeer {
  return {
    publicKey,
    allowedIps: [],
    endpoint: undefined,
    handshakeSeconds: 0,
    handshakeNanoseconds: 0,
    receiveBytes: 0,
    transmitBytes: 0,
    persistentKeepaliveSeconds: 0,
  }
}

function readPeerLine(peer: OpenPeer, name: string, value: string): void {
  switch (name) {
    case 'allowed_ip':
      peer.allowedIps.push(reportedPrefix(value, name))
      return
    case 'endpoint':
      peer.endpoint = value
      return
    case 'last_handshake_time_sec':
      peer.handshakeSeconds = integer(value, name)
      return
    case 'last_handshake_time_nsec':
      peer.handshakeNanoseconds = integer(value, name)
      return
    case 'rx_bytes':
      peer.receiveBytes = integer(value, name)
      return
    case 'tx_bytes':
      peer.transmitBytes = integer(value, name)
      return
    case 'persistent_keepalive_interval':
      peer.persistentKeepaliveSeconds = integer(value, name)
  }
}

function closePeer(peer: OpenPeer): PeerState {
  const { publicKey, allowedIps, endpoint, receiveBytes, transmitBytes, persistentKeepaliveSeconds } = peer
  const handshakeMs = peer.handshakeSeconds * 1000 + Math.floor(peer.handshakeNanoseconds / 1_000_000)
  return {
    publicKey,
    allowedIps,
    ...(endpoint === undefined ? {} : { endpoint }),
    ...(handshakeMs === 0 ? {} : { latestHandshakeAt: new Date(handshakeMs) }),
    receiveBytes,
    transmitBytes,
    persistentKeepaliveSeconds,
  }
}

/** The public key of the device's own private key; all zero means that none is set. */
function publicKeyOf(privateKey: Buffer): WireGuardKey | undefined {
  if (privateKey.every((byte) => byte === 0)) return undefined
  const publicKey = reportedWireGuardKey(x25519PublicFromPrivate(privateKey))
  privateKey.fill(0)
  return publicKey
}

function readErrno(text: string): number {
  const match = /(?:^|\n)errno=(-?[0-9]{1,9})\n\n?$/.exec(text)
  if (match?.[1] === undefined) {
    throw new CertpeerError('device_failed', 'the WireGuard device gave no complete answer')
  }
  return Number(match[1])
}

function hexKey(value: string, name: string): Buffer {
  if (!/^[0-9a-fA-F]{64}$/.test(value)) throw unreadable(name)
  return Buffer.from(value, 'hex')
}

function integer(value: string, name: string): number {
  const number = /^[0-9]{1,20}$/.test(value) ? Number(value) : NaN
  // Byte counters are 64 bits wide; beyond 2^53 they only lose precision in a display.
  if (!Number.isFinite(number)) throw unreadable(name)
  return number
}

/** Names the line, never its value: it may be a secret. */
function unreadable(name: string): CertpeerError {
  return new CertpeerError('device_failed', `the WireGuard device's answer has an unreadable ${name} line`)
}

function reportedPrefix(value: string, name: string): Prefix {
  try {
    return parsePrefix(value)
  } catch (cause) {
    throw new CertpeerError('device_failed', `the WireGuard device's answer has an unreadable ${name} line`, { cause })
  }
}

function requireInteger(value: number, max: number, what: string): number {
  if (!Number.isInteger(value) || value < 0 || value > max) throw new TypeError(`${what} must be 0 to ${max}`)
  return value
}
