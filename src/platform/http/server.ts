/**
 * One listener: http.Server for what is hot, express for the rest, and the same rules for both: front secret, strict
 * paths, bounded headers and bodies in bounded time, rate limits, and problem+json for whatever goes wrong.
 */
import { randomUUID, timingSafeEqual } from 'node:crypto'
import { chmodSync, lstatSync, unlinkSync } from 'node:fs'
import { createServer, STATUS_CODES, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { connect, isIP } from 'node:net'
import type { Duplex } from 'node:stream'
import express from 'express'
import { CertpeerError, type ErrorCode } from '../../core/errors.ts'
import type { Logger } from '../log.ts'
import { Exchange, type Limited } from './exchange.ts'
import { PROBLEM_TYPE, toProblem } from './problem.ts'
import { createRouteLimiter } from './rate-limit.ts'
import { compilePath, parseTarget, type PathParams, type PathPattern, type Target } from './target.ts'
import type { RateLimits, Route } from './types.ts'

export const FRONT_HEADER = 'x-certpeer-front'

/** An escaped client certificate of 16 KiB and what nginx puts beside it. */
const MAX_HEADER_BYTES = 32_768
const HEADERS_TIMEOUT_MS = 10_000
/** Longer than nginx keeps an idle upstream connection (60 s), so that nginx closes first and never meets a reset. */
const KEEP_ALIVE_TIMEOUT_MS = 75_000
/** No byte either way for this long ends a connection; streams are exempt, they have pings. */
const IDLE_TIMEOUT_MS = 120_000
const CLOSE_GRACE_MS = 5_000
/** sockaddr_un on Linux has room for 108 bytes with the final NUL. */
const MAX_SOCKET_PATH_BYTES = 107
/** Read by certpeer, or deciding how a message is read: two of one are two readings of one request. */
const SINGLE_HEADERS = new Set([
  'host',
  'content-type',
  'content-encoding',
  'x-client-verify',
  'x-client-cert',
  'x-real-ip',
  'x-request-id',
  FRONT_HEADER,
])
const REQUEST_ID = /^[A-Za-z0-9-]{8,64}$/

export type ListenAddress =
  { readonly socketPath: string; readonly mode?: 0o600 | 0o660 } | { readonly host: string; readonly port: number }

export interface HttpServerOptions {
  readonly name: string
  readonly listen: ListenAddress
  readonly routes: readonly Route[]
  readonly log: Logger
  /** When given, every request must carry it in `x-certpeer-front`, except on routes marked `frontless`. */
  readonly frontSecret?: Buffer
  /** For routes that have none of their own. */
  readonly rateLimits?: RateLimits
  /** For tests; defaults above. */
  readonly timeouts?: { readonly headersMs?: number; readonly bodyMs?: number; readonly closeGraceMs?: number }
}

export interface HttpServer extends AsyncDisposable {
  readonly address: { readonly socketPath: string } | { readonly host: string; readonly port: number }
  /** Takes no more, lets what runs end for a few seconds, ends streams, then cuts. */
  close(): Promise<void>
}

/** Listens. Throws port_in_use, missing_privilege, or config_invalid for a socket path that is too long. */
export async function startHttpServer(options: HttpServerOptions): Promise<HttpServer> {
  const log = options.log.child({ listener: options.name })
  const table = new RouteTable(options.routes, options.rateLimits ?? {})
  let closing = false
  const live = new Set<Exchange>()
  const exchanges = new WeakMap<IncomingMessage, Exchange>()
  const app = createApp(table, exchanges)

  function onRequest(request: IncomingMessage, response: ServerResponse): void {
    const vouched = options.frontSecret !== undefined && hasFrontSecret(request, options.frontSecret)
    const exchange = new Exchange({
      request,
      response,
      target: { path: '', segments: [], search: '' },
      requestId: requestId(request, options.frontSecret === undefined || vouched),
      remoteAddress: remoteAddress(request, vouched),
      log,
      isClosing: () => closing,
      onOver: (over) => live.delete(over),
      ...(options.timeouts?.bodyMs === undefined ? {} : { bodyTimeoutMs: options.timeouts.bodyMs }),
    })
    live.add(exchange)
    try {
      refuseOddHeaders(request)
      exchange.target = parseTarget(request.url ?? '')
      const found = table.find(request.method ?? '', exchange.target)
      if (options.frontSecret !== undefined && !vouched && found?.limited.route.frontless !== true) {
        throw new CertpeerError('front_refused', 'this listener is reached through its nginx alone')
      }
      if (found?.limited.route.hot === true) {
        void exchange.serve(found.limited, found.params)
      } else {
        exchanges.set(request, exchange)
        app(request, response)
      }
    } catch (error) {
      exchange.fail(error)
    }
  }

  const server = createServer(
    {
      maxHeaderSize: MAX_HEADER_BYTES,
      headersTimeout: options.timeouts?.headersMs ?? HEADERS_TIMEOUT_MS,
      // Streams are requests that never end; the time for a body is kept by who reads it.
      requestTimeout: 0,
      connectionsCheckingInterval: 1000,
      keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
      // Node would answer without a body; refuseOddHeaders says it in ours.
      requireHostHeader: false,
    },
    onRequest,
  )
  server.setTimeout(IDLE_TIMEOUT_MS)
  server.maxRequestsPerSocket = 0
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => answerBrokenHttp(error, socket, log))
  const address = await listen(server, options.listen)
  log.info({ address }, 'listening')

  let closed: Promise<void> | undefined
  async function close(): Promise<void> {
    closing = true
    const ended = new Promise<void>((resolve) => server.close(() => resolve()))
    for (const exchange of live) if (exchange.isStream) exchange.giveUp('the server is closing')
    const cut = setTimeout(() => {
      for (const exchange of live) exchange.giveUp('the server is closing')
      server.closeAllConnections()
    }, options.timeouts?.closeGraceMs ?? CLOSE_GRACE_MS)
    // A connection that answers its last request now becomes idle, and idle ones would hold the server open.
    const sweep = setInterval(() => server.closeIdleConnections(), 20)
    await ended
    clearTimeout(cut)
    clearInterval(sweep)
    log.info('closed')
  }
  const closeOnce = (): Promise<void> => (closed ??= close())
  return { address, close: closeOnce, [Symbol.asyncDispose]: closeOnce }
}

