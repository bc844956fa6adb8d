/**
 * Revocation. From the ledger entry on it is true: OCSP answers it, the next CRL (50 ms later) holds it, renewals and
 * tokens of the identity end. It needs neither PostgreSQL nor nginx, and the name is looked up in the ledger, so rows
 * that somebody deleted protect nobody.
 */
import { CertpeerError } from '../core/errors.ts'
import type { RevocationReason } from '../core/messages/common.ts'
import type { ParsedRevocationRequest, RevocationAnswer } from '../core/messages/revocation.ts'
import { requireAct } from '../core/policy/operator.ts'
import { parseSerial } from '../core/x509/serial.ts'
import { derToPem } from '../core/x509/pem.ts'
import type { Authority } from './authority.ts'
import { getSigned } from './issuing/issue.ts'
import type { OperatorPrincipal } from './principal.ts'
import { nameKeyOf, type CertificateRecord, type IdentityRecord, type Revocation } from './state.ts'

type Target = ParsedRevocationRequest['target']

/** Idempotent: what was revoked before is answered with the first record. Throws not_found or policy_denied. */
export async function revoke(
  authority: Authority,
  operator: OperatorPrincipal,
  request: ParsedRevocationRequest,
): Promise<RevocationAnswer> {
  const { target, reason } = request
  return target.kind === 'serial'
    ? await revokeSerial(authority, operator, target.serial, reason)
    : await revokeIdentity(authority, operator, target, reason)
}

async function revokeIdentity(
  authority: Authority,
  operator: OperatorPrincipal,
  target: Exclude<Target, { kind: 'serial' }>,
  reason: RevocationReason,
): Promise<RevocationAnswer> {
  const tenant = target.kind === 'gateway' ? undefined : (target.tenant ?? operator.tenant ?? defaultTenant(target))
  requireAct(operator, 'revoke', tenant)
  for (let taken = findTakenName(authority, target, tenant); taken; taken = findTakenName(authority, target, tenant)) {
    await authority.reservations.whenNameFree(taken)
  }
  // No await from the last look to the block below.
  const identity = getIdentity(authority, target, tenant)
  const { uri, nameKey, blocked } = identity
  if (blocked) return await answer(authority, identity.uri, blocked, revokedWith(authority, uri, blocked), true)

  const release = [authority.reservations.block(uri), authority.reservations.block(nameKey)]
  try {
    await authority.commit({
      kind: 'revocation',
      at: authority.now().toISOString(),
      target: { uri },
      reason,
      operator: operator.uri,
    })
  } finally {
    for (const step of release) step()
  }
  const revocation = authority.state.identities.get(uri)?.blocked
  if (!revocation) throw new CertpeerError('internal', 'a revocation was written and is not in force')
  return await answer(authority, uri, revocation, revokedWith(authority, uri, revocation), false)
}

/**
 * The name, when an enrollment under it is under way. It comes through first: it may be making the very identity that is
 * meant (a first one, or one that replaces another), and only what stands in the ledger can be revoked.
 */
function findTakenName(
  { reservations }: Authority,
  target: Exclude<Target, { kind: 'serial' }>,
  tenant: string | undefined,
): string | undefined {
  return reservations.names.find((nameKey) => {
    const [kind, ...path] = nameKey.split('/')
    if (kind !== target.kind || path.at(-1) !== target.name) return false
    return target.kind === 'gateway' || path[0] === (tenant ?? '')
  })
}

async function revokeSerial(
  authority: Authority,
  operator: OperatorPrincipal,
  text: string,
  reason: RevocationReason,
): Promise<RevocationAnswer> {
  const serial = parseSerial(text)
  const record = authority.state.certificates.get(serial)
  const identity = record && authority.state.identities.get(record.uri)
  // What is nobody's (an OCSP signer) is the whole trust domain's. Of what there is not, nobody learns more than that.
  requireAct(operator, 'revoke', record ? identity && tenantOf(identity) : operator.tenant)
  if (!record) throw new CertpeerError('not_found', `no certificate ${serial} in force stands in the ledger`)
  const already = record.revoked
  if (already) return await answer(authority, record.uri, already, [record], true)
  const release = authority.reservations.block(record.uri)
  try {
    await authority.commit({
      kind: 'revocation',
      at: authority.now().toISOString(),
      target: { serial },
      reason,
      operator: operator.uri,
    })
  } finally {
    release()
  }
  if (!record.revoked) throw new CertpeerError('internal', 'a revocation was written and is not in force')
  return await answer(authority, record.uri, record.revoked, [record], false)
}

