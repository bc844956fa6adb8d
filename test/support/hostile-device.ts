/** `certpeer device run` with intervals that a test can wait for: a program of its own, for a namespace of its own. */
import { deviceRun, type DeviceRunOptions } from '../../src/edge/device/run.ts'
import { abortOnSignals } from '../../src/platform/lifecycle.ts'
import { createLogger } from '../../src/platform/log.ts'

const [dir, interfaceName, intervals = '{}'] = process.argv.slice(2)
if (dir === undefined || interfaceName === undefined) throw new Error('usage: hostile-device DIR INTERFACE [INTERVALS]')
await deviceRun({
  ...(JSON.parse(intervals) as Pick<
    DeviceRunOptions,
    'repairIntervalMs' | 'refreshIntervalMs' | 'revocationIntervalMs'
  >),
  dir,
  interface: interfaceName,
  log: createLogger({ name: 'device' }),
  signal: abortOnSignals(),
})
