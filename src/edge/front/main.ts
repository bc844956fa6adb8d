/**
 * `certpeer front`: keeps the nginx beside it supplied. It renders configuration, server certificate, issuers and CRLs
 * as one generation, has nginx test it, activates it in one step and asks for a reload. Whatever is missing, broken or
 * older than what is loaded changes nothing.
 */
import { createHash } from 'node:crypto'
import { mkdir, readFile, rm } from 'node:fs/promises'
import { isIPv6 } from 'node:net'
import { join, resolve } from 'node:path'
import { errorCode } from '../../core/errors.ts'
import { parseCertificate } from '../../core/x509/certificate.ts'
import type { Certificate } from '../../core/x509/certificate.ts'
import { certpeerOids } from '../../core/x509/oids.ts'
import { pemToDer } from '../../core/x509/pem.ts'
import { ApiClient } from '../../platform/api-client/client.ts'
import { systemNow } from '../../platform/clock.ts'
import type { Now } from '../../platform/clock.ts'
import { readConfig } from '../../platform/config/config-file.ts'
import { frontConfigSchema } from '../../platform/config/front.ts'
import type { FrontConfig } from '../../platform/config/front.ts'
import { lockDirectory, readSecretFile, readTextFile, writeFileAtomic } from '../../platform/files.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import { retryDelayMs } from '../renewal-window.ts'
import { listenersOf } from './config.ts'
import { fetchCrlBundle } from './crl.ts'
import type { CrlBundle } from './crl.ts'
import { runNginx } from './nginx-process.ts'
import { activate, activeSet, reloadDelayMs, signalReload, testConfiguration } from './reload.ts'
import { renderSet, templatesId } from './render.ts'
import { runSelfTest } from './selftest.ts'
import { readServerCertificate, renewServerCertificate } from './server-certificate.ts'

export interface FrontOptions {
  /** Holds config.json and server/ (the credential); everything else in it is made here. */
  readonly dir: string
  readonly log: Logger
  readonly signal: AbortSignal
  /** Returns after the first complete generation is active: what must be there before nginx can start. */
  readonly once?: boolean
  /** Also starts nginx and keeps it running; otherwise a supervisor does. */
  readonly startNginx?: boolean
  readonly now?: Now
}

/** Runs until `signal` aborts (or once). Throws for what waiting cannot mend: configuration, secrets, self-test. */
export async function runFront(options: FrontOptions): Promise<void> {
  const { log, signal, once = false, startNginx = false, now = systemNow } = options
  const dir = resolve(options.dir)
  const config = readConfig(frontConfigSchema, join(dir, 'config.json'))
  await mkdir(dir, { recursive: true, mode: 0o700 })
  await using _lock = await lockDirectory(dir)
  const frontSecret = (await readSecretFile(config.frontSecretFile, 'the front secret')).trim()
  const root = parseCertificate(pemToDer(await readTextFile(config.rootCertificate, 'the root certificate')))
  await runSelfTest({ nginx: config.nginx })
  log.info('self-test passed: no forged header gets through')

  const pki = new ApiClient({ base: config.pkiSource, headers: secretFor(config.pkiSource, frontSecret) })
  const state: FrontState = { dir, config, frontSecret, now, log }
  if (!startNginx || once) {
    await keepSupplied(state, { pki, root, once, signal }).finished
    return
  }
  // Neither goes on without the other: an nginx that gave up ends the front, whose supervisor then decides.
  const nginxFailed = new AbortController()
  const either = AbortSignal.any([signal, nginxFailed.signal])
  const keep = keepSupplied(state, { pki, root, once, signal: either })
  await Promise.race([keep.first, keep.finished])
  try {
    if (!either.aborted) await runNginx({ nginx: config.nginx, dir, log, signal })
  } finally {
    nginxFailed.abort()
    await keep.finished
  }
}

interface Supply {
  readonly pki: ApiClient
  readonly root: Certificate
  readonly once: boolean
  readonly signal: AbortSignal
}

/** `first` resolves when a generation is active, `finished` when there is nothing more to do. */
function keepSupplied(state: FrontState, supply: Supply): { first: Promise<void>; finished: Promise<void> } {
  let onFirst: () => void = () => undefined
  const first = new Promise<void>((resolve) => (onFirst = resolve))
  return { first, finished: supplyLoop(state, supply, onFirst) }
}

