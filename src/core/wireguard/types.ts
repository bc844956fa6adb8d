/** A WireGuard device as we set it and as we read it. No type here can hold a private or a preshared key but `DeviceConfig`. */
import type { Prefix } from '../ipam/prefix.ts'
import type { WireGuardKey } from './key.ts'

/** What a peer shall be. Setting it is idempotent: the AllowedIPs are replaced, a running session is not touched. */
export interface PeerConfig {
  readonly publicKey: WireGuardKey
  readonly allowedIps: readonly Prefix[]
  /** `ADDRESS:PORT`, IPv6 in brackets. Absent: leave what the device has (it follows the peer as it roams). */
  readonly endpoint?: string
  /** 0 turns it off; absent leaves it as it is. */
  readonly persistentKeepaliveSeconds?: number
}

export type PeerChange =
  { readonly kind: 'remove'; readonly publicKey: WireGuardKey } | { readonly kind: 'set'; readonly peer: PeerConfig }

/** One write to a device. What is absent is left as it is. */
export interface DeviceConfig {
  /** Raw 32 bytes. */
  readonly privateKey?: Buffer
  readonly listenPort?: number
  readonly changes: readonly PeerChange[]
}

export interface PeerState {
  readonly publicKey: WireGuardKey
  readonly allowedIps: readonly Prefix[]
  readonly endpoint?: string
  /** Absent: no handshake since the peer was added. */
  readonly latestHandshakeAt?: Date
  readonly receiveBytes: number
  readonly transmitBytes: number
  /** 0: off. */
  readonly persistentKeepaliveSeconds: number
}

export interface DeviceState {
  /** Absent: the device has no private key yet. */
  readonly publicKey?: WireGuardKey
  readonly listenPort: number
  readonly peers: ReadonlyMap<WireGuardKey, PeerState>
}
