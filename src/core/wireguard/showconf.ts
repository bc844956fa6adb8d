/** What `wg show INTERFACE dump` prints (wg(8)): the way to read a kernel device. Pure. */
import { CertpeerError } from '../errors.ts'
import { parsePrefix, type Prefix } from '../ipam/prefix.ts'
import { reportedWireGuardKey, type WireGuardKey } from './key.ts'
import type { DeviceState, PeerState } from './types.ts'

/**
 * Parses the tab-separated dump: a line for the interface, one per peer. Private and preshared keys are skipped
 * unread; they are in no result and in no error message. Throws device_failed.
 */
export function parseWgDump(text: string): DeviceState {
  if (!text.endsWith('\n')) throw unreadable('is cut short')
  const [first = '', ...rest] = text.slice(0, -1).split('\n')
  const columns = first.split('\t')
  if (columns.length !== 4) throw unreadable('has no interface line')
  const publicKey = columns[1] === '(none)' ? undefined : reportedKey(columns[1])
  const peers = new Map<WireGuardKey, PeerState>()
  for (const line of rest) {
    const peer = parsePeer(line.split('\t'))
    if (peers.has(peer.publicKey)) throw unreadable('names a peer twice')
    peers.set(peer.publicKey, peer)
  }
  return { ...(publicKey === undefined ? {} : { publicKey }), listenPort: integer(columns[2]), peers }
}

function parsePeer(columns: readonly string[]): PeerState {
  if (columns.length !== 8) throw unreadable('has a peer line that is not 8 columns')
  const [key, , endpoint, allowedIps, handshakeSeconds, receiveBytes, transmitBytes, keepalive] = columns
  const seconds = integer(handshakeSeconds)
  return {
    publicKey: reportedKey(key),
    allowedIps: allowedIps === '(none)' ? [] : (allowedIps ?? '').split(',').map(reportedPrefix),
    ...(endpoint === undefined || endpoint === '(none)' ? {} : { endpoint }),
    ...(seconds === 0 ? {} : { latestHandshakeAt: new Date(seconds * 1000) }),
    receiveBytes: integer(receiveBytes),
    transmitBytes: integer(transmitBytes),
    persistentKeepaliveSeconds: keepalive === 'off' ? 0 : integer(keepalive),
  }
}

function reportedKey(text: string | undefined): WireGuardKey {
  if (text === undefined || !/^[A-Za-z0-9+/]{43}=$/.test(text)) throw unreadable('has an unreadable public key')
  return reportedWireGuardKey(Buffer.from(text, 'base64'))
}

function reportedPrefix(text: string): Prefix {
  try {
    return parsePrefix(text)
  } catch (cause) {
    throw new CertpeerError('device_failed', 'the output of wg show dump has an unreadable AllowedIP', { cause })
  }
}

function integer(text: string | undefined): number {
  if (text === undefined || !/^[0-9]{1,20}$/.test(text)) throw unreadable('has an unreadable number')
  return Number(text)
}

/** Says what is wrong with which column, never what the column holds. */
function unreadable(fault: string): CertpeerError {
  return new CertpeerError('device_failed', `the output of wg show dump ${fault}`)
}
