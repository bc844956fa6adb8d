/**
 * Whom to believe: a leaf below an issuing CA below the one pinned root, RFC 5280 section 6 for this one shape, RFC 3779
 * section 2.3, and certpeer's own law: one role, one identity, and a CA issues only the roles that it names. Everything
 * that decides is in the certificates and the arguments. Revocation is not looked at here.
 */
import { CertpeerError } from '../errors.ts'
import { ROLES, type Role } from '../messages/common.ts'
import { isKeyAddressOf } from '../ipam/key-address.ts'
import { isHostPrefix, parseAddress, type Prefix } from '../ipam/prefix.ts'
import type { WireGuardKey } from '../wireguard/key.ts'
import { blocksContain } from './address-blocks.ts'
import { publicKeyOf, verifySignature, type Certificate } from './certificate.ts'
import { readAccessGroups, readServedNetworks, readWireGuardKey } from './certpeer-extensions.ts'
import { identityHost, parseIdentity, tenantHost, type Identity } from './identity.ts'
import { OID, type CertpeerOids } from './oids.ts'
import type { Serial } from './serial.ts'

/** What verifyCertificate makes, and nobody else: a leaf that was believed at one instant. */
export interface VerifiedCertificate {
  readonly certificate: Certificate
  readonly issuer: Certificate
  readonly root: Certificate
  readonly role: Role
  readonly identity: Identity
  /** The identity as it stands in the certificate. */
  readonly uri: string
}

export interface DeviceFacts {
  readonly identity: Extract<Identity, { kind: 'device' }>
  readonly uri: string
  readonly tenant: string
  readonly network: string
  readonly id: string
  readonly key: WireGuardKey
  readonly possession: boolean
  /** The /32 and /128 out of the network's pools: one or two. */
  readonly addresses: readonly Prefix[]
  readonly keyAddress: Prefix
  /** Everything certified, key address included, in canonical order. */
  readonly allowedIps: readonly Prefix[]
  readonly groups: readonly string[]
  readonly serial: Serial
  readonly issuerKeyId: string
  readonly notBefore: Date
  readonly notAfter: Date
}

export interface GatewayFacts {
  readonly name: string
  readonly uri: string
  readonly key: WireGuardKey
  readonly tunnelAddresses: readonly string[]
  readonly servedPrefixes: readonly Prefix[]
  /** `<tenant>/<network>` each. */
  readonly servedNetworks: readonly string[]
  readonly serial: Serial
  readonly issuerKeyId: string
  readonly notBefore: Date
  readonly notAfter: Date
}

export interface VerifyOptions {
  readonly certificate: Certificate
  /** Candidates only: each is verified under the root before it is believed. */
  readonly issuers: readonly Certificate[]
  readonly root: Certificate
  readonly now: Date
  /** Roles that may ask here; every role when absent. */
  readonly roles?: readonly Role[]
  readonly oids: CertpeerOids
  readonly trustDomain: string
}

/**
 * Verifies root → issuer → leaf and returns who the leaf is. Throws certificate_untrusted when the chain does not hold,
 * bad_client_certificate when the leaf is not what certpeer issues or its role may not ask here, and
 * certificate_expired when nothing but a validity fails. Does not look at revocation.
 */
export function verifyCertificate(options: VerifyOptions): VerifiedCertificate {
  let fault: CertpeerError | undefined
  for (const issuer of options.issuers) {
    if (!isNamedBy(options.certificate, issuer)) continue
    try {
      return verifyUnder(issuer, options)
    } catch (error) {
      if (!(error instanceof CertpeerError)) throw error
      // A CA certificate may be renewed with the same key: any of them will do, and the first one's fault is told.
      fault ??= error
    }
  }
  throw fault ?? untrusted('no issuing CA is known for the certificate')
}

/**
 * Verifies that an issuing CA stands directly below the root and may issue at all. Throws certificate_untrusted, or
 * certificate_expired when nothing but a validity fails. Which roles it may issue is verifyCertificate's question.
 */
