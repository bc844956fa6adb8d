/** The clock: certificates live for hours, so a wrong clock refuses everybody. */
import { run } from '../../platform/spawn.ts'
import { findProgram } from '../local/preflight.ts'
import { fail, pass, warn, type Check } from './check.ts'

/** No release of this program is older; a clock before it has lost its battery. */
const EARLIEST = Date.UTC(2026, 0, 1)

export const checkClock: Check = async ({ now }) => {
  const at = now()
  if (at.getTime() < EARLIEST) {
    return [fail('clock', `the clock says ${at.toISOString()}`, 'set the clock and keep it by NTP')]
  }
  const timedatectl = findProgram('timedatectl')
  if (timedatectl) {
    const answer = await run(timedatectl, ['show', '--property=NTPSynchronized', '--value'], { timeoutMs: 5_000 })
    if (answer.code === 0 && answer.stdout.trim() === 'yes') return [pass('clock', `${at.toISOString()}, kept by NTP`)]
  }
  const advice = 'keep it by NTP (chrony or systemd-timesyncd) on every authority, control host, gateway and device'
  return [warn('clock', `${at.toISOString()}; nothing here says that it is kept by NTP`, advice)]
}
