import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer as createHttp, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { createServer as createHttps } from 'node:https'
import { createServer as createTcp, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { TLSSocket } from 'node:tls'
import { CertpeerError } from '../../../src/core/errors.ts'
import { ApiClient } from '../../../src/platform/api-client/client.ts'
import { temporaryDirectory } from '../../support/http.ts'

const directory = temporaryDirectory()
const servers: Server[] = []
after(() => {
  for (const server of servers) {
    server.closeAllConnections()
    server.close()
  }
  directory.remove()
})

type Handler = (request: IncomingMessage, response: ServerResponse) => void

async function serve(handler: Handler): Promise<{ base: string; server: Server }> {
  const server = createHttp(handler)
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return { base: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, server }
}

function answer(response: ServerResponse, status: number, type: string, body: string): void {
  response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(body) }).end(body)
}

const PROBLEM = 'application/problem+json'

describe('answers', async () => {
  const problem = (code: string, status: number, detail?: string): [number, string, string] => [
    status,
    PROBLEM,
    JSON.stringify({ type: 'about:blank', title: 'T', status, code, ...(detail === undefined ? {} : { detail }) }),
  ]
  const cases: Readonly<Record<string, { sent: [number, string, string]; code: string; message: RegExp }>> = {
    '/own': {
      sent: problem('token_used', 409, 'this token was used'),
      code: 'token_used',
      message: /^this token was used$/,
    },
    '/no-detail': { sent: problem('not_found', 404), code: 'not_found', message: /^T$/ },
    '/internal': { sent: problem('internal', 500), code: 'internal', message: /\/internal/ },
    '/unknown-code': { sent: problem('teapot', 418, 'x'), code: 'unavailable', message: /418/ },
    '/html': { sent: [502, 'text/html', '<h1>Bad Gateway</h1>'], code: 'unavailable', message: /502/ },
    '/broken-problem': { sent: [500, PROBLEM, '{"code":'], code: 'unavailable', message: /500/ },
    '/no-problem': { sent: [403, PROBLEM, '{"code":7}'], code: 'unavailable', message: /403/ },
    '/poison': {
      sent: [400, PROBLEM, '{"__proto__":{"a":1},"type":"","title":"","status":400,"code":"usage"}'],
      code: 'unavailable',
      message: /400/,
    },
    '/bad-json': { sent: [200, 'application/json', '{"a":'], code: 'malformed_message', message: /bad-json/ },
    '/redirect': { sent: [302, 'text/plain', ''], code: 'unavailable', message: /302/ },
    '/huge': { sent: [200, 'text/plain', 'x'.repeat(100_000)], code: 'unavailable', message: /more than 1000 bytes/ },
  }
  const { base } = await serve((request, response) => {
    const found = cases[request.url ?? '']
    if (found !== undefined) answer(response, ...found.sent)
    else if (request.headers['if-none-match'] === '"7"') response.writeHead(304, { etag: '"7"' }).end()
    else
      answer(response, 200, 'application/json; charset=utf-8', JSON.stringify({ url: request.url, ...request.headers }))
  })
  const client = new ApiClient({ base: `${base}/`, headers: { 'x-certpeer-front': 'f' } })
  for (const [path, { code, message }] of Object.entries(cases)) {
    test(`${path} is ${code}`, async () => {
      await assert.rejects(client.request({ method: 'GET', path, maxBytes: 1000 }), (error) => {
        assert.ok(error instanceof CertpeerError)
        assert.equal(error.code, code)
        assert.match(error.message, message)
        return true
      })
    })
  }
  test('JSON is parsed, the query escaped, own headers sent', async () => {
    const got = await client.request({ method: 'GET', path: '/x', query: { a: 'b&c', limit: 5, none: undefined } })
    const json = got.json as Record<string, unknown>
    assert.equal(got.status, 200)
    assert.deepEqual([json['url'], json['x-certpeer-front']], ['/x?a=b%26c&limit=5', 'f'])
  })
  test('an entity tag that still holds is 304 without a body', async () => {
    const fresh = await client.get('/crl', { etag: '"7"' })
    assert.deepEqual([fresh.status, fresh.raw.length, fresh.json], [304, 0, undefined])
    assert.equal((await client.get('/crl', { etag: '"6"' })).status, 200)
  })
})

