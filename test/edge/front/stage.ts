/** A front with a real nginx on free ports, a PKI of its own, and upstreams that answer with what reached them. */
import { randomBytes, sign, type KeyObject } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TLSSocket } from 'node:tls'
import { LISTENERS, type Listener } from '../../../src/edge/front/config.ts'
import { runFront } from '../../../src/edge/front/main.ts'
import { writeCredential } from '../../../src/platform/credentials.ts'
import type { Certificate } from '../../../src/core/x509/certificate.ts'
import { encodeCrlEntry, encodeTbsCertList } from '../../../src/core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../../../src/core/x509/encode.ts'
import { subjectAltName } from '../../../src/core/x509/extensions.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import {
  makeDevice,
  makeDeviceCa,
  makeInfrastructureCa,
  makeInfrastructureLeaf,
  makeRoot,
  newKeyPair,
  OIDS,
  TRUST_DOMAIN,
  type Authority,
  type CertificateParts,
} from '../../support/certificates.ts'
import { captureLog, until } from '../../support/http.ts'

const DAY_MS = 86_400_000
const SOCKETS: Readonly<Record<Listener, string>> = {
  enroll: 'ca-enroll.sock',
  authority: 'ca-authority.sock',
  api: 'server-api.sock',
  gateways: 'server-gateways.sock',
  pki: 'ca-pki.sock',
}

export interface Caller {
  readonly certificate: Certificate
  readonly issuer: Certificate
  readonly key: KeyObject
}

export interface Answer {
  readonly status: number
  readonly headers: http.IncomingHttpHeaders
  readonly body: string
}

export interface Published {
  readonly root: Authority
  readonly devices: Authority
  readonly infrastructure: Authority
}

/** nginx lives by the real clock, so certificates do too. */
const validity = (): Pick<CertificateParts, 'notBefore' | 'notAfter'> => ({
  notBefore: new Date(Date.now() - 2 * DAY_MS),
  notAfter: new Date(Date.now() + DAY_MS),
})
const long = (): Pick<CertificateParts, 'notBefore' | 'notAfter'> => ({
  notBefore: new Date(Date.now() - 30 * DAY_MS),
  notAfter: new Date(Date.now() + 3650 * DAY_MS),
})

export function makeHierarchy(): Published {
  const root = makeRoot(long())
  return { root, devices: makeDeviceCa(root, long()), infrastructure: makeInfrastructureCa(root, long()) }
}

export function makeCaller(ca: Authority, parts: CertificateParts = {}): Caller {
  const { publicKey, privateKey } = newKeyPair()
  return {
    certificate: makeDevice(ca, { ...validity(), publicKey, ...parts }),
    issuer: ca.certificate,
    key: privateKey,
  }
}

export function makeCrl(
  issuer: Authority,
  number: bigint,
  revoked: readonly Certificate[] = [],
  signer = issuer,
  life: { readonly thisUpdate?: Date; readonly nextUpdate?: Date } = {},
): Buffer {
  const entries = revoked.map(({ serial }) =>
    encodeCrlEntry({ serial, revokedAt: new Date(Date.now() - 1000), reason: 'keyCompromise' }),
  )
  const tbs = encodeTbsCertList({
    issuer: issuer.certificate,
    thisUpdate: life.thisUpdate ?? new Date(Date.now() - 60_000),
    nextUpdate: life.nextUpdate ?? new Date(Date.now() + DAY_MS),
    number,
    entries: Buffer.concat(entries),
    oids: OIDS,
  })
  const algorithm = signatureAlgorithmFor(signer.publicKey)
  return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, signer.privateKey))
}

