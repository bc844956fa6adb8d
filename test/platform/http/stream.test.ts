import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { ApiClient } from '../../../src/platform/api-client/client.ts'
import { encodeLine } from '../../../src/platform/http/ndjson.ts'
import { startHttpServer, type HttpServer } from '../../../src/platform/http/server.ts'
import { defineStream, type StreamDefinition, type StreamDuplex } from '../../../src/platform/http/types.ts'
import { CertpeerError, errorCode } from '../../../src/core/errors.ts'
import { captureLog, opened, rawRequest, requestText, temporaryDirectory, until } from '../../support/http.ts'

const directory = temporaryDirectory()
const servers: HttpServer[] = []
after(async () => {
  await Promise.all(servers.map((server) => server.close()))
  directory.remove()
})

let sockets = 0

interface Started {
  readonly path: string
  readonly server: HttpServer
  readonly client: ApiClient
  readonly lines: Record<string, unknown>[]
}

async function start(
  handle: (duplex: StreamDuplex) => Promise<void>,
  options: Partial<StreamDefinition<undefined>> = {},
): Promise<Started> {
  const path = join(directory.path, `${++sockets}.sock`)
  const { log, lines } = captureLog()
  const route = defineStream({
    path: '/v1/stream',
    access: () => undefined,
    ...options,
    handle: (_head, _principal, duplex) => handle(duplex),
  })
  const server = await startHttpServer({ name: 'test', listen: { socketPath: path }, routes: [route], log })
  servers.push(server)
  return { path, server, client: new ApiClient({ base: `unix:${path}` }), lines }
}

async function collect(lines: AsyncIterable<string>): Promise<string[]> {
  const all: string[] = []
  for await (const line of lines) all.push(line)
  return all
}

const echo = async (duplex: StreamDuplex): Promise<void> => {
  for await (const line of duplex.lines) duplex.write(`got ${line}`)
}

const HEADERS = ['Content-Type: application/x-ndjson', 'Transfer-Encoding: chunked']
const chunk = (text: string | Buffer): Buffer =>
  Buffer.concat([Buffer.from(`${Buffer.byteLength(text).toString(16)}\r\n`), Buffer.from(text), Buffer.from('\r\n')])

test('both directions run side by side, a line each', async () => {
  const { client } = await start(echo)
  const stream = await client.openStream('/v1/stream')
  const lines = stream.lines[Symbol.asyncIterator]()
  for (const text of ['one', '{"two":"ü€😀"}', 'x'.repeat(60_000)]) {
    stream.write(text)
    assert.equal((await lines.next()).value, `got ${text}`)
  }
  stream.end()
  assert.equal((await lines.next()).done, true)
})

test('a reader that half-closes still gets what is on its way', async () => {
  const { client } = await start(async (duplex) => {
    const got = await collect(duplex.lines)
    // Its side is over; ours goes on until we end it.
    assert.equal(duplex.closed.aborted, false)
    for (let index = 0; index < 100; index++) duplex.write(`${got.length} ${index}`)
  })
  const stream = await client.openStream('/v1/stream')
  stream.write('a')
  stream.write('b')
  stream.end()
  const lines = await collect(stream.lines)
  assert.equal(lines.length, 100)
  assert.equal(lines.at(-1), '2 99')
})

test('characters and lines may be cut anywhere on the way', async () => {
  let got: string[] | undefined
  const { path } = await start(async (duplex) => {
    got = await collect(duplex.lines)
  })
  const socket = await opened(path)
  socket.write(requestText('POST', '/v1/stream', HEADERS))
  for (const byte of Buffer.from('ü€\n\n😀\nlast without an end')) {
    socket.write(chunk(Buffer.from([byte])))
    await new Promise((resolve) => setImmediate(resolve))
  }
  socket.write('0\r\n\r\n')
  await until(() => got !== undefined)
  // An empty line is nothing, and a line without its newline was cut off.
  assert.deepEqual(got, ['ü€', '😀'])
  socket.destroy()
})

for (const [name, bytes] of [
  ['a line over 64 KiB', Buffer.from(`${'x'.repeat(65_537)}\n`)],
  ['an endless line', Buffer.alloc(200_000, 'x')],
  ['bytes that are not UTF-8', Buffer.from([0x22, 0xff, 0x22, 0x0a])],
] as const) {
  test(`${name} ends the stream`, async () => {
    let thrown: unknown
    const { path, lines } = await start(async (duplex) => {
      try {
        await collect(duplex.lines)
      } catch (error) {
        thrown = error
        throw error
      }
    })
    const socket = await opened(path)
    const closed = new Promise((resolve) => socket.once('close', resolve))
    socket.on('error', () => undefined).resume()
    socket.write(requestText('POST', '/v1/stream', HEADERS))
    socket.write(chunk(bytes))
    await closed
    assert.equal(errorCode(thrown), 'malformed_message')
    assert.equal(lines.filter((line) => line['level'] === 'error').length, 0)
  })
}

test('a line of exactly 64 KiB passes', async () => {
  const { client } = await start(async (duplex) => {
    for await (const line of duplex.lines) duplex.write(String(line.length))
  })
  const stream = await client.openStream('/v1/stream')
  stream.write('x'.repeat(65_536))
  stream.end()
  assert.deepEqual(await collect(stream.lines), ['65536'])
})

test('a caller that goes away ends the lines and aborts closed', async () => {
  let ended = false
  let closed: AbortSignal | undefined
  const { path, lines } = await start(async (duplex) => {
    closed = duplex.closed
    await collect(duplex.lines)
    ended = true
    assert.equal(duplex.write('too late'), false)
  })
  const socket = await opened(path)
  socket.write(requestText('POST', '/v1/stream', HEADERS))
  await until(() => closed !== undefined)
  socket.destroy()
  await until(() => ended && closed?.aborted === true)
  assert.equal(lines.filter((line) => line['level'] === 'error').length, 0)
})

