/** Starts the load generator and talks to it. */
import { fork, type ChildProcess } from 'node:child_process'
import { join } from 'node:path'
import { packageRoot } from '../../../src/platform/package-root.ts'
import type { LoadAnswer, LoadMessage, RunResult } from './load-messages.ts'
import type { Credential } from './pki.ts'

export class LoadGenerator implements Disposable {
  readonly #child: ChildProcess

  constructor() {
    this.#child = fork(join(packageRoot(), 'dist', 'scripts', 'bench', 'parts', 'load.js'))
  }

  async open(port: number, rootPem: string, devices: readonly Credential[]): Promise<void> {
    await this.#ask({ type: 'open', port, rootPem, devices })
  }

  async run(inFlight: number, durationMs: number): Promise<RunResult> {
    const answer = await this.#ask({ type: 'run', inFlight, durationMs })
    if (answer.type !== 'ran') throw new TypeError('the load generator did not run')
    return answer
  }

  async close(): Promise<void> {
    await this.#ask({ type: 'close' })
  }

  #ask(message: LoadMessage): Promise<LoadAnswer> {
    return new Promise((resolve, reject) => {
      const onExit = () => reject(new Error('the load generator has ended'))
      this.#child.once('exit', onExit)
      this.#child.once('message', (answer: LoadAnswer) => {
        this.#child.off('exit', onExit)
        if (answer.type === 'failed') reject(new Error(answer.message))
        else resolve(answer)
      })
      this.#child.send(message)
    })
  }

  [Symbol.dispose](): void {
    this.#child.kill('SIGTERM')
  }
}
