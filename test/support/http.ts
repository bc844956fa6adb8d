/** Bytes straight onto a unix socket, for requests that no well-behaved library sends; and a log that can be read. */
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createLogger, type Logger } from '../../src/platform/log.ts'

export interface RawAnswer {
  readonly status: number
  readonly headers: ReadonlyMap<string, string>
  readonly body: string
  readonly json: unknown
  /** Everything received, when there was more than one answer or none. */
  readonly text: string
}

/**
 * Sends the bytes and reads one answer: until its announced length is there, the other side closes, or `idleMs` pass
 * without news. With `all` it reads on after the first answer.
 */
export function rawRequest(
  socketPath: string,
  bytes: string | Buffer,
  options: { idleMs?: number; halfClose?: boolean; all?: boolean } = {},
): Promise<RawAnswer> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath)
    const chunks: Buffer[] = []
    const finish = (): void => {
      socket.destroy()
      resolve(parseAnswer(Buffer.concat(chunks).toString('utf8')))
    }
    socket.setTimeout(options.idleMs ?? 150, finish)
    socket.on('data', (chunk: Buffer) => {
      chunks.push(chunk)
      if (options.all !== true && isWhole(Buffer.concat(chunks).toString('latin1'))) finish()
    })
    socket.on('end', finish)
    socket.on('error', (error) => (chunks.length > 0 ? finish() : reject(error)))
    socket.write(bytes)
    if (options.halfClose === true) socket.end()
  })
}

function isWhole(text: string): boolean {
  const end = text.indexOf('\r\n\r\n')
  if (end === -1) return false
  const length = /\r\ncontent-length: (\d+)/i.exec(text.slice(0, end))?.[1]
  if (length === undefined) return /^HTTP\/1\.1 (?:204|304) /.test(text)
  return text.length >= end + 4 + Number(length)
}

export function parseAnswer(text: string): RawAnswer {
  const [head = '', ...rest] = text.split('\r\n\r\n')
  const [statusLine = '', ...headerLines] = head.split('\r\n')
  const headers = new Map(
    headerLines.map((line): [string, string] => {
      const colon = line.indexOf(':')
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()]
    }),
  )
  const body = rest.join('\r\n\r\n')
  let json: unknown
  try {
    json = JSON.parse(body)
  } catch {
    json = undefined
  }
  return { status: Number(statusLine.split(' ')[1] ?? 0), headers, body, json, text }
}

/** A plain request in bytes; `headers` are whole lines. */
export function requestText(method: string, target: string, headers: readonly string[] = [], body = ''): string {
  return [`${method} ${target} HTTP/1.1`, 'Host: test', ...headers, '', body].join('\r\n')
}

export function jsonRequestText(method: string, target: string, body: string, headers: readonly string[] = []): string {
  const own = ['Content-Type: application/json', `Content-Length: ${Buffer.byteLength(body)}`]
  return requestText(method, target, [...own, ...headers], body)
}

/** Lines as a logger wrote them, parsed. */
export interface CapturedLog {
  readonly log: Logger
  readonly lines: Record<string, unknown>[]
}

export function captureLog(level: 'debug' | 'info' = 'debug'): CapturedLog {
  const lines: Record<string, unknown>[] = []
  const log = createLogger({
    name: 'test',
    level,
    destination: { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
  })
  return { log, lines }
}

/** A short path: sockets allow 107 bytes. */
export function temporaryDirectory(): { path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), 'certpeer-t-'))
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) }
}

export async function until(condition: () => boolean, timeoutMs = 3000): Promise<void> {
  const deadline = Date.now() + timeoutMs
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('the condition did not come true in time')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

export function opened(socketPath: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath, () => resolve(socket))
    socket.once('error', reject)
  })
}
