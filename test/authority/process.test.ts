/** The whole process over its sockets, judged by openssl. */
import assert from 'node:assert/strict'
import { execFile, execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer, type AddressInfo } from 'node:net'
import { promisify } from 'node:util'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { issueCredential } from '../../src/authority/credential.ts'
import { runAuthority } from '../../src/authority/main.ts'
import { initializePki } from '../../src/authority/pki-init.ts'
import { parsePrefix } from '../../src/core/ipam/prefix.ts'
import { revocationAnswerSchema } from '../../src/core/messages/revocation.ts'
import { tokenAnswerSchema, type CertificateAnswer } from '../../src/core/messages/enrollment.ts'
import { parseToken } from '../../src/core/messages/token.ts'
import { createPossession, tokenMac } from '../../src/core/wireguard/possession.ts'
import { parseCrl } from '../../src/core/x509/crl.ts'
import { certpeerOids } from '../../src/core/x509/oids.ts'
import { createCsr } from '../../src/core/x509/request.ts'
import { ApiClient } from '../../src/platform/api-client/client.ts'
import { readCredential } from '../../src/platform/credentials.ts'
import { silentLogger } from '../../src/platform/log.ts'
import { createHash } from 'node:crypto'
import { ENDPOINTS, newKeys } from './support.ts'

const run = promisify(execFile)
const PLAN = ['10.1.0.0/16', 'fd01:0:0:1::/64', 'fd01:0:0:8::/64']

async function start(t: TestContext) {
  const base = mkdtempSync(join(tmpdir(), 'cpa-'))
  const dir = join(base, 'ca')
  const blocks = PLAN.map((text) => parsePrefix(text))
  const log = silentLogger()
  await initializePki({
    caDir: dir,
    rootDir: join(base, 'root'),
    trustDomain: 'certpeer.internal',
    pen: 32473,
    tenants: [{ name: 'default', blocks }],
    infrastructureBlocks: blocks,
    log,
  })
  mkdirSync(join(base, 'run'))
  writeFileSync(join(dir, 'config.json'), JSON.stringify({ runDir: join(base, 'run'), endpoints: ENDPOINTS }))
  const operator = join(base, 'operator')
  await issueCredential({ caDir: dir, role: 'operator-admin', name: 'admin', out: operator, endpoints: ENDPOINTS, log })
  const stop = new AbortController()
  const running = runAuthority({ dir, log, signal: stop.signal })
  t.after(async () => {
    stop.abort()
    await running
    rmSync(base, { recursive: true, force: true })
  })
  const socket = (name: string) => `unix:${join(base, 'run', `ca-${name}.sock`)}`
  const pki = new ApiClient({ base: socket('pki') })
  for (let tries = 0; ; tries++) {
    try {
      await new ApiClient({ base: socket('admin') }).request({ method: 'GET', path: '/readyz' })
      break
    } catch (error) {
      if (tries > 100) throw error
      await Promise.race([new Promise((resolve) => setTimeout(resolve, 50)), running])
    }
  }
  const { certificate } = await readCredential(operator)
  const authority = new ApiClient({
    base: socket('authority'),
    headers: { 'x-client-verify': 'SUCCESS', 'x-client-cert': encodeURIComponent(certificate) },
  })
  return { base, dir, pki, authority, enroll: new ApiClient({ base: socket('enroll') }), log }
}

type Running = Awaited<ReturnType<typeof start>>

async function enrollDevice({ authority, enroll }: Running, name: string): Promise<CertificateAnswer> {
  await authority.request({
    method: 'PUT',
    path: '/v1/networks',
    json: { pools: PLAN.slice(0, 2), keyPrefix: PLAN[2] },
  })
  const made = await authority.request({ method: 'POST', path: '/v1/tokens', json: { name, networks: ['default'] } })
  const { claims, segment, secret } = parseToken(tokenAnswerSchema.parse(made.json).token)
  const keys = newKeys()
  const credentialHash = createHash('sha256').update(segment).digest()
  const { json } = await enroll.request({
    method: 'POST',
    path: '/v1/challenges',
    json: { credential: credentialHash.toString('base64url') },
  })
  const challenge = json as { id: string; publicKey: string; nonce: string }
  const { attribute, info } = createPossession({
    privateKey: keys.wireGuardPrivate,
    challenge: {
      id: challenge.id,
      publicKey: Buffer.from(challenge.publicKey, 'base64url'),
      nonce: Buffer.from(challenge.nonce, 'base64url'),
    },
    trustDomain: claims.trustDomain,
    spki: keys.tls.publicKey.export({ type: 'spki', format: 'der' }),
    credentialHash,
    profile: claims.profile,
  })
  const csr = await createCsr({
    tlsKey: keys.tls.privateKey,
    commonName: name,
    wireGuardKey: keys.wireGuard,
    attributes: { possession: attribute },
    oids: certpeerOids(claims.pen),
  })
  const answer = await enroll.request({
    method: 'POST',
    path: '/v1/certificates',
    json: {
      claims: segment,
      mac: tokenMac(secret, info).toString('base64url'),
      challenge: challenge.id,
      csr: csr.toString('base64'),
    },
  })
  return answer.json as CertificateAnswer
}

