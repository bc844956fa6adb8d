/**
 * The session: what the control plane says, what was verified of it, and what follows for the device. A pure state
 * machine: messages and the clock go in; wanted peers, records for the disk and acknowledgements come out. It believes
 * no message: `evaluateAdmission` decides on every certificate, and an unsigned removal only removes.
 */
import { CertpeerError, errorCode } from '../../core/errors.ts'
import type { ErrorCode } from '../../core/errors.ts'
import type { DownMessage, UpMessage } from '../../core/messages/stream.ts'
import type { VerifiedNetworkDocument } from '../../core/messages/network-document.ts'
import type { WantedPeer } from '../../core/wireguard/diff.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import { parseCertificate, type Certificate } from '../../core/x509/certificate.ts'
import type { Crl } from '../../core/x509/crl.ts'
import { parseSerial, type Serial } from '../../core/x509/serial.ts'
import { evaluateAdmission, isOwnRevoked, readAuthentic } from './admission.ts'
import type { AdmissionContext, Decision, NewestAccepted, OwnIdentity } from './admission.ts'
import { PeerTable, type AdmittedPeer } from './peer-table.ts'
import type { JournalRecord } from '../../core/messages/gateway-journal.ts'
import { RefusedTable, type RefusedCertificate } from './refused-table.ts'
import { CLOCK_SKEW_MS, MAX_DEVICE_LIFETIME_MS, type TrustStore } from './trust-store.ts'

/** wireguard-go takes no more peers on an interface. */
export const MAX_PEERS = 65_536
/** Refused certificates that are kept; only somebody who means harm sends more. */
const MAX_REFUSED = MAX_PEERS
/** Changes that arrive while a snapshot does; beyond it another snapshot is asked for. */
const MAX_QUEUED = 10_000
/** Most that an `applied` may name. */
const MAX_FAILED = 1000
/** How often what only time can heal is asked again. */
const RETRY_MS = 5000
const RESYNC_AGAIN_MS = 5000

export interface Notice {
  readonly level: 'info' | 'warn' | 'error'
  readonly message: string
  readonly fields: Readonly<Record<string, string | number>>
}

/** What has to be done, in this order: replies and records at once, the device next, acknowledgements after it. */
export interface Work {
  readonly replies: readonly UpMessage[]
  readonly records: readonly JournalRecord[]
  readonly crls: readonly { readonly issuerKeyId: string; readonly crl: Crl }[]
  readonly documents: readonly VerifiedNetworkDocument[]
  readonly changedKeys: ReadonlySet<WireGuardKey>
  readonly acks: readonly Acknowledgement[]
  readonly notices: readonly Notice[]
}

/** What is on disk: records in their order, CRLs in DER, network documents as JWS. */
export interface SavedState {
  readonly records: readonly JournalRecord[]
  readonly crls: readonly Buffer[]
  readonly documents: readonly string[]
}

export type Acknowledgement =
  | { readonly kind: 'applied'; readonly network: string; readonly revision: number }
  | { readonly kind: 'crl'; readonly issuerKeyId: string; readonly number: bigint }

interface NetworkState {
  /** The last revision that is wholly known. */
  revision: number
  /** False until a snapshot came or the records brought one. */
  synced: boolean
  /** Milliseconds on the clock; undefined while no snapshot is awaited. */
  resyncAskedAtMs: number | undefined
  partial: { readonly revision: number; readonly offered: Certificate[]; readonly claims: Set<string> } | undefined
  readonly queue: (SetMessage | RemoveMessage)[]
}

type SetMessage = Extract<DownMessage, { type: 'set' }>
type RemoveMessage = Extract<DownMessage, { type: 'remove' }>
type SnapshotMessage = Extract<DownMessage, { type: 'snapshot' }>

export class GatewaySession {
  readonly trust: TrustStore
  readonly #endpoint: string
  #own: OwnIdentity
  readonly #peers = new PeerTable()
  readonly #networks = new Map<string, NetworkState>()
  readonly #newest = new Map<string, NewestAccepted>()
  readonly #refused = new RefusedTable()
  readonly #deviceFailed = new Set<WireGuardKey>()
  #retryDue = false
  #retriedAtMs = -Infinity

