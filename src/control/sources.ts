/**
 * Where issuing certificates and CRLs come from: the published files over HTTP (so that revocation works while the
 * database is away) and the projection's rows. Neither is believed; both only carry what verifies by itself.
 */
import { CertpeerError, errorCode } from '../core/errors.ts'
import { parseMessage } from '../core/messages/common.ts'
import { publishedIssuersSchema } from '../core/messages/pki.ts'
import { pemToDer } from '../core/x509/pem.ts'
import type { ApiClient } from '../platform/api-client/client.ts'
import type { Now } from '../platform/clock.ts'
import type { Db } from '../platform/db/connection.ts'
import type { Logger } from '../platform/log.ts'
import { findCrl, listIssuers } from './db/lookups.ts'
import type { Issuers } from './issuers.ts'
import type { Revocations } from './revocations.ts'

const ROOT_CRL_PATH = '/crl/root.crl'
const MAX_CRL_BYTES = 128 * 1024 * 1024

interface Intake {
  readonly issuers: Issuers
  readonly revocations: Revocations
  readonly now: Now
  readonly log: Logger
}

/** Says a fault once, and again only when it changes. */
function createComplaints(log: Logger): { tell(what: string, err: unknown): void; clear(what: string): void } {
  const told = new Map<string, string>()
  return {
    tell(what, err) {
      const text = `${errorCode(err)} ${err instanceof Error ? err.message : ''}`
      if (told.get(what) === text) return
      told.set(what, text)
      log.warn({ what, err }, 'source of trust material refused')
    },
    clear(what) {
      if (told.delete(what)) log.info({ what }, 'source of trust material is good again')
    },
  }
}

function takeCrl({ revocations, now, log }: Intake, der: Buffer, source: string): void {
  const verdict = revocations.accept(der, now())
  if (verdict === 'older') throw new CertpeerError('stale_crl', 'an older CRL than the one held was offered')
  if (verdict === 'accepted') log.debug({ source }, 'CRL taken in')
}

export interface PublishedSource {
  /** Looks at everything that is published once; never rejects. True when all of it could be read. */
  poll(): Promise<boolean>
}

/** The pki listener, asked every few seconds; ETags make an unchanged list cost one empty answer. */
export function createPublishedSource(client: ApiClient, intake: Intake): PublishedSource {
  const complaints = createComplaints(intake.log)
  const etags = new Map<string, string>()
  let crlPaths: readonly string[] = []

  async function attempt(path: string, take: (body: Buffer) => void): Promise<boolean> {
    try {
      const etag = etags.get(path)
      const answer = await client.get(path, {
        ...(etag !== undefined && { etag }),
        timeoutMs: 10_000,
        maxBytes: MAX_CRL_BYTES,
      })
      if (answer.status !== 304) {
        take(answer.raw)
        // Only what was taken in is remembered: what was refused is looked at again.
        if (typeof answer.headers.etag === 'string') etags.set(path, answer.headers.etag)
      }
      complaints.clear(path)
      return true
    } catch (err) {
      etags.delete(path)
      complaints.tell(path, err)
      return false
    }
  }

  function takeIssuers(body: Buffer): void {
    const published = parseMessage(publishedIssuersSchema, JSON.parse(body.toString('utf8')), '/issuers.json')
    let fault: unknown
    for (const { certificate } of published.issuers) {
      try {
        const der = pemToDer(certificate)
        if (!der.equals(intake.issuers.root.der)) intake.issuers.offer(der, intake.now())
      } catch (err) {
        // One bad entry must not hide its neighbours.
        fault = err
      }
    }
    crlPaths = [...new Set(published.issuers.map((issuer) => issuer.crl))]
    if (fault instanceof Error) throw fault
  }

  return {
    async poll() {
      // Issuers first: a CRL counts only under an issuer that is known.
      let complete = await attempt('/issuers.json', takeIssuers)
      for (const path of [ROOT_CRL_PATH, ...crlPaths]) {
        complete = (await attempt(path, (der) => takeCrl(intake, der, path))) && complete
      }
      return complete
    },
  }
}

/** Reads the projection's issuers and CRLs; a bad row is told once and passed over. Rejects when the database is away. */
export function createProjectedSource(db: Db, intake: Intake): { sync(): Promise<void> } {
  const complaints = createComplaints(intake.log)
  return {
    async sync() {
      for (const row of await listIssuers(db)) {
        const what = `issuer row ${row.keyId}`
        try {
          if (!row.certificate.equals(intake.issuers.root.der)) intake.issuers.offer(row.certificate, intake.now())
          const held = intake.revocations.findCrl(row.keyId)
          // The number in the row only says whether the list is worth fetching; the list's own number counts.
          if (row.crlNumber === null || (held !== undefined && BigInt(row.crlNumber) <= held.number)) continue
          const der = await findCrl(db, row.keyId)
          if (der !== undefined) takeCrl(intake, der, what)
          complaints.clear(what)
        } catch (err) {
          if (errorCode(err) === 'unavailable') throw err
          complaints.tell(what, err)
        }
      }
    },
  }
}
