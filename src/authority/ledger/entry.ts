/**
 * What the ledger's entries say: one JSON object each, DER in base64, instants in RFC 3339. The authority writes them
 * and nobody else; reading checks the kind, and the signed checkpoints vouch for the rest.
 */
import { CertpeerError } from '../../core/errors.ts'
import type { RevocationReason, Role } from '../../core/messages/common.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import type { Serial } from '../../core/x509/serial.ts'

/** Roles of certificates with an identity, and the delegated OCSP signers, which have none. */
export type CertificateRole = Role | 'ocsp-signer'

interface Common {
  /** When the authority wrote it, by its own clock. */
  readonly at: string
}

/** Entry 0: whose ledger this is. */
export interface GenesisEntry extends Common {
  readonly kind: 'genesis'
  readonly version: 1
  readonly trustDomain: string
  readonly pen: number
  /** SHA-256 of the root certificate's DER, hex. */
  readonly root: string
}

/** An enrollment token was made. A token that no entry names is not accepted, whoever computed its HMAC. */
export interface TokenEntry extends Common {
  readonly kind: 'token'
  readonly jti: string
  /** SHA-256 of the claims segment, hex. */
  readonly claimsHash: string
  readonly role: Role
  readonly name: string
  readonly tenant: string
  readonly networks: readonly string[]
  readonly groups: readonly string[]
  readonly possession: boolean
  readonly replace: boolean
  readonly expiresAt: string
  /** Identity of the operator who asked. */
  readonly operator: string
}

/**
 * A certificate is issued: from here on its serial, key and addresses count, whether or not the signature was released.
 * The facts beside the TBSCertificate were read back from it by the lint, so that a restart need not parse every one.
 */
export interface CertificateEntry extends Common {
  readonly kind: 'certificate'
  readonly issuerKeyId: string
  /** TBSCertificate, base64 DER: exactly the bytes that are signed. */
  readonly tbs: string
  readonly serial: Serial
  readonly role: CertificateRole
  /** SPIFFE ID; empty for an OCSP signer. */
  readonly uri: string
  readonly name: string
  readonly tenant?: string
  /** `<tenant>/<network>`: the one of a device, all that a gateway serves. */
  readonly networks: readonly string[]
  readonly groups: readonly string[]
  readonly key?: WireGuardKey
  readonly possession?: boolean
  /** Host addresses with their length, as in the certificate: a device's own and its key address, a gateway's tunnel addresses. */
  readonly addresses: readonly string[]
  readonly notBefore: string
  readonly notAfter: string
  /** Until when key and addresses stay withheld from others; absent when it carries none. */
  readonly heldUntil?: string
  /** SHA-256 of the CSR, hex; the same CSR gets the same certificate again. */
  readonly csrHash?: string
  /** The token this spends. */
  readonly jti?: string
  /** The certificate that a renewal showed. */
  readonly renewed?: Serial
  /** Identities that this one takes the place of: their certificates are revoked (superseded) in the same instant. */
  readonly replaces?: readonly string[]
}

/** The signature that was released for a certificate, so that asking again yields the same bytes. */
export interface SignatureEntry extends Common {
  readonly kind: 'signature'
  readonly serial: Serial
  readonly signature: string
}

/** An identity (all its certificates, renewals and unspent tokens) or one certificate is revoked. */
export interface RevocationEntry extends Common {
  readonly kind: 'revocation'
  readonly target: { readonly uri: string } | { readonly serial: Serial }
  readonly reason: RevocationReason
  readonly operator: string
}

export interface NetworkEntry extends Common {
  readonly kind: 'network'
  /** The signed document; its payload is what counts. */
  readonly jws: string
  readonly operator: string
}

/** A CRL number is taken. */
export interface CrlEntry extends Common {
  readonly kind: 'crl'
  readonly issuerKeyId: string
  readonly number: string
}

/** Something an auditor wants to find that changes nothing else. */
export interface ActEntry extends Common {
  readonly kind: 'act'
  readonly act: 'token-alarm'
  readonly jti: string
  readonly detail: string
}

export type Entry =
  GenesisEntry | TokenEntry | CertificateEntry | SignatureEntry | RevocationEntry | NetworkEntry | CrlEntry | ActEntry

const KINDS: ReadonlySet<unknown> = new Set<Entry['kind']>([
  'genesis',
  'token',
  'certificate',
  'signature',
  'revocation',
  'network',
  'crl',
  'act',
])

export function encodeEntry(entry: Entry): Buffer {
  return Buffer.from(JSON.stringify(entry), 'utf8')
}

/** Throws ledger_corrupt for what this version does not know: guessing at what was decided is worse than not starting. */
export function readEntry(payload: Buffer, index: number): Entry {
  let value: unknown
  try {
    value = JSON.parse(payload.toString('utf8'))
  } catch {
    throw new CertpeerError('ledger_corrupt', `ledger entry ${index} is not JSON`)
  }
  if (typeof value !== 'object' || value === null || !('kind' in value) || !KINDS.has(value.kind)) {
    throw new CertpeerError(
      'ledger_corrupt',
      `ledger entry ${index} is of a kind this version does not know; use a newer one`,
    )
  }
  return value as Entry // written by us alone and covered by a signed checkpoint, see above
}
