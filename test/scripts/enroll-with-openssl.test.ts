import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash, createPrivateKey, createPublicKey, randomBytes } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import type { IncomingMessage } from 'node:http'
import { createServer, type Server } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { CertpeerError, errorCode } from '../../src/core/errors.ts'
import { parseMessage } from '../../src/core/messages/common.ts'
import {
  challengeRequestSchema,
  enrollRequestSchema,
  type CertificateAnswer,
  type TokenClaims,
  type TrustAnswer,
} from '../../src/core/messages/enrollment.ts'
import { encodeToken, parseClaims, tokenSecret } from '../../src/core/messages/token.ts'
import { wireGuardKeyToBytes } from '../../src/core/wireguard/key.ts'
import { possessionInfo, tokenMacMatches, verifyPossession } from '../../src/core/wireguard/possession.ts'
import { x25519PublicFromPrivate } from '../../src/core/wireguard/x25519.ts'
import { parseCertificate } from '../../src/core/x509/certificate.ts'
import { readWireGuardKey } from '../../src/core/x509/certpeer-extensions.ts'
import { parseCsr } from '../../src/core/x509/csr.ts'
import { subjectAltName } from '../../src/core/x509/extensions.ts'
import { derToPem, pemToDerAll } from '../../src/core/x509/pem.ts'
import { packageRoot } from '../../src/platform/package-root.ts'
import { readCredential } from '../../src/platform/credentials.ts'
import {
  makeDevice,
  makeDeviceCa,
  makeInfrastructureCa,
  makeLeafDer,
  makeRoot,
  newKeyPair,
  OIDS,
  spkiOf,
  TRUST_DOMAIN,
} from '../support/certificates.ts'

/** curl and openssl go by the real clock. */
const ALWAYS = { notBefore: new Date('2020-01-01T00:00:00Z'), notAfter: new Date('2049-12-31T00:00:00Z') }
const ROOT = makeRoot(ALWAYS)
const DEVICE_CA = makeDeviceCa(ROOT, ALWAYS)
const INFRASTRUCTURE = makeInfrastructureCa(ROOT, ALWAYS)
const TOKEN_KEY = Buffer.alloc(32, 3)

function sha256(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest()
}

/** What goes wrong on purpose. */
type Fault = 'none' | 'another root' | 'another key' | 'another WireGuard key' | 'another identity' | 'another CA'

/** An authority's listener *enroll* in memory: the same checks in the same order, without ledger and policy. */
class Authority {
  fault: Fault = 'none'
  readonly requests: string[] = []
  readonly #challenges = new Map<string, { ephemeral: Buffer; nonce: Buffer; credential: string }>()
  readonly #server: Server

