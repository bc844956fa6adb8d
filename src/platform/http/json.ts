/** Untrusted JSON: exact UTF-8 in, plain data out, nothing that can reach a prototype. */
import { CertpeerError } from '../../core/errors.ts'

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Decodes UTF-8 without repairing it; a byte order mark stays and makes the JSON fail. */
export function decodeUtf8(
  bytes: Buffer,
  what: string,
  code: 'malformed_request' | 'malformed_message' = 'malformed_request',
): string {
  try {
    return utf8.decode(bytes)
  } catch (error) {
    throw new CertpeerError(code, `${what} is not UTF-8`, { cause: error })
  }
}

/**
 * Parses one JSON text. Refuses objects with a key `__proto__`, or a `constructor` that holds a `prototype`: harmless
 * here, poison for whatever merges them later.
 */
export function parseJson(text: string, what = 'body'): unknown {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new CertpeerError('malformed_request', `${what} is not JSON`, { cause: error })
  }
  // Both names can only be there as themselves or with an escape; without either the walk is not needed.
  if (/__proto__|constructor|\\u/.test(text)) refusePrototypeKeys(value, what)
  return value
}

function refusePrototypeKeys(root: unknown, what: string): void {
  const waiting: unknown[] = [root]
  while (waiting.length > 0) {
    const value = waiting.pop()
    if (typeof value !== 'object' || value === null) continue
    for (const [key, child] of Object.entries(value as Record<string, unknown>)) {
      const isPrototype =
        key === '__proto__' ||
        (key === 'constructor' && typeof child === 'object' && child !== null && Object.hasOwn(child, 'prototype'))
      if (isPrototype) throw new CertpeerError('malformed_request', `${what} has a forbidden key`)
      waiting.push(child)
    }
  }
}
