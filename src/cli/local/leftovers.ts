/**
 * What an earlier `up` on this state directory left running when it was killed: our own roles, which are ending or hang,
 * nginx workers whose master is gone and which keep its ports, and the gateway's interface, which outlives its agent on
 * purpose. Found by what they have open and were started with, never by a kept pid: that may be a stranger's by now.
 */
import { existsSync, readdirSync, readFileSync, readlinkSync, realpathSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { x25519PublicFromPrivate } from '../../core/wireguard/x25519.ts'
import { wireGuardKeyFromBytes } from '../../core/wireguard/key.ts'
import type { DeviceState } from '../../core/wireguard/types.ts'
import { findInterface, removeInterface } from '../../edge/tunnel/interface.ts'
import { hasCredential, readCredential } from '../../platform/credentials.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import type { StatePaths } from './options.ts'
import { hasNetAdmin } from './preflight.ts'

/** A server that ends lets its requests finish; nginx lets go of its ports at once. */
const END_TIMEOUT_MS = 15_000
const POLL_MS = 25

/** Ends every process of an earlier run; the caller holds the directory's lock. PostgreSQL has its own way (adoptOrStop). */
export async function endLeftovers(paths: StatePaths): Promise<void> {
  await endProcesses(() => [...findRoles(paths), ...findNginx(paths)])
}

/** Ends the nginx of an earlier start: workers go on without their master, and nobody else can listen on its ports. */
export async function endNginx(paths: StatePaths): Promise<void> {
  await endProcesses(() => findNginx(paths))
}

/** True while an nginx of this state directory lives. */
export function isNginxRunning(paths: StatePaths): boolean {
  return existsSync(paths.log) && findNginx(paths).length > 0
}

/** The interface that the local gateway's directory speaks of, when it is there and holds that gateway's key. */
export async function findLeftInterface(
  paths: StatePaths,
  log: Logger,
): Promise<{ readonly name: string; readonly listenPort: number | undefined } | undefined> {
  if (!hasCredential(paths.gateway) || !hasNetAdmin()) return undefined
  const { config, wireGuardKey } = await readCredential(paths.gateway)
  if (config.interface === undefined || wireGuardKey === undefined) return undefined
  const state = await readInterface(config.interface, log)
  if (state?.publicKey === undefined || !ownKeys(paths, wireGuardKey).has(state.publicKey)) return undefined
  return { name: config.interface, listenPort: state.listenPort }
}

/** Removes that interface: nobody is there any more to take a revoked peer off it. */
export async function removeLeftInterface(paths: StatePaths, log: Logger): Promise<void> {
  const left = await findLeftInterface(paths, log)
  if (left === undefined) return
  await removeInterface(left.name)
  log.info({ interface: left.name }, 'interface of an earlier run removed')
}

async function readInterface(name: string, log: Logger): Promise<DeviceState | undefined> {
  try {
    const found = await findInterface(name, log)
    try {
      return await found?.device.read()
    } finally {
      found?.close()
    }
  } catch (err) {
    // Something of that name that is no WireGuard interface, or does not answer: not ours to judge here.
    log.debug({ err, interface: name }, 'interface not readable')
    return undefined
  }
}

/** The key of today and, in a file that the agent keeps, those before it. */
function ownKeys(paths: StatePaths, privateKey: string): Set<string> {
  const path = join(paths.gateway, 'interface.key')
  const former = existsSync(path) ? readFileSync(path, 'utf8').split('\n') : []
  return new Set([wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.from(privateKey, 'base64'))), ...former])
}

async function endProcesses(find: () => number[]): Promise<void> {
  const deadline = Date.now() + END_TIMEOUT_MS
  const told = new Set<number>()
  for (let left = find(); left.length > 0; left = find()) {
    const late = Date.now() > deadline
    if (Date.now() > deadline + END_TIMEOUT_MS) {
      throw new CertpeerError('state_busy', `processes of an earlier run do not end: ${left.join(', ')}; end them`)
    }
    for (const pid of left) {
      if (!late && told.has(pid)) continue
      told.add(pid)
      signal(pid, late ? 'SIGKILL' : 'SIGTERM')
    }
    await sleep(POLL_MS)
  }
}

/** Our own roles: started with the directory that is this run's. */
function findRoles(paths: StatePaths): number[] {
  const starts = new Map([
    ['ca', paths.ca],
    ['server', paths.server],
    ['front', paths.front],
    ['run', paths.gateway],
  ])
  return listProcesses().filter((pid) => {
    const [role = '', option, dir] = commandLine(pid).slice(-3)
    return pid !== process.pid && option === '--dir' && starts.get(role) === dir
  })
}

/** Master and workers alike keep this state directory's nginx logs open; workers have overwritten their arguments. */
function findNginx(paths: StatePaths): number[] {
  const logs = join(realpathSync(paths.log), 'nginx')
  return listProcesses().filter((pid) => {
    try {
      if (readFileSync(`/proc/${pid}/comm`, 'utf8') !== 'nginx\n') return false
      return readdirSync(`/proc/${pid}/fd`).some((fd) => readLink(`/proc/${pid}/fd/${fd}`)?.startsWith(logs))
    } catch {
      // It has ended meanwhile, or is another user's and so not ours.
      return false
    }
  })
}

function listProcesses(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^[1-9][0-9]*$/.test(name))
    .map(Number)
}

/** Empty for a process that has ended. */
function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replace(/\0$/, '').split('\0')
  } catch {
    return []
  }
}

function readLink(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch {
    return undefined
  }
}

function signal(pid: number, name: 'SIGTERM' | 'SIGKILL'): void {
  try {
    process.kill(pid, name)
  } catch {
    // It has ended meanwhile; a process of another user is told by the deadline.
  }
}
