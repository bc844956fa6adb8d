/**
 * The one HTTP caller: root pinned, answers bounded in size and time, problem+json back into CertpeerError. A request
 * is repeated once when a kept connection turned out dead before the answer began (an nginx reload cuts idle ones);
 * every mutating route is idempotent, which is what makes that safe.
 */
import { Agent, request as httpRequest, type ClientRequest, type IncomingMessage, type RequestOptions } from 'node:http'
import { Agent as TlsAgent, request as httpsRequest, type AgentOptions as TlsAgentOptions } from 'node:https'
import { CertpeerError, ERROR_CODES, type ErrorCode } from '../../core/errors.ts'
import { problemSchema } from '../../core/messages/problem.ts'
import { decodeUtf8, parseJson } from '../http/json.ts'
import { NDJSON_TYPE, readLines } from '../http/ndjson.ts'

const DEFAULT_TIMEOUT_MS = 30_000
const DEFAULT_MAX_BYTES = 16_777_216
const MAX_PROBLEM_BYTES = 65_536
/** A CRL of a million entries, base64, is one line of a stream. */
const DEFAULT_MAX_LINE_BYTES = 67_108_864
const JSON_TYPE = /^application\/(?:[a-z0-9.+-]+\+)?json\b/i

export interface ApiClientOptions {
  /** `https://HOST:PORT`, `http://HOST:PORT`, or `unix:/path.sock`. */
  readonly base: string
  /** PEM of the one certificate that may stand above the server's. Needed for https. */
  readonly root?: string
  /** PEM: the leaf and its issuer, and the leaf's key. */
  readonly clientCertificate?: { readonly certificate: string; readonly key: string }
  /** Sent with every request, for example the front secret. */
  readonly headers?: Readonly<Record<string, string>>
  readonly timeoutMs?: number
  /** The name to find in the server's certificate, where it is not the host of `base`. */
  readonly servername?: string
  /**
   * Takes any server certificate: only for the first contact, where the answer is compared with the token's root
   * fingerprint and nothing secret is sent. Excludes `root` and `clientCertificate`.
   */
  readonly unverified?: boolean
}

export interface ApiRequest {
  readonly method: string
  /** Beginning with a slash, already escaped. */
  readonly path: string
  readonly query?: Readonly<Record<string, string | number | undefined>> | URLSearchParams
  readonly json?: unknown
  readonly raw?: { readonly contentType: string; readonly body: Buffer }
  readonly headers?: Readonly<Record<string, string>>
  readonly timeoutMs?: number
  readonly maxBytes?: number
  readonly signal?: AbortSignal
}

export interface ApiAnswer {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  /** Parsed when the answer says it is JSON. */
  readonly json?: unknown
  readonly raw: Buffer
}

/** The caller's end of a full-duplex NDJSON exchange. */
export interface ApiStream {
  /** What the server sends, a line each. Throws unavailable when the stream breaks off, malformed_message on a bad line. */
  readonly lines: AsyncIterable<string>
  /** Queues one line; adds the newline of a string. False when the server is behind. */
  write(line: string | Buffer): boolean
  /** Aborts when the stream is over; its reason says why. */
  readonly closed: AbortSignal
  /** Half-closes: nothing more will be written; the server's lines go on until it ends too. */
  end(): void
  /** Cuts at once. */
  destroy(): void
}

export class ApiClient {
  readonly #options: ApiClientOptions
  readonly #target: RequestOptions
  readonly #basePath: string
  readonly #agent: Agent
  /** Never reuses a connection: for streams, and for the second try. */
  readonly #freshAgent: Agent
  readonly #start: (options: RequestOptions) => ClientRequest

  constructor(options: ApiClientOptions) {
    this.#options = options
    const kept = { keepAlive: true, maxFreeSockets: 8 }
    if (options.base.startsWith('unix:')) {
      this.#target = { socketPath: options.base.slice('unix:'.length), host: 'localhost' }
      this.#basePath = ''
      this.#agent = new Agent(kept)
      this.#freshAgent = new Agent()
      this.#start = httpRequest
      return
    }
    const url = parseBase(options.base)
    // URL keeps the brackets of an IPv6 host; sockets want it without.
    const host = url.hostname.replace(/^\[|\]$/g, '')
    this.#target = { host, port: url.port === '' ? undefined : Number(url.port) }
    this.#basePath = url.pathname.replace(/\/$/, '')
    if (url.protocol === 'http:') {
      this.#agent = new Agent(kept)
      this.#freshAgent = new Agent()
      this.#start = httpRequest
      return
    }
    if (options.unverified === true) {
      if (options.root !== undefined || options.clientCertificate !== undefined) {
        throw new TypeError('an unverified client has neither a root nor a certificate of its own')
      }
    } else if (options.root === undefined) {
      // Without a pinned root Node would believe every public CA.
      throw new TypeError('an https client needs its pinned root')
    }
    const tls: TlsAgentOptions = {
      minVersion: 'TLSv1.2',
      // A resumed session skips the checks of a handshake, CRL and expiry included.
      maxCachedSessions: 0,
      ...(options.root === undefined ? {} : { ca: [options.root] }),
      ...(options.servername === undefined ? {} : { servername: options.servername }),
      ...(options.unverified === true ? { rejectUnauthorized: false } : {}),
      ...(options.clientCertificate === undefined
        ? {}
        : { cert: options.clientCertificate.certificate, key: options.clientCertificate.key }),
    }
    this.#agent = new TlsAgent({ ...kept, ...tls })
    this.#freshAgent = new TlsAgent(tls)
    this.#start = httpsRequest
  }

