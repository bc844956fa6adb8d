/** What the session has decided and not handed over yet: its parts write into one, `takeWork` empties it. */
import type { JournalRecord } from '../../core/messages/gateway-journal.ts'
import type { VerifiedNetworkDocument } from '../../core/messages/network-document.ts'
import type { UpMessage } from '../../core/messages/stream.ts'
import type { Crl } from '../../core/x509/crl.ts'

export interface Notice {
  readonly level: 'info' | 'warn' | 'error'
  readonly message: string
  readonly fields: Readonly<Record<string, string | number>>
}

export class Outbox {
  replies: UpMessage[] = []
  records: JournalRecord[] = []
  crls: { readonly issuerKeyId: string; readonly crl: Crl }[] = []
  documents: VerifiedNetworkDocument[] = []
  notices: Notice[] = []
  /** Networks to be acknowledged anew, and their revision to be recorded. */
  touched = new Set<string>()
  /** Number of the CRL to be acknowledged, by key id of its issuer. */
  crlAcks = new Map<string, bigint>()

  get isEmpty(): boolean {
    return (
      this.replies.length + this.records.length + this.crls.length + this.documents.length === 0 &&
      this.notices.length + this.touched.size + this.crlAcks.size === 0
    )
  }

  /** Gives everything, and is empty then. */
  empty(): Pick<Outbox, 'replies' | 'records' | 'crls' | 'documents' | 'notices' | 'touched' | 'crlAcks'> {
    const { replies, records, crls, documents, notices, touched, crlAcks } = this
    Object.assign(this, new Outbox())
    return { replies, records, crls, documents, notices, touched, crlAcks }
  }

  notice(level: Notice['level'], message: string, fields: Notice['fields']): void {
    this.notices.push({ level, message, fields })
  }
}
