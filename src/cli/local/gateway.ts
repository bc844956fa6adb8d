/** The local gateway: joins with a token like any other, then runs as a child. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { gatewayViewSchema, pageSchema } from '../../core/messages/views.ts'
import { tokenAnswerSchema } from '../../core/messages/enrollment.ts'
import { joinGateway } from '../../edge/gateway/join.ts'
import { isCurrent } from './authority.ts'
import { LOCAL_NETWORK } from './network.ts'
import { operatorClient } from './operator-client.ts'
import type { StatePaths, UpOptions } from './options.ts'
import { certpeerChild, waitUntil } from './processes.ts'
import type { Supervisor } from './supervisor.ts'

export interface LocalGateway {
  readonly name: string
  readonly interface: string
  readonly publicKey: string
  readonly endpoint: string
  readonly addresses: readonly string[]
}

interface GatewayStart {
  readonly options: UpOptions
  readonly endpoint: string
  /** The listeners moved since the last run: the gateway has to learn their addresses anew. */
  readonly moved: boolean
  readonly supervisor: Supervisor
  readonly signal: AbortSignal
}

const LOCAL_GATEWAY = 'local'

/** Joins when there is no current credential, starts the agent, returns when the server sees it connected. */
export async function ensureGateway(paths: StatePaths, start: GatewayStart): Promise<LocalGateway | null> {
  const { options, endpoint, supervisor, signal } = start
  if (start.moved || !existsSync(join(paths.gateway, 'config.json')) || !(await isCurrent(paths.gateway))) {
    await joinGateway({
      token: await gatewayToken(paths),
      dir: paths.gateway,
      endpoint,
      interface: options.interface,
      wireguardPort: options.wireguardPort,
    })
  }
  supervisor.start({ ...certpeerChild('gateway', ['gateway', 'run', '--dir', paths.gateway]), stopTimeoutMs: 15_000 })
  let found: LocalGateway | null = null
  await waitUntil(
    async () => {
      found = await findGateway(paths, options)
      return found !== null
    },
    'gateway',
    signal,
  )
  return found
}

async function gatewayToken(paths: StatePaths): Promise<string> {
  const client = await operatorClient(paths, 'authorityUrl')
  const json = { role: 'gateway', name: LOCAL_GATEWAY, networks: [LOCAL_NETWORK], ttlSeconds: 300, replace: true }
  const answer = await client.request({ method: 'POST', path: '/v1/tokens', json })
  return tokenAnswerSchema.parse(answer.json).token
}

async function findGateway(paths: StatePaths, options: UpOptions): Promise<LocalGateway | null> {
  const client = await operatorClient(paths, 'apiUrl')
  const answer = await client.request({ method: 'GET', path: '/v1/gateways' })
  const view = pageSchema(gatewayViewSchema)
    .parse(answer.json)
    .items.find((item) => item.name === LOCAL_GATEWAY)
  if (!view?.connected || view.publicKey === null || view.endpoint === null) return null
  return {
    name: view.name,
    interface: options.interface,
    publicKey: view.publicKey,
    endpoint: view.endpoint,
    addresses: view.addresses,
  }
}
