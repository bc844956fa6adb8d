/** The client certificate that nginx verified, as one strict reading of two headers (nginx/snippets/client-cert.conf). */
import { CertpeerError } from '../../core/errors.ts'
import type { RouteHead } from './types.ts'

const MAX_HEADER_BYTES = 16_384
/** What nginx writes into $ssl_client_escaped_cert: unreserved characters and upper-case escapes, nothing else. */
const ESCAPED = /^(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+$/
const PEM =
  /^-----BEGIN CERTIFICATE-----\n((?:[A-Za-z0-9+/]{1,76}\n)*[A-Za-z0-9+/]{1,74}={0,2}\n)-----END CERTIFICATE-----\n?$/

/**
 * DER of the certificate the caller showed to nginx. Throws client_certificate_required when there was none, and
 * bad_client_certificate when the headers say anything but one verified certificate. Says nothing about trust: whoever
 * calls verifies the certificate again, under the pinned root.
 */
export function clientCertificate(request: Pick<RouteHead, 'headers'>): Buffer {
  const verify = request.headers['x-client-verify']
  const escaped = request.headers['x-client-cert']
  if (verify === undefined || verify === '' || verify === 'NONE') {
    throw new CertpeerError('client_certificate_required', 'this listener needs a client certificate')
  }
  // A header sent twice arrives joined by a comma, and matches neither form.
  if (verify !== 'SUCCESS') {
    throw new CertpeerError('bad_client_certificate', 'the client certificate was not verified')
  }
  if (typeof escaped !== 'string' || escaped === '') {
    throw new CertpeerError('client_certificate_required', 'this listener needs a client certificate')
  }
  if (escaped.length > MAX_HEADER_BYTES) {
    throw new CertpeerError('bad_client_certificate', 'the client certificate is too large')
  }
  const base64 = ESCAPED.test(escaped) ? PEM.exec(decodeEscapes(escaped))?.[1] : undefined
  if (base64 === undefined)
    throw new CertpeerError('bad_client_certificate', 'the client certificate is not one PEM block')
  const text = base64.replaceAll('\n', '')
  const der = Buffer.from(text, 'base64')
  if (der.toString('base64') !== text) {
    throw new CertpeerError('bad_client_certificate', 'the client certificate is not canonical base64')
  }
  return der
}

/** Escapes of ASCII only, so no UTF-8 rules apply; decodeURIComponent would throw a URIError on %FF. */
function decodeEscapes(text: string): string {
  return text.replace(/%([0-9A-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
}
