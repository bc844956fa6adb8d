/**
 * Certificate profiles: what each kind of certificate holds, as data (pki/profiles/*.json). A profile is read once at
 * start; anything unknown or contradictory in it stops the start, because every certificate would carry the mistake.
 */
import { z } from 'zod'
import { CertpeerError } from '../errors.ts'
import { ROLES, nameSchema, roleSchema } from '../messages/common.ts'
import { KEY_USAGES } from '../x509/certificate.ts'

const DAY_SECONDS = 86_400
const MAX_LEAF_SECONDS = 7 * DAY_SECONDS
const MAX_CA_SECONDS = 20 * 365 * DAY_SECONDS + 5 * DAY_SECONDS // 20 years, leap days included
const MAX_BACKDATE_SECONDS = 300

/** One name per encoder of core/x509/extensions.ts. */
export const EXTENSION_NAMES = [
  'basicConstraints',
  'keyUsage',
  'extendedKeyUsage',
  'subjectKeyIdentifier',
  'authorityKeyIdentifier',
  'subjectAltName',
  'nameConstraints',
  'ipAddrBlocks',
  'cRLDistributionPoints',
  'authorityInfoAccess',
  'ocspNoCheck',
  'wireGuardKey',
  'accessGroups',
  'servedNetworks',
] as const
export type ExtensionName = (typeof EXTENSION_NAMES)[number]

/** Standard purposes by name; `role` is the profile's own role, `role:NAME` any role (what a CA may issue). */
const ROLE_PURPOSES = ROLES.map((role) => `role:${role}` as const)
const PURPOSES = ['clientAuth', 'serverAuth', 'OCSPSigning', 'role', ...ROLE_PURPOSES] as const
export type Purpose = (typeof PURPOSES)[number]

export const profileSchema = z.strictObject({
  name: nameSchema,
  description: z.string().max(500),
  kind: z.enum(['ca', 'leaf']),
  /** Absent for CAs and OCSP signers. */
  role: roleSchema.optional(),
  /** Kinds of subject key that are accepted; the first is the one we make. */
  keyTypes: uniqueList(z.enum(['P-256', 'P-384'])).min(1),
  keyUsage: uniqueList(z.enum(KEY_USAGES)).min(1),
  extendedKeyUsage: uniqueList(z.enum(PURPOSES)),
  /** Only for CAs; absent means no limit. */
  pathLength: z.int().min(0).max(1).optional(),
  lifetimeSeconds: z.strictObject({
    default: z.int().positive(),
    min: z.int().positive(),
    max: z.int().positive(),
  }),
  /** How far notBefore lies before the instant of issue, for clocks that run late. */
  backdateSeconds: z.int().min(0).max(MAX_BACKDATE_SECONDS),
  /**
   * subjectAltName: the identity's URI alone; with the server's DNS names and addresses; with a gateway's tunnel
   * addresses; or none (CAs, OCSP signers).
   */
  san: z.enum(['identity', 'identity+server', 'identity+addresses', 'none']),
  /** The extensions, in the order in which they are encoded. */
  extensions: uniqueList(z.enum(EXTENSION_NAMES)).min(1),
})
export type Profile = Readonly<z.infer<typeof profileSchema>>

/** Reads a profile; throws config_invalid naming every fault. */
export function parseProfile(json: unknown): Profile {
  const result = profileSchema.safeParse(json)
  if (!result.success) {
    const faults = result.error.issues.map((issue) => `${issue.path.map(String).join('.')}: ${issue.message}`)
    throw new CertpeerError('config_invalid', `certificate profile: ${faults.join('; ')}`)
  }
  const faults = contradictions(result.data)
  if (faults.length > 0) {
    throw new CertpeerError('config_invalid', `certificate profile ${result.data.name}: ${faults.join('; ')}`)
  }
  return result.data
}

