/**
 * The main job on real parts: nginx, PostgreSQL, wireguard-go, openssl and curl, in network namespaces. A device enrolls,
 * sends packets through the gateway, and goes dark everywhere when its certificate is revoked.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { packageRoot } from '../../src/platform/package-root.ts'
import { cannotRunLab, eventually, Lab, type Finished } from '../support/lab.ts'

const skip = cannotRunLab()

let lab: Lab
let device: string
let dir: string
let gatewayAddress: string

before(async () => {
  if (skip !== false) return
  lab = await Lab.create()
  const ready = await lab.up()
  device = await lab.addHost('dev', 10)
  gatewayAddress = ready.gateway?.addresses.find((address) => address.includes('.')) ?? ''
})

after(async () => {
  if (skip === false) await lab[Symbol.asyncDispose]()
})

/** One request with the device's certificate by curl: status, body and how often TLS was set up. */
async function curl(path: string, credential: string, extra: readonly string[] = []): Promise<Finished> {
  return lab.run(device, 'curl', [
    ...['-sS', '--max-time', '20', '--cacert', join(credential, 'root.pem')],
    ...['--cert', join(credential, 'certificate.pem'), '--key', join(credential, 'tls.key')],
    ...['-w', '\n%{http_code} %{content_type}'],
    ...extra,
    `${lab.ready?.apiUrl ?? ''}${path}`,
  ])
}

test('a device enrolls and its packets pass through the gateway', { skip }, async () => {
  dir = await lab.enrollDevice(device, 'laptop')
  assert.ok(await lab.ping(device, gatewayAddress), `ping ${gatewayAddress}${lab.logs()}`)
  const status = JSON.parse(await lab.ok(device, ['device', 'status', '--dir', dir, '--json'])) as { publicKey: string }
  const peers = await lab.gatewayPeers()
  assert.ok(peers.get(status.publicKey), 'the gateway carries the device')
  assert.equal(peers.get(status.publicKey)?.length, 3, 'an address a family and the key address')
})

