/**
 * Enrollment: a token and a CSR become the first certificate of an identity. The order of the steps is the law here:
 * nothing is computed for a token that does not stand in the ledger, the challenge is gone before anything secret is
 * compared, and everything that is given away is taken in the same turn of the event loop as it was found free.
 */
import { CertpeerError } from '../core/errors.ts'
import type { CertificateAnswer, EnrollRequest, TokenClaims } from '../core/messages/enrollment.ts'
import { parseClaims, tokenSecret } from '../core/messages/token.ts'
import { possessionInfo, tokenMacMatches, verifyPossession } from '../core/wireguard/possession.ts'
import { wireGuardKeyToBytes } from '../core/wireguard/key.ts'
import { parseCsr, type Csr } from '../core/x509/csr.ts'
import { formatIdentity, networkKey } from '../core/x509/identity.ts'
import { certificateAnswer } from './answer.ts'
import { sha256, type Authority } from './authority.ts'
import type { HeldChallenge } from './challenges.ts'
import { getSigned } from './issuing/issue.ts'
import { issueLeaf, type LeafPlan } from './issuing/leaf.ts'
import { nameKeyOf, type NetworkRecord, type TokenRecord } from './state.ts'

/** Throws what each step throws; the first four never say more than that the token, CSR or challenge is not good. */
export async function enroll(authority: Authority, request: EnrollRequest): Promise<CertificateAnswer> {
  const csr = parseCsr(request.csr, authority.oids)
  const csrHash = sha256(csr.der).toString('hex')
  const claims = parseClaims(request.claims)
  const token = findToken(authority, claims, request.claims)

  return await authority.reservations.once(csrHash, async () => {
    // The very CSR that spent the token: an answer was lost. No proof is asked, what comes back is a certificate for it.
    if (token.spent?.csrHash === csrHash) return await answerAgain(authority, token.spent.serial)
    const now = authority.now()
    const challenge = authority.challenges.consume(request.challenge, sha256(request.claims), now)
    const proofs = { request, csr, claims, challenge }
    verifyToken(authority, proofs)
    // After the MAC, because claims alone are no secret: an alarm means that somebody has the token itself.
    if (token.spent || authority.reservations.tokens.has(claims.jti)) throw refuseUsedToken(authority, token)
    const possession = verifyWireGuardKey(authority, proofs)
    const plan = planEnrollment(authority, { claims, token, csr, csrHash, possession })
    authority.reservations.tokens.set(claims.jti, csrHash)
    try {
      return certificateAnswer(authority, await issueLeaf(authority, plan))
    } finally {
      authority.reservations.tokens.delete(claims.jti)
    }
  })
}

/** The ledger knows every token that was made: claims that were changed, or made with a stolen token key, are not there. */
function findToken(authority: Authority, claims: TokenClaims, segment: string): TokenRecord {
  const now = authority.now()
  const token = authority.state.tokens.get(claims.jti)
  // A token is forgotten some time after it expired; what its claims say of that is then all there is.
  if (!token && claims.exp * 1000 <= now.getTime()) throw tokenExpired()
  if (token?.claimsHash !== sha256(segment).toString('hex')) {
    throw new CertpeerError('token_invalid', 'this enrollment token was not made by this authority, or was changed')
  }
  if (token.expiresAt <= now) throw tokenExpired()
  return token
}

function tokenExpired(): CertpeerError {
  return new CertpeerError('token_expired', 'the enrollment token has expired; ask an operator for a new one')
}

/** A second use with another CSR: somebody copied the token. The alarm stands in the ledger, once for each token. */
function refuseUsedToken(authority: Authority, token: TokenRecord): CertpeerError {
  authority.log.warn({ jti: token.jti, subject: token.nameKey }, 'enrollment token used a second time')
  if (!token.alarmed) {
    token.alarmed = true
    const detail = `used again for another CSR; it was made for ${token.nameKey}`
    authority
      .commit({ kind: 'act', at: authority.now().toISOString(), act: 'token-alarm', jti: token.jti, detail })
      .catch((err: unknown) => {
        token.alarmed = false
        authority.log.error({ err, jti: token.jti }, 'token alarm not recorded')
      })
  }
  return new CertpeerError(
    'token_used',
    'this enrollment token was used before, with another request; if that was not you, tell an operator at once',
  )
}

async function answerAgain(authority: Authority, serial: Parameters<typeof getSigned>[1]): Promise<CertificateAnswer> {
  const issued = await getSigned(authority, serial)
  if (issued.record.revoked) {
    throw new CertpeerError('certificate_revoked', 'the certificate that this token gave was revoked')
  }
  return certificateAnswer(authority, issued)
}

interface Proofs {
  readonly request: EnrollRequest
  readonly csr: Csr
  readonly claims: TokenClaims
  readonly challenge: HeldChallenge
}

/** What both proofs are made over. */
function proofFields(authority: Authority, { csr, claims, challenge }: Proofs) {
  return {
    trustDomain: authority.trustDomain,
    challengeId: challenge.id,
    spkiHash: sha256(csr.spki),
    credentialHash: challenge.credentialHash,
    profile: claims.profile,
  }
}