  #replies: UpMessage[] = []
  #records: JournalRecord[] = []
  #crls: Work['crls'][number][] = []
  #documents: VerifiedNetworkDocument[] = []
  #notices: Notice[] = []
  #touched = new Set<string>()
  #crlAcks = new Map<string, bigint>()

  constructor(options: { readonly trust: TrustStore; readonly own: OwnIdentity; readonly endpoint: string }) {
    this.trust = options.trust
    this.#own = options.own
    this.#endpoint = options.endpoint
    this.#adoptNetworks()
  }

  get own(): OwnIdentity {
    return this.#own
  }

  get peerCount(): number {
    return this.#peers.size
  }

  /** The admitted peers as the device shall hold them. */
  get wanted(): ReadonlyMap<WireGuardKey, WantedPeer> {
    return this.#peers.wanted
  }

  get hasWork(): boolean {
    return (
      this.#peers.hasChanges ||
      this.#replies.length + this.#records.length + this.#crls.length + this.#documents.length > 0 ||
      this.#notices.length + this.#touched.size + this.#crlAcks.size > 0
    )
  }

  /** The first message of a stream, and what the server may have missed of our acknowledgements. */
  connected(clock: Date): void {
    this.#replies = []
    const revisions: Record<string, number> = {}
    for (const [network, state] of this.#networks) {
      state.partial = undefined
      state.queue.length = 0
      revisions[network] = state.synced ? state.revision : 0
      state.resyncAskedAtMs = state.synced ? undefined : clock.getTime()
      if (state.synced) this.#touched.add(network)
    }
    this.#replies.push({ type: 'hello', endpoint: this.#endpoint, revisions })
    for (const [issuerKeyId, { number }] of this.trust.crls) this.#crlAcks.set(issuerKeyId, number)
  }

  /** Takes one message of the stream. Never throws for what it says: what is refused is told by notices. */
  receive(message: DownMessage, clock: Date): void {
    switch (message.type) {
      case 'issuers':
        for (const certificate of message.certificates) {
          this.#guard('issuing CA refused', () => this.acceptIssuer(Buffer.from(certificate, 'base64'), clock))
        }
        break
      case 'network':
        this.#guard('network document refused', () => this.acceptDocument(message.document, clock))
        break
      case 'crl':
        this.#guard('crl refused', () => this.acceptCrl(Buffer.from(message.crl, 'base64'), clock))
        break
      case 'snapshot':
        this.#receiveSnapshot(message, clock)
        break
      case 'set':
      case 'remove':
        this.#receiveChange(message, clock)
        break
      case 'ping':
        this.#replies.push({ type: 'pong' })
        break
      default:
        message satisfies never
    }
    this.#settle(clock)
  }

  /** Throws what the trust store throws. The stream and the pki listener both lead here. */
  acceptIssuer(der: Buffer, clock: Date): void {
    if (!this.trust.acceptIssuer(der, clock)) return
    this.#records.push({ type: 'issuer', certificate: der.toString('base64') })
    this.#retryDue = true
    this.#settle(clock)
  }