test('what is sent is what was given', async () => {
  const got: { method: string | undefined; type: string | undefined; body: string }[] = []
  const { base } = await serve((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      got.push({
        method: request.method,
        type: request.headers['content-type'],
        body: Buffer.concat(chunks).toString('latin1'),
      })
      response.writeHead(204).end()
    })
  })
  const client = new ApiClient({ base })
  await client.request({ method: 'PUT', path: '/a', json: { a: 'ü' } })
  await client.request({ method: 'POST', path: '/a', raw: { contentType: 'x/y', body: Buffer.from([0xff, 0]) } })
  await client.request({ method: 'DELETE', path: '/a' })
  assert.deepEqual(got, [
    { method: 'PUT', type: 'application/json', body: Buffer.from('{"a":"ü"}').toString('latin1') },
    { method: 'POST', type: 'x/y', body: '\xff\0' },
    { method: 'DELETE', type: undefined, body: '' },
  ])
})

describe('nobody there', () => {
  test('a refused connection is unavailable and names the address', async () => {
    const { base, server } = await serve(() => undefined)
    server.close()
    await assert.rejects(new ApiClient({ base }).get('/v1/x'), (error) => {
      assert.ok(error instanceof CertpeerError)
      assert.equal(error.code, 'unavailable')
      assert.ok(error.message.includes(`${base}/v1/x`) && error.message.includes('ECONNREFUSED'), error.message)
      return true
    })
  })
  test('a missing socket is unavailable', async () => {
    const client = new ApiClient({ base: `unix:${join(directory.path, 'none.sock')}` })
    await assert.rejects(client.get('/v1/x'), { code: 'unavailable' })
    await assert.rejects(client.openStream('/v1/stream'), { code: 'unavailable' })
  })
  test('a server that does not answer is a timeout; one that is given up is unavailable', async () => {
    const { base } = await serve(() => undefined)
    const client = new ApiClient({ base, timeoutMs: 50 })
    await assert.rejects(client.get('/v1/x'), { code: 'timeout' })
    await assert.rejects(client.openStream('/v1/x'), { code: 'timeout' })
    const controller = new AbortController()
    const asked = client.get('/v1/x', { signal: controller.signal, timeoutMs: 5000 })
    setTimeout(() => controller.abort(), 20)
    await assert.rejects(asked, { code: 'unavailable' })
    await assert.rejects(client.get('/v1/x', { signal: AbortSignal.abort() }), { code: 'unavailable' })
  })
  test('an answer that trickles is a timeout too', async () => {
    const { base } = await serve((_request, response) => {
      response.writeHead(200, { 'content-length': 100 }).write('a')
    })
    await assert.rejects(new ApiClient({ base, timeoutMs: 80 }).get('/v1/x'), { code: 'timeout' })
  })
  test('a stream that is refused with a text that never ends is a timeout', async () => {
    const { base } = await serve((_, response) => {
      response.writeHead(503, { 'content-type': PROBLEM }).write('{')
    })
    await assert.rejects(new ApiClient({ base }).openStream('/v1/x', { timeoutMs: 100 }), { code: 'timeout' })
  })

  test('an answer that breaks off is unavailable', async () => {
    const { base } = await serve((_request, response) => {
      response.writeHead(200, { 'content-length': 100 })
      response.write('a', () => response.destroy())
    })
    await assert.rejects(new ApiClient({ base }).get('/v1/x'), { code: 'unavailable' })
  })
  for (const base of ['ftp://x', 'certpeer', '', 'https://user:pw@x']) {
    test(`the address "${base}" is config_invalid`, () => {
      assert.throws(() => new ApiClient({ base }), { code: 'config_invalid' })
    })
  }
})

