/** The state directory of `certpeer up`: made once, locked while it runs, resumed by the next run. */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { formatPrefix, parsePrefix } from '../../core/ipam/prefix.ts'
import { lockDirectory, writeFileAtomic } from '../../platform/files.ts'
import { statePaths, type StatePaths, type UpOptions } from './options.ts'

/** state.json: what the first run fixed, and where the last run listened. */
export interface LocalState {
  readonly version: 1
  /** Pools and key prefix of the network `default`, fixed on the first run. */
  readonly pools: readonly string[]
  readonly keyPrefix: string
  readonly trustDomain: string
  readonly pen: number
  /** When these change, the server certificate and the operator's configuration are made anew. */
  readonly host: string
  readonly listen: string
  readonly basePort: number
}

export interface OpenState {
  readonly paths: StatePaths
  /** Undefined until a run has made the PKI. */
  readonly previous: LocalState | undefined
  release(): Promise<void>
}

const LOCK_RETRY_MS = 5_000

/** Makes or opens the directory and takes its lock; throws state_busy when another `up` holds it. */
export async function openStateDir(options: UpOptions): Promise<OpenState> {
  const paths = statePaths(options.stateDir)
  try {
    mkdirSync(options.stateDir, { recursive: true, mode: 0o700 })
    for (const dir of [paths.run, paths.log]) mkdirSync(dir, { recursive: true, mode: 0o700 })
  } catch (cause) {
    throw new CertpeerError('config_invalid', `the state directory ${options.stateDir} cannot be made or written`, {
      cause,
    })
  }
  const lock = await takeLock(options.stateDir)
  return {
    paths,
    // Written before the PKI is made: without a PKI nothing holds anybody to it yet.
    previous: existsSync(join(paths.ca, 'authority.json')) ? readState(paths.state) : undefined,
    release: () => lock.release(),
  }
}

/** What the last `up` left; undefined when there was none, or when it cannot be read. */
export function findState(stateDir: string): LocalState | undefined {
  const path = statePaths(resolve(stateDir)).state
  try {
    return existsSync(path) ? readState(path) : undefined
  } catch (error) {
    if (errorCode(error) !== 'config_invalid') throw error
    return undefined
  }
}

export async function writeState(paths: StatePaths, state: LocalState): Promise<void> {
  await writeFileAtomic(paths.state, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 })
}

/** Default addresses: 10.88.0.0/16, a random ULA /64 (RFC 4193 section 3.2.2) and another one for key addresses. */
export function defaultNetwork(given: readonly string[] | undefined): { pools: string[]; keyPrefix: string } {
  const ula = randomBytes(5).toString('hex')
  const site = `fd${ula.slice(0, 2)}:${ula.slice(2, 6)}:${ula.slice(6, 10)}`
  const pools = given ?? ['10.88.0.0/16', `${site}:1::/64`]
  // Not the pool's neighbour: an address block holds prefixes and no ranges (RFC 3779 section 2.2.3.6).
  return { pools: pools.map(canonical), keyPrefix: canonical(`${site}:ff::/64`) }
}

function canonical(prefix: string): string {
  return formatPrefix(parsePrefix(prefix))
}

function readState(path: string): LocalState {
  try {
    const state = JSON.parse(readFileSync(path, 'utf8')) as LocalState
    if ((state.version as number) === 1) return state
    throw new Error(`version ${String(state.version)}`)
  } catch (cause) {
    throw new CertpeerError(
      'config_invalid',
      `${path} cannot be read; restore it from a backup or choose a new --state-dir`,
      {
        cause,
      },
    )
  }
}

async function takeLock(dir: string) {
  const deadline = Date.now() + LOCK_RETRY_MS
  for (;;) {
    try {
      return await lockDirectory(dir)
    } catch (error) {
      if (errorCode(error) !== 'state_busy') throw error
      // A predecessor that was just killed may still be ending.
      if (Date.now() > deadline) {
        throw new CertpeerError('state_busy', `another certpeer uses ${dir}; stop it, or choose another --state-dir`, {
          cause: error,
        })
      }
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
}
