/**
 * Who is a peer and who is not, with what follows for records and acknowledgements: certificates come in as they are
 * stated, taken back, revoked, or run out, and are judged by `evaluateAdmission`. What was refused for now is kept and
 * asked again. Knows nothing of streams and revisions.
 */
import { errorCode, type ErrorCode } from '../../core/errors.ts'
import type { JournalRecord } from '../../core/messages/gateway-journal.ts'
import type { WantedPeer } from '../../core/wireguard/diff.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import { parseCertificate, type Certificate } from '../../core/x509/certificate.ts'
import { parseSerial, type Serial } from '../../core/x509/serial.ts'
import { evaluateAdmission, isOwnRevoked, readAuthentic } from './admission.ts'
import type { AdmissionContext, Decision, NewestAccepted, OwnIdentity } from './admission.ts'
import type { Outbox } from './outbox.ts'
import { PeerTable, type AdmittedPeer } from './peer-table.ts'
import { RefusedTable, type RefusedCertificate } from './refused-table.ts'
import { CLOCK_SKEW_MS, MAX_DEVICE_LIFETIME_MS, type TrustStore } from './trust-store.ts'

/** wireguard-go takes no more peers on an interface. */
export const MAX_PEERS = 65_536
/** Refused certificates that are kept; only somebody who means harm sends more. */
const MAX_REFUSED = MAX_PEERS
/** How often what only time can heal is asked again. */
const RETRY_MS = 5000
/** Set back by more than this, a clock was wrong before; less is how clocks are. */
const CLOCK_WAVERS_MS = 60_000

/** What may make a refused certificate acceptable, and the refusals it helps against. Asking costs a tenth of a ms. */
const HELPS = {
  time: ['certificate_expired', 'stale_crl'],
  room: ['key_conflict', 'address_conflict', 'pool_exhausted'],
  issuer: ['certificate_untrusted', 'certificate_expired'],
  crl: ['stale_crl', 'revocation_unknown'],
  document: ['network_document_stale', 'policy_denied'],
} as const satisfies Record<string, readonly ErrorCode[]>

export interface RegisterOptions {
  readonly trust: TrustStore
  /** Our own certificate as it is by now. */
  readonly own: () => OwnIdentity
  readonly outbox: Outbox
  /** Something that was stated of the network could not be kept: it must be said again. */
  readonly onUnkept: (network: string) => void
}

/** What the records said of an identity last. */
interface RestoredPeer {
  readonly network: string
  readonly certificate: Certificate
}

export class PeerRegister {
  readonly #trust: TrustStore
  readonly #own: () => OwnIdentity
  readonly #outbox: Outbox
  readonly #onUnkept: (network: string) => void
  readonly #peers = new PeerTable()
  readonly #refused = new RefusedTable()
  readonly #newest = new Map<string, NewestAccepted>()
  readonly #deviceFailed = new Set<WireGuardKey>()
  /** Refusals that may have passed. */
  readonly #retryDue = new Set<ErrorCode>()
  #retriedAtMs = -Infinity
  /** Per network, the latest notAfter at which a peer was ended, and whose time it was. */
  readonly #ended = new Map<string, { readonly untilMs: number; readonly issuerKeyId: string | undefined }>()

  constructor(options: RegisterOptions) {
    this.#trust = options.trust
    this.#own = options.own
    this.#outbox = options.outbox
    this.#onUnkept = options.onUnkept
  }

  get size(): number {
    return this.#peers.size
  }

  get wanted(): ReadonlyMap<WireGuardKey, WantedPeer> {
    return this.#peers.wanted
  }

  get hasChanges(): boolean {
    return this.#peers.hasChanges
  }

  /** The keys whose wanted state may have changed since the last call. */
  takeChangedKeys(): ReadonlySet<WireGuardKey> {
    return this.#peers.takeChangedKeys()
  }

  /** Parses, or finds the very same certificate among those known: its signature need not be checked again. */
  read(network: string, text: string): Certificate | undefined {
    const der = Buffer.from(text, 'base64')
    try {
      const parsed = parseCertificate(der)
      const known =
        this.#peers.findBySerial(network, parsed.serial)?.certificate ??
        this.#refused.find(network, parsed.serial)?.certificate
      return known?.der.equals(der) === true ? known : parsed
    } catch (error) {
      const reason = error instanceof Error ? error.message : 'unknown'
      this.#outbox.notice('warn', 'certificate cannot be read', { network, code: errorCode(error), reason })
      return undefined
    }
  }

