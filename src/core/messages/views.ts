/** What the listener *api* answers: the peer a device asked for, and the operator's lists. */
import { z } from 'zod'
import { instantSchema } from './common.ts'

/** One gateway as a device sees it. Key, addresses and prefixes are read from the certificate; the endpoint is unsigned. */
export const gatewayHintSchema = z.strictObject({
  certificate: z.string().max(16_384), // PEM
  issuer: z.string().max(16_384), // PEM
  endpoint: z.string().max(300), // HOST:PORT
})

/** PUT /v1/peer and GET /v1/peer (`?wait=active|gone` waits). */
export const peerAnswerSchema = z.strictObject({
  state: z.enum(['pending', 'active', 'absent']),
  revision: z.int().nonnegative(),
  /** Names of connected gateways that have not applied the revision yet, or refused the peer. */
  waitingFor: z.array(z.string()),
  networkDocument: z.string().max(65_536),
  gateways: z.array(gatewayHintSchema).max(256),
})
export type PeerAnswer = z.infer<typeof peerAnswerSchema>

/** GET /v1/peers/gone?serial=HEX&wait=gone : per gateway, whether the removal was applied (operators). */
export const goneAnswerSchema = z.strictObject({
  serial: z.string(),
  state: z.enum(['pending', 'gone']),
  gateways: z.array(
    z.strictObject({
      name: z.string(),
      state: z.enum(['gone', 'pending', 'disconnected']),
      /** When the gateway reported the removal; null where there was none: no peer, or one that it dropped by the CRL. */
      appliedAt: instantSchema.nullable(),
    }),
  ),
  /** When the peer ends by itself wherever it was not reached: the certificate's notAfter. */
  endsAt: instantSchema,
})
export type GoneAnswer = z.infer<typeof goneAnswerSchema>

export const pageSchema = <T extends z.ZodType>(item: T) =>
  z.strictObject({ items: z.array(item), next: z.string().nullable() })

export const deviceViewSchema = z.strictObject({
  id: z.string(),
  name: z.string(),
  tenant: z.string(),
  network: z.string(),
  groups: z.array(z.string()),
  addresses: z.array(z.string()),
  possession: z.boolean(),
  status: z.enum(['active', 'revoked', 'expired']),
  serial: z.string().nullable(),
  notAfter: instantSchema.nullable(),
})
export const certificateViewSchema = z.strictObject({
  serial: z.string(),
  identity: z.string(),
  name: z.string(),
  role: z.string(),
  status: z.enum(['good', 'revoked', 'expired']),
  possession: z.boolean().nullable(),
  notBefore: instantSchema,
  notAfter: instantSchema,
  revokedAt: instantSchema.nullable(),
  reason: z.string().nullable(),
})
export const peerViewSchema = z.strictObject({
  network: z.string(),
  device: z.string(),
  identity: z.string(),
  publicKey: z.string(),
  allowedIps: z.array(z.string()),
  serial: z.string(),
  possession: z.boolean(),
  revision: z.int(),
})
export const gatewayViewSchema = z.strictObject({
  name: z.string(),
  networks: z.array(z.string()),
  publicKey: z.string().nullable(),
  endpoint: z.string().nullable(),
  addresses: z.array(z.string()),
  connected: z.boolean(),
  lastSeenAt: instantSchema.nullable(),
  revisions: z.record(z.string(), z.int()),
  notAfter: instantSchema.nullable(),
})
export type DeviceView = z.infer<typeof deviceViewSchema>
export type CertificateView = z.infer<typeof certificateViewSchema>
export type PeerView = z.infer<typeof peerViewSchema>
export type GatewayView = z.infer<typeof gatewayViewSchema>
