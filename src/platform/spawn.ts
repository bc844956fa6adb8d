/** Other programs: started by name and argument array, never through a shell; secrets go in by standard input. */
import { spawn } from 'node:child_process'
import { constants } from 'node:os'
import { CertpeerError } from '../core/errors.ts'

export interface RunOptions {
  /** Standard input; none means /dev/null. */
  readonly input?: string | Buffer
  /** After this the program is killed and `timeout` is thrown. */
  readonly timeoutMs: number
  readonly cwd?: string
  /** The whole environment; absent: ours. */
  readonly env?: NodeJS.ProcessEnv
  /** Bytes kept of each output, 16 MiB unless said; beyond it the program is killed. */
  readonly maxBytes?: number
  readonly signal?: AbortSignal
}

export interface RunResult {
  /** Exit status; 128 + number when a signal ended it, as shells say. */
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/**
 * Runs a program to its end. A status other than 0 is an answer, not an error. Throws missing_program, timeout, or
 * missing_privilege when it may not be executed.
 */
export function run(command: string, args: readonly string[], options: RunOptions): Promise<RunResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      ...(options.cwd !== undefined && { cwd: options.cwd }),
      ...(options.env !== undefined && { env: options.env }),
    })
    let failure: CertpeerError | undefined
    const end = (error: CertpeerError) => {
      failure ??= error
      child.kill('SIGKILL')
    }
    const limit = options.maxBytes ?? 16 * 1024 * 1024
    const keep = (chunks: Buffer[]) => {
      let bytes = 0
      return (chunk: Buffer) => {
        bytes += chunk.length
        if (bytes > limit) end(new CertpeerError('unavailable', `${command} wrote more than ${limit} bytes`))
        else chunks.push(chunk)
      }
    }
    const stdout: Buffer[] = []
    const stderr: Buffer[] = []
    child.stdout?.on('data', keep(stdout))
    child.stderr?.on('data', keep(stderr))
    // A program may end without reading its input; its exit status says what happened.
    child.stdin?.on('error', () => undefined)
    child.stdin?.end(options.input)

    const timer = setTimeout(
      () => end(new CertpeerError('timeout', `${command} did not end within ${options.timeoutMs} ms`)),
      options.timeoutMs,
    )
    const onAbort = () => end(new CertpeerError('unavailable', `${command} was stopped`))
    if (options.signal?.aborted === true) onAbort()
    options.signal?.addEventListener('abort', onAbort, { once: true })
    const settle = () => {
      clearTimeout(timer)
      options.signal?.removeEventListener('abort', onAbort)
    }
    child.on('error', (error: NodeJS.ErrnoException) => {
      settle()
      reject(failure ?? startFailure(command, options.cwd, error))
    })
    child.on('close', (code, signal) => {
      settle()
      if (failure !== undefined) {
        reject(failure)
        return
      }
      resolve({
        code: code ?? 128 + (signal === null ? 0 : constants.signals[signal]),
        stdout: Buffer.concat(stdout).toString('utf8'),
        stderr: Buffer.concat(stderr).toString('utf8'),
      })
    })
  })
}

/** As `run`, but any status other than 0 is thrown as `unavailable` with the last lines of standard error. */
export async function runOrThrow(command: string, args: readonly string[], options: RunOptions): Promise<RunResult> {
  const result = await run(command, args, options)
  if (result.code === 0) return result
  const said = (result.stderr.trim() || result.stdout.trim()).split('\n').slice(-3).join(' | ').slice(0, 500)
  throw new CertpeerError('unavailable', `${command} ended with status ${result.code}: ${said}`)
}

function startFailure(command: string, cwd: string | undefined, error: NodeJS.ErrnoException): CertpeerError {
  // A missing working directory is reported by the system as if the program were missing.
  const place = cwd === undefined ? '' : ` in ${cwd}`
  if (error.code === 'ENOENT') {
    return new CertpeerError('missing_program', `cannot start ${command}${place}: not found; install it`, {
      cause: error,
    })
  }
  if (error.code === 'EACCES' || error.code === 'EPERM') {
    return new CertpeerError('missing_privilege', `cannot start ${command}${place}: not permitted`, { cause: error })
  }
  return new CertpeerError('unavailable', `cannot start ${command}${place}`, { cause: error })
}
