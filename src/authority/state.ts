/**
 * What the ledger's entries add up to, in memory: who lives, which keys and addresses are held and until when, what is
 * spent, what is revoked. `apply` is the only way anything changes, and it depends on the entry alone, so a restart
 * arrives at the same state. Nothing here is ever read back from PostgreSQL.
 *
 * Whether something may be done is decided elsewhere (enroll, renew, …); by the time an entry is applied it is a fact.
 */
import { CertpeerError } from '../core/errors.ts'
import { AddressPool } from '../core/ipam/pool.ts'
import { formatPrefix, parsePrefix, prefixContains } from '../core/ipam/prefix.ts'
import type { Prefix } from '../core/ipam/prefix.ts'
import type { RevocationReason, Role } from '../core/messages/common.ts'
import { NETWORK_DOCUMENT_TYPE } from '../core/messages/network-document.ts'
import { networkDocumentSchema } from '../core/messages/network.ts'
import type { NetworkDocument } from '../core/messages/network.ts'
import { parseJws } from '../core/messages/jws.ts'
import type { WireGuardKey } from '../core/wireguard/key.ts'
import { networkKey } from '../core/x509/identity.ts'
import type { Serial } from '../core/x509/serial.ts'
import type {
  CertificateEntry,
  CertificateRole,
  Entry,
  GenesisEntry,
  RevocationEntry,
  TokenEntry,
} from './ledger/entry.ts'

/** How long after its end a record is kept when nothing else needs it: late OCSP questions, one more CRL. */
const KEEP_AFTER_END_MS = 3_600_000

export interface Revocation {
  readonly at: Date
  readonly reason: RevocationReason
  readonly ledgerIndex: number
}

export interface CertificateRecord {
  readonly serial: Serial
  readonly issuerKeyId: string
  readonly tbs: Buffer
  readonly role: CertificateRole
  readonly uri: string
  readonly name: string
  readonly networks: readonly string[]
  readonly groups: readonly string[]
  readonly key: WireGuardKey | undefined
  readonly possession: boolean | undefined
  readonly addresses: readonly string[]
  readonly notBefore: Date
  readonly notAfter: Date
  readonly csrHash: string | undefined
  /** The certificate that was shown to get this one. */
  readonly renewed: Serial | undefined
  readonly ledgerIndex: number
  /** Undefined until the follow-up entry: the process may have died between commit and signature. */
  signature: Buffer | undefined
  revoked: Revocation | undefined
}

export interface IdentityRecord {
  readonly uri: string
  role: Role
  readonly name: string
  readonly tenant: string | undefined
  readonly nameKey: string
  networks: readonly string[]
  groups: readonly string[]
  /** The newest certificate, also when it is expired or revoked. */
  current: Serial
  newestNotBefore: Date
  /** Certificates that are neither revoked nor known to be expired. */
  readonly live: Set<Serial>
  /** Revoked as a whole; a later token (gateways and operators keep their name) starts a new life. */
  blocked: Revocation | undefined
  /** Certificates from before this entry cannot be renewed any more. */
  lifeStartsAt: number
  /** True when a token began another life under the same name, so that forgotten certificates may be of an earlier one. */
  restarted: boolean
}

/** Whose a key or an address is, until when; milliseconds since the epoch. */
export interface Hold {
  readonly uri: string
  readonly until: number
}

export interface TokenRecord {
  readonly jti: string
  readonly claimsHash: string
  readonly nameKey: string
  /** Identity of the operator who had it made. */
  readonly operator: string
  readonly expiresAt: Date
  readonly ledgerIndex: number
  spent: { readonly csrHash: string; readonly serial: Serial } | undefined
  alarmed: boolean
}

