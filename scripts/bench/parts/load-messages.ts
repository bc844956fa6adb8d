/** What the load generator is told and what it answers; both are processes of one benchmark, so nothing is checked. */
import type { Credential } from './pki.ts'

export interface OpenMessage {
  readonly type: 'open'
  readonly port: number
  readonly rootPem: string
  readonly devices: readonly Credential[]
}

/** Keeps `inFlight` requests under way on the open connections, each connection putting and deleting in turn. */
export interface RunMessage {
  readonly type: 'run'
  readonly inFlight: number
  readonly durationMs: number
}

export interface CloseMessage {
  readonly type: 'close'
}

export type LoadMessage = OpenMessage | RunMessage | CloseMessage

export interface RunResult {
  readonly type: 'ran'
  readonly requests: number
  readonly elapsedMs: number
  readonly p50Ms: number
  readonly p99Ms: number
  /** Connections whose last request put a peer. */
  readonly put: number
  /** User and system time of the generator itself, in milliseconds. */
  readonly cpuMs: number
}

export type LoadAnswer = { readonly type: 'done' } | RunResult | { readonly type: 'failed'; readonly message: string }