  /** The identity that the certificate is, or may soon be, a peer of; undefined when it will never be one. */
  findClaim(network: string, certificate: Certificate, clock: Date): string | undefined {
    const decision = this.#evaluate(certificate, network, 'add', clock)
    return decision.kind === 'admit' || decision.passing ? certificate.sanUris[0] : undefined
  }

  offer(network: string, certificate: Certificate, clock: Date): void {
    const known = this.#peers.findBySerial(network, certificate.serial)
    if (known?.certificate === certificate) {
      this.#forgetForgery(certificate.serial, network)
      return
    }
    const decision = this.#evaluate(certificate, network, 'add', clock)
    if (decision.kind === 'admit' && !this.#hasRoomFor(decision.facts.uri)) {
      const reason = `an interface takes ${MAX_PEERS} peers`
      this.#refuse(network, certificate, { kind: 'refuse', code: 'pool_exhausted', reason, passing: true }, false)
    } else if (decision.kind === 'admit') {
      this.#admit({ network, certificate, facts: decision.facts })
    } else {
      this.#refuse(network, certificate, decision, false)
    }
  }

  takeAway(network: string, serial: string): void {
    const peer = this.#peers.findBySerial(network, serial)
    if (peer !== undefined) this.#drop(peer)
    const refused = this.#refused.find(network, serial)
    if (refused !== undefined) this.#forget(refused)
  }

