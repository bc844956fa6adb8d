/** The network `default` of the first run, applied like any other: through the authority's listener. */
import { parseMessage } from '../../core/messages/common.ts'
import { networkListSchema } from '../../core/messages/network-answers.ts'
import type { StatePaths } from './options.ts'
import type { LocalState } from './state-dir.ts'
import { operatorClient } from './operator-client.ts'
import { LOCAL_TENANT } from './authority.ts'
import { persistently } from './processes.ts'

export const LOCAL_NETWORK = 'default'

/** Applies the network document of the first run unless the authority has one: an operator's edits stay. */
export async function ensureNetwork(paths: StatePaths, state: LocalState, signal: AbortSignal): Promise<void> {
  await persistently(() => applyFirst(paths, state), signal)
}

async function applyFirst(paths: StatePaths, state: LocalState): Promise<void> {
  const client = await operatorClient(paths, 'authorityUrl')
  const answer = await client.request({ method: 'GET', path: '/v1/networks' })
  const { items } = parseMessage(networkListSchema, answer.json, 'networks')
  if (items.some((item) => item.tenant === LOCAL_TENANT && item.network === LOCAL_NETWORK)) return
  await client.request({
    method: 'PUT',
    path: '/v1/networks',
    json: { tenant: LOCAL_TENANT, network: LOCAL_NETWORK, pools: state.pools, keyPrefix: state.keyPrefix },
  })
}
