/** The gateways that devices are told of: from rows, believed only as far as their certificates verify. */
import { networkKey } from '../core/x509/identity.ts'
import { derToPem } from '../core/x509/pem.ts'
import { errorCode } from '../core/errors.ts'
import type { PeerAnswer } from '../core/messages/views.ts'
import type { Db } from '../platform/db/connection.ts'
import type { Logger } from '../platform/log.ts'
import { listGatewayHints } from './db/gateways.ts'
import type { GatewayHintRow } from './db/gateways.ts'
import type { GatewayPrincipal, Principals } from './principal.ts'

type GatewayHint = PeerAnswer['gateways'][number]

/** Most that one answer names (the message's limit). */
const MAX_HINTS = 256

interface KnownGateway {
  readonly principal: GatewayPrincipal
  readonly hint: GatewayHint
  readonly connected: boolean
  readonly lastSeenAtMs: number
}

export interface GatewayDirectory {
  /** Gateways that serve the network by their own certificate, connected ones first, then the last seen. */
  hints(tenant: string, network: string): GatewayHint[]
  /** Names of those that are connected. */
  connectedNames(tenant: string, network: string): string[]
  refresh(db: Db): Promise<void>
}

export function createGatewayDirectory(principals: Principals, log: Logger): GatewayDirectory {
  let byNetwork = new Map<string, KnownGateway[]>()

  function read(row: GatewayHintRow): KnownGateway | undefined {
    try {
      const principal = principals.read(row.certificate)
      if (principal.kind !== 'gateway') return undefined
      const { certificate, issuer } = principal.verified
      return {
        principal,
        connected: row.connected,
        lastSeenAtMs: row.lastSeenAt?.getTime() ?? 0,
        hint: {
          certificate: derToPem(certificate.der, 'CERTIFICATE'),
          issuer: derToPem(issuer.der, 'CERTIFICATE'),
          endpoint: row.endpoint.slice(0, 300),
        },
      }
    } catch (err) {
      log.debug({ gateway: row.identity, err }, 'gateway row passed over')
      return undefined
    }
  }

  /** In force at this moment; the directory may be seconds old, a revocation is not. */
  function isInForce(gateway: KnownGateway): boolean {
    try {
      principals.requireInForce(gateway.principal)
      return true
    } catch (error) {
      // Not knowing is no reason to hide a gateway: the device decides by its own check.
      return errorCode(error) === 'revocation_unknown'
    }
  }

  function serving(tenant: string, network: string): KnownGateway[] {
    return (byNetwork.get(networkKey(tenant, network)) ?? []).filter(isInForce)
  }

  return {
    hints: (tenant, network) =>
      serving(tenant, network)
        .slice(0, MAX_HINTS)
        .map((gateway) => gateway.hint),
    connectedNames: (tenant, network) =>
      serving(tenant, network)
        .filter((gateway) => gateway.connected)
        .map((gateway) => gateway.principal.gateway.name),
    async refresh(db) {
      const known = (await listGatewayHints(db)).map(read).filter((gateway) => gateway !== undefined)
      known.sort((a, b) => Number(b.connected) - Number(a.connected) || b.lastSeenAtMs - a.lastSeenAtMs)
      const next = new Map<string, KnownGateway[]>()
      for (const gateway of known) {
        for (const key of gateway.principal.gateway.servedNetworks) {
          const list = next.get(key) ?? []
          list.push(gateway)
          next.set(key, list)
        }
      }
      byNetwork = next
    },
  }
}