  /** Takes away whatever is not among `offered`; an identity in `claims` keeps its place all the same. */
  keepOnly(network: string, offered: readonly Certificate[], claims: ReadonlySet<string>): void {
    const named = new Set(offered)
    for (const peer of [...this.#peers]) {
      if (peer.network !== network || named.has(peer.certificate) || claims.has(peer.facts.uri)) continue
      this.#drop(peer)
    }
    const namedSerials = new Set<string>(offered.map(({ serial }) => serial))
    for (const refused of [...this.#refused]) {
      if (refused.network === network && !namedSerials.has(refused.certificate.serial)) this.#forget(refused)
    }
  }

  /** What was refused may be admitted now, because this has come. */
  retrySoon(cause: keyof typeof HELPS): void {
    for (const code of HELPS[cause]) this.#retryDue.add(code)
    if (cause !== 'issuer') return
    // A CA may be known by an older certificate with a smaller block, or one that has run out.
    const helped: readonly ErrorCode[] = HELPS.issuer
    for (const refused of [...this.#refused]) {
      if (helped.includes(refused.code)) this.#refused.set({ ...refused, passing: true })
    }
  }

  /** Takes down who is revoked by what the issuer's newest CRL says. */
  enforceRevocations(issuer: Certificate, clock: Date): void {
    const isRevoked = ({ facts }: AdmittedPeer) =>
      this.#trust.isRevoked(facts.issuerKeyId, facts.serial) || this.#trust.isIssuerRevoked(facts.issuerKeyId)
    const concerned =
      issuer.keyId === this.#trust.pinned.root.keyId
        ? isRevoked
        : (peer: AdmittedPeer) => peer.facts.issuerKeyId === issuer.keyId && isRevoked(peer)
    for (const peer of [...this.#peers].filter(concerned)) {
      this.#drop(peer)
      const { network, certificate, facts } = peer
      const { serial, issuerKeyId } = facts
      // At once in the records: the CRL's own file is written a moment later.
      const droppedAt = this.#trust.now(clock).toISOString()
      this.#outbox.records.push({ type: 'revoked', issuerKeyId, serial, droppedAt })
      const reason = 'its CRL names it'
      this.#refuse(network, certificate, { kind: 'refuse', code: 'certificate_revoked', reason, passing: false }, false)
      this.#outbox.notice('info', 'revoked peer removed', { network, serial, device: facts.id })
    }
    const own = this.#own()
    if (this.#peers.size > 0 && isOwnRevoked(this.#trust, own)) {
      this.#outbox.notice('error', "this gateway's own certificate is revoked: it must join again", {
        serial: own.serial,
      })
      this.#suspendWhere(() => true, 'certificate_revoked')
    }
  }

  /** The network has begun to require that possession of the key was proven. */
  requirePossession(network: string): void {
    this.#suspendWhere((peer) => peer.network === network && !peer.facts.possession, 'policy_denied')
  }

  /** Our own certificate is another: everybody is asked again, and who may stay is put back before the device hears. */
  askEverybodyAgain(clock: Date): void {
    const peers = [...this.#peers]
    for (const peer of peers) this.#peers.remove(peer)
    for (const { network, certificate } of peers) this.#putBack(network, certificate, clock)
    for (const refused of [...this.#refused]) {
      this.#refused.set({ ...refused, passing: true })
      this.#retryDue.add(refused.code)
    }
  }

  /** What time brings: ends, the rule for old CRLs, and another look at what was refused for now. */
  settle(clock: Date): void {
    for (const { network, facts } of this.#peers.takeExpired((keyId) => this.#trust.now(clock, keyId))) {
      this.#outbox.notice('info', 'expired peer removed', { network, serial: facts.serial, device: facts.id })
      this.#outbox.records.push({ type: 'gone', identity: facts.uri })
      this.#noteEnd(network, facts.notAfter, facts.issuerKeyId)
      this.retrySoon('room')
    }
    this.#enforceStaleRule(clock)
    const nowMs = clock.getTime()
    // A clock that was set back must not stop the asking.
    if (Math.abs(nowMs - this.#retriedAtMs) >= RETRY_MS) {
      this.#retriedAtMs = nowMs
      this.retrySoon('time')
    }
    if (this.#refused.size > 0 && this.#retryDue.size > 0) this.#retry(clock)
    this.#retryDue.clear()
  }

  /** Networks whose peers were ended by a clock that ran ahead, as it shows now: they have to be stated again. */
  takeEndedEarly(clock: Date): string[] {
    const early: string[] = []
    for (const [network, { untilMs, issuerKeyId }] of this.#ended) {
      if (this.#trust.now(clock, issuerKeyId).getTime() + CLOCK_WAVERS_MS >= untilMs) continue
      this.#ended.delete(network)
      early.push(network)
    }
    return early
  }

  /** When `settle` has something to do next; undefined when nothing is due by time. */
  nextDeadlineMs(clock: Date): number | undefined {
    const nowMs = clock.getTime()
    const instants: number[] = []
    const expiryMs = this.#peers.nextExpiryAtMs
    if (expiryMs !== undefined) instants.push(expiryMs)
    for (const { document } of this.#trust.documents.values()) {
      if (document.staleCrl.action !== 'remove' || this.#peers.size === 0) continue
      for (const { nextUpdate } of this.#trust.crls.values()) {
        const staleMs = nextUpdate.getTime() + document.staleCrl.graceSeconds * 1000 + 1
        if (staleMs > nowMs) instants.push(staleMs)
      }
    }
    if (this.#refused.hasPassing(HELPS.time)) instants.push(nowMs + RETRY_MS)
    return instants.length === 0 ? undefined : Math.min(...instants)
  }

  /** Everything that is stated of the network and not on the device, as of now. */
  listFailed(network: string): { serial: Serial; code: ErrorCode }[] {
    const failed: { serial: Serial; code: ErrorCode }[] = []
    for (const { network: of, certificate, code } of this.#refused) {
      if (of === network) failed.push({ serial: certificate.serial, code })
    }
    for (const key of this.#deviceFailed) {
      const peer = this.#peers.findByKey(key)
      if (peer?.network === network) failed.push({ serial: peer.facts.serial, code: 'device_failed' })
    }
    return failed
  }

  /** Which peers the device does not take; their networks are acknowledged anew. */
  setDeviceFailures(keys: ReadonlySet<WireGuardKey>): void {
    for (const key of new Set([...keys, ...this.#deviceFailed])) {
      if (keys.has(key) === this.#deviceFailed.has(key)) continue
      const peer = this.#peers.findByKey(key)
      if (peer !== undefined) this.#outbox.touched.add(peer.network)
      if (keys.has(key)) this.#deviceFailed.add(key)
      else this.#deviceFailed.delete(key)
    }
  }

  /** False while something that was stated of the network is kept in memory alone. */
  isRecorded(network: string): boolean {
    for (const refused of this.#refused) {
      if (refused.network === network && refused.passing && !refused.suspended) return false
    }
    return true
  }

  /** Takes peers back from the records of an earlier process, each judged again but for the age of the CRL. */
  restore(peers: Iterable<RestoredPeer>, clock: Date): void {
    for (const { network, certificate } of peers) {
      if (!this.#putBack(network, certificate, clock)) this.#noteEnd(network, certificate.notAfter)
    }
  }

  /** Reads what one record says of peers into `peers`, by identity. Throws for what does not verify. */
  readRecord(record: JournalRecord, peers: Map<string, RestoredPeer>, clock: Date): void {
    switch (record.type) {
      case 'peer': {
        const certificate = parseCertificate(Buffer.from(record.certificate, 'base64'))
        const { uri, notBefore, serial, issuerKeyId } = readAuthentic(certificate, this.#trust)
        this.#restoreNewest(uri, { notBefore, serial, issuerKeyId })
        peers.set(uri, { network: record.network, certificate })
        return
      }
      case 'gone':
        peers.delete(record.identity)
        return
      case 'newest': {
        const { identity, issuerKeyId } = record
        const notBefore = new Date(record.notBefore)
        // The certificate itself is gone. A damaged line must not lock an identity out for good.
        if (notBefore.getTime() > this.#trust.now(clock, issuerKeyId).getTime() + CLOCK_SKEW_MS) return
        this.#restoreNewest(identity, { notBefore, serial: parseSerial(record.serial), issuerKeyId })
        return
      }
      case 'issuer':
      case 'revoked':
      case 'revision':
        return
      default:
        record satisfies never
    }
  }

  /** The records from which `readRecord` makes the same again. */
  *dump(clock: Date): Generator<JournalRecord> {
    this.#forgetOldest(clock)
    for (const [identity, { notBefore, serial, issuerKeyId }] of this.#newest) {
      yield { type: 'newest', identity, notBefore: notBefore.toISOString(), serial, issuerKeyId }
    }
    for (const { network, certificate } of this.#peers) yield peerRecord(network, certificate)
    for (const { network, certificate, suspended } of this.#refused) {
      if (suspended) yield peerRecord(network, certificate)
    }
  }

  #admit(peer: AdmittedPeer): void {
    const { uri, notBefore, serial, issuerKeyId } = peer.facts
    this.#peers.set(peer)
    this.#newest.set(uri, { notBefore, serial, issuerKeyId })
    this.#outbox.records.push(peerRecord(peer.network, peer.certificate))
    this.#outbox.touched.add(peer.network)
    // What was refused of the same identity is overtaken.
    for (const refused of this.#refused.claiming(uri)) {
      if (refused.certificate.notBefore <= notBefore) this.#refused.delete(refused)
    }
    this.#forgetForgery(serial, peer.network)
  }

  /** Other bytes under a peer's serial number were stated and refused; now the peer's own are, so nothing has failed. */
  #forgetForgery(serial: Serial, network: string): void {
    const refused = this.#refused.find(network, serial)
    if (refused === undefined) return
    this.#refused.delete(refused)
    this.#outbox.touched.add(network)
  }

  #refuse(
    network: string,
    certificate: Certificate,
    { code, reason, passing }: Extract<Decision, { kind: 'refuse' }>,
    suspended: boolean,
  ): void {
    const before = this.#refused.find(network, certificate.serial)
    this.#outbox.touched.add(network)
    if (before === undefined && !suspended && this.#refused.size >= MAX_REFUSED) {
      this.#onUnkept(network)
      return
    }
    this.#refused.set({
      network,
      certificate,
      code,
      passing,
      suspended: suspended || before?.suspended === true,
    })
    if (before?.code !== code) {
      this.#outbox.notice('warn', 'certificate refused', { network, serial: certificate.serial, code, reason })
    }
  }

  /** A peer of before: it is among the records, whether it may stay or not. False when it has run out. */
  #putBack(network: string, certificate: Certificate, clock: Date): boolean {
    const decision = this.#evaluate(certificate, network, 'restore', clock)
    if (decision.kind === 'admit') this.#peers.set({ network, certificate, facts: decision.facts })
    else if (isOver(decision)) return false
    else this.#refuse(network, certificate, decision, true)
    return true
  }

  #noteEnd(network: string, notAfter: Date, issuerKeyId?: string): void {
    if ((this.#ended.get(network)?.untilMs ?? -Infinity) > notAfter.getTime()) return
    this.#ended.set(network, { untilMs: notAfter.getTime(), issuerKeyId })
  }

  #drop(peer: AdmittedPeer): void {
    this.#peers.remove(peer)
    this.#outbox.records.push({ type: 'gone', identity: peer.facts.uri })
    this.#outbox.touched.add(peer.network)
    this.retrySoon('room')
  }

  #forget(refused: RefusedCertificate): void {
    const { network, certificate, suspended } = refused
    this.#refused.delete(refused)
    this.#outbox.touched.add(network)
    const [identity] = certificate.sanUris
    if (suspended && identity !== undefined && this.#peers.find(identity) === undefined) {
      this.#outbox.records.push({ type: 'gone', identity })
    }
  }

  /** Takes peers off the device that may come back; they stay among the records. */
  #suspendWhere(matches: (peer: AdmittedPeer) => boolean, code: ErrorCode): void {
    for (const peer of [...this.#peers].filter(matches)) {
      this.#peers.remove(peer)
      const reason = code === 'stale_crl' ? 'the CRL is older than the network allows' : 'the rules have changed'
      this.#refuse(peer.network, peer.certificate, { kind: 'refuse', code, reason, passing: true }, true)
    }
  }

  /** The network document's rule for peers under a CRL that has passed its nextUpdate. */
  #enforceStaleRule(clock: Date): void {
    for (const [network, { document }] of this.#trust.documents) {
      if (document.staleCrl.action !== 'remove') continue
      for (const [issuerKeyId, crl] of this.#trust.crls) {
        if (!this.#peers.hasIssuer(issuerKeyId)) continue
        const endsMs = crl.nextUpdate.getTime() + document.staleCrl.graceSeconds * 1000
        if (this.#trust.now(clock, issuerKeyId).getTime() <= endsMs) continue
        this.#suspendWhere((peer) => peer.network === network && peer.facts.issuerKeyId === issuerKeyId, 'stale_crl')
      }
    }
  }

  /** Asks again about what may have passed. */
  #retry(clock: Date): void {
    const isFresh = this.#freshness(clock)
    for (const refused of [...this.#refused]) {
      // One that came in just now may have overtaken it.
      if (!refused.passing || !this.#retryDue.has(refused.code) || !this.#refused.has(refused)) continue
      // Thousands may wait for one CRL, or for room.
      if (refused.code === 'stale_crl' && !isFresh(refused.certificate)) continue
      if (refused.code === 'pool_exhausted' && !this.#hasRoomFor(refused.certificate.sanUris[0] ?? '')) continue
      const { network, certificate, suspended } = refused
      const decision = this.#evaluate(certificate, network, 'add', clock)
      if (decision.kind === 'refuse' && decision.code === refused.code && decision.passing) continue
      if (decision.kind === 'admit' && !this.#hasRoomFor(decision.facts.uri)) continue
      this.#refused.delete(refused)
      this.#outbox.touched.add(network)
      if (decision.kind === 'admit') this.#admit({ network, certificate, facts: decision.facts })
      else if (!isOver(decision)) this.#refuse(network, certificate, decision, suspended)
    }
  }

  /** Whether the CRL of a certificate's issuer is fresh, asked once for each issuer. */
  #freshness(clock: Date): (certificate: Certificate) => boolean {
    const known = new Map<string | undefined, boolean>()
    return ({ authorityKeyId }) => {
      let isFresh = known.get(authorityKeyId)
      if (isFresh === undefined) {
        const issuer = this.#trust.issuers.find(({ subjectKeyId }) => subjectKeyId === authorityKeyId)
        isFresh = issuer !== undefined && this.#trust.isFresh(issuer.keyId, clock)
        known.set(authorityKeyId, isFresh)
      }
      return isFresh
    }
  }

  #hasRoomFor(uri: string): boolean {
    return this.#peers.size < MAX_PEERS || this.#peers.find(uri) !== undefined
  }

  #evaluate(certificate: Certificate, network: string, mode: 'add' | 'restore', clock: Date): Decision {
    const context: AdmissionContext = {
      trust: this.#trust,
      own: this.#own(),
      holderOfKey: (key) => this.#peers.findByKey(key)?.facts.uri,
      holderOfAddress: (address) => this.#peers.findByAddress(address)?.facts.uri,
      newestAccepted: (uri) => this.#newest.get(uri),
      clock,
    }
    return evaluateAdmission({ certificate, network, mode }, context)
  }

  #restoreNewest(uri: string, newest: NewestAccepted): void {
    const held = this.#newest.get(uri)
    if (held === undefined || newest.notBefore > held.notBefore) this.#newest.set(uri, newest)
  }

  /** No certificate older than these can be valid any more. */
  #forgetOldest(clock: Date): void {
    const oldestMs = this.#trust.now(clock).getTime() - MAX_DEVICE_LIFETIME_MS - CLOCK_SKEW_MS
    for (const [uri, { notBefore }] of this.#newest) {
      if (notBefore.getTime() < oldestMs && this.#peers.find(uri) === undefined) this.#newest.delete(uri)
    }
  }
}

function peerRecord(network: string, certificate: Certificate): JournalRecord {
  return { type: 'peer', network, certificate: certificate.der.toString('base64') }
}

/** Nothing is left to be said of a certificate that has expired. */
function isOver({ code, passing }: Extract<Decision, { kind: 'refuse' }>): boolean {
  return code === 'certificate_expired' && !passing
}
