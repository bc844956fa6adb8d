/** Reads one request body: announced and real size bounded, in bounded time, of the type that the route takes. */
import type { IncomingMessage } from 'node:http'
import { CertpeerError } from '../../core/errors.ts'
import { decodeUtf8, parseJson } from './json.ts'
import type { PlainRoute } from './types.ts'

/** A body that trickles in slower than this whole is a held connection, not a request. */
export const BODY_TIMEOUT_MS = 10_000

/** Thrown within platform/http alone: the same refusal, with the status HTTP has for a body that does not come. */
export class BodyTimeout extends CertpeerError {
  readonly status = 408
}

export async function readBody(request: IncomingMessage, route: PlainRoute, timeoutMs: number): Promise<unknown> {
  const { headers } = request
  const announced = headers['content-length'] === undefined ? undefined : Number(headers['content-length'])
  const hasBody = headers['transfer-encoding'] !== undefined || (announced ?? 0) > 0
  if (route.bodyType === 'none') {
    if (hasBody) throw new CertpeerError('body_too_large', 'this request takes no body')
    return undefined
  }
  checkType(request, route)
  if ((announced ?? 0) > route.maxBytes) throw tooLarge(route.maxBytes)
  const bytes = hasBody ? await collect(request, route.maxBytes, timeoutMs) : Buffer.alloc(0)
  if (route.bodyType === 'raw') return bytes
  return parseJson(decodeUtf8(bytes, 'body'))
}

/** The media type without its parameters, lower case; only charset=utf-8 may stand beside it. */
export function mediaType(request: IncomingMessage): string {
  const [type = '', ...parameters] = (request.headers['content-type'] ?? '').split(';')
  const known = parameters.every((parameter) => /^\s*charset\s*=\s*"?utf-8"?\s*$/i.test(parameter))
  return known ? type.trim().toLowerCase() : ''
}

function checkType(request: IncomingMessage, route: PlainRoute): void {
  const encoding = request.headers['content-encoding']
  if (encoding !== undefined && encoding.toLowerCase() !== 'identity') {
    throw new CertpeerError('unsupported_media_type', 'a compressed body is not taken')
  }
  if (route.contentTypes !== undefined && !route.contentTypes.includes(mediaType(request))) {
    throw new CertpeerError('unsupported_media_type', `the body must be ${route.contentTypes.join(' or ')}`)
  }
}

function tooLarge(maxBytes: number): CertpeerError {
  return new CertpeerError('body_too_large', `the body is larger than ${maxBytes} bytes`)
}

function collect(request: IncomingMessage, maxBytes: number, timeoutMs: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let total = 0
    const timer = setTimeout(() => finish(new BodyTimeout('timeout', 'the body did not arrive in time')), timeoutMs)
    const onData = (chunk: Buffer): void => {
      total += chunk.length
      if (total > maxBytes) finish(tooLarge(maxBytes))
      else chunks.push(chunk)
    }
    const onEnd = (): void => finish(undefined)
    // 'close' without 'end' is a caller that went away; nobody will read the answer.
    const onClose = (): void => finish(new CertpeerError('malformed_request', 'the body broke off'))
    function finish(error: CertpeerError | undefined): void {
      clearTimeout(timer)
      request.off('data', onData).off('end', onEnd).off('error', onClose).off('close', onClose)
      if (error === undefined) {
        const [only] = chunks
        resolve(chunks.length === 1 && only !== undefined ? only : Buffer.concat(chunks, total))
      } else {
        request.pause()
        reject(error)
      }
    }
    request.on('data', onData).on('end', onEnd).on('error', onClose).on('close', onClose)
  })
}
