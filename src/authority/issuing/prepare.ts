/**
 * From decided facts to the TBSCertificate. `prepare` builds it by its profile, parses what it built and lints that; a
 * PreparedCertificate is the proof that this happened, and the ledger takes nothing else (Boulder's issuance token).
 */
import type { Prefix } from '../../core/ipam/prefix.ts'
import { comparePrefixes, formatPrefix } from '../../core/ipam/prefix.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import { parseCertificate, type Certificate } from '../../core/x509/certificate.ts'
import { assembleSigned, encodeName, encodeTbsCertificate } from '../../core/x509/encode.ts'
import type { SignatureAlgorithm } from '../../core/x509/encode.ts'
import {
  accessGroupsExtension,
  authorityInfoAccess,
  authorityKeyIdentifier,
  basicConstraints,
  crlDistributionPoints,
  extendedKeyUsage,
  ipAddrBlocks,
  keyUsage,
  nameConstraintsUri,
  ocspNoCheck,
  servedNetworksExtension,
  subjectAltName,
  subjectKeyIdentifier,
  wireGuardKeyExtension,
} from '../../core/x509/extensions.ts'
import type { CertpeerOids } from '../../core/x509/oids.ts'
import type { Serial } from '../../core/x509/serial.ts'
import type { ProfileExtension } from '../../platform/config/authority.ts'
import { lint } from './lint.ts'
import type { CompiledProfile } from './profiles.ts'

/** What was decided, by policy and ledger; never what a CSR asked for. */
export interface CertificateFacts {
  readonly commonName: string
  readonly organization?: string | undefined
  /** SubjectPublicKeyInfo. */
  readonly spki: Buffer
  readonly serial: Serial
  readonly notBefore: Date
  readonly notAfter: Date
  /** The identity; absent for CAs and OCSP signers. */
  readonly uri?: string
  readonly dns?: readonly string[]
  readonly ips?: readonly string[]
  readonly wireGuard?: { readonly key: WireGuardKey; readonly possession: boolean }
  readonly addressBlocks?: readonly Prefix[]
  readonly groups?: readonly string[]
  readonly servedNetworks?: readonly string[]
  readonly permittedUriHosts?: readonly string[]
  readonly urls?: { readonly crl: string; readonly ocsp?: string; readonly caIssuers: string }
}

export interface PrepareContext {
  readonly profile: CompiledProfile
  /** Absent for a root, which is its own. */
  readonly issuer?: Certificate
  readonly algorithm: SignatureAlgorithm
  readonly oids: CertpeerOids
  readonly trustDomain: string
  readonly now: Date
  readonly isSerialUsed: (serial: string) => boolean
}

declare const preparedBrand: unique symbol
/** A TBSCertificate that passed the lint. Made by `prepare` alone. */
export interface PreparedCertificate {
  readonly [preparedBrand]: true
  readonly tbs: Buffer
  readonly profile: CompiledProfile
  /** The TBS as parsed back, with an empty place where the signature will be. */
  readonly parsed: Certificate
  readonly issuer: Certificate
}

/** ECDSA signatures are larger; nobody verifies this one. */
const NO_SIGNATURE = Buffer.alloc(8)

/** Throws lint_failed, or what an encoder throws for a name that no certificate can hold. */
export function prepare(facts: CertificateFacts, context: PrepareContext): PreparedCertificate {
  const subjectDer = encodeName(facts.commonName, facts.organization)
  const tbs = encodeTbsCertificate({
    serial: facts.serial,
    signatureAlgorithm: context.algorithm.der,
    issuerDer: context.issuer?.subjectDer ?? subjectDer,
    notBefore: facts.notBefore,
    notAfter: facts.notAfter,
    subjectDer,
    spki: facts.spki,
    extensions: context.profile.extensions.flatMap((extension) => encode(extension, facts, context) ?? []),
  })
  const parsed = parseCertificate(assembleSigned(tbs, context.algorithm.der, NO_SIGNATURE))
  const issuer = context.issuer ?? parsed
  lint({ ...context, certificate: parsed, issuer })
  return { tbs, profile: context.profile, parsed, issuer } as PreparedCertificate // linted just above
}

/** Address texts with their length, in the order of the certificate, for the ledger. */
export function certifiedAddresses(prepared: PreparedCertificate): string[] {
  return [...(prepared.parsed.addressBlocks ?? [])].sort(comparePrefixes).map(formatPrefix)
}

/** One extension, or undefined where the facts leave nothing to say and the lint decides whether that is allowed. */
function encode(extension: ProfileExtension, facts: CertificateFacts, context: PrepareContext): Buffer | undefined {
  const { profile, issuer, oids } = context
  switch (extension) {
    case 'authorityKeyIdentifier':
      return issuer && authorityKeyIdentifier(issuer)
    case 'subjectKeyIdentifier':
      return subjectKeyIdentifier(facts.spki)
    case 'basicConstraints':
      return basicConstraints(profile.isCa, profile.pathLength)
    case 'keyUsage':
      return keyUsage(profile.keyUsage)
    case 'extendedKeyUsage':
      return extendedKeyUsage(profile.extendedKeyUsage)
    case 'subjectAltName':
      return facts.uri === undefined
        ? undefined
        : subjectAltName({ uris: [facts.uri], dns: facts.dns ?? [], ips: facts.ips ?? [] })
    case 'nameConstraints':
      return facts.permittedUriHosts && nameConstraintsUri(facts.permittedUriHosts)
    case 'cRLDistributionPoints':
      return facts.urls && crlDistributionPoints([facts.urls.crl])
    case 'authorityInfoAccess':
      return (
        facts.urls &&
        authorityInfoAccess({
          ...(facts.urls.ocsp === undefined ? {} : { ocsp: facts.urls.ocsp }),
          caIssuers: facts.urls.caIssuers,
        })
      )
    case 'ipAddrBlocks':
      return facts.addressBlocks && ipAddrBlocks(facts.addressBlocks)
    case 'wireGuardKey':
      return facts.wireGuard && wireGuardKeyExtension(oids, facts.wireGuard.key, facts.wireGuard.possession)
    case 'accessGroups':
      return accessGroupsExtension(oids, facts.groups ?? [])
    case 'servedNetworks':
      return facts.servedNetworks && servedNetworksExtension(oids, facts.servedNetworks)
    case 'ocspNoCheck':
      return ocspNoCheck()
    default:
      return extension satisfies never
  }
}