describe('a reset connection', () => {
  /** Answers as told, request by request, over all connections. */
  async function flaky(
    plan: readonly ('ok' | 'reset')[],
  ): Promise<{ base: string; seen: () => number; close: () => void }> {
    let seen = 0
    const open = new Set<Socket>()
    const server = createTcp((socket) => {
      open.add(socket)
      socket.on('error', () => undefined)
      socket.on('data', () => {
        if (plan[seen++] === 'reset') socket.resetAndDestroy()
        else socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}')
      })
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    return {
      base: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      seen: () => seen,
      close: () => {
        for (const socket of open) socket.destroy()
        server.close()
      },
    }
  }
  for (const { name, plan, ok, requests } of [
    { name: 'kept: asked again, once', plan: ['ok', 'reset', 'ok'], ok: true, requests: 3 },
    { name: 'kept, and the second try too: unavailable', plan: ['ok', 'reset', 'reset', 'ok'], ok: false, requests: 3 },
  ] as const) {
    test(name, async () => {
      const { base, seen, close } = await flaky(plan)
      const client = new ApiClient({ base })
      await client.get('/v1/x')
      const second = client.request({ method: 'PUT', path: '/v1/x', json: {} })
      if (ok) assert.equal((await second).status, 200)
      else await assert.rejects(second, { code: 'unavailable' })
      assert.equal(seen(), requests)
      client.close()
      close()
    })
  }
  test('fresh: not asked again', async () => {
    const { base, seen, close } = await flaky(['reset', 'ok'])
    const client = new ApiClient({ base })
    await assert.rejects(client.get('/v1/x'), { code: 'unavailable' })
    assert.equal(seen(), 1)
    close()
  })
})

describe('TLS', async () => {
  const file = (name: string): string => join(directory.path, name)
  const read = (name: string): string => readFileSync(file(name), 'utf8')
  const openssl = (...args: string[]): void =>
    void execFileSync('openssl', args, { cwd: directory.path, stdio: 'pipe' })
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  for (const ca of ['root', 'other']) {
    openssl('req', '-x509', ...key, '-keyout', `${ca}.key`, '-out', `${ca}.pem`, '-days', '2', '-subj', `/CN=${ca}`)
  }
  for (const [name, subject, san] of [
    ['server', '/CN=server', 'subjectAltName=DNS:ca.test,IP:127.0.0.1'],
    ['device', '/CN=device', 'subjectAltName=URI:spiffe://test/device'],
  ] as const) {
    openssl(
      ...['req', '-x509', ...key, '-keyout', `${name}.key`, '-out', `${name}.pem`, '-days', '2', '-subj', subject],
      ...['-addext', san, '-addext', 'basicConstraints=critical,CA:false', '-CA', 'root.pem', '-CAkey', 'root.key'],
    )
  }
  const reused: boolean[] = []
  const server = createHttps(
    {
      cert: read('server.pem'),
      key: read('server.key'),
      ca: read('root.pem'),
      requestCert: true,
      rejectUnauthorized: false,
    },
    (request, response) => {
      const { socket } = request
      assert.ok(socket instanceof TLSSocket)
      reused.push(socket.isSessionReused())
      const device = socket.authorized ? String(socket.getPeerCertificate().subject.CN) : null
      response.setHeader('connection', 'close')
      answer(response, 200, 'application/json', JSON.stringify({ device }))
    },
  )
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const base = `https://127.0.0.1:${port}`

  test('the pinned root is believed; the client shows its certificate', async () => {
    const clientCertificate = { certificate: read('device.pem'), key: read('device.key') }
    const client = new ApiClient({ base, root: read('root.pem'), clientCertificate })
    assert.deepEqual((await client.get('/')).json, { device: 'device' })
  })
  test('without a client certificate there is none', async () => {
    assert.deepEqual((await new ApiClient({ base, root: read('root.pem') }).get('/')).json, { device: null })
  })
  test('no session is ever resumed', async () => {
    const client = new ApiClient({ base, root: read('root.pem') })
    reused.length = 0
    for (let round = 0; round < 3; round++) await client.get('/')
    assert.deepEqual(reused, [false, false, false])
  })
  test('another root is not believed, nor a public one', async () => {
    await assert.rejects(new ApiClient({ base, root: read('other.pem') }).get('/'), { code: 'unavailable' })
    assert.throws(() => new ApiClient({ base }), TypeError)
  })
  test('another name is not believed, unless it is the one asked for', async () => {
    const root = read('root.pem')
    await assert.rejects(new ApiClient({ base: `https://localhost:${port}`, root }).get('/'), { code: 'unavailable' })
    assert.equal((await new ApiClient({ base, root, servername: 'ca.test' }).get('/')).status, 200)
    await assert.rejects(new ApiClient({ base, root, servername: 'db.test' }).get('/'), { code: 'unavailable' })
  })
  test('the first contact takes any certificate, and may show nothing of its own', async () => {
    assert.equal((await new ApiClient({ base, unverified: true }).get('/')).status, 200)
    const clientCertificate = { certificate: read('device.pem'), key: read('device.key') }
    assert.throws(() => new ApiClient({ base, unverified: true, clientCertificate }), TypeError)
    assert.throws(() => new ApiClient({ base, unverified: true, root: read('root.pem') }), TypeError)
  })
})