function openssl(args: string[], input?: Buffer): string {
  return execFileSync('openssl', args, {
    ...(input === undefined ? {} : { input }),
    stdio: ['pipe', 'pipe', 'pipe'],
  }).toString()
}

/** openssl speaks no unix sockets. */
async function tcpInFrontOf(t: TestContext, socketPath: string): Promise<string> {
  const server = createServer((client) => {
    const upstream = connect(socketPath)
    client.pipe(upstream).pipe(client)
    for (const socket of [client, upstream]) socket.on('error', () => socket.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => server.close())
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

test('enrolled over the socket, verified, revoked, and seen revoked by openssl in CRL and OCSP', async (t) => {
  const running = await start(t)
  const { base, dir, pki, authority } = running
  const device = await enrollDevice(running, 'laptop')
  const at = (name: string) => join(base, name)
  writeFileSync(at('leaf.pem'), device.certificate)
  writeFileSync(at('issuer.pem'), device.issuer)
  const verify = () =>
    openssl(['verify', '-CAfile', join(dir, 'root.pem'), '-untrusted', at('issuer.pem'), at('leaf.pem')])
  assert.match(verify(), /OK/)
  const text = openssl(['x509', '-in', at('leaf.pem'), '-noout', '-text'])
  assert.match(text, /sbgp-ipAddrBlock/)
  assert.match(text, /URI:spiffe:\/\/default\.certpeer\.internal\/network\/default\/device\//)

  const url = await tcpInFrontOf(t, join(base, 'run', 'ca-pki.sock'))
  const ask = async (): Promise<string> => {
    openssl(['ocsp', '-no_nonce', '-issuer', at('issuer.pem'), '-cert', at('leaf.pem'), '-reqout', at('ocsp.req')])
    const encoded = encodeURIComponent(readFileSync(at('ocsp.req')).toString('base64'))
    const got = await pki.request({ method: 'GET', path: `/ocsp/device-default/${encoded}` })
    writeFileSync(at('ocsp.resp'), got.raw)
    const common = ['-issuer', at('issuer.pem'), '-cert', at('leaf.pem'), '-CAfile', join(dir, 'root.pem')]
    const byGet = openssl([
      'ocsp',
      '-no_nonce',
      ...common,
      '-verify_other',
      at('issuer.pem'),
      '-respin',
      at('ocsp.resp'),
    ])
    // With a nonce and over HTTP, as it is used.
    const byPost = await run('openssl', [
      'ocsp',
      ...common,
      '-verify_other',
      at('issuer.pem'),
      '-url',
      `${url}/ocsp/device-default`,
    ])
    assert.match(byPost.stderr, /Response verify OK/)
    assert.doesNotMatch(byPost.stderr, /WARNING/)
    assert.equal(/: (\w+)/.exec(byGet)?.[1], /: (\w+)/.exec(byPost.stdout)?.[1])
    return byPost.stdout
  }
  assert.match(await ask(), /: good/)

  const revoked = await authority.request({
    method: 'POST',
    path: '/v1/revocations',
    json: { target: { kind: 'device', name: 'laptop' }, reason: 'keyCompromise' },
  })
  const record = revocationAnswerSchema.parse(revoked.json)
  assert.equal(record.already, false)
  assert.deepEqual(
    record.certificates.map((certificate) => certificate.serial),
    [device.serial],
  )
  assert.match(await ask(), /: revoked/)
  const again = await authority.request({
    method: 'POST',
    path: '/v1/revocations',
    json: { target: { kind: 'device', name: 'laptop' } },
  })
  assert.deepEqual(revocationAnswerSchema.parse(again.json), { ...record, already: true })

  const deadline = Date.now() + 2000
  let crl = await pki.request({ method: 'GET', path: '/crl/device-default.crl' })
  while (!parseCrl(crl.raw).entries.has(device.serial as never)) {
    assert.ok(Date.now() < deadline, 'the CRL holds the serial number within two seconds')
    await new Promise((resolve) => setTimeout(resolve, 20))
    crl = await pki.request({ method: 'GET', path: '/crl/device-default.crl' })
  }
  const parsed = parseCrl(crl.raw, certpeerOids(32473))
  assert.ok(parsed.ledgerHead && parsed.ledgerHead.size > record.ledgerIndex)
  const rootCrl = await pki.request({ method: 'GET', path: '/crl/root.crl' })
  const pem = (der: Buffer) => openssl(['crl', '-inform', 'DER'], der)
  writeFileSync(at('all.crl'), pem(crl.raw) + pem(rootCrl.raw))
  assert.throws(
    () =>
      openssl([
        'verify',
        '-crl_check_all',
        '-CRLfile',
        at('all.crl'),
        '-CAfile',
        join(dir, 'root.pem'),
        '-untrusted',
        at('issuer.pem'),
        at('leaf.pem'),
      ]),
    /certificate revoked/,
  )
  const unchanged = await pki.request({
    method: 'GET',
    path: '/crl/device-default.crl',
    headers: { 'if-none-match': String(crl.headers.etag) },
  })
  assert.equal(unchanged.status, 304)
})

test('OCSP: unknown for what was never issued, unauthorized for another CA', async (t) => {
  const running = await start(t)
  const { base, dir, pki } = running
  const device = await enrollDevice(running, 'laptop')
  const at = (name: string) => join(base, name)
  writeFileSync(at('issuer.pem'), device.issuer)
  const ask = async (issuer: string, serial: string): Promise<string> => {
    openssl(['ocsp', '-no_nonce', '-issuer', issuer, '-serial', serial, '-reqout', at('req')])
    const { raw } = await pki.request({
      method: 'POST',
      path: '/ocsp/device-default',
      raw: { contentType: 'application/ocsp-request', body: readFileSync(at('req')) },
    })
    writeFileSync(at('resp'), raw)
    const { stdout, stderr } = spawnSync('openssl', ['ocsp', '-respin', at('resp'), '-text', '-noverify'])
    return `${stdout.toString()}${stderr.toString()}`
  }
  assert.match(await ask(at('issuer.pem'), '0x1234'), /Cert Status: unknown/)
  assert.match(await ask(join(dir, 'issuers', 'infrastructure.pem'), '0x1234'), /unauthorized/)
})

test('while the ca runs, credentials come through its admin socket; a second ca is refused', async (t) => {
  const { base, dir, authority, log } = await start(t)
  const out = join(base, 'second')
  await issueCredential({ caDir: dir, role: 'operator-auditor', name: 'eve', out, endpoints: ENDPOINTS, log })
  const { certificate } = await readCredential(out)
  const auditor = new ApiClient({
    base: `unix:${join(base, 'run', 'ca-authority.sock')}`,
    headers: { 'x-client-verify': 'SUCCESS', 'x-client-cert': encodeURIComponent(certificate) },
  })
  assert.equal((await auditor.request({ method: 'GET', path: '/v1/networks' })).status, 200)
  const revocation = { method: 'POST', path: '/v1/revocations', json: { target: { kind: 'operator', name: 'eve' } } }
  await assert.rejects(auditor.request(revocation), { code: 'policy_denied' })
  await authority.request(revocation)
  await assert.rejects(auditor.request({ method: 'GET', path: '/v1/networks' }), { code: 'certificate_revoked' })
  await assert.rejects(
    new ApiClient({ base: `unix:${join(base, 'run', 'ca-authority.sock')}` }).request({
      method: 'GET',
      path: '/v1/networks',
    }),
    {
      code: 'client_certificate_required',
    },
  )
  await assert.rejects(runAuthority({ dir, log, signal: AbortSignal.timeout(5000) }), { code: 'ledger_locked' })
})
