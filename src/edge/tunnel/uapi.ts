/**
 * A userspace WireGuard device over its control socket (https://www.wireguard.com/xplatform/). One connection is kept:
 * many small changes over it cost a quarter of what a connection each does.
 *
 * What the socket does not forgive, and what is done about it here: a request that never ends blocks every other
 * writer, so a request is one write that ends in a blank line, and a connection that does not answer in time is
 * destroyed; a large request blocks others while it runs, so there are at most 1 000 peers in one.
 */
import { connect, type Socket } from 'node:net'
import { CertpeerError } from '../../core/errors.ts'
import type { DeviceState, PeerChange } from '../../core/wireguard/types.ts'
import { encodeSet, parseGet, parseSetAnswer, UAPI_GET } from '../../core/wireguard/uapi.ts'
import { readSecretFile } from '../../platform/files.ts'
import type { ConfigurableDevice } from './port.ts'

export const UAPI_DIRECTORY = '/var/run/wireguard'

/** Peers in one write. */
const MAX_CHANGES = 1000
/** Reading 65 536 peers takes about 1.5 s on a small machine. */
const TIMEOUT_MS = 15_000
/** 65 536 peers with three AllowedIPs each are about 22 MB. */
const MAX_ANSWER_BYTES = 128 * 1024 * 1024
/** The errno of "address already in use" on Linux. */
const EADDRINUSE = 98

export interface UapiOptions {
  readonly socketPath: string
  readonly timeoutMs?: number
  /** Called when the kept connection ends without our doing: the process behind it has gone. */
  readonly onLost?: () => void
}

export class UapiDevice implements ConfigurableDevice {
  readonly #options: UapiOptions
  #connection: Connection | undefined
  /** Requests wait for each other: answers carry no number. */
  #tail: Promise<unknown> = Promise.resolve()
  #closed = false

  constructor(options: UapiOptions) {
    this.#options = options
  }

  async read(): Promise<DeviceState> {
    return parseGet(await this.#request(UAPI_GET))
  }

  async apply(changes: readonly PeerChange[]): Promise<void> {
    // Encoded, and so checked, before the first byte is written: a bad line half-way leaves what stood before it applied.
    const requests: string[] = []
    for (let start = 0; start < changes.length; start += MAX_CHANGES) {
      requests.push(encodeSet({ changes: changes.slice(start, start + MAX_CHANGES) }))
    }
    for (const request of requests) parseSetAnswer(await this.#request(request))
  }

  async setIdentity({ privateKeyFile, listenPort }: { privateKeyFile: string; listenPort?: number }): Promise<void> {
    const text = (await readSecretFile(privateKeyFile, 'the WireGuard private key')).trim()
    const privateKey = Buffer.from(text, 'base64')
    if (privateKey.length !== 32 || privateKey.toString('base64') !== text) {
      throw new CertpeerError('config_invalid', `${privateKeyFile} does not hold a WireGuard private key`)
    }
    try {
      const request = encodeSet({ privateKey, ...(listenPort !== undefined && { listenPort }), changes: [] })
      const answer = await this.#request(request)
      if (listenPort !== undefined && answer.endsWith(`errno=-${EADDRINUSE}\n\n`)) {
        throw new CertpeerError('port_in_use', `UDP port ${listenPort} is in use by another program`)
      }
      parseSetAnswer(answer)
    } finally {
      privateKey.fill(0)
    }
  }

  close(): void {
    this.#closed = true
    this.#connection?.destroy()
    this.#connection = undefined
  }

  #request(text: string): Promise<string> {
    const answer = this.#tail.then(() => this.#exchange(text))
    this.#tail = answer.catch(() => undefined)
    return answer
  }

  async #exchange(text: string): Promise<string> {
    if (this.#closed) throw unreachable(this.#options.socketPath, 'it was closed by us')
    const timeoutMs = this.#options.timeoutMs ?? TIMEOUT_MS
    const kept = this.#connection
    if (kept !== undefined && !kept.ended) {
      const answer = await kept.exchange(text, timeoutMs)
      if (answer !== undefined) return answer
      // It ended while nobody was looking. Every request is idempotent, so it may be sent again, on a new connection.
    }
    const connection = await openConnection(this.#options.socketPath, timeoutMs, () => {
      if (this.#connection !== connection) return
      this.#connection = undefined
      if (!this.#closed) this.#options.onLost?.()
    })
    this.#connection = connection
    const answer = await connection.exchange(text, timeoutMs)
    if (answer === undefined) throw unreachable(this.#options.socketPath, 'it hung up')
    return answer
  }
}

/** True when a process answers behind the socket; a file that a killed process left behind is not one. */
export async function isUapiAlive(socketPath: string, timeoutMs = 2000): Promise<boolean> {
  try {
    const connection = await openConnection(socketPath, timeoutMs, () => undefined)
    connection.destroy()
    return true
  } catch {
    return false
  }
}

interface Connection {
  readonly ended: boolean
  /** The whole answer; undefined when the connection ended first. Throws timeout, and then it is destroyed. */
  exchange(text: string, timeoutMs: number): Promise<string | undefined>
  destroy(): void
}

function openConnection(socketPath: string, timeoutMs: number, onEnd: () => void): Promise<Connection> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath)
    const timer = setTimeout(() => socket.destroy(new Error(`no connection within ${timeoutMs} ms`)), timeoutMs)
    socket.once('error', (cause) => {
      clearTimeout(timer)
      reject(unreachable(socketPath, reasonOf(cause), cause))
    })
    socket.once('connect', () => {
      clearTimeout(timer)
      socket.removeAllListeners('error')
      // An idle connection must not keep the process alive.
      socket.unref()
      resolve(wrap(socket, socketPath, onEnd))
    })
  })
}