async function supplyLoop(state: FrontState, supply: Supply, onFirst: () => void): Promise<void> {
  const { dir, config, now, log } = state
  const { pki, root, once, signal } = supply
  const oids = certpeerOids(config.pen)
  let failures = 0
  while (!signal.aborted) {
    try {
      await renewIfDue(state)
      const bundle = await fetchCrlBundle(pki, { dir: join(dir, 'crls'), root, oids, now: now() })
      warnOfOldCrl(bundle, now(), log)
      await update(state, bundle)
      failures = 0
      onFirst()
      if (once) return
    } catch (error) {
      // While the source is away the loaded generation stays; the same holds for anything it sends that is not right.
      if (once && (errorCode(error) !== 'unavailable' || failures >= ONCE_ATTEMPTS)) throw error
      failures += 1
      log[failures === 1 ? 'warn' : 'debug']({ err: error, failures }, 'nothing loaded; the active generation stays')
    }
    await sleep(failures === 0 ? config.pollSeconds * 1000 : Math.min(10_000, retryDelayMs(failures - 1, 0.5)), signal)
  }
}

/** How often `--once` asks a source that is not up yet: about half a minute. */
const ONCE_ATTEMPTS = 8

interface FrontState {
  readonly dir: string
  readonly config: FrontConfig
  readonly frontSecret: string
  readonly now: Now
  readonly log: Logger
  /** What the active generation was made of; absent before the first. */
  loaded?: string | undefined
  lastReloadAt?: Date
}

/** Renders, tests and activates a new generation if this one says something new and a reload is due. */
async function update(state: FrontState, bundle: CrlBundle): Promise<void> {
  const { dir, config, frontSecret, now, log } = state
  const { credential, certificate } = await readServerCertificate(join(dir, 'server'))
  const id = hashOf([
    bundle.contentId,
    certificate.fingerprint,
    frontSecret,
    JSON.stringify(config),
    await templatesId(),
  ])
  state.loaded ??= await findLoaded(dir)
  if (state.loaded === id) return
  if (reloadDelayMs(state.lastReloadAt, now()) > 0) return

  const set = join(dir, 'sets', String(now().getTime()))
  await renderSet({
    dir,
    set,
    runDir: config.runDir,
    workers: String(config.workers),
    listen: Object.fromEntries(
      listenersOf(config.roles).map((listener) => [listener, `${hostOf(config.listen)}:${config.ports[listener]}`]),
    ),
    frontSecret,
    issuersPem: bundle.issuersPem,
    crlPem: bundle.crlPem,
    serverCertificatePem: credential.chain,
    serverKeyPem: credential.tlsKey,
  })
  try {
    await testConfiguration(config.nginx, dir, join(set, 'nginx.conf'))
  } catch (error) {
    // Tried again every few seconds: what is left behind each time would fill the disk.
    await rm(set, { recursive: true, force: true })
    throw error
  }
  await activate(dir, set)
  const reloaded = await signalReload(dir)
  // Only after the signal: a front killed before it renders and reloads again.
  await writeFileAtomic(join(set, LOADED_FILE), `${id}\n`, { mode: 0o600 })
  state.loaded = id
  // Only a reload of a running nginx leaves old workers behind; the first generation waits for nginx to start.
  if (reloaded) state.lastReloadAt = now()
  const { nextUpdate, leftOut } = bundle
  log.info({ set, reloaded, nextUpdate, ...(leftOut.length > 0 && { leftOut }) }, 'generation active')
}

/** What the active generation was made of, beside it: a front that is restarted has nothing to reload. */
const LOADED_FILE = 'made-of'

async function findLoaded(dir: string): Promise<FrontState['loaded']> {
  const set = await activeSet(dir)
  if (set === undefined) return undefined
  const text = await readFile(join(set, LOADED_FILE), 'utf8').catch(() => '')
  return text === '' ? undefined : text.trim()
}

function hashOf(parts: readonly string[]): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(`${part.length}:${part}`)
  return hash.digest('hex')
}

async function renewIfDue({ dir, config, frontSecret, now, log }: FrontState): Promise<void> {
  try {
    const serverDir = join(dir, 'server')
    if (await renewServerCertificate({ dir: serverDir, enrollSource: config.enrollSource, frontSecret, now })) {
      log.info('server certificate renewed')
    }
  } catch (error) {
    // A third of its life is left to try again; without any credential there is nothing to serve with.
    if (errorCode(error) === 'not_found' || errorCode(error) === 'config_invalid') throw error
    log.warn({ err: error }, 'server certificate not renewed yet')
  }
}

function warnOfOldCrl({ nextUpdate }: CrlBundle, now: Date, log: Logger): void {
  if (nextUpdate <= now)
    log.error({ nextUpdate }, 'a crl has passed its nextUpdate: nginx refuses every client certificate')
}

function secretFor(source: string, frontSecret: string): Record<string, string> {
  return source.startsWith('unix:') ? { 'x-certpeer-front': frontSecret } : {}
}

function hostOf(address: string): string {
  return isIPv6(address) ? `[${address}]` : address
}
