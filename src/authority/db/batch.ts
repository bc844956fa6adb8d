/** Ledger entries turned into the rows they stand for: pure but for signatures that are not in memory any more. */
import { parsePrefix, formatAddress } from '../../core/ipam/prefix.ts'
import { parseIdentity } from '../../core/x509/identity.ts'
import { assembleSigned } from '../../core/x509/encode.ts'
import { wireGuardKeyToHex } from '../../core/wireguard/key.ts'
import { findIssuerByKeyId, type Authority } from '../authority.ts'
import { getSigned } from '../issuing/issue.ts'
import { signVerified } from '../issuing/signer.ts'
import type { CertificateEntry, Entry, NetworkEntry } from '../ledger/entry.ts'
import { parseJws } from '../../core/messages/jws.ts'
import { NETWORK_DOCUMENT_TYPE } from '../../core/messages/network-document.ts'
import { networkDocumentSchema } from '../../core/messages/network.ts'

export interface IndexedEntry {
  readonly entry: Entry
  readonly index: number
}

export interface CertificateRow {
  readonly serial: string
  readonly issuer_key_id: string
  readonly identity: string
  /** Of a device: the random part of its identity. */
  readonly id: string
  readonly name: string
  readonly role: string
  readonly tenant: string | null
  readonly network: string | null
  readonly networks: readonly string[]
  readonly groups: readonly string[]
  readonly addresses: readonly string[]
  readonly wireguard_key: string | null
  readonly possession: boolean | null
  /** Hex. */
  readonly der: string
  readonly not_before: string
  readonly not_after: string
  readonly held_until: string | null
  readonly ledger_index: number
  readonly issued_at: string
}

export interface NetworkRow {
  readonly tenant: string
  readonly name: string
  readonly document: string
  readonly document_number: number
}

/** Certificates that one ledger entry revoked, and the identities that it ended. */
export interface RevocationRow {
  readonly ledgerIndex: number
  readonly revokedAt: string
  readonly reason: string
  readonly serials: readonly string[]
  readonly issuerKeyIds: readonly string[]
  readonly networks: readonly string[]
  readonly identities: readonly string[]
}

/** In the order of the ledger, so that the newest word on an identity is the last. */
export type Step =
  | { readonly kind: 'network'; readonly row: NetworkRow }
  | { readonly kind: 'certificates'; readonly rows: CertificateRow[] }
  | { readonly kind: 'revocation'; readonly row: RevocationRow }

export interface Batch {
  readonly steps: readonly Step[]
  /** `<tenant>/<network>` that revocations touch: locked first, in one order. */
  readonly networksToLock: readonly string[]
  readonly size: number
}

export async function collectBatch(authority: Authority, entries: readonly IndexedEntry[]): Promise<Batch> {
  const steps: Step[] = []
  const revoked = revokedByIndex(authority, entries)
  for (const { entry, index } of entries) {
    switch (entry.kind) {
      case 'network':
        steps.push({ kind: 'network', row: networkRow(entry) })
        break
      case 'revocation':
        steps.push({
          kind: 'revocation',
          row: revocationRow(revoked, index, entry.at, entry.reason, 'uri' in entry.target ? [entry.target.uri] : []),
        })
        break
      case 'certificate': {
        const ended = entry.replaces ?? []
        if (ended.length > 0) {
          const identities = ended.filter((uri) => uri !== entry.uri)
          steps.push({ kind: 'revocation', row: revocationRow(revoked, index, entry.at, 'superseded', identities) })
        }
        if (entry.role === 'ocsp-signer') break
        const row = await certificateRow(authority, entry, index)
        const last = steps.at(-1)
        // Rows of one statement must not name an identity twice.
        if (last?.kind === 'certificates' && !last.rows.some((other) => other.identity === row.identity))
          last.rows.push(row)
        else steps.push({ kind: 'certificates', rows: [row] })
        break
      }
      case 'genesis':
      case 'token':
      case 'signature':
      case 'crl':
      case 'act':
        break
      default:
        entry satisfies never
    }
  }
  const networksToLock = steps.flatMap((step) => (step.kind === 'revocation' ? step.row.networks : []))
  return { steps, networksToLock: [...new Set(networksToLock)], size: entries.length }
}