export interface NetworkRecord {
  readonly key: string
  readonly document: NetworkDocument
  readonly jws: string
  readonly keyPrefix: Prefix
  readonly poolPrefixes: readonly Prefix[]
  readonly routes: readonly Prefix[]
  readonly pools: readonly AddressPool[]
  /** By address text with its length, also addresses that the pools no longer contain. */
  readonly holds: Map<string, Hold>
  /** Taken by requests that are under way: no entry yet, and nobody else's any more. */
  readonly pending: Set<string>
}

export interface RevokedRecord {
  readonly serial: Serial
  readonly notAfter: Date
  readonly revocation: Revocation
}

export interface IssuerRecord {
  crlNumber: bigint
  /** In the order of the ledger; only ever appended to, or replaced as a whole when expired ones are dropped. */
  revoked: RevokedRecord[]
}

export class LedgerState {
  genesis: GenesisEntry | undefined
  readonly identities = new Map<string, IdentityRecord>()
  readonly certificates = new Map<Serial, CertificateRecord>()
  readonly tokens = new Map<string, TokenRecord>()
  readonly networks = new Map<string, NetworkRecord>()
  readonly issuers = new Map<string, IssuerRecord>()
  readonly keys = new Map<WireGuardKey, Hold>()
  /** Every serial that was revoked and may still be shown for renewal or be asked about. */
  readonly revocations = new Map<Serial, Revocation>()
  private readonly byName = new Map<string, Set<string>>()
  private readonly bySpentCsr = new Map<string, Serial>()
  private readonly nameBlockedAt = new Map<string, number>()

  /** Takes over one committed entry. Throws ledger_corrupt for an entry that cannot follow what came before. */
  apply(entry: Entry, index: number): void {
    if ((index === 0) !== (entry.kind === 'genesis')) {
      throw new CertpeerError(
        'ledger_corrupt',
        `ledger entry ${index} is of kind ${entry.kind}: a ledger begins with one genesis entry`,
      )
    }
    switch (entry.kind) {
      case 'genesis':
        this.genesis = entry
        break
      case 'token':
        this.applyToken(entry, index)
        break
      case 'certificate':
        this.applyCertificate(entry, index)
        break
      case 'signature': {
        const record = this.certificates.get(entry.serial)
        if (record) record.signature = Buffer.from(entry.signature, 'base64')
        break
      }
      case 'revocation':
        this.applyRevocation(entry, index)
        break
      case 'network':
        this.applyNetwork(entry.jws)
        break
      case 'crl':
        this.issuer(entry.issuerKeyId).crlNumber = BigInt(entry.number)
        break
      case 'act': {
        const token = this.tokens.get(entry.jti)
        if (token) token.alarmed = true
        break
      }
      default:
        entry satisfies never
    }
  }

  /** Identities of that role and name that are not revoked; at most one, or none. */
  findByName(nameKey: string): IdentityRecord | undefined {
    for (const uri of this.byName.get(nameKey) ?? []) {
      const identity = this.identities.get(uri)
      if (identity && identity.blocked === undefined) return identity
    }
    return undefined
  }

  /** All identities that ever had that name, newest last. */
  listByName(nameKey: string): IdentityRecord[] {
    return [...(this.byName.get(nameKey) ?? [])].flatMap((uri) => this.identities.get(uri) ?? [])
  }

  /** The certificate that was issued for exactly this CSR and is still remembered. */
  findByCsr(csrHash: string): CertificateRecord | undefined {
    const serial = this.bySpentCsr.get(csrHash)
    return serial === undefined ? undefined : this.certificates.get(serial)
  }

  /** Who else holds the key at that instant; undefined when it is free or held by one of `uris`. */
  keyHolder(key: WireGuardKey, uris: readonly string[], now: Date): Hold | undefined {
    return foreign(this.keys.get(key), uris, now)
  }

  addressHolder(network: NetworkRecord, address: string, uris: readonly string[], now: Date): Hold | undefined {
    return foreign(network.holds.get(address), uris, now)
  }

