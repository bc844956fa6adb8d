/** Object identifiers: the standard ones, and certpeer's own under the operator's private enterprise number. */
import { CertpeerError } from '../errors.ts'
import type { Role } from '../messages/common.ts'

/** Reserved for documentation (RFC 5612): works everywhere, belongs to nobody; `doctor` warns. */
export const DEFAULT_PEN = 32473

export const OID = {
  // RFC 5480, RFC 5758
  ecPublicKey: '1.2.840.10045.2.1',
  prime256v1: '1.2.840.10045.3.1.7',
  secp384r1: '1.3.132.0.34',
  ecdsaWithSha256: '1.2.840.10045.4.3.2',
  ecdsaWithSha384: '1.2.840.10045.4.3.3',
  sha1: '1.3.14.3.2.26',
  sha256: '2.16.840.1.101.3.4.2.1',
  // X.520
  commonName: '2.5.4.3',
  organizationName: '2.5.4.10',
  // RFC 5280 section 4.2
  subjectKeyIdentifier: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  nameConstraints: '2.5.29.30',
  crlDistributionPoints: '2.5.29.31',
  authorityKeyIdentifier: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  authorityInfoAccess: '1.3.6.1.5.5.7.1.1',
  // RFC 3779 section 2.2.1
  ipAddrBlocks: '1.3.6.1.5.5.7.1.7',
  // RFC 5280 section 5.2 and 5.3
  crlNumber: '2.5.29.20',
  crlReason: '2.5.29.21',
  invalidityDate: '2.5.29.24',
  deltaCrlIndicator: '2.5.29.27',
  issuingDistributionPoint: '2.5.29.28',
  certificateIssuer: '2.5.29.29',
  // RFC 5280 section 4.2.1.12
  anyExtendedKeyUsage: '2.5.29.37.0',
  serverAuth: '1.3.6.1.5.5.7.3.1',
  clientAuth: '1.3.6.1.5.5.7.3.2',
  ocspSigning: '1.3.6.1.5.5.7.3.9',
  // RFC 5280 section 4.2.2.1
  accessOcsp: '1.3.6.1.5.5.7.48.1',
  accessCaIssuers: '1.3.6.1.5.5.7.48.2',
  // RFC 6960
  ocspBasic: '1.3.6.1.5.5.7.48.1.1',
  ocspNonce: '1.3.6.1.5.5.7.48.1.2',
  ocspNoCheck: '1.3.6.1.5.5.7.48.1.5',
  // RFC 2986, PKCS #9
  extensionRequest: '1.2.840.113549.1.9.14',
} as const

/** certpeer's own arcs, 1.3.6.1.4.1.PEN.51820. `pki/certpeer.asn1` is the law; this is its copy in code. */
export interface CertpeerOids {
  readonly pen: number
  /** Certificate and CSR extension: WireGuardKey. */
  readonly wireGuardKey: string
  /** Certificate extension: AccessGroups. */
  readonly accessGroups: string
  /** Extended key usages, one per role. */
  readonly roles: Readonly<Record<Role, string>>
  /** CSR attributes. */
  readonly attributes: {
    readonly possession: string
    readonly renewalSignature: string
    readonly renewalCertificate: string
  }
  /** How possession of the WireGuard key was proven: certpeer-pop-v1. */
  readonly possessionV1: string
  /** Certificate extension of gateways: ServedNetworks. */
  readonly servedNetworks: string
  /** CRL extension: size and root hash of the ledger. */
  readonly ledgerHead: string
}

export function certpeerOids(pen: number): CertpeerOids {
  if (!Number.isInteger(pen) || pen < 1 || pen > 0xffff_ffff) {
    throw new CertpeerError('config_invalid', `private enterprise number ${pen} is not between 1 and 4294967295`)
  }
  const arc = `1.3.6.1.4.1.${pen}.51820`
  return {
    pen,
    wireGuardKey: `${arc}.1`,
    accessGroups: `${arc}.2`,
    roles: {
      device: `${arc}.3.1`,
      gateway: `${arc}.3.2`,
      'operator-admin': `${arc}.3.3`,
      'operator-security': `${arc}.3.4`,
      'operator-enroller': `${arc}.3.5`,
      'operator-auditor': `${arc}.3.6`,
      authority: `${arc}.3.7`,
      server: `${arc}.3.8`,
    },
    attributes: {
      possession: `${arc}.4.1`,
      renewalSignature: `${arc}.4.2`,
      renewalCertificate: `${arc}.4.3`,
    },
    possessionV1: `${arc}.5.1`,
    servedNetworks: `${arc}.6`,
    ledgerHead: `${arc}.7`,
  }
}
