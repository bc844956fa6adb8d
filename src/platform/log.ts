/**
 * Structured logs (pino, one JSON object a line). Messages are constant and lower-case, facts are fields. Whatever is
 * logged is cleaned first, at any depth: fields whose name says secret, and text that holds a key, a certificate or a
 * token whoever put it there.
 */
import { pino } from 'pino'
import type { DestinationStream, Logger as PinoLogger } from 'pino'

export type Logger = PinoLogger

export const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

/** Field names that are never logged, compared in lower case without `-` and `_`. */
export const REDACTED_FIELDS: ReadonlySet<string> = new Set([
  'privatekey',
  'presharedkey',
  'psk',
  'secret',
  'frontsecret',
  'token',
  'tokenkey',
  'tokensecret',
  'mac',
  'password',
  'passphrase',
  'pin',
  'databaseurl',
  'connectionstring',
  'authorization',
  'proxyauthorization',
  'cookie',
  'setcookie',
  'xcertpeerfront',
  'xclientcert',
])
const REDACTED = '[redacted]'
const MAX_DEPTH = 8
const MAX_ITEMS = 200
const MAX_TEXT = 8192

export function createLogger(options: {
  name: string
  level?: LogLevel
  /** Where lines go; standard output unless said. A stream is for tests. */
  destination?: 'stdout' | 'stderr' | { readonly file: string } | DestinationStream
}): Logger {
  const logger = pino(
    {
      name: options.name,
      level: options.level ?? 'info',
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: {
        level: (label) => ({ level: label }),
        log: (fields) => cleanObject(fields),
      },
      // Errors arrive here already as plain objects.
      serializers: { err: (value: unknown) => value, error: (value: unknown) => value },
      hooks: {
        logMethod(args, method) {
          // pino would take the message of a bare error as it is.
          const [first, ...rest] = args as [unknown, ...unknown[]]
          const spread = first instanceof Error ? [{ err: first }, ...(rest.length > 0 ? rest : [first.message])] : args
          const cleaned = spread.map((argument, index) => (isFields(argument, index) ? argument : clean(argument, 0)))
          method.apply(this, cleaned as typeof args)
        },
      },
    },
    openDestination(options.destination ?? 'stdout'),
  )
  // pino does not format the bindings of children. They inherit from this instance, and so this method.
  const makeChild = Reflect.get(logger, 'child') as CallableFunction
  Object.defineProperty(logger, 'child', {
    value(this: Logger, bindings: Record<string, unknown>, childOptions?: unknown): unknown {
      return Reflect.apply(makeChild, this, [cleanObject(bindings), childOptions])
    },
  })
  return logger
}

/** A logger that writes nothing. */
export function silentLogger(): Logger {
  return pino({ level: 'silent' })
}

function openDestination(destination: 'stdout' | 'stderr' | { readonly file: string } | DestinationStream) {
  if (typeof destination === 'object' && 'write' in destination) return destination
  const target =
    typeof destination === 'object'
      ? { dest: destination.file, mode: 0o640 }
      : { dest: destination === 'stdout' ? 1 : 2 }
  // Synchronous: the last line before a crash is the one that is needed.
  const stream = pino.destination({ ...target, sync: true })
  // A reader of the pipe that went away must not end the service.
  stream.on('error', () => undefined)
  return stream
}

/** The first argument may be the fields, which `formatters.log` cleans. */
function isFields(argument: unknown, index: number): boolean {
  return index === 0 && typeof argument === 'object'
}

function cleanObject(fields: Record<string, unknown>): Record<string, unknown> {
  return clean(fields, 0) as Record<string, unknown>
}

function clean(value: unknown, depth: number): unknown {
  if (typeof value === 'string') return cleanText(value)
  if (typeof value === 'bigint') return value.toString()
  if (typeof value !== 'object' || value === null) return value
  if (value instanceof Date) return value
  // Bytes may be a key; nobody reads them in a log.
  if (ArrayBuffer.isView(value)) return `[${value.byteLength} bytes]`
  if (depth >= MAX_DEPTH) return '[deep]'
  if (value instanceof Error) return cleanError(value, depth)
  if (Array.isArray(value)) return value.slice(0, MAX_ITEMS).map((item) => clean(item, depth + 1))
  const cleaned: Record<string, unknown> = {}
  for (const [name, field] of Object.entries(value)) {
    cleaned[name] = isSecretName(name) ? REDACTED : clean(field, depth + 1)
  }
  return cleaned
}

/** type, code, message, stack and cause; other own fields of errors (a database driver's query) stay out. */
function cleanError(error: Error, depth: number): Record<string, unknown> {
  return {
    type: error.name,
    ...('code' in error && (typeof error.code === 'string' || typeof error.code === 'number') && { code: error.code }),
    message: cleanText(error.message),
    ...(error.stack !== undefined && { stack: cleanText(error.stack) }),
    ...(error.cause !== undefined && { cause: clean(error.cause, depth + 1) }),
  }
}

function isSecretName(name: string): boolean {
  return REDACTED_FIELDS.has(name.toLowerCase().replaceAll(/[-_]/g, ''))
}

/** PEM blocks (keys, and certificates for length), enrollment tokens, and passwords inside URLs. */
function cleanText(text: string): string {
  const bounded = text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}…` : text
  return bounded
    .replaceAll(/-----BEGIN [A-Z0-9 ]+-----[\s\S]*?(-----END [A-Z0-9 ]+-----|$)/g, '[redacted PEM]')
    .replaceAll(/\bcpt1\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?/g, '[redacted token]')
    .replaceAll(/\b([a-z][a-z0-9+.-]*:\/\/[^\s:/@]*):[^\s@/]+@/gi, '$1:[redacted]@')
}
