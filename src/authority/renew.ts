/**
 * Renewal: the current certificate's key vouches for a new CSR. No client TLS, so it works through any front, and for
 * some time after expiry. Who it is, its networks, groups and addresses come from the current certificate and the ledger;
 * nothing of that can be asked for.
 */
import { verify } from 'node:crypto'
import { CertpeerError } from '../core/errors.ts'
import { ROLES, type Role } from '../core/messages/common.ts'
import type { CertificateAnswer, RenewRequest } from '../core/messages/enrollment.ts'
import { wireGuardKeyToBytes, type WireGuardKey } from '../core/wireguard/key.ts'
import { possessionInfo, renewalMessage, verifyPossession } from '../core/wireguard/possession.ts'
import { publicKeyOf, type Certificate } from '../core/x509/certificate.ts'
import { readWireGuardKey } from '../core/x509/certpeer-extensions.ts'
import { parseCsr, type Csr } from '../core/x509/csr.ts'
import { verifyCertificate } from '../core/x509/path.ts'
import { certificateAnswer } from './answer.ts'
import { sha256, type Authority } from './authority.ts'
import type { HeldChallenge } from './challenges.ts'
import { hasWireGuard } from './enroll.ts'
import { getSigned } from './issuing/issue.ts'
import { issueLeaf } from './issuing/leaf.ts'
import type { IdentityRecord, NetworkRecord } from './state.ts'

/** For identities without a network whose document would say. */
const RENEW_AFTER_EXPIRY_SECONDS = 2_592_000
/** Everybody but the authority, which renews its own certificate and no stranger with its key. */
const RENEWABLE_ROLES = ROLES.filter((role) => role !== 'authority')

export async function renew(authority: Authority, request: RenewRequest): Promise<CertificateAnswer> {
  const csr = parseCsr(request.csr, authority.oids)
  const { renewalCertificate: current, renewalSignature: signature } = csr
  if (!current || !signature) {
    throw new CertpeerError(
      'bad_renewal_proof',
      'the CSR must carry the current certificate and a signature by its key',
    )
  }
  const csrHash = sha256(csr.der).toString('hex')
  return await authority.reservations.once(csrHash, async () => {
    const again = authority.state.findByCsr(csrHash)
    if (again) return await answerAgain(authority, again.serial)
    const challenge = authority.challenges.consume(request.challenge, sha256(current.der), authority.now())
    const renewal = verifyRenewal(authority, { csr, current, signature, challenge })
    const { identity, role, networks, wireGuard } = renewal
    const issued = await issueLeaf(authority, {
      role,
      name: identity.name,
      tenant: identity.tenant,
      uri: identity.uri,
      spki: csr.spki,
      networks,
      groups: identity.groups,
      wireGuard,
      dns: current.sanDnsNames,
      ips: current.sanIpAddresses,
      keepAddresses: keptAddresses(authority, identity),
      replaces: [],
      csrHash,
      renewed: current.serial,
    })
    return certificateAnswer(authority, issued)
  })
}

async function answerAgain(authority: Authority, serial: Certificate['serial']): Promise<CertificateAnswer> {
  const issued = await getSigned(authority, serial)
  if (issued.record.revoked) throw new CertpeerError('certificate_revoked', 'the renewed certificate was revoked')
  return certificateAnswer(authority, issued)
}

interface Shown {
  readonly csr: Csr
  readonly current: Certificate
  readonly signature: Buffer
  readonly challenge: HeldChallenge
}

interface Renewal {
  readonly identity: IdentityRecord
  readonly role: Role
  readonly networks: readonly NetworkRecord[]
  readonly wireGuard: { readonly key: WireGuardKey; readonly possession: boolean } | undefined
}

function verifyRenewal(authority: Authority, shown: Shown): Renewal {
  const { csr, current, signature, challenge } = shown
  const now = authority.now()
  const { role, uri } = verifyCertificate({
    certificate: current,
    issuers: authority.issuers.map((issuer) => issuer.certificate),
    root: authority.root,
    // Expiry has its own rule below; whether the chain held is asked for an instant when it should have.
    now: now > current.notAfter ? current.notAfter : now,
    roles: RENEWABLE_ROLES,
    oids: authority.oids,
    trustDomain: authority.trustDomain,
  })
  const wireGuardKey = hasWireGuard(role) ? csr.wireGuardKey : undefined
  const fields = {
    trustDomain: authority.trustDomain,
    challengeId: challenge.id,
    spkiHash: sha256(csr.spki),
    credentialHash: challenge.credentialHash,
    profile: role,
  }
  const info = possessionInfo({
    ...fields,
    ephemeralKey: challenge.publicKey,
    wireGuardKey: wireGuardKey === undefined ? Buffer.alloc(0) : wireGuardKeyToBytes(wireGuardKey),
  })
  if (!verify('sha256', renewalMessage(info), publicKeyOf(current), signature)) {
    throw new CertpeerError(
      'bad_renewal_proof',
      "the renewal is not signed by the current certificate's key for this challenge and CSR",
    )
  }
  const identity = requireRenewable(authority, current, uri)
  const networks = identity.networks.flatMap((name) => authority.state.networks.get(name) ?? [])
  requireNotTooLate(current, networks, now)
  return { identity, role, networks, wireGuard: renewedKey(authority, { ...shown, role, networks, fields }) }
}