export function verifyIssuer(options: {
  readonly issuer: Certificate
  readonly root: Certificate
  readonly now: Date
  readonly oids: CertpeerOids
}): void {
  const { issuer, root, now, oids } = options
  requireIssuerForm(issuer, root)
  if (!ROLES.some((role) => issuer.extendedKeyUsage?.includes(oids.roles[role]) === true)) {
    throw untrusted('the issuing CA names no role that it may issue')
  }
  requireValid(issuer, now, 'issuing CA')
  requireValid(root, now, 'root')
}

/** Reads what a device's certificate grants. Throws bad_client_certificate or bad_wireguard_key. */
export function readDevice(verified: VerifiedCertificate, oids: CertpeerOids): DeviceFacts {
  const { certificate, issuer, identity, uri } = verified
  if (identity.kind !== 'device') throw bad(`belongs to a ${identity.kind}, not to a device`)
  const { key, possession } = readWireGuardKey(certificate, oids)
  const allowedIps = certificate.addressBlocks ?? []
  if (!allowedIps.every(isHostPrefix)) throw bad('grants a device more than single addresses')
  const [keyAddress, ...otherKeyAddresses] = allowedIps.filter((prefix) => isKeyAddressOf(prefix, key))
  if (keyAddress === undefined || otherKeyAddresses.length > 0) {
    throw bad('does not have exactly one address that is made from its WireGuard key')
  }
  const addresses = allowedIps.filter((prefix) => prefix !== keyAddress)
  const v4 = addresses.filter((prefix) => prefix.family === 4)
  if (addresses.length === 0 || v4.length > 1 || addresses.length - v4.length > 1) {
    throw bad('does not have one tunnel address, or one of each family')
  }
  return {
    identity,
    uri,
    tenant: identity.tenant,
    network: identity.network,
    id: identity.id,
    key,
    possession,
    addresses,
    keyAddress,
    allowedIps,
    groups: readAccessGroups(certificate, oids),
    serial: certificate.serial,
    issuerKeyId: issuer.keyId,
    notBefore: certificate.notBefore,
    notAfter: certificate.notAfter,
  }
}

/** Reads what a gateway's certificate says of it. Throws bad_client_certificate or bad_wireguard_key. */
export function readGateway(verified: VerifiedCertificate, oids: CertpeerOids): GatewayFacts {
  const { certificate, issuer, identity, uri } = verified
  if (identity.kind !== 'gateway') throw bad(`belongs to a ${identity.kind}, not to a gateway`)
  const tunnelAddresses = certificate.sanIpAddresses
  if (tunnelAddresses.length === 0) throw bad('has no tunnel address')
  // A tunnel address stands outside RFC 3779's reach; the CA's block holds for it all the same.
  if (!blocksContain(issuer.addressBlocks ?? [], tunnelAddresses.map(parseAddress))) {
    throw bad("has a tunnel address outside its issuing CA's block")
  }
  const servedNetworks = readServedNetworks(certificate, oids)
  if (servedNetworks.length === 0) throw bad('serves no network')
  return {
    name: identity.name,
    uri,
    key: readWireGuardKey(certificate, oids).key,
    tunnelAddresses,
    servedPrefixes: certificate.addressBlocks ?? [],
    servedNetworks,
    serial: certificate.serial,
    issuerKeyId: issuer.keyId,
    notBefore: certificate.notBefore,
    notAfter: certificate.notAfter,
  }
}

function verifyUnder(issuer: Certificate, options: VerifyOptions): VerifiedCertificate {
  const { certificate, root, now, oids } = options
  requireIssuerForm(issuer, root)
  requireSignature(certificate, issuer, 'certificate')
  requireLeafForm(certificate)
  const role = readRole(certificate, oids)
  requireMayIssue(issuer, role, oids)
  const { identity, uri } = readIdentity(certificate, role, options.trustDomain)
  requireNameInside(issuer, uri)
  requireNameInside(root, uri)
  if (identity.kind === 'device') requireTenant(issuer, identity.tenant, options.trustDomain)
  requireBlockInside(certificate, issuer, role)
  if (options.roles?.includes(role) === false) {
    throw bad(`has the role ${role}; here it takes ${options.roles.join(' or ')}`)
  }
  requireValid(certificate, now, 'certificate')
  requireValid(issuer, now, 'issuing CA')
  requireValid(root, now, 'root')
  return { certificate, issuer, root, role, identity, uri }
}

