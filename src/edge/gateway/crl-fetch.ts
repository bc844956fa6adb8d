/**
 * The way around the control plane: issuing CAs, CRLs and network documents straight from the pki listener. It is plain
 * HTTP and needs no trust, since everything is verified; so a CRL that is withheld on the stream arrives here.
 */
import { CertpeerError } from '../../core/errors.ts'
import { parseMessage } from '../../core/messages/common.ts'
import { publishedIssuersSchema } from '../../core/messages/pki.ts'
import { pemToDer } from '../../core/x509/pem.ts'
import type { ApiClient } from '../../platform/api-client/client.ts'
import type { Now } from '../../platform/clock.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import type { GatewaySession } from './session.ts'

const ROOT_CRL_PATH = '/crl/root.crl'
const TIMEOUT_MS = 10_000
/** A CRL of a million entries is about 40 MB. */
const MAX_BYTES = 134_217_728

export interface CrlFetchOptions {
  readonly client: Pick<ApiClient, 'get'>
  readonly session: GatewaySession
  readonly clock: Now
  readonly log: Logger
  /** Called when something may have changed in the session. */
  readonly onChange: () => void
}

export class CrlFetcher {
  readonly #options: CrlFetchOptions
  readonly #etags = new Map<string, string>()
  readonly #complaints = new Set<string>()
  #crlPaths: readonly string[] = []

  constructor(options: CrlFetchOptions) {
    this.#options = options
  }

  /** Polls until the signal aborts. */
  async run(pollMs: number, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.poll(signal)
      // Spread a little: gateways that were started together shall not ask together.
      await sleep(pollMs * (0.9 + 0.2 * Math.random()), signal)
    }
  }

  /** Asks for everything once. Never rejects; what does not come or is refused is told once. */
  async poll(signal?: AbortSignal): Promise<void> {
    const { session, clock } = this.#options
    // Issuers first: a CRL counts only under an issuer that is known. Then CRLs: a document's signer may be revoked.
    await this.#fetch('/issuers.json', (body) => this.#takeIssuers(body), signal)
    for (const path of [ROOT_CRL_PATH, ...this.#crlPaths]) {
      await this.#fetch(path, (body) => session.acceptCrl(body, clock()), signal)
    }
    for (const network of session.own.networks) {
      const take = (body: Buffer) => session.acceptDocument(body.toString('utf8').trim(), clock())
      await this.#fetch(`/networks/${network}.jws`, take, signal)
    }
  }

  async #fetch(path: string, take: (body: Buffer) => void, signal: AbortSignal | undefined): Promise<void> {
    const { client, log, onChange } = this.#options
    if (signal?.aborted === true) return
    try {
      const etag = this.#etags.get(path)
      const answer = await client.get(path, {
        timeoutMs: TIMEOUT_MS,
        maxBytes: MAX_BYTES,
        ...(etag !== undefined && { etag }),
        ...(signal !== undefined && { signal }),
      })
      if (answer.status !== 304) {
        take(answer.raw)
        // Only what was taken in is remembered: what was refused is looked at again.
        if (typeof answer.headers.etag === 'string') this.#etags.set(path, answer.headers.etag)
        onChange()
      }
      this.#complaints.delete(path)
    } catch (err) {
      this.#etags.delete(path)
      if (!(err instanceof CertpeerError)) {
        // A mistake of ours, loud each time. But a stranger must not be able to end the agent, and every tunnel, with it.
        log.error({ err, path }, 'fault over an answer of the pki listener')
        return
      }
      if (!this.#complaints.has(path)) log.warn({ err, path }, 'not taken from the pki listener')
      this.#complaints.add(path)
    }
  }

  #takeIssuers(body: Buffer): void {
    const { session, clock } = this.#options
    const published = parseMessage(publishedIssuersSchema, parseJson(body), 'issuers.json')
    this.#crlPaths = [...new Set(published.issuers.map(({ crl }) => crl))].filter((path) => path !== ROOT_CRL_PATH)
    let fault: unknown
    for (const { certificate } of published.issuers) {
      try {
        session.acceptIssuer(pemToDer(certificate), clock())
      } catch (error) {
        // One bad entry must not hide its neighbours.
        fault ??= error
      }
    }
    if (fault instanceof Error) throw fault
  }
}

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8'))
  } catch (cause) {
    throw new CertpeerError('malformed_message', 'issuers.json is not JSON', { cause })
  }
}
