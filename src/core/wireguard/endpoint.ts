/** Endpoints as a WireGuard device takes them: a numeric address and a port. Names are resolved before. */
import { CertpeerError } from '../errors.ts'
import { formatAddress, parseAddress } from '../ipam/prefix.ts'

/** Checks `192.0.2.1:51820` or `[2001:db8::1]:51820` and gives its canonical text; throws malformed_request. */
export function parseNumericEndpoint(text: string): string {
  const match = /^(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15})):([1-9][0-9]{0,4})$/.exec(text)
  const port = Number(match?.[3])
  const address = match?.[1] ?? match?.[2]
  if (address === undefined || port > 65_535) throw malformed(text)
  const { family, bits } = parseAddress(address)
  if ((family === 6) !== (match?.[1] !== undefined)) throw malformed(text)
  const canonical = formatAddress(bits, family)
  return family === 6 ? `[${canonical}]:${port}` : `${canonical}:${port}`
}

function malformed(text: string): CertpeerError {
  return new CertpeerError(
    'malformed_request',
    `endpoint ${JSON.stringify(text.slice(0, 80))} must be ADDRESS:PORT, IPv6 in brackets`,
  )
}
