/**
 * Sends forged headers through every listener before anything real is served. The same templates are rendered for a
 * throwaway nginx on unix sockets, with a throwaway CA and an upstream that shows what reached it, so the test covers
 * this nginx binary and these files exactly. Throws front_refused naming the listener that lets something through.
 */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import http from 'node:http'
import type { IncomingHttpHeaders, RequestOptions } from 'node:http'
import https from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { sleep } from '../../platform/lifecycle.ts'
import { LISTENERS } from './config.ts'
import type { Listener } from './config.ts'
import { renderSet } from './render.ts'
import { makeThrowawayPki } from './throwaway-pki.ts'
import type { ThrowawayPki } from './throwaway-pki.ts'

/** Names, spellings and repetitions under which somebody might try to speak as the front. */
const FORGED = 'forged'
const FORGED_HEADERS: readonly (readonly [string, string])[] = [
  ['X-Client-Verify', 'SUCCESS'],
  ['X-Client-Verify', 'SUCCESS'],
  ['x-client-cert', FORGED],
  ['X-Client-Cert', FORGED],
  ['X_Client_Cert', FORGED],
  ['X_Client_Verify', 'SUCCESS'],
  ['X-Certpeer-Front', FORGED],
  ['X_Certpeer_Front', FORGED],
  ['X-Real-IP', FORGED],
  ['X-Request-Id', FORGED],
  ['X-Forwarded-For', FORGED],
  ['Forwarded', `for=${FORGED}`],
  ['Connection', 'X-Certpeer-Front, X-Client-Verify'],
]

const SOCKETS: Readonly<Record<Listener, string>> = {
  enroll: 'ca-enroll.sock',
  authority: 'ca-authority.sock',
  api: 'server-api.sock',
  gateways: 'server-gateways.sock',
  pki: 'ca-pki.sock',
}
const ASKS_FOR_CERTIFICATE: readonly Listener[] = ['authority', 'api', 'gateways']

export interface SelfTestOptions {
  readonly nginx: string
  /** Parent of the temporary directory; the system's own unless said. */
  readonly tmp?: string
}

export async function runSelfTest({ nginx, tmp = tmpdir() }: SelfTestOptions): Promise<void> {
  const dir = await mkdtemp(join(tmp, 'certpeer-front-'))
  const frontSecret = randomBytes(32).toString('hex')
  const pki = makeThrowawayPki(new Date())
  const at = (listener: Listener) => join(dir, `${listener}.sock`)
  const upstreams = LISTENERS.map((listener) =>
    http
      .createServer((request, response) => {
        response.setHeader('content-type', 'application/json')
        response.end(JSON.stringify(request.rawHeaders))
      })
      .listen(join(dir, SOCKETS[listener])),
  )
  const set = join(dir, 'set')
  let program: ReturnType<typeof startNginx> | undefined
  try {
    await renderSet({
      dir,
      set,
      runDir: dir,
      workers: '1',
      listen: Object.fromEntries(LISTENERS.map((listener) => [listener, `unix:${at(listener)}`])),
      frontSecret,
      issuersPem: pki.rootPem,
      crlPem: pki.crlPem,
      serverCertificatePem: pki.server.certificatePem,
      serverKeyPem: pki.server.keyPem,
    })
    program = startNginx(nginx, dir, join(set, 'nginx.conf'))
    await program.untilListening(LISTENERS.map(at))
    for (const listener of LISTENERS) await probe(listener, at(listener), pki, frontSecret)
  } finally {
    await program?.stop()
    for (const upstream of upstreams) {
      upstream.closeAllConnections()
      upstream.close()
    }
    await rm(dir, { recursive: true, force: true })
  }
}