/** The lifetime to issue for: what was asked, or the default. Throws policy_denied outside of the profile's bounds. */
export function lifetimeSeconds(profile: Profile, askedSeconds: number | undefined): number {
  const { default: byDefault, min, max } = profile.lifetimeSeconds
  const seconds = askedSeconds ?? byDefault
  if (!Number.isInteger(seconds) || seconds < min || seconds > max) {
    throw new CertpeerError(
      'policy_denied',
      `a lifetime of ${seconds} s is outside of profile ${profile.name}: ${min} to ${max} s`,
    )
  }
  return seconds
}

function contradictions(profile: Profile): string[] {
  const { lifetimeSeconds: lifetime, extensions, extendedKeyUsage } = profile
  const isCa = profile.kind === 'ca'
  const has = (name: ExtensionName) => extensions.includes(name)
  const forRole = (...roles: readonly string[]) => profile.role !== undefined && roles.includes(profile.role)
  const rules: readonly (readonly [kept: boolean, otherwise: string])[] = [
    [
      lifetime.min <= lifetime.default && lifetime.default <= lifetime.max,
      'lifetimeSeconds must be min ≤ default ≤ max',
    ],
    [lifetime.max <= (isCa ? MAX_CA_SECONDS : MAX_LEAF_SECONDS), 'lifetimeSeconds.max is too long for its kind'],
    [has('subjectKeyIdentifier'), 'subjectKeyIdentifier is needed (RFC 5280 section 4.2.1.2)'],
    [has('keyUsage'), 'the extension keyUsage is needed'],
    [has('basicConstraints') || !isCa, 'a CA needs basicConstraints'],
    [has('extendedKeyUsage') === extendedKeyUsage.length > 0, 'extendedKeyUsage must be both listed and filled'],
    [has('subjectAltName') === (profile.san !== 'none'), 'subjectAltName and san must agree'],
    [isCa === profile.keyUsage.includes('keyCertSign'), 'keyCertSign belongs to CAs and to nothing else'],
    [isCa === profile.keyUsage.includes('cRLSign'), 'cRLSign belongs to CAs and to nothing else'],
    [isCa || profile.keyUsage.join() === 'digitalSignature', 'a leaf has the key usage digitalSignature alone'],
    [isCa || has('authorityKeyIdentifier'), 'a leaf needs authorityKeyIdentifier'],
    [isCa || profile.pathLength === undefined, 'only a CA has a pathLength'],
    [!isCa || (profile.role === undefined && profile.san === 'none'), 'a CA has no role and no subjectAltName'],
    [(profile.role !== undefined) === extendedKeyUsage.includes('role'), 'a role and its purpose go together'],
    [isCa || !extendedKeyUsage.some((purpose) => purpose.startsWith('role:')), 'only a CA lists the roles of others'],
    // A CA with this purpose would be an OCSP responder for the CA that issued it (RFC 6960 section 4.2.2.2).
    [!isCa || !extendedKeyUsage.includes('OCSPSigning'), 'a CA must not have the purpose OCSPSigning'],
    [has('ocspNoCheck') === extendedKeyUsage.includes('OCSPSigning'), 'ocspNoCheck and OCSPSigning go together'],
    [!extendedKeyUsage.includes('OCSPSigning') || extendedKeyUsage.length === 1, 'an OCSP signer has no other purpose'],
    [has('wireGuardKey') === forRole('device', 'gateway'), 'wireGuardKey belongs to devices and gateways'],
    [has('servedNetworks') === forRole('gateway'), 'servedNetworks belongs to gateways'],
    [!has('nameConstraints') || isCa, 'only a CA has nameConstraints'],
    [
      has('ipAddrBlocks') === (isCa || forRole('device', 'gateway')),
      'ipAddrBlocks belongs to CAs, devices and gateways',
    ],
  ]
  return rules.filter(([kept]) => !kept).map(([, otherwise]) => otherwise)
}

function uniqueList<S extends z.ZodType>(item: S) {
  return z
    .array(item)
    .max(32)
    .refine((list) => new Set(list).size === list.length, 'must not repeat an entry')
}
