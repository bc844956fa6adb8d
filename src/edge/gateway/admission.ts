/**
 * Admission: whether this gateway takes a certificate as a peer. Nothing that a message says counts, only what is
 * certified and what this gateway has verified or accepted itself. Pure; the rules stand in the order of their cost
 * to an attacker, and each refusal has its code.
 */
import { CertpeerError } from '../../core/errors.ts'
import type { ErrorCode } from '../../core/errors.ts'
import { formatPrefix, prefixesOverlap, type Prefix } from '../../core/ipam/prefix.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import { networkKey } from '../../core/x509/identity.ts'
import { readDevice, verifyCertificate, type DeviceFacts } from '../../core/x509/path.ts'
import type { Serial } from '../../core/x509/serial.ts'
import { MAX_DEVICE_LIFETIME_MS, type TrustStore } from './trust-store.ts'

/** What this gateway's own certificate says of it. */
export interface OwnIdentity {
  readonly name: string
  readonly key: WireGuardKey
  readonly addresses: readonly Prefix[]
  /** `<tenant>/<network>` each. */
  readonly networks: ReadonlySet<string>
  readonly serial: Serial
  readonly issuerKeyId: string
}

/** The newest certificate that was accepted for an identity; nothing older is, whoever brings it. */
export interface NewestAccepted {
  readonly notBefore: Date
  readonly serial: Serial
  readonly issuerKeyId: string
}

export interface AdmissionContext {
  readonly trust: TrustStore
  readonly own: OwnIdentity
  /** Identities of the live peers, by what only one of them may have. */
  readonly holderOfKey: (key: WireGuardKey) => string | undefined
  readonly holderOfAddress: (address: Prefix) => string | undefined
  readonly newestAccepted: (uri: string) => NewestAccepted | undefined
  readonly clock: Date
}

export interface AdmissionRequest {
  readonly certificate: Certificate
  /** The network, `<tenant>/<network>`, for which it was offered. */
  readonly network: string
  /**
   * `add` needs a fresh CRL. `restore` is for a peer that this gateway had accepted before: whether it may stay under an
   * old CRL is said by the network document's rule.
   */
  readonly mode: 'add' | 'restore'
}

export type Decision =
  | { readonly kind: 'admit'; readonly facts: DeviceFacts }
  | {
      readonly kind: 'refuse'
      readonly code: ErrorCode
      readonly reason: string
      /** True when what stands in the way may pass by itself: the certificate is kept and asked again. */
      readonly passing: boolean
    }

class Refusal extends Error {
  readonly code: ErrorCode
  readonly passing: boolean

  constructor(code: ErrorCode, message: string, passing = false) {
    super(message)
    this.code = code
    this.passing = passing
  }
}

export function evaluateAdmission(request: AdmissionRequest, context: AdmissionContext): Decision {
  try {
    requireOwnInForce(context)
    const facts = verifyDevice(request.certificate, context)
    requireServed(facts, request.network, context)
    requireInForce(facts, context)
    requireNewest(facts, context)
    requireNoConflict(facts, context)
    requireNetworkRules(facts, context)
    if (request.mode === 'add') requireFreshCrl(facts, context)
    else requireAnyCrl(facts, context)
    return { kind: 'admit', facts }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error
    return { kind: 'refuse', code: error.code, reason: error.message, passing: error.passing }
  }
}

/** A gateway that was revoked and learns of it takes nobody; it keeps its credentials, and what it knows. */
function requireOwnInForce({ trust, own }: AdmissionContext): void {
  if (isOwnRevoked(trust, own)) {
    throw new Refusal('certificate_revoked', "this gateway's own certificate is revoked: it must join again", true)
  }
}

export function isOwnRevoked(trust: TrustStore, own: OwnIdentity): boolean {
  return trust.isRevoked(own.issuerKeyId, own.serial) || trust.isIssuerRevoked(own.issuerKeyId)
}

/** Chain to the pinned root, role, identity, key and addresses, at the time that holds for its issuer. */
function verifyDevice(certificate: Certificate, { trust, clock }: AdmissionContext): DeviceFacts {
  const { root, oids, trustDomain } = trust.pinned
  const issuers = trust.issuers
  const named = issuers.find((issuer) => issuer.subjectKeyId === certificate.authorityKeyId)
  const now = trust.now(clock, named?.keyId)
  try {
    const verified = verifyCertificate({ certificate, issuers, root, now, roles: ['device'], oids, trustDomain })
    if (certificate.notAfter.getTime() - certificate.notBefore.getTime() > MAX_DEVICE_LIFETIME_MS) {
      throw new Refusal('certificate_untrusted', 'the certificate lives longer than any device certificate may')
    }
    // Both ends are inside a certificate's validity, but at notAfter the peer goes.
    if (now >= certificate.notAfter) throw new Refusal('certificate_expired', 'the certificate has just expired')
    return readDevice(verified, oids)
  } catch (error) {
    if (!(error instanceof CertpeerError)) throw error
    const isTooEarly = error.code === 'certificate_expired' && now < certificate.notBefore
    // An issuing CA that is not known yet may be on its way.
    throw new Refusal(error.code, error.message, named === undefined || isTooEarly)
  }
}

