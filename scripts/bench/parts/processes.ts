/** Child processes of a benchmark: ended with it, however it ends, each by its own pid. */
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { packageRoot } from '../../../src/platform/package-root.ts'

const STOP_TIMEOUT_MS = 20_000

export interface ChildOptions {
  readonly name: string
  readonly command: string
  readonly args: readonly string[]
  readonly logDir: string
  readonly stopSignal?: NodeJS.Signals
  readonly env?: NodeJS.ProcessEnv
}

/** Everything that a benchmark started, stopped in reverse order. */
export class Children implements AsyncDisposable {
  readonly #children: { child: ChildProcess; stopSignal: NodeJS.Signals; logFile: string }[] = []

  /** Starts a program that stays; its output goes to `<logDir>/<name>.log`. */
  start(options: ChildOptions): ChildProcess {
    const { name, command, args, logDir, stopSignal = 'SIGTERM', env = process.env } = options
    const logFile = join(logDir, `${name}.log`)
    const log = openSync(logFile, 'a', 0o600)
    // The kernel ends it when the benchmark is killed and can no longer do it.
    const deathSignal = stopSignal.replace('SIG', '')
    const child = spawn('setpriv', ['--pdeathsig', deathSignal, '--', command, ...args], {
      stdio: ['ignore', log, log],
      env,
    })
    closeSync(log)
    this.#children.push({ child, stopSignal, logFile })
    return child
  }

  /** The ends of all logs, for the message of a failure. */
  lastWords(): string {
    return this.#children
      .map(({ logFile }) => `--- ${logFile}\n${readFileSync(logFile, 'utf8').slice(-2_000)}`)
      .join('\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { child, stopSignal } of this.#children.reverse()) await stop(child, stopSignal)
  }
}

export async function stop(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  child.kill(signal)
  const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS)
  await ended
  clearTimeout(timer)
}

/** A compiled program of this package, with its CPU profile written to `profileDir` at its end when that is given. */
export function nodeProgram(
  path: string,
  args: readonly string[],
  profileDir: string | undefined,
): { command: string; args: string[] } {
  const profile = profileDir === undefined ? [] : ['--cpu-prof', '--cpu-prof-dir', profileDir]
  return { command: process.execPath, args: [...profile, join(packageRoot(), 'dist', path), ...args] }
}

export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  if (address === null || typeof address === 'string') throw new TypeError('a TCP listener without a port')
  return address.port
}

/** Polls until the condition holds; throws naming `what` after half a minute. */
export async function until(
  what: string,
  condition: () => Promise<boolean> | boolean,
  timeoutMs = 30_000,
): Promise<void> {
  const deadline = Date.now() + timeoutMs
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}