  /**
   * One exchange. Any status of 400 and above is thrown: with the problem's own code and text, or as unavailable when
   * whoever answered speaks no problem+json. Throws unavailable naming the address when nobody answers, timeout when
   * it takes too long.
   */
  async request(request: ApiRequest): Promise<ApiAnswer> {
    try {
      return await this.#exchange(request)
    } catch (error) {
      if (!(error instanceof DeadConnection)) throw error
      return this.#exchange(request, this.#freshAgent)
    }
  }

  /** GET with an entity tag: status 304 and no body when it still holds. */
  get(path: string, options: { etag?: string } & Omit<ApiRequest, 'method' | 'path'> = {}): Promise<ApiAnswer> {
    const { etag, ...rest } = options
    const headers = { ...rest.headers, ...(etag === undefined ? {} : { 'if-none-match': etag }) }
    return this.request({ ...rest, method: 'GET', path, headers })
  }

  /** Opens `POST path` as a stream; resolves when the server has accepted it. */
  openStream(
    path: string,
    options: { signal?: AbortSignal; timeoutMs?: number; maxLineBytes?: number } = {},
  ): Promise<ApiStream> {
    const where = this.#name(path)
    return new Promise((resolve, reject) => {
      const call = this.#start({
        ...this.#target,
        agent: this.#freshAgent,
        method: 'POST',
        path: this.#basePath + path,
        headers: { ...this.#options.headers, 'content-type': NDJSON_TYPE, 'transfer-encoding': 'chunked' },
      })
      const timeoutMs = options.timeoutMs ?? this.#options.timeoutMs ?? DEFAULT_TIMEOUT_MS
      const closed = new AbortController()
      const timer = setTimeout(
        () => fail(new CertpeerError('timeout', `${where} did not answer in ${timeoutMs} ms`)),
        timeoutMs,
      )
      const onAbort = (): void => fail(new CertpeerError('unavailable', `${where} was given up`))
      function fail(error: CertpeerError): void {
        settle()
        call.destroy()
        over(error)
        reject(error)
      }
      function settle(): void {
        clearTimeout(timer)
      }
      function over(reason: CertpeerError): void {
        options.signal?.removeEventListener('abort', onAbort)
        if (!closed.signal.aborted) closed.abort(reason)
      }
      call.on('error', (error) => fail(unreachable(where, error)))
      call.on('close', () => over(new CertpeerError('unavailable', `the stream to ${where} is over`)))
      call.on('response', (response) => {
        if (response.statusCode !== 200) {
          // The time runs on: a refusal may break off in the middle too.
          collect(response, MAX_PROBLEM_BYTES, where).then(
            (raw) => fail(problemOf(response, raw, where)),
            (error: unknown) => fail(unreachable(where, error)),
          )
          return
        }
        settle()
        call.socket?.setNoDelay(true)
        resolve({
          lines: linesOf(response, options.maxLineBytes ?? DEFAULT_MAX_LINE_BYTES, where),
          write(line) {
            if (closed.signal.aborted || call.writableEnded || call.destroyed) return false
            return call.write(typeof line === 'string' && !line.endsWith('\n') ? `${line}\n` : line)
          },
          closed: closed.signal,
          end: () => {
            if (!call.writableEnded) call.end()
          },
          destroy: () => {
            call.destroy()
            response.destroy()
          },
        })
      })
      if (options.signal?.aborted === true) onAbort()
      options.signal?.addEventListener('abort', onAbort, { once: true })
      call.flushHeaders()
    })
  }

  /** Ends kept connections; the client can be used again. */
  close(): void {
    this.#agent.destroy()
  }

  #exchange(request: ApiRequest, agent = this.#agent): Promise<ApiAnswer> {
    const where = this.#name(request.path)
    const body = bodyOf(request)
    const timeoutMs = request.timeoutMs ?? this.#options.timeoutMs ?? DEFAULT_TIMEOUT_MS
    return new Promise((resolve, reject) => {
      const call = this.#start({
        ...this.#target,
        agent,
        method: request.method,
        path: this.#basePath + request.path + queryOf(request.query),
        headers: {
          accept: 'application/json, application/problem+json, */*;q=0.5',
          ...this.#options.headers,
          ...request.headers,
          ...(body === undefined ? {} : { 'content-type': body.contentType, 'content-length': body.bytes.length }),
          // A mutating method without a body says so, or some proxies wait for one.
          ...(body === undefined && request.method !== 'GET' && request.method !== 'HEAD'
            ? { 'content-length': 0 }
            : {}),
        },
      })
      const timer = setTimeout(() => {
        finish(new CertpeerError('timeout', `${where} did not answer in ${timeoutMs} ms`))
      }, timeoutMs)
      const onAbort = (): void => finish(new CertpeerError('unavailable', `the request to ${where} was given up`))
      let answered = false
      function finish(result: Error | ApiAnswer): void {
        clearTimeout(timer)
        request.signal?.removeEventListener('abort', onAbort)
        if (result instanceof Error) {
          call.destroy()
          reject(result)
        } else {
          resolve(result)
        }
      }
      call.on('error', (error: NodeJS.ErrnoException) => {
        const dead = error.code === 'ECONNRESET' || error.code === 'EPIPE'
        finish(dead && !answered && call.reusedSocket ? new DeadConnection() : unreachable(where, error))
      })
      call.on('response', (response) => {
        answered = true
        collect(response, request.maxBytes ?? DEFAULT_MAX_BYTES, where)
          .then((raw) => finish(readAnswer(response, raw, where)))
          .catch((error: unknown) => finish(error instanceof CertpeerError ? error : unreachable(where, error)))
      })
      if (request.signal?.aborted === true) onAbort()
      request.signal?.addEventListener('abort', onAbort, { once: true })
      call.end(body?.bytes)
    })
  }

  #name(path: string): string {
    return `${this.#options.base.replace(/\/$/, '')}${path}`
  }
}

