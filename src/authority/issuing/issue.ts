/**
 * From a prepared certificate to a signed one: ledger first, signature after. What is signed is read from the state,
 * where only a committed entry can have put it, so no signature exists for bytes that the ledger does not hold.
 */
import { parseCertificate, type Certificate } from '../../core/x509/certificate.ts'
import { assembleSigned } from '../../core/x509/encode.ts'
import { CertpeerError } from '../../core/errors.ts'
import type { Serial } from '../../core/x509/serial.ts'
import { newSerial } from '../../core/x509/serial.ts'
import { findIssuerByKeyId, type Authority } from '../authority.ts'
import type { CertificateEntry, CertificateRole } from '../ledger/entry.ts'
import type { CertificateRecord } from '../state.ts'
import { certifiedAddresses, prepare, type CertificateFacts, type PreparedCertificate } from './prepare.ts'
import { signVerified, type IssuingCa } from './signer.ts'
import { formatPrefix, parseAddress } from '../../core/ipam/prefix.ts'
import { readAccessGroups, readWireGuardKey } from '../../core/x509/certpeer-extensions.ts'

export interface IssuedCertificate {
  readonly der: Buffer
  readonly record: CertificateRecord
  readonly issuer: IssuingCa
}

/** What stands in the ledger entry beside what the certificate itself says. */
export type EntryContext = Pick<
  CertificateEntry,
  'name' | 'networks' | 'tenant' | 'heldUntil' | 'csrHash' | 'jti' | 'renewed' | 'replaces'
>

/** Builds and lints a leaf of that role under that CA, with a new serial number and the URLs of this authority. */
export function prepareLeaf(
  authority: Authority,
  issuer: IssuingCa,
  role: CertificateRole,
  facts: Omit<CertificateFacts, 'serial' | 'urls' | 'organization'>,
): PreparedCertificate {
  const { pkiUrl } = authority.endpoints
  return prepare(
    {
      ...facts,
      organization: authority.organization,
      serial: newSerial(authority.random(20)),
      urls: {
        crl: `${pkiUrl}/crl/${issuer.name}.crl`,
        ocsp: `${pkiUrl}/ocsp/${issuer.name}`,
        caIssuers: `${pkiUrl}/certs/${issuer.name}.crt`,
      },
    },
    {
      profile: authority.profiles[role],
      issuer: issuer.certificate,
      algorithm: issuer.algorithm,
      oids: authority.oids,
      trustDomain: authority.trustDomain,
      now: authority.now(),
      isSerialUsed: (serial) => authority.state.certificates.has(serial as Serial),
    },
  )
}

/** Writes the entry, then signs. Throws `unavailable` when the entry could not be written; then nothing was issued. */
export async function issue(
  authority: Authority,
  issuer: IssuingCa,
  role: CertificateRole,
  prepared: PreparedCertificate,
  context: EntryContext,
): Promise<IssuedCertificate> {
  await authority.commit(certificateEntry(authority, issuer, role, prepared, context))
  return await getSigned(authority, prepared.parsed.serial)
}

/** Signatures being made, so that asking twice at once gives one. */
const signing = new WeakMap<CertificateRecord, Promise<Buffer>>()

/**
 * The certificate of a committed entry. Signed the first time (also when the process died between entry and signature),
 * and after that the same bytes again. Throws not_found for a serial number that is not in the ledger.
 */
export async function getSigned(authority: Authority, serial: Serial): Promise<IssuedCertificate> {
  const record = authority.state.certificates.get(serial)
  const issuer = record && findIssuerByKeyId(authority, record.issuerKeyId)
  if (!record || !issuer) throw new CertpeerError('not_found', `certificate ${serial} is not known to this authority`)
  let signature = record.signature
  if (signature === undefined) {
    let promise = signing.get(record)
    if (promise === undefined) {
      promise = signRecord(authority, record, issuer)
      signing.set(record, promise)
      promise.catch(() => signing.delete(record))
    }
    signature = await promise
  }
  return { der: assembleSigned(record.tbs, issuer.algorithm.der, signature), record, issuer }
}

/** Parsed, for those who look inside. */
export function parseIssued(issued: IssuedCertificate): Certificate {
  return parseCertificate(issued.der)
}

async function signRecord(authority: Authority, record: CertificateRecord, issuer: IssuingCa): Promise<Buffer> {
  const signature = await signVerified(issuer.signer, issuer.algorithm, record.tbs)
  // Goes with the next group; nobody waits for it. Lost in a crash, the same TBS is signed once more.
  authority
    .commit({
      kind: 'signature',
      at: authority.now().toISOString(),
      serial: record.serial,
      signature: signature.toString('base64'),
    })
    .catch((err: unknown) => authority.log.warn({ err, serial: record.serial }, 'signature not recorded'))
  return signature
}

/** The facts are read from the prepared bytes, not from what led to them. */
function certificateEntry(
  authority: Authority,
  issuer: IssuingCa,
  role: CertificateRole,
  prepared: PreparedCertificate,
  context: EntryContext,
): CertificateEntry {
  const { parsed, profile } = prepared
  const wireGuard = profile.extensions.includes('wireGuardKey') ? readWireGuardKey(parsed, authority.oids) : undefined
  return {
    kind: 'certificate',
    at: authority.now().toISOString(),
    issuerKeyId: issuer.certificate.keyId,
    tbs: prepared.tbs.toString('base64'),
    serial: parsed.serial,
    role,
    uri: parsed.sanUris[0] ?? '',
    groups: profile.extensions.includes('accessGroups') ? readAccessGroups(parsed, authority.oids) : [],
    ...(wireGuard === undefined ? {} : { key: wireGuard.key, possession: wireGuard.possession }),
    addresses: heldAddresses(role, prepared),
    notBefore: parsed.notBefore.toISOString(),
    notAfter: parsed.notAfter.toISOString(),
    ...context,
  }
}

function heldAddresses(role: CertificateRole, prepared: PreparedCertificate): string[] {
  if (role === 'device') return certifiedAddresses(prepared)
  if (role === 'gateway') return prepared.parsed.sanIpAddresses.map((text) => formatPrefix(parseAddress(text)))
  return []
}
