/** What a gateway writes on its own disk, a JSON object a line. Public data only; all of it is verified again when read. */
import { z } from 'zod'
import { base64Schema, instantSchema, serialSchema } from './common.ts'

const networkKey = z.string().min(3).max(127)
const keyId = z.string().regex(/^[0-9a-f]{64}$/)
const identity = z.string().min(1).max(1024)

export const journalRecordSchema = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('issuer'), certificate: base64Schema.max(24_000) }),
  /** A certificate was accepted; it is also the newest of its identity. */
  z.strictObject({ type: z.literal('peer'), network: networkKey, certificate: base64Schema.max(24_000) }),
  /** The identity is no peer any more; that its newest certificate was accepted stays known. */
  z.strictObject({ type: z.literal('gone'), identity }),
  z.strictObject({
    type: z.literal('newest'),
    identity,
    notBefore: instantSchema,
    serial: serialSchema,
    issuerKeyId: keyId,
  }),
  /** Was in a verified CRL and is in none any more. */
  z.strictObject({ type: z.literal('revoked'), issuerKeyId: keyId, serial: serialSchema, droppedAt: instantSchema }),
  /** Everything up to this revision is in the records; 0: a snapshot is needed. */
  z.strictObject({ type: z.literal('revision'), network: networkKey, revision: z.int().nonnegative() }),
])
export type JournalRecord = z.infer<typeof journalRecordSchema>
