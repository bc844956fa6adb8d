/** nginx as the front runs it: what it lets through, what it answers itself, and what it never loads. */
import assert from 'node:assert/strict'
import { readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { connect, type TLSSocket } from 'node:tls'
import type { ErrorCode } from '../../../src/core/errors.ts'
import { LISTENERS, type Listener } from '../../../src/edge/front/config.ts'
import { runSelfTest } from '../../../src/edge/front/selftest.ts'
import { packageRoot } from '../../../src/platform/package-root.ts'
import { STATUS } from '../../../src/platform/http/problem.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import { until } from '../../support/http.ts'
import { FrontStage, makeCaller, makeCrl, makeHierarchy, type Answer, type Caller } from './stage.ts'

const MUTUAL: readonly Listener[] = ['authority', 'api', 'gateways']
const FORGED = [
  ...['X-Client-Verify', 'SUCCESS', 'X-Client-Cert', 'forged', 'x-client-cert', 'forged', 'X_Client_Cert', 'forged'],
  ...['X-Certpeer-Front', 'forged', 'X-Real-IP', 'forged', 'X-Request-Id', 'forged', 'X-Forwarded-For', 'forged'],
  ...['Connection', 'X-Certpeer-Front', 'Host', 'localhost'],
]

function valuesOf(answer: Answer, name: string): string[] {
  const raw = JSON.parse(answer.body) as string[]
  return raw.filter((_, index) => index % 2 === 1 && raw[index - 1]?.toLowerCase() === name)
}

function assertProblem(answer: Answer, status: number, code: ErrorCode): void {
  assert.equal(answer.headers['content-type'], 'application/problem+json', answer.body)
  const problem = JSON.parse(answer.body) as { status: number; code: string; requestId: string }
  assert.deepEqual(
    { status: answer.status, inBody: problem.status, code: problem.code },
    { status, inBody: status, code },
  )
  assert.match(problem.requestId, /^[0-9a-f]{32}$/)
}

describe('front with nginx', () => {
  let stage: FrontStage
  let good: Caller
  before(async () => {
    stage = await FrontStage.start()
    good = makeCaller(stage.pki.devices)
  })
  after(async () => stage[Symbol.asyncDispose]())

  for (const listener of LISTENERS) {
    test(`listener ${listener}: forged headers do not reach the upstream`, async () => {
      const caller = MUTUAL.includes(listener) ? { caller: good } : {}
      const answer = await stage.send(listener, { ...caller, headers: FORGED })
      assert.equal(answer.status, 200)
      assert.doesNotMatch(answer.body, /forged/)
      assert.deepEqual(valuesOf(answer, 'x-certpeer-front'), [stage.secret])
      assert.deepEqual(valuesOf(answer, 'x-real-ip'), ['127.0.0.1'])
      const certificates = valuesOf(answer, 'x-client-cert').map((text) => decodeURIComponent(text).trim())
      assert.deepEqual(certificates, MUTUAL.includes(listener) ? [derToPem(good.certificate.der).trim()] : [])
      const verify = {
        enroll: ['NONE'],
        pki: [] as string[],
        authority: ['SUCCESS'],
        api: ['SUCCESS'],
        gateways: ['SUCCESS'],
      }
      assert.deepEqual(valuesOf(answer, 'x-client-verify'), verify[listener])
    })
  }

  for (const listener of MUTUAL) {
    test(`listener ${listener}: refused client certificates are answered as problem+json and reach nobody`, async () => {
      const foreign = makeHierarchy()
      const day = 86_400_000
      const expired = makeCaller(stage.pki.devices, {
        notBefore: new Date(Date.now() - 2 * day),
        notAfter: new Date(Date.now() - day),
      })
      const before = stage.reached.length
      assertProblem(await stage.send(listener, { headers: FORGED }), 401, 'client_certificate_required')
      assertProblem(await stage.send(listener, { caller: makeCaller(foreign.devices) }), 403, 'certificate_untrusted')
      assertProblem(await stage.send(listener, { caller: expired }), 403, 'certificate_expired')
      assert.equal(stage.reached.length, before)
    })
  }

  test('what nginx itself refuses is problem+json', async () => {
    const big = 'x'.repeat(70_000)
    assertProblem(await stage.send('enroll', { method: 'POST', payload: big }), 413, 'body_too_large')
    assertProblem(await stage.send('enroll', { headers: { 'x-long': 'x'.repeat(40_000) } }), 400, 'malformed_request')
    const port = stage.ports.get('api')
    const plain = await stage.send('pki', { port })
    assertProblem(plain, 400, 'malformed_request')
  })

  test('TLS: 1.2 on enroll alone, nothing older', async () => {
    assert.equal((await stage.send('enroll', { maxVersion: 'TLSv1.2' })).status, 200)
    for (const listener of MUTUAL) await assert.rejects(stage.send(listener, { caller: good, maxVersion: 'TLSv1.2' }))
  })

  for (const [listener, maxVersion] of [
    ['enroll', 'TLSv1.2'],
    ['enroll', 'TLSv1.3'],
    ['api', 'TLSv1.3'],
  ] as const) {
    test(`listener ${listener}, ${maxVersion}: no session can be resumed`, async () => {
      const handshake = (session?: Buffer) =>
        new Promise<{ reused: boolean; session: Buffer | undefined }>((resolve, reject) => {
          let reused = false
          let kept: Buffer | undefined
          const socket: TLSSocket = connect(
            {
              host: '127.0.0.1',
              port: stage.ports.get(listener),
              servername: 'localhost',
              ca: derToPem(stage.pki.root.certificate.der),
              cert: derToPem(good.certificate.der) + derToPem(good.issuer.der),
              key: good.key.export({ type: 'pkcs8', format: 'pem' }),
              maxVersion,
              ...(session === undefined ? {} : { session }),
            },
            () => socket.write('GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'),
          )
          // TLS 1.3 hands out sessions after the handshake; without a cache behind them they open nothing.
          socket.on('session', (given) => (kept = given))
          socket.on('data', () => undefined)
          socket.on('error', reject)
          socket.on('close', () => resolve({ reused, session: kept }))
          socket.on('secureConnect', () => {
            reused = socket.isSessionReused()
            kept ??= socket.getSession()
          })
        })
      const first = await handshake()
      assert.ok(first.session)
      const second = await handshake(first.session)
      assert.equal(second.reused, false)
    })
  }

  test('a revoked certificate is refused after the next CRL, also where it was accepted before; gateways leaves it to the app', async () => {
    const revoked = makeCaller(stage.pki.devices)
    assert.equal((await stage.send('api', { caller: revoked })).status, 200)
    const activations = stage.activations
    stage.publish([revoked.certificate])
    stage.skipMinute()
    await until(() => stage.activations > activations, 8000)
    // While a reload is under way old and new workers take connections in turn; ten refusals in a row are the new ones.
    let refused = 0
    await eventually(async () => {
      refused = (await stage.send('api', { caller: revoked })).status === 403 ? refused + 1 : 0
      return refused === 10
    })
    assertProblem(await stage.send('api', { caller: revoked }), 403, 'certificate_revoked')
    assertProblem(await stage.send('authority', { caller: revoked }), 403, 'certificate_revoked')
    assert.equal((await stage.send('gateways', { caller: revoked })).status, 200)
    assert.equal((await stage.send('api', { caller: good })).status, 200)

    // From here on nothing that is published is right, and nothing of it may be loaded.
    const active = readlinkSync(join(stage.dir, 'front', 'nginx.conf'))
    const path = '/crl/device-default.crl'
    const right = stage.crls.get(path) ?? assert.fail()
    const wrong: readonly [string, () => void][] = [
      ['garbage', () => stage.crls.set(path, Buffer.from('not a crl'))],
      ['a missing CRL', () => stage.crls.delete(path)],
      ['a lower number', () => stage.crls.set(path, makeCrl(stage.pki.devices, 1n))],
    ]
    for (const [name, publish] of wrong) {
      publish()
      stage.skipMinute()
      const refusals = stage.refusals
      await until(() => stage.refusals > refusals, 15_000)
      assert.equal(readlinkSync(join(stage.dir, 'front', 'nginx.conf')), active, name)
    }
    stage.crls.set(path, right)
    assert.equal((await stage.send('api', { caller: good })).status, 200)
    assertProblem(await stage.send('api', { caller: revoked }), 403, 'certificate_revoked')
  })

  test('an upstream that is away is 503 unavailable', async () => {
    await stage.stopUpstream('authority')
    assertProblem(await stage.send('authority', { caller: good }), 503, 'unavailable')
  })
})

test('statuses of nginx are those of the application', () => {
  const text = readFileSync(join(packageRoot(), 'nginx', 'snippets', 'problems.conf'), 'utf8')
  const answers = [...text.matchAll(/return (\d+) '\{[^']*"status":(\d+),"code":"([a-z_]+)"/g)]
  assert.ok(answers.length >= 10)
  for (const [, status, inBody, code = ''] of answers) {
    assert.equal(status, inBody)
    // A request that did not come in time has HTTP's own word.
    if (status === '408') continue
    assert.equal(Number(status), STATUS[code as ErrorCode], code)
  }
})

test('every location includes the certificate headers and sets none of its own', () => {
  for (const listener of LISTENERS) {
    const text = readFileSync(join(packageRoot(), 'nginx', `${listener}.conf`), 'utf8')
    const locations = text.split(/\blocation\b/).slice(1)
    assert.ok(locations.length > 0)
    for (const location of locations) {
      assert.match(location, /include "\{\{set\}\}\/snippets\/client-cert\.conf";/)
      assert.doesNotMatch(location, /proxy_set_header/)
    }
  }
})

test('the self-test refuses an nginx that is not there', async () => {
  await assert.rejects(runSelfTest({ nginx: '/nonexistent/nginx' }), { code: 'missing_program' })
})

async function eventually(check: () => Promise<boolean>, timeoutMs = 5000): Promise<void> {
  const deadline = Date.now() + timeoutMs
  while (!(await check())) {
    if (Date.now() > deadline) assert.fail('did not come true in time')
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
