/** Enrollment: what a device, gateway or operator and the authority say to each other (listener *enroll*). */
import { z } from 'zod'
import { base64UrlSchema, groupsSchema, instantSchema, nameSchema, roleSchema, urlSchema } from './common.ts'

/** Where the five listeners are. Unsigned: TLS under the pinned root decides whom one talks to. */
export const endpointsSchema = z.strictObject({
  enrollUrl: urlSchema,
  authorityUrl: urlSchema,
  apiUrl: urlSchema,
  gatewaysUrl: urlSchema,
  pkiUrl: urlSchema,
})
export type Endpoints = z.infer<typeof endpointsSchema>

/** GET /v1/trust. Compared with the token's root fingerprint before anything else is believed. */
export const trustAnswerSchema = z.strictObject({
  trustDomain: z.string().max(253),
  pen: z.int().positive(),
  root: z.string().max(16_384), // PEM
  issuers: z.array(z.string().max(16_384)).max(64), // PEM, each verified under the root before use
  endpoints: endpointsSchema,
})
export type TrustAnswer = z.infer<typeof trustAnswerSchema>

/** POST /v1/challenges */
export const challengeRequestSchema = z.strictObject({
  /** base64url(SHA-256(credential)): the token's claims segment (ASCII), or the current certificate (DER). */
  credential: base64UrlSchema.length(43),
})
export type ChallengeRequest = z.infer<typeof challengeRequestSchema>
export const challengeAnswerSchema = z.strictObject({
  id: base64UrlSchema.max(64),
  /** base64url of the ephemeral X25519 public key E (32 bytes). */
  publicKey: base64UrlSchema.length(43),
  /** base64url of the 32-byte nonce N. */
  nonce: base64UrlSchema.length(43),
  expiresAt: instantSchema,
})
export type ChallengeAnswer = z.infer<typeof challengeAnswerSchema>

/**
 * POST /v1/certificates. `token` is `claims` as it stands between the dots of the token; `mac` is
 * base64url(HMAC-SHA256(secret, info)) with `info` of core/wireguard/possession, so the secret never travels.
 */
export const enrollRequestSchema = z.strictObject({
  claims: base64UrlSchema.max(4096),
  mac: base64UrlSchema.length(43),
  challenge: base64UrlSchema.max(64),
  /** PKCS#10, PEM or base64 DER. */
  csr: z.string().max(16_384),
})
export type EnrollRequest = z.infer<typeof enrollRequestSchema>

/** POST /v1/certificates/renew. Everything that proves is inside the CSR. */
export const renewRequestSchema = z.strictObject({
  challenge: base64UrlSchema.max(64),
  csr: z.string().max(16_384),
})
export type RenewRequest = z.infer<typeof renewRequestSchema>

/** Answer to both. The receiver checks that the certificate holds its own SPKI, WireGuard key and identity. */
export const certificateAnswerSchema = z.strictObject({
  certificate: z.string().max(16_384), // PEM, leaf
  issuer: z.string().max(16_384), // PEM, issuing CA
  serial: z.string(),
  identity: z.string(),
  notAfter: instantSchema,
  endpoints: endpointsSchema,
  /** Network documents (JWS) for the networks this certificate concerns; none for operators. */
  networkDocuments: z.array(z.string().max(65_536)).max(256),
})
export type CertificateAnswer = z.infer<typeof certificateAnswerSchema>

/** Claims of an enrollment token. `name` is the device's, gateway's or operator's name. */
export const tokenClaimsSchema = z.strictObject({
  v: z.literal(1),
  jti: base64UrlSchema.length(22),
  role: roleSchema.exclude(['authority', 'server']),
  name: nameSchema,
  tenant: nameSchema,
  /** One network for a device, at least one for a gateway, none for an operator. */
  networks: z.array(nameSchema).max(64),
  groups: groupsSchema,
  profile: nameSchema,
  /** False only by the audited exception `--without-possession`. */
  possession: z.boolean(),
  /** True when the live identity of that name is revoked by this enrollment. */
  replace: z.boolean(),
  exp: z.int().positive(), // Unix seconds
  /** SHA-256 of the root certificate's DER, lower-case hex. */
  root: z.string().regex(/^[0-9a-f]{64}$/),
  trustDomain: z.string().max(253),
  pen: z.int().positive(),
  url: urlSchema, // listener *enroll*
})
export type TokenClaims = z.infer<typeof tokenClaimsSchema>

/** POST /v1/tokens (listener *authority*). */
export const tokenRequestSchema = z.strictObject({
  role: roleSchema.exclude(['authority', 'server']).default('device'),
  name: nameSchema,
  tenant: nameSchema.optional(),
  networks: z.array(nameSchema).max(64).default([]),
  groups: groupsSchema.default([]),
  ttlSeconds: z.int().min(10).max(604_800).default(3600),
  possession: z.boolean().default(true),
  replace: z.boolean().default(false),
})
export type TokenRequest = z.infer<typeof tokenRequestSchema>
export const tokenAnswerSchema = z.strictObject({ token: z.string(), jti: z.string(), expiresAt: instantSchema })
export type TokenAnswer = z.infer<typeof tokenAnswerSchema>
