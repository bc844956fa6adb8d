/** Messages to gateways as lines, each encoded once whoever gets it. */
import type { DownMessage } from '../../core/messages/stream.ts'
import type { ChangeRow } from '../db/changes.ts'

const NEWLINE = Buffer.from('\n')
const SERIAL = /^[0-9a-f]{2,42}$/

export function encodeDown(message: DownMessage): Buffer {
  return Buffer.from(`${JSON.stringify(message)}\n`, 'utf8')
}

/** A CRL of a million entries is tens of megabytes: joined as bytes, not passed through a JSON text. */
export function encodeCrl(der: Buffer): Buffer {
  return Buffer.concat([
    Buffer.from('{"type":"crl","crl":"'),
    Buffer.from(der.toString('base64'), 'latin1'),
    Buffer.from('"}'),
    NEWLINE,
  ])
}

/**
 * A change as a line. Revisions must stay without a gap, so a row that cannot be what we wrote (no certificate, an
 * over-long one, a serial number that is none) becomes a removal: an unsigned removal only ever removes.
 */
export function encodeChange(network: string, row: ChangeRow): Buffer {
  const { revision } = row
  if (row.kind === 'set' && row.certificate !== null && row.certificate.length > 0) {
    return encodeDown({ type: 'set', network, revision, certificate: row.certificate.toString('base64') })
  }
  return encodeDown({ type: 'remove', network, revision, serial: SERIAL.test(row.serial) ? row.serial : '00' })
}
