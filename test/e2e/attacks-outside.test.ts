/**
 * Attacks from outside, on the listeners as anybody reaches them and on the sockets behind them: forged certificate
 * headers, replayed and tampered requests, keys that are somebody else's, and certificates that a CA should never have
 * issued. Requests are made by hand (test/support/attacks-csr.ts), certificates with the lab's real CA keys.
 */
import assert from 'node:assert/strict'
import { createHmac, createPrivateKey, randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { derToPem } from '../../src/core/x509/pem.ts'
import { extendedKeyUsage, subjectAltName } from '../../src/core/x509/extensions.ts'
import { OID } from '../../src/core/x509/oids.ts'
import {
  assertRefused,
  call,
  DatabaseOwner,
  enrollHolder,
  listProcesses,
  provision,
  readCertificate,
  readHolder,
  writeCredential,
  type Holder,
} from '../support/attacks.ts'
import {
  askChallenge,
  makeEnrollment,
  makeRenewal,
  newAttackKeys,
  sendEnrollment,
  sendRenewal,
  type AttackKeys,
} from '../support/attacks-csr.ts'
import {
  applyNetwork,
  forgeLeaf,
  makeDeviceCa,
  readRealCa,
  upWithTwoNetworks,
  type LeafWish,
} from '../support/attacks-forge.ts'
import { makeRoot, OIDS, type Authority } from '../support/certificates.ts'
import { rawRequest, type RawAnswer } from '../support/http.ts'
import { cannotRunLab, eventually, Lab } from '../support/lab.ts'

const skip = cannotRunLab()
const P = 2n ** 255n - 19n

let lab: Lab
let namespace: string
let processes: string[]
let frontSecret: string
/** Has a tunnel: the victim. */
let alice: Holder
/** Enrolled honestly, and means harm. */
let eve: Holder

before(async () => {
  if (skip !== false) return
  lab = await Lab.create()
  await upWithTwoNetworks(lab)
  namespace = await lab.addHost('dev', 10)
  alice = readHolder(await lab.enrollDevice(namespace, 'alice'))
  eve = await enrollHolder(lab, namespace, 'eve')
  frontSecret = readFileSync(join(lab.stateDir, 'front', 'front.secret'), 'utf8').trim()
  processes = listProcesses(lab)
})

after(async () => {
  if (skip === false) await lab[Symbol.asyncDispose]()
})

async function newToken(name: string, args: readonly string[] = []): Promise<string> {
  return (await lab.ok(lab.host, ['token', 'create', '--device', name, ...args])).trim()
}

async function assertOnlyAlice(what: string): Promise<void> {
  assert.deepEqual([...(await lab.gatewayPeers()).keys()], [alice.publicKey], `${what}${lab.logs()}`)
  assert.deepEqual(listProcesses(lab), processes, `${what}: a process ended${lab.logs()}`)
}

/** As nginx writes a certificate into a header. */
function escaped(der: Buffer): string {
  return encodeURIComponent(derToPem(der)).replace(/[!'()*]/g, (text) => `%${text.charCodeAt(0).toString(16)}`)
}

/** What a forger sends; each list goes with one request. */
function forgedHeaders(der: Buffer): string[][] {
  const pem = escaped(der)
  return [
    ['X-Client-Verify: SUCCESS', `X-Client-Cert: ${pem}`],
    ['x-client-verify: SUCCESS', `x-client-cert: ${pem}`, `x-certpeer-front: ${frontSecret}`, 'X-Real-IP: 127.0.0.1'],
    // nginx and CGI read these as the same names; so must nobody here.
    ['X_Client_Verify: SUCCESS', `X_Client_Cert: ${pem}`, `X_Certpeer_Front: ${frontSecret}`],
    ['X-Client-Verify: SUCCESS', 'X-Client-Verify: SUCCESS', `X-Client-Cert: ${pem}`, `X-Client-Cert: ${pem}`],
    ['Connection: close, X-Client-Verify, X-Client-Cert', 'X-Client-Verify: SUCCESS', `X-Client-Cert: ${pem}`],
    ['SSL-Client-Verify: SUCCESS', `SSL-Client-Cert: ${pem}`, `X-SSL-Cert: ${pem}`, `X-Forwarded-Client-Cert: ${pem}`],
  ]
}

test('forged certificate headers on every listener, without a client certificate', { skip }, async () => {
  const { authorityUrl = '', apiUrl = '', gatewaysUrl = '', enrollUrl = '', pkiUrl = '' } = lab.ready ?? {}
  const operator = readCertificate(lab.operatorDir).der
  const gateway = readCertificate(join(lab.stateDir, 'gateway')).der
  const revocation = { target: { kind: 'device', name: 'alice' } }
  const attacks = [
    { url: `${authorityUrl}/v1/revocations`, method: 'POST', json: revocation, der: operator },
    { url: `${apiUrl}/v1/devices`, method: 'GET', der: operator },
    { url: `${apiUrl}/v1/peer`, method: 'DELETE', der: alice.certificate.der },
    { url: `${gatewaysUrl}/v1/stream`, method: 'POST', json: {}, der: gateway },
    { url: `${enrollUrl}/v1/revocations`, method: 'POST', json: revocation, der: operator },
    { url: `${pkiUrl}/v1/revocations`, method: 'POST', json: revocation, der: operator },
    { url: `${enrollUrl}/v1/devices`, method: 'GET', der: operator },
  ]
  for (const { der, ...request } of attacks) {
    for (const headers of forgedHeaders(der)) {
      const answer = await call(lab, namespace, { ...request, headers })
      const what = `${request.method} ${request.url} with ${headers.map((header) => header.slice(0, 30)).join('; ')}`
      assertRefused(answer, /^(client_certificate_required|not_found|malformed_request)$/, what)
    }
  }
  await assertOnlyAlice('forged headers')
})

test("forged headers beside one's own good certificate make nobody else of one", { skip }, async () => {
  const { authorityUrl = '', apiUrl = '', gatewaysUrl = '' } = lab.ready ?? {}
  const operator = readCertificate(lab.operatorDir).der
  const revocation = { target: { kind: 'device', name: 'alice' } }
  for (const headers of forgedHeaders(operator)) {
    const credential = eve.dir
    const asOperator = [
      { url: `${authorityUrl}/v1/revocations`, method: 'POST', json: revocation },
      { url: `${apiUrl}/v1/devices`, method: 'GET' },
      { url: `${gatewaysUrl}/v1/stream`, method: 'POST', json: {} },
    ]
    for (const request of asOperator) {
      const answer = await call(lab, namespace, { ...request, credential, headers })
      assertRefused(answer, /^(policy_denied|bad_client_certificate)$/, request.url)
    }
  }
  for (const headers of forgedHeaders(alice.certificate.der)) {
    // It works, for eve: her own peer, of which there is none.
    const url = `${apiUrl}/v1/peer`
    const answer = await call(lab, namespace, { url, method: 'DELETE', credential: eve.dir, headers })
    assert.equal(answer.status, 200, JSON.stringify(answer.json))
  }
  await assertOnlyAlice("eve's requests")
})

test('the sockets behind nginx: closed to others, and to who does not know the secret', { skip }, async () => {
  const run = join(lab.stateDir, 'run')
  // ca-pki.sock serves what anybody may read, signed: it asks for no secret.
  const sockets = ['ca-enroll', 'ca-authority', 'server-api', 'server-gateways']
  const operator = readCertificate(lab.operatorDir).der
  const own = forgeLeaf(lab, makeDeviceCa(lab, makeRoot(), 'default'))
  const guesses = [
    [],
    ['X-Certpeer-Front: '],
    [`X-Certpeer-Front: ${'0'.repeat(64)}`],
    [`X-Certpeer-Front: ${frontSecret.slice(0, -1)}`],
    [`X-Certpeer-Front: ${frontSecret}, ${frontSecret}`],
    [`X-Certpeer-Front: ${frontSecret.toUpperCase()}x`],
  ]
  const paths = {
    'ca-enroll': 'GET /v1/trust',
    'ca-authority': 'GET /v1/networks',
    'server-api': 'GET /v1/devices',
    'server-gateways': 'POST /v1/stream',
  } as Record<string, string>
  const ask = (socket: string, headers: readonly string[]): Promise<RawAnswer> =>
    rawRequest(
      join(run, `${socket}.sock`),
      [`${paths[socket] ?? ''} HTTP/1.1`, 'Host: x', 'Content-Length: 0', ...headers, '', ''].join('\r\n'),
      { idleMs: 2_000 },
    )
  const verified = (der: Buffer) => ['X-Client-Verify: SUCCESS', `X-Client-Cert: ${escaped(der)}`]
  for (const socket of sockets) {
    for (const guess of guesses) {
      const answer = await ask(socket, [...verified(operator), ...guess])
      assert.match(answer.body, /"code":"front_refused"/, `${socket} ${guess.join()}: ${answer.text}`)
      assert.equal(answer.status, 403)
    }
    const twice = await ask(socket, [`X-Certpeer-Front: ${frontSecret}`, `X-Certpeer-Front: ${frontSecret}`])
    assert.equal(twice.status, 400, twice.text)
  }
  // Even who has the secret, and so could name any certificate, cannot name one that this house did not issue.
  for (const socket of ['ca-authority', 'server-api', 'server-gateways']) {
    const answer = await ask(socket, [...verified(own.der), `X-Certpeer-Front: ${frontSecret}`])
    assert.match(answer.body, /"code":"certificate_untrusted"/, `${socket}: ${answer.text}`)
    for (const verify of ['FAILED:certificate has expired', 'NONE', 'success', 'SUCCESS, SUCCESS']) {
      const failed = await ask(socket, [
        `X-Client-Verify: ${verify}`,
        `X-Client-Cert: ${escaped(operator)}`,
        `X-Certpeer-Front: ${frontSecret}`,
      ])
      assert.match(failed.body, /"code":"(bad_client_certificate|client_certificate_required)"/, failed.text)
    }
  }
  // Another user of the machine does not get that far.
  for (const socket of [...sockets, 'ca-pki', 'ca-admin']) {
    const path = join(run, `${socket}.sock`)
    assert.equal(statSync(path).mode & 0o007, 0, `${socket} is open to everybody`)
    const { code } = await lab.run(lab.host, 'setpriv', [
      ...['--reuid=65534', '--regid=65534', '--clear-groups', 'curl', '-sS', '--max-time', '5'],
      ...['--unix-socket', path, 'http://x/healthz'],
    ])
    assert.notEqual(code, 0, `a stranger reaches ${socket}`)
  }
  assert.equal(statSync(join(run, 'ca-admin.sock')).mode & 0o077, 0)
  await assertOnlyAlice('the sockets')
})

test('a token, its claims, a challenge and a CSR replayed', { skip }, async () => {
  const token = await newToken('victim')
  const body = await makeEnrollment(lab, namespace, token)
  const first = await sendEnrollment(lab, namespace, body)
  assert.equal(first.status, 201, JSON.stringify(first.json))

  // Byte for byte the same: the same certificate once more, and no second one.
  const again = await sendEnrollment(lab, namespace, body)
  assert.deepEqual(again.json, first.json)
  // The claims travel in the clear of a log or a proxy: alone they are good for nothing, not even for an alarm.
  const noSecret = token.replace(/[^.]+$/, randomBytes(32).toString('base64url'))
  assertRefused(
    await sendEnrollment(lab, namespace, await makeEnrollment(lab, namespace, noSecret)),
    'token_invalid',
    'claims',
  )
  assert.equal(countAlarms(), 0)
  // The whole token, stolen: refused, and somebody is told, once.
  for (let time = 0; time < 2; time++) {
    const stolen = await makeEnrollment(lab, namespace, token)
    assertRefused(await sendEnrollment(lab, namespace, stolen), 'token_used', 'a stolen token')
  }
  await eventually('the alarm stands in the ledger', () => countAlarms() === 1)

  // A challenge lives once, for one credential.
  const other = await newToken('mine')
  const used = { id: body.challenge, publicKey: randomBytes(32), nonce: randomBytes(32) }
  const attempts = [
    ['a used challenge', await makeEnrollment(lab, namespace, other, { challenge: used })],
    [
      'a challenge for another credential',
      await makeEnrollment(lab, namespace, other, { challenge: await askChallenge(lab, namespace, randomBytes(9)) }),
    ],
    // A CSR that was seen, under a token and a challenge of one's own: the MAC covers the CSR's keys, the proof the challenge.
    ['a request with a new challenge', { ...body, csr: (await makeEnrollment(lab, namespace, token)).csr }],
  ] as const
  for (const [what, attempt] of attempts) {
    assertRefused(await sendEnrollment(lab, namespace, attempt), 'challenge_unknown', what)
  }
  const mine = await makeEnrollment(lab, namespace, other)
  assertRefused(await sendEnrollment(lab, namespace, { ...mine, csr: body.csr }), 'token_invalid', "another's CSR")
  // That guess has cost the challenge.
  assertRefused(await sendEnrollment(lab, namespace, mine), 'challenge_unknown', 'after a wrong guess')
  await assertOnlyAlice('replays')
})

function countAlarms(): number {
  const dir = join(lab.stateDir, 'ca', 'ledger', '0000000000000000.segment')
  return readFileSync(dir, 'latin1').split('"act":"token-alarm"').length - 1
}

test('tokens changed, made with a stolen token key, or meant for another network', { skip }, async () => {
  const token = await newToken('narrow', ['--network', 'other'])
  const [, segment = '', secret = ''] = token.split('.')
  const claims = JSON.parse(Buffer.from(segment, 'base64url').toString()) as Record<string, unknown>
  const tokenKey = Buffer.from(readFileSync(join(lab.stateDir, 'ca', 'token.key'), 'utf8').trim(), 'hex')
  const changes: Record<string, unknown>[] = [
    { networks: ['default'] },
    { tenant: 'other' },
    { groups: ['admins'] },
    { name: 'alice', replace: true },
    { role: 'operator-admin', networks: [], profile: 'operator-admin' },
    { profile: 'gateway' },
    { possession: false },
    { exp: 4_000_000_000 },
    { jti: randomBytes(16).toString('base64url') },
  ]
  for (const change of changes) {
    const forged = Buffer.from(JSON.stringify({ ...claims, ...change })).toString('base64url')
    // With the old secret, and with the right one: who stole the token key can make that, and no ledger entry.
    const right = createHmac('sha256', tokenKey).update(forged, 'ascii').digest('base64url')
    for (const made of [`cpt1.${forged}.${secret}`, `cpt1.${forged}.${right}`]) {
      const answer = await sendEnrollment(lab, namespace, await makeEnrollment(lab, namespace, made))
      assertRefused(answer, 'token_invalid', JSON.stringify(change))
    }
  }
  // What the CSR asks for counts for nothing: the token says which network.
  const answer = await sendEnrollment(lab, namespace, await makeEnrollment(lab, namespace, token))
  assert.equal(answer.status, 201, JSON.stringify(answer.json))
  assert.match((answer.json as { identity: string }).identity, /\/network\/other\/device\//)
})

test('renewals: replayed, with the wrong key, of a revoked certificate', { skip }, async () => {
  const mallory = await enrollHolder(lab, namespace, 'mallory')
  const keyOf = (holder: Holder) => createPrivateKey(readFileSync(join(holder.dir, 'tls.key')))
  const stolen = await makeRenewal(lab, namespace, alice.certificate.der, keyOf(mallory))
  assertRefused(await sendRenewal(lab, namespace, stolen), 'bad_renewal_proof', "another's certificate")

  const wireGuard = Buffer.from(readFileSync(join(mallory.dir, 'wireguard.key'), 'utf8').trim(), 'base64')
  const keys = newAttackKeys(undefined, wireGuard)
  const body = await makeRenewal(lab, namespace, mallory.certificate.der, keyOf(mallory), { keys })
  const first = await sendRenewal(lab, namespace, body)
  assert.equal(first.status, 201, JSON.stringify(first.json))
  assert.deepEqual((await sendRenewal(lab, namespace, body)).json, first.json, 'a replay gives nothing new')

  // Another's key in a renewal, without its private half.
  const taken = newAttackKeys(Buffer.from(alice.publicKey, 'base64'))
  const theft = await makeRenewal(lab, namespace, mallory.certificate.der, keyOf(mallory), { keys: taken })
  assertRefused(await sendRenewal(lab, namespace, theft), 'bad_possession_proof', "another's WireGuard key")
  // A challenge for another credential.
  const challenge = await askChallenge(lab, namespace, alice.certificate.der)
  const crossed = await makeRenewal(lab, namespace, mallory.certificate.der, keyOf(mallory), { keys, challenge })
  assertRefused(await sendRenewal(lab, namespace, crossed), 'challenge_unknown', "another's challenge")
  // A well-formed certificate of our CA that the ledger never saw: made by who has the CA's key.
  const forged = forgeLeaf(lab, readRealCa(lab, 'device-default'), { uri: mallory.certificate.sanUris[0] ?? '' })
  const unknown = await makeRenewal(lab, namespace, forged.der, forged.tlsKey, { keys })
  const answer = await sendRenewal(lab, namespace, unknown)
  assertRefused(answer, /^(certificate_untrusted|older_certificate)$/, 'a certificate that the ledger does not know')

  await lab.ok(lab.host, ['revoke', '--device', 'mallory'])
  assertRefused(await sendRenewal(lab, namespace, body), 'certificate_revoked', 'a replay after the revocation')
  const late = await makeRenewal(lab, namespace, mallory.certificate.der, keyOf(mallory), { keys })
  assertRefused(await sendRenewal(lab, namespace, late), /^(identity|certificate)_revoked$/, 'after the revocation')
  await assertOnlyAlice('renewals')
})

test('keys that are an alias, of low order, or simply not keys', { skip }, async () => {
  const honest = randomBytes(32)
  const pair = newAttackKeys(undefined, honest)
  const alias = Buffer.from(pair.claimedKey)
  alias.writeUInt8(alias.readUInt8(31) | 0x80, 31)
  // Whoever names a point of low order knows the shared secret without any private key: it is zero.
  const lowOrder = (key: Buffer): AttackKeys => ({ ...newAttackKeys(key), sharedSecret: () => Buffer.alloc(32) })
  const attacks: [what: string, keys: AttackKeys][] = [
    ["bit 255 set on one's own key, with a proof that holds", { ...pair, claimedKey: alias }],
    ['9 + p, the base point once more, with a proof that holds', newAttackKeys(littleEndian(9n + P), baseScalar())],
    ['zero', lowOrder(littleEndian(0n))],
    ['one', lowOrder(littleEndian(1n))],
    ['p - 1', lowOrder(littleEndian(P - 1n))],
    ['p', lowOrder(littleEndian(P))],
    ['p + 1', lowOrder(littleEndian(P + 1n))],
    ['order 8', lowOrder(Buffer.from('e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800', 'hex'))],
    [
      'order 8, other',
      lowOrder(Buffer.from('5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157', 'hex')),
    ],
    [
      'order 8 with bit 255',
      lowOrder(Buffer.from('e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880', 'hex')),
    ],
    ['31 bytes', newAttackKeys(randomBytes(31))],
    ['33 bytes', newAttackKeys(Buffer.concat([pair.claimedKey, Buffer.of(0)]))],
  ]
  // One token for all: none of them may spend it.
  const token = await newToken('alias')
  for (const [what, keys] of attacks) {
    const answer = await sendEnrollment(lab, namespace, await makeEnrollment(lab, namespace, token, { keys }))
    assertRefused(answer, /^(bad_wireguard_key|malformed_csr)$/, what)
  }
  const good = await sendEnrollment(lab, namespace, await makeEnrollment(lab, namespace, token, { keys: pair }))
  assert.equal(good.status, 201, JSON.stringify(good.json))
})

function littleEndian(value: bigint): Buffer<ArrayBuffer> {
  return Buffer.from(value.toString(16).padStart(64, '0'), 'hex').reverse()
}

/** A private key whose public key is the base point itself: 8·j with j = ±1/8 modulo the order, clamped as it stands. */
function baseScalar(): Buffer<ArrayBuffer> {
  const order = 2n ** 252n + 27742317777372353535851937790883648493n
  // 8 · (inverse of 8) = 1 + m · order; one of the first eight m divides.
  let inverse = 0n
  for (let m = 0n; m < 8n; m++) if ((1n + m * order) % 8n === 0n) inverse = (1n + m * order) / 8n
  const scalar = 8n * (inverse >= 2n ** 251n ? inverse : order - inverse)
  return littleEndian(scalar)
}

test("another's public key without its private half", { skip }, async () => {
  const victim = Buffer.from(alice.publicKey, 'base64')
  const token = await newToken('thief')
  const proofs: [what: string, possession?: string | null][] = [
    ['a proof with a key of one’s own'],
    ['no proof', null],
    ['a proof of nothing', `${'A'.repeat(22)}.${'A'.repeat(43)}`],
  ]
  for (const [what, possession] of proofs) {
    const wish = { keys: newAttackKeys(victim), ...(possession === undefined ? {} : { possession }) }
    const answer = await sendEnrollment(lab, namespace, await makeEnrollment(lab, namespace, token, wish))
    assertRefused(answer, 'bad_possession_proof', what)
  }
  // The audited exception, where the network allows it: the key still belongs to the one who has it.
  const exempt = await newToken('thief', ['--network', 'other', '--without-possession'])
  const body = await makeEnrollment(lab, namespace, exempt, { keys: newAttackKeys(victim), possession: null })
  assertRefused(await sendEnrollment(lab, namespace, body), 'key_conflict', 'a key that is held')
  const strict = await lab.certpeer(lab.host, ['token', 'create', '--device', 'thief', '--without-possession'])
  assert.match(strict.stderr, /requires proof of possession/)
  // The law of the network as it is now, not as it was when the token was made.
  const bare = await makeEnrollment(lab, namespace, exempt, { possession: null })
  await applyNetwork(lab, { name: 'other', possession: 'required' })
  assertRefused(await sendEnrollment(lab, namespace, bare), 'bad_possession_proof', 'the network demands a proof')
  await assertOnlyAlice('foreign keys')
})

test(
  'a certificate that its CA should not have issued: openssl, the API and the gateway refuse it',
  { skip },
  async (t) => {
    await using owner = await DatabaseOwner.open(lab)
    const device = readRealCa(lab, 'device-default')
    const infrastructure = readRealCa(lab, 'infrastructure')
    const roles = (...names: (keyof typeof OIDS.roles)[]) => ({
      extendedKeyUsage: extendedKeyUsage([OID.clientAuth, ...names.map((name) => OIDS.roles[name])]),
    })
    const cases: {
      name: string
      ca: Authority
      wish: LeafWish
      /** What `openssl verify` says; null where it cannot know. */
      openssl: RegExp | null
    }[] = [
      {
        name: "an IPv4 address outside its CA's block",
        ca: device,
        wish: { addresses: ['10.99.0.5/32'] },
        openssl: /RFC 3779 resource not subset of parent's resources/,
      },
      {
        name: "an IPv6 address outside its CA's block",
        ca: device,
        wish: { addresses: ['10.88.5.5/32', 'fdff:0:0:1::5/128'] },
        openssl: /RFC 3779 resource not subset of parent's resources/,
      },
      {
        name: 'another tenant',
        ca: device,
        wish: { uri: 'spiffe://red.certpeer.internal/network/default/device/d1' },
        openssl: /permitted subtree violation/,
      },
      {
        name: 'a gateway out of a device CA',
        ca: device,
        wish: { role: 'gateway', uri: 'spiffe://certpeer.internal/gateway/evil' },
        openssl: /permitted subtree violation/,
      },
      // The host is the tenant's own, and openssl does not nest private purposes: from here on only we can tell.
      {
        name: 'an operator out of a device CA',
        ca: device,
        wish: { role: 'operator-admin', uri: 'spiffe://default.certpeer.internal/operator/evil' },
        openssl: null,
      },
      { name: 'a device out of the infrastructure CA', ca: infrastructure, wish: {}, openssl: null },
      { name: 'two roles', ca: device, wish: { extensions: roles('device', 'operator-admin') }, openssl: null },
      { name: 'no role', ca: device, wish: { extensions: roles() }, openssl: null },
      {
        name: "a gateway's role with a device's name",
        ca: infrastructure,
        wish: { role: 'gateway', uri: 'spiffe://default.certpeer.internal/network/default/device/d1' },
        openssl: null,
      },
      {
        name: 'two identities',
        ca: device,
        wish: {
          extensions: {
            subjectAltName: subjectAltName({
              uris: [
                'spiffe://default.certpeer.internal/network/default/device/d1',
                'spiffe://default.certpeer.internal/network/default/device/d2',
              ],
            }),
          },
        },
        openssl: null,
      },
      { name: 'no address block at all', ca: device, wish: { extensions: { ipAddrBlocks: null } }, openssl: null },
    ]
    const { authorityUrl = '', apiUrl = '', gatewaysUrl = '' } = lab.ready ?? {}

    for (const [index, { name, ca, wish, openssl }] of cases.entries()) {
      await t.test(name, async () => {
        const leaf = forgeLeaf(lab, ca, wish)
        const dir = join(lab.dir, `forged-${index}`)
        mkdirSync(dir)
        const credential = writeCredential(dir, [leaf.der, ca.certificate.der], leaf.tlsKey)
        const said = await opensslVerify(dir, leaf.der, ca.certificate.der)
        if (openssl === null) assert.match(said, /: OK/)
        else assert.match(said, openssl)

        for (const request of [
          { url: `${apiUrl}/v1/peer`, method: 'PUT' },
          { url: `${apiUrl}/v1/devices`, method: 'GET' },
          { url: `${authorityUrl}/v1/networks`, method: 'GET' },
          { url: `${gatewaysUrl}/v1/stream`, method: 'POST', json: {} },
        ]) {
          const answer = await call(lab, namespace, { ...request, credential })
          assertRefused(answer, /^(certificate_untrusted|bad_client_certificate)$/, `${name}: ${request.url}`)
        }
        const revision = await owner.forgePeer({
          certificate: leaf.der,
          identity: leaf.uri,
          serial: leaf.serial,
          wireGuardKey: Buffer.from(leaf.wireGuardKey, 'base64'),
        })
        assert.match(
          (await owner.refusals(revision)).get(leaf.serial) ?? '',
          /^(certificate_untrusted|bad_client_certificate)$/,
        )
        await assertOnlyAlice(name)
        await owner.query('delete from peers where identity = $1', [leaf.uri])
      })
    }

    // The forger's hand itself is good: unspoilt, such a certificate is taken. Only the CA's key stands before that.
    await t.test('and the same certificate without the fault is taken', async () => {
      const leaf = forgeLeaf(lab, device)
      const dir = join(lab.dir, 'forged-good')
      mkdirSync(dir)
      writeCredential(dir, [leaf.der, device.certificate.der], leaf.tlsKey)
      assert.match(await opensslVerify(dir, leaf.der, device.certificate.der), /: OK/)
      assert.equal((await provision(lab, namespace, { dir })).status, 200)
      await eventually('the gateway takes it', async () => (await lab.gatewayPeers()).has(leaf.wireGuardKey))
    })
  },
)

async function opensslVerify(dir: string, leaf: Buffer, issuer: Buffer): Promise<string> {
  writeFileSync(join(dir, 'leaf.pem'), derToPem(leaf))
  writeFileSync(join(dir, 'issuer.pem'), derToPem(issuer))
  const { stdout, stderr } = await lab.run(namespace, 'openssl', [
    ...['verify', '-x509_strict', '-purpose', 'sslclient', '-CAfile', join(lab.stateDir, 'ca', 'root.pem')],
    ...['-untrusted', join(dir, 'issuer.pem'), join(dir, 'leaf.pem')],
  ])
  return stdout + stderr
}
