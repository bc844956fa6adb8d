/** What the authority answered, believed only as far as it is signed. */
import { stringify } from 'yaml'
import type { NetworkDocument } from '../core/messages/network.ts'
import { verifyNetworkDocument } from '../core/messages/network-document.ts'
import type { VerifiedNetworkDocument } from '../core/messages/network-document.ts'
import type { OwnIdentity } from '../edge/client-certificate.ts'
import { systemNow } from '../platform/clock.ts'

export function verifyForOperator(jws: string, { root, oids, trustDomain }: OwnIdentity): VerifiedNetworkDocument {
  return verifyNetworkDocument({ jws, root, oids, trustDomain, now: systemNow() })
}

/** As YAML that `network apply` takes again: what the authority adds stands in a comment. */
export function formatDocument({ trustDomain, number, issuedAt, ...settings }: NetworkDocument): string {
  return `---\n# number ${number}, issued ${issuedAt}, trust domain ${trustDomain}\n${stringify(settings).trimEnd()}`
}