  /** Takes the next address of the pool for a request under way. Throws pool_exhausted. */
  allocateAddress(network: NetworkRecord, pool: number): Prefix {
    const address = network.pools[pool]?.allocate()
    if (!address) throw new TypeError(`network ${network.key} has no pool ${pool}`)
    network.pending.add(formatPrefix(address))
    return address
  }

  /** Takes the address that the identity had, when it still holds it or it is free; else undefined. */
  keepAddress(network: NetworkRecord, pool: number, address: Prefix, uri: string): Prefix | undefined {
    const text = formatPrefix(address)
    if (network.pending.has(text)) return undefined
    if (network.holds.get(text)?.uri !== uri) {
      if (network.pools[pool]?.isFree(address) !== true) return undefined
      network.pools[pool].claim(address)
    }
    network.pending.add(text)
    return address
  }

  /** Ends a request's own hold of an address; it is free again unless an entry holds it by now. */
  settleAddress(networkName: string, address: Prefix): void {
    // The network may have got a new document, with new pools, meanwhile.
    const network = this.networks.get(networkName)
    const text = formatPrefix(address)
    if (!network?.pending.delete(text) || network.holds.has(text)) return
    for (const pool of network.pools) pool.release(address)
  }

  /** True when a token made at that entry was cut off by a revocation of its name since. */
  isNameBlockedSince(nameKey: string, ledgerIndex: number): boolean {
    return (this.nameBlockedAt.get(nameKey) ?? -1) > ledgerIndex
  }

  issuer(keyId: string): IssuerRecord {
    let record = this.issuers.get(keyId)
    if (record === undefined) this.issuers.set(keyId, (record = { crlNumber: 0n, revoked: [] }))
    return record
  }

  /** Certificates of the identity in force at that instant. */
  liveCertificates(identity: IdentityRecord, now: Date): CertificateRecord[] {
    return [...identity.live].flatMap((serial) => {
      const record = this.certificates.get(serial)
      return record && record.notAfter > now ? [record] : []
    })
  }

  /**
   * Lets go of what time has ended: holds past their quarantine, spent and unspent tokens, certificates that nobody can
   * ask for. Facts that a decision could still need stay. Not an entry: it follows from the entries and the clock.
   */
  sweep(now: Date): void {
    const instant = now.getTime()
    for (const [key, hold] of this.keys) if (hold.until <= instant) this.keys.delete(key)
    for (const network of this.networks.values()) {
      for (const [address, hold] of network.holds) {
        if (hold.until > instant) continue
        network.holds.delete(address)
        if (network.pending.has(address)) continue
        for (const pool of network.pools) pool.release(parsePrefix(address))
      }
    }
    for (const [jti, token] of this.tokens) {
      if (token.expiresAt.getTime() + KEEP_AFTER_END_MS <= instant) this.tokens.delete(jti)
    }
    for (const [serial, record] of this.certificates) {
      const end = record.notAfter.getTime() + KEEP_AFTER_END_MS
      const identity = this.identities.get(record.uri)
      if (end > instant) continue
      identity?.live.delete(serial)
      if (identity?.current === serial && identity.blocked === undefined) continue
      this.certificates.delete(serial)
      if (record.csrHash !== undefined && this.bySpentCsr.get(record.csrHash) === serial)
        this.bySpentCsr.delete(record.csrHash)
    }
    for (const issuer of this.issuers.values()) {
      const kept = issuer.revoked.filter((record) => record.notAfter.getTime() + KEEP_AFTER_END_MS > instant)
      if (kept.length < issuer.revoked.length) issuer.revoked = kept
    }
  }

  private applyToken(entry: TokenEntry, index: number): void {
    this.tokens.set(entry.jti, {
      jti: entry.jti,
      claimsHash: entry.claimsHash,
      nameKey: nameKeyOf({ role: entry.role, tenant: entry.tenant, network: entry.networks[0], name: entry.name }),
      operator: entry.operator,
      expiresAt: new Date(entry.expiresAt),
      ledgerIndex: index,
      spent: undefined,
      alarmed: false,
    })
  }

