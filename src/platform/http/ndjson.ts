/** Newline-delimited JSON on a byte stream, both ends: bounded lines in, lines encoded once out. */
import type { Readable } from 'node:stream'
import { CertpeerError } from '../../core/errors.ts'
import { decodeUtf8 } from './json.ts'

export const NDJSON_TYPE = 'application/x-ndjson'

const NEWLINE = 0x0a

/** One message as the bytes of its line; make it once, write it to many. */
export function encodeLine(message: unknown): Buffer {
  return Buffer.from(`${JSON.stringify(message)}\n`, 'utf8')
}

/**
 * Lines of a stream, without their newline; empty lines are skipped and a last line needs its newline (one without was
 * cut off). Ends quietly when the stream ends or breaks off, and when the signal aborts. Throws malformed_message on a line over `maxLineBytes` or
 * bytes that are not UTF-8; at most that much is ever kept.
 */
export async function* readLines(
  stream: Readable,
  maxLineBytes: number,
  signal?: AbortSignal,
): AsyncGenerator<string, void, undefined> {
  let parts: Buffer[] = []
  let partsBytes = 0
  for await (const chunk of chunksOf(stream, signal)) {
    let start = 0
    for (;;) {
      const end = chunk.indexOf(NEWLINE, start)
      const piece = chunk.subarray(start, end === -1 ? chunk.length : end)
      if (partsBytes + piece.length > maxLineBytes) {
        throw new CertpeerError('malformed_message', `a line is longer than ${maxLineBytes} bytes`)
      }
      if (end === -1) {
        if (piece.length > 0) parts.push(piece)
        partsBytes += piece.length
        break
      }
      const line = parts.length === 0 ? piece : Buffer.concat([...parts, piece])
      parts = []
      partsBytes = 0
      start = end + 1
      if (line.length > 0) yield decodeUtf8(line, 'a line', 'malformed_message')
    }
  }
}

/** The stream's own iterator destroys it when the reader stops early, which would take the other direction along. */
async function* chunksOf(stream: Readable, signal: AbortSignal | undefined): AsyncGenerator<Buffer, void, undefined> {
  const chunks = stream.iterator({ destroyOnReturn: false })[Symbol.asyncIterator]()
  let stop = (): void => undefined
  const onAbort = (): void => stop()
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    while (signal?.aborted !== true) {
      // A promise of its own for each chunk: racing one that lives as long as the stream would keep every loser.
      const chunk = await new Promise<Buffer | undefined>((resolve, reject) => {
        stop = () => resolve(undefined)
        chunks.next().then((result) => resolve(result.done === true ? undefined : (result.value as Buffer)), reject)
      })
      if (chunk === undefined) return
      yield chunk
    }
  } catch (error) {
    // A peer that went away in the middle: the lines are over, and who holds the stream learns it from `closed`.
    if (stream.destroyed) return
    throw error
  } finally {
    signal?.removeEventListener('abort', onAbort)
  }
}