interface Entry {
  readonly limited: Limited
  readonly pattern: PathPattern
}

/** All routes of a listener, and what a path allows. Hot paths without parameters are one look-up. */
class RouteTable {
  readonly entries: readonly Entry[]
  readonly #literal = new Map<string, Limited>()
  readonly #patterns: readonly Entry[]

  constructor(routes: readonly Route[], rateLimits: RateLimits) {
    const seen = new Set<string>()
    this.entries = routes.map((route) => {
      const key = `${route.method} ${route.path.replaceAll(/:[a-zA-Z]+/g, ':')}`
      if (seen.has(key)) throw new TypeError(`two routes for ${key}`)
      seen.add(key)
      if (route.path.includes('*') && !route.hot) throw new TypeError(`only a hot route may end in *: ${route.path}`)
      return { limited: { route, limiter: createRouteLimiter(route, rateLimits) }, pattern: compilePath(route.path) }
    })
    for (const { limited } of this.entries) {
      if (!/[:*]/.test(limited.route.path)) this.#literal.set(`${limited.route.method} ${limited.route.path}`, limited)
    }
    this.#patterns = this.entries.filter(({ limited }) => /[:*]/.test(limited.route.path))
  }

  find(method: string, target: Target): { limited: Limited; params: PathParams } | undefined {
    const wanted = method === 'HEAD' ? 'GET' : method
    const literal = this.#literal.get(`${wanted} ${target.path}`)
    if (literal !== undefined) return { limited: literal, params: {} }
    for (const { limited, pattern } of this.#patterns) {
      if (limited.route.method !== wanted) continue
      const params = pattern.match(target.segments)
      if (params !== undefined) return { limited, params }
    }
    return undefined
  }