/** Operators without a tenant are the whole trust domain's; devices are somebody's. */
function defaultTenant(target: Target): string | undefined {
  return target.kind === 'device' ? 'default' : undefined
}

function tenantOf(identity: IdentityRecord): string | undefined {
  return identity.role === 'gateway' ? undefined : identity.tenant
}

/** By name or by id; of several identities that bore the name the one in force, else the newest. */
function getIdentity(
  authority: Authority,
  target: Exclude<Target, { kind: 'serial' }>,
  tenant: string | undefined,
): IdentityRecord {
  const { state } = authority
  const found =
    target.kind === 'device'
      ? findDevice(authority, target.name, tenant ?? 'default', target.network)
      : preferred(
          state.listByName(
            nameKeyOf({ role: target.kind === 'gateway' ? 'gateway' : 'operator-admin', tenant, name: target.name }),
          ),
        )
  if (found) return found
  const where = tenant === undefined ? '' : ` in tenant ${tenant}`
  throw new CertpeerError(
    'not_found',
    `there is no ${target.kind} ${target.name}${where} in the ledger${tenantHint(authority, target, tenant)}`,
  )
}

/** Who asks without a tenant means the trust domain's operator, and may see that a tenant has one of that name. */
function tenantHint({ state }: Authority, target: Target, tenant: string | undefined): string {
  if (target.kind !== 'operator' || tenant !== undefined) return ''
  const tenants = [...state.identities.values()]
    .filter(({ role, name }) => role.startsWith('operator-') && name === target.name)
    .flatMap((identity) => identity.tenant ?? [])
  return tenants.length === 0 ? '' : `; there is one in tenant ${tenants.join(' and ')}: name the tenant`
}

function findDevice(
  authority: Authority,
  name: string,
  tenant: string,
  network: string | undefined,
): IdentityRecord | undefined {
  const { state } = authority
  const candidates: IdentityRecord[] = []
  for (const identity of state.identities.values()) {
    if (identity.role !== 'device' || identity.tenant !== tenant) continue
    if (network !== undefined && identity.networks[0] !== `${tenant}/${network}`) continue
    if (identity.name === name || identity.uri.endsWith(`/device/${name}`)) candidates.push(identity)
  }
  const networks = new Set(candidates.filter((identity) => !identity.blocked).map((identity) => identity.networks[0]))
  if (networks.size > 1) {
    throw new CertpeerError(
      'malformed_request',
      `there is a device ${name} in ${[...networks].join(' and ')}; name the network`,
    )
  }
  return preferred(candidates)
}

function preferred(identities: readonly IdentityRecord[]): IdentityRecord | undefined {
  return identities.find((identity) => !identity.blocked) ?? identities.at(-1)
}

/** Certificates of the identity that ended with this very revocation and have not expired since. */
function revokedWith(authority: Authority, uri: string, revocation: Revocation): CertificateRecord[] {
  const records: CertificateRecord[] = []
  for (const { revoked } of authority.state.issuers.values()) {
    for (let at = revoked.length - 1; at >= 0; at--) {
      const entry = revoked[at]
      if (!entry || entry.revocation.ledgerIndex < revocation.ledgerIndex) break
      const record = authority.state.certificates.get(entry.serial)
      if (entry.revocation.ledgerIndex === revocation.ledgerIndex && record?.uri === uri) records.push(record)
    }
  }
  return records
}

async function answer(
  authority: Authority,
  uri: string,
  revocation: Revocation,
  records: readonly CertificateRecord[],
  already: boolean,
): Promise<RevocationAnswer> {
  const issued = await Promise.all(records.map((record) => getSigned(authority, record.serial)))
  return {
    ledgerIndex: revocation.ledgerIndex,
    identity: uri,
    reason: revocation.reason,
    revokedAt: revocation.at.toISOString(),
    already,
    certificates: issued.map(({ der, record, issuer }) => ({
      serial: record.serial,
      issuerKeyId: record.issuerKeyId,
      issuer: derToPem(issuer.certificate.der),
      certificate: derToPem(der),
      notAfter: record.notAfter.toISOString(),
    })),
  }
}
