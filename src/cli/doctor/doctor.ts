/** `certpeer doctor`: what `up` itself relies on, a line a check, each pass, warn or fail with what to do. */
import { errorCode } from '../../core/errors.ts'
import { checkAddressBlocks } from './address-blocks.ts'
import { fail, type Check, type CheckResult, type DoctorContext } from './check.ts'
import { checkClock } from './clock.ts'
import { checkDatabase } from './database.ts'
import { checkPki, checkRootKey } from './pki.ts'
import { checkPorts } from './ports.ts'
import { checkNginx, checkNode, checkTools, checkWireGuard } from './programs.ts'

const CHECKS: readonly (readonly [name: string, check: Check])[] = [
  ['node', checkNode],
  ['nginx', checkNginx],
  ['tools', checkTools],
  ['wireguard', checkWireGuard],
  ['ports', checkPorts],
  ['clock', checkClock],
  ['rfc3779', checkAddressBlocks],
  ['pki', checkPki],
  ['root key', checkRootKey],
  ['database', checkDatabase],
]

/** Runs every check; one that throws is itself a failed check, so the rest is still told. */
export async function runDoctor(context: DoctorContext): Promise<CheckResult[]> {
  const results: CheckResult[] = []
  for (const [name, check] of CHECKS) {
    try {
      results.push(...(await check(context)))
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error)
      results.push(fail(name, `could not be checked (${errorCode(error)}): ${message}`, 'mend what the message names'))
    }
  }
  return results
}

export function formatResult(result: CheckResult): string {
  const line = `${result.status.padEnd(4)}  ${result.name.padEnd(24)}  ${result.detail}`
  return result.advice === undefined ? line : `${line}\n      ${' '.repeat(24)}  -> ${result.advice}`
}
