/** The request target, read once and strictly: two readings of one path are how fences are walked around. */
import { CertpeerError } from '../../core/errors.ts'

const MAX_TARGET_BYTES = 8192
/** RFC 3986 pchar and slash; escapes complete. Raw backslashes, quotes and controls never pass. */
const PATH = /^\/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*$/
const DOT_SEGMENT = /^(?:\.|%2e){1,2}$/i

export interface Target {
  /** As sent, without the query. */
  readonly path: string
  /** Still escaped. */
  readonly segments: readonly string[]
  readonly search: string
}

/** Splits path and query. Throws malformed_request on anything but a plain absolute path without dot segments. */
export function parseTarget(url: string): Target {
  if (url.length > MAX_TARGET_BYTES) throw new CertpeerError('malformed_request', 'the request target is too long')
  const mark = url.indexOf('?')
  const path = mark === -1 ? url : url.slice(0, mark)
  const search = mark === -1 ? '' : url.slice(mark + 1)
  if (!PATH.test(path) || !isUtf8(path)) {
    throw new CertpeerError('malformed_request', 'the request path is not a plain absolute path')
  }
  const segments = path.slice(1).split('/')
  if (segments.some((segment) => DOT_SEGMENT.test(segment))) {
    throw new CertpeerError('malformed_request', 'the request path has dot segments')
  }
  return { path, segments, search }
}

export type PathParams = Readonly<Record<string, string>>

/** A path pattern, compiled once: literals, `:name`, and a last `*name`. Literals are compared as sent, never decoded. */
export interface PathPattern {
  match(segments: readonly string[]): PathParams | undefined
}

export function compilePath(pattern: string): PathPattern {
  if (!/^\/(?:[a-z0-9._-]+|[:*][a-zA-Z]+)(?:\/(?:[a-z0-9._-]+|[:*][a-zA-Z]+))*$/.test(pattern)) {
    throw new TypeError(`not a route path: ${pattern}`)
  }
  const wanted = pattern.slice(1).split('/')
  const wildcard = wanted.findIndex((segment) => segment.startsWith('*'))
  if (wildcard !== -1 && wildcard !== wanted.length - 1) throw new TypeError(`*name must come last: ${pattern}`)
  return {
    match(segments) {
      if (wildcard === -1 ? segments.length !== wanted.length : segments.length < wanted.length) return undefined
      const params: Record<string, string> = {}
      for (const [index, want] of wanted.entries()) {
        const got = segments[index]
        if (got === undefined) return undefined
        if (want.startsWith('*')) {
          const rest = decodeSegment(segments.slice(index).join('/'))
          if (rest === undefined || rest === '') return undefined
          params[want.slice(1)] = rest
        } else if (want.startsWith(':')) {
          const value = decodeSegment(got)
          // An escaped slash in the place of one segment would be another path to whoever decodes first.
          if (value === undefined || value === '' || value.includes('/')) return undefined
          params[want.slice(1)] = value
        } else if (want !== got) {
          return undefined
        }
      }
      return params
    },
  }
}

/** Undefined when the escapes hide a control character or a backslash. */
function decodeSegment(segment: string): string | undefined {
  if (!segment.includes('%')) return segment
  const value = decodeURIComponent(segment)
  return /[\u0000-\u001f\u007f\\]/.test(value) ? undefined : value
}

function isUtf8(path: string): boolean {
  try {
    decodeURIComponent(path)
    return true
  } catch {
    return false
  }
}
