/** nginx's own doors: test a configuration, activate it in one step, and ask the running master to load it. */
import { readFile, readdir, readlink, rename, rm, symlink } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { syncDirectory } from '../../platform/files.ts'
import { run } from '../../platform/spawn.ts'

/** Reloads after the first come no closer than this: each one leaves old workers behind while streams last. */
export const RELOAD_INTERVAL_MS = 60_000

const ACTIVE = 'nginx.conf'

/** Throws config_invalid with nginx's own words when it would not start with this file. */
export async function testConfiguration(nginx: string, dir: string, file: string): Promise<void> {
  const { code, stderr } = await run(nginx, ['-t', '-q', '-p', `${dir}/`, '-c', file, '-e', 'stderr'], {
    timeoutMs: 30_000,
  })
  if (code === 0) return
  const said = stderr.split('\n').filter((line) => /\[(emerg|crit|alert)\]/.test(line))
  throw new CertpeerError('config_invalid', `nginx refuses ${file}: ${said.slice(0, 3).join(' | ').slice(0, 600)}`)
}

/**
 * Points `<dir>/nginx.conf` at a tested generation (one rename), so that a reload and a fresh start of nginx both see
 * all of it; then removes generations that are neither active nor the one before.
 */
export async function activate(dir: string, set: string): Promise<void> {
  const previous = await activeSet(dir)
  const link = join(dir, `.${ACTIVE}.next`)
  await rm(link, { force: true })
  await symlink(join(set, ACTIVE), link)
  await rename(link, join(dir, ACTIVE))
  await syncDirectory(dir)
  for (const name of await readdir(dirname(set))) {
    const old = join(dirname(set), name)
    if (old !== set && old !== previous) await rm(old, { recursive: true, force: true })
  }
}

/** Directory of the generation that `<dir>/nginx.conf` points at; undefined before the first. */
export async function activeSet(dir: string): Promise<string | undefined> {
  try {
    return dirname(await readlink(join(dir, ACTIVE)))
  } catch {
    return undefined
  }
}

/** Sends HUP to the nginx whose pid file this is; false when none is running. */
export async function signalReload(dir: string): Promise<boolean> {
  const pid = Number.parseInt(await readFile(join(dir, 'nginx.pid'), 'utf8').catch(() => ''), 10)
  if (!Number.isSafeInteger(pid) || pid <= 1 || !(await isNginx(pid, dir))) return false
  try {
    process.kill(pid, 'SIGHUP')
    return true
  } catch {
    return false
  }
}

/** After a crash the pid file may name a stranger: HUP ends most programs, so look before sending it. */
async function isNginx(pid: number, dir: string): Promise<boolean> {
  const commandLine = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
  return commandLine.startsWith('nginx: master') || basename(commandLine.split('\0')[0] ?? '') === 'nginx'
    ? commandLine.includes(dir)
    : false
}

/** When the next reload may happen: at once after a quiet minute, otherwise when that minute is over. */
export function reloadDelayMs(lastReloadAt: Date | undefined, now: Date): number {
  if (lastReloadAt === undefined) return 0
  return Math.min(RELOAD_INTERVAL_MS, Math.max(0, lastReloadAt.getTime() + RELOAD_INTERVAL_MS - now.getTime()))
}