  private applyCertificate(entry: CertificateEntry, index: number): void {
    if (this.certificates.has(entry.serial)) {
      throw new CertpeerError('ledger_corrupt', `ledger entry ${index} issues serial ${entry.serial} a second time`)
    }
    const at = new Date(entry.at)
    const superseded: Revocation = { at, reason: 'superseded', ledgerIndex: index }
    for (const uri of entry.replaces ?? []) this.revokeIdentity(uri, superseded, { block: uri !== entry.uri })
    const record: CertificateRecord = {
      serial: entry.serial,
      issuerKeyId: entry.issuerKeyId,
      tbs: Buffer.from(entry.tbs, 'base64'),
      role: entry.role,
      uri: entry.uri,
      name: entry.name,
      networks: entry.networks,
      groups: entry.groups,
      key: entry.key,
      possession: entry.possession,
      addresses: entry.addresses,
      notBefore: new Date(entry.notBefore),
      notAfter: new Date(entry.notAfter),
      csrHash: entry.csrHash,
      renewed: entry.renewed,
      ledgerIndex: index,
      signature: undefined,
      revoked: undefined,
    }
    this.certificates.set(entry.serial, record)
    if (entry.csrHash !== undefined) this.bySpentCsr.set(entry.csrHash, entry.serial)
    const token = entry.jti === undefined ? undefined : this.tokens.get(entry.jti)
    if (token && entry.csrHash !== undefined) token.spent = { csrHash: entry.csrHash, serial: entry.serial }
    if (entry.role !== 'ocsp-signer') this.applyToIdentity(entry, entry.role, record, entry.jti !== undefined)
    if (entry.heldUntil !== undefined) this.hold(record, new Date(entry.heldUntil).getTime())
  }

  private applyToIdentity(entry: CertificateEntry, role: Role, record: CertificateRecord, byToken: boolean): void {
    const known = this.identities.get(entry.uri)
    if (known) {
      // A life begins anew with a token; a renewal of a revoked identity cannot have been issued.
      if (known.blocked !== undefined || byToken) {
        known.lifeStartsAt = record.ledgerIndex
        known.restarted = true
      }
      known.blocked = undefined
      known.current = record.serial
      known.newestNotBefore = record.notBefore
      known.role = role
      known.networks = entry.networks
      known.groups = entry.groups
      known.live.add(record.serial)
      return
    }
    const nameKey = nameKeyOf({
      role,
      tenant: entry.tenant,
      network: entry.networks[0]?.split('/')[1],
      name: entry.name,
    })
    this.identities.set(entry.uri, {
      uri: entry.uri,
      role,
      name: entry.name,
      tenant: entry.tenant,
      nameKey,
      networks: entry.networks,
      groups: entry.groups,
      current: record.serial,
      newestNotBefore: record.notBefore,
      live: new Set([record.serial]),
      blocked: undefined,
      lifeStartsAt: record.ledgerIndex,
      restarted: false,
    })
    const uris = this.byName.get(nameKey) ?? new Set()
    uris.add(entry.uri)
    this.byName.set(nameKey, uris)
  }

  /** A hold only ever grows for its holder; another's has ended, or the holder was replaced. */
  private hold(record: CertificateRecord, until: number): void {
    if (record.key !== undefined) extend(this.keys, record.key, record.uri, until)
    for (const address of record.addresses) {
      const prefix = parsePrefix(address)
      const networks = record.networks.flatMap((name) => this.networks.get(name) ?? [])
      const owners = networks.filter((network) => ownsAddress(network, prefix))
      // None owns it when a new document moved the pool away while the certificate was being written: it is held anyway.
      for (const network of owners.length > 0 ? owners : networks) {
        extend(network.holds, address, record.uri, until)
        for (const pool of network.pools) pool.hold(prefix)
      }
    }
  }

