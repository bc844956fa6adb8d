/**
 * What a device's tunnel shall be, made only of what is signed: its own certificate, the network document, and the
 * certificates of gateways. The one unsigned thing is a gateway's endpoint, where a lie costs a handshake. Pure.
 */
import { CertpeerError } from '../../core/errors.ts'
import { comparePrefixes, parseAddress, prefixContains, prefixesEqual } from '../../core/ipam/prefix.ts'
import type { Prefix } from '../../core/ipam/prefix.ts'
import type { VerifiedNetworkDocument } from '../../core/messages/network-document.ts'
import type { WantedPeer } from '../../core/wireguard/diff.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import { networkKey } from '../../core/x509/identity.ts'
import { parseCertificate } from '../../core/x509/certificate.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import { readGateway, verifyCertificate } from '../../core/x509/path.ts'
import type { DeviceFacts, GatewayFacts } from '../../core/x509/path.ts'
import type { CertpeerOids } from '../../core/x509/oids.ts'
import { pemToDer } from '../../core/x509/pem.ts'

/** A gateway as the server names it: a certificate with its issuer, and where it says to listen. */
export interface GatewayHint {
  readonly certificate: string
  readonly issuer: string
  readonly endpoint: string
}

export interface Gateway {
  readonly facts: GatewayFacts
  /** HOST:PORT, unsigned. */
  readonly endpoint: string
}

export interface GatewayTrust {
  readonly root: Certificate
  readonly oids: CertpeerOids
  readonly trustDomain: string
  readonly now: Date
  /** What this device has verified of revocations. */
  readonly isRevoked: (gateway: Pick<GatewayFacts, 'issuerKeyId' | 'serial'>) => boolean
}

/**
 * Believes a hint only when its certificate verifies under the pinned root, is a gateway's, serves this very network and
 * is not revoked. Throws certificate_untrusted, certificate_expired, bad_client_certificate, foreign_network,
 * certificate_revoked or key_conflict.
 */
export function verifyGateway(hint: GatewayHint, device: DeviceFacts, trust: GatewayTrust): Gateway {
  const certificate = parseCertificate(pemToDer(hint.certificate))
  const issuers = [parseCertificate(pemToDer(hint.issuer))]
  const verified = verifyCertificate({ certificate, issuers, roles: ['gateway'], ...trust })
  const facts = readGateway(verified, trust.oids)
  const own = networkKey(device.tenant, device.network)
  if (!facts.servedNetworks.includes(own)) {
    throw new CertpeerError('foreign_network', `gateway ${facts.name} is not certified for ${own}`)
  }
  if (trust.isRevoked(facts)) {
    throw new CertpeerError(
      'certificate_revoked',
      `the certificate ${facts.serial} of gateway ${facts.name} is revoked`,
    )
  }
  if (facts.key === device.key) {
    throw new CertpeerError('key_conflict', `gateway ${facts.name} is certified with our own WireGuard key`)
  }
  return { facts, endpoint: hint.endpoint }
}

export interface TunnelPlan {
  /** /32 and /128, the key address among them. */
  readonly addresses: readonly Prefix[]
  readonly mtu: number
  readonly routes: readonly Prefix[]
  readonly peers: ReadonlyMap<WireGuardKey, WantedPeer>
  readonly dns: { readonly servers: readonly string[]; readonly search: readonly string[] }
}

/**
 * A prefix of the document goes to the first gateway, by name, whose certificate covers it: WireGuard gives an AllowedIP
 * to one peer only. A gateway's own tunnel addresses always go to it. Prefixes that no gateway is certified for stay out.
 */
export function planTunnel(
  device: DeviceFacts,
  network: VerifiedNetworkDocument,
  gateways: readonly Gateway[],
): TunnelPlan {
  const ordered = [...gateways].sort((a, b) => (a.facts.name < b.facts.name ? -1 : 1))
  const allowedIps = new Map<WireGuardKey, Prefix[]>()
  for (const { facts } of ordered) {
    const own = facts.tunnelAddresses.map(parseAddress)
    allowedIps.set(
      facts.key,
      own.filter((address) => network.pools.some((pool) => prefixContains(pool, address))),
    )
  }
  const routes: Prefix[] = []
  for (const prefix of distinct([...network.pools, ...network.routes])) {
    const bearer = ordered.find(({ facts }) => facts.servedPrefixes.some((served) => prefixContains(served, prefix)))
    if (bearer === undefined) continue
    allowedIps.get(bearer.facts.key)?.push(prefix)
    routes.push(prefix)
  }
  const covered = (address: Prefix) => routes.some((route) => prefixContains(route, address))
  for (const prefixes of allowedIps.values()) routes.push(...prefixes.filter((prefix) => !covered(prefix)))

  const { mtu, dns, persistentKeepaliveSeconds } = network.document
  const peers = new Map<WireGuardKey, WantedPeer>()
  for (const { facts, endpoint } of ordered) {
    const prefixes = distinct(allowedIps.get(facts.key) ?? [])
    peers.set(facts.key, { allowedIps: prefixes, endpoint, persistentKeepaliveSeconds })
  }
  return {
    addresses: distinct([...device.addresses, device.keyAddress]),
    mtu,
    routes: distinct(routes),
    peers,
    dns,
  }
}

function distinct(prefixes: readonly Prefix[]): Prefix[] {
  const sorted = [...prefixes].sort(comparePrefixes)
  return sorted.filter((prefix, index) => {
    const before = sorted[index - 1]
    return before === undefined || !prefixesEqual(before, prefix)
  })
}
