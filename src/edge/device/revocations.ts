/**
 * Which gateways are revoked, as this device has verified it: the CRLs of the CAs that issue gateways and of the root,
 * fetched from the pki listener. That is plain HTTP and needs no trust: a CRL counts only under the pinned root, its
 * number only rises, and a revocation that was seen once stays one; all of it also after a restart.
 *
 * A CRL that cannot be fetched stops nothing. The newest verified one holds, however old it is, and a warning says so:
 * whoever can cut a device off from plain HTTP must not be able to take its tunnel with it. What such a cut can hide is
 * bounded by the gateway certificate's notAfter, and the server no longer names a revoked gateway either.
 */
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { parseMessage } from '../../core/messages/common.ts'
import { journalRecordSchema } from '../../core/messages/gateway-journal.ts'
import type { JournalRecord } from '../../core/messages/gateway-journal.ts'
import { publishedIssuersSchema } from '../../core/messages/pki.ts'
import { parseCertificate } from '../../core/x509/certificate.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import { pemToDer } from '../../core/x509/pem.ts'
import { parseSerial } from '../../core/x509/serial.ts'
import type { Serial } from '../../core/x509/serial.ts'
import { ApiClient } from '../../platform/api-client/client.ts'
import type { ApiAnswer } from '../../platform/api-client/client.ts'
import type { Now } from '../../platform/clock.ts'
import { makePrivateDirectory, writeFileAtomic } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import type { OwnIdentity } from '../client-certificate.ts'
import { TrustStore } from '../gateway/trust-store.ts'

export interface RevocationOptions {
  readonly own: OwnIdentity
  readonly now: Now
  readonly log: Logger
}

/** Issuing CAs and revocations that dropped out of their CRL, a JSON record a line; beside it a file for each CRL. */
const RECORDS = 'records.ndjson'
const ROOT_CRL_PATH = '/crl/root.crl'
/** Nobody waits longer than this for a pki listener that does not answer. */
const TIMEOUT_MS = 5_000

export class GatewayRevocations {
  readonly #options: RevocationOptions
  readonly #folder: string
  readonly #trust: TrustStore
  /** Told once, and again only after it worked in between. */
  #isBlind = false

  private constructor(options: RevocationOptions) {
    const { root, oids, trustDomain, credential } = options.own
    this.#options = options
    this.#folder = join(credential.dir, 'revocations')
    // No CA's dates move this device's clock but the root's.
    this.#trust = new TrustStore({ root, oids, trustDomain, infrastructureKeyId: root.keyId })
  }

  /** What an earlier process has verified, verified again. */
  static async open(options: RevocationOptions): Promise<GatewayRevocations> {
    const revocations = new GatewayRevocations(options)
    await revocations.#load()
    return revocations
  }

  /** Whether a verified CRL names the certificate now or ever did, or the root's CRL its issuer. */
  isRevoked(gateway: { readonly issuerKeyId: string; readonly serial: Serial }): boolean {
    return (
      this.#trust.isRevoked(gateway.issuerKeyId, gateway.serial) || this.#trust.isIssuerRevoked(gateway.issuerKeyId)
    )
  }

