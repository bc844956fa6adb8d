/** The local gateway: joins with a token like any other, then runs as a child. */
import { gatewayViewSchema, pageSchema } from '../../core/messages/views.ts'
import { tokenAnswerSchema, type Endpoints } from '../../core/messages/enrollment.ts'
import { joinGateway } from '../../edge/gateway/join.ts'
import { hasCredential, readCredential } from '../../platform/credentials.ts'
import type { Logger } from '../../platform/log.ts'
import { findCurrent, updateConfig } from './authority.ts'
import { removeLeftInterface } from './leftovers.ts'
import { LOCAL_NETWORK } from './network.ts'
import { operatorClient } from './operator-client.ts'
import type { StatePaths, UpOptions } from './options.ts'
import { certpeerChild, nothingYet, persistently, waitUntil } from './processes.ts'
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
  readonly endpoints: Endpoints
  readonly log: Logger
  readonly supervisor: Supervisor
  readonly signal: AbortSignal
}

const LOCAL_GATEWAY = 'local'

/** Joins when there is no current credential, starts the agent, returns when the server sees it connected. */
export async function ensureGateway(paths: StatePaths, start: GatewayStart): Promise<LocalGateway | null> {
  const { options, endpoint, endpoints, supervisor, signal } = start
  const where = { endpoint, interface: options.interface, wireguardPort: options.wireguardPort }
  await leaveInterface(paths, start)
  if ((await findCurrent(paths.gateway)) === undefined) {
    const join = async () => joinGateway({ token: await gatewayToken(paths), dir: paths.gateway, ...where, signal })
    await persistently(join, signal)
  }
  if (signal.aborted) return null
  // A gateway keeps its key, and so its devices' tunnels, when only its addresses moved.
  await updateConfig(paths.gateway, { ...endpoints, ...where })
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

/** One that an earlier run was killed with, under a name that is not used any more. */
async function leaveInterface(paths: StatePaths, { options, log }: GatewayStart): Promise<void> {
  if (!hasCredential(paths.gateway)) return
  const { config } = await readCredential(paths.gateway)
  if (config.interface !== options.interface) await removeLeftInterface(paths, log)
}

async function gatewayToken(paths: StatePaths): Promise<string> {
  const client = await operatorClient(paths, 'authorityUrl')
  const json = { role: 'gateway', name: LOCAL_GATEWAY, networks: [LOCAL_NETWORK], ttlSeconds: 300, replace: true }
  const answer = await client.request({ method: 'POST', path: '/v1/tokens', json })
  return tokenAnswerSchema.parse(answer.json).token
}

async function findGateway(paths: StatePaths, options: UpOptions): Promise<LocalGateway | null> {
  const client = await operatorClient(paths, 'apiUrl')
  const answer = await client.request({ method: 'GET', path: '/v1/gateways' }).catch(nothingYet)
  client.close()
  if (answer === undefined) return null
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
