/** What the listener *pki* publishes beside CRLs, OCSP answers and certificates, which are DER. */
import { z } from 'zod'
import { nameSchema } from './common.ts'

/** GET /issuers.json. Unsigned: it only names what is then verified under the pinned root. */
export const publishedIssuersSchema = z.object({
  root: z.string().max(16_384), // PEM
  issuers: z
    .array(
      z.object({
        name: nameSchema,
        certificate: z.string().max(16_384), // PEM
        /** Path of its CRL on the same listener. */
        crl: z.string().regex(/^\/crl\/[A-Za-z0-9._-]{1,128}$/, 'must be /crl/NAME'),
      }),
    )
    .min(1)
    .max(64),
})
