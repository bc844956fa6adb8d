/** Starts a process of stand-in gateways and talks to it. */
import { fork, type ChildProcess } from 'node:child_process'
import { join } from 'node:path'
import { packageRoot } from '../../../src/platform/package-root.ts'
import type { AgentAnswer, AgentMessage } from './agent-messages.ts'
import { stop } from './processes.ts'

export class AgentProcess implements AsyncDisposable {
  readonly #child: ChildProcess

  private constructor(child: ChildProcess) {
    this.#child = child
  }

  static async start(dirs: readonly string[], profileDir: string | undefined): Promise<AgentProcess> {
    const execArgv = profileDir === undefined ? [] : ['--cpu-prof', '--cpu-prof-dir', profileDir]
    const program = join(packageRoot(), 'dist', 'scripts', 'bench', 'parts', 'agents.js')
    const agents = new AgentProcess(fork(program, { execArgv }))
    await agents.#ask({ type: 'start', dirs })
    return agents
  }

  /** Resolves when every agent has removed the key: when each of them did. */
  async removed(publicKey: string): Promise<readonly number[]> {
    const answer = await this.#ask({ type: 'expect', publicKey })
    if (answer.type !== 'removed' || answer.publicKey !== publicKey) throw new TypeError('an answer to something else')
    return answer.atMs
  }

  #ask(message: AgentMessage): Promise<AgentAnswer> {
    return new Promise((resolve, reject) => {
      const onExit = () => reject(new Error('the stand-in gateways have ended'))
      this.#child.once('exit', onExit)
      this.#child.once('message', (answer: AgentAnswer) => {
        this.#child.off('exit', onExit)
        if (answer.type === 'failed') reject(new Error(answer.message))
        else resolve(answer)
      })
      this.#child.send(message)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await stop(this.#child, 'SIGTERM')
  }
}