test('a stalled reader: write says false, drained waits, and memory stays bounded by what the hub queued', async () => {
  let duplex: StreamDuplex | undefined
  const { client } = await start(async (given) => {
    duplex = given
    await new Promise((resolve) => given.closed.addEventListener('abort', resolve))
  })
  const stream = await client.openStream('/v1/stream')
  assert.ok(duplex !== undefined)
  const line = encodeLine({ data: 'x'.repeat(10_000) })
  let written = 0
  while (duplex.write(line)) {
    if (++written > 10_000) assert.fail('write never said stop')
    await new Promise((resolve) => setImmediate(resolve))
  }
  assert.ok(duplex.queuedBytes() < 1_000_000, `${duplex.queuedBytes()} bytes queued`)
  let drained = false
  const waiting = duplex.drained().then(() => {
    drained = true
  })
  await new Promise((resolve) => setTimeout(resolve, 30))
  assert.equal(drained, false)
  const reading = collect(stream.lines)
  await waiting
  assert.equal(duplex.queuedBytes(), 0)
  duplex.end()
  assert.equal((await reading).length, written + 1)
})

test('a hub that writes on regardless loses the stream, not the memory', async () => {
  let duplex: StreamDuplex | undefined
  const { client, lines } = await start(
    async (given) => {
      duplex = given
      await new Promise((resolve) => given.closed.addEventListener('abort', resolve))
    },
    { maxQueuedBytes: 1_000_000 },
  )
  const stream = await client.openStream('/v1/stream')
  assert.ok(duplex !== undefined)
  for (let index = 0; index < 1000; index++) duplex.write(encodeLine('x'.repeat(10_000)))
  const { closed } = duplex
  await until(() => closed.aborted)
  assert.ok(lines.some((line) => line['msg'] === 'stream cut: its reader stalled'))
  assert.equal(lines.filter((line) => line['msg'] === 'stream cut: its reader stalled').length, 1)
  await assert.rejects(collect(stream.lines), { code: 'unavailable' })
  // Whoever waits for a drain that never comes is let go.
  await duplex.drained()
})

test('a stream outlives the time limits of plain requests', async () => {
  const path = join(directory.path, `${++sockets}.sock`)
  const { log } = captureLog()
  const server = await startHttpServer({
    name: 'test',
    listen: { socketPath: path },
    log,
    routes: [defineStream({ path: '/v1/stream', access: () => undefined, handle: (_head, _principal, d) => echo(d) })],
    timeouts: { headersMs: 100, bodyMs: 100 },
  })
  servers.push(server)
  const stream = await new ApiClient({ base: `unix:${path}` }).openStream('/v1/stream')
  await new Promise((resolve) => setTimeout(resolve, 1300))
  stream.write('still here')
  stream.end()
  assert.deepEqual(await collect(stream.lines), ['got still here'])
})

test('refusals come before the stream begins', async () => {
  const { path, client } = await start(echo)
  const wrongType = requestText('POST', '/v1/stream', ['Content-Type: application/json', 'Content-Length: 2'], '{}')
  assert.equal((await rawRequest(path, wrongType)).status, 415)
  assert.equal((await rawRequest(path, requestText('GET', '/v1/stream'))).status, 405)
  await assert.rejects(client.openStream('/v1/other'), { code: 'not_found' })
  const refusing = await start(echo, {
    access: () => {
      throw new CertpeerError('certificate_revoked', 'this certificate is revoked')
    },
  })
  await assert.rejects(refusing.client.openStream('/v1/stream'), {
    code: 'certificate_revoked',
    message: 'this certificate is revoked',
  })
})

test('a handler that throws cuts the stream, and the log says why', async () => {
  const { client, lines } = await start(async (duplex) => {
    duplex.write('begun')
    await duplex.drained()
    throw new Error('the hub broke')
  })
  const stream = await client.openStream('/v1/stream')
  await assert.rejects(collect(stream.lines), { code: 'unavailable' })
  const [logged, ...more] = lines.filter((line) => line['level'] === 'error')
  assert.equal(more.length, 0)
  assert.ok(JSON.stringify(logged).includes('the hub broke'))
})

for (const [name, wait] of [
  [
    'waits for closed',
    (duplex: StreamDuplex) => new Promise((resolve) => duplex.closed.addEventListener('abort', resolve)),
  ],
  ['reads lines', (duplex: StreamDuplex) => collect(duplex.lines)],
] as const) {
  test(`a closing server ends its streams at once, also one that ${name}`, async () => {
    const { client, server } = await start(async (duplex) => {
      duplex.write('begun')
      await wait(duplex)
    })
    const stream = await client.openStream('/v1/stream')
    const lines = stream.lines[Symbol.asyncIterator]()
    assert.equal((await lines.next()).value, 'begun')
    const started = Date.now()
    const closed = server.close()
    assert.equal((await lines.next()).done, true)
    await closed
    assert.ok(Date.now() - started < 2000)
  })
}

test('a Buffer must bring its newline', async () => {
  let thrown: unknown
  const { client } = await start(async (duplex) => {
    try {
      duplex.write(Buffer.from('no end'))
    } catch (error) {
      thrown = error
    }
    duplex.write(encodeLine({ fine: true }))
  })
  const stream = await client.openStream('/v1/stream')
  assert.deepEqual(await collect(stream.lines), ['{"fine":true}'])
  assert.ok(thrown instanceof TypeError)
})
