/**
 * The load generator, a process of its own: HTTP/1.1 written by hand on kept-alive TLS connections, so that little of
 * what is measured is the client. Each connection shows its own device certificate. Any answer but 200 ends the run.
 */
import { connect as connectTcp } from 'node:net'
import { connect, type TLSSocket } from 'node:tls'
import { percentile } from './figures.ts'
import type { LoadAnswer, LoadMessage, OpenMessage, RunMessage, RunResult } from './load-messages.ts'

const REQUESTS = ['PUT', 'DELETE'].map((method) =>
  Buffer.from(`${method} /v1/peer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n`),
)
const HEAD_END = Buffer.from('\r\n\r\n')
const LENGTH = Buffer.from('content-length: ')
/** Callers come from as many addresses, because the service counts requests per address. */
const SOURCE_ADDRESSES = 32
const OPENING_AT_ONCE = 16

class Connection {
  readonly #socket: TLSSocket
  readonly #onAnswer: (connection: Connection, error?: Error) => void
  #received: Buffer[] = []
  #receivedBytes = 0
  #wantedBytes = 0
  /** The number of requests sent: even ones put, odd ones delete. */
  sent = 0
  startedMs = 0

  constructor(socket: TLSSocket, onAnswer: (connection: Connection, error?: Error) => void) {
    this.#socket = socket
    this.#onAnswer = onAnswer
    socket.setNoDelay(true)
    socket.on('data', (chunk: Buffer) => this.#take(chunk))
    socket.on('error', (error: Error) => onAnswer(this, error))
    socket.on('close', () => onAnswer(this, new Error('the connection was closed')))
  }

  send(): void {
    this.startedMs = performance.now()
    const request = REQUESTS[this.sent % 2]
    if (request === undefined) throw new TypeError('no request')
    this.sent += 1
    this.#socket.write(request)
  }

  close(): void {
    this.#socket.removeAllListeners('close').destroy()
  }

  #take(chunk: Buffer): void {
    this.#received.push(chunk)
    this.#receivedBytes += chunk.length
    if (this.#receivedBytes < this.#wantedBytes) return
    const bytes = this.#received.length === 1 ? chunk : Buffer.concat(this.#received)
    const end = bytes.indexOf(HEAD_END)
    if (end === -1) return
    // `HTTP/1.1 200`, byte by byte where the digits stand.
    const status = bytes.toString('latin1', 9, 12)
    const at = lowerCaseHead(bytes, end).indexOf(LENGTH)
    if (status !== '200' || at === -1) {
      this.#onAnswer(this, new Error(`refused: ${bytes.toString('utf8').slice(0, 600)}`))
      return
    }
    this.#wantedBytes =
      end + HEAD_END.length + Number.parseInt(bytes.toString('latin1', at + LENGTH.length, at + 26), 10)
    if (bytes.length < this.#wantedBytes) {
      this.#received = [bytes]
      return
    }
    if (bytes.length > this.#wantedBytes) throw new Error('more than one answer to one request')
    this.#received = []
    this.#receivedBytes = 0
    this.#wantedBytes = 0
    this.#onAnswer(this)
  }
}

/** nginx passes header names as the application wrote them. */
function lowerCaseHead(bytes: Buffer, end: number): Buffer {
  const exact = bytes.subarray(0, end)
  return exact.includes(LENGTH) ? exact : Buffer.from(exact.toString('latin1').toLowerCase(), 'latin1')
}

let connections: Connection[] = []
let onAnswer: (connection: Connection, error?: Error) => void = () => undefined

async function open({ port, rootPem, devices }: OpenMessage): Promise<void> {
  const waiting = devices.map((device, index) => ({ device, index }))
  const openNext = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const { device, index } = next
      const localAddress = `127.0.0.${2 + (index % SOURCE_ADDRESSES)}`
      const socket = connect({
        socket: connectTcp({ host: '127.0.0.1', port, localAddress }),
        host: '127.0.0.1',
        ca: rootPem,
        cert: device.certificate,
        key: device.key,
        minVersion: 'TLSv1.3',
      })
      await new Promise<void>((resolve, reject) => {
        socket.once('secureConnect', resolve)
        socket.once('error', reject)
      })
      connections.push(new Connection(socket, (connection, error) => onAnswer(connection, error)))
    }
  }
  await Promise.all(Array.from({ length: OPENING_AT_ONCE }, openNext))
}

function run({ inFlight, durationMs }: RunMessage): Promise<RunResult> {
  const idle = [...connections]
  const latencies: number[] = []
  const cpuBefore = process.cpuUsage()
  const startedMs = performance.now()
  const deadlineMs = startedMs + durationMs
  let underWay = 0
  const begin = (): void => {
    // First in, first out: every connection gets its turn.
    const connection = idle.shift()
    if (connection === undefined) return
    underWay += 1
    connection.send()
  }
  return new Promise((resolve, reject) => {
    onAnswer = (connection, error) => {
      if (error !== undefined) {
        reject(error)
        return
      }
      const nowMs = performance.now()
      latencies.push(nowMs - connection.startedMs)
      underWay -= 1
      idle.push(connection)
      if (nowMs < deadlineMs) {
        begin()
        return
      }
      if (underWay > 0) return
      const { user, system } = process.cpuUsage(cpuBefore)
      resolve({
        type: 'ran',
        requests: latencies.length,
        elapsedMs: nowMs - startedMs,
        p50Ms: percentile(latencies, 0.5),
        p99Ms: percentile(latencies, 0.99),
        put: connections.filter(({ sent }) => sent % 2 === 1).length,
        cpuMs: (user + system) / 1000,
      })
    }
    for (let n = 0; n < inFlight; n += 1) begin()
  })
}

function close(): void {
  onAnswer = () => undefined
  for (const connection of connections) connection.close()
  connections = []
}

async function obey(message: LoadMessage): Promise<LoadAnswer> {
  switch (message.type) {
    case 'open':
      await open(message)
      return { type: 'done' }
    case 'run':
      return run(message)
    case 'close':
      close()
      return { type: 'done' }
    default:
      return message satisfies never
  }
}

process.on('message', (message: LoadMessage) => {
  void obey(message)
    .catch((error: unknown): LoadAnswer => ({ type: 'failed', message: String(error) }))
    .then((answer) => process.send?.(answer))
})
process.on('disconnect', () => process.exit(0))