export class FrontStage implements AsyncDisposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'cp-front-'))
  readonly pki = makeHierarchy()
  readonly secret = randomBytes(32).toString('hex')
  /** What the pki listener serves by path; undefined answers 404. */
  readonly crls = new Map<string, Buffer>()
  readonly captured = captureLog()
  readonly ports = new Map<Listener, number>()
  /** Requests that reached an upstream. */
  readonly reached: { listener: Listener; rawHeaders: readonly string[] }[] = []
  #offsetMs = 0
  readonly #stop = new AbortController()
  readonly #servers: http.Server[] = []
  #running: Promise<void> | undefined

  static async start(): Promise<FrontStage> {
    const stage = new FrontStage()
    await stage.#start()
    return stage
  }

  /** Lets a minute pass for the front, which then may reload again. */
  skipMinute(): void {
    this.#offsetMs += 61_000
  }

  get activations(): number {
    return this.captured.lines.filter(({ msg }) => msg === 'generation active').length
  }

  get refusals(): number {
    return this.captured.lines.filter(({ msg }) => String(msg).startsWith('nothing loaded')).length
  }

  publish(revoked: readonly Certificate[] = [], number = BigInt(Date.now())): void {
    this.crls.set('/crl/root.crl', makeCrl(this.pki.root, 1n))
    this.crls.set('/crl/device-default.crl', makeCrl(this.pki.devices, number, revoked))
    this.crls.set('/crl/infrastructure.crl', makeCrl(this.pki.infrastructure, 1n))
  }

  async stopUpstream(listener: Listener): Promise<void> {
    const server = this.#servers[LISTENERS.indexOf(listener)]
    server?.closeAllConnections()
    await new Promise((resolve) => server?.close(resolve))
  }

  send(
    listener: Listener,
    options: https.RequestOptions & { caller?: Caller; payload?: string } = {},
  ): Promise<Answer> {
    const { caller, payload, ...rest } = options
    const secure = listener !== 'pki'
    return new Promise((resolve, reject) => {
      const request = (secure ? https : http).request(
        {
          host: '127.0.0.1',
          port: this.ports.get(listener),
          path: '/v1/x',
          agent: false,
          timeout: 5000,
          ...(secure ? { ca: derToPem(this.pki.root.certificate.der), servername: 'localhost' } : {}),
          ...(caller === undefined
            ? {}
            : {
                cert: derToPem(caller.certificate.der) + derToPem(caller.issuer.der),
                key: caller.key.export({ type: 'pkcs8', format: 'pem' }),
              }),
          ...rest,
        },
        (response) => {
          let body = ''
          response.setEncoding('utf8')
          response.on('data', (chunk: string) => (body += chunk))
          response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }))
          response.on('error', reject)
        },
      )
      request.on('error', reject)
      request.end(payload)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    await this.#running
    for (const server of this.#servers) {
      server.closeAllConnections()
      server.close()
    }
    rmSync(this.dir, { recursive: true, force: true })
  }

  async #start(): Promise<void> {
    const runDir = join(this.dir, 'run')
    const frontDir = join(this.dir, 'front')
    mkdirSync(runDir)
    mkdirSync(frontDir)
    for (const listener of LISTENERS) {
      this.ports.set(listener, await freePort())
      const server = http.createServer((request, response) => this.#answer(listener, request, response))
      this.#servers.push(server.listen(join(runDir, SOCKETS[listener])))
    }
    this.publish()
    const { infrastructure, root } = this.pki
    const { publicKey, privateKey } = newKeyPair()
    const uri = `spiffe://${TRUST_DOMAIN}/server/nginx`
    const server = makeInfrastructureLeaf(infrastructure, 'server', uri, {
      ...long(),
      publicKey,
      extensions: { subjectAltName: subjectAltName({ uris: [uri], dns: ['localhost'], ips: ['127.0.0.1'] }) },
    })
    const url = (listener: Listener) => `https://localhost:${this.ports.get(listener) ?? 0}`
    await writeCredential(join(frontDir, 'server'), {
      certificate: derToPem(server.der),
      issuer: derToPem(infrastructure.certificate.der),
      root: derToPem(root.certificate.der),
      tlsKey: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
      config: {
        role: 'server',
        identity: uri,
        trustDomain: TRUST_DOMAIN,
        pen: OIDS.pen,
        enrollUrl: url('enroll'),
        authorityUrl: url('authority'),
        apiUrl: url('api'),
        gatewaysUrl: url('gateways'),
        pkiUrl: `http://localhost:${this.ports.get('pki') ?? 0}`,
      },
    })
    writeFileSync(join(this.dir, 'root.pem'), derToPem(root.certificate.der))
    writeFileSync(join(this.dir, 'secret'), this.secret, { mode: 0o600 })
    const config = {
      listen: '127.0.0.1',
      ports: Object.fromEntries(this.ports),
      roles: ['authority', 'control'],
      runDir,
      pkiSource: `unix:${runDir}/ca-pki.sock`,
      enrollSource: `unix:${runDir}/ca-enroll.sock`,
      rootCertificate: join(this.dir, 'root.pem'),
      frontSecretFile: join(this.dir, 'secret'),
      trustDomain: TRUST_DOMAIN,
      pen: OIDS.pen,
      workers: 1,
      pollSeconds: 1,
    }
    writeFileSync(join(frontDir, 'config.json'), JSON.stringify(config))
    this.#running = runFront({
      dir: frontDir,
      log: this.captured.log,
      signal: this.#stop.signal,
      startNginx: true,
      now: () => new Date(Date.now() + this.#offsetMs),
    })
    this.#running.catch(() => undefined)
    let up = false
    const poll = setInterval(
      () =>
        void this.send('pki').then(
          () => (up = true),
          () => undefined,
        ),
      30,
    )
    await Promise.race([until(() => up, 10_000), this.#running]).finally(() => clearInterval(poll))
  }

  #answer(listener: Listener, request: http.IncomingMessage, response: http.ServerResponse): void {
    const path = request.url ?? ''
    if (listener === 'pki' && path.startsWith('/crl/')) {
      const crl = this.crls.get(path)
      response.writeHead(crl === undefined ? 404 : 200, { 'content-type': 'application/pkix-crl' }).end(crl)
      return
    }
    response.setHeader('content-type', 'application/json')
    if (listener === 'pki' && path === '/issuers.json') {
      const pem = ({ certificate }: Authority) => derToPem(certificate.der)
      const { root, devices, infrastructure } = this.pki
      response.end(
        JSON.stringify({
          trustDomain: TRUST_DOMAIN,
          pen: OIDS.pen,
          root: pem(root),
          issuers: [
            {
              name: 'device-default',
              role: 'device',
              tenant: 'default',
              certificate: pem(devices),
              crl: '/crl/device-default.crl',
            },
            {
              name: 'infrastructure',
              role: 'infrastructure',
              certificate: pem(infrastructure),
              crl: '/crl/infrastructure.crl',
            },
          ],
        }),
      )
      return
    }
    this.reached.push({ listener, rawHeaders: request.rawHeaders })
    response.end(JSON.stringify(request.rawHeaders))
  }
}

export function isReused(socket: unknown): boolean {
  return (socket as TLSSocket).isSessionReused()
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  return typeof address === 'object' && address !== null ? address.port : 0
}
