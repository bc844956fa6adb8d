/**
 * A WireGuard device in memory that remembers what it is told and behaves as real ones were seen to: an AllowedIP given
 * to one peer is taken from another without a word, its own key is silently not added, and there is no transaction.
 */
import type { ConfigurableDevice } from '../../src/edge/tunnel/port.ts'
import { CertpeerError } from '../../src/core/errors.ts'
import { formatPrefix, parsePrefix, type Prefix } from '../../src/core/ipam/prefix.ts'
import type { WireGuardKey } from '../../src/core/wireguard/key.ts'
import type { DeviceState, PeerChange, PeerState } from '../../src/core/wireguard/types.ts'

/** The forms of a fault: nothing was done, all was done and reported as failed, or a part was done. */
export type Fault = 'failed' | 'done-but-failed' | 'half-done'

export class FakeDevice implements ConfigurableDevice {
  readonly ownKey: WireGuardKey | undefined
  /** Every change in its order. */
  readonly applied: PeerChange[] = []
  /** Befall the next calls of `apply`, first in first out. */
  readonly faults: Fault[] = []
  /** Keys that the device refuses with an error each time. */
  readonly refused = new Set<WireGuardKey>()
  reads = 0
  reachable = true
  /** Waited for at the start of `apply`: a test stops time in the middle with it. */
  gate: Promise<void> | undefined
  readonly #peers = new Map<WireGuardKey, { allowedIps: Set<string>; keepalive: number; endpoint?: string }>()

  constructor(ownKey?: WireGuardKey) {
    this.ownKey = ownKey
  }

  async read(): Promise<DeviceState> {
    this.#requireReachable()
    this.reads += 1
    const peers = new Map<WireGuardKey, PeerState>()
    for (const [publicKey, { allowedIps, keepalive, endpoint }] of this.#peers) {
      peers.set(publicKey, {
        publicKey,
        allowedIps: [...allowedIps].map(parsePrefix),
        receiveBytes: 0,
        transmitBytes: 0,
        persistentKeepaliveSeconds: keepalive,
        ...(endpoint !== undefined && { endpoint }),
      })
    }
    return { ...(this.ownKey !== undefined && { publicKey: this.ownKey }), listenPort: 51820, peers }
  }

  async apply(changes: readonly PeerChange[]): Promise<void> {
    if (this.gate !== undefined) await this.gate
    this.#requireReachable()
    const fault = this.faults.shift()
    if (fault === 'failed') throw new CertpeerError('device_failed', 'injected: nothing was done')
    const limit = fault === 'half-done' ? Math.floor(changes.length / 2) : changes.length
    for (const change of changes.slice(0, limit)) {
      if (change.kind === 'set' && this.refused.has(change.peer.publicKey)) {
        throw new CertpeerError('device_failed', 'injected: the device refuses this peer')
      }
      this.#change(change)
    }
    if (fault !== undefined) throw new CertpeerError('device_failed', `injected: ${fault}`)
  }

  async setIdentity(): Promise<void> {
    // Its identity is the constructor's.
  }

  close(): void {
    // Nothing is open.
  }

  /** The peers as `key → sorted AllowedIPs`, for comparing. */
  dump(): Record<string, string[]> {
    return Object.fromEntries([...this.#peers].map(([key, { allowedIps }]) => [key, [...allowedIps].sort()]))
  }

  keys(): WireGuardKey[] {
    return [...this.#peers.keys()]
  }

  /** As somebody with `wg set` would: past everything. */
  edit(publicKey: WireGuardKey, allowedIps: readonly Prefix[]): void {
    this.#change({ kind: 'set', peer: { publicKey, allowedIps } })
  }

  /** Takes everything away, as a killed process does. */
  reset(): void {
    this.#peers.clear()
  }

  #change(change: PeerChange): void {
    this.applied.push(change)
    if (change.kind === 'remove') {
      this.#peers.delete(change.publicKey)
      return
    }
    const { publicKey, allowedIps, endpoint, persistentKeepaliveSeconds } = change.peer
    if (publicKey === this.ownKey) return
    const texts = allowedIps.map(formatPrefix)
    for (const other of this.#peers.values()) for (const text of texts) other.allowedIps.delete(text)
    const before = this.#peers.get(publicKey)
    const kept = endpoint ?? before?.endpoint
    this.#peers.set(publicKey, {
      allowedIps: new Set(texts),
      keepalive: persistentKeepaliveSeconds ?? before?.keepalive ?? 0,
      ...(kept !== undefined && { endpoint: kept }),
    })
  }

  #requireReachable(): void {
    if (!this.reachable) throw new CertpeerError('unavailable', 'injected: the device cannot be reached')
  }
}
