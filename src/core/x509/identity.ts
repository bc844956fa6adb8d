/**
 * Identities as SPIFFE URIs. The tenant stands in the host because URI name constraints (RFC 5280 4.2.1.10) see
 * nothing else. One identity has one spelling: parse accepts exactly what format writes.
 */
import { CertpeerError } from '../errors.ts'

export type Identity =
  | { readonly kind: 'device'; readonly tenant: string; readonly network: string; readonly id: string }
  | { readonly kind: 'gateway'; readonly name: string }
  | { readonly kind: 'operator'; readonly tenant?: string; readonly name: string }
  | { readonly kind: 'authority'; readonly name: string }
  | { readonly kind: 'server'; readonly name: string }

const SCHEME = 'spiffe://'
/** nameSchema of core/messages, without the cost of a schema on the hot path. */
const LABEL = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/

export function formatIdentity(identity: Identity, trustDomain: string): string {
  switch (identity.kind) {
    case 'device':
      return `${SCHEME}${tenantHost(identity.tenant, trustDomain)}/network/${name(identity.network)}/device/${name(identity.id)}`
    case 'operator':
      return `${SCHEME}${identity.tenant === undefined ? trustDomain : tenantHost(identity.tenant, trustDomain)}/operator/${name(identity.name)}`
    case 'gateway':
    case 'authority':
    case 'server':
      return `${SCHEME}${trustDomain}/${identity.kind}/${name(identity.name)}`
  }
}

/** Throws malformed_request when the URI is not an identity of this trust domain in its one spelling. */
export function parseIdentity(uri: string, trustDomain: string): Identity {
  const [scheme, empty, host = '', ...path] = uri.split('/')
  if (scheme !== 'spiffe:' || empty !== '' || uri.length > 1024) throw notAnIdentity(trustDomain)
  const tenant = tenantOfHost(host, trustDomain)
  const [first, second, third, fourth] = path
  if (path.some((segment) => !LABEL.test(segment))) throw notAnIdentity(trustDomain)
  if (path.length === 4 && second !== undefined && fourth !== undefined) {
    if (first === 'network' && third === 'device' && tenant !== undefined) {
      return { kind: 'device', tenant, network: second, id: fourth }
    }
  } else if (path.length === 2 && second !== undefined) {
    if (first === 'operator')
      return tenant === undefined ? { kind: first, name: second } : { kind: first, tenant, name: second }
    if (tenant === undefined && (first === 'gateway' || first === 'authority' || first === 'server')) {
      return { kind: first, name: second }
    }
  }
  throw notAnIdentity(trustDomain)
}

/** Host of an identity's URI; what name constraints are compared with. */
export function identityHost(uri: string): string {
  return uri.split('/')[2] ?? ''
}

/** `<tenant>.<trust domain>`: the host of a tenant's devices, and what its device CA is constrained to. */
export function tenantHost(tenant: string, trustDomain: string): string {
  return `${name(tenant)}.${trustDomain}`
}

/** The name of a network across tenants: `<tenant>/<network>`. */
export function networkKey(tenant: string, network: string): string {
  return `${tenant}/${network}`
}

/** Throws config_invalid unless this is a lower-case DNS name that leaves room for a tenant. */
export function requireTrustDomain(trustDomain: string): string {
  const valid = trustDomain.length <= 189 && trustDomain.split('.').every((label) => LABEL.test(label))
  if (!valid) {
    throw new CertpeerError(
      'config_invalid',
      `trust domain "${trustDomain}" must be a lower-case DNS name of at most 189 characters`,
    )
  }
  return trustDomain
}

function tenantOfHost(host: string, trustDomain: string): string | undefined {
  if (host === trustDomain) return undefined
  const tenant = host.endsWith(`.${trustDomain}`) ? host.slice(0, -trustDomain.length - 1) : ''
  if (!LABEL.test(tenant)) throw notAnIdentity(trustDomain)
  return tenant
}

function name(text: string): string {
  if (!LABEL.test(text))
    throw new CertpeerError(
      'malformed_request',
      `name "${text.slice(0, 64)}" must be 1 to 63 lower-case letters, digits or hyphens`,
    )
  return text
}

function notAnIdentity(trustDomain: string): CertpeerError {
  return new CertpeerError('malformed_request', `the URI is not a certpeer identity of trust domain ${trustDomain}`)
}
