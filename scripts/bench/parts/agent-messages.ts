/** What the process of stand-in gateways is told and what it answers. */

export interface StartAgents {
  readonly type: 'start'
  /** Joined credential directories, one agent each. */
  readonly dirs: readonly string[]
}

/** Answer with the removals of this key when every agent has made its own. */
export interface ExpectRemoval {
  readonly type: 'expect'
  readonly publicKey: string
}

export type AgentMessage = StartAgents | ExpectRemoval

export type AgentAnswer =
  | { readonly type: 'started' }
  /** Instants on the monotonic clock of this machine, in milliseconds, one for each agent. */
  | { readonly type: 'removed'; readonly publicKey: string; readonly atMs: readonly number[] }
  | { readonly type: 'failed'; readonly message: string }

/** The same in every process of one machine. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}
