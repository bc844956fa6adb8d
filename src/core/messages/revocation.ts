/** Revocation: POST /v1/revocations (listener *authority*) and its answer. */
import { z } from 'zod'
import { instantSchema, nameSchema, revocationReasonSchema, serialSchema } from './common.ts'

/** By identity (name or id within a tenant and network, a gateway's or operator's name) or by one serial number. */
export const revocationRequestSchema = z.strictObject({
  target: z.discriminatedUnion('kind', [
    z.strictObject({
      kind: z.literal('device'),
      name: z.string().min(1).max(64),
      tenant: nameSchema.optional(),
      network: nameSchema.optional(),
    }),
    z.strictObject({ kind: z.literal('gateway'), name: nameSchema }),
    z.strictObject({ kind: z.literal('operator'), name: nameSchema, tenant: nameSchema.optional() }),
    z.strictObject({ kind: z.literal('serial'), serial: serialSchema }),
  ]),
  reason: revocationReasonSchema.default('unspecified'),
})
export type RevocationRequest = z.input<typeof revocationRequestSchema>
export type ParsedRevocationRequest = z.output<typeof revocationRequestSchema>

export const revokedCertificateSchema = z.strictObject({
  serial: serialSchema,
  /** SHA-256 of the issuing CA's SubjectPublicKeyInfo, lower-case hex. */
  issuerKeyId: z.string(),
  issuer: z.string().max(16_384), // PEM, so that who asked can verify the CRL under its pinned root
  certificate: z.string().max(16_384), // PEM
  notAfter: instantSchema,
})
export const revocationAnswerSchema = z.strictObject({
  /** Index of the ledger entry: the proof's place. */
  ledgerIndex: z.int().nonnegative(),
  identity: z.string(),
  reason: revocationReasonSchema,
  revokedAt: instantSchema,
  /** True when it was revoked before; the record is the first one's. */
  already: z.boolean(),
  certificates: z.array(revokedCertificateSchema),
})
export type RevocationAnswer = z.infer<typeof revocationAnswerSchema>
