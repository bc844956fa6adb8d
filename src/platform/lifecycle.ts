/** Start and end of a process: one AbortSignal says "stop", and waiting ends with it. */
import { constants } from 'node:os'

/** Closer together than this, two signals are one wish: timeout(1) and terminals signal a process and its group. */
const SAME_WISH_MS = 1_000

/**
 * A signal that aborts at the first SIGINT or SIGTERM. Another one, a second or more later, ends the process at once:
 * whoever asks again does not want to wait for a drain.
 */
export function abortOnSignals(): AbortSignal {
  const controller = new AbortController()
  let abortedAtMs = 0
  const stop = (name: 'SIGINT' | 'SIGTERM') => {
    if (!controller.signal.aborted) {
      abortedAtMs = performance.now()
      controller.abort()
    } else if (performance.now() - abortedAtMs >= SAME_WISH_MS) {
      process.exit(128 + constants.signals[name])
    }
  }
  process.on('SIGINT', stop)
  process.on('SIGTERM', stop)
  return controller.signal
}

/** Resolves after `ms` milliseconds or as soon as the signal aborts; never rejects. Look at `signal.aborted` after it. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted === true) {
      resolve()
      return
    }
    const finish = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', finish)
      resolve()
    }
    const timer = setTimeout(finish, ms)
    signal?.addEventListener('abort', finish, { once: true })
  })
}

/** Resolves when the signal aborts. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
