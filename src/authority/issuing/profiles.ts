/** pki/profiles compiled: what a certificate of each kind must look like, with object identifiers in place of words. */
import { readProfile, type Profile, type ProfileExtension } from '../../platform/config/authority.ts'
import { CertpeerError } from '../../core/errors.ts'
import { ROLES, type Role } from '../../core/messages/common.ts'
import type { KeyUsage } from '../../core/x509/certificate.ts'
import { OID, type CertpeerOids } from '../../core/x509/oids.ts'
import type { CertificateRole } from '../ledger/entry.ts'

export interface CompiledProfile {
  readonly name: string
  readonly isCa: boolean
  readonly role: Role | undefined
  readonly keyTypes: readonly ('P-256' | 'P-384')[]
  readonly keyUsage: readonly KeyUsage[]
  readonly extendedKeyUsage: readonly string[]
  readonly pathLength: number | undefined
  readonly lifetimeSeconds: number
  readonly minLifetimeSeconds: number
  readonly maxLifetimeSeconds: number
  readonly backdateSeconds: number
  readonly san: Profile['san']
  readonly extensions: readonly ProfileExtension[]
}

export type LeafProfiles = Readonly<Record<CertificateRole, CompiledProfile>>

/** The object identifier of each extension that a profile can name. */
export function extensionOid(extension: ProfileExtension, oids: CertpeerOids): string {
  switch (extension) {
    case 'cRLDistributionPoints':
      return OID.crlDistributionPoints
    case 'wireGuardKey':
    case 'accessGroups':
    case 'servedNetworks':
      return oids[extension]
    default:
      return OID[extension]
  }
}

/** Throws config_invalid when a configured lifetime leaves the profile's bounds or names no profile. */
export function compileLeafProfiles(
  oids: CertpeerOids,
  lifetimes: Readonly<Record<string, number>> = {},
): LeafProfiles {
  const names: readonly CertificateRole[] = [...ROLES, 'ocsp-signer']
  const unknown = Object.keys(lifetimes).find((name) => !names.some((known) => known === name))
  if (unknown !== undefined)
    throw new CertpeerError('config_invalid', `lifetimeSeconds.${unknown}: there is no such profile`)
  const compiled = names.map((name) => [name, compileProfile(name, oids, lifetimes[name])] as const)
  return Object.fromEntries(compiled) as Record<CertificateRole, CompiledProfile> // one for each name, just above
}

export function compileProfile(name: string, oids: CertpeerOids, lifetimeSeconds?: number): CompiledProfile {
  const profile = readProfile(name)
  const { min, max } = profile.lifetimeSeconds
  const lifetime = lifetimeSeconds ?? profile.lifetimeSeconds.default
  if (lifetime < min || lifetime > max) {
    throw new CertpeerError('config_invalid', `lifetimeSeconds.${name}: ${lifetime} is not between ${min} and ${max}`)
  }
  return {
    name: profile.name,
    isCa: profile.kind === 'ca',
    role: profile.role,
    keyTypes: profile.keyTypes,
    keyUsage: profile.keyUsage,
    extendedKeyUsage: profile.extendedKeyUsage.map((word) => purposeOid(word, profile, oids)),
    pathLength: profile.pathLength,
    lifetimeSeconds: lifetime,
    minLifetimeSeconds: min,
    maxLifetimeSeconds: max,
    backdateSeconds: profile.backdateSeconds,
    san: profile.san,
    extensions: profile.extensions,
  }
}

function purposeOid(word: string, profile: Profile, oids: CertpeerOids): string {
  if (word === 'clientAuth' || word === 'serverAuth') return OID[word]
  if (word === 'OCSPSigning') return OID.ocspSigning
  const role = word === 'role' ? profile.role : ROLES.find((candidate) => word === `role:${candidate}`)
  if (role === undefined) {
    throw new CertpeerError('config_invalid', `profile ${profile.name}: there is no extended key usage ${word}`)
  }
  return oids.roles[role]
}
