/**
 * The gateway stream: POST /v1/stream on the listener *gateways*, full duplex, one JSON object a line each way.
 * A gateway believes none of it: certificates, CRLs and network documents are verified, and `remove` only removes.
 * Networks are named `<tenant>/<network>` everywhere on the stream.
 */
import { z } from 'zod'
import { base64Schema, serialSchema } from './common.ts'

/** Most refused peers that an `applied` names: a list that is full may have left some out. */
export const MAX_FAILED = 1000

const networkKey = z.string().max(127)
const revision = z.int().nonnegative()

/** gateway → server */
export const upMessageSchema = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('hello'),
    /** HOST:PORT where devices reach this gateway's WireGuard port. */
    endpoint: z.string().max(300),
    /** Highest revision held per network; 0 asks for a snapshot. */
    revisions: z.record(networkKey, revision),
  }),
  /** Asks for a snapshot: a gap in revisions, or a digest that does not match. */
  z.strictObject({ type: z.literal('resync'), network: networkKey }),
  z.strictObject({
    type: z.literal('applied'),
    network: networkKey,
    revision,
    /**
     * Peers of the network that the gateway refuses or could not set, by serial, with the error code: the whole list,
     * each report replaces the one before.
     */
    failed: z.array(z.strictObject({ serial: serialSchema, code: z.string().max(64) })).max(MAX_FAILED),
  }),
  /** The newest CRL number the gateway has verified and enforced, per issuer key id. */
  z.strictObject({ type: z.literal('crl-applied'), issuerKeyId: z.string().max(64), number: z.string().max(40) }),
  z.strictObject({ type: z.literal('pong') }),
])
export type UpMessage = z.infer<typeof upMessageSchema>

/** server → gateway; every certificate, CRL is base64 DER. */
export const downMessageSchema = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('issuers'), certificates: z.array(base64Schema.max(16_384)).max(64) }),
  z.strictObject({ type: z.literal('network'), document: z.string().max(65_536) }),
  z.strictObject({ type: z.literal('crl'), crl: base64Schema }),
  /** Everything: what is not named is removed. Large ones come in parts; the last has `more: false`. */
  z.strictObject({
    type: z.literal('snapshot'),
    network: networkKey,
    revision,
    certificates: z.array(base64Schema.max(16_384)).max(1000),
    more: z.boolean(),
  }),
  z.strictObject({ type: z.literal('set'), network: networkKey, revision, certificate: base64Schema.max(16_384) }),
  z.strictObject({ type: z.literal('remove'), network: networkKey, revision, serial: serialSchema }),
  z.strictObject({ type: z.literal('ping') }),
])
export type DownMessage = z.infer<typeof downMessageSchema>