  /** Methods that some route answers on this path. */
  allowed(target: Target): string[] {
    const methods = this.entries
      .filter(({ pattern }) => pattern.match(target.segments) !== undefined)
      .flatMap(({ limited }) => (limited.route.method === 'GET' ? ['GET', 'HEAD'] : [limited.route.method]))
    return [...new Set(methods)].sort()
  }
}

/** The express side: routes that are not hot, and the answers for paths and methods that nobody has. */
function createApp(table: RouteTable, exchanges: WeakMap<IncomingMessage, Exchange>): express.Express {
  const app = express()
  app.disable('x-powered-by')
  app.set('etag', false)
  app.set('query parser', false)
  app.enable('case sensitive routing')
  app.enable('strict routing')
  app.set('trust proxy', false)
  const exchangeOf = (request: IncomingMessage): Exchange => {
    const exchange = exchanges.get(request)
    if (exchange === undefined) throw new TypeError('a request reached express around its dispatch')
    return exchange
  }
  for (const { limited, pattern } of table.entries) {
    if (limited.route.hot) continue
    const serve: express.RequestHandler = async (request, _response, next) => {
      const exchange = exchangeOf(request)
      // Express decodes parameters its own way; ours is the one reading, and what it refuses is no such path.
      const params = pattern.match(exchange.target.segments)
      if (params === undefined) next()
      else await exchange.serve(limited, params)
    }
    const path = app.route(limited.route.path)
    switch (limited.route.method) {
      case 'GET':
        path.get(serve)
        break
      case 'POST':
        path.post(serve)
        break
      case 'PUT':
        path.put(serve)
        break
      case 'DELETE':
        path.delete(serve)
        break
      case 'PATCH':
        path.patch(serve)
        break
      default:
        limited.route.method satisfies never
    }
  }
  app.use((request: express.Request) => {
    const exchange = exchangeOf(request)
    const allowed = table.allowed(exchange.target)
    if (allowed.length === 0) exchange.fail(new CertpeerError('not_found', 'there is nothing at this path'))
    else {
      const allow = allowed.join(', ')
      exchange.fail(new CertpeerError('method_not_allowed', `this path answers ${allow}`), { allow })
    }
  })
  // Four parameters make it an error handler for express.
  app.use((error: unknown, request: express.Request, _response: express.Response, _next: express.NextFunction) => {
    exchangeOf(request).fail(error)
  })
  return app
}

function hasFrontSecret(request: IncomingMessage, secret: Buffer): boolean {
  const header = request.headers[FRONT_HEADER]
  if (typeof header !== 'string') return false
  const given = Buffer.from(header, 'latin1')
  return given.length === secret.length && timingSafeEqual(given, secret)
}

/** nginx's id when nginx can be told apart from strangers; else ours, so that nobody writes into our logs. */
function requestId(request: IncomingMessage, believed: boolean): string {
  const given = request.headers['x-request-id']
  return believed && typeof given === 'string' && REQUEST_ID.test(given) ? given : randomUUID()
}

function remoteAddress(request: IncomingMessage, vouched: boolean): string {
  const given = request.headers['x-real-ip']
  if (vouched && typeof given === 'string' && isIP(given) !== 0) return given
  return request.socket.remoteAddress ?? 'local'
}

function refuseOddHeaders(request: IncomingMessage): void {
  if (request.headers.host === undefined) throw new CertpeerError('malformed_request', 'the header host is missing')
  const seen = new Set<string>()
  for (let index = 0; index < request.rawHeaders.length; index += 2) {
    const name = request.rawHeaders[index]?.toLowerCase() ?? ''
    if (!SINGLE_HEADERS.has(name)) continue
    if (seen.has(name)) throw new CertpeerError('malformed_request', `the header ${name} is there twice`)
    seen.add(name)
  }
}

