/** The stream to the control plane: connects, hands lines to the session, and connects again for as long as it runs. */
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { parseMessage } from '../../core/messages/common.ts'
import { downMessageSchema, type DownMessage, type UpMessage } from '../../core/messages/stream.ts'
import type { ApiClient, ApiStream } from '../../platform/api-client/client.ts'
import type { Now } from '../../platform/clock.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import { isAborted } from './aborted.ts'
import type { GatewaySession } from './session.ts'

const STREAM_PATH = '/v1/stream'
/** The server pings every 10 s; silent for longer, the way to it is dead without knowing. */
const SILENT_AFTER_MS = 35_000
const MIN_BACKOFF_MS = 250
const MAX_BACKOFF_MS = 30_000
/** A stream that lasted this long was a good one: the next attempt may come soon. */
const GOOD_AFTER_MS = 30_000
/** What a server may leave unread, and the lines it may send unreadable, before the stream is given up. */
const MAX_UNREAD_BYTES = 4_194_304
const MAX_BAD_LINES = 100

export interface StreamClientOptions {
  readonly session: GatewaySession
  /** A client with the credential of now. */
  readonly connect: () => Pick<ApiClient, 'openStream'>
  readonly clock: Now
  readonly log: Logger
  /** Called when something may have changed in the session. */
  readonly onChange: () => void
}

export class StreamClient {
  readonly #options: StreamClientOptions
  #stream: ApiStream | undefined
  #unreadBytes = 0
  #isRenewed = false
  #wakeUp = new AbortController()

  constructor(options: StreamClientOptions) {
    this.#options = options
  }

  get isConnected(): boolean {
    return this.#stream !== undefined
  }

  /** Lost without harm when nobody is connected: the next stream begins by telling everything again. */
  send(message: UpMessage): void {
    const stream = this.#stream
    if (stream === undefined) return
    const line = JSON.stringify(message)
    this.#unreadBytes = stream.write(line) ? 0 : this.#unreadBytes + line.length
    // A server that does not read would make us keep all of it.
    if (this.#unreadBytes > MAX_UNREAD_BYTES) stream.destroy()
  }

  /** Begins anew at once, with the credential of now. */
  reconnect(): void {
    this.#isRenewed = true
    this.#stream?.destroy()
    this.#wakeUp.abort()
  }

  /** Runs until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const { log } = this.#options
    let failures = 0
    while (!signal.aborted) {
      const startedMs = performance.now()
      this.#isRenewed = false
      try {
        await this.#runOnce(signal)
        log.info('stream ended')
      } catch (err) {
        if (isAborted(signal)) return
        // Told at first, and now and then.
        if (failures % 20 === 0 && !this.#hasRenewed()) log.warn({ err, failures }, 'no stream to the control plane')
      }
      if (this.#hasRenewed()) continue
      failures = performance.now() - startedMs > GOOD_AFTER_MS ? 0 : failures + 1
      await this.#backOff(failures, signal)
    }
  }

  /** Asked anew each time: it changes while we wait. */
  #hasRenewed(): boolean {
    return this.#isRenewed
  }

  /** Full jitter: after an outage a fleet of gateways must not come back all at once. */
  async #backOff(failures: number, signal: AbortSignal): Promise<void> {
    const ceilingMs = Math.min(MAX_BACKOFF_MS, MIN_BACKOFF_MS * 2 ** Math.min(failures, 10))
    this.#wakeUp = new AbortController()
    await sleep(MIN_BACKOFF_MS / 2 + Math.random() * ceilingMs, AbortSignal.any([signal, this.#wakeUp.signal]))
  }

  async #runOnce(signal: AbortSignal): Promise<void> {
    const { session, connect, clock, log, onChange } = this.#options
    const stream = await connect().openStream(STREAM_PATH, { signal })
    const silence = setTimeout(() => stream.destroy(), SILENT_AFTER_MS)
    const onAbort = () => stream.destroy()
    signal.addEventListener('abort', onAbort, { once: true })
    this.#stream = stream
    this.#unreadBytes = 0
    log.info('stream open')
    try {
      session.connected(clock())
      onChange()
      let badLines = 0
      for await (const line of stream.lines) {
        silence.refresh()
        const message = this.#parse(line)
        if (message === undefined) {
          badLines += 1
          if (badLines > MAX_BAD_LINES) throw new CertpeerError('malformed_message', 'too many lines cannot be read')
          continue
        }
        session.receive(message, clock())
        onChange()
      }
    } finally {
      clearTimeout(silence)
      signal.removeEventListener('abort', onAbort)
      this.#stream = undefined
      stream.destroy()
    }
  }

  /** A line that is not a message is passed over: what it may have meant shows as a gap in the revisions. */
  #parse(line: string): DownMessage | undefined {
    try {
      return parseDownMessage(line)
    } catch (err) {
      this.#options.log.warn({ code: errorCode(err) }, 'stream line cannot be read')
      return undefined
    }
  }
}

/** Throws malformed_message or malformed_request; an unknown field is a fault. */
export function parseDownMessage(line: string): DownMessage {
  let json: unknown
  try {
    json = JSON.parse(line)
  } catch (cause) {
    throw new CertpeerError('malformed_message', 'the line is not JSON', { cause })
  }
  return parseMessage(downMessageSchema, json, 'stream message')
}
