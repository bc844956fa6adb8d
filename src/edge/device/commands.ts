/** What `certpeer device …` does. Everything here needs only the credential directory and what is signed. */
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { formatPrefix } from '../../core/ipam/prefix.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import { readDevice } from '../../core/x509/path.ts'
import type { DeviceFacts } from '../../core/x509/path.ts'
import { systemNow } from '../../platform/clock.ts'
import type { Now } from '../../platform/clock.ts'
import { updateCredentialConfig } from '../../platform/credentials.ts'
import type { Logger } from '../../platform/log.ts'
import { readFreshIdentity, readOwnIdentity } from '../client-certificate.ts'
import type { OwnIdentity } from '../client-certificate.ts'
import { enroll, renew } from '../enrollment.ts'
import type { Enrolled } from '../enrollment.ts'
import { findNetworkDocument } from '../network-documents.ts'
import { renewalOpensAt } from '../renewal-window.ts'
import { findKeptPeering, findRevokedKeys, provision, withdraw } from './peer.ts'
import type { PeerContext, Peering } from './peer.ts'
import { checkRevocations, GatewayRevocations } from './revocations.ts'
import { bringDown, bringUp, DEFAULT_INTERFACE, dropPeers, readTunnel } from './tunnel.ts'
import type { TunnelPeerStatus } from './tunnel.ts'

export interface DeviceOptions {
  readonly dir: string
  readonly log: Logger
  readonly now?: Now
}

export interface DeviceCertificateReport {
  readonly identity: string
  readonly name: string | null
  readonly tenant: string
  readonly network: string
  readonly publicKey: string
  readonly addresses: readonly string[]
  readonly groups: readonly string[]
  readonly serial: string
  readonly notBefore: string
  readonly notAfter: string
  readonly renewFrom: string
}

export interface DeviceUpReport extends DeviceCertificateReport {
  readonly interface: string
  readonly state: Peering['state']
  /** Gateways that had not confirmed within the wait. */
  readonly waitingFor: readonly string[]
  readonly gateways: readonly { readonly name: string; readonly endpoint: string; readonly publicKey: string }[]
  readonly routes: readonly string[]
}

export interface DeviceStatusReport extends DeviceCertificateReport {
  readonly expired: boolean
  readonly networkDocument: number | null
  readonly interface: string
  readonly tunnel: 'up' | 'down' | 'unknown'
  readonly gateways: readonly (TunnelPeerStatus & { readonly name: string | null })[]
}

export async function deviceEnroll(
  options: DeviceOptions & { readonly token: string },
): Promise<DeviceCertificateReport> {
  const { token, dir, now = systemNow } = options
  const enrolled = await enroll({ token, dir, now, wireGuard: true, expect: 'device' })
  return describeEnrolled(enrolled, now)
}

/** Provisions first and brings the tunnel up then: a handshake before the peer exists costs five seconds. */
export async function deviceUp(options: DeviceOptions & { readonly interface?: string }): Promise<DeviceUpReport> {
  const { dir, log, now = systemNow } = options
  const own = await readFreshIdentity(dir, now, (error) => log.warn({ err: error }, 'not renewed yet'))
  requireDevice(own)
  const name = options.interface ?? own.credential.config.interface ?? DEFAULT_INTERFACE
  const context = { own, revocations: await checkRevocations({ own, now, log }), now, log }
  // Whatever the server answers now: a gateway that is revoked is no peer of ours from here on.
  await dropRevoked(name, context)
  const peering = await provisionOrKept(context)
  if (peering.gateways.length === 0) {
    throw new CertpeerError('unavailable', 'no gateway serves this network yet: start one, then try again')
  }
  const plan = await bringUp({ dir, interface: name, log }, peering)
  if (own.credential.config.interface !== name) await updateCredentialConfig(dir, { interface: name })
  return {
    ...describe(own, peering.device),
    interface: name,
    state: peering.state,
    waitingFor: peering.waitingFor,
    gateways: peering.gateways.map(({ facts, endpoint }) => ({ name: facts.name, endpoint, publicKey: facts.key })),
    routes: plan.routes.map(formatPrefix),
  }
}

/** Takes the interface away, and the peer off the gateways when they can be told; the certificate stays. */
export async function deviceDown(
  options: DeviceOptions,
): Promise<{ interface: string; removed: boolean; told: boolean }> {
  const { dir, log, now = systemNow } = options
  const own = await readOwnIdentity(dir, now())
  const { key } = requireDevice(own)
  const name = own.credential.config.interface ?? DEFAULT_INTERFACE
  const removed = await bringDown(name, key)
  let told = false
  try {
    await withdraw(own)
    told = true
  } catch (error) {
    // The tunnel is down here in any case; the peer ends at the gateways with the certificate.
    log.warn({ err: error }, 'the server could not be told')
  }
  return { interface: name, removed, told }
}