  constructor() {
    const pair = newKeyPair()
    const leaf = makeLeafDer(
      INFRASTRUCTURE,
      'front',
      'server',
      { ...ALWAYS, publicKey: pair.publicKey },
      {
        subjectAltName: subjectAltName({ uris: [`spiffe://${TRUST_DOMAIN}/server/front`], ips: ['127.0.0.1'] }),
      },
    )
    this.#server = createServer({
      cert: derToPem(leaf) + derToPem(INFRASTRUCTURE.certificate.der),
      key: pair.privateKey.export({ type: 'pkcs8', format: 'pem' }),
    })
    this.#server.on('request', (request: IncomingMessage, response) => {
      const chunks: Buffer[] = []
      request.on('data', (chunk: Buffer) => chunks.push(chunk))
      request.on('end', () => {
        this.requests.push(request.url ?? '')
        try {
          const body = chunks.length === 0 ? undefined : (JSON.parse(Buffer.concat(chunks).toString('utf8')) as unknown)
          response.setHeader('content-type', 'application/json').end(JSON.stringify(this.#answer(request.url, body)))
        } catch (error) {
          response.writeHead(400, { 'content-type': 'application/problem+json' })
          response.end(JSON.stringify({ code: errorCode(error), detail: String(error) }))
        }
      })
    })
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve))
  }

  get url(): string {
    return `https://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  get endpoints() {
    return { enrollUrl: this.url, authorityUrl: this.url, apiUrl: this.url, gatewaysUrl: this.url, pkiUrl: this.url }
  }

  token(changes: Partial<TokenClaims> = {}): string {
    const claims: TokenClaims = {
      v: 1,
      jti: randomBytes(16).toString('base64url'),
      role: 'device',
      name: 'laptop',
      tenant: 'default',
      networks: ['default'],
      groups: ['staff'],
      profile: 'device',
      possession: true,
      replace: false,
      exp: Math.floor(Date.now() / 1000) + 600,
      root: ROOT.certificate.fingerprint,
      trustDomain: TRUST_DOMAIN,
      pen: OIDS.pen,
      url: this.url,
      ...changes,
    }
    return encodeToken({ claims, tokenKey: TOKEN_KEY })
  }

  close(): void {
    this.#server.close()
    this.#server.closeAllConnections()
  }

  #answer(url: string | undefined, body: unknown): unknown {
    switch (url) {
      case '/v1/trust':
        return this.#trust()
      case '/v1/challenges':
        return this.#challenge(body)
      case '/v1/certificates':
        return this.#certify(body)
      default:
        throw new Error(`no such path: ${String(url)}`)
    }
  }

  #trust(): TrustAnswer {
    const root = this.fault === 'another root' ? makeRoot(ALWAYS) : ROOT
    return {
      trustDomain: TRUST_DOMAIN,
      pen: OIDS.pen,
      root: derToPem(root.certificate.der),
      issuers: [derToPem(DEVICE_CA.certificate.der)],
      endpoints: this.endpoints,
    }
  }

  #challenge(body: unknown): unknown {
    const { credential } = parseMessage(challengeRequestSchema, body)
    const challenge = { ephemeral: randomBytes(32), nonce: randomBytes(32), credential }
    const id = randomBytes(16).toString('base64url')
    this.#challenges.set(id, challenge)
    return {
      id,
      publicKey: x25519PublicFromPrivate(challenge.ephemeral).toString('base64url'),
      nonce: challenge.nonce.toString('base64url'),
      expiresAt: new Date(Date.now() + 120_000).toISOString(),
    }
  }

  #certify(body: unknown): CertificateAnswer {
    const request = parseMessage(enrollRequestSchema, body)
    const claims = parseClaims(request.claims)
    const challenge = this.#challenges.get(request.challenge)
    if (challenge === undefined) throw new CertpeerError('challenge_unknown', 'no such challenge')
    this.#challenges.delete(request.challenge)
    const credentialHash = sha256(Buffer.from(request.claims, 'ascii'))
    if (challenge.credential !== credentialHash.toString('base64url')) {
      throw new CertpeerError('challenge_unknown', 'the challenge is for another credential')
    }
    const csr = parseCsr(request.csr, OIDS)
    if (csr.wireGuardKey === undefined || csr.possession?.challengeId !== request.challenge) {
      throw new CertpeerError('bad_possession_proof', 'no proof for this challenge')
    }
    if (csr.commonName !== claims.name) throw new CertpeerError('malformed_csr', 'another name than in the token')
    const fields = {
      trustDomain: TRUST_DOMAIN,
      challengeId: request.challenge,
      spkiHash: sha256(csr.spki),
      credentialHash,
      profile: claims.profile,
    }
    const info = possessionInfo({
      ...fields,
      ephemeralKey: x25519PublicFromPrivate(challenge.ephemeral),
      wireGuardKey: wireGuardKeyToBytes(csr.wireGuardKey),
    })
    if (!tokenMacMatches(tokenSecret(TOKEN_KEY, request.claims), info, Buffer.from(request.mac, 'base64url'))) {
      throw new CertpeerError('token_invalid', 'the token is not one of ours')
    }
    verifyPossession({
      ephemeralPrivateKey: challenge.ephemeral,
      nonce: challenge.nonce,
      fields,
      wireGuardKey: csr.wireGuardKey,
      tag: csr.possession.tag,
    })
    const { fault } = this
    const certificate = makeDevice(fault === 'another CA' ? makeDeviceCa(makeRoot(ALWAYS), ALWAYS) : DEVICE_CA, {
      ...ALWAYS,
      publicKey: fault === 'another key' ? newKeyPair().publicKey : csr.publicKey,
      ...(fault === 'another WireGuard key' ? {} : { key: csr.wireGuardKey }),
      ...(fault === 'another identity' ? { uri: `spiffe://default.${TRUST_DOMAIN}/network/lab/device/d1` } : {}),
    })
    return {
      certificate: derToPem(certificate.der),
      issuer: derToPem(DEVICE_CA.certificate.der),
      serial: certificate.serial,
      identity: certificate.sanUris[0] ?? '',
      notAfter: certificate.notAfter.toISOString(),
      endpoints: this.endpoints,
      networkDocuments: [],
    }
  }
}

interface Result {
  readonly code: number | null
  readonly stderr: string
}

