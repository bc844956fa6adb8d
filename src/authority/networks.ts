/** Network documents: an operator's settings, checked against the CAs and the other networks, numbered, signed, and entered. */
import { CertpeerError } from '../core/errors.ts'
import { formatPrefix, parsePrefix, prefixesOverlap, type Prefix } from '../core/ipam/prefix.ts'
import { parseJws } from '../core/messages/jws.ts'
import {
  encodeNetworkDocument,
  NETWORK_DOCUMENT_TYPE,
  verifyNetworkDocument,
} from '../core/messages/network-document.ts'
import type { NetworkDocument, NetworkSettings } from '../core/messages/network.ts'
import { checkNetworkSettings, type CheckedNetwork } from '../core/policy/network.ts'
import { may, requireAct } from '../core/policy/operator.ts'
import { encodeIpAddrBlocks } from '../core/x509/address-blocks.ts'
import { parseCertificate } from '../core/x509/certificate.ts'
import { networkKey } from '../core/x509/identity.ts'
import { getDeviceIssuer, getInfrastructureIssuer, type Authority } from './authority.ts'
import { ensureAuthorityCertificate } from './authority-certificate.ts'
import type { OperatorPrincipal } from './principal.ts'
import { servedPrefixes, type NetworkRecord } from './state.ts'

export interface NetworkAnswer {
  readonly tenant: string
  readonly network: string
  readonly number: number
  readonly jws: string
}

/** Idempotent: settings equal to those in force answer the document in force, unless its signer was revoked. Throws network_document_invalid or policy_denied. */
export function applyNetwork(
  authority: Authority,
  operator: OperatorPrincipal,
  settings: NetworkSettings,
): Promise<NetworkAnswer> {
  requireAct(operator, 'network-apply', settings.tenant)
  // One at a time: the number of the next document depends on the one before.
  return authority.reservations.inTurn(() => applyNext(authority, operator, settings))
}

/** Those that the operator may see, in the order of their names. */
export function listNetworks(authority: Authority, operator: OperatorPrincipal): NetworkAnswer[] {
  if (!may(operator.role, 'network-show')) requireAct(operator, 'network-show', operator.tenant)
  return [...authority.state.networks.values()]
    .filter(({ document }) => operator.tenant === undefined || document.tenant === operator.tenant)
    .sort((a, b) => (a.key < b.key ? -1 : 1))
    .map(({ document, jws }) => ({ tenant: document.tenant, network: document.network, number: document.number, jws }))
}

async function applyNext(
  authority: Authority,
  operator: OperatorPrincipal,
  settings: NetworkSettings,
): Promise<NetworkAnswer> {
  const infrastructure = getInfrastructureIssuer(authority)
  const checked = checkNetworkSettings(settings, {
    deviceBlock: getDeviceIssuer(authority, settings.tenant).certificate.addressBlocks ?? [],
    infrastructureBlock: infrastructure.certificate.addressBlocks ?? [],
  })
  const key = networkKey(settings.tenant, settings.network)
  requireApart(authority, key, checked)
  requireCertifiable(authority, key, checked)
  const before = authority.state.networks.get(key)
  if (before && sameSettings(before.document, checked.settings) && !isSignerRevoked(authority, before)) {
    const { tenant, network, number } = before.document
    return { tenant, network, number, jws: before.jws }
  }
  const now = authority.now()
  // A clock that went back must not make a document that receivers take for an old one.
  const issuedAt = new Date(Math.max(now.getTime(), before ? Date.parse(before.document.issuedAt) : 0))
  const document: NetworkDocument = {
    ...checked.settings,
    trustDomain: authority.trustDomain,
    number: (before?.document.number ?? 0) + 1,
    issuedAt: issuedAt.toISOString(),
  }
  const { certificate, issuer } = await ensureAuthorityCertificate(authority)
  const jws = await encodeNetworkDocument({
    document,
    certificates: [certificate.der, issuer.der],
    sign: (data) => authority.authoritySigner.sign(data),
  })
  // What nobody would believe must not become law.
  const { root, oids, trustDomain } = authority
  verifyNetworkDocument({ jws, root, now: issuedAt, oids, trustDomain })
  await authority.commit({ kind: 'network', at: now.toISOString(), jws, operator: operator.uri })
  authority.log.info({ network: key, number: document.number }, 'network document in force')
  return { tenant: document.tenant, network: document.network, number: document.number, jws }
}

/** An address belongs to one network: a gateway that serves two must never see it in both. */
function requireApart(authority: Authority, key: string, checked: CheckedNetwork): void {
  const own = [...checked.pools, checked.keyPrefix]
  for (const other of authority.state.networks.values()) {
    if (other.key === key) continue
    const theirs: readonly Prefix[] = [...other.poolPrefixes, other.keyPrefix]
    const clash = own.find((prefix) => theirs.some((taken) => prefixesOverlap(prefix, taken)))
    if (clash) {
      throw new CertpeerError(
        'network_document_invalid',
        `network settings: ${formatPrefix(clash)} overlaps network ${other.key}`,
      )
    }
    requireNoneHeld(other, own, authority.now())
  }
}

/** Nor do addresses that the other network gave out before its pools became smaller, while anybody still holds them. */
function requireNoneHeld(other: NetworkRecord, own: readonly Prefix[], now: Date): void {
  const held = [...other.holds].filter(([, { until }]) => until > now.getTime()).map(([address]) => address)
  for (const address of [...held, ...other.pending]) {
    const prefix = parsePrefix(address)
    const clash = own.find((candidate) => prefixesOverlap(candidate, prefix))
    if (clash === undefined) continue
    const until = other.holds.get(address)?.until
    throw new CertpeerError(
      'network_document_invalid',
      `network settings: ${formatPrefix(clash)} contains ${address}, which network ${other.key} gave out ` +
        (until === undefined ? 'just now' : `and holds until ${new Date(until).toISOString()}`),
    )
  }
}

/**
 * What a gateway serves must fit into one RFC 3779 block of prefixes: that of this network alone, and with the other
 * networks of each gateway that serves it, or that gateway could not be renewed.
 */
function requireCertifiable(authority: Authority, key: string, checked: CheckedNetwork): void {
  const own = [...checked.pools, checked.keyPrefix, ...checked.routes]
  requireEncodable('no gateway', own)
  for (const { role, name, networks, blocked } of authority.state.identities.values()) {
    if (role !== 'gateway' || blocked || !networks.includes(key)) continue
    const others = networks.filter((other) => other !== key)
    const theirs = others.flatMap((other) => authority.state.networks.get(other) ?? []).flatMap(servedPrefixes)
    requireEncodable(`gateway ${name}, which serves ${networks.join(' and ')}, no longer`, [...own, ...theirs])
  }
}

function requireEncodable(who: string, prefixes: readonly Prefix[]): void {
  try {
    encodeIpAddrBlocks(prefixes)
  } catch (error) {
    if (!(error instanceof CertpeerError)) throw error
    throw new CertpeerError(
      'network_document_invalid',
      `network settings: ${who} could be certified for these prefixes: ${error.message}`,
    )
  }
}

function isSignerRevoked({ state }: Authority, { jws }: NetworkRecord): boolean {
  const [leaf] = parseJws(jws, NETWORK_DOCUMENT_TYPE).certificates
  return state.revocations.has(parseCertificate(leaf).serial)
}

function sameSettings(document: NetworkDocument, settings: NetworkSettings): boolean {
  return Object.entries(settings).every(
    ([field, value]) => JSON.stringify(document[field as keyof NetworkSettings]) === JSON.stringify(value),
  )
}
