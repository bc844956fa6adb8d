/** One full-duplex NDJSON exchange on a request and its response. */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Logger } from '../log.ts'
import { readLines } from './ndjson.ts'
import type { StreamDuplex, StreamRoute } from './types.ts'

const NEWLINE = 0x0a

/** `closed` must be the signal of this exchange: it aborts when the response has closed. */
export function createDuplex(
  request: IncomingMessage,
  response: ServerResponse,
  route: StreamRoute,
  closed: AbortSignal,
  log: Logger,
): StreamDuplex {
  return {
    lines: readLines(request, route.maxLineBytes, closed),
    closed,
    write(line) {
      if (typeof line !== 'string' && line.at(-1) !== NEWLINE) throw new TypeError('a line must end with a newline')
      if (closed.aborted || response.writableEnded || response.destroyed) return false
      const bytes = typeof line === 'string' && !line.endsWith('\n') ? `${line}\n` : line
      const goOn = response.write(bytes)
      if (response.writableLength > route.maxQueuedBytes) {
        log.warn({ queuedBytes: response.writableLength }, 'stream cut: its reader stalled')
        response.destroy()
        return false
      }
      return goOn
    },
    drained() {
      if (closed.aborted || !response.writableNeedDrain) return Promise.resolve()
      return new Promise((resolve) => {
        const done = (): void => {
          response.off('drain', done).off('close', done)
          closed.removeEventListener('abort', done)
          resolve()
        }
        response.on('drain', done).on('close', done)
        closed.addEventListener('abort', done)
      })
    },
    queuedBytes: () => response.writableLength,
    end() {
      if (!response.writableEnded) response.end()
    },
  }
}
