/** config.json of a front: which listeners it serves, where its upstreams' sockets lie, whose root it pins. */
import { isIP } from 'node:net'
import { z } from 'zod'
import { LOG_LEVELS } from '../log.ts'

/** What may stand inside double quotes in nginx's configuration without meaning anything. */
const pathSchema = z
  .string()
  .max(4096)
  .regex(/^\/[A-Za-z0-9._/@+=,:~ -]*$/, 'must be an absolute path of letters, digits and . _ / @ + = , : ~ - or space')
const port = z.int().min(1).max(65_535)
const sourceSchema = z.string().regex(/^(https?:\/\/\S+|unix:\/.+)$/, 'must be http://, https:// or unix:/PATH')

export const frontConfigSchema = z.strictObject({
  /** Address that every listener binds. */
  listen: z.string().refine((text) => isIP(text) !== 0, 'must be an IP address'),
  ports: z.strictObject({ enroll: port, authority: port, api: port, gateways: port, pki: port }),
  roles: z.array(z.enum(['authority', 'control'])).min(1),
  /** Names and addresses in the server certificate; only told to people here, the certificate decides. */
  hostnames: z.array(z.string().max(253)).default([]),
  /** Where the upstreams' unix sockets are. */
  runDir: pathSchema,
  /** Listener *pki*, or the socket behind it: CRLs and issuers come from there and are verified under the root. */
  pkiSource: sourceSchema,
  /** Listener *enroll*, or the socket behind it: the server certificate is renewed there. */
  enrollSource: sourceSchema,
  rootCertificate: pathSchema,
  frontSecretFile: pathSchema,
  trustDomain: z.string().max(253),
  pen: z.int().positive(),
  /** The nginx program. */
  nginx: z.string().default('nginx'),
  workers: z.union([z.literal('auto'), z.int().min(1).max(256)]).default('auto'),
  pollSeconds: z.int().min(1).max(300).default(2),
  logLevel: z.enum(LOG_LEVELS).default('info'),
})
export type FrontConfig = z.output<typeof frontConfigSchema>
