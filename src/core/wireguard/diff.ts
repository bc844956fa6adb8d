/** From the peers a device has to the peers it shall have, in the fewest changes that are safe in their order. */
import { CertpeerError } from '../errors.ts'
import { formatPrefix, type Prefix } from '../ipam/prefix.ts'
import type { WireGuardKey } from './key.ts'
import type { PeerChange } from './types.ts'

export interface WantedPeer {
  readonly allowedIps: readonly Prefix[]
  /** Given to the device only when it knows none: afterwards the device follows the peer as it roams. */
  readonly endpoint?: string
  /** Absent: whatever the device has. */
  readonly persistentKeepaliveSeconds?: number
}

export interface ActualPeer {
  readonly allowedIps: readonly Prefix[]
  readonly endpoint?: string
  readonly persistentKeepaliveSeconds?: number
}

/**
 * The changes from `actual` to `wanted`; none when they agree. Removals first, then whatever takes an AllowedIP away
 * from a peer that stays, then whatever gives one: a crash half-way leaves less access, never more, and no packet goes
 * to a peer that the device would have had to take the address from silently. A peer that stays is never removed and
 * re-added. Throws address_conflict when two wanted peers share a prefix: a device would give it to the last of them.
 */
export function diffPeers(
  wanted: ReadonlyMap<WireGuardKey, WantedPeer>,
  actual: ReadonlyMap<WireGuardKey, ActualPeer>,
): PeerChange[] {
  requireDistinct(wanted)
  const removals: PeerChange[] = []
  const narrowings: PeerChange[] = []
  const settings: PeerChange[] = []
  for (const publicKey of actual.keys()) {
    if (!wanted.has(publicKey)) removals.push({ kind: 'remove', publicKey })
  }
  for (const [publicKey, want] of wanted) {
    const have = actual.get(publicKey)
    if (have === undefined) {
      settings.push({ kind: 'set', peer: { publicKey, allowedIps: want.allowedIps, ...settledDifference(want) } })
      continue
    }
    const wantedPrefixes = new Set(want.allowedIps.map(prefixKey))
    const kept = have.allowedIps.filter((prefix) => wantedPrefixes.has(prefixKey(prefix)))
    const loses = kept.length < have.allowedIps.length
    const gains = kept.length < wantedPrefixes.size
    if (loses) narrowings.push({ kind: 'set', peer: { publicKey, allowedIps: kept } })
    const settled = settledDifference(want, have)
    if (gains || settled !== undefined) {
      settings.push({ kind: 'set', peer: { publicKey, allowedIps: want.allowedIps, ...settled } })
    }
  }
  return [...removals, ...narrowings, ...settings]
}

/** What beside the AllowedIPs has to be written; undefined when nothing. */
function settledDifference(want: WantedPeer, have?: ActualPeer): Omit<WantedPeer, 'allowedIps'> | undefined {
  const endpoint = have?.endpoint === undefined ? want.endpoint : undefined
  const seconds = want.persistentKeepaliveSeconds
  const keepalive = seconds === (have?.persistentKeepaliveSeconds ?? 0) ? undefined : seconds
  if (endpoint === undefined && keepalive === undefined) return undefined
  return {
    ...(endpoint === undefined ? {} : { endpoint }),
    ...(keepalive === undefined ? {} : { persistentKeepaliveSeconds: keepalive }),
  }
}

function requireDistinct(wanted: ReadonlyMap<WireGuardKey, WantedPeer>): void {
  const holders = new Set<string>()
  for (const { allowedIps } of wanted.values()) {
    for (const prefix of allowedIps) {
      const key = prefixKey(prefix)
      if (holders.has(key)) {
        throw new CertpeerError('address_conflict', `AllowedIP ${formatPrefix(prefix)} is wanted twice`)
      }
      holders.add(key)
    }
  }
}

function prefixKey(prefix: Prefix): string {
  return `${prefix.family}/${prefix.length}/${prefix.bits.toString(36)}`
}
