/**
 * The child processes of `certpeer up`: started detached, ended with their parent even when it is killed, restarted with
 * back-off, given up after five failures in a minute, and sooner when they refuse to start. Stopped in the reverse order
 * of their start.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { sleep } from '../../platform/lifecycle.ts'
import { EXIT } from '../output.ts'

export interface ChildSpec {
  readonly name: string
  readonly command: string
  readonly args: readonly string[]
  readonly env?: NodeJS.ProcessEnv
  /** What ends it cleanly: PostgreSQL's fast shutdown is INT, nginx's graceful one QUIT. */
  readonly stopSignal: 'SIGTERM' | 'SIGINT' | 'SIGQUIT'
  /** How long it may take to end before it is killed, in milliseconds. */
  readonly stopTimeoutMs?: number
  /** Clears what an end by kill -9 left in the way of the next start. */
  readonly beforeRestart?: () => Promise<void>
}

interface Child {
  readonly spec: ChildSpec
  process: ChildProcess | undefined
  startedAtMs: number[]
  /** What it said when it refused to start, and how often in a row. */
  refusal: { readonly line: string; times: number } | undefined
}

const MAX_STARTS = 5
/** A refusal (the ledger is damaged, a program is missing) that is repeated word for word is one that stays. */
const MAX_REFUSALS = 3
const WINDOW_MS = 60_000
const FIRST_BACKOFF_MS = 200
/** How much of a log is searched for the last words of a child. */
const LAST_WORDS_BYTES = 16_384

export class Supervisor {
  readonly #logDir: string
  readonly #say: (line: string) => void
  readonly #children: Child[] = []
  #stopping = false
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
    if (this.#stopping) throw new CertpeerError('unavailable', `${spec.name} is not started: certpeer is stopping`)
    const child: Child = { spec, process: undefined, startedAtMs: [], refusal: undefined }
    this.#children.push(child)
    this.#launch(child)
  }

  pid(name: string): number | undefined {
    return this.#children.find((child) => child.spec.name === name)?.process?.pid
  }

  /** Stops everything, last started first; each gets its own signal and, when that is ignored, SIGKILL. */
  async stop(): Promise<void> {
    // For all at once: none may be started again while the others are still ending.
    this.#stopping = true
    for (const child of [...this.#children].reverse()) await this.#stopOne(child)
  }

  #launch(child: Child): void {
    const { spec } = child
    child.startedAtMs.push(Date.now())
    const log = openSync(join(this.#logDir, `${spec.name}.log`), 'a', 0o600)
    const saidBefore = fstatSync(log).size
    // A group of its own: Ctrl-C at the terminal reaches `up` alone, which then stops the rest in order. When `up` dies
    // without a word, the kernel tells each child.
    const process_ = spawn(
      'setpriv',
      ['--pdeathsig', spec.stopSignal.replace('SIG', ''), '--', spec.command, ...spec.args],
      { detached: true, stdio: ['ignore', log, log], env: spec.env ?? process.env },
    )
    closeSync(log)
    child.process = process_
    const ended = (how: string, code?: number | null) => {
      // A process that could not be started may tell it twice.
      if (child.process !== process_) return
      child.process = undefined
      if (!this.#stopping)
        this.#restart(child, how, code === EXIT.machine ? this.#lastWords(spec.name, saidBefore) : '')
    }
    process_.once('error', () => ended('could not be started'))
    process_.once('exit', (code, signal) => ended(signal ? `ended by ${signal}` : `ended with ${code ?? '?'}`, code))
  }

  #restart(child: Child, how: string, refusal: string): void {
    const { name, beforeRestart } = child.spec
    const log = join(this.#logDir, `${name}.log`)
    const times = refusal !== '' && refusal === child.refusal?.line ? child.refusal.times + 1 : 1
    child.refusal = refusal === '' ? undefined : { line: refusal, times }
    if (refusal !== '' && times >= MAX_REFUSALS) {
      this.#giveUp(new CertpeerError('config_invalid', `${name} does not start: ${refusal}`))
      return
    }
    const now = Date.now()
    child.startedAtMs = child.startedAtMs.filter((at) => now - at < WINDOW_MS)
    if (child.startedAtMs.length >= MAX_STARTS) {
      const words = this.#lastWords(name, 0)
      const message = `${name} ${how}, ${MAX_STARTS} times within a minute${words === '' ? '' : `: ${words}`} (see ${log})`
      this.#giveUp(new CertpeerError('unavailable', message))
      return
    }
    const delayMs = FIRST_BACKOFF_MS * 2 ** (child.startedAtMs.length - 1)
    this.#say(`${name} ${how}; starting it again in ${delayMs} ms`)
    setTimeout(() => {
      const prepared = beforeRestart?.() ?? Promise.resolve()
      prepared
        .catch((error: unknown) => this.#say(`${name}: ${error instanceof Error ? error.message : String(error)}`))
        .then(() => {
          if (!this.#stopping) this.#launch(child)
        })
        .catch((error: unknown) =>
          this.#giveUp(new CertpeerError('unavailable', `${name} could not be started again`, { cause: error })),
        )
    }, delayMs)
  }

  /** The last line that tells a failure in the log's part from `offset` on, without the program's name; or nothing. */
  #lastWords(name: string, offset: number): string {
    let log: number
    try {
      log = openSync(join(this.#logDir, `${name}.log`), 'r')
    } catch {
      return ''
    }
    try {
      const { size } = fstatSync(log)
      const from = Math.max(offset, size - LAST_WORDS_BYTES)
      const buffer = Buffer.alloc(Math.max(0, size - from))
      const bytesRead = readSync(log, buffer, 0, buffer.length, from)
      const lines = buffer.toString('utf8', 0, bytesRead).split('\n')
      const line = lines.findLast((text) => FAILURE.test(text))
      return line === undefined ? '' : line.replace(FAILURE, '').trim().slice(0, 500)
    } finally {
      closeSync(log)
    }
  }

  async #stopOne(child: Child): Promise<void> {
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

/** How our own program, nginx and PostgreSQL begin the line that says why they end. */
const FAILURE = /^(?:certpeer: |nginx: \[emerg\] |\S+ \S+ UTC \[\d+\] (?:FATAL|PANIC):\s+)/