  /** Asks the pki listener. Never rejects: what does not come, or does not verify, is told and changes nothing. */
  async refresh(signal?: AbortSignal): Promise<void> {
    const { own, now, log } = this.#options
    const client = new ApiClient({ base: own.credential.config.pkiUrl, timeoutMs: TIMEOUT_MS })
    try {
      await this.#fetchAll(client, signal)
      this.#requireCurrent(now())
      this.#isBlind = false
    } catch (err) {
      const newest = Math.max(...[...this.#trust.crls.values()].map(({ thisUpdate }) => thisUpdate.getTime()))
      const crlOf = newest === -Infinity ? null : new Date(newest).toISOString()
      const message =
        crlOf === null
          ? 'revocation of gateways could not be checked, going on without any CRL'
          : `revocation of gateways could not be checked, going on with the CRL of ${crlOf}`
      if (signal?.aborted !== true) log[this.#isBlind ? 'debug' : 'warn']({ err }, message)
      this.#isBlind = true
    } finally {
      client.close()
    }
  }

  /** All of it even when one part is refused; the first fault is thrown at the end. */
  async #fetchAll(client: ApiClient, signal: AbortSignal | undefined): Promise<void> {
    const faults: unknown[] = []
    const attempt = async (act: () => Promise<void>) => {
      try {
        await act()
      } catch (error) {
        if (errorCode(error) === 'unavailable' || errorCode(error) === 'timeout') throw error
        faults.push(error)
      }
    }
    const get = (path: string, etag?: string): Promise<ApiAnswer> =>
      client.get(path, { ...(etag !== undefined && { etag }), ...(signal !== undefined && { signal }) })
    const paths = new Map<string, Certificate>()
    await attempt(async () => {
      const { json } = await get('/issuers.json')
      for (const { certificate, crl } of parseMessage(publishedIssuersSchema, json, 'issuers.json').issuers) {
        await attempt(() => {
          const issuer = this.#takeIssuer(pemToDer(certificate))
          if (issuer !== undefined) paths.set(crl, issuer)
          return Promise.resolve()
        })
      }
    })
    for (const [path, issuer] of [[ROOT_CRL_PATH, this.#trust.pinned.root] as const, ...paths]) {
      const held = this.#trust.crls.get(issuer.keyId)
      await attempt(async () => {
        const answer = await get(path, held === undefined ? undefined : `"${held.number}"`)
        if (answer.status !== 304) await this.#takeCrl(answer.raw)
      })
    }
    if (faults[0] instanceof Error) throw faults[0]
    if (paths.size === 0) throw new CertpeerError('revocation_unknown', 'the pki listener names no CA of gateways')
  }

  /** The CA when it may issue gateways; the others do not concern a device. */
  #takeIssuer(der: Buffer): Certificate | undefined {
    const issuer = parseCertificate(der)
    if (issuer.extendedKeyUsage?.includes(this.#trust.pinned.oids.roles.gateway) !== true) return undefined
    this.#trust.acceptIssuer(der, this.#options.now())
    return issuer
  }

  async #takeCrl(der: Buffer): Promise<void> {
    const { log, now } = this.#options
    const accepted = this.#trust.acceptCrl(der, now())
    if (accepted.kind === 'same') return
    try {
      await makePrivateDirectory(this.#folder)
      // First what the new CRL no longer says: killed in between, nothing is forgotten.
      await writeFileAtomic(join(this.#folder, RECORDS), this.#encodeRecords(), { mode: 0o600 })
      await writeFileAtomic(join(this.#folder, `${accepted.issuer.keyId}.crl`), accepted.crl.der, { mode: 0o600 })
    } catch (err) {
      // It holds for this process in any case.
      log.warn({ err }, 'CRL cannot be kept on disk')
    }
  }

  #encodeRecords(): string {
    const records: JournalRecord[] = this.#trust.issuers.map(({ der }) => ({
      type: 'issuer',
      certificate: der.toString('base64'),
    }))
    for (const { issuerKeyId, serial, droppedAt } of this.#trust.droppedRevocations(this.#options.now())) {
      records.push({ type: 'revoked', issuerKeyId, serial, droppedAt: droppedAt.toISOString() })
    }
    return records.map((record) => `${JSON.stringify(record)}\n`).join('')
  }

  /** Past its nextUpdate a CRL may hide what was revoked since; it still holds, and that is worth a word. */
  #requireCurrent(now: Date): void {
    for (const { nextUpdate } of this.#trust.crls.values()) {
      if (now > nextUpdate) {
        throw new CertpeerError('stale_crl', `the newest CRL there is ended at ${nextUpdate.toISOString()}`)
      }
    }
  }

  /** Nothing on disk is a trust anchor: what does not verify counts as missing. */
  async #load(): Promise<void> {
    const { log, now } = this.#options
    const names = await namesIn(this.#folder)
    const guard = (act: () => void) => {
      try {
        act()
      } catch (err) {
        log.warn({ err, folder: this.#folder }, 'kept revocation cannot be used')
      }
    }
    const text = names.includes(RECORDS) ? await readFile(join(this.#folder, RECORDS), 'utf8') : ''
    for (const line of text.split('\n').filter((each) => each !== '')) {
      guard(() => {
        const record = journalRecordSchema.parse(JSON.parse(line))
        if (record.type === 'issuer') this.#trust.acceptIssuer(Buffer.from(record.certificate, 'base64'), now())
        if (record.type !== 'revoked') return
        const { issuerKeyId, serial, droppedAt } = record
        this.#trust.restoreDropped({ issuerKeyId, serial: parseSerial(serial), droppedAt: new Date(droppedAt) })
      })
    }
    for (const name of names.filter((each) => each.endsWith('.crl'))) {
      const der = await readFile(join(this.#folder, name))
      guard(() => void this.#trust.acceptCrl(der, now()))
    }
  }
}

/** Opened, and the pki listener asked. */
export async function checkRevocations(options: RevocationOptions, signal?: AbortSignal): Promise<GatewayRevocations> {
  const revocations = await GatewayRevocations.open(options)
  await revocations.refresh(signal)
  return revocations
}

async function namesIn(folder: string): Promise<string[]> {
  try {
    return (await readdir(folder)).sort()
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return []
    throw error
  }
}
