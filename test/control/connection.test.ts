import assert from 'node:assert/strict'
import { setImmediate as turn } from 'node:timers/promises'
import { test } from 'node:test'
import { GatewayStream } from '../../src/control/stream/connection.ts'
import type { Page, SharedLine, StreamSource } from '../../src/control/stream/connection.ts'
import { encodeDown } from '../../src/control/stream/encode.ts'
import { Feed } from '../../src/control/stream/feed.ts'
import type { ChangeRow } from '../../src/control/db/changes.ts'
import type { GatewayPrincipal } from '../../src/control/principal.ts'
import type { StreamDuplex } from '../../src/platform/http/types.ts'
import { silentLogger } from '../../src/platform/log.ts'

const NETWORK = 'default/default'

/** Both ends of a stream in memory; `full` makes every write answer false until it drains. */
function fakeStream(options: { feed: Feed; revision: number }) {
  const written: string[] = []
  const incoming: string[] = []
  const crls = new Map<string, SharedLine>()
  let full = false
  let drain: () => void = () => undefined
  let arrived: () => void = () => undefined
  let databaseWorks = true
  let nowMs = 1_000_000
  const closed = new AbortController()
  const page = (bytes: Buffer, revision: number): Page => ({ bytes, revision, after: undefined })
  const read = async (what: Page | undefined): Promise<Page | undefined> => {
    await turn()
    if (!databaseWorks) throw new Error('the database is away')
    return what
  }
  const source: StreamSource = {
    issuers: () => undefined,
    crls: () => crls,
    document: () => undefined,
    feed: () => options.feed,
    readChanges: (_feed, revision) => read(page(Buffer.from(`changes after ${revision}\n`), options.feed.revision)),
    readSnapshot: async (_feed, revision) =>
      (await read(page(Buffer.from(`snapshot ${revision}\n`), revision))) ?? assert.fail('no page'),
    onHello: () => undefined,
    onApplied: () => undefined,
    onCrlApplied: () => undefined,
  }
  const duplex: StreamDuplex = {
    lines: (async function* () {
      for (;;) {
        const line = incoming.shift()
        if (line === undefined) await new Promise<void>((resolve) => (arrived = resolve))
        else yield line
      }
    })(),
    write(line) {
      written.push(line.toString().trim())
      return !full
    },
    drained: () => (full ? new Promise<void>((resolve) => (drain = resolve)) : Promise.resolve()),
    queuedBytes: () => 0,
    end: () => closed.abort(),
    closed: closed.signal,
  }
  const stream = new GatewayStream({
    principal: {
      kind: 'gateway',
      gateway: { name: 'g1', uri: 'x', servedNetworks: [NETWORK] },
    } as unknown as GatewayPrincipal,
    connectedTo: 'test',
    source,
    duplex,
    log: silentLogger(),
    nowMs: () => nowMs,
  })
  void stream.run()
  const say = async (message: unknown): Promise<void> => {
    incoming.push(JSON.stringify(message))
    arrived()
    for (let count = 0; count < 5; count += 1) await turn()
  }
  return {
    stream,
    written,
    say,
    hello: () => say({ type: 'hello', endpoint: 'h:1', revisions: { [NETWORK]: options.revision } }),
    putCrl: (number: string) => crls.set('k', { version: number, bytes: Buffer.from(`crl ${number}\n`) }),
    setFull(value: boolean) {
      full = value
      if (!value) drain()
    },
    setDatabase: (works: boolean) => (databaseWorks = works),
    pass: (ms: number) => (nowMs += ms),
    async settle() {
      for (let count = 0; count < 5; count += 1) await turn()
    },
  }
}

const change = (revision: number, bytes = 10): ChangeRow => ({
  ...{ revision, kind: 'set', serial: 'ab' },
  certificate: Buffer.alloc(bytes, 1),
})
const isSet = (line: string): boolean => line.includes('"set"')

