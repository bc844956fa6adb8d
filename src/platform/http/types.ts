/**
 * Routes as data: a tower says method, path, who may and what happens; the server decides how. Principals are values
 * that `access` returns; nothing is hung on a request.
 */
import type { IncomingHttpHeaders } from 'node:http'
import type { Logger } from '../log.ts'

/** What is known before the body is read: all that `access` may decide by. */
export interface RouteHead {
  readonly method: string
  /** As it was sent, without the query. */
  readonly path: string
  /** Decoded; a `:name` never holds a slash or a control character, a `*name` may hold slashes. */
  readonly params: Readonly<Record<string, string>>
  readonly query: URLSearchParams
  readonly headers: IncomingHttpHeaders
  readonly requestId: string
  readonly log: Logger
  /** The address that nginx saw when the front secret vouches for it, else the socket's; `local` on a unix socket. */
  readonly remoteAddress: string
  /** Aborts when the caller has gone, the route's time is up, or the server is closing for good. */
  readonly signal: AbortSignal
}

export interface RouteRequest extends RouteHead {
  /** Parsed JSON for `json`, a Buffer for `raw`, undefined for `none`. */
  readonly body: unknown
}

export interface RouteAnswer {
  readonly status: number
  readonly json?: unknown
  readonly raw?: { readonly contentType: string; readonly body: Buffer }
  readonly headers?: Readonly<Record<string, string>>
}

export interface RateLimit {
  readonly requests: number
  readonly perSeconds: number
}

/** `address` counts by IPv4 address or IPv6 /64, before `access`; `key` by what `rateLimitKey` returns, after it. */
export interface RateLimits {
  readonly address?: RateLimit
  readonly key?: RateLimit
}

export type BodyType = 'json' | 'none' | 'raw'
export type Method = 'GET' | 'POST' | 'PUT' | 'DELETE' | 'PATCH'

interface RouteCommon<P> {
  /** Literal segments, `:name` for one segment, and on hot routes a final `*name` for all that is left. */
  readonly path: string
  /** Who may: returns the principal or throws. Runs before the body is read, so a stranger costs no parsing. */
  readonly access: (head: RouteHead) => P | Promise<P>
  /** Counted apart from the address, for example an identity; each key has its own count. */
  readonly rateLimitKey?: (request: RouteRequest, principal: P) => readonly string[]
  /** Instead of the server's limits. */
  readonly rateLimits?: RateLimits
  /** Answers without the front secret: health probes on the socket itself. */
  readonly frontless?: boolean
}

export interface RouteDefinition<P> extends RouteCommon<P> {
  readonly method: Method
  /** Default: `json` for POST, PUT and PATCH, else `none`. */
  readonly bodyType?: BodyType
  /** Accepted media types; default `application/json` for `json`, and anything for `raw`. */
  readonly contentTypes?: readonly string[]
  /** Default 64 KiB. */
  readonly maxBytes?: number
  /** Dispatched before express. */
  readonly hot?: boolean
  /** From the head of the request to the answer; default 30 s. Longer for those who wait on purpose. */
  readonly timeoutMs?: number
  readonly handle: (request: RouteRequest, principal: P) => RouteAnswer | Promise<RouteAnswer>
}

/** Both directions of one full-duplex NDJSON exchange. */
export interface StreamDuplex {
  /**
   * What the other side sends, a line each, without its end; over when it half-closes, and when `closed` aborts. Throws
   * malformed_message.
   */
  readonly lines: AsyncIterable<string>
  /**
   * Queues one line; the newline of a string is added, a Buffer (encoded once for many streams) must bring its own.
   * False when the reader is behind: stop, and wait for `drained`, or give it up.
   */
  write(line: string | Buffer): boolean
  /** Resolves when everything queued has left, or the stream has closed. */
  drained(): Promise<void>
  /** Bytes queued and not yet taken by the operating system. */
  queuedBytes(): number
  end(): void
  /** Aborts when the stream is over for whatever reason, and when the server closes. */
  readonly closed: AbortSignal
}

