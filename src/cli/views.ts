/** The four lists of the api listener: fetched page by page, and the columns that people see. */
import { parseMessage } from '../core/messages/common.ts'
import {
  certificateViewSchema,
  deviceViewSchema,
  gatewayViewSchema,
  pageSchema,
  peerViewSchema,
} from '../core/messages/views.ts'
import type { CertificateView, DeviceView, GatewayView, PeerView } from '../core/messages/views.ts'
import type { ApiClient } from '../platform/api-client/client.ts'

export interface ViewTable {
  readonly items: readonly unknown[]
  readonly header: readonly string[]
  readonly rows: readonly (readonly string[])[]
}

type Api = Pick<ApiClient, 'request'>

const DEVICES = {
  header: ['NAME', 'NETWORK', 'STATUS', 'ADDRESSES', 'GROUPS', 'POSSESSION', 'SERIAL', 'NOT AFTER'],
  row: (item: DeviceView) => [
    item.name,
    `${item.tenant}/${item.network}`,
    item.status,
    item.addresses.join(' ') || '-',
    item.groups.join(' ') || '-',
    proven(item.possession),
    item.serial ?? '-',
    item.notAfter ?? '-',
  ],
}
const CERTIFICATES = {
  header: ['SERIAL', 'ROLE', 'NAME', 'STATUS', 'POSSESSION', 'NOT BEFORE', 'NOT AFTER', 'REASON'],
  row: (item: CertificateView) => [
    item.serial,
    item.role,
    item.name,
    item.status,
    item.possession === null ? '-' : proven(item.possession),
    item.notBefore,
    item.notAfter,
    item.reason ?? '-',
  ],
}
const PEERS = {
  header: ['DEVICE', 'NETWORK', 'PUBLIC KEY', 'ALLOWED IPS', 'POSSESSION', 'REVISION', 'SERIAL'],
  row: (item: PeerView) => [
    item.device,
    item.network,
    item.publicKey,
    item.allowedIps.join(' '),
    proven(item.possession),
    String(item.revision),
    item.serial,
  ],
}
const GATEWAYS = {
  header: ['NAME', 'NETWORKS', 'CONNECTED', 'ENDPOINT', 'ADDRESSES', 'REVISIONS', 'LAST SEEN', 'NOT AFTER'],
  row: (item: GatewayView) => [
    item.name,
    item.networks.join(' ') || '-',
    item.connected ? 'yes' : 'no',
    item.endpoint ?? '-',
    item.addresses.join(' ') || '-',
    Object.entries(item.revisions)
      .map(([network, revision]) => `${network}:${revision}`)
      .join(' '),
    item.lastSeenAt ?? '-',
    item.notAfter ?? '-',
  ],
}

const READERS = {
  devices: (api: Api) =>
    readAll(api, '/v1/devices', (json) => parseMessage(pageSchema(deviceViewSchema), json), DEVICES),
  certificates: (api: Api) =>
    readAll(api, '/v1/certificates', (json) => parseMessage(pageSchema(certificateViewSchema), json), CERTIFICATES),
  peers: (api: Api) => readAll(api, '/v1/peers', (json) => parseMessage(pageSchema(peerViewSchema), json), PEERS),
  gateways: (api: Api) =>
    readAll(api, '/v1/gateways', (json) => parseMessage(pageSchema(gatewayViewSchema), json), GATEWAYS),
} as const

export type View = keyof typeof READERS

export function isView(name: string): name is View {
  return Object.hasOwn(READERS, name)
}

export function readView(view: View, api: Api): Promise<ViewTable> {
  return READERS[view](api)
}

async function readAll<T>(
  api: Api,
  path: string,
  parse: (json: unknown) => { items: T[]; next: string | null },
  { header, row }: { readonly header: readonly string[]; readonly row: (item: T) => readonly string[] },
): Promise<ViewTable> {
  const items: T[] = []
  let cursor: string | null = null
  do {
    const query: Record<string, string> = { limit: '500', ...(cursor === null ? {} : { cursor }) }
    const page = parse((await api.request({ method: 'GET', path, query })).json)
    items.push(...page.items)
    // A page that leads to itself would never end.
    cursor = page.next === cursor ? null : page.next
  } while (cursor !== null)
  return { items, header, rows: items.map(row) }
}

function proven(possession: boolean): string {
  return possession ? 'proven' : 'NOT PROVEN'
}
