/** nginx as a child of `front`, where no supervisor starts it: in a container, or for a first look. */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import { retryDelayMs } from '../renewal-window.ts'

export interface NginxProcessOptions {
  readonly nginx: string
  readonly dir: string
  readonly log: Logger
  readonly signal: AbortSignal
}

/** How long open requests may take to end; streams resume elsewhere. */
const STOP_TIMEOUT_MS = 5_000
/** Running this long means that the last end was an accident and not a faulty start. */
const SETTLED_MS = 60_000
const MAX_FAILURES = 5

/** Keeps nginx running until `signal` aborts. Throws when it ends again and again right after its start. */
export async function runNginx({ nginx, dir, log, signal }: NginxProcessOptions): Promise<void> {
  let failures = 0
  for (;;) {
    const startedAtMs = performance.now()
    const code = await runOnce(nginx, dir, signal)
    if (signal.aborted) return
    failures = performance.now() - startedAtMs > SETTLED_MS ? 1 : failures + 1
    log.error({ code, failures }, 'nginx ended by itself')
    if (failures >= MAX_FAILURES) {
      throw new CertpeerError(
        'unavailable',
        `nginx ended ${failures} times in a row with status ${code}: see its messages above`,
      )
    }
    await sleep(retryDelayMs(failures - 1, 0.5), signal)
  }
}

function runOnce(nginx: string, dir: string, signal: AbortSignal): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(nginx, ['-p', `${dir}/`, '-c', join(dir, 'nginx.conf'), '-e', 'stderr'], {
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    let timer: NodeJS.Timeout | undefined
    const stop = () => {
      child.kill('SIGQUIT')
      timer = setTimeout(() => child.kill('SIGTERM'), STOP_TIMEOUT_MS)
    }
    if (signal.aborted) stop()
    signal.addEventListener('abort', stop, { once: true })
    child.on('error', (cause) => {
      signal.removeEventListener('abort', stop)
      reject(new CertpeerError('missing_program', `cannot start ${nginx}: install nginx`, { cause }))
    })
    child.on('exit', (code, name) => {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
      resolve(code ?? (name === null ? 0 : 128))
    })
  })
}
