import assert from 'node:assert/strict'
import { chmodSync, existsSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { CertpeerError } from '../../../src/core/errors.ts'
import { problemSchema } from '../../../src/core/messages/problem.ts'
import { startHttpServer, type HttpServer, type HttpServerOptions } from '../../../src/platform/http/server.ts'
import { defineRoute, defineStream, type Route, type RouteHead } from '../../../src/platform/http/types.ts'
import {
  captureLog,
  jsonRequestText,
  opened,
  parseAnswer,
  rawRequest,
  requestText,
  temporaryDirectory,
  until,
  type RawAnswer,
} from '../../support/http.ts'

const directory = temporaryDirectory()
const servers: HttpServer[] = []
after(async () => {
  await Promise.all(servers.map((server) => server.close()))
  directory.remove()
})

let sockets = 0

async function start(
  routes: readonly Route[],
  options: Partial<Omit<HttpServerOptions, 'routes' | 'log'>> = {},
): Promise<{ path: string; server: HttpServer; lines: Record<string, unknown>[] }> {
  const path = join(directory.path, `${++sockets}.sock`)
  const { log, lines } = captureLog()
  const server = await startHttpServer({ name: 'test', listen: { socketPath: path }, ...options, routes, log })
  servers.push(server)
  return { path, server, lines }
}

const everybody = (): string => 'anybody'

/** The shape that every refusal has, whoever refuses. */
function assertProblem(answer: RawAnswer, status: number, code: string): void {
  assert.equal(answer.status, status, answer.text.slice(0, 300))
  assert.equal(answer.headers.get('content-type'), 'application/problem+json')
  const problem = problemSchema.parse(answer.json)
  assert.equal(problem.status, status)
  assert.equal(problem.code, code)
  assert.equal(problem.type, 'about:blank')
  assert.ok(problem.title.length > 0)
  assert.match(problem.requestId ?? '', /^[A-Za-z0-9-]{8,64}$/)
  assert.equal(answer.headers.get('x-request-id'), problem.requestId)
  assert.equal(Number(answer.headers.get('content-length')), Buffer.byteLength(answer.body))
}

/** The same routes twice, so that every refusal is asked of the hot dispatch and of express. */
function pair(hot: boolean): Route[] {
  return [
    defineRoute({
      method: 'PUT',
      path: '/v1/peer',
      hot,
      maxBytes: 1000,
      access: everybody,
      handle: ({ body }) => ({ status: 200, json: { body } }),
    }),
    defineRoute({
      method: 'GET',
      path: '/v1/things/:id',
      hot,
      access: everybody,
      handle: ({ params, query }) => ({ status: 200, json: { params, query: [...query] } }),
    }),
    defineRoute({
      method: 'POST',
      path: '/v1/raw',
      hot,
      bodyType: 'raw',
      contentTypes: ['application/ocsp-request'],
      access: everybody,
      handle: ({ body }) => ({
        status: 200,
        raw: { contentType: 'application/octet-stream', body: body as Buffer },
        headers: { etag: '"1"' },
      }),
    }),
  ]
}

const big = 'x'.repeat(1001)
const chunked = ['Content-Type: application/json', 'Transfer-Encoding: chunked']

const REFUSALS: readonly { name: string; request: string | Buffer; status: number; code: string; allow?: string }[] = [
  { name: 'an unknown path', request: requestText('GET', '/v1/nothing'), status: 404, code: 'not_found' },
  { name: 'the root', request: requestText('GET', '/'), status: 404, code: 'not_found' },
  { name: 'a longer path', request: requestText('GET', '/v1/things/a/b'), status: 404, code: 'not_found' },
  { name: 'a trailing slash', request: requestText('GET', '/v1/things/a/'), status: 404, code: 'not_found' },
  { name: 'another case', request: requestText('GET', '/V1/things/a'), status: 404, code: 'not_found' },
  { name: 'doubled slashes', request: requestText('GET', '//v1/things/a'), status: 404, code: 'not_found' },
  { name: 'inner doubled slashes', request: requestText('GET', '/v1//things/a'), status: 404, code: 'not_found' },
  { name: 'an empty parameter', request: requestText('GET', '/v1/things/'), status: 404, code: 'not_found' },
  { name: 'an escaped slash', request: requestText('GET', '/v1/things/a%2fb'), status: 404, code: 'not_found' },
  { name: 'an escaped literal', request: requestText('GET', '/v1/%74hings/a'), status: 404, code: 'not_found' },
  { name: 'an escaped NUL', request: requestText('GET', '/v1/things/a%00'), status: 404, code: 'not_found' },
  { name: 'an escaped backslash', request: requestText('GET', '/v1/things/a%5cb'), status: 404, code: 'not_found' },
  {
    name: 'escapes that are not UTF-8',
    request: requestText('GET', '/v1/things/%ff'),
    status: 400,
    code: 'malformed_request',
  },
  ...['/v1/../v1/things/a', '/v1/things/..', '/v1/things/%2e%2e', '/v1/things/.%2E', '/./v1/things/a'].map((path) => ({
    name: `dot segments ${path}`,
    request: requestText('GET', path),
    status: 400,
    code: 'malformed_request',
  })),
  ...['/v1/things/a%', '/v1/things/%zz', '/v1/things/a\\b', 'http://test/v1/things/a', '*', '/v1/things/"'].map(
    (path) => ({
      name: `target ${path}`,
      request: requestText('GET', path),
      status: 400,
      code: 'malformed_request',
    }),
  ),
  {
    name: 'a target over 8 KiB',
    request: requestText('GET', `/v1/things/${'a'.repeat(9000)}`),
    status: 400,
    code: 'malformed_request',
  },
  {
    name: 'a wrong method',
    request: requestText('DELETE', '/v1/peer'),
    status: 405,
    code: 'method_not_allowed',
    allow: 'PUT',
  },
  {
    name: 'a wrong method on a parameter',
    request: requestText('POST', '/v1/things/a', ['Content-Length: 0']),
    status: 405,
    code: 'method_not_allowed',
    allow: 'GET, HEAD',
  },
  {
    name: 'OPTIONS',
    request: requestText('OPTIONS', '/v1/peer'),
    status: 405,
    code: 'method_not_allowed',
    allow: 'PUT',
  },
  { name: 'TRACE', request: requestText('TRACE', '/v1/peer'), status: 405, code: 'method_not_allowed', allow: 'PUT' },
  { name: 'no JSON', request: jsonRequestText('PUT', '/v1/peer', '{"a":'), status: 400, code: 'malformed_request' },
  { name: 'an empty body', request: jsonRequestText('PUT', '/v1/peer', ''), status: 400, code: 'malformed_request' },
  { name: 'two values', request: jsonRequestText('PUT', '/v1/peer', '{}{}'), status: 400, code: 'malformed_request' },
  {
    name: 'a byte order mark',
    request: jsonRequestText('PUT', '/v1/peer', '\ufeff{}'),
    status: 400,
    code: 'malformed_request',
  },
  ...[
    '{"__proto__":{"admin":true}}',
    '{"a":[{"\\u005f_proto__":{"admin":true}}]}',
    '{"__pr\\u006fto__":1}',
    '{"constructor":{"prototype":{"admin":true}}}',
  ].map((body) => ({
    name: `prototype pollution ${body}`,
    request: jsonRequestText('PUT', '/v1/peer', body),
    status: 400,
    code: 'malformed_request',
  })),
  {
    name: 'JSON that is not UTF-8',
    request: Buffer.concat([
      Buffer.from(requestText('PUT', '/v1/peer', ['Content-Type: application/json', 'Content-Length: 4'])),
      Buffer.from([0x22, 0xff, 0xfe, 0x22]),
    ]),
    status: 400,
    code: 'malformed_request',
  },
  ...[
    'text/plain',
    'application/x-www-form-urlencoded',
    'application/json; charset=latin1',
    'application/jsonx',
    '',
  ].map((type) => ({
    name: `content type "${type}"`,
    request: requestText('PUT', '/v1/peer', [`Content-Type: ${type}`, 'Content-Length: 2'], '{}'),
    status: 415,
    code: 'unsupported_media_type',
  })),
  {
    name: 'no content type',
    request: requestText('PUT', '/v1/peer', ['Content-Length: 2'], '{}'),
    status: 415,
    code: 'unsupported_media_type',
  },
  {
    name: 'a compressed body',
    request: jsonRequestText('PUT', '/v1/peer', '{}', ['Content-Encoding: gzip']),
    status: 415,
    code: 'unsupported_media_type',
  },
  {
    name: 'an announced body that is too large',
    request: jsonRequestText('PUT', '/v1/peer', JSON.stringify(big)),
    status: 413,
    code: 'body_too_large',
  },
  {
    name: 'a chunked body that grows too large',
    request: requestText('PUT', '/v1/peer', chunked, `${big.length.toString(16)}\r\n${big}\r\n0\r\n\r\n`),
    status: 413,
    code: 'body_too_large',
  },
  {
    name: 'a body where none is taken',
    request: jsonRequestText('GET', '/v1/things/a', '{}'),
    status: 413,
    code: 'body_too_large',
  },
  {
    name: 'a doubled certificate header',
    request: requestText('GET', '/v1/things/a', ['X-Client-Cert: a', 'x-client-cert: a']),
    status: 400,
    code: 'malformed_request',
  },
  {
    name: 'a doubled verdict header',
    request: requestText('GET', '/v1/things/a', ['X-Client-Verify: SUCCESS', 'X-Client-Verify: NONE']),
    status: 400,
    code: 'malformed_request',
  },
  {
    name: 'a doubled content type',
    request: jsonRequestText('PUT', '/v1/peer', '{}', ['Content-Type: text/plain']),
    status: 400,
    code: 'malformed_request',
  },
  {
    name: 'a doubled content length',
    request: jsonRequestText('PUT', '/v1/peer', '{}', ['Content-Length: 3']),
    status: 400,
    code: 'malformed_request',
  },
  {
    name: 'content length beside chunks',
    request: jsonRequestText('PUT', '/v1/peer', '0\r\n\r\n', ['Transfer-Encoding: chunked']),
    status: 400,
    code: 'malformed_request',
  },
  {
    name: 'a header name with a space',
    request: requestText('GET', '/v1/things/a', ['X-Client-Verify : SUCCESS']),
    status: 400,
    code: 'malformed_request',
  },
  {
    name: 'a header over 32 KiB',
    request: requestText('GET', '/v1/things/a', [`X-Client-Cert: ${'a'.repeat(33_000)}`]),
    status: 431,
    code: 'malformed_request',
  },
  { name: 'no HTTP', request: 'SSH-2.0-OpenSSH_9.2\r\n\r\n', status: 400, code: 'malformed_request' },
  { name: 'a TLS hello', request: Buffer.from('16030100a5010000a1', 'hex'), status: 400, code: 'malformed_request' },
  { name: 'no host', request: 'GET /v1/things/a HTTP/1.1\r\n\r\n', status: 400, code: 'malformed_request' },
]

for (const side of ['hot dispatch', 'express'] as const) {
  describe(`refusals, ${side}`, async () => {
    const { path, lines } = await start(pair(side === 'hot dispatch'))
    for (const { name, request, status, code, allow } of REFUSALS) {
      test(`${name} is ${status} ${code}`, async () => {
        const answer = await rawRequest(path, request)
        assertProblem(answer, status, code)
        assert.equal(answer.headers.get('allow'), allow)
      })
    }
    test('a folded header is one value, and no second header', async () => {
      const folded = requestText('GET', '/v1/things/a', ['X-Client-Verify: SUCCESS', ' , NONE'])
      const answer = await rawRequest(path, folded)
      // Refused by the parser or kept as one odd value: never read as SUCCESS (see client-cert.test.ts).
      assert.ok(answer.status === 400 || answer.status === 200)
    })
    test('nothing of it polluted a prototype, and nothing of it is an error of ours', () => {
      assert.equal(({} as Record<string, unknown>)['admin'], undefined)
      assert.deepEqual(
        lines.filter((line) => line['level'] === 'error'),
        [],
      )
    })
    test('and the plain requests are answered', async () => {
      const put = await rawRequest(path, jsonRequestText('PUT', '/v1/peer', '{"a":["ü"]}'))
      assert.deepEqual([put.status, put.json], [200, { body: { a: ['ü'] } }])
      assert.equal(put.headers.get('content-type'), 'application/json')
      assert.equal(put.headers.get('cache-control'), 'no-store')
      const get = await rawRequest(path, requestText('GET', '/v1/things/a%20b?x=1&x=2'))
      const query = [
        ['x', '1'],
        ['x', '2'],
      ]
      assert.deepEqual([get.status, get.json], [200, { params: { id: 'a b' }, query }])
      const head = await rawRequest(path, requestText('HEAD', '/v1/things/a'))
      assert.deepEqual([head.status, head.body], [200, ''])
      assert.ok(Number(head.headers.get('content-length')) > 0)
      const parts = await rawRequest(
        path,
        requestText('PUT', '/v1/peer', chunked, '3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n'),
      )
      assert.deepEqual(parts.json, { body: { a: 1 } })
      const charset = await rawRequest(
        path,
        requestText('PUT', '/v1/peer', ['Content-Type: Application/JSON; Charset="UTF-8"', 'Content-Length: 2'], '{}'),
      )
      assert.equal(charset.status, 200)
      const raw = await rawRequest(
        path,
        requestText('POST', '/v1/raw', ['Content-Type: application/ocsp-request', 'Content-Length: 2'], 'hi'),
      )
      assert.deepEqual([raw.status, raw.body, raw.headers.get('etag')], [200, 'hi', '"1"'])
    })
  })
}

test('two requests on one connection are told apart, also after a refusal', async () => {
  const { path } = await start(pair(true))
  const both = requestText('GET', '/v1/nothing') + requestText('GET', '/v1/things/a')
  const { text } = await rawRequest(path, both, { all: true })
  assert.match(text, /^HTTP\/1\.1 404 /)
  assert.match(text, /HTTP\/1\.1 200 OK/)
})

test('a stranger is refused before his body is read', async () => {
  let parsed = false
  const { path } = await start([
    defineRoute({
      method: 'POST',
      path: '/v1/x',
      hot: true,
      access: () => {
        throw new CertpeerError('client_certificate_required', 'who are you?')
      },
      handle: () => {
        parsed = true
        return { status: 200 }
      },
    }),
  ])
  const started = Date.now()
  const answer = await rawRequest(
    path,
    requestText('POST', '/v1/x', ['Content-Type: text/plain', 'Content-Length: 1000000000'], 'never to come'),
    { idleMs: 3000 },
  )
  assertProblem(answer, 401, 'client_certificate_required')
  assert.equal(answer.headers.get('connection'), 'close')
  assert.equal(parsed, false)
  // The connection is not kept for a body that nobody reads.
  assert.ok(Date.now() - started < 2500)
})

test('headers that trickle are answered 408', async () => {
  const { path } = await start(pair(true), { timeouts: { headersMs: 200 } })
  const answer = await rawRequest(path, 'GET /v1/things/a HTTP/1.1\r\nHost: t', { idleMs: 4000 })
  assertProblem(answer, 408, 'timeout')
})

for (const hot of [true, false]) {
  test(`a body that trickles is answered 408 and its connection ends (hot: ${hot})`, async () => {
    const { path } = await start(pair(hot), { timeouts: { bodyMs: 100 } })
    const request = requestText('PUT', '/v1/peer', ['Content-Type: application/json', 'Content-Length: 50'], '{')
    const answer = await rawRequest(path, request, { idleMs: 4000 })
    assertProblem(answer, 408, 'timeout')
    assert.equal(answer.headers.get('connection'), 'close')
  })
}

describe('the front secret', async () => {
  const seen: Pick<RouteHead, 'requestId' | 'remoteAddress'>[] = []
  const keep = ({ requestId, remoteAddress }: RouteHead): { status: number } => {
    seen.push({ requestId, remoteAddress })
    return { status: 204 }
  }
  const frontSecret = Buffer.from('0123456789abcdef0123456789abcdef')
  const { path } = await start(
    [
      defineRoute({ method: 'GET', path: '/v1/hot', hot: true, access: everybody, handle: keep }),
      defineRoute({ method: 'GET', path: '/v1/cold', access: everybody, handle: keep }),
      defineRoute({ method: 'GET', path: '/healthz', frontless: true, access: everybody, handle: keep }),
      defineStream({ path: '/v1/stream', access: everybody, handle: async ({ log }) => log.debug('never') }),
    ],
    { frontSecret },
  )
  const carried = `X-Certpeer-Front: ${frontSecret.toString()}`
  for (const target of ['/v1/hot', '/v1/cold', '/v1/nothing']) {
    for (const [name, headers] of [
      ['missing', []],
      ['wrong', ['X-Certpeer-Front: 0123456789abcdef0123456789abcdee']],
      ['shorter', ['X-Certpeer-Front: 0123456789abcdef']],
      ['longer', [`${carried}0`]],
      ['empty', ['X-Certpeer-Front:']],
    ] as const) {
      test(`${name} on ${target}: front_refused`, async () => {
        assertProblem(await rawRequest(path, requestText('GET', target, headers)), 403, 'front_refused')
      })
    }
  }
  test('twice: refused, also when both are right', async () => {
    const answer = await rawRequest(path, requestText('GET', '/v1/hot', [carried, carried]))
    assertProblem(answer, 400, 'malformed_request')
  })
  test('missing on a stream: front_refused', async () => {
    const request = requestText('POST', '/v1/stream', [
      'Content-Type: application/x-ndjson',
      'Transfer-Encoding: chunked',
    ])
    assertProblem(await rawRequest(path, request), 403, 'front_refused')
  })
  test('right: address and request id of nginx are believed', async () => {
    for (const target of ['/v1/hot', '/v1/cold']) {
      const request = requestText('GET', target, [carried, 'X-Real-IP: 192.0.2.7', 'X-Request-Id: 0123456789abcdef'])
      const answer = await rawRequest(path, request)
      assert.equal(answer.status, 204)
      assert.deepEqual(seen.pop(), { requestId: '0123456789abcdef', remoteAddress: '192.0.2.7' })
    }
  })
  test('right, with an address or id that is none: ours', async () => {
    const request = requestText('GET', '/v1/hot', [carried, 'X-Real-IP: you', 'X-Request-Id: a b'])
    assert.equal((await rawRequest(path, request)).status, 204)
    const last = seen.pop()
    assert.equal(last?.remoteAddress, 'local')
    assert.match(last.requestId, /^[0-9a-f-]{36}$/)
  })
  test('health is answered without it, and then nothing that is sent along is believed', async () => {
    const request = requestText('GET', '/healthz', ['X-Real-IP: 192.0.2.7', 'X-Request-Id: 0123456789abcdef'])
    assert.equal((await rawRequest(path, request)).status, 204)
    const last = seen.pop()
    assert.equal(last?.remoteAddress, 'local')
    assert.notEqual(last.requestId, '0123456789abcdef')
  })
})

describe('what a handler throws', async () => {
  const failing = (name: string, error: unknown, hot: boolean): Route =>
    defineRoute({
      method: 'GET',
      path: `/v1/${name}`,
      hot,
      access: everybody,
      handle: () => {
        throw error
      },
    })
  const secret = 'password=hunter2'
  const cases: readonly [string, unknown][] = [
    ['plain', new Error(secret)],
    ['type', new TypeError(secret)],
    ['text', secret],
    ['nothing', undefined],
  ]
  for (const hot of [true, false]) {
    const { path, lines } = await start([
      ...cases.map(([name, error]) => failing(name, error, hot)),
      failing(
        'coded',
        new CertpeerError('pool_exhausted', 'pool v4 has no free address', { cause: new Error(secret) }),
        hot,
      ),
      failing('internal', new CertpeerError('internal', secret), hot),
      defineRoute({
        method: 'GET',
        path: '/v1/access',
        hot,
        access: () => Promise.reject(new Error(secret)),
        handle: () => ({ status: 200 }),
      }),
      defineRoute({
        method: 'GET',
        path: '/v1/json',
        hot,
        access: everybody,
        handle: () => ({ status: 200, json: { n: 1n } }),
      }),
    ])
    for (const name of [...cases.map(([name]) => name), 'access', 'internal', 'json']) {
      test(`${name}: a bare internal, the cause only in the log (hot: ${hot})`, async () => {
        lines.length = 0
        const answer = await rawRequest(path, requestText('GET', `/v1/${name}`))
        assertProblem(answer, 500, 'internal')
        assert.equal((answer.json as { detail?: string }).detail, undefined)
        assert.ok(!answer.text.includes('hunter2'))
        const [logged, ...more] = lines.filter((line) => line['level'] === 'error')
        assert.equal(more.length, 0)
        assert.equal(logged?.['requestId'], (answer.json as { requestId: string }).requestId)
        if (name !== 'nothing' && name !== 'json') assert.ok(JSON.stringify(logged).includes('hunter2'))
      })
    }
    test(`coded: the message, never the cause (hot: ${hot})`, async () => {
      const answer = await rawRequest(path, requestText('GET', '/v1/coded'))
      assertProblem(answer, 503, 'pool_exhausted')
      assert.equal((answer.json as { detail?: string }).detail, 'pool v4 has no free address')
      assert.ok(!answer.text.includes('hunter2'))
      assert.ok(JSON.stringify(lines).includes('hunter2'))
    })
  }
})

test('a handler that takes too long is answered 504, and its signal aborts', async () => {
  let reason: unknown
  const { path } = await start([
    defineRoute({
      method: 'GET',
      path: '/v1/slow',
      hot: true,
      timeoutMs: 50,
      access: everybody,
      handle: ({ signal }) =>
        new Promise((resolve) => {
          signal.addEventListener('abort', () => {
            reason = signal.reason
            resolve({ status: 200 })
          })
        }),
    }),
  ])
  assertProblem(await rawRequest(path, requestText('GET', '/v1/slow'), { idleMs: 1000 }), 504, 'timeout')
  assert.ok(reason instanceof CertpeerError && reason.code === 'timeout')
})

for (const hot of [true, false]) {
  test(`a caller that goes away aborts the handler's signal (hot: ${hot})`, async () => {
    let waiting = false
    let aborted = false
    const { path, lines } = await start([
      defineRoute({
        method: 'GET',
        path: '/v1/wait',
        hot,
        access: everybody,
        handle: ({ signal }) =>
          new Promise((_, reject) => {
            waiting = true
            signal.addEventListener('abort', () => {
              aborted = true
              reject(signal.reason as Error)
            })
          }),
      }),
    ])
    const socket = await opened(path)
    socket.write(requestText('GET', '/v1/wait'))
    await until(() => waiting)
    socket.destroy()
    await until(() => aborted)
    await until(() => lines.some((line) => line['msg'] === 'request given up'))
    assert.equal(lines.filter((line) => line['level'] === 'error').length, 0)
  })
}

test('a body that breaks off reaches no handler', async () => {
  let handled = false
  const { path } = await start([
    defineRoute({
      method: 'POST',
      path: '/v1/x',
      hot: true,
      access: everybody,
      handle: () => {
        handled = true
        return { status: 200 }
      },
    }),
  ])
  const socket = await opened(path)
  socket.write(requestText('POST', '/v1/x', ['Content-Type: application/json', 'Content-Length: 10'], '{"a"'))
  await new Promise((resolve) => setTimeout(resolve, 30))
  socket.destroy()
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.equal(handled, false)
})

describe('rate limits', async () => {
  const frontSecret = Buffer.from('0123456789abcdef0123456789abcdef')
  const { path } = await start(
    [
      defineRoute({ method: 'GET', path: '/v1/a', hot: true, access: everybody, handle: () => ({ status: 204 }) }),
      defineRoute({ method: 'GET', path: '/v1/b', access: everybody, handle: () => ({ status: 204 }) }),
      defineRoute({
        method: 'GET',
        path: '/v1/keyed',
        hot: true,
        rateLimits: { key: { requests: 1, perSeconds: 60 } },
        access: ({ query }) => query.get('who') ?? '',
        rateLimitKey: (_request, who) => [who],
        handle: () => ({ status: 204 }),
      }),
    ],
    { frontSecret, rateLimits: { address: { requests: 2, perSeconds: 60 } } },
  )
  const ask = (target: string, address: string): Promise<RawAnswer> =>
    rawRequest(
      path,
      requestText('GET', target, [`X-Certpeer-Front: ${frontSecret.toString()}`, `X-Real-IP: ${address}`]),
    )
  for (const target of ['/v1/a', '/v1/b']) {
    test(`the third request of an address to ${target} is 429 with Retry-After; others go on`, async () => {
      assert.equal((await ask(target, '192.0.2.1')).status, 204)
      assert.equal((await ask(target, '192.0.2.1')).status, 204)
      const refused = await ask(target, '192.0.2.1')
      assertProblem(refused, 429, 'rate_limited')
      const wait = Number(refused.headers.get('retry-after'))
      assert.ok(wait >= 1 && wait <= 60)
      assert.equal((await ask(target, '192.0.2.2')).status, 204)
    })
  }
  test('one IPv6 /64 counts as one', async () => {
    assert.equal((await ask('/v1/a', '2001:db8:0:1::1')).status, 204)
    assert.equal((await ask('/v1/a', '2001:db8:0:1:ffff::2')).status, 204)
    assert.equal((await ask('/v1/a', '2001:db8:0:1::3')).status, 429)
    assert.equal((await ask('/v1/a', '2001:db8:0:2::3')).status, 204)
  })
  test('a key has its own count, whatever the address', async () => {
    assert.equal((await ask('/v1/keyed?who=alice', '192.0.2.3')).status, 204)
    assert.equal((await ask('/v1/keyed?who=alice', '192.0.2.4')).status, 429)
    assert.equal((await ask('/v1/keyed?who=bob', '192.0.2.3')).status, 204)
  })
})

describe('the unix socket', () => {
  test('has mode 0660, whatever the umask', async () => {
    const before = process.umask(0o000)
    try {
      const { path } = await start(pair(true))
      assert.equal(statSync(path).mode & 0o777, 0o660)
    } finally {
      process.umask(before)
    }
  })
  test('has the mode asked for', async () => {
    const path = join(directory.path, 'private.sock')
    await start(pair(true), { listen: { socketPath: path, mode: 0o600 } })
    assert.equal(statSync(path).mode & 0o777, 0o600)
  })
  test('a stale file is replaced', async () => {
    const path = join(directory.path, 'stale.sock')
    await leaveStaleSocket(path)
    assert.ok(existsSync(path))
    await start(pair(true), { listen: { socketPath: path } })
    assert.equal((await rawRequest(path, requestText('GET', '/v1/things/a'))).status, 200)
  })
  test('a living one is port_in_use, and goes on', async () => {
    const { path } = await start(pair(true))
    await assert.rejects(start(pair(true), { listen: { socketPath: path } }), { code: 'port_in_use' })
    assert.equal((await rawRequest(path, requestText('GET', '/v1/things/a'))).status, 200)
  })
  test('a plain file in its place is not deleted', async () => {
    const path = join(directory.path, 'file.sock')
    writeFileSync(path, 'precious')
    chmodSync(path, 0o600)
    await assert.rejects(start(pair(true), { listen: { socketPath: path } }), CertpeerError)
    assert.equal(statSync(path).size, 8)
  })
  test('a path over 107 bytes is config_invalid', async () => {
    const path = join(directory.path, 'x'.repeat(108))
    await assert.rejects(start(pair(true), { listen: { socketPath: path } }), { code: 'config_invalid' })
  })
  test('is gone after close', async () => {
    const { path, server } = await start(pair(true))
    await server.close()
    assert.equal(existsSync(path), false)
  })
})

test('a TCP port in use is port_in_use', async () => {
  const { server } = await start(pair(true), { listen: { host: '127.0.0.1', port: 0 } })
  assert.ok('port' in server.address)
  const { port } = server.address
  await assert.rejects(start(pair(true), { listen: { host: '127.0.0.1', port } }), { code: 'port_in_use' })
})

test('close lets a request finish, takes no new ones, and cuts what does not end', async () => {
  const release: (() => void)[] = []
  const { path, server } = await start(
    [
      defineRoute({
        method: 'GET',
        path: '/v1/wait',
        hot: true,
        access: everybody,
        handle: () => new Promise((resolve) => release.push(() => resolve({ status: 200, json: 'done' }))),
      }),
      defineRoute({
        method: 'GET',
        path: '/v1/never',
        access: everybody,
        handle: () => new Promise(() => undefined),
      }),
    ],
    { timeouts: { closeGraceMs: 300 } },
  )
  const waiting = rawRequest(path, requestText('GET', '/v1/wait'), { idleMs: 3000 })
  const never = await opened(path)
  never.write(requestText('GET', '/v1/never'))
  const cut = new Promise((resolve) => never.once('close', resolve))
  await until(() => release.length > 0)
  const closed = server.close()
  release[0]?.()
  const answer = await waiting
  assert.deepEqual([answer.status, answer.json], [200, 'done'])
  assert.equal(answer.headers.get('connection'), 'close')
  await assert.rejects(rawRequest(path, requestText('GET', '/v1/wait')))
  await closed
  await cut
})

test('two routes of one method and path are a mistake of ours', async () => {
  await assert.rejects(start([...pair(true), ...pair(false)]), TypeError)
})

test('parseAnswer reads what it is given', () => {
  assert.equal(parseAnswer('HTTP/1.1 204 No Content\r\nA: b\r\n\r\n').headers.get('a'), 'b')
})

/** What kill -9 leaves: a socket file with nobody behind it. */
async function leaveStaleSocket(path: string): Promise<void> {
  const other = createServer()
  await new Promise<void>((resolve) => other.listen(`${path}.moved`, resolve))
  const { renameSync } = await import('node:fs')
  renameSync(`${path}.moved`, path)
  await new Promise((resolve) => other.close(resolve))
}
