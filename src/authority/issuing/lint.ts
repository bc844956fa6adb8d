/**
 * The last look at a certificate before it becomes a fact: rules over the bytes that will be signed, parsed again as any
 * relying party would. What prepare meant does not count here; what it wrote does.
 */
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { isKeyAddressOf } from '../../core/ipam/key-address.ts'
import { isHostPrefix, parseAddress } from '../../core/ipam/prefix.ts'
import { blocksContain } from '../../core/x509/address-blocks.ts'
import { isP256Spki, publicKeyOf, type Certificate } from '../../core/x509/certificate.ts'
import { readAccessGroups, readServedNetworks, readWireGuardKey } from '../../core/x509/certpeer-extensions.ts'
import { identityHost, parseIdentity, tenantHost } from '../../core/x509/identity.ts'
import type { CertpeerOids } from '../../core/x509/oids.ts'
import { OID } from '../../core/x509/oids.ts'
import { extensionOid, type CompiledProfile } from './profiles.ts'

export interface LintContext {
  readonly certificate: Certificate
  /** The certificate itself for a root. */
  readonly issuer: Certificate
  readonly profile: CompiledProfile
  readonly oids: CertpeerOids
  readonly trustDomain: string
  readonly now: Date
  readonly isSerialUsed: (serial: string) => boolean
}

interface Rule {
  readonly name: string
  readonly reference: string
  /** What is wrong, or undefined. */
  readonly check: (context: LintContext) => string | undefined
}

const MIN_SERIAL_BYTES = 16

