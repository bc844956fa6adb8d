/**
 * The `server` process: provisioning, views and the gateways' stream. It holds nothing that a gateway or a device
 * believes. Start-up order: trust (root, issuers, CRLs), database loops, listeners.
 */
import { randomUUID } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError, errorCode } from '../core/errors.ts'
import { parseCertificate } from '../core/x509/certificate.ts'
import { certpeerOids } from '../core/x509/oids.ts'
import { pemToDer } from '../core/x509/pem.ts'
import { ApiClient } from '../platform/api-client/client.ts'
import { systemNow } from '../platform/clock.ts'
import type { Now } from '../platform/clock.ts'
import { readServerConfig } from '../platform/config/server.ts'
import { isDatabaseReady, openDatabase } from '../platform/db/connection.ts'
import type { Db } from '../platform/db/connection.ts'
import { listen } from '../platform/db/listen.ts'
import { requireSchema } from '../platform/db/migrate.ts'
import { readSecretFile, readTextFile } from '../platform/files.ts'
import { startHttpServer } from '../platform/http/server.ts'
import { aborted, sleep } from '../platform/lifecycle.ts'
import type { Logger } from '../platform/log.ts'
import { createGatewayDirectory } from './gateways.ts'
import { createIssuers } from './issuers.ts'
import { createNetworkDocuments } from './networks.ts'
import { createPrincipals } from './principal.ts'
import { createProgress } from './progress.ts'
import { createProvisioner } from './provision.ts'
import { createRevocations } from './revocations.ts'
import { apiRoutes, gatewayRoutes } from './routes.ts'
import type { ServerContext } from './routes.ts'
import { createProjectedSource, createPublishedSource } from './sources.ts'
import { createHub } from './stream/hub.ts'
import { sweepExpiredPeers, sweepOldChanges } from './sweep.ts'

const CHANNELS = ['certpeer_changes', 'certpeer_crl', 'certpeer_networks', 'certpeer_applied', 'certpeer_gateways']
const PKI_POLL_MS = 2000
/** What a lost notification may delay. */
const DATABASE_POLL_MS = 5000
const HEARTBEAT_MS = 5000
const SWEEP_MS = 5000
const OLD_CHANGES_MS = 3_600_000
const TICK_MS = 1000

/**
 * Runs until `signal` aborts; then ends streams, answers what is under way, and closes. Throws config_invalid,
 * schema_newer, port_in_use. A database or a pki source that is away at the start is waited for, not refused.
 */
export async function runServer(options: { dir: string; log: Logger; signal: AbortSignal; now?: Now }): Promise<void> {
  const { dir } = options
  const now = options.now ?? systemNow
  const config = readServerConfig(dir)
  const log = options.log
  if (config.logLevel !== undefined) log.level = config.logLevel
  const root = parseCertificate(pemToDer(await readTextFile(config.rootCertificate, 'the root certificate')))
  const databaseUrl = (await readSecretFile(config.databaseUrlFile, 'the database URL')).trim()
  const frontSecret = Buffer.from((await readSecretFile(config.frontSecretFile, 'the front secret')).trim())
  const oids = certpeerOids(config.pen)

  const stop = new AbortController()
  const signal = AbortSignal.any([options.signal, stop.signal])
  const db = openDatabase({ url: databaseUrl, log, max: config.databaseConnections, name: 'certpeer-server' })

  const issuers = createIssuers(root, oids)
  const revocations = createRevocations(issuers)
  const { trustDomain, serverName } = config
  const principals = createPrincipals({ issuers, revocations, oids, trustDomain, now })
  const documents = createNetworkDocuments({ issuers, revocations, oids, trustDomain, now, log })
  const gateways = createGatewayDirectory(principals, log)
  const progress = createProgress(db)
  const provisioner = createProvisioner(db)
  const hub = createHub({ db, issuers, revocations, documents, serverName, now, log })

  const intake = { issuers, revocations, now, log }
  const published = createPublishedSource(new ApiClient({ base: config.pkiSource }), intake)
  const projected = createProjectedSource(db, intake)

  const context: ServerContext = {
    ...{ db, principals, revocations, documents, gateways, provisioner, progress, hub, now, log },
    listFaults: () => listFaults(context, root.keyId, issuers.list(now()), schemaChecked),
  }

  // Trust first: the first request should not meet "unknown". A source that is away must not hold up the start.
  await Promise.race([published.poll(), sleep(PKI_POLL_MS, signal)])

  let schemaChecked = false
  let failure: Error | undefined
  const loops: Promise<void>[] = []
  const every = (ms: number, what: string, task: () => Promise<unknown>): void => {
    loops.push(repeat({ ms, what, task, log, signal }))
  }
  /** Everything that the database may have told while nobody listened. */
  const readAll = async (): Promise<void> => {
    await projected.sync()
    await documents.refresh(db)
    await gateways.refresh(db)
    await hub.poll()
    progress.notify()
  }
  const { soon, drain } = coalesce(log, signal)

  every(PKI_POLL_MS, 'pki source', () => published.poll())
  loops.push(
    (async () => {
      schemaChecked = await awaitSchema(db, log, signal)
      if (!schemaChecked) return
      every(DATABASE_POLL_MS, 'database poll', readAll)
      every(HEARTBEAT_MS, 'heartbeat', () => hub.heartbeat())
      every(SWEEP_MS, 'expired peers', () => sweepExpiredPeers(db, now))
      every(OLD_CHANGES_MS, 'old changes', () => sweepOldChanges(db, now))
      await listen({
        ...{ url: databaseUrl, channels: CHANNELS, log, signal },
        onReconnect: () => soon('all', readAll),
        onNotify(channel, payload) {
          switch (channel) {
            case 'certpeer_changes':
              hub.pull(readNetwork(payload))
              return
            case 'certpeer_applied':
              progress.notify()
              return
            case 'certpeer_crl':
              soon('crl', () => projected.sync())
              return
            case 'certpeer_networks':
              soon('networks', async () => {
                await documents.refresh(db)
                await hub.poll()
              })
              return
            case 'certpeer_gateways':
              soon('gateways', async () => {
                await gateways.refresh(db)
                progress.notify()
              })
          }
        },
      })
    })().catch((error: unknown) => {
      // A schema we must not touch: the process ends and says so.
      failure = error instanceof Error ? error : new Error('the database loops ended', { cause: error })
      stop.abort()
    }),
  )
  const ticking = setInterval(() => hub.tick(), TICK_MS)

  try {
    mkdirSync(config.runDir, { recursive: true, mode: 0o750 })
    await using api = await startHttpServer({
      name: 'api',
      listen: { socketPath: join(config.runDir, 'server-api.sock') },
      routes: apiRoutes(context),
      log,
      frontSecret,
    })
    await using streams = await startHttpServer({
      name: 'gateways',
      listen: { socketPath: join(config.runDir, 'server-gateways.sock') },
      routes: gatewayRoutes(context),
      log,
      frontSecret,
    })
    log.info({ server: serverName, instance: randomUUID() }, 'server is up')
    await aborted(signal)
    await hub.close()
    await Promise.all([streams.close(), api.close()])
  } finally {
    stop.abort()
    clearInterval(ticking)
    // Whoever still asks the database comes before the pool's end: a closing pool keeps them waiting for its timeout.
    await provisioner.drain()
    await drain()
    await Promise.allSettled(loops)
    await db.destroy()
  }
  if (failure !== undefined) throw failure
}

