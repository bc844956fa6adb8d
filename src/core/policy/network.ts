/** What a network may be: prefixes typed and canonical, pools where they can work and inside of what the CAs may certify. */
import { CertpeerError, errorCode } from '../errors.ts'
import { AddressPool } from '../ipam/pool.ts'
import {
  comparePrefixes,
  formatAddress,
  formatPrefix,
  parseAddress,
  parsePrefix,
  parsePrefixOrAddress,
  prefixContains,
  prefixesEqual,
  prefixesOverlap,
} from '../ipam/prefix.ts'
import type { Prefix } from '../ipam/prefix.ts'
import type { NetworkSettings } from '../messages/network.ts'

export interface CheckedNetwork {
  /** The settings with every prefix and address in canonical text, sorted where order has no meaning. */
  readonly settings: NetworkSettings
  readonly pools: readonly Prefix[]
  readonly reserved: readonly Prefix[]
  readonly keyPrefix: Prefix
  readonly routes: readonly Prefix[]
  readonly dnsServers: readonly Prefix[]
}

/**
 * Addresses that no tunnel can carry between hosts: "this network", loopback, link-local, multicast, reserved and
 * broadcast, IPv4-mapped (it would be a second spelling of an IPv4 address).
 */
const UNUSABLE: readonly Prefix[] = [
  '0.0.0.0/8',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '224.0.0.0/4',
  '240.0.0.0/4',
  '::/127', // unspecified and loopback
  '::ffff:0:0/96',
  'fe80::/10',
  'ff00::/8',
].map(parsePrefix)

/**
 * Checks what an operator asks for against itself and against the CAs: pools and key prefix inside the device CA's block
 * and the infrastructure CA's, routes inside the latter (a gateway could not be certified for them otherwise). Throws
 * network_document_invalid naming the field.
 */
export function checkNetworkSettings(
  settings: NetworkSettings,
  blocks: { readonly deviceBlock: readonly Prefix[]; readonly infrastructureBlock: readonly Prefix[] },
): CheckedNetwork {
  const checked = readNetworkSettings(settings)
  const inside = (field: string, prefix: Prefix, block: readonly Prefix[], whose: string) => {
    if (block.some((outer) => prefixContains(outer, prefix))) return
    throw fault(field, `${formatPrefix(prefix)} is outside of the ${whose} CA's block (${formatList(block)})`)
  }
  checked.pools.forEach((pool) => inside('pools', pool, blocks.deviceBlock, 'device'))
  checked.pools.forEach((pool) => inside('pools', pool, blocks.infrastructureBlock, 'infrastructure'))
  inside('keyPrefix', checked.keyPrefix, blocks.deviceBlock, 'device')
  inside('keyPrefix', checked.keyPrefix, blocks.infrastructureBlock, 'infrastructure')
  checked.routes.forEach((route) => inside('routes', route, blocks.infrastructureBlock, 'infrastructure'))
  return checked
}

/** The part of the check that needs no CA: what a gateway or a device does with a signed document, too. */
export function readNetworkSettings(settings: NetworkSettings): CheckedNetwork {
  const pools = readList('pools', settings.pools, parsePrefix)
  const reserved = readList('reserved', settings.reserved, parsePrefixOrAddress)
  const routes = readList('routes', settings.routes, parsePrefix)
  const keyPrefix = readOne('keyPrefix', settings.keyPrefix, parsePrefix)
  // Order means something here: the first server is asked first.
  const dnsServers = settings.dns.servers.map((text, index) => readOne(`dns.servers.${index}`, text, parseAddress))

  checkPools(pools)
  checkReserved(reserved, pools)
  checkKeyPrefix(keyPrefix, pools)
  checkRoutes(routes, [...pools, keyPrefix])
  dnsServers.forEach((server, index) => requireUsable(`dns.servers.${index}`, server))
  settings.dns.search.forEach((domain, index) => requireDomain(`dns.search.${index}`, domain))
  return {
    settings: {
      ...settings,
      pools: pools.map(formatPrefix),
      reserved: reserved.map(formatPrefix),
      keyPrefix: formatPrefix(keyPrefix),
      routes: routes.map(formatPrefix),
      dns: {
        servers: dnsServers.map((server) => formatAddress(server.bits, server.family)),
        search: settings.dns.search,
      },
    },
    pools,
    reserved,
    keyPrefix,
    routes,
    dnsServers,
  }
}