/** RFC 5280 6.1.3 (a)(4): issuer name, and the key identifier that picks among CAs of one name. Both must be there. */
function isNamedBy(certificate: Certificate, issuer: Certificate): boolean {
  return (
    certificate.issuerDer.equals(issuer.subjectDer) &&
    certificate.authorityKeyId !== undefined &&
    certificate.authorityKeyId === issuer.subjectKeyId
  )
}

/** Everything about an issuing CA and the root that no clock and no leaf can change. */
function requireIssuerForm(issuer: Certificate, root: Certificate): void {
  if (issuer.subjectDer.equals(root.subjectDer)) throw untrusted('the root itself must not issue to leaves')
  if (!isNamedBy(issuer, root)) throw untrusted('the issuing CA is not under this root')
  for (const [ca, what] of [
    [root, 'root'],
    [issuer, 'issuing CA'],
  ] as const) {
    if (!ca.isCa) throw untrusted(`the ${what} is not a CA`)
    if (ca.keyUsage?.has('keyCertSign') !== true) throw untrusted(`the ${what} may not sign certificates`)
    requireNoUnknownCritical(ca, what)
  }
  // One CA stands below the root; a path length of 0 there forbids it (RFC 5280 4.2.1.9).
  if (root.pathLength === 0) throw untrusted("the root's path length allows no issuing CA")
  if (issuer.addressBlocks !== undefined && !blocksContain(root.addressBlocks ?? [], issuer.addressBlocks)) {
    throw untrusted("the issuing CA's address block is not inside the root's")
  }
  requireSignature(issuer, root, 'issuing CA')
}

function requireLeafForm(certificate: Certificate): void {
  if (certificate.isCa) throw bad('is a CA and cannot be anybody else')
  const usages = certificate.keyUsage
  if (usages?.has('digitalSignature') !== true || usages.has('keyCertSign') || usages.has('cRLSign')) {
    throw bad('must have key usage digitalSignature and none of a CA')
  }
  requireNoUnknownCritical(certificate, 'certificate')
}

function requireNoUnknownCritical(certificate: Certificate, what: string): void {
  const [oid] = certificate.unknownCriticalExtensions
  if (oid !== undefined) throw untrusted(`the ${what} has a critical extension that is not known here (${oid})`)
}

/** Signatures once proven, per pair of parsed certificates: parsing a certificate anew asks anew. */
const proven = new WeakMap<Certificate, WeakSet<Certificate>>()

function requireSignature(certificate: Certificate, signer: Certificate, what: string): void {
  const signers = proven.get(certificate)
  if (signers?.has(signer) === true) return
  const { tbs, signatureAlgorithm, signature } = certificate
  if (!verifySignature(tbs, signatureAlgorithm, signature, publicKeyOf(signer))) {
    throw untrusted(`the signature of the ${what} does not hold`)
  }
  if (signers === undefined) proven.set(certificate, new WeakSet([signer]))
  else signers.add(signer)
}

/** The purpose of TLS that goes with a role. */
function tlsPurpose(role: Role): string {
  return role === 'server' ? OID.serverAuth : OID.clientAuth
}

/** Exactly two purposes: that of TLS, and one role. A third would be a power that the role does not have. */
function readRole(certificate: Certificate, oids: CertpeerOids): Role {
  const purposes = certificate.extendedKeyUsage ?? []
  const [role, ...more] = ROLES.filter((candidate) => purposes.includes(oids.roles[candidate]))
  if (role === undefined || more.length > 0) throw bad('must have exactly one role among its extended key usages')
  if (!purposes.includes(tlsPurpose(role))) {
    throw bad(`lacks the extended key usage ${role === 'server' ? 'serverAuth' : 'clientAuth'} that its role needs`)
  }
  if (purposes.length !== 2) throw bad('has extended key usages beside its role')
  return role
}