/** Waits for a database whose schema we know. False when the signal came first; throws schema_newer. */
async function awaitSchema(db: Db, log: Logger, signal: AbortSignal): Promise<boolean> {
  let told = false
  while (!signal.aborted) {
    try {
      await requireSchema(db)
      return true
    } catch (err) {
      if (errorCode(err) !== 'unavailable') throw err
      if (!told) log.warn({ err }, 'waiting for the database')
      told = true
      await sleep(1000, signal)
    }
  }
  return false
}

async function listFaults(
  context: ServerContext,
  rootKeyId: string,
  issuers: readonly { readonly keyId: string; readonly commonName?: string | undefined }[],
  schemaChecked: boolean,
): Promise<string[]> {
  const faults: string[] = []
  const now = context.now()
  if (issuers.length === 0) faults.push('no issuing CA is known')
  for (const { keyId, commonName } of [{ keyId: rootKeyId, commonName: 'root' }, ...issuers]) {
    const crl = context.revocations.findCrl(keyId)
    if (crl === undefined) faults.push(`no CRL of ${commonName ?? keyId}`)
    else if (now > crl.nextUpdate) faults.push(`the CRL of ${commonName ?? keyId} has ended`)
  }
  if (!schemaChecked || !(await isDatabaseReady(context.db))) faults.push('the database cannot be used')
  return faults
}

function readNetwork(payload: string): string {
  const message: unknown = JSON.parse(payload)
  if (typeof message === 'object' && message !== null && 'network' in message && typeof message.network === 'string') {
    return message.network
  }
  throw new CertpeerError('malformed_message', 'a notification names no network')
}

/** Runs the task every `ms` until the signal aborts, never twice at once; a fault is told once until it ends. */
async function repeat(options: {
  ms: number
  what: string
  task: () => Promise<unknown>
  log: Logger
  signal: AbortSignal
}): Promise<void> {
  const { ms, what, task, log, signal } = options
  let failing = false
  while (!signal.aborted) {
    try {
      await task()
      if (failing) log.info({ what }, 'background task works again')
      failing = false
    } catch (err) {
      if (!failing) log.warn({ what, err }, 'background task failed, trying on')
      failing = true
    }
    await sleep(ms, signal)
  }
}

/** Runs tasks by name, one at a time; asked again meanwhile, a task runs once more afterwards. */
function coalesce(
  log: Logger,
  signal: AbortSignal,
): { soon: (name: string, task: () => Promise<unknown>) => void; drain: () => Promise<void> } {
  const states = new Map<string, { again: boolean; running: Promise<void> }>()
  return {
    soon(name, task) {
      if (signal.aborted) return
      const current = states.get(name)
      if (current !== undefined) {
        current.again = true
        return
      }
      const state = { again: true, running: Promise.resolve() }
      states.set(name, state)
      const run = async (): Promise<void> => {
        while (state.again && !signal.aborted) {
          state.again = false
          await task()
        }
      }
      state.running = run()
        .catch((err: unknown) => log.warn({ what: name, err }, 'background task failed, trying on'))
        .finally(() => states.delete(name))
    },
    async drain() {
      await Promise.all([...states.values()].map((state) => state.running))
    },
  }
}
