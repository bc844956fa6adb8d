/**
 * One way for every certificate with an identity: take (key, name, addresses) → prepare and lint → ledger → sign. All
 * that is taken is taken in one synchronous stretch, so that two requests at once cannot both find it free; it goes back
 * when the ledger could not be written.
 */
import { CertpeerError } from '../../core/errors.ts'
import { keyAddress } from '../../core/ipam/key-address.ts'
import { formatAddress, formatPrefix, parsePrefix, prefixContains, type Prefix } from '../../core/ipam/prefix.ts'
import type { Role } from '../../core/messages/common.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import type { Serial } from '../../core/x509/serial.ts'
import { getDeviceIssuer, getInfrastructureIssuer, type Authority } from '../authority.ts'
import { nameKeyOf, servedPrefixes, type IdentityRecord, type NetworkRecord } from '../state.ts'
import { issue, prepareLeaf, type IssuedCertificate } from './issue.ts'
import type { CertificateFacts } from './prepare.ts'

/** What policy decided; addresses, serial number and validity are found here. */
export interface LeafPlan {
  readonly role: Role
  readonly name: string
  readonly tenant: string | undefined
  readonly uri: string
  readonly spki: Buffer
  readonly networks: readonly NetworkRecord[]
  readonly groups: readonly string[]
  readonly wireGuard?: { readonly key: WireGuardKey; readonly possession: boolean } | undefined
  /** TLS servers. */
  readonly dns?: readonly string[]
  readonly ips?: readonly string[]
  /** Addresses with their length that the identity had, kept where the ledger still allows it. */
  readonly keepAddresses: readonly string[]
  /** Identities this one takes the place of; their key may be taken over. */
  readonly replaces: readonly string[]
  readonly csrHash?: string
  readonly jti?: string
  readonly renewed?: Serial
}

/** Throws identity_revoked, key_conflict, address_conflict, pool_exhausted, rate_limited, lint_failed or unavailable. */
export async function issueLeaf(authority: Authority, plan: LeafPlan): Promise<IssuedCertificate> {
  const taken = take(authority, plan)
  try {
    const { role, wireGuard } = plan
    const issuer =
      role === 'device' ? getDeviceIssuer(authority, plan.tenant ?? '') : getInfrastructureIssuer(authority)
    const validity = validityOf(authority, plan, issuer.certificate.notAfter)
    const prepared = prepareLeaf(authority, issuer, role, {
      commonName: plan.name,
      spki: plan.spki,
      uri: plan.uri,
      groups: plan.groups,
      ...validity,
      ...(wireGuard === undefined ? {} : { wireGuard }),
      ...namesAndBlocks(plan, taken.addresses),
    })
    return await issue(authority, issuer, role, prepared, {
      name: plan.name,
      networks: plan.networks.map((network) => network.key),
      ...(plan.tenant === undefined ? {} : { tenant: plan.tenant }),
      ...(wireGuard === undefined ? {} : { heldUntil: heldUntil(plan, validity.notAfter).toISOString() }),
      ...(plan.csrHash === undefined ? {} : { csrHash: plan.csrHash }),
      ...(plan.jti === undefined ? {} : { jti: plan.jti }),
      ...(plan.renewed === undefined ? {} : { renewed: plan.renewed }),
      ...(plan.replaces.length === 0 ? {} : { replaces: plan.replaces }),
    })
  } finally {
    taken.giveBack()
  }
}

interface Taken {
  /** Tunnel addresses, by network in the order of the plan. */
  readonly addresses: readonly Prefix[]
  /** Safe after success too: what the ledger holds by then stays held. */
  giveBack(): void
}

/** No await in here, nor between here and the submission to the ledger. */
function take(authority: Authority, plan: LeafPlan): Taken {
  const { reservations, state } = authority
  const now = authority.now()
  const nameKey = nameKeyOf({
    role: plan.role,
    tenant: plan.tenant,
    network: plan.networks[0]?.document.network,
    name: plan.name,
  })
  const own = [plan.uri, ...plan.replaces]
  if (reservations.isBlocked(plan.uri) || reservations.isBlocked(nameKey)) {
    throw new CertpeerError('identity_revoked', `${plan.role} ${plan.name} is being revoked`)
  }
  if (reservations.hasName(nameKey) || reservations.identities.has(plan.uri)) {
    throw new CertpeerError('unavailable', `another request for ${plan.role} ${plan.name} is under way; try again`)
  }
  const key = plan.wireGuard?.key
  // Taking over the key of the identity it replaces needs proof: whoever merely names a key must not get it.
  const keyOwners = plan.wireGuard?.possession === true ? own : [plan.uri]
  if (key !== undefined && (reservations.keys.has(key) || state.keyHolder(key, keyOwners, now))) {
    throw new CertpeerError(
      'key_conflict',
      'this WireGuard key is held by another identity, or was until a short while ago; use a new one',
    )
  }
  const undo: (() => void)[] = []
  const giveBack = () => undo.forEach((step) => step())
  try {
    const addresses = plan.wireGuard === undefined ? [] : takeAddresses(authority, plan, own, now, undo)
    if (key !== undefined) hold(reservations.keys, key, undo)
    undo.push(reservations.takeName(nameKey))
    hold(reservations.identities, plan.uri, undo)
    return { addresses, giveBack }
  } catch (error) {
    giveBack()
    throw error
  }
}

