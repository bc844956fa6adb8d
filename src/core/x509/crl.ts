/**
 * Certificate revocation lists (RFC 5280 section 5): complete ones only. A CRL with an issuing distribution point, a
 * delta indicator, an indirect entry or any critical extension we do not know would mean less, or something else, than
 * it seems to, so it is refused as a whole.
 */
import {
  integerContent,
  readBitString,
  readCertificateTime,
  readDer,
  readEnumerated,
  readExplicit,
  readInteger,
  readOctetString,
  readSequence,
  readSmallInteger,
  type DerReader,
  type DerValue,
} from '../der/reader.ts'
import {
  contextTag,
  derContext,
  derEnumerated,
  derInteger,
  derOctetString,
  derSequence,
  derTime,
  TAG,
} from '../der/writer.ts'
import { CertpeerError } from '../errors.ts'
import type { RevocationReason } from '../messages/common.ts'
import {
  publicKeyOf,
  readAlgorithm,
  readExtensions,
  verifySignature,
  type Certificate,
  type Extension,
} from './certificate.ts'
import { encodeExtension, signatureAlgorithmFor } from './encode.ts'
import { authorityKeyIdentifier } from './extensions.ts'
import { OID, type CertpeerOids } from './oids.ts'
import { serialFromDer, serialToDerInteger, type Serial } from './serial.ts'

/** CRLReason ::= ENUMERATED, RFC 5280 section 5.3.1. 6 (certificateHold) and 8 (removeFromCRL) are not ours. */
export const CRL_REASONS = {
  unspecified: 0,
  keyCompromise: 1,
  cACompromise: 2,
  affiliationChanged: 3,
  superseded: 4,
  cessationOfOperation: 5,
  privilegeWithdrawn: 9,
  aACompromise: 10,
} as const satisfies Record<RevocationReason, number>

const REASON_OF_NUMBER: ReadonlyMap<number, RevocationReason> = new Map(
  Object.entries(CRL_REASONS).map(([name, number]) => [number, name as RevocationReason]),
)

/** The reason's name; undefined for one that is not ours. */
export function crlReasonOfNumber(number: number): RevocationReason | undefined {
  return REASON_OF_NUMBER.get(number)
}

export interface RevokedEntry {
  readonly revokedAt: Date
  readonly reason: RevocationReason
}

/** Where the authority's ledger stood when it made the CRL: a ledger cut short later shows. */
export interface LedgerHead {
  readonly size: number
  /** RFC 9162 Merkle tree root, 32 bytes. */
  readonly rootHash: Buffer
}

export interface Crl {
  readonly der: Buffer
  readonly tbs: Buffer
  readonly issuerDer: Buffer
  readonly thisUpdate: Date
  readonly nextUpdate: Date
  readonly number: bigint
  /** Lower-case hex. */
  readonly authorityKeyId: string
  readonly entries: ReadonlyMap<Serial, RevokedEntry>
  readonly ledgerHead?: LedgerHead
  /** OID. */
  readonly signatureAlgorithm: string
  readonly signature: Buffer
}

/**
 * Parses a DER CertificateList; time and memory are linear in its entries. Throws malformed_crl. Checks neither
 * signature (`verifyCrl`) nor freshness. `oids` names the ledger head's extension; without it none is looked for.
 */
export function parseCrl(der: Buffer, oids?: CertpeerOids): Crl {
  try {
    return parse(der, oids)
  } catch (error) {
    if (error instanceof CertpeerError && error.code === 'malformed_der') throw malformed(error.message, error)
    throw error
  }
}

/** Throws malformed_crl unless `issuer` is a CA that may sign CRLs and signed this one. Not a word on freshness. */
export function verifyCrl(crl: Crl, issuer: Certificate): void {
  if (!crl.issuerDer.equals(issuer.subjectDer)) throw malformed('it names another issuer')
  if (crl.authorityKeyId !== issuer.subjectKeyId) throw malformed('it names another issuer key')
  if (!issuer.isCa || issuer.keyUsage?.has('cRLSign') !== true) throw malformed('its issuer may not sign CRLs')
  if (!verifySignature(crl.tbs, crl.signatureAlgorithm, crl.signature, publicKeyOf(issuer))) {
    throw malformed('its signature does not verify')
  }
}

