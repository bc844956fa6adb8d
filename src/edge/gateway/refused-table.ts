/** Certificates that were stated and are no peers: for now, or for good. What is said of them goes into `failed`. */
import type { ErrorCode } from '../../core/errors.ts'
import type { Certificate } from '../../core/x509/certificate.ts'

export interface RefusedCertificate {
  /** `<tenant>/<network>` */
  readonly network: string
  readonly certificate: Certificate
  readonly code: ErrorCode
  /** What stands in the way may pass by itself. */
  readonly passing: boolean
  /** Was a peer before, and is among the records as one. */
  readonly suspended: boolean
}

export class RefusedTable {
  readonly #byIndex = new Map<string, RefusedCertificate>()
  /** By the identity that the certificate claims. */
  readonly #byUri = new Map<string, Set<string>>()

  get size(): number {
    return this.#byIndex.size
  }

  [Symbol.iterator](): IterableIterator<RefusedCertificate> {
    return this.#byIndex.values()
  }

  find(network: string, serial: string): RefusedCertificate | undefined {
    return this.#byIndex.get(indexOf(network, serial))
  }

  has(refused: RefusedCertificate): boolean {
    return this.find(refused.network, refused.certificate.serial) === refused
  }

  /** Whether there is one that may pass, refused for one of these reasons. */
  hasPassing(codes: readonly ErrorCode[]): boolean {
    for (const { passing, code } of this.#byIndex.values()) if (passing && codes.includes(code)) return true
    return false
  }

  /** In place of what is there for the same network and serial. */
  set(refused: RefusedCertificate): void {
    const { network, certificate } = refused
    const before = this.find(network, certificate.serial)
    if (before !== undefined) this.delete(before)
    const index = indexOf(network, certificate.serial)
    this.#byIndex.set(index, refused)
    for (const uri of certificate.sanUris) {
      const indexes = this.#byUri.get(uri)
      if (indexes === undefined) this.#byUri.set(uri, new Set([index]))
      else indexes.add(index)
    }
  }

  delete({ network, certificate }: RefusedCertificate): void {
    const index = indexOf(network, certificate.serial)
    const held = this.#byIndex.get(index)
    if (held === undefined) return
    this.#byIndex.delete(index)
    for (const uri of held.certificate.sanUris) {
      const indexes = this.#byUri.get(uri)
      indexes?.delete(index)
      if (indexes?.size === 0) this.#byUri.delete(uri)
    }
  }

  /** Those that claim an identity. */
  claiming(uri: string): RefusedCertificate[] {
    const found: RefusedCertificate[] = []
    for (const index of this.#byUri.get(uri) ?? []) {
      const refused = this.#byIndex.get(index)
      if (refused !== undefined) found.push(refused)
    }
    return found
  }
}

function indexOf(network: string, serial: string): string {
  return `${network} ${serial}`
}