export const RULES: readonly Rule[] = [
  {
    name: 'validity',
    reference: 'RFC 5280 4.1.2.5',
    check({ certificate: { notBefore, notAfter }, profile, now }) {
      if (notBefore >= notAfter) return 'notAfter is not after notBefore'
      if (notBefore > now) return 'notBefore is in the future'
      const seconds = (notAfter.getTime() - notBefore.getTime()) / 1000
      if (seconds > profile.maxLifetimeSeconds + profile.backdateSeconds)
        return 'it lives longer than its profile allows'
      if (notAfter <= now) return 'it has ended already'
      return undefined
    },
  },
  {
    name: 'inside-issuer-validity',
    reference: 'RFC 5280 6.1.3',
    check: ({ certificate, issuer }) =>
      certificate.notAfter > issuer.notAfter ? 'it would outlive its issuer' : undefined,
  },
  {
    name: 'serial-entropy',
    reference: 'RFC 5280 4.1.2.2',
    check({ certificate: { serial } }) {
      // At least 16 octets drawn at random; a leading zero octet that parsing drops is one chance in 128.
      const bytes = serial.length / 2
      return bytes < MIN_SERIAL_BYTES || bytes > 20 ? `the serial number has ${bytes} octets` : undefined
    },
  },
  {
    name: 'serial-unique',
    reference: 'RFC 5280 4.1.2.2',
    check: ({ certificate, isSerialUsed }) =>
      isSerialUsed(certificate.serial) ? 'the serial number was used before' : undefined,
  },
  {
    name: 'issuer-name',
    reference: 'RFC 5280 4.1.2.4',
    check({ certificate, issuer, profile }) {
      if (!certificate.issuerDer.equals(issuer.subjectDer)) return "the issuer is not its issuer's subject"
      const isRoot = profile.name === 'root'
      if (!isRoot && certificate.authorityKeyId !== issuer.subjectKeyId)
        return 'the authority key identifier is another'
      if (certificate.commonName === undefined) return 'the subject has no common name'
      return undefined
    },
  },
  {
    name: 'subject-key',
    reference: 'RFC 5480 2.1',
    check({ certificate, profile }) {
      const curve = publicKeyOf(certificate).asymmetricKeyDetails?.namedCurve
      if (isP256Spki(certificate.spki)) return profile.keyTypes.includes('P-256') ? undefined : 'the key is on P-256'
      return curve === 'secp384r1' && profile.keyTypes.includes('P-384')
        ? undefined
        : 'the key is not of a type the profile allows'
    },
  },
  {
    name: 'distinct-from-issuer-key',
    reference: 'RFC 5280 6.1',
    check: ({ certificate, issuer, profile }) =>
      profile.name !== 'root' && certificate.spki.equals(issuer.spki) ? "the key is the issuer's own" : undefined,
  },
  {
    name: 'key-usage',
    reference: 'RFC 5280 4.2.1.3',
    check({ certificate, profile }) {
      if (!sameSet([...(certificate.keyUsage ?? [])], profile.keyUsage)) return "the key usage is not the profile's"
      return certificate.isCa === profile.isCa ? undefined : 'basicConstraints says otherwise than the profile'
    },
  },
  {
    name: 'path-length',
    reference: 'RFC 5280 4.2.1.9',
    check: ({ certificate, profile }) =>
      certificate.pathLength === profile.pathLength ? undefined : "the path length is not the profile's",
  },
  {
    name: 'extended-key-usage',
    reference: 'RFC 5280 4.2.1.12',
    check({ certificate, profile }) {
      const purposes = certificate.extendedKeyUsage ?? []
      return sameSet(purposes, profile.extendedKeyUsage) ? undefined : "the extended key usages are not the profile's"
    },
  },
  {
    name: 'role-allowed-by-issuer',
    reference: 'pki/policy.md, roles',
    check({ certificate, issuer, oids, profile }) {
      if (profile.isCa) return undefined
      const allowed = issuer.extendedKeyUsage ?? []
      const roles: readonly string[] = Object.values(oids.roles)
      const beyond = (certificate.extendedKeyUsage ?? []).find(
        (purpose) => roles.includes(purpose) && !allowed.includes(purpose),
      )
      return beyond === undefined ? undefined : `the issuer may not issue the role ${beyond}`
    },
  },
  {
    name: 'identity',
    reference: 'SPIFFE-ID 2, RFC 5280 4.2.1.6',
    check({ certificate, profile, trustDomain }) {
      const { sanUris, sanOtherCount } = certificate
      if (sanOtherCount > 0) return 'it has alternative names of other kinds'
      if (profile.san === 'none')
        return sanUris.length === 0 ? undefined : 'it has an identity that its profile does not'
      const [uri] = sanUris
      if (uri === undefined || sanUris.length !== 1) return `it has ${sanUris.length} identities`
      try {
        const { kind } = parseIdentity(uri, trustDomain)
        return profile.role?.split('-')[0] === kind ? undefined : `its identity is of a ${kind}`
      } catch (error) {
        if (errorCode(error) === 'internal') throw error
        return 'its URI is no identity of this trust domain'
      }
    },
  },
  {
    name: 'alternative-names',
    reference: 'RFC 5280 4.2.1.6',
    check({ certificate: { sanDnsNames, sanIpAddresses, addressBlocks }, issuer, profile }) {
      if (profile.san !== 'identity+server' && sanDnsNames.length > 0) return 'it has DNS names'
      if (profile.san === 'identity+server') {
        return sanDnsNames.length + sanIpAddresses.length > 0 ? undefined : 'a server needs a DNS name or an address'
      }
      if (profile.san !== 'identity+addresses') return sanIpAddresses.length === 0 ? undefined : 'it has addresses'
      if (sanIpAddresses.length === 0) return 'a gateway needs a tunnel address'
      const addresses = sanIpAddresses.map(parseAddress)
      if (!blocksContain(issuer.addressBlocks ?? [], addresses)) return "a tunnel address is outside its issuer's block"
      return blocksContain(addressBlocks ?? [], addresses) ? undefined : 'a tunnel address is outside what it serves'
    },
  },
  {
    name: 'name-constraints',
    reference: 'RFC 5280 4.2.1.10',
    check({ certificate, issuer }) {
      const permitted = issuer.permittedUriHosts
      if (permitted === undefined) return undefined
      const outside = certificate.sanUris
        .map(identityHost)
        .find((host) => !permitted.some((name) => isUnder(host, name)))
      return outside === undefined ? undefined : `the identity's host ${outside} is not one its issuer may name`
    },
  },
  {
    name: 'device-of-issuers-tenant',
    reference: 'pki/policy.md, tenants',
    check({ certificate, issuer, profile, trustDomain }) {
      const [uri] = certificate.sanUris
      if (profile.role !== 'device' || uri === undefined) return undefined
      const identity = parseIdentity(uri, trustDomain)
      if (identity.kind !== 'device') return 'a device certificate without a device'
      const host = tenantHost(identity.tenant, trustDomain)
      return issuer.permittedUriHosts?.includes(host) === true ? undefined : "its issuer is not its tenant's"
    },
  },
  {
    name: 'address-block',
    reference: 'RFC 3779 2.3',
    check({ certificate: { addressBlocks }, issuer, profile }) {
      if (profile.extensions.includes('ipAddrBlocks') !== (addressBlocks !== undefined))
        return 'the address block is missing or too much'
      if (addressBlocks === undefined || profile.name === 'root') return undefined
      return blocksContain(issuer.addressBlocks ?? [], addressBlocks)
        ? undefined
        : "the address block is outside its issuer's"
    },
  },
  {
    name: 'device-addresses',
    reference: 'RFC 3779 2.2.3.8, pki/policy.md, addresses',
    check({ certificate, profile, oids }) {
      if (profile.role !== 'device') return undefined
      const blocks = certificate.addressBlocks ?? []
      if (!blocks.every(isHostPrefix)) return 'a device gets single addresses'
      const { key } = readWireGuardKey(certificate, oids)
      const own = blocks.filter((block) => !isKeyAddressOf(block, key))
      if (blocks.length - own.length !== 1) return 'it does not have exactly one key address'
      if (own.length === 0) return 'it has no tunnel address'
      return own.filter((block) => block.family === 4).length > 1 ||
        own.filter((block) => block.family === 6).length > 1
        ? 'it has two tunnel addresses of one family'
        : undefined
    },
  },
  {
    name: 'wireguard-key',
    reference: 'RFC 7748 5, pki/certpeer.asn1',
    check({ certificate, profile, oids }) {
      if (!profile.extensions.includes('wireGuardKey')) return undefined
      return readable(() => readWireGuardKey(certificate, oids))
    },
  },
  {
    name: 'groups-and-networks',
    reference: 'pki/certpeer.asn1',
    check({ certificate, profile, oids }) {
      if (profile.extensions.includes('servedNetworks')) return readable(() => readServedNetworks(certificate, oids))
      return profile.extensions.includes('accessGroups')
        ? readable(() => readAccessGroups(certificate, oids))
        : undefined
    },
  },
  {
    name: 'extension-set',
    reference: 'RFC 5280 4.2',
    check({ certificate, profile, oids }) {
      // The URLs in a CA's certificate depend on where it will publish; a ceremony may not know yet.
      const optional: readonly string[] = profile.isCa ? [OID.crlDistributionPoints, OID.authorityInfoAccess] : []
      const wanted = profile.extensions.map((extension) => extensionOid(extension, oids))
      const missing = wanted.find((oid) => !certificate.extensions.has(oid) && !optional.includes(oid))
      if (missing !== undefined) return `extension ${missing} is missing`
      const extra = [...certificate.extensions.keys()].find((oid) => !wanted.includes(oid))
      return extra === undefined ? undefined : `extension ${extra} is not the profile's`
    },
  },
  {
    name: 'criticality',
    reference: 'RFC 5280 4.2.1',
    check({ certificate, profile }) {
      const critical = new Set<string>([OID.keyUsage, OID.basicConstraints, OID.nameConstraints])
      for (const [oid, extension] of certificate.extensions) {
        if (extension.critical !== critical.has(oid))
          return `extension ${oid} of a ${profile.name} has the wrong criticality`
      }
      return undefined
    },
  },
]

/** Throws lint_failed with the first rule that a certificate breaks; it names rule and reference, for the log and the operator. */
export function lint(context: LintContext): void {
  for (const rule of RULES) {
    const fault = rule.check(context)
    if (fault === undefined) continue
    throw new CertpeerError(
      'lint_failed',
      `the certificate would break rule ${rule.name} (${rule.reference}): ${fault}; nothing was issued`,
    )
  }
}

/** Hosts with a leading dot in a constraint stand for everything below (RFC 5280 4.2.1.10), others for themselves. */
function isUnder(host: string, constraint: string): boolean {
  return constraint.startsWith('.') ? host.endsWith(constraint) : host === constraint
}

function sameSet(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && new Set(a).size === a.length && a.every((item) => b.includes(item))
}

function readable(read: () => unknown): string | undefined {
  try {
    read()
    return undefined
  } catch (error) {
    if (errorCode(error) === 'internal' || !(error instanceof Error)) throw error
    return error.message
  }
}
