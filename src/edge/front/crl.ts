/**
 * What nginx needs to judge client certificates: root, issuing CAs and a CRL of each. Everything is fetched from the
 * pki listener and verified under the pinned root; a lower CRL number than one seen before is refused, also after a
 * restart, and a bundle with a gap does not exist: nginx would lock everybody out.
 */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { parseMessage } from '../../core/messages/common.ts'
import { publishedIssuersSchema } from '../../core/messages/pki.ts'
import { parseCertificate } from '../../core/x509/certificate.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import { parseCrl, verifyCrl } from '../../core/x509/crl.ts'
import type { Crl } from '../../core/x509/crl.ts'
import type { CertpeerOids } from '../../core/x509/oids.ts'
import { verifyIssuer } from '../../core/x509/path.ts'
import { derToPem, pemToDer } from '../../core/x509/pem.ts'
import type { ApiClient } from '../../platform/api-client/client.ts'
import { writeFileAtomic } from '../../platform/files.ts'

export type PkiClient = Pick<ApiClient, 'request'>

/** A CRL of a million entries is about 40 MB. */
const MAX_CRL_BYTES = 134_217_728

export interface CrlBundle {
  readonly issuersPem: string
  readonly crlPem: string
  /**
   * Equal for bundles that revoke the same certificates: a CRL that is published again every few minutes with nothing
   * new in it is no reason to reload, until the copy that is loaded has lived for half of its life.
   */
  readonly contentId: string
  /** The earliest nextUpdate of all: from then on nginx refuses everybody. */
  readonly nextUpdate: Date
  /** Common names of CAs that are not valid now: their certificates are refused, and the others' are not. */
  readonly leftOut: readonly string[]
}

export interface BundleOptions {
  /** Where verified CRLs are kept, one file per issuer key. */
  readonly dir: string
  readonly root: Certificate
  readonly oids: CertpeerOids
  readonly now: Date
}

const CLOCK_SKEW_MS = 5 * 60_000

/** Fetches, verifies and keeps; throws and keeps the old when anything is missing, foreign, broken or older. */
export async function fetchCrlBundle(client: PkiClient, options: BundleOptions): Promise<CrlBundle> {
  const { dir, root, now } = options
  const { json } = await client.request({ method: 'GET', path: '/issuers.json' })
  const answer = parseMessage(publishedIssuersSchema, json, 'issuers.json')
  if (!pemToDer(answer.root).equals(root.der)) {
    throw new CertpeerError('certificate_untrusted', 'the pki source serves another root than the pinned one')
  }
  const published = answer.issuers.map(({ certificate, crl }) => ({
    certificate: parseCertificate(pemToDer(certificate)),
    path: crl,
  }))
  const issuers = published.filter(({ certificate }) => isValidIssuer(certificate, options))
  const leftOut = published.filter((issuer) => !issuers.includes(issuer))
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const crls: Crl[] = []
  for (const { certificate, path } of [{ certificate: root, path: '/crl/root.crl' }, ...issuers]) {
    crls.push(await fetchCrl(client, path, certificate, dir, now))
  }
  return {
    ...assemble([root, ...issuers.map(({ certificate }) => certificate)], crls),
    leftOut: leftOut.map(({ certificate }) => certificate.commonName ?? certificate.keyId),
  }
}

/** False for a CA that is not valid now: one tenant's CA that has run out must not end the CRLs of all the others. */
function isValidIssuer(issuer: Certificate, { root, now, oids }: BundleOptions): boolean {
  try {
    verifyIssuer({ issuer, root, now, oids })
    return true
  } catch (error) {
    if (errorCode(error) === 'certificate_expired') return false
    throw error
  }
}

async function fetchCrl(client: PkiClient, path: string, issuer: Certificate, dir: string, now: Date): Promise<Crl> {
  const file = join(dir, `${issuer.keyId}.crl`)
  const held = await findKept(file, issuer)
  const answer = await client.request({
    method: 'GET',
    path,
    maxBytes: MAX_CRL_BYTES,
    ...(held === undefined ? {} : { headers: { 'if-none-match': `"${held.number}"` } }),
  })
  if (held !== undefined && answer.status === 304) return held
  const fetched = parseCrl(answer.raw)
  verifyCrl(fetched, issuer)
  if (fetched.thisUpdate.getTime() > now.getTime() + CLOCK_SKEW_MS) {
    throw new CertpeerError('malformed_crl', `${path} is dated in the future: one of the two clocks is wrong`)
  }
  if (held !== undefined) {
    if (fetched.number < held.number) {
      throw new CertpeerError('stale_crl', `${path} has number ${fetched.number}, but ${held.number} was seen before`)
    }
    if (fetched.number === held.number) return held
  }
  await writeFileAtomic(file, fetched.der, { mode: 0o600 })
  return fetched
}

/** A kept file that no longer verifies (a damaged disk) counts as none; the source is asked again. */
async function findKept(file: string, issuer: Certificate): Promise<Crl | undefined> {
  if (!existsSync(file)) return undefined
  try {
    const kept = parseCrl(await readFile(file))
    verifyCrl(kept, issuer)
    return kept
  } catch {
    return undefined
  }
}

function assemble(certificates: readonly Certificate[], crls: readonly Crl[]): Omit<CrlBundle, 'leftOut'> {
  const hash = createHash('sha256')
  for (const { der } of certificates) hash.update(der)
  for (const crl of crls) {
    const { entries, issuerDer } = crl
    hash.update(issuerDer).update(`:${entries.size}:${halfLivesAt(crl)}:`)
    // Entries only ever join and, after expiry, leave: their serial numbers say everything that nginx decides by.
    for (const serial of entries.keys()) hash.update(serial).update(',')
  }
  const nextUpdates = crls.map((crl) => crl.nextUpdate.getTime())
  return {
    issuersPem: certificates.map(({ der }) => derToPem(der, 'CERTIFICATE')).join(''),
    crlPem: crls.map(({ der }) => derToPem(der, 'X509 CRL')).join(''),
    contentId: hash.digest('hex'),
    nextUpdate: new Date(Math.min(...nextUpdates)),
  }
}

/**
 * Which half-life, counted since 1970, the CRL begins in. It rises when a fresher copy is worth loading, each issuer's
 * for itself, and never while there is none: an offline root's CRL is the same for a year.
 */
function halfLivesAt({ thisUpdate, nextUpdate }: Crl): number {
  const halfLifeMs = (nextUpdate.getTime() - thisUpdate.getTime()) / 2
  return Math.floor(thisUpdate.getTime() / halfLifeMs)
}
