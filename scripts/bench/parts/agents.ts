/**
 * Stand-in gateways: the agent itself, as `certpeer gateway run` runs it, on devices in memory that note the instant at
 * which they have taken a removal. Many in one process, so that a hundred fit on a small machine.
 */
import { readOwnGateway } from '../../../src/edge/gateway/config.ts'
import { runGateway } from '../../../src/edge/gateway/main.ts'
import type { PeerChange } from '../../../src/core/wireguard/types.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { FakeDevice } from '../../../test/support/fake-device.ts'
import { monotonicMs, type AgentAnswer, type AgentMessage } from './agent-messages.ts'

const removals = new Map<string, number[]>()
const stopping = new AbortController()
let agents = 0
let expected: string | undefined

class NotingDevice extends FakeDevice {
  override async apply(changes: readonly PeerChange[]): Promise<void> {
    // Asked before, because a device takes the removal of what it does not have, too.
    const held = new Set<string>(this.keys())
    await super.apply(changes)
    const nowMs = monotonicMs()
    for (const change of changes) {
      if (change.kind !== 'remove' || !held.has(change.publicKey)) continue
      const atMs = removals.get(change.publicKey) ?? []
      atMs.push(nowMs)
      removals.set(change.publicKey, atMs)
    }
    answerWhenComplete()
  }
}

function answerWhenComplete(): void {
  if (expected === undefined) return
  const atMs = removals.get(expected) ?? []
  if (atMs.length < agents) return
  send({ type: 'removed', publicKey: expected, atMs })
  removals.delete(expected)
  expected = undefined
}

async function start(dirs: readonly string[]): Promise<void> {
  for (const dir of dirs) {
    const { identity } = await readOwnGateway(dir)
    agents += 1
    const device = new NotingDevice(identity.key)
    runGateway({ dir, log: silentLogger(), signal: stopping.signal, device }).catch((error: unknown) =>
      send({ type: 'failed', message: `${dir}: ${String(error)}` }),
    )
  }
  send({ type: 'started' })
}

function send(answer: AgentAnswer): void {
  if (process.connected) process.send?.(answer)
}

process.on('message', (message: AgentMessage) => {
  if (message.type === 'start') {
    start(message.dirs).catch((error: unknown) => send({ type: 'failed', message: String(error) }))
  } else {
    expected = message.publicKey
    answerWhenComplete()
  }
})
// Its parent's end, or SIGTERM, is its own.
process.on('disconnect', () => stopping.abort())
process.on('SIGTERM', () => stopping.abort())
stopping.signal.addEventListener('abort', () => {
  if (process.connected) process.disconnect()
})
