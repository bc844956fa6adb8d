/** Logs of commands that people wait for: warnings as plain lines on standard error, everything else stays out. */
import { createLogger } from '../platform/log.ts'
import type { Logger } from '../platform/log.ts'
import { withoutControls } from './output.ts'
import type { Io } from './output.ts'

export function commandLog(io: Io): Logger {
  return createLogger({
    name: 'certpeer',
    level: 'warn',
    destination: { write: (line: string) => io.say(humanLine(line)) },
  })
}

/** `certpeer: warning: message: reason` out of one JSON line of the log. */
function humanLine(line: string): string {
  const fields = JSON.parse(line) as { msg?: unknown; err?: { message?: unknown } }
  const reason = typeof fields.err?.message === 'string' ? `: ${fields.err.message}` : ''
  const message = typeof fields.msg === 'string' ? fields.msg : 'something to know'
  return withoutControls(`certpeer: warning: ${message}${reason}`.replaceAll(/\s*\n\s*/g, ' '))
}
