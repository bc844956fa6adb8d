/** Configuration: one JSON file per process, read once, every fault told at once, frozen. */
import { existsSync, readFileSync } from 'node:fs'
import type { z } from 'zod'
import { CertpeerError } from '../../core/errors.ts'
import { writeFileAtomic } from '../files.ts'

/**
 * Reads and checks a configuration file. Throws config_invalid naming the file and every fault in it; a value that is
 * there but bad is a fault, never the default.
 */
export function readConfig<S extends z.ZodType>(schema: S, file: string): z.output<S> {
  const result = schema.safeParse(readJson(file))
  if (result.success) return deepFreeze(result.data)
  const faults = result.error.issues.map((issue) => {
    const path = issue.path.map(String).join('.')
    return `  ${path === '' ? '' : `${path}: `}${issue.message}`
  })
  throw new CertpeerError('config_invalid', `${file} has ${faults.length} fault(s):\n${faults.join('\n')}`)
}

/**
 * Writes what a program decides into a configuration file; settings that somebody added by hand stay. Throws
 * config_invalid when the file that is there cannot be read.
 */
export async function mergeConfig(file: string, decided: Readonly<Record<string, unknown>>): Promise<void> {
  const former = existsSync(file) ? readJson(file) : {}
  if (typeof former !== 'object' || former === null || Array.isArray(former)) {
    throw new CertpeerError('config_invalid', `${file} is not a JSON object; mend it, or delete it to start anew`)
  }
  await writeFileAtomic(file, `${JSON.stringify({ ...former, ...decided }, null, 2)}\n`, { mode: 0o600 })
}

/** An unknown `CERTPEER_…` variable is a misspelt one: throws config_invalid naming all of them. */
export function refuseUnknownVariables(known: readonly string[], env: NodeJS.ProcessEnv): void {
  const unknown = Object.keys(env).filter((name) => name.startsWith('CERTPEER_') && !known.includes(name))
  if (unknown.length > 0) {
    throw new CertpeerError(
      'config_invalid',
      `unknown environment variable ${unknown.join(', ')}; known are ${known.join(', ') || 'none'}`,
    )
  }
}

function readJson(file: string): unknown {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    const missing = error instanceof Error && 'code' in error && error.code === 'ENOENT'
    throw new CertpeerError('config_invalid', `cannot read ${file}${missing ? ': it does not exist' : ''}`, {
      cause: error,
    })
  }
  try {
    return JSON.parse(text)
  } catch (error) {
    // V8 quotes what stands around the fault, which may be a secret: only the place is told.
    const place = /\(line [0-9]+ column [0-9]+\)/.exec(error instanceof Error ? error.message : '')?.[0] ?? ''
    throw new CertpeerError('config_invalid', `${file} is not JSON ${place}`.trimEnd())
  }
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value) && !ArrayBuffer.isView(value)) {
    Object.freeze(value)
    for (const field of Object.values(value)) deepFreeze(field)
  }
  return value
}