test('openssl accepts the chain and shows the extension and the RFC 3779 block', { skip }, async () => {
  const [leaf = '', issuer = ''] = readFileSync(join(dir, 'certificate.pem'), 'utf8').split(
    /(?<=-----END CERTIFICATE-----\n)/,
  )
  writeFileSync(join(lab.dir, 'leaf.pem'), leaf)
  writeFileSync(join(lab.dir, 'issuer.pem'), issuer)
  const args = ['verify', '-x509_strict', '-purpose', 'sslclient', '-CAfile', join(dir, 'root.pem')]
  const verified = await lab.run(device, 'openssl', [
    ...args,
    '-untrusted',
    join(lab.dir, 'issuer.pem'),
    join(lab.dir, 'leaf.pem'),
  ])
  assert.equal(verified.code, 0, verified.stderr)
  const text = (await lab.run(device, 'openssl', ['x509', '-in', join(lab.dir, 'leaf.pem'), '-noout', '-text'])).stdout
  assert.match(text, /1\.3\.6\.1\.4\.1\.32473\.51820\.1:/)
  assert.match(text, /sbgp-ipAddrBlock|IP Address Block/)
  assert.match(text, /10\.88\.[0-9.]+\/32/)
  assert.match(text, /URI:spiffe:\/\/default\.certpeer\.internal\/network\/default\/device\//)
})

test('before the revocation, OCSP says good and the CRL does not list the serial', { skip }, async () => {
  assert.match(await ocsp(), /: good/)
  assert.equal((await verifyWithCrls()).code, 0)
})

test('revoke --wait: the peer is gone, ping stops, and every witness agrees', { skip }, async () => {
  // A kept-alive connection, opened before the revocation: its next request must be refused all the same.
  const keptAlive = lab.start(device, process.execPath, ['-e', KEPT_ALIVE, lab.ready?.apiUrl ?? '', dir])
  const answers: string[] = []
  keptAlive.stdout?.on('data', (chunk: Buffer) => answers.push(...chunk.toString().trim().split('\n')))
  await eventually('the kept-alive connection answers 200', () => answers.includes('200'))
  // A TLS session to resume: nginx must not hand one out, or not take it.
  const session = join(lab.dir, 'session.pem')
  await sClient(['-sess_out', session])

  const out = await lab.ok(lab.host, ['revoke', '--device', 'laptop', '--reason', 'keyCompromise', '--wait', '--json'])
  assert.match(out, /"gone"/)
  assert.equal((await lab.gatewayPeers()).size, 0, 'the peer is gone from wg show')
  assert.equal(await lab.ping(device, gatewayAddress, 2), false, 'ping stops')

  const refused = await curl('/v1/peer', dir)
  assert.match(refused.stdout, /certificate_revoked|bad_client_certificate/)
  assert.match(refused.stdout, /\n(401|403|400) application\/problem\+json$/)
  await eventually('the kept-alive connection is refused', () =>
    answers.some((line) => /^(400|401|403) .*problem\+json/.test(line)),
  )
  const resumed = await sClient(['-sess_in', session])
  assert.doesNotMatch(resumed.stdout, /^Reused, /m)
  assert.doesNotMatch(resumed.stdout, /^HTTP\/1\.1 200/m)

  assert.match(await ocsp(), /: revoked/)
  const verified = await verifyWithCrls()
  assert.notEqual(verified.code, 0)
  assert.match(verified.stderr + verified.stdout, /certificate revoked/)
  const serial = (await lab.run(device, 'openssl', ['x509', '-in', join(lab.dir, 'leaf.pem'), '-noout', '-serial']))
    .stdout
  const listed = await lab.run(device, 'openssl', [
    'crl',
    '-inform',
    'DER',
    '-in',
    join(lab.dir, 'device-default.crl'),
    '-noout',
    '-text',
  ])
  assert.ok(listed.stdout.includes(serial.trim().split('=')[1] ?? '?'), 'the CRL lists the serial')
})

test('revoking again answers the record; the token and a renewal are refused', { skip }, async () => {
  assert.match(await lab.ok(lab.host, ['revoke', '--device', 'laptop', '--json']), /"already": ?true/)
  const renewed = await lab.certpeer(device, ['device', 'renew', '--dir', dir])
  assert.notEqual(renewed.code, 0)
  assert.match(renewed.stderr, /revoked/)
})

test(
  'with PostgreSQL stopped a revocation holds: OCSP and CRL at once, the gateway from the CRL it fetches',
  { skip, timeout: 120_000 },
  async () => {
    await lab.ok(device, ['device', 'down', '--dir', dir])
    dir = await lab.enrollDevice(device, 'phone')
    assert.ok(await lab.ping(device, gatewayAddress))
    const pid = readFileSync(join(lab.stateDir, 'postgres', 'data', 'postmaster.pid'), 'utf8').split('\n')[0] ?? ''
    // Stopped, not ended: `up` would start it again at once.
    await signalTree(pid, 'STOP')
    try {
      await lab.ok(lab.host, ['revoke', '--device', 'phone'])
      writeLeaf()
      assert.match(await ocsp(), /: revoked/)
      // A burst of revocations is published as one CRL, 50 ms after the first.
      await eventually('the CRL lists it', async () => (await verifyWithCrls()).code !== 0, 3_000)
      await eventually(
        'the gateway drops the peer from the CRL it fetches',
        async () => (await lab.gatewayPeers()).size === 0,
        30_000,
      )
      assert.equal(await lab.ping(device, gatewayAddress, 2), false)
    } finally {
      await signalTree(pid, 'CONT')
    }
    await eventually(
      'the list of peers follows when PostgreSQL is back',
      async () => {
        const { code, stdout } = await lab.certpeer(lab.host, ['list', 'peers', '--json'])
        return code === 0 && !stdout.includes('phone')
      },
      60_000,
    )
  },
)

test('a device with nothing but openssl and curl enrolls, and its packets pass too', { skip }, async () => {
  const thing = await lab.addHost('iot', 11)
  const token = await lab.ok(lab.host, ['token', 'create', '--device', 'thing'])
  const own = join(lab.dir, 'thing')
  const script = join(packageRoot(), 'scripts', 'enroll-with-openssl')
  const enrolled = await lab.run(thing, script, ['-', own], { input: token })
  assert.equal(enrolled.code, 0, enrolled.stderr)
  await lab.ok(thing, ['device', 'up', '--dir', own, '--interface', lab.deviceInterface('thing')])
  assert.ok(await lab.ping(thing, gatewayAddress))
  const status = JSON.parse(await lab.ok(thing, ['device', 'status', '--dir', own, '--json'])) as { publicKey: string }
  assert.ok((await lab.gatewayPeers()).has(status.publicKey))
  // What it got is a certificate like any other: our own client renews it and keeps the addresses.
  await lab.ok(thing, ['device', 'renew', '--dir', own])
  assert.ok(await lab.ping(thing, gatewayAddress))
})

async function signalTree(pid: string, signal: 'STOP' | 'CONT'): Promise<void> {
  const children = (await lab.run(lab.host, 'ps', ['-o', 'pid=', '--ppid', pid])).stdout
    .split('\n')
    .map((line) => line.trim())
  await lab.run(lab.host, 'kill', [`-${signal}`, pid, ...children.filter((child) => child !== '')])
}

function writeLeaf(): void {
  const [leaf = '', issuer = ''] = readFileSync(join(dir, 'certificate.pem'), 'utf8').split(
    /(?<=-----END CERTIFICATE-----\n)/,
  )
  writeFileSync(join(lab.dir, 'leaf.pem'), leaf)
  writeFileSync(join(lab.dir, 'issuer.pem'), issuer)
}

async function ocsp(): Promise<string> {
  const issuer = join(lab.dir, 'issuer.pem')
  const args = [
    'ocsp',
    '-issuer',
    issuer,
    '-cert',
    join(lab.dir, 'leaf.pem'),
    '-CAfile',
    join(dir, 'root.pem'),
    '-verify_other',
    issuer,
  ]
  const { stdout, stderr } = await lab.run(device, 'openssl', [
    ...args,
    '-url',
    `${lab.ready?.pkiUrl ?? ''}/ocsp/device-default`,
  ])
  assert.match(stderr, /Response verify OK/)
  return stdout
}

async function verifyWithCrls(): Promise<Finished> {
  const pems: string[] = []
  for (const name of ['device-default', 'root']) {
    const path = join(lab.dir, `${name}.crl`)
    await lab.run(device, 'curl', ['-sS', '-o', path, `${lab.ready?.pkiUrl ?? ''}/crl/${name}.crl`])
    pems.push((await lab.run(device, 'openssl', ['crl', '-inform', 'DER', '-in', path])).stdout)
  }
  writeFileSync(join(lab.dir, 'all.crl'), pems.join(''))
  return lab.run(device, 'openssl', [
    ...['verify', '-crl_check_all', '-CRLfile', join(lab.dir, 'all.crl'), '-CAfile', join(dir, 'root.pem')],
    ...['-untrusted', join(lab.dir, 'issuer.pem'), join(lab.dir, 'leaf.pem')],
  ])
}

/** One HTTP request through openssl s_client, so that its session can be kept and offered again. */
async function sClient(extra: readonly string[]): Promise<Finished> {
  const { hostname, port } = new URL(lab.ready?.apiUrl ?? '')
  return lab.run(
    device,
    'openssl',
    [
      ...['s_client', '-connect', `${hostname}:${port}`, '-CAfile', join(dir, 'root.pem'), '-ign_eof'],
      ...['-cert', join(dir, 'certificate.pem'), '-key', join(dir, 'tls.key'), ...extra],
    ],
    { input: `GET /v1/peer HTTP/1.1\r\nHost: ${hostname}\r\nConnection: close\r\n\r\n` },
  )
}

/** Asks over one kept-alive TLS connection, four times a second, and prints what comes back. */
const KEPT_ALIVE = `
const https = require('node:https'), fs = require('node:fs'), { join } = require('node:path')
const [url, dir] = process.argv.slice(1)
const read = (name) => fs.readFileSync(join(dir, name))
const agent = new https.Agent({ keepAlive: true, maxSockets: 1, ca: read('root.pem'), cert: read('certificate.pem'), key: read('tls.key') })
let left = 400
const ask = () => https.get(url + '/v1/peer', { agent }, (answer) => {
  answer.resume().on('end', () => {
    console.log(answer.statusCode === 200 ? '200' : answer.statusCode + ' ' + answer.headers['content-type'])
    if (left-- > 0) setTimeout(ask, 250)
  })
}).on('error', (error) => { console.log('error ' + error.code); if (left-- > 0) setTimeout(ask, 250) })
ask()
`
