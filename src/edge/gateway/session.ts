/**
 * The session: what the control plane says, and what follows for the device. A pure state machine: messages and the clock
 * go in; wanted peers, records for the disk and acknowledgements come out. This room keeps step with the stream, in
 * revisions and snapshots; it believes no message: `peer-register.ts` judges every certificate, and an unsigned removal
 * only removes.
 */
import { CertpeerError } from '../../core/errors.ts'
import type { JournalRecord } from '../../core/messages/gateway-journal.ts'
import type { VerifiedNetworkDocument } from '../../core/messages/network-document.ts'
import { MAX_FAILED, type DownMessage, type UpMessage } from '../../core/messages/stream.ts'
import type { WantedPeer } from '../../core/wireguard/diff.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import type { Crl } from '../../core/x509/crl.ts'
import { parseSerial } from '../../core/x509/serial.ts'
import type { OwnIdentity } from './admission.ts'
import { PeerRegister, MAX_PEERS } from './peer-register.ts'
import { Outbox, type Notice } from './outbox.ts'
import type { TrustStore } from './trust-store.ts'

/** Changes that arrive while a snapshot does; beyond it another snapshot is asked for. */
const MAX_QUEUED = 10_000
const RESYNC_AGAIN_MS = 5000

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
  readonly #networks = new Map<string, NetworkState>()
  readonly #outbox = new Outbox()
  readonly #register: PeerRegister

  constructor(options: { readonly trust: TrustStore; readonly own: OwnIdentity; readonly endpoint: string }) {
    this.trust = options.trust
    this.#own = options.own
    this.#endpoint = options.endpoint
    this.#register = new PeerRegister({
      trust: options.trust,
      own: () => this.#own,
      outbox: this.#outbox,
      onUnkept: (network) => this.#forgetRevision(network),
    })
    this.#adoptNetworks()
  }

  get own(): OwnIdentity {
    return this.#own
  }

  get peerCount(): number {
    return this.#register.size
  }

  /** The admitted peers as the device shall hold them. */
  get wanted(): ReadonlyMap<WireGuardKey, WantedPeer> {
    return this.#register.wanted
  }

  get hasWork(): boolean {
    return this.#register.hasChanges || !this.#outbox.isEmpty
  }

  /** The first message of a stream, and what the server may have missed of our acknowledgements. */
  connected(clock: Date): void {
    this.#outbox.replies = []
    const revisions: Record<string, number> = {}
    for (const [network, state] of this.#networks) {
      state.partial = undefined
      state.queue.length = 0
      revisions[network] = state.synced ? state.revision : 0
      state.resyncAskedAtMs = state.synced ? undefined : clock.getTime()
      if (state.synced) this.#outbox.touched.add(network)
    }
    this.#outbox.replies.push({ type: 'hello', endpoint: this.#endpoint, revisions })
    for (const [issuerKeyId, { number }] of this.trust.crls) this.#outbox.crlAcks.set(issuerKeyId, number)
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
        this.#outbox.replies.push({ type: 'pong' })
        break
      default:
        message satisfies never
    }
    this.#settle(clock)
  }

  /** Throws what the trust store throws. The stream and the pki listener both lead here. */
  acceptIssuer(der: Buffer, clock: Date): void {
    if (!this.trust.acceptIssuer(der, clock)) return
    this.#outbox.records.push({ type: 'issuer', certificate: der.toString('base64') })
    this.#register.retrySoon('issuer')
    this.#settle(clock)
  }

  acceptDocument(jws: string, clock: Date): void {
    const document = this.trust.acceptDocument(jws, this.#own.networks, clock)
    if (document === undefined) return
    this.#outbox.documents.push(document)
    const { tenant, network, number, possession } = document.document
    const key = `${tenant}/${network}`
    this.#outbox.notice('info', 'network document accepted', { network: key, number })
    if (possession === 'required') {
      this.#register.requirePossession(key)
    }
    this.#register.retrySoon('document')
    this.#settle(clock)
  }

  acceptCrl(der: Buffer, clock: Date): void {
    const accepted = this.trust.acceptCrl(der, clock)
    const { crl, issuer } = accepted
    this.#outbox.crlAcks.set(issuer.keyId, crl.number)
    if (accepted.kind === 'same') return
    this.#outbox.crls.push({ issuerKeyId: issuer.keyId, crl })
    for (const { issuerKeyId, serial, droppedAt } of accepted.dropped) {
      this.#outbox.records.push({ type: 'revoked', issuerKeyId, serial, droppedAt: droppedAt.toISOString() })
    }
    this.#register.enforceRevocations(issuer, clock)
    this.#register.retrySoon('crl')
    this.#settle(clock)
  }

  /** What only time brings: ends, the rule for old CRLs, and another look at what was refused for now. */
  tick(clock: Date): void {
    this.#settle(clock)
  }

  /** When `tick` has something to do next; undefined when nothing is due by time. */
  nextDeadline(clock: Date): Date | undefined {
    const deadlineMs = this.#register.nextDeadlineMs(clock)
    return deadlineMs === undefined ? undefined : new Date(deadlineMs)
  }

  /** A renewed certificate of our own: networks or addresses may be others. */
  setOwn(own: OwnIdentity, clock: Date): void {
    this.#own = own
    this.#adoptNetworks()
    this.#register.askEverybodyAgain(clock)
    this.#settle(clock)
  }

  /**
   * Takes back what an earlier process wrote down. Everything is verified again, and each certificate is judged again,
   * but for the age of the CRL. What cannot be believed is passed over and told.
   */
  restore({ records, crls, documents }: SavedState, clock: Date): void {
    // Issuing CAs first: without them nothing else verifies.
    for (const record of records) this.#guard('record refused', () => this.#restoreTrust(record, clock))
    for (const der of crls) this.#guard('stored crl refused', () => this.trust.acceptCrl(der, clock))
    for (const jws of documents) {
      this.#guard('stored network document refused', () => this.trust.acceptDocument(jws, this.#own.networks, clock))
    }
    const peers: Parameters<PeerRegister['readRecord']>[1] = new Map()
    for (const record of records) {
      this.#guard('record refused', () => this.#register.readRecord(record, peers, clock))
      if (record.type === 'revision') this.#restoreRevision(record.network, record.revision)
    }
    this.#register.restore(peers.values(), clock)
    this.#outbox.records = []
    this.#outbox.touched.clear()
    this.#settle(clock)
  }

  /** Everything that `restore` needs, for writing the records anew. */
  *dump(clock: Date): Generator<JournalRecord> {
    for (const { der } of this.trust.issuers) yield { type: 'issuer', certificate: der.toString('base64') }
    for (const { issuerKeyId, serial, droppedAt } of this.trust.droppedRevocations(clock)) {
      yield { type: 'revoked', issuerKeyId, serial, droppedAt: droppedAt.toISOString() }
    }
    yield* this.#register.dump(clock)
    for (const network of this.#networks.keys()) yield this.#revisionRecord(network)
  }

  /** Hands over what has gathered since the last call. */
  takeWork(): Work {
    const { touched, crlAcks, ...rest } = this.#outbox.empty()
    const acks: Acknowledgement[] = []
    for (const network of touched) {
      rest.records.push(this.#revisionRecord(network))
      const state = this.#networks.get(network)
      if (state?.synced === true) acks.push({ kind: 'applied', network, revision: state.revision })
    }
    for (const [issuerKeyId, number] of crlAcks) acks.push({ kind: 'crl', issuerKeyId, number })
    return { ...rest, changedKeys: this.#register.takeChangedKeys(), acks }
  }

  /** The message for an acknowledgement: `failed` is everything that is stated and not on the device, as of now. */
  acknowledgement(ack: Acknowledgement): UpMessage {
    if (ack.kind === 'crl') {
      return { type: 'crl-applied', issuerKeyId: ack.issuerKeyId, number: String(ack.number) }
    }
    const { network, revision } = ack
    const failed = this.#register.listFailed(network).slice(0, MAX_FAILED)
    return { type: 'applied', network, revision, failed }
  }

  /** Which peers the device does not take; their networks are acknowledged anew. */
  setDeviceFailures(keys: ReadonlySet<WireGuardKey>): void {
    this.#register.setDeviceFailures(keys)
  }

  #receiveSnapshot(message: SnapshotMessage, clock: Date): void {
    const { network, revision } = message
    const state = this.#networkOf(network)
    if (state === undefined) return
    if (state.partial?.revision !== revision) state.partial = { revision, offered: [], claims: new Set() }
    const { partial } = state
    for (const text of message.certificates) {
      if (partial.offered.length >= MAX_PEERS) {
        this.#outbox.notice('warn', 'snapshot has more peers than an interface takes', { network })
        break
      }
      const certificate = this.#register.read(network, text)
      if (certificate === undefined) continue
      partial.offered.push(certificate)
      // Verified part by part: all at once would stop everything else, revocations too, for seconds.
      const claim = this.#register.findClaim(network, certificate, clock)
      if (claim !== undefined) partial.claims.add(claim)
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
    this.#register.keepOnly(network, offered, claims)
    for (const certificate of offered) this.#register.offer(network, certificate, clock)
    state.partial = undefined
    state.revision = revision
    state.synced = true
    state.resyncAskedAtMs = undefined
    this.#outbox.touched.add(network)
    this.#outbox.notice('info', 'snapshot taken', { network, revision, peers: this.#register.size })
    for (const queued of state.queue.splice(0)) this.#receiveChange(queued, clock)
  }

  #receiveChange(message: SetMessage | RemoveMessage, clock: Date): void {
    const { network, revision } = message
    const state = this.#networkOf(network)
    if (state === undefined) return
    if (state.partial !== undefined) {
      // It counts on what the snapshot brings. A removal need not wait: it cannot do harm.
      if (message.type === 'remove') this.#register.takeAway(network, message.serial)
      if (state.queue.length < MAX_QUEUED) state.queue.push(message)
      return
    }
    if (state.synced && revision <= state.revision) {
      this.#outbox.touched.add(network)
      return
    }
    if (!state.synced || revision !== state.revision + 1) {
      if (message.type === 'remove') this.#register.takeAway(network, message.serial)
      this.#askForSnapshot(network, state, clock)
      return
    }
    if (message.type === 'remove') {
      this.#register.takeAway(network, message.serial)
    } else {
      const certificate = this.#register.read(network, message.certificate)
      if (certificate !== undefined) this.#register.offer(network, certificate, clock)
    }
    state.revision = revision
    this.#outbox.touched.add(network)
  }

  /** Asked again after a while: the server answers a second request within one second with nothing. */
  #askForSnapshot(network: string, state: NetworkState, clock: Date): void {
    const nowMs = clock.getTime()
    if (state.resyncAskedAtMs !== undefined && Math.abs(nowMs - state.resyncAskedAtMs) < RESYNC_AGAIN_MS) return
    state.resyncAskedAtMs = nowMs
    this.#outbox.replies.push({ type: 'resync', network })
  }

  #settle(clock: Date): void {
    this.#register.settle(clock)
    for (const network of this.#register.takeEndedEarly(clock)) {
      const state = this.#networks.get(network)
      if (state === undefined) continue
      this.#outbox.notice('warn', 'the clock was set back: peers had been ended too early', { network })
      this.#outbox.touched.add(network)
      state.synced = false
      this.#askForSnapshot(network, state, clock)
    }
    for (const [network, state] of this.#networks) {
      if (state.resyncAskedAtMs !== undefined && state.partial === undefined)
        this.#askForSnapshot(network, state, clock)
    }
  }

  #restoreTrust(record: JournalRecord, clock: Date): void {
    if (record.type === 'issuer') {
      this.trust.acceptIssuer(Buffer.from(record.certificate, 'base64'), clock)
    } else if (record.type === 'revoked') {
      const { issuerKeyId, serial, droppedAt } = record
      this.trust.restoreDropped({ issuerKeyId, serial: parseSerial(serial), droppedAt: new Date(droppedAt) })
    }
  }

  #restoreRevision(network: string, revision: number): void {
    const state = this.#networks.get(network)
    if (state === undefined) return
    state.revision = revision
    state.synced = revision > 0
  }

  /** Nothing is asked for at once: what could not be kept would only come again. */
  #forgetRevision(network: string): void {
    const state = this.#networks.get(network)
    if (state !== undefined) state.synced = false
  }

  /** 0 while something was said that is not among the records: after a restart it has to be said again. */
  #revisionRecord(network: string): JournalRecord {
    const state = this.#networks.get(network)
    const isWhole = state?.synced === true && this.#register.isRecorded(network)
    return { type: 'revision', network, revision: isWhole ? state.revision : 0 }
  }

  #networkOf(network: string): NetworkState | undefined {
    const state = this.#networks.get(network)
    if (state === undefined) this.#outbox.notice('warn', 'message for a network that is not served', { network })
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
      this.#outbox.notice('warn', message, { code: error.code, reason: error.message })
    }
  }
}
