/** The peers that this gateway has admitted, found by everything that only one of them may have. */
import type { Prefix } from '../../core/ipam/prefix.ts'
import type { WantedPeer } from '../../core/wireguard/diff.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import type { DeviceFacts } from '../../core/x509/path.ts'
import type { Serial } from '../../core/x509/serial.ts'
import { ExpiryHeap } from './expiry.ts'

export interface AdmittedPeer {
  /** `<tenant>/<network>` */
  readonly network: string
  readonly certificate: Certificate
  readonly facts: DeviceFacts
}

export class PeerTable {
  readonly #byUri = new Map<string, AdmittedPeer>()
  readonly #bySerial = new Map<string, AdmittedPeer>()
  readonly #byAddress = new Map<string, AdmittedPeer>()
  readonly #byKey = new Map<WireGuardKey, AdmittedPeer>()
  readonly #wanted = new Map<WireGuardKey, WantedPeer>()
  readonly #expiry = new Map<string, ExpiryHeap<AdmittedPeer>>()
  readonly #perIssuer = new Map<string, number>()
  #changedKeys = new Set<WireGuardKey>()

  get size(): number {
    return this.#byUri.size
  }

  /** What the device shall hold. Keepalive is the devices' affair; 0 also undoes what a kick or a hand has set. */
  get wanted(): ReadonlyMap<WireGuardKey, WantedPeer> {
    return this.#wanted
  }

  [Symbol.iterator](): IterableIterator<AdmittedPeer> {
    return this.#byUri.values()
  }

  find(uri: string): AdmittedPeer | undefined {
    return this.#byUri.get(uri)
  }

  findBySerial(network: string, serial: string): AdmittedPeer | undefined {
    return this.#bySerial.get(serialIndex(network, serial))
  }

  findByKey(key: WireGuardKey): AdmittedPeer | undefined {
    return this.#byKey.get(key)
  }

  findByAddress(address: Prefix): AdmittedPeer | undefined {
    return this.#byAddress.get(addressIndex(address))
  }

  /** Puts a peer in place of its identity's earlier one. The caller has made sure that it is in nobody else's way. */
  set(peer: AdmittedPeer): void {
    const { uri, serial, key, allowedIps, issuerKeyId, notAfter } = peer.facts
    const before = this.#byUri.get(uri)
    if (before !== undefined) this.remove(before)
    this.#byUri.set(uri, peer)
    this.#bySerial.set(serialIndex(peer.network, serial), peer)
    this.#byKey.set(key, peer)
    for (const prefix of allowedIps) this.#byAddress.set(addressIndex(prefix), peer)
    this.#wanted.set(key, { allowedIps, persistentKeepaliveSeconds: 0 })
    this.#changedKeys.add(key)
    this.#perIssuer.set(issuerKeyId, (this.#perIssuer.get(issuerKeyId) ?? 0) + 1)
    let heap = this.#expiry.get(issuerKeyId)
    if (heap === undefined) this.#expiry.set(issuerKeyId, (heap = new ExpiryHeap()))
    heap.add(notAfter, peer)
  }

  remove(peer: AdmittedPeer): void {
    const { uri, serial, key, allowedIps, issuerKeyId } = peer.facts
    if (this.#byUri.get(uri) !== peer) return
    this.#byUri.delete(uri)
    this.#bySerial.delete(serialIndex(peer.network, serial))
    this.#byKey.delete(key)
    for (const prefix of allowedIps) this.#byAddress.delete(addressIndex(prefix))
    this.#wanted.delete(key)
    this.#perIssuer.set(issuerKeyId, (this.#perIssuer.get(issuerKeyId) ?? 0) - 1)
    this.#changedKeys.add(key)
  }

  /** Removes and gives the peers whose notAfter has come by the time that holds for their issuer. */
  takeExpired(nowFor: (issuerKeyId: string) => Date): AdmittedPeer[] {
    const expired: AdmittedPeer[] = []
    for (const [issuerKeyId, heap] of this.#expiry) {
      const now = nowFor(issuerKeyId)
      for (let peer = heap.takeDue(now); peer !== undefined; peer = heap.takeDue(now)) {
        // Renewed or removed meanwhile: this entry speaks of a certificate that no longer counts.
        if (this.#byUri.get(peer.facts.uri) !== peer) continue
        this.remove(peer)
        expired.push(peer)
      }
    }
    return expired
  }

  /** Milliseconds since the epoch; undefined when nothing ends. May be early: a renewed peer's old end is still in it. */
  get nextExpiryAtMs(): number | undefined {
    let nextMs: number | undefined
    for (const { nextAtMs } of this.#expiry.values()) {
      if (nextAtMs !== undefined && (nextMs === undefined || nextAtMs < nextMs)) nextMs = nextAtMs
    }
    return nextMs
  }

  hasIssuer(issuerKeyId: string): boolean {
    return (this.#perIssuer.get(issuerKeyId) ?? 0) > 0
  }

  get hasChanges(): boolean {
    return this.#changedKeys.size > 0
  }

  /** The keys whose wanted state may have changed since the last call. */
  takeChangedKeys(): ReadonlySet<WireGuardKey> {
    const keys = this.#changedKeys
    this.#changedKeys = new Set()
    return keys
  }
}

function serialIndex(network: string, serial: string | Serial): string {
  return `${network} ${serial}`
}

/** A device has single addresses only, so an overlap is an equality. */
function addressIndex(prefix: Prefix): string {
  return `${prefix.family} ${prefix.bits.toString(36)}`
}
