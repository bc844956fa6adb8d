/** One request through one route, from its head to its answer; express and the hot dispatch both end here. */
import type { IncomingMessage, ServerResponse } from 'node:http'
import { CertpeerError } from '../../core/errors.ts'
import type { Logger } from '../log.ts'
import { BODY_TIMEOUT_MS, BodyTimeout, mediaType, readBody } from './body.ts'
import { createDuplex } from './duplex.ts'
import { NDJSON_TYPE } from './ndjson.ts'
import { PROBLEM_TYPE, toProblem } from './problem.ts'
import type { RouteLimiter } from './rate-limit.ts'
import type { PathParams, Target } from './target.ts'
import type { PlainRoute, Route, RouteAnswer, RouteRequest, StreamRoute } from './types.ts'

/** How much of a refused body is read and thrown away, so that the refusal arrives before the reset. */
const LINGER_MS = 1000
const LINGER_BYTES = 4_194_304

export interface Limited {
  readonly route: Route
  readonly limiter: RouteLimiter
}

export interface ExchangeOptions {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly target: Target
  readonly requestId: string
  readonly remoteAddress: string
  readonly log: Logger
  /** True from the moment the server takes no more: kept connections end with their answer. */
  readonly isClosing: () => boolean
  /** Called once, when the response has closed. */
  readonly onOver: (exchange: Exchange) => void
  readonly bodyTimeoutMs?: number
}

