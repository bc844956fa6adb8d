/**
 * Provisioning: a device's certificate becomes its peer. Requests gather while a transaction is under way and go
 * together in the next one; each is answered after its own commit, and a refused row leaves its neighbours alone.
 */
import { CertpeerError } from '../core/errors.ts'
import { networkKey } from '../core/x509/identity.ts'
import { wireGuardKeyToBytes } from '../core/wireguard/key.ts'
import { createBatcher } from '../platform/batcher.ts'
import type { Batcher } from '../platform/batcher.ts'
import { transaction } from '../platform/db/connection.ts'
import type { Db } from '../platform/db/connection.ts'
import { lockNetworks, putPeers, removePeer } from './db/provisioning.ts'
import type { PeerRow, PutVerdict } from './db/provisioning.ts'
import type { DevicePrincipal } from './principal.ts'

const MAX_BATCH = 256

export interface Provisioned {
  readonly revision: number
  /** False when the peer was there already, byte for byte: no new revision. */
  readonly changed: boolean
}

export type Provisioner = Batcher<DevicePrincipal, Provisioned>

export function createProvisioner(db: Db): Provisioner {
  return createBatcher({
    maxItems: MAX_BATCH,
    flush: (devices) => transaction(db, (trx) => putAll(trx, devices)),
    // The transaction has rolled back as a whole. A database that is away is not the fault of a row.
    splitOn: (error) => !(error instanceof CertpeerError && error.code === 'unavailable'),
  })
}

async function putAll(db: Db, devices: readonly DevicePrincipal[]): Promise<(Provisioned | Error)[]> {
  const names = new Map(
    devices.map(({ device }) => [
      networkKey(device.tenant, device.network),
      { tenant: device.tenant, network: device.network },
    ]),
  )
  const locked = await lockNetworks(db, [...names.values()])
  const ids = new Map(locked.map((network) => [networkKey(network.tenant, network.network), network.id]))
  const results = new Array<Provisioned | Error>(devices.length)
  let waiting: { readonly index: number; readonly row: PeerRow }[] = []
  for (const [index, principal] of devices.entries()) {
    const networkId = ids.get(networkKey(principal.device.tenant, principal.device.network))
    if (networkId === undefined) results[index] = unknownNetwork(principal)
    else waiting.push({ index, row: peerRow(principal, networkId) })
  }
  while (waiting.length > 0) {
    const { now, later } = splitRound(waiting)
    const put = await putPeers(
      db,
      now.map((entry) => entry.row),
    )
    for (const [place, { index, row }] of now.entries()) {
      const answer = put[place]
      if (answer === undefined) throw new TypeError('a peer was put and not answered')
      results[index] = toResult(answer.verdict, answer.revision, row)
    }
    waiting = later
  }
  return results
}

function peerRow({ device, verified }: DevicePrincipal, networkId: string): PeerRow {
  return {
    networkId,
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
function splitRound<E extends { readonly row: PeerRow }>(entries: readonly E[]): { now: E[]; later: E[] } {
  const taken = new Set<string>()
  const now: E[] = []
  const later: E[] = []
  for (const entry of entries) {
    const identity = `${entry.row.networkId} ${entry.row.identity}`
    const key = `${entry.row.networkId} ${entry.row.wireguardKey.toString('base64')}`
    if (taken.has(identity) || taken.has(key)) {
      later.push(entry)
    } else {
      now.push(entry)
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

/**
 * Takes the device's own peer away. Idempotent; a certificate that a newer one has replaced takes nothing away. Returns
 * the revision of the removal, or the network's at the time when there was nothing to remove.
 */
export function release(db: Db, principal: DevicePrincipal): Promise<{ readonly revision: number }> {
  const { device } = principal
  return transaction(db, async (trx) => {
    const [network] = await lockNetworks(trx, [{ tenant: device.tenant, network: device.network }])
    if (network === undefined) throw unknownNetwork(principal)
    const removed = await removePeer(trx, network.id, device.uri, device.notBefore)
    return { revision: removed ?? Number(network.revision) }
  })
}

/** The certificate names the network, so it exists; its row has not arrived. */
function unknownNetwork({ device }: DevicePrincipal): CertpeerError {
  return new CertpeerError(
    'unavailable',
    `network ${networkKey(device.tenant, device.network)} is not known here yet; try again`,
  )
}
