/** The WireGuard device as the rest of the edge sees it; uapi.ts and wg.ts are the two ways to one. */
import type { DeviceState, PeerChange } from '../../core/wireguard/types.ts'

export interface WireGuardDevice {
  /** What the device has now. Throws unavailable, timeout or device_failed. */
  read(): Promise<DeviceState>
  /**
   * Makes the changes in their order. There is no transaction: after an error some may be there, so read back. Success
   * means that the device took every change; it does not say that anything was different before.
   */
  apply(changes: readonly PeerChange[]): Promise<void>
}

/** A device that can also be given its own key and port, and let go. */
export interface ConfigurableDevice extends WireGuardDevice {
  /** Sets the private key (base64 in a file that only its owner reads) and the UDP port; absent: any free port. */
  setIdentity(identity: { readonly privateKeyFile: string; readonly listenPort?: number }): Promise<void>
  /** Closes what is open towards the device; the device stays. */
  close(): void
}