/** The ledger's word on the certificate that is shown: issued here, not revoked, of this life of the identity. */
function requireRenewable(authority: Authority, current: Certificate, uri: string): IdentityRecord {
  const { state } = authority
  const identity = state.identities.get(uri)
  const record = state.certificates.get(current.serial)
  if (!identity || (record && (record.uri !== uri || !record.tbs.equals(current.tbs)))) {
    throw new CertpeerError('certificate_untrusted', `certificate ${current.serial} does not stand in the ledger`)
  }
  if (identity.blocked) throw new CertpeerError('identity_revoked', `${identity.role} ${identity.name} is revoked`)
  if (state.revocations.has(current.serial)) {
    throw new CertpeerError('certificate_revoked', `certificate ${current.serial} is revoked and cannot be renewed`)
  }
  // Forgotten since it ended: fine, unless a token began another life under this name meanwhile.
  if (record ? record.ledgerIndex < identity.lifeStartsAt : identity.restarted) {
    throw new CertpeerError(
      'older_certificate',
      `certificate ${current.serial} is from before ${identity.name} enrolled anew`,
    )
  }
  if (!isOfNewestKey(authority, current, identity)) {
    throw new CertpeerError(
      'older_certificate',
      `certificate ${current.serial} has a key that ${identity.name} has left behind with a later renewal`,
    )
  }
  return identity
}

/**
 * True for the newest certificate, for an older one with the same key, and, because an answer may have been lost, for
 * the one that was shown to get the newest and whatever else it was shown for. A key that a renewal left behind says
 * nothing any more, however long its certificate could be renewed, nor does anything else that stood beside it: role,
 * names, addresses.
 */
function isOfNewestKey({ state }: Authority, shown: Certificate, identity: IdentityRecord): boolean {
  if (shown.serial === identity.current) return true
  const newest = state.certificates.get(identity.current)
  if (!newest) return false
  // Nothing else in a TBSCertificate of ours has the form of a public key.
  if (newest.tbs.includes(shown.spki)) return true
  if (newest.renewed === undefined) return false
  return shown.serial === newest.renewed || state.certificates.get(shown.serial)?.renewed === newest.renewed
}

function requireNotTooLate(current: Certificate, networks: readonly NetworkRecord[], now: Date): void {
  const seconds = networks.map((network) => network.document.renewAfterExpirySeconds)
  const graceSeconds = seconds.length === 0 ? RENEW_AFTER_EXPIRY_SECONDS : Math.min(...seconds)
  if (now.getTime() > current.notAfter.getTime() + graceSeconds * 1000) {
    throw new CertpeerError(
      'certificate_expired',
      `the certificate ended at ${current.notAfter.toISOString()}, too long ago to be renewed; enroll with a new token`,
    )
  }
}

interface KeyRenewal extends Shown {
  readonly role: Role
  readonly networks: readonly NetworkRecord[]
  readonly fields: Parameters<typeof verifyPossession>[0]['fields']
}

/** Another key is welcome, with proof; the same one needs it where the network says so. */
function renewedKey(authority: Authority, renewal: KeyRenewal): Renewal['wireGuard'] {
  const { csr, current, challenge, role, networks, fields } = renewal
  if (!hasWireGuard(role)) return undefined
  const key = csr.wireGuardKey
  if (key === undefined)
    throw new CertpeerError('bad_wireguard_key', `the CSR of a ${role} must carry its WireGuard key`)
  const before = readWireGuardKey(current, authority.oids)
  if (csr.possession === undefined) {
    const required = role === 'gateway' || networks.some((network) => network.document.possession === 'required')
    if (required || key !== before.key) {
      throw new CertpeerError('bad_possession_proof', 'the CSR carries no proof of possession of its WireGuard key')
    }
    return { key, possession: before.possession }
  }
  if (csr.possession.challengeId !== challenge.id) {
    throw new CertpeerError('bad_possession_proof', 'the proof of possession answers another challenge')
  }
  verifyPossession({
    ephemeralPrivateKey: challenge.ephemeralPrivateKey,
    nonce: challenge.nonce,
    fields,
    wireGuardKey: key,
    tag: csr.possession.tag,
  })
  return { key, possession: true }
}

/** The addresses of the newest certificate; the shown one may be older when an answer was lost. */
function keptAddresses(authority: Authority, identity: IdentityRecord): readonly string[] {
  return authority.state.certificates.get(identity.current)?.addresses ?? []
}
