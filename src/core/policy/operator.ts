/** What operators may do: one table, and the finer rules for tokens. */
import { CertpeerError } from '../errors.ts'
import type { OperatorRole } from '../messages/common.ts'
import type { TokenRequest } from '../messages/enrollment.ts'

export const ACTS = [
  'token-create-device',
  'token-create-gateway',
  'token-create-operator',
  'token-replace',
  'revoke',
  'network-apply',
  'network-show',
  'list',
] as const
export type Act = (typeof ACTS)[number]

/**
 * An admin may do everything: whoever may make operators could make any other role anyway. Security ends things and
 * replaces what is lost, an enroller lets devices in, an auditor looks.
 */
const RIGHTS: Readonly<Record<OperatorRole, ReadonlySet<Act>>> = {
  'operator-admin': new Set(ACTS),
  'operator-security': new Set(['token-create-device', 'token-replace', 'revoke', 'network-show', 'list']),
  'operator-enroller': new Set(['token-create-device', 'network-show', 'list']),
  'operator-auditor': new Set(['network-show', 'list']),
}

/** An operator as its verified certificate says. Without a tenant it is the whole trust domain's. */
export interface Operator {
  readonly role: OperatorRole
  readonly name: string
  readonly tenant?: string | undefined
  /** From AccessGroups: the groups an enroller may grant. */
  readonly groups: readonly string[]
}

/** True when the role has the right. Says nothing about the tenant: see `requireAct`. */
export function may(role: OperatorRole, act: Act): boolean {
  return RIGHTS[role].has(act)
}

/**
 * Throws policy_denied unless the operator may do this in that tenant. `tenant` undefined means the whole trust domain
 * (a gateway, another domain-wide operator), which an operator of one tenant may not touch.
 */
export function requireAct(operator: Operator, act: Act, tenant: string | undefined): void {
  if (!may(operator.role, act)) {
    const able = Object.entries(RIGHTS).flatMap(([role, acts]) => (acts.has(act) ? [role] : []))
    throw new CertpeerError(
      'policy_denied',
      `operator ${operator.name} (${operator.role}) may not ${act}; that takes ${able.join(' or ')}`,
    )
  }
  if (operator.tenant !== undefined && operator.tenant !== tenant) {
    throw new CertpeerError(
      'policy_denied',
      `operator ${operator.name} is of tenant ${operator.tenant} and may not ${act} ` +
        (tenant === undefined ? 'for the whole trust domain' : `in tenant ${tenant}`),
    )
  }
}

/**
 * Decides a request for an enrollment token. Returns the tenant it is for: the one asked for, else the operator's own,
 * else `default`. Throws policy_denied, identity_live (a living identity is not replaced by accident), malformed_request
 * (networks or groups that make no sense for the role). Does not check that the networks exist.
 */
export function evaluateTokenRequest(options: {
  operator: Operator
  request: TokenRequest
  /** The settings in force of the one network a device is for. */
  network?: { readonly possession: 'required' | 'optional' } | undefined
  /** True when an identity of that role and name has a certificate in force. */
  liveIdentity: boolean
}): { tenant: string } {
  const { operator, request } = options
  const tenant = request.tenant ?? operator.tenant ?? 'default'
  // A gateway serves networks of several tenants; its name belongs to the trust domain.
  requireAct(operator, tokenAct(request.role), request.role === 'gateway' ? undefined : tenant)
  checkShape(request)
  checkGroups(operator, request)
  if (!request.possession && (request.role !== 'device' || options.network?.possession !== 'optional')) {
    throw new CertpeerError(
      'policy_denied',
      request.role === 'device'
        ? `the network of ${request.name} requires proof of possession of the WireGuard key`
        : `only a device may enroll without proof of possession, not ${request.role}`,
    )
  }
  if (request.replace && !may(operator.role, 'token-replace')) {
    requireAct(operator, 'token-replace', tenant)
  }
  if (options.liveIdentity && !request.replace) {
    throw new CertpeerError(
      'identity_live',
      `${request.role} ${request.name} has a certificate in force; revoke it first, or replace it (--replace)`,
    )
  }
  return { tenant }
}

function tokenAct(role: TokenRequest['role']): Act {
  if (role === 'device') return 'token-create-device'
  return role === 'gateway' ? 'token-create-gateway' : 'token-create-operator'
}

function checkShape(request: TokenRequest): void {
  const { role, networks } = request
  if (role === 'device' && networks.length !== 1) throw shape('a device token names exactly one network')
  if (role === 'gateway' && networks.length === 0) throw shape('a gateway token names at least one network')
  if (role !== 'device' && role !== 'gateway' && networks.length > 0) throw shape('an operator token names no network')
  if (role === 'gateway' && request.groups.length > 0) throw shape('a gateway is in no groups')
  if (new Set(networks).size !== networks.length) throw shape('a network is named twice')
  if (new Set(request.groups).size !== request.groups.length) throw shape('a group is named twice')
}

function checkGroups(operator: Operator, request: TokenRequest): void {
  if (operator.role !== 'operator-enroller') return
  const beyond = request.groups.filter((group) => !operator.groups.includes(group))
  if (beyond.length > 0) {
    throw new CertpeerError(
      'policy_denied',
      `operator ${operator.name} may grant only ${operator.groups.join(', ') || 'no group'}; not ${beyond.join(', ')}`,
    )
  }
}

function shape(why: string): CertpeerError {
  return new CertpeerError('malformed_request', `token request: ${why}`)
}
