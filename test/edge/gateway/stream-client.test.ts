/** The stream's client against a server that means harm, or has gone without a word. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { StreamClient } from '../../../src/edge/gateway/stream-client.ts'
import type { ApiStream } from '../../../src/platform/api-client/client.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { NOW } from '../../support/certificates.ts'
import { GatewayWorld, NETWORK } from '../../support/gateway-world.ts'

test('a server that reads nothing costs a few megabytes, and then its stream', async () => {
  const session = (await GatewayWorld.create()).readySession()
  const stopped = new AbortController()
  const over = new AbortController()
  let unreadBytes = 0
  const stream: ApiStream = {
    lines: (async function* () {
      yield '{"type":"ping"}'
      await new Promise((resolve) => over.signal.addEventListener('abort', resolve))
    })(),
    write(line) {
      unreadBytes += line.length
      return false
    },
    closed: over.signal,
    end: () => undefined,
    destroy: () => over.abort(),
  }
  const client = new StreamClient({
    session,
    connect: () => ({ openStream: () => Promise.resolve(stream) }),
    clock: () => NOW,
    log: silentLogger(),
    onChange: () => undefined,
  })
  const running = client.run(stopped.signal)
  while (!client.isConnected) await new Promise((resolve) => setImmediate(resolve))
  const failed = Array.from({ length: 1000 }, (_, index) => ({ serial: `${1e15 + index}`, code: 'stale_crl' }))
  for (let n = 0; n < 1000 && !over.signal.aborted; n++) {
    client.send({ type: 'applied', network: NETWORK, revision: n, failed })
  }
  assert.ok(over.signal.aborted)
  assert.ok(unreadBytes < 10_000_000, `${unreadBytes} bytes`)
  stopped.abort()
  await running
})
