/** The five ports and WireGuard's: free, or held by the certpeer that runs out of this state directory. */
import { isIPv6 } from 'node:net'
import { silentLogger } from '../../platform/log.ts'
import { findLeftInterface, isNginxRunning } from '../local/leftovers.ts'
import { statePaths } from '../local/options.ts'
import { isTcpPortFree, isUdpPortFree } from '../local/preflight.ts'
import { fail, pass, warn, type Check, type CheckResult } from './check.ts'

const LISTENERS = ['enroll', 'authority', 'api', 'gateways', 'pki'] as const

export const checkPorts: Check = async ({ stateDir, listen, basePort, wireguardPort }) => {
  const paths = statePaths(stateDir)
  const taken: string[] = []
  for (const [index, listener] of LISTENERS.entries()) {
    if (!(await isTcpPortFree(listen, basePort + index))) taken.push(`${listener} ${basePort + index}`)
  }
  const range = `${basePort} to ${basePort + LISTENERS.length - 1} on ${listen}`
  const results: CheckResult[] = []
  if (taken.length === 0) results.push(pass('ports', `${range} are free`))
  else if (isNginxRunning(paths))
    results.push(pass('ports', `${range}: held by the certpeer that runs from ${stateDir}`))
  else {
    const advice = 'stop what uses them, or pass --base-port or --listen'
    results.push(fail('ports', `not free on ${listen}: ${taken.join(', ')}`, advice))
  }
  if (await isUdpPortFree(wireguardPort, isIPv6(listen))) {
    results.push(pass('wireguard port', `UDP ${wireguardPort} is free`))
  } else if ((await findLeftInterface(paths, silentLogger()))?.listenPort === wireguardPort) {
    results.push(pass('wireguard port', `UDP ${wireguardPort}: held by the gateway of ${stateDir}`))
  } else {
    const advice = 'stop what uses it, or pass --wireguard-port; without a gateway it does not matter'
    results.push(warn('wireguard port', `UDP ${wireguardPort} is in use by something else`, advice))
  }
  return results
}