/**
 * What a certificate says that was accepted some time ago: chain and form hold, at the time when it was issued. Whether
 * it is still in force is another question. Throws what verifyCertificate throws.
 */
export function readAuthentic(certificate: Certificate, trust: TrustStore): DeviceFacts {
  const { root, oids, trustDomain } = trust.pinned
  const { issuers } = trust
  const now = certificate.notBefore
  return readDevice(verifyCertificate({ certificate, issuers, root, now, roles: ['device'], oids, trustDomain }), oids)
}

function requireServed(facts: DeviceFacts, network: string, { own }: AdmissionContext): void {
  const certified = networkKey(facts.tenant, facts.network)
  if (certified !== network) {
    throw new Refusal('foreign_network', `the certificate is of network ${certified}, offered as one of ${network}`)
  }
  if (!own.networks.has(certified)) {
    throw new Refusal('foreign_network', `network ${certified} is not among those that this gateway is certified for`)
  }
}

function requireInForce(facts: DeviceFacts, { trust }: AdmissionContext): void {
  if (trust.isRevoked(facts.issuerKeyId, facts.serial)) {
    throw new Refusal('certificate_revoked', `certificate ${facts.serial} is revoked`)
  }
  if (trust.isIssuerRevoked(facts.issuerKeyId)) {
    throw new Refusal('certificate_revoked', 'the issuing CA is revoked')
  }
}

/** notBefore rises strictly per identity, so an equal one is the same certificate or a forgery of order. */
function requireNewest(facts: DeviceFacts, { newestAccepted }: AdmissionContext): void {
  const newest = newestAccepted(facts.uri)
  if (newest === undefined || facts.notBefore > newest.notBefore) return
  if (facts.serial === newest.serial && facts.issuerKeyId === newest.issuerKeyId) return
  throw new Refusal(
    'older_certificate',
    `certificate ${facts.serial} is not newer than ${newest.serial}, which was accepted for the same identity`,
  )
}

function requireNoConflict(facts: DeviceFacts, { own, holderOfKey, holderOfAddress }: AdmissionContext): void {
  if (facts.key === own.key) throw new Refusal('key_conflict', "the certificate holds this gateway's own WireGuard key")
  const keyHolder = holderOfKey(facts.key)
  if (keyHolder !== undefined && keyHolder !== facts.uri) {
    throw new Refusal('key_conflict', `the WireGuard key is held by ${keyHolder}`, true)
  }
  for (const prefix of facts.allowedIps) {
    if (own.addresses.some((address) => prefixesOverlap(address, prefix))) {
      throw new Refusal('address_conflict', `${formatPrefix(prefix)} is this gateway's own address`)
    }
    const holder = holderOfAddress(prefix)
    if (holder !== undefined && holder !== facts.uri) {
      throw new Refusal('address_conflict', `${formatPrefix(prefix)} is held by ${holder}`, true)
    }
  }
}

/** No peer without the signed law of its network. */
function requireNetworkRules(facts: DeviceFacts, { trust }: AdmissionContext): void {
  const network = networkKey(facts.tenant, facts.network)
  const document = trust.documents.get(network)?.document
  if (document === undefined) {
    throw new Refusal('network_document_stale', `the network document of ${network} is not known yet`, true)
  }
  if (document.possession === 'required' && !facts.possession) {
    throw new Refusal('policy_denied', `network ${network} requires possession of the WireGuard key to be proven`, true)
  }
}

function requireFreshCrl(facts: DeviceFacts, { trust, clock }: AdmissionContext): void {
  try {
    trust.requireFresh(facts.issuerKeyId, clock)
  } catch (error) {
    if (!(error instanceof CertpeerError)) throw error
    throw new Refusal(error.code, error.message, true)
  }
}

function requireAnyCrl(facts: DeviceFacts, { trust }: AdmissionContext): void {
  if (trust.crls.has(facts.issuerKeyId)) return
  throw new Refusal('revocation_unknown', 'no CRL of the issuing CA is known', true)
}
