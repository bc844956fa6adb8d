/** What the authority answered, believed only as far as it is signed. */
import { verifyNetworkDocument } from '../core/messages/network-document.ts'
import type { VerifiedNetworkDocument } from '../core/messages/network-document.ts'
import type { OwnIdentity } from '../edge/client-certificate.ts'
import { systemNow } from '../platform/clock.ts'

export function verifyForOperator(jws: string, { root, oids, trustDomain }: OwnIdentity): VerifiedNetworkDocument {
  return verifyNetworkDocument({ jws, root, oids, trustDomain, now: systemNow() })
}
