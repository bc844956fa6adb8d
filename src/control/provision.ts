/**
 * Provisioning: a device's certificate becomes its peer, or takes it away. Requests gather while a transaction is under
 * way and go together in the next one; each is answered after its own commit, and a refused row leaves its neighbours
 * alone.
 */
import { CertpeerError } from '../core/errors.ts'
import { networkKey } from '../core/x509/identity.ts'
import { wireGuardKeyToBytes } from '../core/wireguard/key.ts'
import { createBatcher } from '../platform/batcher.ts'
import { transaction } from '../platform/db/connection.ts'
import type { Db } from '../platform/db/connection.ts'
import { lockNetworks, putPeers, removePeers } from './db/provisioning.ts'
import type { LockedNetwork, PeerRow, PutVerdict } from './db/provisioning.ts'
import type { DevicePrincipal } from './principal.ts'

const MAX_BATCH = 256

export interface Provisioned {
  readonly revision: number
  /** False when the peer was there already, byte for byte: no new revision. */
  readonly changed: boolean
}

export interface Provisioner {
  put(device: DevicePrincipal): Promise<Provisioned>
  /**
   * Takes the device's own peer away. Idempotent; a certificate that a newer one has replaced takes nothing away.
   * `revision` is that of the removal, or the network's when there was nothing to remove.
   */
  release(device: DevicePrincipal): Promise<Provisioned>
  /** Resolves when everything asked for so far has been answered. */
  drain(): Promise<void>
}

interface Order {
  readonly kind: 'put' | 'release'
  readonly principal: DevicePrincipal
}

export function createProvisioner(db: Db): Provisioner {
  const batcher = createBatcher<Order, Provisioned>({
    maxItems: MAX_BATCH,
    flush: (orders) => transaction(db, (trx) => carryOut(trx, orders)),
    // The transaction has rolled back as a whole. A database that is away is not the fault of a row.
    splitOn: (error) => !(error instanceof CertpeerError && error.code === 'unavailable'),
  })
  return {
    put: (principal) => batcher.submit({ kind: 'put', principal }),
    release: (principal) => batcher.submit({ kind: 'release', principal }),
    drain: () => batcher.drain(),
  }
}

interface Placed extends Order {
  /** Where its result goes. */
  readonly index: number
  readonly network: LockedNetwork
}

/** Who asks for both at once is answered in the order of asking: an identity, and a key, stand in a round once. */
async function carryOut(db: Db, orders: readonly Order[]): Promise<(Provisioned | Error)[]> {
  const names = new Map(
    orders.map(({ principal: { device } }) => [
      networkKey(device.tenant, device.network),
      { tenant: device.tenant, network: device.network },
    ]),
  )
  const locked = await lockNetworks(db, [...names.values()])
  const networks = new Map(locked.map((network) => [networkKey(network.tenant, network.network), network]))
  const results = new Array<Provisioned | Error>(orders.length)
  let waiting: Placed[] = []
  for (const [index, order] of orders.entries()) {
    const { device } = order.principal
    const network = networks.get(networkKey(device.tenant, device.network))
    if (network === undefined) results[index] = unknownNetwork(order.principal)
    else waiting.push({ ...order, index, network })
  }
  while (waiting.length > 0) {
    const { now, later } = splitRound(waiting)
    await releaseAll(
      db,
      now.filter(({ kind }) => kind === 'release'),
      results,
    )
    await putAll(
      db,
      now.filter(({ kind }) => kind === 'put'),
      results,
    )
    waiting = later
  }
  return results
}

async function putAll(db: Db, orders: readonly Placed[], results: (Provisioned | Error)[]): Promise<void> {
  if (orders.length === 0) return
  const rows = orders.map(peerRow)
  const put = await putPeers(db, rows)
  for (const [place, { index }] of orders.entries()) {
    const [answer, row] = [put[place], rows[place]]
    if (answer === undefined || row === undefined) throw new TypeError('a peer was put and not answered')
    results[index] = toResult(answer.verdict, answer.revision, row)
  }
}

async function releaseAll(db: Db, orders: readonly Placed[], results: (Provisioned | Error)[]): Promise<void> {
  if (orders.length === 0) return
  const removed = await removePeers(
    db,
    orders.map(({ network, principal: { device } }) => ({
      networkId: network.id,
      identity: device.uri,
      notBefore: device.notBefore,
    })),
  )
  for (const [place, { index, network }] of orders.entries()) {
    const revision = removed[place] ?? null
    results[index] = { revision: revision ?? Number(network.revision), changed: revision !== null }
  }
}

function peerRow({ network, principal: { device, verified } }: Placed): PeerRow {
  return {
    networkId: network.id,
    identity: device.uri,
    serial: device.serial,
    wireguardKey: wireGuardKeyToBytes(device.key),
    certificate: verified.certificate.der,
    notBefore: device.notBefore,
    notAfter: device.notAfter,
  }
}

/**
 * One statement sees an identity, and a key, once: two certificates of one device in one batch are two changes, and
 * the second is judged by what the first has left.
 */
function splitRound(orders: readonly Placed[]): { now: Placed[]; later: Placed[] } {
  const taken = new Set<string>()
  const now: Placed[] = []
  const later: Placed[] = []
  for (const order of orders) {
    const { network, principal } = order
    const identity = `${network.id} ${principal.device.uri}`
    const key = `${network.id} ${principal.device.key}`
    if (taken.has(identity) || taken.has(key)) {
      later.push(order)
    } else {
      now.push(order)
    }
    taken.add(identity)
    taken.add(key)
  }
  return { now, later }
}

function toResult(verdict: PutVerdict, revision: number | null, row: PeerRow): Provisioned | Error {
  switch (verdict) {
    case 'set':
    case 'unchanged':
      if (revision === null) throw new TypeError('a peer has no revision')
      return { revision, changed: verdict === 'set' }
    case 'revoked':
      return new CertpeerError('certificate_revoked', `certificate ${row.serial} is revoked`)
    case 'older':
      return new CertpeerError(
        'older_certificate',
        `certificate ${row.serial} is older than the one this device is provisioned with`,
      )
    case 'key_held':
      return new CertpeerError('key_conflict', 'another device of this network uses the same WireGuard key')
    default:
      return verdict satisfies never
  }
}

/** The certificate names the network, so it exists; its row has not arrived. */
function unknownNetwork({ device }: DevicePrincipal): CertpeerError {
  return new CertpeerError(
    'unavailable',
    `network ${networkKey(device.tenant, device.network)} is not known here yet; try again`,
  )
}