/** One revokedCertificates element; made once per revocation and kept, a CRL is then their concatenation. */
export function encodeCrlEntry(entry: {
  readonly serial: Serial
  readonly revokedAt: Date
  readonly reason: RevocationReason
}): Buffer {
  const parts = [serialToDerInteger(entry.serial), derTime(entry.revokedAt)]
  // RFC 5280 5.3.1: the reason is left out rather than written as unspecified.
  if (entry.reason !== 'unspecified') {
    const reason = derEnumerated(CRL_REASONS[entry.reason])
    parts.push(derSequence(encodeExtension(OID.crlReason, false, reason)))
  }
  return derSequence(...parts)
}

/** The TBSCertList to be signed by `issuer`; `entries` are encoded entries, concatenated. */
export function encodeTbsCertList(input: {
  readonly issuer: Certificate
  readonly thisUpdate: Date
  readonly nextUpdate: Date
  readonly number: bigint
  readonly entries: Buffer
  readonly ledgerHead?: LedgerHead
  readonly oids: CertpeerOids
}): Buffer {
  const { issuer, ledgerHead } = input
  const extensions = [authorityKeyIdentifier(issuer), encodeExtension(OID.crlNumber, false, derInteger(input.number))]
  if (ledgerHead !== undefined) {
    extensions.push(encodeExtension(input.oids.ledgerHead, false, encodeLedgerHead(ledgerHead)))
  }
  return derSequence(
    derInteger(1), // v2
    signatureAlgorithmFor(publicKeyOf(issuer)).der,
    issuer.subjectDer,
    derTime(input.thisUpdate),
    derTime(input.nextUpdate),
    // RFC 5280 5.1.2.6: absent, not empty, when nothing is revoked.
    ...(input.entries.length === 0 ? [] : [derSequence(input.entries)]),
    derContext(0, derSequence(...extensions), true),
  )
}

function parse(der: Buffer, oids: CertpeerOids | undefined): Crl {
  const list = readSequence(readDer(der))
  const tbs = list.read(TAG.sequence)
  const algorithm = list.read(TAG.sequence)
  const { unusedBits, bytes: signature } = readBitString(list.read(TAG.bitString))
  list.end()
  if (unusedBits !== 0) throw malformed('its signature is not whole octets')

  const fields = readSequence(tbs)
  if (readSmallInteger(fields.read(TAG.integer)) !== 1) throw malformed('it is not version 2')
  const innerAlgorithm = fields.read(TAG.sequence)
  if (!innerAlgorithm.bytes.equals(algorithm.bytes)) throw malformed('its two signature algorithms differ')
  const issuerDer = fields.read(TAG.sequence).bytes
  const thisUpdate = readCertificateTime(fields.read())
  if (fields.peekTag() !== TAG.utcTime && fields.peekTag() !== TAG.generalizedTime) {
    throw malformed('it has no nextUpdate')
  }
  const nextUpdate = readCertificateTime(fields.read())
  if (nextUpdate <= thisUpdate) throw malformed('its nextUpdate is not after its thisUpdate')
  const revoked = fields.readOptional(TAG.sequence)
  const extensionsField = fields.readOptional(contextTag(0, true))
  fields.end()
  if (extensionsField === undefined) throw malformed('it has no extensions')

  const extensions = readExtensions(readExplicit(extensionsField, contextTag(0, true)))
  const known = readCrlExtensions(extensions, oids)
  return {
    der,
    tbs: tbs.bytes,
    issuerDer,
    thisUpdate,
    nextUpdate,
    ...known,
    entries: revoked === undefined ? new Map<Serial, RevokedEntry>() : parseEntries(readSequence(revoked)),
    signatureAlgorithm: readAlgorithm(algorithm),
    signature,
  }
}