  acceptDocument(jws: string, clock: Date): void {
    const document = this.trust.acceptDocument(jws, this.#own.networks, clock)
    if (document === undefined) return
    this.#documents.push(document)
    const { tenant, network, number, possession } = document.document
    const key = `${tenant}/${network}`
    this.#notices.push({ level: 'info', message: 'network document accepted', fields: { network: key, number } })
    if (possession === 'required') {
      this.#suspendWhere((peer) => peer.network === key && !peer.facts.possession, 'policy_denied')
    }
    this.#retryDue = true
    this.#settle(clock)
  }

  acceptCrl(der: Buffer, clock: Date): void {
    const accepted = this.trust.acceptCrl(der, clock)
    const { crl, issuer } = accepted
    this.#crlAcks.set(issuer.keyId, crl.number)
    if (accepted.kind === 'same') return
    this.#crls.push({ issuerKeyId: issuer.keyId, crl })
    for (const { issuerKeyId, serial, droppedAt } of accepted.dropped) {
      this.#records.push({ type: 'revoked', issuerKeyId, serial, droppedAt: droppedAt.toISOString() })
    }
    this.#enforceRevocations(issuer, clock)
    this.#retryDue = true
    this.#settle(clock)
  }

  /** What only time brings: ends, the rule for old CRLs, and another look at what was refused for now. */
  tick(clock: Date): void {
    this.#settle(clock)
  }

  /** When `tick` has something to do next; undefined when nothing is due by time. */
  nextDeadline(clock: Date): Date | undefined {
    const nowMs = clock.getTime()
    const instants: number[] = []
    const expiryMs = this.#peers.nextExpiryAtMs
    if (expiryMs !== undefined) instants.push(expiryMs)
    for (const { document } of this.trust.documents.values()) {
      if (document.staleCrl.action !== 'remove' || this.#peers.size === 0) continue
      for (const { nextUpdate } of this.trust.crls.values()) {
        const staleMs = nextUpdate.getTime() + document.staleCrl.graceSeconds * 1000 + 1
        if (staleMs > nowMs) instants.push(staleMs)
      }
    }
    if (this.#refused.hasPassing) instants.push(nowMs + RETRY_MS)
    return instants.length === 0 ? undefined : new Date(Math.min(...instants))
  }

  /** A renewed certificate of our own: networks or addresses may be others. */
  setOwn(own: OwnIdentity, clock: Date): void {
    this.#own = own
    this.#adoptNetworks()
    // Everybody is asked again; whoever may stay is put back before the device hears of it.
    const peers = [...this.#peers]
    for (const peer of peers) this.#peers.remove(peer)
    for (const { network, certificate } of peers) {
      const decision = this.#evaluate(certificate, network, 'restore', clock)
      if (decision.kind === 'admit') this.#peers.set({ network, certificate, facts: decision.facts })
      else this.#refuse(network, certificate, decision, true)
    }
    for (const refused of [...this.#refused]) this.#refused.set({ ...refused, passing: true })
    this.#retryDue = true
    this.#settle(clock)
  }

  /**
   * Takes back what an earlier process wrote down. Everything is verified again, and each certificate is judged again,
   * but for the age of the CRL. What cannot be believed is passed over and told.
   */
  restore({ records, crls, documents }: SavedState, clock: Date): void {
    for (const record of records) {
      if (record.type === 'issuer') this.#guard('record refused', () => this.#restoreRecord(record, new Map(), clock))
    }
    for (const der of crls) this.#guard('stored crl refused', () => this.trust.acceptCrl(der, clock))
    for (const jws of documents) {
      this.#guard('stored network document refused', () => this.trust.acceptDocument(jws, this.#own.networks, clock))
    }
    const peers = new Map<string, { network: string; certificate: Certificate }>()
    for (const record of records) this.#guard('record refused', () => this.#restoreRecord(record, peers, clock))
    for (const { network, certificate } of peers.values()) {
      const decision = this.#evaluate(certificate, network, 'restore', clock)
      if (decision.kind === 'admit') this.#peers.set({ network, certificate, facts: decision.facts })
      else if (!isOver(decision)) this.#refuse(network, certificate, decision, true)
    }
    this.#records = []
    this.#touched.clear()
    this.#settle(clock)
  }

  /** Everything that `restore` needs, for writing the records anew. */
  *dump(clock: Date): Generator<JournalRecord> {
    for (const { der } of this.trust.issuers) yield { type: 'issuer', certificate: der.toString('base64') }
    for (const { issuerKeyId, serial, droppedAt } of this.trust.droppedRevocations(clock)) {
      yield { type: 'revoked', issuerKeyId, serial, droppedAt: droppedAt.toISOString() }
    }
    this.#forgetOldest(clock)
    for (const [identity, { notBefore, serial, issuerKeyId }] of this.#newest) {
      yield { type: 'newest', identity, notBefore: notBefore.toISOString(), serial, issuerKeyId }
    }
    for (const { network, certificate } of this.#peers) yield peerRecord(network, certificate)
    for (const { network, certificate, suspended } of this.#refused) {
      if (suspended) yield peerRecord(network, certificate)
    }
    for (const network of this.#networks.keys()) yield this.#revisionRecord(network)
  }

  /** Hands over what has gathered since the last call. */
  takeWork(): Work {
    for (const network of this.#touched) this.#records.push(this.#revisionRecord(network))
    const acks: Acknowledgement[] = []
    for (const network of this.#touched) {
      const state = this.#networks.get(network)
      if (state?.synced === true) acks.push({ kind: 'applied', network, revision: state.revision })
    }
    for (const [issuerKeyId, number] of this.#crlAcks) acks.push({ kind: 'crl', issuerKeyId, number })
    const work = {
      replies: this.#replies,
      records: this.#records,
      crls: this.#crls,
      documents: this.#documents,
      changedKeys: this.#peers.takeChangedKeys(),
      acks,
      notices: this.#notices,
    }
    this.#replies = []
    this.#records = []
    this.#crls = []
    this.#documents = []
    this.#notices = []
    this.#touched = new Set()
    this.#crlAcks = new Map()
    return work
  }

  /** Gives an acknowledgement back that could not be sent, so that it is made again. */
  acknowledgeLater(acks: readonly Acknowledgement[]): void {
    for (const ack of acks) {
      if (ack.kind === 'applied') this.#touched.add(ack.network)
      else this.#crlAcks.set(ack.issuerKeyId, this.trust.crls.get(ack.issuerKeyId)?.number ?? ack.number)
    }
  }

  /** The message for an acknowledgement: `failed` is everything that is stated and not on the device, as of now. */
  acknowledgement(ack: Acknowledgement): UpMessage {
    if (ack.kind === 'crl') {
      return { type: 'crl-applied', issuerKeyId: ack.issuerKeyId, number: String(ack.number) }
    }
    const failed: { serial: string; code: string }[] = []
    for (const { network, certificate, code } of this.#refused) {
      if (network === ack.network) failed.push({ serial: certificate.serial, code })
    }
    for (const key of this.#deviceFailed) {
      const peer = this.#peers.findByKey(key)
      if (peer?.network === ack.network) failed.push({ serial: peer.facts.serial, code: 'device_failed' })
    }
    const { network, revision } = ack
    return { type: 'applied', network, revision, failed: failed.slice(0, MAX_FAILED) }
  }

  /** Which peers the device does not take; their networks are acknowledged anew. */
  setDeviceFailures(keys: ReadonlySet<WireGuardKey>): void {
    for (const key of new Set([...keys, ...this.#deviceFailed])) {
      if (keys.has(key) === this.#deviceFailed.has(key)) continue
      const peer = this.#peers.findByKey(key)
      if (peer !== undefined) this.#touched.add(peer.network)
      if (keys.has(key)) this.#deviceFailed.add(key)
      else this.#deviceFailed.delete(key)
    }
  }

  #receiveSnapshot(message: SnapshotMessage, clock: Date): void {
    const { network, revision } = message
    const state = this.#networkOf(network)
    if (state === undefined) return
    if (state.partial?.revision !== revision) state.partial = { revision, offered: [], claims: new Set() }
    const { partial } = state
    for (const text of message.certificates) {
      if (partial.offered.length >= MAX_PEERS) {
        this.#notice('warn', 'snapshot has more peers than an interface takes', { network })
        break
      }
      const certificate = this.#parse(network, text)
      if (certificate === undefined) continue
      partial.offered.push(certificate)
      // Verified part by part: all at once would stop everything else, revocations too, for seconds.
      const decision = this.#evaluate(certificate, network, 'add', clock)
      const [uri] = certificate.sanUris
      if (uri !== undefined && (decision.kind === 'admit' || decision.passing)) partial.claims.add(uri)
    }
    if (!message.more) this.#finishSnapshot(network, state, partial, clock)
  }

  /** What is not named goes first; a peer whose newer certificate cannot be taken yet keeps its place till then. */
  #finishSnapshot(
    network: string,
    state: NetworkState,
    { revision, offered, claims }: NonNullable<NetworkState['partial']>,
    clock: Date,
  ): void {
    const named = new Set(offered)
    for (const peer of [...this.#peers]) {
      if (peer.network !== network || named.has(peer.certificate) || claims.has(peer.facts.uri)) continue
      this.#drop(peer)
    }
    const namedSerials = new Set<string>(offered.map(({ serial }) => serial))
    for (const refused of [...this.#refused]) {
      if (refused.network === network && !namedSerials.has(refused.certificate.serial)) this.#forget(refused)
    }
    for (const certificate of offered) this.#offer(network, certificate, clock)
    state.partial = undefined
    state.revision = revision
    state.synced = true
    state.resyncAskedAtMs = undefined
    this.#touched.add(network)
    this.#notice('info', 'snapshot taken', { network, revision, peers: this.#peers.size })
    for (const queued of state.queue.splice(0)) this.#receiveChange(queued, clock)
  }

  #receiveChange(message: SetMessage | RemoveMessage, clock: Date): void {
    const { network, revision } = message
    const state = this.#networkOf(network)
    if (state === undefined) return
    if (state.partial !== undefined) {
      // It counts on what the snapshot brings. A removal need not wait: it cannot do harm.
      if (message.type === 'remove') this.#takeAway(network, message.serial)
      if (state.queue.length < MAX_QUEUED) state.queue.push(message)
      return
    }
    if (state.synced && revision <= state.revision) {
      this.#touched.add(network)
      return
    }
    if (!state.synced || revision !== state.revision + 1) {
      if (message.type === 'remove') this.#takeAway(network, message.serial)
      this.#askForSnapshot(network, state, clock)
      return
    }
    if (message.type === 'remove') {
      this.#takeAway(network, message.serial)
    } else {
      const certificate = this.#parse(network, message.certificate)
      if (certificate !== undefined) this.#offer(network, certificate, clock)
    }
    state.revision = revision
    this.#touched.add(network)
  }

  /** Asked again after a while: the server answers a second request within one second with nothing. */
  #askForSnapshot(network: string, state: NetworkState, clock: Date): void {
    const nowMs = clock.getTime()
    if (state.resyncAskedAtMs !== undefined && Math.abs(nowMs - state.resyncAskedAtMs) < RESYNC_AGAIN_MS) return
    state.resyncAskedAtMs = nowMs
    this.#replies.push({ type: 'resync', network })
  }

  /** Parses, or finds the very same certificate among those known: its signature need not be checked again. */
  #parse(network: string, text: string): Certificate | undefined {
    const der = Buffer.from(text, 'base64')
    try {
      const parsed = parseCertificate(der)
      const known =
        this.#peers.findBySerial(network, parsed.serial)?.certificate ??
        this.#refused.find(network, parsed.serial)?.certificate
      return known?.der.equals(der) === true ? known : parsed
    } catch (error) {
      this.#notice('warn', 'certificate cannot be read', { network, code: errorCode(error), reason: textOf(error) })
      return undefined
    }
  }

  #offer(network: string, certificate: Certificate, clock: Date): void {
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

  #admit(peer: AdmittedPeer): void {
    const { uri, notBefore, serial, issuerKeyId } = peer.facts
    this.#peers.set(peer)
    this.#newest.set(uri, { notBefore, serial, issuerKeyId })
    this.#records.push(peerRecord(peer.network, peer.certificate))
    this.#touched.add(peer.network)
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
    this.#touched.add(network)
  }

  #refuse(
    network: string,
    certificate: Certificate,
    { code, reason, passing }: Extract<Decision, { kind: 'refuse' }>,
    suspended: boolean,
  ): void {
    const before = this.#refused.find(network, certificate.serial)
    this.#touched.add(network)
    if (before === undefined && !suspended && this.#refused.size >= MAX_REFUSED) {
      // Not kept, so it must be said again: a snapshot will.
      const state = this.#networks.get(network)
      if (state !== undefined) state.synced = false
      // Not asked for at once: it would only come again.
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
      this.#notice('warn', 'certificate refused', { network, serial: certificate.serial, code, reason })
    }
  }

  #takeAway(network: string, serial: string): void {
    const peer = this.#peers.findBySerial(network, serial)
    if (peer !== undefined) this.#drop(peer)
    const refused = this.#refused.find(network, serial)
    if (refused !== undefined) this.#forget(refused)
  }

  #drop(peer: AdmittedPeer): void {
    this.#peers.remove(peer)
    this.#records.push({ type: 'gone', identity: peer.facts.uri })
    this.#touched.add(peer.network)
    this.#retryDue = true
  }

  #forget(refused: RefusedCertificate): void {
    const { network, certificate, suspended } = refused
    this.#refused.delete(refused)
    this.#touched.add(network)
    const [identity] = certificate.sanUris
    if (suspended && identity !== undefined && this.#peers.find(identity) === undefined) {
      this.#records.push({ type: 'gone', identity })
    }
  }

  #enforceRevocations(issuer: Certificate, clock: Date): void {
    const isRevoked = ({ facts }: AdmittedPeer) =>
      this.trust.isRevoked(facts.issuerKeyId, facts.serial) || this.trust.isIssuerRevoked(facts.issuerKeyId)
    const concerned =
      issuer.keyId === this.trust.pinned.root.keyId
        ? isRevoked
        : (peer: AdmittedPeer) => peer.facts.issuerKeyId === issuer.keyId && isRevoked(peer)
    for (const peer of [...this.#peers].filter(concerned)) {
      this.#drop(peer)
      const { serial, issuerKeyId } = peer.facts
      // At once in the records: the CRL's own file is written a moment later.
      this.#records.push({ type: 'revoked', issuerKeyId, serial, droppedAt: this.trust.now(clock).toISOString() })
      const reason = 'its CRL names it'
      this.#refuse(
        peer.network,
        peer.certificate,
        { kind: 'refuse', code: 'certificate_revoked', reason, passing: false },
        false,
      )
      this.#notice('info', 'revoked peer removed', { network: peer.network, serial, device: peer.facts.id })
    }
    if (this.#peers.size > 0 && isOwnRevoked(this.trust, this.#own)) {
      this.#notice('error', "this gateway's own certificate is revoked: it must join again", {
        serial: this.#own.serial,
      })
      this.#suspendWhere(() => true, 'certificate_revoked')
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

  #settle(clock: Date): void {
    for (const { network, facts } of this.#peers.takeExpired((keyId) => this.trust.now(clock, keyId))) {
      this.#notice('info', 'expired peer removed', { network, serial: facts.serial, device: facts.id })
      this.#records.push({ type: 'gone', identity: facts.uri })
      this.#retryDue = true
    }
    this.#enforceStaleRule(clock)
    for (const [network, state] of this.#networks) {
      if (state.resyncAskedAtMs !== undefined && state.partial === undefined)
        this.#askForSnapshot(network, state, clock)
    }
    const nowMs = clock.getTime()
    // A clock that was set back must not stop the asking.
    const isTime = Math.abs(nowMs - this.#retriedAtMs) >= RETRY_MS
    if (this.#refused.size > 0 && (this.#retryDue || isTime)) this.#retry(clock)
    this.#retryDue = false
  }

  /** The network document's rule for peers under a CRL that has passed its nextUpdate. */
  #enforceStaleRule(clock: Date): void {
    for (const [network, { document }] of this.trust.documents) {
      if (document.staleCrl.action !== 'remove') continue
      for (const [issuerKeyId, crl] of this.trust.crls) {
        if (!this.#peers.hasIssuer(issuerKeyId)) continue
        const endsMs = crl.nextUpdate.getTime() + document.staleCrl.graceSeconds * 1000
        if (this.trust.now(clock, issuerKeyId).getTime() <= endsMs) continue
        this.#suspendWhere((peer) => peer.network === network && peer.facts.issuerKeyId === issuerKeyId, 'stale_crl')
      }
    }
  }

  /** Asks again about what may have passed. */
  #retry(clock: Date): void {
    this.#retriedAtMs = clock.getTime()
    for (const refused of [...this.#refused]) {
      // One that came in just now may have overtaken it.
      if (!refused.passing || !this.#refused.has(refused)) continue
      const { network, certificate, suspended } = refused
      const decision = this.#evaluate(certificate, network, 'add', clock)
      if (decision.kind === 'refuse' && decision.code === refused.code && decision.passing) continue
      if (decision.kind === 'admit' && !this.#hasRoomFor(decision.facts.uri)) continue
      this.#refused.delete(refused)
      this.#touched.add(network)
      if (decision.kind === 'admit') this.#admit({ network, certificate, facts: decision.facts })
      else if (!isOver(decision)) this.#refuse(network, certificate, decision, suspended)
    }
  }

  #hasRoomFor(uri: string): boolean {
    return this.#peers.size < MAX_PEERS || this.#peers.find(uri) !== undefined
  }

  #evaluate(certificate: Certificate, network: string, mode: 'add' | 'restore', clock: Date): Decision {
    const context: AdmissionContext = {
      trust: this.trust,
      own: this.#own,
      holderOfKey: (key) => this.#peers.findByKey(key)?.facts.uri,
      holderOfAddress: (address) => this.#peers.findByAddress(address)?.facts.uri,
      newestAccepted: (uri) => this.#newest.get(uri),
      clock,
    }
    return evaluateAdmission({ certificate, network, mode }, context)
  }

  #restoreRecord(
    record: JournalRecord,
    peers: Map<string, { network: string; certificate: Certificate }>,
    clock: Date,
  ): void {
    switch (record.type) {
      case 'issuer':
        this.trust.acceptIssuer(Buffer.from(record.certificate, 'base64'), clock)
        return
      case 'peer': {
        const certificate = parseCertificate(Buffer.from(record.certificate, 'base64'))
        const { uri, notBefore, serial, issuerKeyId } = readAuthentic(certificate, this.trust)
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
        if (notBefore.getTime() > this.trust.now(clock, issuerKeyId).getTime() + CLOCK_SKEW_MS) return
        this.#restoreNewest(identity, { notBefore, serial: parseSerial(record.serial), issuerKeyId })
        return
      }
      case 'revoked': {
        const { issuerKeyId, serial, droppedAt } = record
        this.trust.restoreDropped({ issuerKeyId, serial: parseSerial(serial), droppedAt: new Date(droppedAt) })
        return
      }
      case 'revision': {
        const state = this.#networks.get(record.network)
        if (state === undefined) return
        state.revision = record.revision
        state.synced = record.revision > 0
        return
      }
      default:
        record satisfies never
    }
  }

  #restoreNewest(uri: string, newest: NewestAccepted): void {
    const held = this.#newest.get(uri)
    if (held === undefined || newest.notBefore > held.notBefore) this.#newest.set(uri, newest)
  }

  /** No certificate older than these can be valid any more. */
  #forgetOldest(clock: Date): void {
    const oldestMs = this.trust.now(clock).getTime() - MAX_DEVICE_LIFETIME_MS - CLOCK_SKEW_MS
    for (const [uri, { notBefore }] of this.#newest) {
      if (notBefore.getTime() < oldestMs && this.#peers.find(uri) === undefined) this.#newest.delete(uri)
    }
  }

  /** 0 while something was said that is not among the records: after a restart it has to be said again. */
  #revisionRecord(network: string): JournalRecord {
    const state = this.#networks.get(network)
    let isWhole = state?.synced === true
    for (const refused of this.#refused) {
      if (refused.network === network && refused.passing && !refused.suspended) isWhole = false
    }
    return { type: 'revision', network, revision: isWhole ? (state?.revision ?? 0) : 0 }
  }

  #networkOf(network: string): NetworkState | undefined {
    const state = this.#networks.get(network)
    if (state === undefined) this.#notice('warn', 'message for a network that is not served', { network })
    return state
  }

  #adoptNetworks(): void {
    for (const network of this.#own.networks) {
      if (this.#networks.has(network)) continue
      this.#networks.set(network, {
        revision: 0,
        synced: false,
        resyncAskedAtMs: undefined,
        partial: undefined,
        queue: [],
      })
    }
    for (const network of [...this.#networks.keys()]) {
      if (!this.#own.networks.has(network)) this.#networks.delete(network)
    }
  }

  #guard(message: string, act: () => void): void {
    try {
      act()
    } catch (error) {
      if (!(error instanceof CertpeerError)) throw error
      this.#notice('warn', message, { code: error.code, reason: error.message })
    }
  }

  #notice(level: Notice['level'], message: string, fields: Notice['fields']): void {
    this.#notices.push({ level, message, fields })
  }
}

function peerRecord(network: string, certificate: Certificate): JournalRecord {
  return { type: 'peer', network, certificate: certificate.der.toString('base64') }
}

/** Nothing is left to be said of a certificate that has expired. */
function isOver({ code, passing }: Extract<Decision, { kind: 'refuse' }>): boolean {
  return code === 'certificate_expired' && !passing
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : 'unknown'
}
