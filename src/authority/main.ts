/** The `ca` process: opens the authority, publishes, listens, and goes in order. */
import { randomBytes } from 'node:crypto'
import { isAbsolute, join } from 'node:path'
import { mkdir } from 'node:fs/promises'
import { systemNow } from '../platform/clock.ts'
import { readAuthorityConfig, type AuthorityConfig } from '../platform/config/authority.ts'
import { readSecretFile, removeAbandonedTemporaries } from '../platform/files.ts'
import { startHttpServer, type HttpServer } from '../platform/http/server.ts'
import type { Route } from '../platform/http/types.ts'
import { aborted, sleep } from '../platform/lifecycle.ts'
import type { Logger } from '../platform/log.ts'
import { ensureAuthorityCertificate } from './authority-certificate.ts'
import { openAuthority, type Authority } from './authority.ts'
import { CrlPublisher, type CrlListener } from './crl.ts'
import { startProjection, type Projection } from './db/projection.ts'
import { OcspResponder } from './ocsp.ts'
import { RootCrl } from './root-crl.ts'
import { adminRoutes, enrollRoutes, operatorRoutes, pkiRoutes, type Published, type RouteContext } from './routes.ts'

const SWEEP_MS = 60_000
const RENEW_CHECK_MS = 600_000

/** Runs until the signal aborts. Throws what keeps it from starting: one clear line each. */
export async function runAuthority(options: { dir: string; log: Logger; signal: AbortSignal }): Promise<void> {
  const { dir, log, signal } = options
  const config = readAuthorityConfig(dir)
  const resolve = (path: string) => (isAbsolute(path) ? path : join(dir, path))
  const frontSecret =
    config.frontSecretFile === undefined
      ? undefined
      : Buffer.from((await readSecretFile(resolve(config.frontSecretFile), 'the front secret')).trim(), 'latin1')
  const databaseUrl =
    config.databaseUrlFile === undefined
      ? undefined
      : (await readSecretFile(resolve(config.databaseUrlFile), 'the database URL')).trim()
  const authority = await openAuthority({
    dir,
    endpoints: config.endpoints,
    lifetimeSeconds: config.lifetimeSeconds,
    now: systemNow,
    random: randomBytes,
    log,
  })
  // Undone in reverse order, also when starting fails half-way.
  const undo: (() => Promise<void>)[] = [() => authority.close()]
  try {
    await start(authority, { dir, config, resolve, frontSecret, databaseUrl, signal }, undo)
    log.info('authority ready')
    await aborted(signal)
  } finally {
    for (const step of undo.reverse()) await step()
  }
}

interface Start {
  readonly dir: string
  readonly config: AuthorityConfig
  readonly resolve: (path: string) => string
  readonly frontSecret: Buffer | undefined
  readonly databaseUrl: string | undefined
  readonly signal: AbortSignal
}

async function start(authority: Authority, options: Start, undo: (() => Promise<void>)[]): Promise<void> {
  const { dir, config, frontSecret, databaseUrl } = options
  const { log } = authority
  await mkdir(join(dir, 'crl'), { recursive: true, mode: 0o755 })
  await removeAbandonedTemporaries(join(dir, 'crl'))
  log.info({ ledgerSize: authority.ledger.head.size, issuers: authority.issuers.length }, 'ledger open')

  await ensureAuthorityCertificate(authority)
  const projection = databaseUrl === undefined ? undefined : startProjection({ authority, url: databaseUrl, log })
  if (projection) undo.push(() => projection.close())
  const published = await startPublishing(authority, config, projection)
  undo.push(() => stopPublishing(published))
  const rootCrl = new RootCrl(authority, join(dir, 'root.crl'))
  const context: RouteContext = { authority, published, rootCrl: () => rootCrl.current }
  const runDir = options.resolve(config.runDir)
  await mkdir(runDir, { recursive: true, mode: 0o700 })
  for (const server of await listen(context, runDir, frontSecret, log)) undo.push(() => server.close())
  const stop = new AbortController()
  const upkeep = keepUp(authority, AbortSignal.any([stop.signal, options.signal]))
  undo.push(() => {
    stop.abort()
    return upkeep
  })
}

async function startPublishing(
  authority: Authority,
  config: AuthorityConfig,
  projection: Projection | undefined,
): Promise<Map<string, Published>> {
  const times = { publishSeconds: config.crlPublishSeconds, nextUpdateSeconds: config.crlNextUpdateSeconds }
  const onPublished: CrlListener = (issuer, crl) => projection?.crlPublished(issuer, crl)
  const published = new Map<string, Published>()
  for (const issuer of authority.issuers) {
    const crl = new CrlPublisher({ authority, issuer, times, onPublished })
    const ocsp = new OcspResponder(authority, issuer)
    await ocsp.start()
    await crl.start()
    published.set(issuer.name, { name: issuer.name, crl, ocsp })
  }
  return published
}

async function stopPublishing(published: ReadonlyMap<string, Published>): Promise<void> {
  for (const { crl, ocsp } of published.values()) {
    ocsp.stop()
    await crl.stop()
  }
}

async function listen(
  context: RouteContext,
  runDir: string,
  frontSecret: Buffer | undefined,
  log: Logger,
): Promise<HttpServer[]> {
  const servers: HttpServer[] = []
  const serve = async (
    name: string,
    routes: readonly Route[],
    options: Partial<Parameters<typeof startHttpServer>[0]>,
  ) => {
    const mode = name === 'admin' ? 0o600 : 0o660
    const socketPath = join(runDir, `ca-${name}.sock`)
    servers.push(await startHttpServer({ name, routes, log, listen: { socketPath, mode }, ...options }))
  }
  const fronted = frontSecret === undefined ? {} : { frontSecret }
  try {
    await serve('enroll', enrollRoutes(context), {
      ...fronted,
      rateLimits: { address: { requests: 1200, perSeconds: 60 } },
    })
    await serve('authority', operatorRoutes(context), {
      ...fronted,
      rateLimits: { address: { requests: 1200, perSeconds: 60 } },
    })
    // Public, signed, and read over its socket by the server and by front, which are no nginx.
    await serve('pki', pkiRoutes(context), {})
    await serve('admin', adminRoutes(context), {})
    return servers
  } catch (error) {
    for (const server of servers) await server.close()
    throw error
  }
}

/** What has to happen from time to time: ends of quarantine, and the authority's own certificate. */
async function keepUp(authority: Authority, signal: AbortSignal): Promise<void> {
  let renewAt = 0
  for (;;) {
    await sleep(SWEEP_MS, signal)
    if (signal.aborted) return
    authority.state.sweep(authority.now())
    if (Date.now() < renewAt) continue
    renewAt = Date.now() + RENEW_CHECK_MS
    await ensureAuthorityCertificate(authority).catch((err: unknown) => {
      authority.log.error({ err }, 'authority certificate not renewed')
    })
  }
}
