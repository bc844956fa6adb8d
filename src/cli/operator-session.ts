/** An operator's credential at work: renewed silently in the last third of its life, shown to authority and api. */
import { CertpeerError } from '../core/errors.ts'
import type { ApiClient } from '../platform/api-client/client.ts'
import { systemNow } from '../platform/clock.ts'
import { hasCredential } from '../platform/credentials.ts'
import { clientFor, readFreshIdentity } from '../edge/client-certificate.ts'
import type { OwnIdentity } from '../edge/client-certificate.ts'
import type { OperatorArguments } from './arguments.ts'
import type { Io } from './output.ts'

export interface OperatorSession extends Disposable {
  readonly own: OwnIdentity
  /** Listener *authority*: tokens, networks, revocations. */
  readonly authority: ApiClient
  /** Listener *api*: lists and confirmations. */
  readonly api: ApiClient
}

/** Longer than the 30 s that a server holds `?wait=`. */
const TIMEOUT_MS = 45_000

/** Opens the operator's session, acts, and closes it whatever happens. */
export async function withOperator<T>(
  options: OperatorArguments,
  io: Io,
  act: (session: OperatorSession) => Promise<T>,
): Promise<T> {
  const session = await openOperator(options, io)
  // Not `using`: the compiler leaves the path of a dynamic import as it is in functions that hold one.
  try {
    return await act(session)
  } finally {
    session[Symbol.dispose]()
  }
}

async function openOperator({ operator }: OperatorArguments, io: Io): Promise<OperatorSession> {
  if (!hasCredential(operator)) {
    throw new CertpeerError(
      'not_found',
      `${operator} holds no credential: name an operator's directory with --operator or $CERTPEER_OPERATOR`,
    )
  }
  const own = await readFreshIdentity(operator, systemNow, (error) => {
    io.say(
      `certpeer: warning: the operator credential was not renewed yet: ${error instanceof Error ? error.message : ''}`,
    )
  })
  if (own.verified.identity.kind !== 'operator') {
    throw new CertpeerError(
      'config_invalid',
      `${operator} holds a credential of role ${own.verified.role}: name an operator's with --operator`,
    )
  }
  const authority = clientFor(own, own.credential.config.authorityUrl, TIMEOUT_MS)
  const api = clientFor(own, own.credential.config.apiUrl, TIMEOUT_MS)
  return {
    own,
    authority,
    api,
    [Symbol.dispose]() {
      authority.close()
      api.close()
    },
  }
}
