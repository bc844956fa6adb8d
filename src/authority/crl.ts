/**
 * The CRL of one issuing CA, made from the ledger's state: entries are encoded once and appended to a buffer, so a CRL
 * costs one signature and one copy. Before anyone sees it, it is read back by a parser that shares no code with the
 * encoder and compared with what was meant.
 */
import { CertpeerError } from '../core/errors.ts'
import { assembleSigned } from '../core/x509/encode.ts'
import { encodeCrlEntry, encodeTbsCertList } from '../core/x509/crl.ts'
import { scanCrl } from '../core/x509/crl-scan.ts'
import { verifySignature } from '../core/x509/certificate.ts'
import { writeFileAtomic } from '../platform/files.ts'
import { crlPath, type Authority } from './authority.ts'
import type { IssuingCa } from './issuing/signer.ts'
import { signVerified } from './issuing/signer.ts'
import type { RevokedRecord } from './state.ts'
import type { Entry } from './ledger/entry.ts'

const COALESCE_MS = 50
const RETRY_MS = 1000
/** Relying parties' clocks may be a little behind. */
const BACKDATE_SECONDS = 60
const INITIAL_BUFFER_BYTES = 65_536

export interface PublishedCrl {
  readonly der: Buffer
  readonly number: bigint
  readonly thisUpdate: Date
  readonly nextUpdate: Date
}

export type CrlListener = (issuer: IssuingCa, crl: PublishedCrl) => void

export interface CrlTimes {
  readonly publishSeconds: number
  readonly nextUpdateSeconds: number
}

/** Publishes at once, at every period, and 50 ms after each revocation. */
export class CrlPublisher {
  private readonly authority: Authority
  private readonly issuer: IssuingCa
  private readonly times: CrlTimes
  private readonly onPublished: CrlListener
  private readonly entries: EntryBuffer
  private newest: PublishedCrl | undefined
  private timer: NodeJS.Timeout | undefined
  private running: Promise<void> | undefined
  private wanted = false
  private stopped = false

  constructor(options: { authority: Authority; issuer: IssuingCa; times: CrlTimes; onPublished: CrlListener }) {
    this.authority = options.authority
    this.issuer = options.issuer
    this.times = options.times
    this.onPublished = options.onPublished
    this.entries = new EntryBuffer()
  }

  /** The newest published CRL; undefined before the first. */
  get current(): PublishedCrl | undefined {
    return this.newest
  }

  /** Publishes the first CRL; throws when that is not possible, because then nobody could verify anything. */
  async start(): Promise<void> {
    this.authority.listeners.add(this.onEntry)
    this.newest = await this.publish()
    this.schedule(this.times.publishSeconds * 1000)
  }

  async stop(): Promise<void> {
    this.stopped = true
    this.authority.listeners.delete(this.onEntry)
    clearTimeout(this.timer)
    await this.running
  }

  private readonly onEntry = (entry: Entry): void => {
    const revokes =
      entry.kind === 'revocation' ||
      (entry.kind === 'certificate' && entry.replaces !== undefined && entry.replaces.length > 0)
    if (!revokes || this.wanted) return
    this.wanted = true
    this.schedule(COALESCE_MS)
  }

  private schedule(delayMs: number): void {
    clearTimeout(this.timer)
    if (!this.stopped) this.timer = setTimeout(() => this.run(), delayMs)
  }

  private run(): void {
    if (this.running) return
    this.wanted = false
    let retryMs = COALESCE_MS
    this.running = this.publish()
      .then((crl) => {
        this.newest = crl
      })
      .catch((err: unknown) => {
        // The CRL in force goes on until its nextUpdate; this is tried again.
        this.wanted = true
        retryMs = RETRY_MS
        this.authority.log.error({ err, issuer: this.issuer.name }, 'CRL not published')
      })
      .finally(() => {
        this.running = undefined
        this.schedule(this.wanted ? retryMs : this.times.publishSeconds * 1000)
      })
  }