/** That whoever asks has the token's secret, for exactly this challenge, CSR key and WireGuard key. Throws token_invalid. */
function verifyToken(authority: Authority, proofs: Proofs): void {
  const { request, csr, claims, challenge } = proofs
  const wireGuardKey = hasWireGuard(claims.role) ? csr.wireGuardKey : undefined
  const info = possessionInfo({
    ...proofFields(authority, proofs),
    ephemeralKey: challenge.publicKey,
    wireGuardKey: wireGuardKey === undefined ? Buffer.alloc(0) : wireGuardKeyToBytes(wireGuardKey),
  })
  const secret = tokenSecret(authority.tokenKey, request.claims)
  if (!tokenMacMatches(secret, info, Buffer.from(request.mac, 'base64url'))) {
    throw new CertpeerError('token_invalid', 'the request does not prove that it has the token')
  }
}

/** Possession of the WireGuard key, where there is one. Returns whether it was proven. */
function verifyWireGuardKey(authority: Authority, proofs: Proofs): boolean {
  const { csr, claims, challenge } = proofs
  if (!hasWireGuard(claims.role)) return false
  const { wireGuardKey } = csr
  if (wireGuardKey === undefined) {
    throw new CertpeerError('bad_wireguard_key', `the CSR of a ${claims.role} must carry its WireGuard key`)
  }
  if (csr.possession === undefined) {
    if (!claims.possession) return false
    throw new CertpeerError('bad_possession_proof', 'the CSR carries no proof of possession of its WireGuard key')
  }
  if (csr.possession.challengeId !== challenge.id) {
    throw new CertpeerError('bad_possession_proof', 'the proof of possession answers another challenge')
  }
  verifyPossession({
    ephemeralPrivateKey: challenge.ephemeralPrivateKey,
    nonce: challenge.nonce,
    fields: proofFields(authority, proofs),
    wireGuardKey,
    tag: csr.possession.tag,
  })
  return true
}

interface Decision {
  readonly claims: TokenClaims
  readonly token: TokenRecord
  readonly csr: Csr
  readonly csrHash: string
  readonly possession: boolean
}

function planEnrollment(authority: Authority, { claims, token, csr, csrHash, possession }: Decision): LeafPlan {
  const { state } = authority
  const networks = claims.networks.map((name) => getNetwork(authority, claims.tenant, name))
  if (state.isNameBlockedSince(token.nameKey, token.ledgerIndex)) {
    throw new CertpeerError('identity_revoked', `${claims.role} ${claims.name} was revoked after this token was made`)
  }
  const maker = state.identities.get(token.operator)
  if (maker && state.isNameBlockedSince(maker.nameKey, token.ledgerIndex)) {
    throw new CertpeerError('identity_revoked', 'the operator who made this token was revoked since; ask for a new one')
  }
  const strict = claims.role === 'gateway' || networks.some((network) => network.document.possession === 'required')
  if (hasWireGuard(claims.role) && !possession && strict) {
    throw new CertpeerError('bad_possession_proof', 'the network requires proof of possession of the WireGuard key')
  }
  const uri = newIdentity(authority, claims)
  const replaces = replaced(authority, claims, uri)
  const wireGuardKey = hasWireGuard(claims.role) ? csr.wireGuardKey : undefined
  const known = state.identities.get(uri)
  return {
    role: claims.role,
    name: claims.name,
    tenant: claims.role === 'gateway' ? undefined : claims.tenant,
    uri,
    spki: csr.spki,
    networks,
    groups: claims.groups,
    wireGuard: wireGuardKey === undefined ? undefined : { key: wireGuardKey, possession },
    keepAddresses: known ? (state.certificates.get(known.current)?.addresses ?? []) : [],
    replaces,
    csrHash,
    jti: claims.jti,
  }
}

/** Throws identity_live unless the name is free, or held by one that the token replaces. */
function replaced(authority: Authority, claims: TokenClaims, uri: string): string[] {
  const nameKey = nameKeyOf({
    role: claims.role,
    tenant: claims.tenant,
    network: claims.networks[0],
    name: claims.name,
  })
  const present = authority.state.findByName(nameKey)
  if (!present) return []
  const live = authority.state.liveCertificates(present, authority.now()).length > 0
  if (live && !claims.replace) {
    throw new CertpeerError(
      'identity_live',
      `${claims.role} ${claims.name} has a certificate in force; ask an operator to revoke or replace it`,
    )
  }
  // An identity that merely expired could still be renewed: the new one ends that. Under one URI there is one identity.
  return live || present.uri !== uri ? [present.uri] : []
}

function newIdentity(authority: Authority, claims: TokenClaims): string {
  const { trustDomain } = authority
  switch (claims.role) {
    case 'device': {
      const [network = ''] = claims.networks
      const id = authority.random(16).toString('hex')
      return formatIdentity({ kind: 'device', tenant: claims.tenant, network, id }, trustDomain)
    }
    case 'gateway':
      return formatIdentity({ kind: 'gateway', name: claims.name }, trustDomain)
    default:
      return formatIdentity({ kind: 'operator', tenant: claims.tenant, name: claims.name }, trustDomain)
  }
}

export function getNetwork(authority: Authority, tenant: string, network: string): NetworkRecord {
  const found = authority.state.networks.get(networkKey(tenant, network))
  if (found) return found
  throw new CertpeerError('not_found', `there is no network ${tenant}/${network}; apply its document first`)
}

export function hasWireGuard(role: string): boolean {
  return role === 'device' || role === 'gateway'
}
