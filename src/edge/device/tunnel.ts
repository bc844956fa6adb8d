/** Brings the interface to the plan: idempotent, never removes and re-adds a peer that stays. */
import { join } from 'node:path'
import { diffPeers } from '../../core/wireguard/diff.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import type { PeerChange } from '../../core/wireguard/types.ts'
import type { Logger } from '../../platform/log.ts'
import { findInterface, isConfigured, openInterface, removeInterface } from '../tunnel/interface.ts'
import type { InterfaceSettings, TunnelInterface } from '../tunnel/interface.ts'
import { applyDns } from './dns.ts'
import type { Peering } from './peer.ts'
import { planTunnel } from './plan.ts'
import type { TunnelPlan } from './plan.ts'

export const DEFAULT_INTERFACE = 'certpeer0'

export interface TunnelOptions {
  readonly dir: string
  readonly interface: string
  readonly log: Logger
}

/** Creates or adopts the interface and sets everything the plan says. */
export async function bringUp(options: TunnelOptions, peering: Peering): Promise<TunnelPlan> {
  const plan = planTunnel(peering.device, peering.network, peering.gateways)
  const tunnel = await openInterface({ name: options.interface, backend: 'auto', log: options.log })
  try {
    return await setTunnel(tunnel, options, peering, plan)
  } catch (error) {
    // Half an interface would hold addresses and do nothing; one that was there before keeps what it has.
    if (!tunnel.adopted) await tunnel.remove().catch(() => undefined)
    throw error
  } finally {
    tunnel.close()
  }
}

async function setTunnel(
  tunnel: TunnelInterface,
  options: TunnelOptions,
  peering: Peering,
  plan: TunnelPlan,
): Promise<TunnelPlan> {
  const { log } = options
  const settings = settingsOf(options.dir, peering, plan)
  if (!(await isConfigured(tunnel, settings))) await tunnel.configure(settings)
  const changes = await changesFor(tunnel, plan)
  if (changes.length > 0) {
    await tunnel.device.apply(changes)
    log.info({ interface: options.interface, changes: changes.length }, 'tunnel set')
  }
  await applyDns(options.interface, plan.dns, log)
  return plan
}

/** Takes peers off an interface that is there, whatever else is on it. Gives how many were on it. */
export async function dropPeers(name: string, keys: ReadonlySet<WireGuardKey>, log: Logger): Promise<number> {
  if (keys.size === 0) return 0
  const tunnel = await findInterface(name, log)
  if (tunnel === undefined) return 0
  try {
    const { peers } = await tunnel.device.read()
    const present = [...keys].filter((key) => peers.has(key))
    if (present.length > 0) {
      await tunnel.device.apply(present.map((publicKey): PeerChange => ({ kind: 'remove', publicKey })))
    }
    return present.length
  } finally {
    tunnel.close()
  }
}

/** Removes the interface that holds this key; false when there is none. Another tunnel of that name stays. */
export async function bringDown(name: string, key: WireGuardKey): Promise<boolean> {
  return removeInterface(name, undefined, key)
}

export interface TunnelPeerStatus {
  readonly publicKey: string
  readonly endpoint: string | null
  readonly latestHandshakeAt: string | null
  readonly receiveBytes: number
  readonly transmitBytes: number
}

/** What the interface that holds this key has now; undefined when there is none, or another tunnel has the name. */
export async function readTunnel(
  name: string,
  key: WireGuardKey,
  log: Logger,
): Promise<readonly TunnelPeerStatus[] | undefined> {
  const tunnel = await findInterface(name, log)
  if (tunnel === undefined) return undefined
  try {
    const { peers, publicKey } = await tunnel.device.read()
    if (publicKey !== key) return undefined
    return [...peers.values()].map((peer) => ({
      publicKey: peer.publicKey,
      endpoint: peer.endpoint ?? null,
      latestHandshakeAt: peer.latestHandshakeAt?.toISOString() ?? null,
      receiveBytes: peer.receiveBytes,
      transmitBytes: peer.transmitBytes,
    }))
  } finally {
    tunnel.close()
  }
}

async function changesFor(tunnel: TunnelInterface, plan: TunnelPlan): Promise<PeerChange[]> {
  const { peers } = await tunnel.device.read()
  const changes = diffPeers(plan.peers, peers)
  // A device never roams after a gateway: an endpoint that differs from what the server says now has moved.
  for (const [publicKey, { allowedIps, endpoint }] of plan.peers) {
    const has = peers.get(publicKey)?.endpoint
    if (endpoint === undefined || has === undefined || has === endpoint) continue
    changes.push({ kind: 'set', peer: { publicKey, allowedIps, endpoint } })
  }
  return changes
}

function settingsOf(dir: string, { device }: Peering, plan: TunnelPlan): InterfaceSettings {
  return {
    privateKeyFile: join(dir, 'wireguard.key'),
    publicKey: device.key,
    addresses: plan.addresses,
    mtu: plan.mtu,
    routes: plan.routes,
  }
}