export async function deviceStatus(options: DeviceOptions): Promise<DeviceStatusReport> {
  const { dir, log, now = systemNow } = options
  const own = await readOwnIdentity(dir, now())
  const device = requireDevice(own)
  const name = own.credential.config.interface ?? DEFAULT_INTERFACE
  const { root, oids, trustDomain } = own
  const document = await findNetworkDocument(dir, device, { root, oids, trustDomain, now: now() })
  const revocations = await GatewayRevocations.open({ own, now, log })
  const kept = await findKeptPeering({ own, revocations, now, log })
  const names = new Map((kept?.gateways ?? []).map(({ facts }) => [facts.key as string, facts.name]))
  let tunnel: DeviceStatusReport['tunnel'] = 'unknown'
  let peers: readonly TunnelPeerStatus[] = []
  try {
    const found = await readTunnel(name, device.key, log)
    tunnel = found === undefined ? 'down' : 'up'
    peers = found ?? []
  } catch (error) {
    // Reading an interface needs the rights to change it; the certificate can be shown without.
    log.debug({ err: error }, 'interface not readable')
  }
  return {
    ...describe(own, device),
    expired: now() > device.notAfter,
    networkDocument: document?.document.number ?? null,
    interface: name,
    tunnel,
    gateways: peers.map((peer) => ({ name: names.get(peer.publicKey) ?? null, ...peer })),
  }
}

/** Renews now, whether or not it is due, and lets the gateways know the new certificate when the tunnel is up. */
export async function deviceRenew(options: DeviceOptions): Promise<DeviceCertificateReport> {
  const { dir, log, now = systemNow } = options
  const { key } = requireDevice(await readOwnIdentity(dir, now()))
  const enrolled = await renew({ dir, now })
  const name = enrolled.credential.config.interface
  // Renewed with the same key: an interface that holds it is this tunnel.
  if (name !== undefined && (await isUp(name, key, log))) {
    const own = await readOwnIdentity(dir, now())
    const context = { own, revocations: await checkRevocations({ own, now, log }), now, log }
    await bringUp({ dir, interface: name, log }, await provision(context))
  }
  return describeEnrolled(enrolled, now)
}

export function requireDevice(own: OwnIdentity): DeviceFacts {
  if (own.verified.role !== 'device') {
    throw new CertpeerError(
      'config_invalid',
      `${own.credential.dir} holds a credential of role ${own.verified.role}: name the directory of a device`,
    )
  }
  return readDevice(own.verified, own.oids)
}

/** Asks the server; while it is away, what it said last time is good enough to come up with. */
export async function provisionOrKept(context: PeerContext): Promise<Peering> {
  try {
    return await provision(context)
  } catch (error) {
    if (errorCode(error) !== 'unavailable' && errorCode(error) !== 'timeout') throw error
    const kept = await findKeptPeering(context)
    if (kept === undefined || kept.gateways.length === 0) throw error
    context.log.warn({ err: error }, 'server not reachable; using the gateways known from last time')
    return { ...kept, state: 'pending' }
  }
}

/** Takes gateways that are revoked by now off the interface, if there is one, without asking the server. */
export async function dropRevoked(interfaceName: string, context: PeerContext): Promise<void> {
  const dropped = await dropPeers(interfaceName, await findRevokedKeys(context), context.log)
  if (dropped > 0) context.log.warn({ interface: interfaceName, dropped }, 'revoked gateway taken off the tunnel')
}

async function isUp(name: string, key: WireGuardKey, log: Logger): Promise<boolean> {
  try {
    return (await readTunnel(name, key, log)) !== undefined
  } catch {
    return false
  }
}

function describe(own: OwnIdentity, device: DeviceFacts): DeviceCertificateReport {
  return {
    identity: device.uri,
    name: own.credential.config.name ?? own.verified.certificate.commonName ?? null,
    tenant: device.tenant,
    network: device.network,
    publicKey: device.key,
    addresses: device.addresses.map(formatPrefix),
    groups: device.groups,
    serial: device.serial,
    notBefore: device.notBefore.toISOString(),
    notAfter: device.notAfter.toISOString(),
    renewFrom: renewalOpensAt(device).toISOString(),
  }
}

async function describeEnrolled({ credential }: Enrolled, now: Now): Promise<DeviceCertificateReport> {
  const own = await readOwnIdentity(credential.dir, now())
  return describe(own, requireDevice(own))
}