function wrap(socket: Socket, socketPath: string, onEnd: () => void): Connection {
  // Keys are in the answers: they are kept as bytes only until they are parsed, and never logged.
  let chunks: Buffer[] = []
  let bytes = 0
  let waiting: { resolve: (answer: string | undefined) => void; reject: (error: Error) => void } | undefined
  let ended = false
  const finish = () => {
    if (ended) return
    ended = true
    socket.destroy()
    waiting?.resolve(undefined)
    onEnd()
  }
  socket.on('data', (chunk: Buffer) => {
    chunks.push(chunk)
    bytes += chunk.length
    if (bytes > MAX_ANSWER_BYTES) {
      waiting?.reject(new CertpeerError('device_failed', `${socketPath} answers without end`))
      finish()
      return
    }
    if (!endsInBlankLine(chunks)) return
    const answer = Buffer.concat(chunks)
    chunks = []
    bytes = 0
    waiting?.resolve(answer.toString('latin1'))
    answer.fill(0)
  })
  socket.on('error', finish)
  socket.on('end', finish)
  socket.on('close', finish)
  return {
    get ended() {
      return ended
    },
    async exchange(text, timeoutMs) {
      if (ended) return undefined
      socket.ref()
      let timer: NodeJS.Timeout | undefined
      try {
        return await new Promise<string | undefined>((resolve, reject) => {
          waiting = { resolve, reject }
          timer = setTimeout(() => {
            reject(new CertpeerError('timeout', `${socketPath} did not answer within ${timeoutMs} ms`))
            finish()
          }, timeoutMs)
          socket.write(text, 'latin1')
        })
      } finally {
        clearTimeout(timer)
        waiting = undefined
        socket.unref()
      }
    },
    destroy: finish,
  }
}

function endsInBlankLine(chunks: readonly Buffer[]): boolean {
  const last = chunks.at(-1)
  if (last?.at(-1) !== 0x0a) return false
  const previous = last.length > 1 ? last.at(-2) : chunks.at(-2)?.at(-1)
  return previous === 0x0a
}

function unreachable(socketPath: string, reason: string, cause?: unknown): CertpeerError {
  return new CertpeerError('unavailable', `the WireGuard device behind ${socketPath} cannot be reached: ${reason}`, {
    cause,
  })
}

function reasonOf(error: Error): string {
  return 'code' in error ? String(error.code) : error.message
}
