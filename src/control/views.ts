/** The operator's lists: rows as messages. What a certificate says is read from the certificate, not from its row. */
import { CertpeerError } from '../core/errors.ts'
import { formatPrefix } from '../core/ipam/prefix.ts'
import type { CertificateView, DeviceView, GatewayView, PeerView } from '../core/messages/views.ts'
import { networkKey } from '../core/x509/identity.ts'
import type { Now } from '../platform/clock.ts'
import type { Db } from '../platform/db/connection.ts'
import type { Logger } from '../platform/log.ts'
import { listCertificates, listDevices, listGateways, listPeers } from './db/views.ts'
import type { PageQuery, PeerRow } from './db/views.ts'
import type { Principals } from './principal.ts'

const DEFAULT_LIMIT = 100
const MAX_LIMIT = 500
const MAX_CURSOR = 2048
/** Fits a bigint. */
const NETWORK_ID = /^[0-9]{1,18}$/

export interface Page<T> {
  readonly items: T[]
  /** Give it back as `cursor` to go on; null at the end. */
  readonly next: string | null
}

export interface ViewContext {
  readonly db: Db
  readonly principals: Principals
  readonly now: Now
  readonly log: Logger
}

/** Reads `cursor` and `limit`; throws malformed_request. */
export function readPageQuery(query: URLSearchParams, tenant: string | undefined, now: Now): PageQuery {
  const limit = query.get('limit') ?? String(DEFAULT_LIMIT)
  if (!/^[1-9][0-9]{0,3}$/.test(limit) || Number(limit) > MAX_LIMIT) {
    throw new CertpeerError('malformed_request', `limit must be a number from 1 to ${MAX_LIMIT}`)
  }
  const cursor = query.get('cursor')
  return {
    tenant: tenant ?? null,
    after: cursor === null ? [] : decodeCursor(cursor),
    limit: Number(limit),
    now: now(),
  }
}

export async function viewDevices({ db }: ViewContext, page: PageQuery): Promise<Page<DeviceView>> {
  const rows = await listDevices(db, page)
  return toPage(
    rows,
    page,
    ({ identity }) => [identity],
    ({ identity: _, ...row }) => ({
      ...row,
      notAfter: row.notAfter.toISOString(),
    }),
  )
}

export async function viewCertificates({ db }: ViewContext, page: PageQuery): Promise<Page<CertificateView>> {
  const rows = await listCertificates(db, page)
  return toPage(
    rows,
    page,
    ({ serial }) => [serial],
    (row) => ({
      ...row,
      notBefore: row.notBefore.toISOString(),
      notAfter: row.notAfter.toISOString(),
      revokedAt: row.revokedAt?.toISOString() ?? null,
    }),
  )
}

export async function viewPeers(context: ViewContext, page: PageQuery): Promise<Page<PeerView>> {
  if (page.after.length > 0 && (page.after.length !== 2 || !NETWORK_ID.test(page.after[0] ?? ''))) {
    throw new CertpeerError('malformed_request', 'cursor is not one that this list gave')
  }
  const rows = await listPeers(context.db, page)
  return toPage(
    rows,
    page,
    ({ networkId, identity }) => [networkId, identity],
    (row) => readPeer(context, row),
  )
}

export async function viewGateways(context: ViewContext, page: PageQuery): Promise<Page<GatewayView>> {
  const rows = await listGateways(context.db, page)
  return toPage(
    rows,
    page,
    ({ identity }) => [identity],
    (row) => ({
      name: row.name,
      networks: row.networks,
      publicKey: readGatewayKey(context, row.certificate),
      endpoint: row.endpoint,
      addresses: row.addresses,
      connected: row.connected,
      lastSeenAt: row.lastSeenAt?.toISOString() ?? null,
      revisions: Object.fromEntries(Object.entries(row.revisions).map(([key, revision]) => [key, Number(revision)])),
      notAfter: row.notAfter.toISOString(),
    }),
  )
}

/** The next cursor comes from the last row, also when that row itself could not be shown. */
function toPage<R, V>(rows: readonly R[], page: PageQuery, key: (row: R) => string[], view: (row: R) => V | undefined) {
  const last = rows.at(-1)
  const items: V[] = []
  for (const row of rows) {
    const item = view(row)
    if (item !== undefined) items.push(item)
  }
  return { items, next: last === undefined || rows.length < page.limit ? null : encodeCursor(key(last)) }
}

/**
 * A row whose certificate does not verify, or is not that of the row's identity and network, is no peer to any gateway:
 * it is told in the log and not listed.
 */
function readPeer({ principals, log }: ViewContext, row: PeerRow): PeerView | undefined {
  try {
    const principal = row.certificate === null ? undefined : principals.read(row.certificate)
    if (principal?.kind !== 'device') throw new CertpeerError('bad_client_certificate', 'not a device certificate')
    const { device } = principal
    const network = networkKey(row.tenant, row.network)
    if (device.uri !== row.identity || networkKey(device.tenant, device.network) !== network) {
      throw new CertpeerError('bad_client_certificate', 'the certificate is that of another device')
    }
    return {
      network,
      device: row.name ?? device.id,
      identity: device.uri,
      publicKey: device.key,
      allowedIps: device.allowedIps.map(formatPrefix),
      serial: device.serial,
      possession: device.possession,
      revision: Number(row.revision),
    }
  } catch (err) {
    log.warn({ serial: row.serial, err }, 'peer row is not a peer')
    return undefined
  }
}

function readGatewayKey({ principals }: ViewContext, certificate: Buffer | null): string | null {
  try {
    const principal = certificate === null ? undefined : principals.read(certificate)
    return principal?.kind === 'gateway' ? principal.gateway.key : null
  } catch {
    return null
  }
}

function encodeCursor(key: readonly string[]): string {
  return Buffer.from(JSON.stringify(key), 'utf8').toString('base64url')
}

/** A cursor is the caller's to forge: it only says where to go on, never what may be seen. */
function decodeCursor(cursor: string): string[] {
  try {
    if (cursor.length > MAX_CURSOR) throw new RangeError('too long')
    const key: unknown = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8'))
    const isKey = Array.isArray(key) && key.length >= 1 && key.length <= 2
    if (!isKey) throw new TypeError('not a key')
    return key.map((part: unknown) => {
      if (typeof part !== 'string' || part.includes('\0')) throw new TypeError('not a key')
      return part
    })
  } catch (error) {
    throw new CertpeerError('malformed_request', 'cursor is not one that this list gave', { cause: error })
  }
}