test('a stream whose reader is behind writes nothing more, and then the CRL before the changes', async () => {
  const feed = new Feed({ id: '1', key: NETWORK, revision: 5 })
  const fake = fakeStream({ feed, revision: 5 })
  await fake.hello()
  fake.setFull(true)
  feed.append([change(6)])
  fake.stream.wake()
  assert.equal(fake.written.length, 1)
  for (let revision = 7; revision < 50; revision += 1) {
    feed.append([change(revision)])
    fake.stream.wake()
  }
  fake.putCrl('9')
  fake.stream.wake()
  await fake.settle()
  assert.equal(fake.written.length, 1)
  assert.notEqual(fake.stream.stalledSinceMs, undefined)
  fake.setFull(false)
  await fake.settle()
  assert.equal(fake.written[1], 'crl 9')
  assert.equal(fake.written.filter(isSet).length, 44)
  assert.equal(fake.stream.stalledSinceMs, undefined)
})

test('what the shared feed no longer holds comes from the database; too far behind, as a snapshot', async () => {
  const feed = new Feed({ id: '1', key: NETWORK, revision: 5, maxBytes: 500 })
  const fake = fakeStream({ feed, revision: 5 })
  await fake.hello()
  fake.setFull(true)
  for (let revision = 6; revision < 60; revision += 1) {
    feed.append([change(revision)])
    fake.stream.wake()
  }
  fake.setFull(false)
  await fake.settle()
  assert.equal(fake.written.at(-1), 'changes after 6')

  const far = new Feed({ id: '1', key: NETWORK, revision: 50_000 })
  const behind = fakeStream({ feed: far, revision: 1 })
  await behind.hello()
  assert.deepEqual(behind.written, ['snapshot 50000'])
})

test('CRLs and pings go out while the database is away, and the network follows when it is back', async () => {
  const feed = new Feed({ id: '1', key: NETWORK, revision: 5 })
  const fake = fakeStream({ feed, revision: 0 })
  fake.setDatabase(false)
  await fake.hello()
  fake.putCrl('2')
  fake.stream.ping()
  await fake.settle()
  assert.deepEqual(fake.written, ['crl 2', encodeDown({ type: 'ping' }).toString().trim()])
  fake.setDatabase(true)
  fake.stream.wake()
  await fake.settle()
  assert.equal(fake.written.length, 2, 'not asked again before the hub says so')
  fake.stream.retry()
  await fake.settle()
  assert.equal(fake.written.at(-1), 'snapshot 5')
})

test('a gateway that asks for snapshot after snapshot gets one a second', async () => {
  const feed = new Feed({ id: '1', key: NETWORK, revision: 5 })
  const fake = fakeStream({ feed, revision: 5 })
  await fake.hello()
  for (let count = 0; count < 20; count += 1) await fake.say({ type: 'resync', network: NETWORK })
  assert.deepEqual(fake.written, ['snapshot 5'])
  fake.pass(1000)
  await fake.say({ type: 'resync', network: NETWORK })
  assert.deepEqual(fake.written, ['snapshot 5', 'snapshot 5'])
  await fake.say({ type: 'resync', network: 'other/secret' })
  assert.equal(fake.written.length, 2)
})

test('a feed takes only what follows on, encodes it once and stays in its bounds', () => {
  const feed = new Feed({ id: '1', key: NETWORK, revision: 0, maxBytes: 2000 })
  assert.equal(feed.append([change(2)]), false)
  assert.equal(feed.append([change(1), change(3)]), false)
  assert.equal(feed.revision, 0)
  for (let revision = 1; revision <= 100; revision += 2)
    assert.ok(feed.append([change(revision), change(revision + 1)]))
  assert.equal(feed.linesAfter(0), undefined)
  assert.equal(feed.linesAfter(100), undefined)
  const both = feed.linesAfter(98)
  const second = feed.linesAfter(99)
  assert.deepEqual([both?.last, second?.last], [100, 100])
  assert.equal(both?.bytes.buffer, second?.bytes.buffer)
  assert.equal(both?.bytes.toString().split('\n').length, 3)
  assert.equal(second?.bytes.toString().split('\n').length, 2)
  feed.reset(7)
  assert.deepEqual([feed.revision, feed.linesAfter(7)], [7, undefined])
})