  private async publish(): Promise<PublishedCrl> {
    const { authority, issuer } = this
    const { state } = authority
    const keyId = issuer.certificate.keyId
    const now = authority.now()
    const last = state.issuer(keyId).crlNumber
    const millis = BigInt(now.getTime())
    const number = last + 1n > millis ? last + 1n : millis
    await authority.commit({ kind: 'crl', at: now.toISOString(), issuerKeyId: keyId, number: number.toString() })
    // From here to the encoding no await: entries and ledger head belong together.
    const records = state.issuer(keyId).revoked
    const thisUpdate = wholeSeconds(now.getTime() - BACKDATE_SECONDS * 1000)
    const nextUpdate = wholeSeconds(now.getTime() + this.times.nextUpdateSeconds * 1000)
    const tbs = encodeTbsCertList({
      issuer: issuer.certificate,
      thisUpdate,
      nextUpdate,
      number,
      entries: this.entries.update(records),
      ledgerHead: authority.ledger.head,
      oids: authority.oids,
    })
    const serials = records.map((record) => record.serial)
    const signature = await signVerified(issuer.signer, issuer.algorithm, tbs)
    const der = assembleSigned(tbs, issuer.algorithm.der, signature)
    requireReadsBack(der, issuer, { number, nextUpdate, serials })
    await writeFileAtomic(crlPath(authority.dir, issuer.name), der, { mode: 0o644 })
    const published: PublishedCrl = { der, number, thisUpdate, nextUpdate }
    authority.log.info({ issuer: issuer.name, number: number.toString(), entries: serials.length }, 'CRL published')
    this.onPublished(issuer, published)
    return published
  }
}

/** Throws `internal` unless an independent reading finds exactly what was meant, and the signature holds. */
function requireReadsBack(
  der: Buffer,
  issuer: IssuingCa,
  meant: { readonly number: bigint; readonly nextUpdate: Date; readonly serials: readonly string[] },
): void {
  let at = 0
  let differing = 0
  const scan = scanCrl(der, (serial) => {
    const hex = serial.toString('hex').replace(/^00(?=[89a-f])/, '')
    if (hex !== meant.serials[at]) differing += 1
    at += 1
  })
  const tbs = der.subarray(scan.tbs.start, scan.tbs.end)
  const signature = der.subarray(scan.signature.start, scan.signature.end)
  const good =
    differing === 0 &&
    scan.entryCount === meant.serials.length &&
    scan.number === meant.number &&
    scan.nextUpdate.getTime() === meant.nextUpdate.getTime() &&
    verifySignature(tbs, issuer.algorithm.oid, signature, issuer.signer.publicKey)
  if (!good) throw new CertpeerError('internal', `the CRL of ${issuer.name} does not read back as it was meant`)
}

/** Encoded entries of one CA, grown at the end; encoded anew only when expired ones were dropped. */
class EntryBuffer {
  private buffer = Buffer.alloc(INITIAL_BUFFER_BYTES)
  private length = 0
  private source: readonly RevokedRecord[] | undefined
  private count = 0

  update(records: readonly RevokedRecord[]): Buffer {
    if (this.source !== records || records.length < this.count) {
      this.source = records
      this.count = 0
      this.length = 0
    }
    for (const record of records.slice(this.count)) this.append(encode(record))
    this.count = records.length
    return this.buffer.subarray(0, this.length)
  }

  private append(entry: Buffer): void {
    if (this.length + entry.length > this.buffer.length) {
      this.buffer = Buffer.concat([this.buffer.subarray(0, this.length)], this.buffer.length * 2)
    }
    entry.copy(this.buffer, this.length)
    this.length += entry.length
  }
}

function encode(record: RevokedRecord): Buffer {
  const { at, reason } = record.revocation
  return encodeCrlEntry({ serial: record.serial, revokedAt: wholeSeconds(at.getTime()), reason })
}

function wholeSeconds(milliseconds: number): Date {
  return new Date(Math.floor(milliseconds / 1000) * 1000)
}