/** OpenSSL does not nest private purposes, so this is the only place where a CA is held to the roles it may issue. */
function requireMayIssue(issuer: Certificate, role: Role, oids: CertpeerOids): void {
  const purposes = issuer.extendedKeyUsage ?? []
  if (!purposes.includes(oids.roles[role])) throw untrusted(`the issuing CA may not issue to a ${role}`)
  if (!purposes.includes(tlsPurpose(role))) {
    throw untrusted(`the issuing CA lacks the extended key usage ${role === 'server' ? 'serverAuth' : 'clientAuth'}`)
  }
}

function readIdentity(certificate: Certificate, role: Role, trustDomain: string): { identity: Identity; uri: string } {
  const [uri, ...more] = certificate.sanUris
  if (uri === undefined || more.length > 0) throw bad('must have exactly one URI among its alternative names')
  if (certificate.sanOtherCount > 0) throw bad('has alternative names of a kind that is not used here')
  let identity: Identity
  try {
    identity = parseIdentity(uri, trustDomain)
  } catch (cause) {
    throw new CertpeerError('bad_client_certificate', `the certificate's URI is not an identity of ${trustDomain}`, {
      cause,
    })
  }
  if (identity.kind !== kindOf(role)) throw bad(`has the role ${role} and the identity of a ${identity.kind}`)
  return { identity, uri }
}

function kindOf(role: Role): Identity['kind'] {
  switch (role) {
    case 'operator-admin':
    case 'operator-security':
    case 'operator-enroller':
    case 'operator-auditor':
      return 'operator'
    default:
      return role
  }
}

/** RFC 5280 4.2.1.10 for URIs: the host itself, or with a leading dot any host under it. */
function requireNameInside(ca: Certificate, uri: string): void {
  if (ca.permittedUriHosts === undefined) return
  const host = identityHost(uri)
  const permitted = ca.permittedUriHosts.some((constraint) =>
    constraint.startsWith('.') ? host.endsWith(constraint) : host === constraint,
  )
  if (!permitted) throw untrusted("the identity is outside its issuing CA's name constraints")
}

/** A device CA is bound to one tenant: without the constraint every tenant's devices would be its to name. */
function requireTenant(issuer: Certificate, tenant: string, trustDomain: string): void {
  const [host, ...more] = issuer.permittedUriHosts ?? []
  if (host !== tenantHost(tenant, trustDomain) || more.length > 0) {
    throw untrusted(`the issuing CA is not bound to tenant ${tenant} and to it alone`)
  }
}

/** RFC 3779 2.3. OpenSSL takes a leaf without a block for one that claims nothing; a device or gateway must have one. */
function requireBlockInside(certificate: Certificate, issuer: Certificate, role: Role): void {
  const { addressBlocks } = certificate
  if (addressBlocks === undefined) {
    if (role === 'device' || role === 'gateway') throw bad('has no address block')
    return
  }
  if (!blocksContain(issuer.addressBlocks ?? [], addressBlocks)) {
    throw untrusted("the certificate's address block is not inside its issuing CA's")
  }
}

/** Both ends are inside the validity (RFC 5280 4.1.2.5). Put so that a Date that is no instant fails. */
function requireValid(certificate: Certificate, now: Date, what: string): void {
  if (!(now >= certificate.notBefore)) {
    throw expired(`the ${what} is not valid before ${certificate.notBefore.toISOString()}; check this machine's clock`)
  }
  if (!(now <= certificate.notAfter)) throw expired(`the ${what} expired at ${certificate.notAfter.toISOString()}`)
}

function untrusted(message: string): CertpeerError {
  return new CertpeerError('certificate_untrusted', message)
}

function expired(message: string): CertpeerError {
  return new CertpeerError('certificate_expired', message)
}

function bad(fault: string): CertpeerError {
  return new CertpeerError('bad_client_certificate', `the certificate ${fault}`)
}