function parseEntries(reader: DerReader): Map<Serial, RevokedEntry> {
  const entries = new Map<Serial, RevokedEntry>()
  // At least one: RFC 5280 5.1.2.6 wants the list absent, not empty, and an empty one fails in the first read.
  do {
    const fields = readSequence(reader.read())
    const serial = serialFromDer(fields.read())
    const revokedAt = readCertificateTime(fields.read())
    const extensions = fields.readOptional(TAG.sequence)
    fields.end()
    if (entries.has(serial)) throw malformed(`it names serial ${serial} twice`)
    const reason = extensions === undefined ? 'unspecified' : readEntryReason(extensions)
    entries.set(serial, { revokedAt, reason })
  } while (!reader.atEnd)
  return entries
}

function readEntryReason(extensions: DerValue): RevocationReason {
  let reason: RevocationReason = 'unspecified'
  for (const [oid, { critical, value }] of readExtensions(extensions)) {
    if (oid === OID.crlReason) {
      const number = readEnumerated(readDer(value))
      const name = crlReasonOfNumber(number)
      if (name === undefined) throw malformed(`an entry has reason ${number}, which a complete CRL of ours never has`)
      reason = name
    } else if (critical || oid === OID.certificateIssuer) {
      // certificateIssuer turns the entry into one about another CA's certificate (RFC 5280 5.3.3).
      throw malformed(`an entry has the critical extension ${oid}`)
    }
  }
  return reason
}

function readCrlExtensions(
  extensions: ReadonlyMap<string, Extension>,
  oids: CertpeerOids | undefined,
): Pick<Crl, 'number' | 'authorityKeyId' | 'ledgerHead'> {
  for (const [oid, { critical }] of extensions) {
    if (oid === OID.issuingDistributionPoint || oid === OID.deltaCrlIndicator) {
      throw malformed('it is not a complete CRL for its issuer')
    }
    if (critical && oid !== OID.crlNumber && oid !== OID.authorityKeyIdentifier) {
      throw malformed(`it has the unknown critical extension ${oid}`)
    }
  }
  const numberValue = extensions.get(OID.crlNumber)?.value
  const keyIdValue = extensions.get(OID.authorityKeyIdentifier)?.value
  if (numberValue === undefined) throw malformed('it has no CRL number')
  if (keyIdValue === undefined) throw malformed('it has no authority key identifier')
  const numberDer = readDer(numberValue)
  const number = readInteger(numberDer)
  if (number < 0n || integerContent(numberDer).length > 20) throw malformed('its number is not 0 to 2^159 - 1')
  const headValue = oids === undefined ? undefined : extensions.get(oids.ledgerHead)?.value
  return {
    number,
    authorityKeyId: readKeyId(keyIdValue),
    ...(headValue === undefined ? {} : { ledgerHead: parseLedgerHead(headValue) }),
  }
}

/** AuthorityKeyIdentifier with its keyIdentifier alone, RFC 5280 section 4.2.1.1. */
function readKeyId(value: Buffer): string {
  const fields = readSequence(readDer(value))
  const keyId = readOctetString(fields.read(), contextTag(0, false))
  fields.end()
  if (keyId.length === 0) throw malformed('its authority key identifier is empty')
  return keyId.toString('hex')
}

/** LedgerHead ::= SEQUENCE { size INTEGER (0..MAX), rootHash OCTET STRING (SIZE (32)) } */
function encodeLedgerHead(head: LedgerHead): Buffer {
  if (head.rootHash.length !== 32) throw new TypeError('the root hash of a ledger head has 32 bytes')
  return derSequence(derInteger(head.size), derOctetString(head.rootHash))
}

function parseLedgerHead(value: Buffer): LedgerHead {
  const fields = readSequence(readDer(value))
  const size = readSmallInteger(fields.read())
  const rootHash = readOctetString(fields.read())
  fields.end()
  if (rootHash.length !== 32) throw malformed('the root hash of its ledger head has not 32 bytes')
  return { size, rootHash }
}

function malformed(fault: string, cause?: unknown): CertpeerError {
  return new CertpeerError('malformed_crl', `the CRL cannot be used: ${fault}`, { cause })
}
