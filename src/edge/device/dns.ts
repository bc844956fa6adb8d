/** Name servers for the tunnel, through systemd-resolved where it runs; elsewhere people are told what to set. */
import { errorCode } from '../../core/errors.ts'
import type { Logger } from '../../platform/log.ts'
import { run } from '../../platform/spawn.ts'

export interface DnsSettings {
  readonly servers: readonly string[]
  readonly search: readonly string[]
}

/** Sets servers and search domains of one link; they go with the interface. Never fails the tunnel. */
export async function applyDns(interfaceName: string, { servers, search }: DnsSettings, log: Logger): Promise<void> {
  if (servers.length === 0) return
  try {
    const set = await run('resolvectl', ['dns', interfaceName, ...servers], { timeoutMs: 5_000 })
    if (set.code === 0 && search.length > 0) {
      await run('resolvectl', ['domain', interfaceName, ...search], { timeoutMs: 5_000 })
    }
    if (set.code === 0) return
  } catch (error) {
    if (errorCode(error) !== 'missing_program' && errorCode(error) !== 'timeout') throw error
  }
  log.warn({ servers, search }, 'name servers not set: systemd-resolved is not here; set them by hand if you need them')
}