function checkPools(pools: readonly Prefix[]): void {
  if (pools.length === 0) throw fault('pools', 'at least one prefix is needed')
  for (const pool of pools) {
    requireUsable('pools', pool)
    const longest = pool.family === 4 ? 30 : 126
    if (pool.length > longest) throw fault('pools', `${formatPrefix(pool)} is too small; /${longest} at most`)
    if (pools.filter((other) => other.family === pool.family).length > 1) {
      throw fault('pools', `one prefix per address family, not ${formatList(pools)}`)
    }
  }
}

function checkReserved(reserved: readonly Prefix[], pools: readonly Prefix[]): void {
  for (const prefix of reserved) {
    if (!pools.some((pool) => prefixContains(pool, prefix))) {
      throw fault('reserved', `${formatPrefix(prefix)} is not inside of a pool (${formatList(pools)})`)
    }
  }
  for (const pool of pools) {
    if (new AddressPool({ prefix: pool, reserved }).capacity === 0n) {
      throw fault('reserved', `nothing is left of pool ${formatPrefix(pool)}`)
    }
  }
}

function checkKeyPrefix(keyPrefix: Prefix, pools: readonly Prefix[]): void {
  if (keyPrefix.family !== 6 || keyPrefix.length !== 64) {
    throw fault('keyPrefix', `${formatPrefix(keyPrefix)} must be an IPv6 /64`)
  }
  requireUsable('keyPrefix', keyPrefix)
  // A pool that overlaps could give one device the key address of another.
  const pool = pools.find((candidate) => prefixesOverlap(candidate, keyPrefix))
  if (pool !== undefined) throw fault('keyPrefix', `${formatPrefix(keyPrefix)} overlaps pool ${formatPrefix(pool)}`)
}

/** A route may be larger than a pool (0.0.0.0/0: everything through the tunnel) but never be a part of one. */
function checkRoutes(routes: readonly Prefix[], own: readonly Prefix[]): void {
  for (const [index, route] of routes.entries()) {
    const field = 'routes'
    const owner = own.find((prefix) => prefixContains(prefix, route))
    if (owner !== undefined) {
      throw fault(field, `${formatPrefix(route)} is inside of ${formatPrefix(owner)}, which devices reach anyway`)
    }
    // Sorted: equal ones are neighbours.
    const next = routes[index + 1]
    if (next !== undefined && prefixesEqual(route, next)) throw fault(field, `${formatPrefix(route)} is there twice`)
    const unusable = UNUSABLE.find((range) => prefixContains(range, route))
    if (unusable !== undefined) {
      throw fault(field, `${formatPrefix(route)} is inside of ${formatPrefix(unusable)}, which no tunnel can carry`)
    }
  }
}

function requireUsable(field: string, prefix: Prefix): void {
  const range = UNUSABLE.find((unusable) => prefixesOverlap(unusable, prefix))
  if (range === undefined) return
  throw fault(field, `${formatPrefix(prefix)} meets ${formatPrefix(range)}, which no tunnel can carry`)
}

function requireDomain(field: string, domain: string): void {
  const label = /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/i
  if (!domain.split('.').every((part) => label.test(part))) {
    throw fault(field, `${JSON.stringify(domain)} is not a domain name`)
  }
}

function readList(field: string, texts: readonly string[], read: (text: string) => Prefix): Prefix[] {
  return texts.map((text, index) => readOne(`${field}.${index}`, text, read)).sort(comparePrefixes)
}

function readOne(field: string, text: string, read: (text: string) => Prefix): Prefix {
  try {
    return read(text)
  } catch (error) {
    if (errorCode(error) === 'malformed_request' && error instanceof Error) throw fault(field, error.message)
    throw error
  }
}

function formatList(prefixes: readonly Prefix[]): string {
  return prefixes.map(formatPrefix).join(', ')
}

function fault(field: string, why: string): CertpeerError {
  return new CertpeerError('network_document_invalid', `network settings: ${field}: ${why}`)
}