function hold<T>(set: Set<T>, value: T, undo: (() => void)[]): void {
  set.add(value)
  undo.push(() => set.delete(value))
}

/** One address out of each pool of each network: the one it had, else the next. */
function takeAddresses(
  authority: Authority,
  plan: LeafPlan,
  own: readonly string[],
  now: Date,
  undo: (() => void)[],
): Prefix[] {
  const { state } = authority
  const kept = plan.keepAddresses.map(parsePrefix)
  return plan.networks.flatMap((network) => {
    if (plan.role === 'device' && plan.wireGuard) requireKeyAddress(authority, network, plan.wireGuard.key, own, now)
    return network.pools.map((pool, at) => {
      const before = kept.find((address) => prefixContains(pool.prefix, address))
      const address =
        (before && state.keepAddress(network, at, before, plan.uri)) ?? allocate(authority, network, at, now)
      undo.push(() => state.settleAddress(network.key, address))
      return address
    })
  })
}

function allocate(authority: Authority, network: NetworkRecord, pool: number, now: Date): Prefix {
  try {
    return authority.state.allocateAddress(network, pool)
  } catch (error) {
    if (!(error instanceof CertpeerError) || error.code !== 'pool_exhausted') throw error
    // Perhaps a quarantine has just ended.
    authority.state.sweep(now)
    return authority.state.allocateAddress(network, pool)
  }
}

/** Two keys whose hashes meet in 64 bits: the second one is refused. */
function requireKeyAddress(
  authority: Authority,
  network: NetworkRecord,
  key: WireGuardKey,
  own: readonly string[],
  now: Date,
): void {
  const address = formatPrefix(keyAddress(network.keyPrefix, key))
  if (authority.state.addressHolder(network, address, own, now)) {
    throw new CertpeerError(
      'address_conflict',
      'the address made from this WireGuard key is held by another; use a new key',
    )
  }
}

function namesAndBlocks(
  plan: LeafPlan,
  addresses: readonly Prefix[],
): Pick<CertificateFacts, 'addressBlocks' | 'ips' | 'dns' | 'servedNetworks'> {
  const [network] = plan.networks
  switch (plan.role) {
    case 'device':
      return network && plan.wireGuard
        ? { addressBlocks: [...addresses, keyAddress(network.keyPrefix, plan.wireGuard.key)] }
        : {}
    case 'gateway':
      return {
        ips: addresses.map((address) => formatAddress(address.bits, address.family)),
        addressBlocks: plan.networks.flatMap(servedPrefixes),
        servedNetworks: plan.networks.map((served) => served.key),
      }
    case 'server':
      return { dns: plan.dns ?? [], ips: plan.ips ?? [] }
    default:
      return {}
  }
}

/** Strictly increasing notBefore per identity: gateways refuse whatever is not newer than what they accepted. */
function validityOf(authority: Authority, plan: LeafPlan, issuerEnds: Date): { notBefore: Date; notAfter: Date } {
  const profile = authority.profiles[plan.role]
  const now = Math.floor(authority.now().getTime() / 1000) * 1000
  const newest = newestOf(authority.state.identities.get(plan.uri))
  // A tenth of the lifetime at most: renewal begins in the last third, and a certificate must not be born in it.
  const backdateSeconds = Math.min(profile.backdateSeconds, Math.floor(profile.lifetimeSeconds / 10))
  const notBefore = Math.max(now - backdateSeconds * 1000, newest + 1000)
  if (notBefore > now) {
    throw new CertpeerError(
      'rate_limited',
      `${plan.role} ${plan.name} gets certificates too often; try again in a minute`,
    )
  }
  return {
    notBefore: new Date(notBefore),
    notAfter: new Date(Math.min(now + profile.lifetimeSeconds * 1000, issuerEnds.getTime())),
  }
}

function newestOf(identity: IdentityRecord | undefined): number {
  return identity?.newestNotBefore.getTime() ?? 0
}

function heldUntil(plan: LeafPlan, notAfter: Date): Date {
  const quarantine = Math.max(0, ...plan.networks.map((network) => network.document.quarantineSeconds))
  return new Date(notAfter.getTime() + quarantine * 1000)
}
