/**
 * LISTEN on a connection of its own, back again by itself after every loss. A notification is a hint that there is
 * something to read, never the thing itself: those sent while the connection was away are gone.
 */
import pg from 'pg'
import { sleep } from '../lifecycle.ts'
import type { Logger } from '../log.ts'

export interface ListenOptions {
  readonly url: string
  /** Constant names of ours. */
  readonly channels: readonly string[]
  readonly log: Logger
  /** Ends listening for good. */
  readonly signal: AbortSignal
  readonly onNotify: (channel: string, payload: string) => void
  /** Called each time listening has begun, the first time too: read now what may have been missed. */
  readonly onReconnect: () => void
  /** For tests. */
  readonly heartbeatMs?: number
}

const FIRST_DELAY_MS = 50
const MAX_DELAY_MS = 5_000
const CONNECT_TIMEOUT_MS = 5_000
/** A connection that a firewall forgot says nothing: it is asked. */
const HEARTBEAT_MS = 15_000

/**
 * Resolves when listening has begun for the first time, however long that takes, or when the signal aborts. Never
 * rejects: a database that is away is waited for.
 */
export function listen(options: ListenOptions): Promise<void> {
  for (const channel of options.channels) {
    if (!/^[a-z_]+$/.test(channel)) throw new TypeError(`not a channel name: ${channel}`)
  }
  return new Promise((resolve) => {
    void keepListening(options, resolve).finally(resolve)
  })
}

async function keepListening(options: ListenOptions, begun: () => void): Promise<void> {
  const { log, signal } = options
  let delayMs = FIRST_DELAY_MS
  for (;;) {
    const reason = await listenOnce(options, () => {
      delayMs = FIRST_DELAY_MS
      begun()
    })
    if (signal.aborted) return
    log.warn({ err: reason, retryMs: delayMs }, 'notifications lost, connecting again')
    await sleep(delayMs, signal)
    delayMs = Math.min(delayMs * 2, MAX_DELAY_MS)
  }
}

/** One connection's life; resolves with why it ended. */
async function listenOnce(options: ListenOptions, begun: () => void): Promise<unknown> {
  if (options.signal.aborted) return undefined
  const client = new pg.Client({
    connectionString: options.url,
    application_name: 'certpeer-listen',
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    query_timeout: CONNECT_TIMEOUT_MS,
    keepAlive: true,
  })
  let heartbeat: NodeJS.Timeout | undefined
  let finish: (reason: unknown) => void = () => undefined
  const ended = new Promise<unknown>((resolve) => {
    finish = resolve
  })
  const onAbort = (): void => finish(undefined)
  // A killed backend gives two `error` events and then `end`; a stopped server may give `end` alone.
  client.on('error', finish)
  client.on('end', () => finish(new Error('the connection ended')))
  client.on('notification', ({ channel, payload }) => {
    guard(options.log, () => options.onNotify(channel, payload ?? ''))
  })
  options.signal.addEventListener('abort', onAbort, { once: true })
  try {
    await client.connect()
    for (const channel of options.channels) await client.query(`listen ${channel}`)
    begun()
    guard(options.log, options.onReconnect)
    heartbeat = setInterval(() => {
      client.query('select 1').catch(finish)
    }, options.heartbeatMs ?? HEARTBEAT_MS)
    return await ended
  } catch (error) {
    return error
  } finally {
    clearInterval(heartbeat)
    options.signal.removeEventListener('abort', onAbort)
    // Ending a connection that is already gone may wait for ever; nobody needs to know.
    client.end().catch(() => undefined)
  }
}

/** A fault of the listener must not end the listening. */
function guard(log: Logger, call: () => void): void {
  try {
    call()
  } catch (error) {
    log.error({ err: error }, 'notification not handled')
  }
}
