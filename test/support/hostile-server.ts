/**
 * A `server` that means harm. It stands behind the real nginx, on the real server's sockets, while the real one is
 * stopped: gateways and devices reach it as they always do, with their certificates, and it says whatever a test wants.
 */
import { chmodSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { DownMessage, UpMessage } from '../../src/core/messages/stream.ts'
import { eventually, type Lab } from './lab.ts'

/** What the listener *api* answers. */
export interface ApiReply {
  readonly status: number
  readonly contentType: string
  readonly body: string | Buffer
}

export class HostileServer implements AsyncDisposable {
  /** What gateways said, in its order. */
  readonly received: UpMessage[] = []
  /** What a gateway is told when it connects. */
  greeting: () => readonly DownMessage[] = () => []
  /** What a device is answered, whatever it asks. */
  answer: (request: IncomingMessage) => ApiReply = () => ({ status: 503, contentType: 'text/plain', body: '' })
  readonly #servers: Server[] = []
  readonly #streams = new Set<ServerResponse>()
  readonly #realPid: number
  readonly #pings: NodeJS.Timeout

  private constructor(realPid: number) {
    this.#realPid = realPid
    this.#pings = setInterval(() => this.say({ type: 'ping' }), 5_000)
  }

  /** Stops the real server of the lab and takes its place. */
  static async takeOver(lab: Lab): Promise<HostileServer> {
    const pid = childOf(lab, 'server')
    const hostile = new HostileServer(pid)
    // Stopped, not ended: `up` would start it again at once.
    process.kill(pid, 'SIGSTOP')
    const run = join(lab.stateDir, 'run')
    await hostile.#listen(join(run, 'server-gateways.sock'), (request, response) => hostile.#stream(request, response))
    await hostile.#listen(join(run, 'server-api.sock'), (request, response) => hostile.#api(request, response))
    return hostile
  }

  get streamCount(): number {
    return this.#streams.size
  }

  /** One message to every gateway that is connected. */
  say(message: DownMessage | Readonly<Record<string, unknown>>): void {
    this.raw(`${JSON.stringify(message)}\n`)
  }

  /** Bytes as they are. False when a reader is behind or has gone. */
  raw(bytes: string | Buffer): boolean {
    return [...this.#streams].map((stream) => stream.write(bytes)).every(Boolean)
  }

  /** Waits until every reader has taken what it was sent, or has gone. */
  async drained(): Promise<void> {
    const waiting = [...this.#streams].filter((stream) => stream.writableNeedDrain && !stream.destroyed)
    const over = (stream: ServerResponse) =>
      new Promise<void>((resolve) => {
        const finish = () => {
          stream.off('drain', finish).off('close', finish)
          resolve()
        }
        stream.on('drain', finish).on('close', finish)
      })
    await Promise.all(waiting.map(over))
  }

  /** Waits until a gateway says what `matches`, from message number `from` on; gives it. */
  async heard<T extends UpMessage>(
    what: string,
    matches: (message: UpMessage) => message is T,
    from = 0,
    timeoutMs = 15_000,
  ): Promise<T> {
    let found: T | undefined
    const look = () => (found = this.received.slice(from).find(matches)) !== undefined
    await eventually(`the gateway says: ${what}`, look, timeoutMs)
    if (found === undefined) throw new Error(what)
    return found
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#pings)
    for (const server of this.#servers) {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    }
    process.kill(this.#realPid, 'SIGCONT')
  }

  async #listen(path: string, serve: (request: IncomingMessage, response: ServerResponse) => void): Promise<void> {
    rmSync(path, { force: true })
    const server = createServer({ requestTimeout: 0 }, serve)
    this.#servers.push(server)
    await new Promise<void>((resolve) => server.listen(path, resolve))
    chmodSync(path, 0o666)
  }

  #stream(request: IncomingMessage, response: ServerResponse): void {
    response.writeHead(200, { 'content-type': 'application/x-ndjson' })
    response.flushHeaders()
    this.#streams.add(response)
    response.on('close', () => this.#streams.delete(response))
    response.on('error', () => response.destroy())
    request.on('error', () => response.destroy())
    createInterface({ input: request })
      .on('error', () => response.destroy())
      .on('line', (line) => {
        const message = JSON.parse(line) as UpMessage
        this.received.push(message)
        if (message.type === 'hello') for (const down of this.greeting()) response.write(`${JSON.stringify(down)}\n`)
      })
  }

  #api(request: IncomingMessage, response: ServerResponse): void {
    request.resume()
    const { status, contentType, body } = this.answer(request)
    response.on('error', () => response.destroy())
    response.writeHead(status, { 'content-type': contentType }).end(body)
  }
}

/** The process id of a child of `certpeer up` by its role. */
export function childOf(lab: Lab, role: string): number {
  const up = lab.upPid ?? 0
  const children = readFileSync(`/proc/${up}/task/${up}/children`, 'utf8').trim().split(' ').map(Number)
  for (const pid of children) {
    const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
    if (words[1]?.endsWith('certpeer.js') === true && words[2] === role) return pid
  }
  throw new Error(`up has no child ${role}`)
}
