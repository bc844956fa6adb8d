/**
 * The child processes of `certpeer up`: started detached, ended with their parent even when it is killed, restarted with
 * back-off, given up after five failures in a minute. Stopped in the reverse order of their start.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { sleep } from '../../platform/lifecycle.ts'

export interface ChildSpec {
  readonly name: string
  readonly command: string
  readonly args: readonly string[]
  readonly env?: NodeJS.ProcessEnv
  /** What ends it cleanly: PostgreSQL's fast shutdown is INT, nginx's graceful one QUIT. */
  readonly stopSignal: 'SIGTERM' | 'SIGINT' | 'SIGQUIT'
  /** Sent by the kernel when `up` dies without a word. Default: `stopSignal`. */
  readonly parentDeathSignal?: 'SIGTERM' | 'SIGINT' | 'SIGQUIT'
  /** How long it may take to end before it is killed, in milliseconds. */
  readonly stopTimeoutMs?: number
}

interface Child {
  readonly spec: ChildSpec
  process: ChildProcess | undefined
  startedAtMs: number[]
  stopping: boolean
}

const MAX_STARTS = 5
const WINDOW_MS = 60_000
const FIRST_BACKOFF_MS = 200

export class Supervisor {
  readonly #logDir: string
  readonly #say: (line: string) => void
  readonly #children: Child[] = []
  #giveUp: (error: CertpeerError) => void = () => undefined
  /** Rejects when a child was given up; never resolves. */
  readonly failed: Promise<never>

  constructor(logDir: string, say: (line: string) => void) {
    this.#logDir = logDir
    this.#say = say
    this.failed = new Promise<never>((_, reject) => {
      this.#giveUp = reject
    })
    // Nobody may be waiting yet when the first child is given up.
    this.failed.catch(() => undefined)
  }

  /** Starts one child and keeps it running. Returns at once; readiness is the caller's question. */
  start(spec: ChildSpec): void {
    const child: Child = { spec, process: undefined, startedAtMs: [], stopping: false }
    this.#children.push(child)
    this.#launch(child)
  }

  pid(name: string): number | undefined {
    return this.#children.find((child) => child.spec.name === name)?.process?.pid
  }

  /** Stops everything, last started first; each gets its own signal and, when that is ignored, SIGKILL. */
  async stop(): Promise<void> {
    for (const child of [...this.#children].reverse()) await this.#stopOne(child)
  }

  #launch(child: Child): void {
    const { spec } = child
    child.startedAtMs.push(Date.now())
    const log = openSync(join(this.#logDir, `${spec.name}.log`), 'a', 0o600)
    const deathSignal = (spec.parentDeathSignal ?? spec.stopSignal).replace('SIG', '')
    // A group of its own: Ctrl-C at the terminal reaches `up` alone, which then stops the rest in order.
    const process_ = spawn('setpriv', ['--pdeathsig', deathSignal, '--', spec.command, ...spec.args], {
      detached: true,
      stdio: ['ignore', log, log],
      env: spec.env ?? process.env,
    })
    closeSync(log)
    child.process = process_
    process_.once('error', () => this.#ended(child, 'could not be started'))
    process_.once('exit', (code, signal) =>
      this.#ended(child, signal ? `ended by ${signal}` : `ended with ${code ?? '?'}`),
    )
  }

  #ended(child: Child, how: string): void {
    child.process = undefined
    if (child.stopping) return
    const now = Date.now()
    child.startedAtMs = child.startedAtMs.filter((at) => now - at < WINDOW_MS)
    if (child.startedAtMs.length >= MAX_STARTS) {
      const log = join(this.#logDir, `${child.spec.name}.log`)
      const message = `${child.spec.name} ${how}, ${MAX_STARTS} times within a minute; its last words are in ${log}`
      this.#giveUp(new CertpeerError('unavailable', message))
      return
    }
    const delayMs = FIRST_BACKOFF_MS * 2 ** (child.startedAtMs.length - 1)
    this.#say(`${child.spec.name} ${how}; starting it again in ${delayMs} ms`)
    setTimeout(() => {
      if (!child.stopping) this.#launch(child)
    }, delayMs)
  }

  async #stopOne(child: Child): Promise<void> {
    child.stopping = true
    const running = child.process
    if (running?.pid === undefined) return
    const ended = new Promise<void>((resolve) => running.once('exit', () => resolve()))
    running.kill(child.spec.stopSignal)
    const timeout = new AbortController()
    const late = sleep(child.spec.stopTimeoutMs ?? 10_000, timeout.signal).then(() => 'late' as const)
    const outcome = await Promise.race([ended, late])
    timeout.abort()
    if (outcome === 'late') {
      this.#say(`${child.spec.name} does not end; killing it`)
      running.kill('SIGKILL')
      await ended
    }
  }
}
