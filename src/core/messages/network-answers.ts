/** Network documents as operators get them (listener *authority*): signed, so that only `jws` is believed. */
import { z } from 'zod'
import { nameSchema } from './common.ts'

/** PUT /v1/networks */
export const networkAnswerSchema = z.object({ number: z.int().positive(), jws: z.string().max(65_536) })
export type NetworkAnswer = z.infer<typeof networkAnswerSchema>

/** GET /v1/networks */
export const networkListSchema = z.object({
  items: z.array(networkAnswerSchema.extend({ tenant: nameSchema, network: nameSchema })),
})
export type NetworkList = z.infer<typeof networkListSchema>
