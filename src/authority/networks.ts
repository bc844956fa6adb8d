/** Network documents: an operator's settings, checked against the CAs and the other networks, numbered, signed, and entered. */
import { CertpeerError } from '../core/errors.ts'
import { formatPrefix, prefixesOverlap, type Prefix } from '../core/ipam/prefix.ts'
import { encodeNetworkDocument } from '../core/messages/network-document.ts'
import type { NetworkDocument, NetworkSettings } from '../core/messages/network.ts'
import { checkNetworkSettings, type CheckedNetwork } from '../core/policy/network.ts'
import { may, requireAct } from '../core/policy/operator.ts'
import { encodeIpAddrBlocks } from '../core/x509/address-blocks.ts'
import { networkKey } from '../core/x509/identity.ts'
import { getDeviceIssuer, getInfrastructureIssuer, type Authority } from './authority.ts'
import { ensureAuthorityCertificate } from './authority-certificate.ts'
import type { OperatorPrincipal } from './principal.ts'

export interface NetworkAnswer {
  readonly tenant: string
  readonly network: string
  readonly number: number
  readonly jws: string
}

/** Idempotent: settings equal to those in force answer the document in force. Throws network_document_invalid or policy_denied. */
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
  requireCertifiable(checked)
  const before = authority.state.networks.get(key)
  if (before && sameSettings(before.document, checked.settings)) {
    const { tenant, network, number } = before.document
    return { tenant, network, number, jws: before.jws }
  }
  const now = authority.now()
  const document: NetworkDocument = {
    ...checked.settings,
    trustDomain: authority.trustDomain,
    number: (before?.document.number ?? 0) + 1,
    issuedAt: now.toISOString(),
  }
  const { certificate, issuer } = await ensureAuthorityCertificate(authority)
  const jws = await encodeNetworkDocument({
    document,
    certificates: [certificate.der, issuer.der],
    sign: (data) => authority.authoritySigner.sign(data),
  })
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
  }
}

/** What a gateway serves must fit into one RFC 3779 block of prefixes. */
function requireCertifiable(checked: CheckedNetwork): void {
  try {
    encodeIpAddrBlocks([...checked.pools, checked.keyPrefix, ...checked.routes])
  } catch (error) {
    if (!(error instanceof CertpeerError)) throw error
    throw new CertpeerError(
      'network_document_invalid',
      `network settings: no gateway could be certified for these prefixes: ${error.message}; leave a gap between them`,
    )
  }
}

function sameSettings(document: NetworkDocument, settings: NetworkSettings): boolean {
  return Object.entries(settings).every(
    ([field, value]) => JSON.stringify(document[field as keyof NetworkSettings]) === JSON.stringify(value),
  )
}
