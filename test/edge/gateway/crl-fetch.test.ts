/** What strangers answer over plain HTTP decides nothing, and must not end the agent either. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CrlFetcher } from '../../../src/edge/gateway/crl-fetch.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { NOW } from '../../support/certificates.ts'
import { GatewayWorld } from '../../support/gateway-world.ts'

test('a fault of ours over one answer hides no other', async () => {
  const world = await GatewayWorld.create()
  const session = world.readySession()
  session.takeWork()
  const asked: string[] = []
  const fetcher = new CrlFetcher({
    session,
    client: {
      get(path) {
        asked.push(path)
        if (path === '/issuers.json') return Promise.reject(new RangeError('a mistake'))
        const raw = world.makeCrl(world.root, { thisUpdate: -1000, nextUpdate: 1_000_000_000 })
        return Promise.resolve({ status: 200, headers: {}, raw })
      },
    },
    clock: () => NOW,
    log: silentLogger(),
    onChange: () => undefined,
  })
  await fetcher.poll()
  assert.deepEqual(asked, ['/issuers.json', '/crl/root.crl', '/networks/default/default.jws'])
  assert.equal(session.takeWork().crls.length, 1)
})