/** The request as far as it is known before a route is chosen, and every way to answer it. */
export class Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  /** Empty until the server has parsed it. */
  target: Target
  readonly requestId: string
  readonly remoteAddress: string
  readonly #options: ExchangeOptions
  readonly #startedAtMs = performance.now()
  #isStream = false
  #controller: AbortController | undefined
  #reason: CertpeerError | undefined
  #onGiveUp: (reason: CertpeerError) => void = () => undefined
  #log: Logger | undefined

  constructor(options: ExchangeOptions) {
    this.request = options.request
    this.response = options.response
    this.target = options.target
    this.requestId = options.requestId
    this.remoteAddress = options.remoteAddress
    this.#options = options
    this.response.once('close', () => {
      // After an answer that went out whole there is nothing left to give up; a stream is over in any case.
      if (this.#isStream || !this.response.writableFinished) this.giveUp('the caller has gone')
      options.onOver(this)
    })
  }

  get isStream(): boolean {
    return this.#isStream
  }

  /** What the route is given; most routes never look at it, and then it is never made. */
  get signal(): AbortSignal {
    this.#controller ??= new AbortController()
    if (this.#reason !== undefined) this.#controller.abort(this.#reason)
    return this.#controller.signal
  }

  /** Aborts the route's signal, and stops waiting for its answer. */
  giveUp(message: string, code: 'unavailable' | 'timeout' = 'unavailable'): void {
    if (this.#reason !== undefined) return
    this.#reason = new CertpeerError(code, message)
    this.#controller?.abort(this.#reason)
    this.#onGiveUp(this.#reason)
  }

  get log(): Logger {
    this.#log ??= this.#options.log.child({ requestId: this.requestId })
    return this.#log
  }

  /** Never rejects: whatever goes wrong becomes an answer or the end of the connection. */
  async serve({ route, limiter }: Limited, params: PathParams): Promise<void> {
    try {
      const wait = await limiter.address?.(this.remoteAddress)
      if (wait !== undefined) this.#refuseRate(wait)
      else if (route.kind === 'stream') await this.#serveStream(route, limiter, params)
      else await this.#servePlain(route, limiter, params)
    } catch (error) {
      this.fail(error)
    }
  }

  async #servePlain(route: PlainRoute, limiter: RouteLimiter, params: PathParams): Promise<void> {
    const timer = setTimeout(() => this.giveUp(`no answer within ${route.timeoutMs} ms`, 'timeout'), route.timeoutMs)
    const over = new Promise<never>((_, reject) => {
      this.#onGiveUp = reject
    })
    const work = this.#answer(route, limiter, this.#head(params))
    try {
      const answer = await Promise.race([work, over])
      if (answer !== undefined) this.#send(answer)
    } catch (error) {
      // Who was waited for no longer may still fail, and nobody else would learn of it.
      if (this.#reason !== undefined) work.catch((late: unknown) => this.#recordLate(late))
      throw error
    } finally {
      clearTimeout(timer)
    }
  }

  async #answer(route: PlainRoute, limiter: RouteLimiter, head: Head): Promise<RouteAnswer | undefined> {
    const opened = await route.open(head)
    head.body = await readBody(this.request, route, this.#options.bodyTimeoutMs ?? BODY_TIMEOUT_MS)
    const wait = await limiter.keys?.(opened.rateLimitKeys(head))
    if (wait !== undefined) {
      this.#refuseRate(wait)
      return undefined
    }
    return opened.handle(head)
  }

  async #serveStream(route: StreamRoute, limiter: RouteLimiter, params: PathParams): Promise<void> {
    const head = this.#head(params)
    const opened = await route.open(head)
    if (mediaType(this.request) !== NDJSON_TYPE) {
      throw new CertpeerError('unsupported_media_type', `the body must be ${NDJSON_TYPE}`)
    }
    const wait = await limiter.keys?.(opened.rateLimitKeys(head))
    if (wait !== undefined) {
      this.#refuseRate(wait)
      return
    }
    this.#isStream = true
    if (this.#options.isClosing()) this.giveUp('the server is closing')
    // Small lines at once in both directions; the hub's own pings decide when a silent peer is gone.
    this.request.socket.setNoDelay(true)
    this.request.socket.setTimeout(0)
    this.response.writeHead(200, { 'content-type': NDJSON_TYPE, ...this.#commonHeaders() })
    this.response.flushHeaders()
    const duplex = createDuplex(this.request, this.response, route, this.signal, this.log)
    await opened.handle(duplex)
    duplex.end()
  }

  #head(params: PathParams): Head {
    return new Head(this, params)
  }

  #refuseRate(retryAfterSeconds: number): void {
    const error = new CertpeerError('rate_limited', `too many requests, try again in ${retryAfterSeconds} s`)
    this.fail(error, { 'retry-after': String(retryAfterSeconds) })
  }

  #send(answer: RouteAnswer): void {
    const { response } = this
    if (response.headersSent || response.destroyed) return
    // Text leaves together with its head in one write.
    const body = answer.raw?.body ?? (answer.json === undefined ? undefined : JSON.stringify(answer.json))
    const type = answer.raw?.contentType ?? 'application/json'
    response.writeHead(answer.status, {
      'cache-control': 'no-store',
      ...answer.headers,
      ...(body === undefined ? {} : { 'content-type': type }),
      ...(answer.status === 304 || answer.status === 204
        ? {}
        : { 'content-length': body === undefined ? 0 : Buffer.byteLength(body) }),
      ...this.#commonHeaders(),
    })
    this.#end(body)
    this.log.debug(this.#facts(answer.status), 'request answered')
  }

  /** Answers a problem; on a stream that has begun, or for a caller that has gone, only the log learns of it. */
  fail(error: unknown, headers: Readonly<Record<string, string>> = {}): void {
    const { response } = this
    const problem = toProblem(error, this.requestId, error instanceof BodyTimeout ? error.status : undefined)
    const facts = { ...this.#facts(problem.status), code: problem.code }
    if (problem.code !== 'internal' && response.destroyed) this.log.debug(facts, 'request given up')
    else if (problem.status >= 500) this.log.error({ ...facts, err: error }, 'request failed')
    else this.log.info({ ...facts, detail: problem.detail }, 'request refused')
    if (response.headersSent || response.destroyed) {
      response.destroy()
      return
    }
    const body = JSON.stringify(problem)
    response.writeHead(problem.status, {
      'cache-control': 'no-store',
      'content-type': PROBLEM_TYPE,
      'content-length': Buffer.byteLength(body),
      ...headers,
      ...this.#commonHeaders(),
    })
    this.#end(body)
  }

  #commonHeaders(): Record<string, string> {
    return {
      'x-request-id': this.requestId,
      'x-content-type-options': 'nosniff',
      // A body that nobody reads ends the connection; so does a server that is closing.
      ...(this.#mustClose() ? { connection: 'close' } : {}),
    }
  }

  #mustClose(): boolean {
    return this.#options.isClosing() || (!this.request.complete && hasBody(this.request))
  }

  /**
   * Ends the answer. When the caller is still sending a body that nobody reads, the answer goes out whole and the
   * connection stays for a little longer: closing it with unread bytes would reset it, and the answer with it.
   */
  #end(body: Buffer | string | undefined): void {
    const { request, response } = this
    if (request.complete || request.destroyed || !hasBody(request)) {
      response.end(body)
      return
    }
    if (body !== undefined) response.write(body)
    let droppedBytes = 0
    const hangUp = (): void => {
      clearTimeout(timer)
      response.end()
    }
    const timer = setTimeout(hangUp, LINGER_MS)
    request.on('error', hangUp).once('end', hangUp).once('close', hangUp)
    request.on('data', (chunk: Buffer) => {
      droppedBytes += chunk.length
      if (droppedBytes > LINGER_BYTES) hangUp()
    })
    request.resume()
  }

  #recordLate(error: unknown): void {
    if (error instanceof CertpeerError || error === this.#reason) return
    this.log.error({ ...this.#facts(0), err: error }, 'request failed after its end')
  }

  #facts(status: number): Record<string, unknown> {
    return {
      method: this.request.method,
      path: this.target.path,
      status,
      remoteAddress: this.remoteAddress,
      durationMs: Math.round((performance.now() - this.#startedAtMs) * 10) / 10,
    }
  }
}

/** A request line and headers are all there: is there more to come? */
function hasBody(request: IncomingMessage): boolean {
  const { headers } = request
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0
}

/** What a route sees; query, log and signal are made only when asked for. The body comes when it has been read. */
class Head implements RouteRequest {
  body: unknown
  readonly params: PathParams
  readonly #exchange: Exchange
  #query: URLSearchParams | undefined

  constructor(exchange: Exchange, params: PathParams) {
    this.#exchange = exchange
    this.params = params
  }

  get signal(): AbortSignal {
    return this.#exchange.signal
  }

  get method(): string {
    return this.#exchange.request.method ?? 'GET'
  }

  get path(): string {
    return this.#exchange.target.path
  }

  get query(): URLSearchParams {
    this.#query ??= new URLSearchParams(this.#exchange.target.search)
    return this.#query
  }

  get headers(): IncomingMessage['headers'] {
    return this.#exchange.request.headers
  }

  get requestId(): string {
    return this.#exchange.requestId
  }

  get log(): Logger {
    return this.#exchange.log
  }

  get remoteAddress(): string {
    return this.#exchange.remoteAddress
  }
}
