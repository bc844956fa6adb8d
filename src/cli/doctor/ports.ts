/** The five ports: free, or held by the certpeer that runs out of this state directory. */
import { existsSync, readFileSync } from 'node:fs'
import { statePaths } from '../local/options.ts'
import { isTcpPortFree } from '../local/preflight.ts'
import { fail, pass, type Check } from './check.ts'

const LISTENERS = ['enroll', 'authority', 'api', 'gateways', 'pki'] as const

export const checkPorts: Check = async ({ stateDir, listen, basePort }) => {
  const running = isRunning(statePaths(stateDir).nginxPid)
  const taken: string[] = []
  for (const [index, listener] of LISTENERS.entries()) {
    if (!(await isTcpPortFree(listen, basePort + index))) taken.push(`${listener} ${basePort + index}`)
  }
  if (taken.length === 0) return [pass('ports', `${basePort} to ${basePort + 4} on ${listen} are free`)]
  if (running) return [pass('ports', `held by the certpeer that runs from ${stateDir}: ${taken.join(', ')}`)]
  return [fail('ports', `in use by something else: ${taken.join(', ')}`, 'stop what uses them, or pass --base-port')]
}

/** True when the pid file names a living process. */
function isRunning(pidFile: string): boolean {
  if (!existsSync(pidFile)) return false
  const pid = Number(readFileSync(pidFile, 'utf8').trim())
  return Number.isSafeInteger(pid) && pid > 1 && existsSync(`/proc/${pid}`)
}
