/** How `up` starts certpeer's own roles, and how it knows that they are ready. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError, errorCode, type ErrorCode } from '../../core/errors.ts'
import { ApiClient } from '../../platform/api-client/client.ts'
import { sleep } from '../../platform/lifecycle.ts'
import { packageRoot } from '../../platform/package-root.ts'
import type { ChildSpec } from './supervisor.ts'

const READY_TIMEOUT_MS = 60_000
const POLL_MS = 25
const RETRY_MS = 250

export function certpeerChild(name: string, args: readonly string[]): ChildSpec {
  const program = join(packageRoot(), 'dist', 'src', 'bin', 'certpeer.js')
  // The owner's URL of the database is for `migrate` alone.
  const env = { ...process.env }
  delete env['DATABASE_URL']
  return { name, command: process.execPath, args: [program, ...args], env, stopSignal: 'SIGTERM' }
}

/** Waits until the process behind a unix socket answers /healthz; throws timeout naming it. */
export async function waitForSocket(socketPath: string, name: string, signal: AbortSignal): Promise<void> {
  await waitUntil(
    async () => {
      if (!existsSync(socketPath)) return false
      const client = new ApiClient({ base: `unix:${socketPath}`, timeoutMs: 2_000 })
      try {
        const answer = await client.request({ method: 'GET', path: '/healthz' })
        return answer.status === 200
      } catch (error) {
        // Any answer of the application itself means that it listens: the front's secret is not ours to show.
        return error instanceof CertpeerError && error.code === 'front_refused'
      }
    },
    name,
    signal,
  )
}

/** Polls until `ready` says so; returns early when `signal` aborts; throws timeout after a minute. */
export async function waitUntil(ready: () => Promise<boolean>, name: string, signal: AbortSignal): Promise<void> {
  const deadline = Date.now() + READY_TIMEOUT_MS
  while (!signal.aborted) {
    if (await ready()) return
    if (Date.now() > deadline) {
      throw new CertpeerError('timeout', `${name} did not get ready within ${READY_TIMEOUT_MS / 1000} s; see its log`)
    }
    await sleep(POLL_MS, signal)
  }
}

/** What a service answers that is only just starting, or starting again. */
const PASSING: readonly ErrorCode[] = ['unavailable', 'timeout', 'revocation_unknown']

/** Tries again for a minute while the answer is one that passes; returns early when `signal` aborts. */
export async function persistently(act: () => Promise<unknown>, signal: AbortSignal): Promise<void> {
  const deadline = Date.now() + READY_TIMEOUT_MS
  while (!signal.aborted) {
    try {
      await act()
      return
    } catch (error) {
      if (!PASSING.includes(errorCode(error)) || Date.now() > deadline) throw error
    }
    await sleep(RETRY_MS, signal)
  }
}

/** For polls: no answer yet is none, and any other failure is one. */
export function nothingYet(error: unknown): undefined {
  if (!PASSING.includes(errorCode(error))) throw error
}
