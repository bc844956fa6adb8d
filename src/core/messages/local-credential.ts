/** POST /v1/credentials on ca-admin.sock: what the owner of the authority's host may have issued without a token. */
import { z } from 'zod'
import { base64Schema, groupsSchema, nameSchema, OPERATOR_ROLES } from './common.ts'

export const LOCAL_ROLES = [...OPERATOR_ROLES, 'server'] as const
export type LocalRole = (typeof LOCAL_ROLES)[number]

export const localCredentialRequestSchema = z.strictObject({
  role: z.enum(LOCAL_ROLES),
  name: nameSchema,
  tenant: nameSchema.optional(),
  groups: groupsSchema.default([]),
  dns: z.array(z.string().min(1).max(253)).max(32).default([]),
  ips: z
    .array(z.union([z.ipv4(), z.ipv6()]))
    .max(32)
    .default([]),
  /** SubjectPublicKeyInfo of a P-256 key, base64 DER. */
  spki: base64Schema.max(256),
})
export type LocalCredentialRequest = z.input<typeof localCredentialRequestSchema>