async function enroll(token: string, dir: string, input = ''): Promise<Result> {
  const child = spawn(join(packageRoot(), 'scripts/enroll-with-openssl'), [token, dir], {
    stdio: ['pipe', 'ignore', 'pipe'],
    env: { PATH: process.env['PATH'], TMPDIR: tmpdir() },
  })
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  child.stdin.on('error', () => undefined) // it may end without reading
  child.stdin.end(input)
  const code = await new Promise<number | null>((resolve) => child.on('close', resolve))
  return { code, stderr }
}

const authority = new Authority()
let folder = ''
before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'certpeer-enroll-'))
  await authority.listen()
})
after(() => {
  authority.close()
  rmSync(folder, { recursive: true, force: true })
})

for (const { name, argument, input } of [
  { name: 'as an argument', argument: (token: string) => token, input: () => '' },
  { name: 'on standard input', argument: () => '-', input: (token: string) => `${token}\n` },
]) {
  test(`openssl and curl enroll a device with the token ${name}`, async () => {
    authority.fault = 'none'
    const token = authority.token()
    const dir = join(folder, `device ${name}`)
    const { code, stderr } = await enroll(argument(token), dir, input(token))
    assert.equal(code, 0, stderr)
    assert.deepEqual(readdirSync(dir).toSorted(), [
      'certificate.pem',
      'config.json',
      'root.pem',
      'tls.key',
      'wireguard.key',
    ])
    for (const secret of ['tls.key', 'wireguard.key', 'config.json']) {
      assert.equal(statSync(join(dir, secret)).mode & 0o777, 0o600, secret)
    }
    const credential = await readCredential(dir)
    assert.equal(credential.config.role, 'device')
    assert.equal(credential.config.name, 'laptop')
    assert.equal(credential.config.apiUrl, authority.url)
    const [leaf, issuer] = pemToDerAll(readFileSync(join(dir, 'certificate.pem'), 'utf8')).map(parseCertificate)
    assert.ok(leaf !== undefined && issuer !== undefined)
    assert.equal(issuer.fingerprint, DEVICE_CA.certificate.fingerprint)
    assert.equal(credential.config.identity, leaf.sanUris[0])
    assert.deepEqual(spkiOf(createPublicKey(createPrivateKey(credential.tlsKey))), leaf.spki)
    const wireGuardPrivate = Buffer.from(credential.wireGuardKey ?? '', 'base64')
    assert.equal(readWireGuardKey(leaf, OIDS).key, x25519PublicFromPrivate(wireGuardPrivate).toString('base64'))
  })
}

test('a directory that holds a certificate is left alone, and nobody is asked anything', async () => {
  const dir = join(folder, 'twice')
  assert.equal((await enroll(authority.token(), dir)).code, 0)
  const before = readFileSync(join(dir, 'certificate.pem'))
  const asked = authority.requests.length
  const { code, stderr } = await enroll(authority.token(), dir)
  assert.equal(code, 1)
  assert.match(stderr, /already holds a certificate/)
  assert.deepEqual(readFileSync(join(dir, 'certificate.pem')), before)
  assert.equal(authority.requests.length, asked)
})

for (const { fault, message, lastRequest } of [
  { fault: 'another root', message: /not the one the token names/, lastRequest: '/v1/trust' },
  { fault: 'another key', message: /another TLS key/, lastRequest: '/v1/certificates' },
  { fault: 'another WireGuard key', message: /another WireGuard key/, lastRequest: '/v1/certificates' },
  { fault: 'another identity', message: /another identity/, lastRequest: '/v1/certificates' },
  { fault: 'another CA', message: /does not verify/, lastRequest: '/v1/certificates' },
] as const) {
  test(`an answer with ${fault} is not believed and leaves nothing behind`, async () => {
    authority.fault = fault
    const dir = join(folder, fault)
    const { code, stderr } = await enroll(authority.token(), dir)
    authority.fault = 'none'
    assert.equal(code, 1)
    assert.match(stderr, message)
    assert.equal(authority.requests.at(-1), lastRequest)
    assert.deepEqual(readdirSync(dir), [])
  })
}

for (const { name, token, message } of [
  { name: 'no token', token: () => 'hello', message: /not an enrollment token/ },
  { name: 'a token for a gateway', token: () => authority.token({ role: 'gateway' }), message: /not for a device/ },
  {
    name: 'a token with another secret',
    token: () => `${authority.token().slice(0, -43)}${Buffer.alloc(32, 1).toString('base64url')}`,
    message: /token_invalid(.|\n)*\/v1\/certificates failed/,
  },
]) {
  test(`${name} ends in one clear line and nothing behind`, async () => {
    const dir = join(folder, name)
    const { code, stderr } = await enroll(token(), dir)
    assert.equal(code, 1)
    assert.match(stderr, message)
    assert.deepEqual(readdirSync(dir), [])
  })
}
