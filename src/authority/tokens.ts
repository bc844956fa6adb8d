/** Enrollment tokens: policy says who may have one made, the ledger remembers it, the token key makes its secret. */
import { CertpeerError } from '../core/errors.ts'
import type { TokenAnswer, TokenClaims, TokenRequest } from '../core/messages/enrollment.ts'
import { encodeClaims, encodeToken } from '../core/messages/token.ts'
import { evaluateTokenRequest } from '../core/policy/operator.ts'
import { getDeviceIssuer, sha256, type Authority } from './authority.ts'
import { getNetwork } from './enroll.ts'
import type { OperatorPrincipal } from './principal.ts'
import { nameKeyOf } from './state.ts'

/** Throws what policy throws, or not_found for a network or tenant that does not exist. */
export async function createToken(
  authority: Authority,
  operator: OperatorPrincipal,
  request: TokenRequest,
): Promise<TokenAnswer> {
  const { state } = authority
  const now = authority.now()
  const askedTenant = request.tenant ?? operator.tenant ?? 'default'
  const [first] = request.networks
  const nameKey = nameKeyOf({ role: request.role, tenant: askedTenant, network: first, name: request.name })
  const present = state.findByName(nameKey)
  const network = first === undefined ? undefined : state.networks.get(`${askedTenant}/${first}`)
  const { tenant } = evaluateTokenRequest({
    operator,
    request,
    network: request.role === 'device' ? network?.document : undefined,
    liveIdentity: present !== undefined && state.liveCertificates(present, now).length > 0,
  })
  // After policy: who may not ask learns nothing about what there is.
  for (const name of request.networks) getNetwork(authority, tenant, name)
  if (request.role === 'device') getDeviceIssuer(authority, tenant)

  const expiresAt = new Date((Math.floor(now.getTime() / 1000) + request.ttlSeconds) * 1000)
  const claims: TokenClaims = {
    v: 1,
    jti: authority.random(16).toString('base64url'),
    role: request.role,
    name: request.name,
    tenant,
    networks: request.networks,
    groups: request.groups,
    profile: request.role,
    possession: request.possession,
    replace: request.replace,
    exp: expiresAt.getTime() / 1000,
    root: authority.root.fingerprint,
    trustDomain: authority.trustDomain,
    pen: authority.oids.pen,
    url: authority.endpoints.enrollUrl,
  }
  if (authority.reservations.isBlocked(nameKey)) {
    throw new CertpeerError('unavailable', `${request.role} ${request.name} is being revoked; try again`)
  }
  await authority.commit({
    kind: 'token',
    at: now.toISOString(),
    jti: claims.jti,
    claimsHash: sha256(encodeClaims(claims)).toString('hex'),
    role: claims.role,
    name: claims.name,
    tenant,
    networks: claims.networks,
    groups: claims.groups,
    possession: claims.possession,
    replace: claims.replace,
    expiresAt: expiresAt.toISOString(),
    operator: operator.uri,
  })
  return {
    token: encodeToken({ claims, tokenKey: authority.tokenKey }),
    jti: claims.jti,
    expiresAt: expiresAt.toISOString(),
  }
}