  private applyRevocation(entry: RevocationEntry, index: number): void {
    const revocation: Revocation = { at: new Date(entry.at), reason: entry.reason, ledgerIndex: index }
    if ('uri' in entry.target) this.revokeIdentity(entry.target.uri, revocation, { block: true })
    else this.revokeCertificate(entry.target.serial, revocation)
  }

  /** Every certificate issued before this place in the ledger, also one whose answer is still under way. */
  private revokeIdentity(uri: string, revocation: Revocation, { block }: { block: boolean }): void {
    const identity = this.identities.get(uri)
    if (!identity) return
    for (const serial of [...identity.live]) {
      const record = this.certificates.get(serial)
      // What has ended needs no revocation: the block keeps it from being renewed.
      if (record && record.notAfter > revocation.at) this.revokeCertificate(serial, revocation)
      else identity.live.delete(serial)
    }
    if (!block) return
    identity.blocked ??= revocation
    this.nameBlockedAt.set(identity.nameKey, revocation.ledgerIndex)
  }

  private revokeCertificate(serial: Serial, revocation: Revocation): void {
    const record = this.certificates.get(serial)
    if (!record || record.revoked !== undefined) return
    record.revoked = revocation
    this.revocations.set(serial, revocation)
    this.identities.get(record.uri)?.live.delete(serial)
    this.issuer(record.issuerKeyId).revoked.push({ serial, notAfter: record.notAfter, revocation })
  }

  private applyNetwork(jws: string): void {
    const { payload } = parseJws(jws, NETWORK_DOCUMENT_TYPE)
    const document = networkDocumentSchema.parse(JSON.parse(payload.toString('utf8')))
    const key = networkKey(document.tenant, document.network)
    const reserved = document.reserved.map(parsePrefix)
    const poolPrefixes = document.pools.map(parsePrefix)
    const before = this.networks.get(key)
    const holds = before?.holds ?? new Map<string, Hold>()
    const pending = before?.pending ?? new Set<string>()
    const pools = poolPrefixes.map((prefix) => new AddressPool({ prefix, reserved }))
    for (const address of [...holds.keys(), ...pending]) for (const pool of pools) pool.hold(parsePrefix(address))
    this.networks.set(key, {
      key,
      document,
      jws,
      keyPrefix: parsePrefix(document.keyPrefix),
      poolPrefixes,
      routes: document.routes.map(parsePrefix),
      pools,
      holds,
      pending,
    })
  }
}

/** The place of a name: two tenants, networks or roles may use the same one. */
export function nameKeyOf(of: {
  readonly role: Role
  readonly tenant?: string | undefined
  readonly network?: string | undefined
  readonly name: string
}): string {
  switch (of.role) {
    case 'device':
      return `device/${of.tenant ?? ''}/${of.network ?? ''}/${of.name}`
    case 'gateway':
    case 'authority':
    case 'server':
      return `${of.role}/${of.name}`
    default:
      return `operator/${of.tenant ?? ''}/${of.name}`
  }
}

/** What a gateway of the network is certified for. */
export function servedPrefixes(network: NetworkRecord): Prefix[] {
  return [...network.poolPrefixes, network.keyPrefix, ...network.routes]
}

function ownsAddress(network: NetworkRecord, address: Prefix): boolean {
  return (
    prefixContains(network.keyPrefix, address) || network.poolPrefixes.some((prefix) => prefixContains(prefix, address))
  )
}

function extend<K>(holds: Map<K, Hold>, key: K, uri: string, until: number): void {
  const held = holds.get(key)
  holds.set(key, { uri, until: held?.uri === uri ? Math.max(held.until, until) : until })
}

function foreign(hold: Hold | undefined, uris: readonly string[], now: Date): Hold | undefined {
  return hold && hold.until > now.getTime() && !uris.includes(hold.uri) ? hold : undefined
}