export interface StreamDefinition<P> extends RouteCommon<P> {
  /** Longest line upwards; default 64 KiB. */
  readonly maxLineBytes?: number
  /** A stream whose reader lets more than this pile up is cut: memory is never its to take. Default 32 MiB. */
  readonly maxQueuedBytes?: number
  readonly handle: (request: RouteHead, principal: P, duplex: StreamDuplex) => Promise<void>
}

interface RouteShape {
  readonly method: Method
  readonly path: string
  readonly hot: boolean
  readonly frontless: boolean
  readonly rateLimits: RateLimits | undefined
}

/** A route with its principal's type closed over; made by `defineRoute` alone. */
export interface PlainRoute extends RouteShape {
  readonly kind: 'plain'
  readonly bodyType: BodyType
  readonly contentTypes: readonly string[] | undefined
  readonly maxBytes: number
  readonly timeoutMs: number
  readonly open: (head: RouteHead) => Promise<{
    rateLimitKeys(request: RouteRequest): readonly string[]
    handle(request: RouteRequest): RouteAnswer | Promise<RouteAnswer>
  }>
}

/** A stream with its principal's type closed over; made by `defineStream` alone. */
export interface StreamRoute extends RouteShape {
  readonly kind: 'stream'
  readonly maxLineBytes: number
  readonly maxQueuedBytes: number
  readonly open: (head: RouteHead) => Promise<{
    rateLimitKeys(request: RouteRequest): readonly string[]
    handle(duplex: StreamDuplex): Promise<void>
  }>
}

export type Route = PlainRoute | StreamRoute

const DEFAULT_MAX_BYTES = 65_536
const DEFAULT_TIMEOUT_MS = 30_000
const DEFAULT_MAX_LINE_BYTES = 65_536
const DEFAULT_MAX_QUEUED_BYTES = 33_554_432

/** One request, one answer. */
export function defineRoute<P>(definition: RouteDefinition<P>): PlainRoute {
  const takesBody = definition.method === 'POST' || definition.method === 'PUT' || definition.method === 'PATCH'
  const bodyType = definition.bodyType ?? (takesBody ? 'json' : 'none')
  return {
    kind: 'plain',
    method: definition.method,
    path: definition.path,
    hot: definition.hot ?? false,
    frontless: definition.frontless ?? false,
    rateLimits: definition.rateLimits,
    bodyType,
    contentTypes: definition.contentTypes ?? (bodyType === 'json' ? ['application/json'] : undefined),
    maxBytes: definition.maxBytes ?? DEFAULT_MAX_BYTES,
    timeoutMs: definition.timeoutMs ?? DEFAULT_TIMEOUT_MS,
    async open(head) {
      const principal = await definition.access(head)
      return {
        rateLimitKeys: (request) => definition.rateLimitKey?.(request, principal) ?? [],
        handle: (request) => definition.handle(request, principal),
      }
    },
  }
}

/** POST of application/x-ndjson whose request and answer run side by side until one of them ends. */
export function defineStream<P>(definition: StreamDefinition<P>): StreamRoute {
  return {
    kind: 'stream',
    method: 'POST',
    path: definition.path,
    hot: true,
    frontless: definition.frontless ?? false,
    rateLimits: definition.rateLimits,
    maxLineBytes: definition.maxLineBytes ?? DEFAULT_MAX_LINE_BYTES,
    maxQueuedBytes: definition.maxQueuedBytes ?? DEFAULT_MAX_QUEUED_BYTES,
    async open(head) {
      const principal = await definition.access(head)
      return {
        rateLimitKeys: (request) => definition.rateLimitKey?.(request, principal) ?? [],
        handle: (duplex) => definition.handle(head, principal, duplex),
      }
    },
  }
}

/** The value of `:name`; TypeError when the route's path has no such parameter. */
export function pathParameter(head: RouteHead, name: string): string {
  const value = head.params[name]
  if (value === undefined) throw new TypeError(`the route has no parameter ${name}`)
  return value
}
