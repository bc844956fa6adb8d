/** RFC 9457 problem details, as every listener answers them. */
import { z } from 'zod'

export const problemSchema = z.looseObject({
  type: z.string(),
  title: z.string(),
  status: z.int(),
  /** Stable, machine-readable: an ErrorCode. */
  code: z.string(),
  detail: z.string().optional(),
  requestId: z.string().optional(),
})
export type Problem = z.infer<typeof problemSchema>