async function probe(listener: Listener, socketPath: string, pki: ThrowawayPki, frontSecret: string): Promise<void> {
  const fail = (what: string): never => {
    throw new CertpeerError(
      'front_refused',
      `self-test: listener ${listener} ${what}; the files below nginx/ are not the ones of this version, or nginx behaves otherwise than known`,
    )
  }
  const anonymous = await send(listener, socketPath, pki, false)
  if (ASKS_FOR_CERTIFICATE.includes(listener)) {
    if (anonymous.status !== 401 || !anonymous.body.includes('client_certificate_required')) {
      fail('lets a request without a client certificate pass')
    }
    const shown = await send(listener, socketPath, pki, true)
    expectHeaders(shown, { verify: 'SUCCESS', certificate: pki.caller.certificatePem, frontSecret }, fail)
    return
  }
  // Plain HTTP has no such variable, and nginx drops a header without a value.
  expectHeaders(
    anonymous,
    { verify: listener === 'pki' ? undefined : 'NONE', certificate: undefined, frontSecret },
    fail,
  )
}

interface Expected {
  readonly verify: string | undefined
  readonly certificate: string | undefined
  readonly frontSecret: string
}

function expectHeaders(answer: Answer, expected: Expected, fail: (what: string) => never): void {
  if (answer.status !== 200) fail(`answers status ${answer.status} where the upstream's own answer was due`)
  const raw = JSON.parse(answer.body) as string[]
  const valuesOf = (name: string) => raw.filter((_, index) => index % 2 === 1 && raw[index - 1]?.toLowerCase() === name)
  if (raw.some((text) => text.includes(FORGED))) fail('passes a forged header on')
  if (raw.some((text, index) => index % 2 === 0 && text.includes('_'))) fail('passes a header with an underscore on')
  const single = (name: string, value: string | undefined) => {
    const values = valuesOf(name)
    const right = value === undefined ? values.length === 0 : values.length === 1 && values[0] === value
    if (!right) fail(`does not set ${name} as it should`)
  }
  single('x-client-verify', expected.verify)
  single('x-certpeer-front', expected.frontSecret)
  const certificates = valuesOf('x-client-cert').map((value) => decodeURIComponent(value).trim())
  if (
    expected.certificate === undefined ? certificates.length > 0 : certificates.join() !== expected.certificate.trim()
  ) {
    fail('does not set x-client-cert as it should')
  }
}

interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

function send(listener: Listener, socketPath: string, pki: ThrowawayPki, withCertificate: boolean): Promise<Answer> {
  const options: RequestOptions & https.RequestOptions = {
    socketPath,
    path: '/v1/self-test',
    headers: ['Host', 'localhost', ...FORGED_HEADERS.flat()],
    agent: false,
    timeout: 10_000,
    ...(listener === 'pki' ? {} : { ca: pki.rootPem, servername: 'localhost' }),
    ...(withCertificate ? { cert: pki.caller.certificatePem, key: pki.caller.keyPem } : {}),
  }
  return new Promise((resolve, reject) => {
    const request = (listener === 'pki' ? http : https).request(options, (response) => {
      let body = ''
      response.setEncoding('utf8')
      response.on('data', (chunk: string) => (body += chunk))
      response.on('error', reject)
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }))
    })
    request.on('timeout', () => request.destroy(new Error('no answer')))
    request.on('error', (cause) => {
      reject(new CertpeerError('front_refused', `self-test: listener ${listener} does not answer`, { cause }))
    })
    request.end()
  })
}

function startNginx(nginx: string, dir: string, file: string) {
  const child = spawn(nginx, ['-p', `${dir}/`, '-c', file, '-e', 'stderr'], { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (said += chunk.slice(0, 2000)))
  const ended = new Promise<Error | undefined>((resolve) => {
    child.on('error', resolve)
    child.on('exit', () => resolve(undefined))
  })
  return {
    async untilListening(sockets: readonly string[]): Promise<void> {
      for (let waitedMs = 0; !sockets.every((path) => existsSync(path)); waitedMs += 10) {
        const over = await Promise.race([ended.then((error) => ({ error })), sleep(10)])
        if (over?.error !== undefined) {
          throw new CertpeerError('missing_program', `cannot start ${nginx}: install nginx`, { cause: over.error })
        }
        if (over !== undefined || waitedMs > 10_000) {
          throw new CertpeerError('config_invalid', `self-test: nginx does not start: ${said.trim().slice(0, 600)}`)
        }
      }
    },
    async stop(): Promise<void> {
      child.kill('SIGTERM')
      await ended
    },
  }
}
