/** The network document: law of one network, signed by the authority, believed by gateways and devices. */
import { z } from 'zod'
import { instantSchema, nameSchema } from './common.ts'

/** Prefixes and addresses are checked and made canonical by core/policy/network.ts; here they are bounded text. */
const prefixText = z.string().max(49)
const addressText = z.string().max(45)

/** What an operator writes (YAML) and `network apply` sends. */
export const networkSettingsSchema = z.strictObject({
  tenant: nameSchema.default('default'),
  network: nameSchema.default('default'),
  /** At least one; at most one prefix per family for now. Devices and gateways get addresses out of them. */
  pools: z.array(prefixText).min(1).max(2),
  /** Prefixes or addresses inside the pools that are never given to a device. */
  reserved: z.array(prefixText).max(256).default([]),
  /** /64 out of which key addresses are made. */
  keyPrefix: prefixText,
  /** Prefixes behind the gateways that devices send into the tunnel, beside the pools. */
  routes: z.array(prefixText).max(256).default([]),
  dns: z
    .strictObject({
      servers: z.array(addressText).max(8).default([]),
      search: z.array(z.string().max(253)).max(8).default([]),
    })
    .default({ servers: [], search: [] }),
  mtu: z.int().min(1280).max(9000).default(1420),
  persistentKeepaliveSeconds: z.int().min(0).max(65_535).default(25),
  possession: z.enum(['required', 'optional']).default('required'),
  /** What a gateway does with existing peers when its CRL has passed nextUpdate: keep until notAfter, or remove after a grace. */
  staleCrl: z
    .strictObject({
      action: z.enum(['keep', 'remove']).default('remove'),
      graceSeconds: z.int().min(0).max(604_800).default(3600),
    })
    .default({ action: 'remove', graceSeconds: 3600 }),
  /** How long an address or key stays withheld after the last certificate that carried it ended. */
  quarantineSeconds: z.int().min(0).max(31_536_000).default(86_400),
  /** How long after expiry a certificate may still be renewed. */
  renewAfterExpirySeconds: z.int().min(0).max(31_536_000).default(2_592_000),
  deviceToDevice: z.boolean().default(false),
})
export type NetworkSettings = z.infer<typeof networkSettingsSchema>

/** What the authority signs: the settings plus number, instant and trust domain. Payload of the JWS (typ certpeer-network+jws). */
export const networkDocumentSchema = networkSettingsSchema.extend({
  trustDomain: z.string().max(253),
  /** Strictly increasing per network; receivers refuse a lower one. */
  number: z.int().positive(),
  issuedAt: instantSchema,
})
export type NetworkDocument = z.infer<typeof networkDocumentSchema>