/** What the parser refused never became a request: the answer is written by hand, unless one is under way already. */
function answerBrokenHttp(error: NodeJS.ErrnoException, socket: Duplex, log: Logger): void {
  const busy = '_httpMessage' in socket && socket._httpMessage !== null
  if (error.code === 'ECONNRESET' || !socket.writable || busy) {
    socket.destroy()
    return
  }
  const { status, code, detail } = brokenHttp(error.code)
  const id = randomUUID()
  log.info({ requestId: id, status, code, reason: error.code }, 'request refused')
  const body = JSON.stringify(toProblem(new CertpeerError(code, detail), id, status))
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? 'Error'}\r\ncontent-type: ${PROBLEM_TYPE}\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\nx-request-id: ${id}\r\n\r\n${body}`,
  )
  // Half-open callers are not waited for.
  setTimeout(() => socket.destroy(), 1000).unref()
}

function brokenHttp(reason: string | undefined): { status: number; code: ErrorCode; detail: string } {
  if (reason === 'HPE_HEADER_OVERFLOW') {
    return { status: 431, code: 'malformed_request', detail: `the headers are larger than ${MAX_HEADER_BYTES} bytes` }
  }
  if (reason === 'ERR_HTTP_REQUEST_TIMEOUT') {
    return { status: 408, code: 'timeout', detail: 'the request did not arrive in time' }
  }
  return { status: 400, code: 'malformed_request', detail: 'this is not HTTP/1.1' }
}

async function listen(server: Server, where: ListenAddress): Promise<HttpServer['address']> {
  if (!('socketPath' in where)) {
    await bind(server, () => server.listen({ host: where.host, port: where.port }), `${where.host}:${where.port}`)
    const bound = server.address()
    if (bound === null || typeof bound === 'string') throw new TypeError('a TCP listener without an address')
    return { host: bound.address, port: bound.port }
  }
  const { socketPath } = where
  if (Buffer.byteLength(socketPath) > MAX_SOCKET_PATH_BYTES) {
    throw new CertpeerError(
      'config_invalid',
      `the socket path ${socketPath} is longer than ${MAX_SOCKET_PATH_BYTES} bytes; use a shorter directory`,
    )
  }
  try {
    await bindSocket(server, socketPath, where.mode ?? 0o660)
  } catch (error) {
    if (!(error instanceof CertpeerError) || error.code !== 'port_in_use' || (await answers(socketPath))) throw error
    // A socket file that nobody answers on is what kill -9 leaves behind. Any other file is not ours to delete.
    if (!lstatSync(socketPath).isSocket()) throw error
    unlinkSync(socketPath)
    await bindSocket(server, socketPath, where.mode ?? 0o660)
  }
  return { socketPath }
}

/** The file must never be there with a wider mode, not even between bind and chmod; binding is synchronous. */
async function bindSocket(server: Server, socketPath: string, mode: number): Promise<void> {
  await bind(
    server,
    () => {
      const before = process.umask(0o777 & ~mode)
      try {
        server.listen({ path: socketPath })
      } finally {
        process.umask(before)
      }
    },
    socketPath,
  )
  chmodSync(socketPath, mode)
}

function bind(server: Server, start: () => void, where: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const onListening = (): void => {
      server.off('error', onError)
      resolve()
    }
    const onError = (error: NodeJS.ErrnoException): void => {
      server.off('listening', onListening)
      reject(bindFault(error, where))
    }
    server.once('listening', onListening).once('error', onError)
    start()
  })
}

function bindFault(error: NodeJS.ErrnoException, where: string): CertpeerError {
  if (error.code === 'EADDRINUSE') {
    return new CertpeerError('port_in_use', `another process listens on ${where}`, { cause: error })
  }
  if (error.code === 'EACCES') {
    return new CertpeerError('missing_privilege', `not permitted to listen on ${where}`, { cause: error })
  }
  return new CertpeerError('config_invalid', `cannot listen on ${where} (${error.code ?? 'unknown'})`, { cause: error })
}

function answers(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(socketPath)
    probe.once('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.once('error', (error: NodeJS.ErrnoException) => resolve(error.code !== 'ECONNREFUSED'))
  })
}
