/** What the authority reads at start: authority.json and config.json of its directory, and the certificate profiles. */
import { join } from 'node:path'
import { z } from 'zod'
import { nameSchema, roleSchema } from '../../core/messages/common.ts'
import { endpointsSchema } from '../../core/messages/enrollment.ts'
import { LOG_LEVELS } from '../log.ts'
import { packageRoot } from '../package-root.ts'
import { readConfig } from './config-file.ts'

/** A path inside the authority's directory. */
const localPath = z
  .string()
  .regex(/^[a-z0-9][a-z0-9./-]{0,200}$/, 'must be a relative path')
  .refine((path) => !path.includes('..'))

const authoritySchema = z.strictObject({
  version: z.literal(1),
  trustDomain: z.string().min(1).max(189),
  pen: z.int().positive(),
  /** O of the subjects that this authority makes. */
  organization: z.string().min(1).max(64).optional(),
  issuers: z
    .array(
      z.discriminatedUnion('role', [
        z.strictObject({
          name: nameSchema,
          role: z.literal('device'),
          tenant: nameSchema,
          certificate: localPath,
          key: localPath,
        }),
        z.strictObject({ name: nameSchema, role: z.literal('infrastructure'), certificate: localPath, key: localPath }),
      ]),
    )
    .min(1)
    .max(64),
})
export type AuthorityFile = z.output<typeof authoritySchema>

const configSchema = z
  .strictObject({
    /** Where the ca-*.sock sockets go. */
    runDir: z.string().min(1),
    /** Holds what nginx sends as x-certpeer-front, so that nobody else on the socket path is believed. */
    frontSecretFile: z.string().min(1).optional(),
    /** Without it the authority works, and nothing is projected. */
    databaseUrlFile: z.string().min(1).optional(),
    endpoints: endpointsSchema,
    /** Lifetimes by profile instead of the profile's default, inside its bounds. */
    lifetimeSeconds: z.record(nameSchema, z.int().positive()).default({}),
    crlPublishSeconds: z.int().min(1).max(86_400).default(300),
    crlNextUpdateSeconds: z.int().min(60).max(604_800).default(86_400),
    logLevel: z.enum(LOG_LEVELS).optional(),
  })
  .refine((config) => config.crlPublishSeconds * 2 <= config.crlNextUpdateSeconds, {
    // A CRL must outlive at least one publication that failed.
    message: 'must be at least twice crlPublishSeconds',
    path: ['crlNextUpdateSeconds'],
  })
export type AuthorityConfig = z.output<typeof configSchema>

const profileSchema = z.strictObject({
  name: nameSchema,
  description: z.string(),
  kind: z.enum(['leaf', 'ca']),
  role: roleSchema.optional(),
  keyTypes: z.array(z.enum(['P-256', 'P-384'])).min(1),
  keyUsage: z.array(z.enum(['digitalSignature', 'keyCertSign', 'cRLSign'])).min(1),
  /** clientAuth, serverAuth, OCSPSigning; `role` for the profile's own, `role:NAME` for another's. */
  extendedKeyUsage: z.array(z.string().max(64)),
  pathLength: z.int().min(0).optional(),
  lifetimeSeconds: z.strictObject({ default: z.int().positive(), min: z.int().positive(), max: z.int().positive() }),
  backdateSeconds: z.int().min(0).max(300),
  san: z.enum(['none', 'identity', 'identity+addresses', 'identity+server']),
  extensions: z.array(
    z.enum([
      'authorityKeyIdentifier',
      'subjectKeyIdentifier',
      'basicConstraints',
      'keyUsage',
      'extendedKeyUsage',
      'subjectAltName',
      'nameConstraints',
      'cRLDistributionPoints',
      'authorityInfoAccess',
      'ipAddrBlocks',
      'wireGuardKey',
      'accessGroups',
      'servedNetworks',
      'ocspNoCheck',
    ]),
  ),
})
/** A certificate profile as it stands in pki/profiles. */
export type Profile = z.output<typeof profileSchema>
export type ProfileExtension = Profile['extensions'][number]

export function readAuthorityFile(dir: string): AuthorityFile {
  return readConfig(authoritySchema, join(dir, 'authority.json'))
}

export function readAuthorityConfig(dir: string): AuthorityConfig {
  return readConfig(configSchema, join(dir, 'config.json'))
}

/** Throws config_invalid when the installed package is damaged. */
export function readProfile(name: string): Profile {
  return readConfig(profileSchema, join(packageRoot(), 'pki', 'profiles', `${name}.json`))
}