interface Revoked {
  readonly serial: string
  readonly issuerKeyId: string
  readonly networks: readonly string[]
}

/** What the state made of the revoking entries; certificates long ended may be forgotten there, and need no row. */
function revokedByIndex(authority: Authority, entries: readonly IndexedEntry[]): ReadonlyMap<number, Revoked[]> {
  const wanted = new Map<number, Revoked[]>()
  for (const { entry, index } of entries) {
    if (entry.kind === 'revocation' || (entry.kind === 'certificate' && entry.replaces !== undefined))
      wanted.set(index, [])
  }
  if (wanted.size === 0) return wanted
  for (const [issuerKeyId, { revoked }] of authority.state.issuers) {
    for (const { serial, revocation } of revoked) {
      const networks = authority.state.certificates.get(serial)?.networks ?? []
      wanted.get(revocation.ledgerIndex)?.push({ serial, issuerKeyId, networks })
    }
  }
  return wanted
}

function revocationRow(
  revoked: ReadonlyMap<number, readonly Revoked[]>,
  ledgerIndex: number,
  revokedAt: string,
  reason: string,
  identities: readonly string[],
): RevocationRow {
  const certificates = revoked.get(ledgerIndex) ?? []
  return {
    ledgerIndex,
    revokedAt,
    reason,
    serials: certificates.map((certificate) => certificate.serial),
    issuerKeyIds: certificates.map((certificate) => certificate.issuerKeyId),
    networks: [...new Set(certificates.flatMap((certificate) => certificate.networks))],
    identities,
  }
}

function networkRow(entry: NetworkEntry): NetworkRow {
  const { payload } = parseJws(entry.jws, NETWORK_DOCUMENT_TYPE)
  const { tenant, network, number } = networkDocumentSchema.parse(JSON.parse(payload.toString('utf8')))
  return { tenant, name: network, document: entry.jws, document_number: number }
}

async function certificateRow(authority: Authority, entry: CertificateEntry, index: number): Promise<CertificateRow> {
  const identity = parseIdentity(entry.uri, authority.trustDomain)
  const device = identity.kind === 'device' ? identity : undefined
  return {
    serial: entry.serial,
    issuer_key_id: entry.issuerKeyId,
    identity: entry.uri,
    id: device?.id ?? '',
    name: entry.name,
    role: entry.role,
    tenant: entry.tenant ?? null,
    network: device?.network ?? null,
    networks: entry.networks,
    groups: entry.groups,
    addresses: entry.addresses.map((text) => {
      const { bits, family } = parsePrefix(text)
      return formatAddress(bits, family)
    }),
    wireguard_key: entry.key === undefined ? null : wireGuardKeyToHex(entry.key),
    possession: entry.possession ?? null,
    der: (await certificateDer(authority, entry)).toString('hex'),
    not_before: entry.notBefore,
    not_after: entry.notAfter,
    held_until: entry.heldUntil ?? null,
    ledger_index: index,
    issued_at: entry.at,
  }
}

/** The released bytes; of a certificate that ended so long ago that memory let it go, a signature made anew. */
async function certificateDer(authority: Authority, entry: CertificateEntry): Promise<Buffer> {
  if (authority.state.certificates.has(entry.serial)) return (await getSigned(authority, entry.serial)).der
  const tbs = Buffer.from(entry.tbs, 'base64')
  const issuer = findIssuerByKeyId(authority, entry.issuerKeyId)
  if (!issuer) return tbs
  return assembleSigned(tbs, issuer.algorithm.der, await signVerified(issuer.signer, issuer.algorithm, tbs))
}