/** A kept connection that the other side had closed: nothing of the answer has been seen. */
class DeadConnection extends Error {}

function parseBase(base: string): URL {
  const url = URL.canParse(base) ? new URL(base) : undefined
  if (url === undefined || (url.protocol !== 'https:' && url.protocol !== 'http:') || url.username !== '') {
    throw new CertpeerError('config_invalid', `not an https, http or unix: address: ${base}`)
  }
  return url
}

function bodyOf(request: ApiRequest): { contentType: string; bytes: Buffer } | undefined {
  if (request.raw !== undefined) return { contentType: request.raw.contentType, bytes: request.raw.body }
  if (request.json === undefined) return undefined
  return { contentType: 'application/json', bytes: Buffer.from(JSON.stringify(request.json)) }
}

function queryOf(query: ApiRequest['query']): string {
  if (query === undefined) return ''
  const parameters = query instanceof URLSearchParams ? query : new URLSearchParams()
  if (!(query instanceof URLSearchParams)) {
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined) parameters.append(name, String(value))
    }
  }
  const text = parameters.toString()
  return text === '' ? '' : `?${text}`
}

async function collect(response: IncomingMessage, maxBytes: number, where: string): Promise<Buffer> {
  const chunks: Buffer[] = []
  let total = 0
  for await (const chunk of response) {
    const bytes = chunk as Buffer
    total += bytes.length
    if (total > maxBytes) throw new CertpeerError('unavailable', `${where} answered more than ${maxBytes} bytes`)
    chunks.push(bytes)
  }
  return Buffer.concat(chunks, total)
}

function readAnswer(response: IncomingMessage, raw: Buffer, where: string): ApiAnswer {
  const status = response.statusCode ?? 0
  if (status >= 400) throw problemOf(response, raw, where)
  if ((status < 200 || status >= 300) && status !== 304) {
    throw new CertpeerError('unavailable', `${where} answered status ${status}`)
  }
  const { headers } = response
  if (raw.length === 0 || !JSON_TYPE.test(headers['content-type'] ?? '')) return { status, headers, raw }
  try {
    return { status, headers, raw, json: parseJson(decodeUtf8(raw, 'answer'), 'answer') }
  } catch (error) {
    throw new CertpeerError('malformed_message', `${where} answered what is not JSON`, { cause: error })
  }
}

/** The error that the other side meant; an answer that is no problem of ours is a fault on the way. */
function problemOf(response: IncomingMessage, raw: Buffer, where: string): CertpeerError {
  const status = response.statusCode ?? 0
  const unknown = new CertpeerError('unavailable', `${where} answered status ${status}`)
  if (!JSON_TYPE.test(response.headers['content-type'] ?? '') || raw.length > MAX_PROBLEM_BYTES) return unknown
  try {
    const problem = problemSchema.safeParse(parseJson(decodeUtf8(raw, 'answer')))
    if (!problem.success || !isErrorCode(problem.data.code)) return unknown
    const text = problem.data.detail ?? problem.data.title
    return new CertpeerError(problem.data.code, problem.data.code === 'internal' ? `${where}: ${text}` : text)
  } catch {
    return unknown
  }
}

function isErrorCode(code: string): code is ErrorCode {
  return (ERROR_CODES as readonly string[]).includes(code)
}

function unreachable(where: string, cause: unknown): CertpeerError {
  if (cause instanceof CertpeerError) return cause
  const reason = cause instanceof Error ? ('code' in cause && String(cause.code)) || cause.message : 'unknown'
  return new CertpeerError('unavailable', `cannot reach ${where} (${reason})`, { cause })
}

async function* linesOf(response: IncomingMessage, maxLineBytes: number, where: string): AsyncGenerator<string> {
  yield* readLines(response, maxLineBytes)
  if (!response.complete) throw new CertpeerError('unavailable', `the stream from ${where} broke off`)
}
