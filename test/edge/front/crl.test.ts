/** The bundle for nginx: complete, verified and never older, or not at all. */
import assert from 'node:assert/strict'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { CertpeerError, type ErrorCode } from '../../../src/core/errors.ts'
import { derToPem, pemToDerAll } from '../../../src/core/x509/pem.ts'
import { fetchCrlBundle, type PkiClient } from '../../../src/edge/front/crl.ts'
import { reloadDelayMs } from '../../../src/edge/front/reload.ts'
import { fill } from '../../../src/edge/front/render.ts'
import { makeDeviceCa, OIDS, type Authority } from '../../support/certificates.ts'
import { temporaryDirectory } from '../../support/http.ts'
import { makeCaller, makeCrl, makeHierarchy } from './stage.ts'

const pki = makeHierarchy()
const foreign = makeHierarchy()
const revoked = makeCaller(pki.devices).certificate
const DEVICES = '/crl/device-default.crl'
let served: Map<string, Buffer>
let asked: string[]
let folder: ReturnType<typeof temporaryDirectory>

beforeEach(() => {
  folder = temporaryDirectory()
  asked = []
  served = new Map([
    ['/issuers.json', issuersJson()],
    ['/crl/root.crl', makeCrl(pki.root, 1n)],
    [DEVICES, makeCrl(pki.devices, 5n)],
    ['/crl/infrastructure.crl', makeCrl(pki.infrastructure, 5n)],
  ])
})
afterEach(() => folder.remove())

function issuersJson(root: Authority = pki.root, devices: Authority = pki.devices): Buffer {
  const pem = ({ certificate }: Authority) => derToPem(certificate.der)
  return Buffer.from(
    JSON.stringify({
      root: pem(root),
      issuers: [
        { name: 'device-default', certificate: pem(devices), crl: DEVICES },
        { name: 'infrastructure', certificate: pem(pki.infrastructure), crl: '/crl/infrastructure.crl' },
      ],
    }),
  )
}

const client: PkiClient = {
  async request({ path, headers }) {
    asked.push(path)
    const raw = served.get(path)
    if (raw === undefined) throw new CertpeerError('not_found', path)
    if (headers?.['if-none-match'] === '"5"' && path === DEVICES && asked.includes('304')) {
      return { status: 304, headers: {}, raw: Buffer.alloc(0) }
    }
    return { status: 200, headers: {}, raw, json: path.endsWith('.json') ? JSON.parse(raw.toString()) : undefined }
  },
}

const fetchBundle = () =>
  fetchCrlBundle(client, { dir: folder.path, root: pki.root.certificate, oids: OIDS, now: new Date() })

test('holds root and every issuing CA, and one CRL for each', async () => {
  const bundle = await fetchBundle()
  assert.equal(pemToDerAll(bundle.issuersPem).length, 3)
  assert.equal(pemToDerAll(bundle.crlPem, 'X509 CRL').length, 3)
  assert.equal(readdirSync(folder.path).length, 3)
})

test('a CRL published again with nothing new in it is no news; a revocation is', async () => {
  const first = await fetchBundle()
  served.set(DEVICES, makeCrl(pki.devices, 6n))
  assert.equal((await fetchBundle()).contentId, first.contentId)
  served.set(DEVICES, makeCrl(pki.devices, 7n, [revoked]))
  assert.notEqual((await fetchBundle()).contentId, first.contentId)
})

test('a copy is fresh enough for half of its life; without a fresher one there is no news, however old', async () => {
  const HOUR = 3_600_000
  const midnight = Date.UTC(2026, 0, 10)
  const life = (ms: number, lifeMs: number) => ({ thisUpdate: new Date(ms), nextUpdate: new Date(ms + lifeMs) })
  const serve = (number: bigint, ms: number) =>
    served.set(DEVICES, makeCrl(pki.devices, number, [], pki.devices, life(ms, 24 * HOUR)))
  // The root's is far past the half of its life, and there will be no other for months.
  const old = life(midnight - 300 * 24 * HOUR, 396 * 24 * HOUR)
  served.set('/crl/root.crl', makeCrl(pki.root, 1n, [], pki.root, old))
  serve(10n, midnight + HOUR)
  const first = await fetchBundle()
  assert.equal((await fetchBundle()).contentId, first.contentId)
  serve(11n, midnight + 11 * HOUR)
  assert.equal((await fetchBundle()).contentId, first.contentId)
  serve(12n, midnight + 13 * HOUR)
  assert.notEqual((await fetchBundle()).contentId, first.contentId)
})

test('a CA that has run out is left out, with its CRL, and the others go on', async () => {
  const expired = makeDeviceCa(pki.root, { notBefore: new Date(0), notAfter: new Date(Date.now() - 1000) }, 'gone')
  served.set('/issuers.json', issuersJson(pki.root, expired))
  served.delete(DEVICES)
  const bundle = await fetchBundle()
  assert.equal(pemToDerAll(bundle.issuersPem).length, 2)
  assert.equal(pemToDerAll(bundle.crlPem, 'X509 CRL').length, 2)
  assert.equal(bundle.leftOut.length, 1)
})

test('304 keeps what was verified before', async () => {
  const first = await fetchBundle()
  asked.push('304')
  assert.equal((await fetchBundle()).contentId, first.contentId)
})

test('a kept CRL that was damaged is fetched anew', async () => {
  const first = await fetchBundle()
  for (const name of readdirSync(folder.path)) writeFileSync(join(folder.path, name), 'damaged')
  assert.equal((await fetchBundle()).contentId, first.contentId)
})

const REFUSED: readonly [string, () => void, ErrorCode][] = [
  ['garbage', () => served.set(DEVICES, Buffer.from('no')), 'malformed_crl'],
  ['half a CRL', () => served.set(DEVICES, makeCrl(pki.devices, 6n).subarray(0, 150)), 'malformed_crl'],
  ['a foreign signature', () => served.set(DEVICES, makeCrl(pki.devices, 6n, [], foreign.devices)), 'malformed_crl'],
  ["another issuer's CRL", () => served.set(DEVICES, makeCrl(pki.infrastructure, 6n)), 'malformed_crl'],
  ['a lower number', () => served.set(DEVICES, makeCrl(pki.devices, 4n)), 'stale_crl'],
  ['a missing CRL', () => served.delete(DEVICES), 'not_found'],
  ['a missing root CRL', () => served.delete('/crl/root.crl'), 'not_found'],
  ['another root', () => served.set('/issuers.json', issuersJson(foreign.root)), 'certificate_untrusted'],
  [
    'a foreign issuing CA',
    () => served.set('/issuers.json', issuersJson(pki.root, foreign.devices)),
    'certificate_untrusted',
  ],
  ['no issuers', () => served.set('/issuers.json', Buffer.from('{"root":"","issuers":[]}')), 'malformed_request'],
]
for (const [name, change, code] of REFUSED) {
  test(`${name} is refused, and what was held stays`, async () => {
    await fetchBundle()
    const before = readdirSync(folder.path)
    change()
    await assert.rejects(fetchBundle(), { code })
    assert.deepEqual(readdirSync(folder.path), before)
  })
}

test('reloads come at once, then at most once a minute', () => {
  const now = new Date('2026-01-01T00:01:00Z')
  for (const [last, delayMs] of [
    [undefined, 0],
    ['2026-01-01T00:00:00Z', 0],
    ['2026-01-01T00:00:30Z', 30_000],
    // A clock set back must not hold reloads for longer than a minute.
    ['2026-01-02T00:00:00Z', 60_000],
  ] as const) {
    assert.equal(reloadDelayMs(last === undefined ? undefined : new Date(last), now), delayMs)
  }
})

test('values that nginx would interpret are refused, unknown names are a fault of ours', () => {
  assert.equal(fill('listen {{a}};', { a: '127.0.0.1:1' }, 'x'), 'listen 127.0.0.1:1;')
  for (const a of ['"', "'", '\\', '$x', '{', '}', 'a;b', 'a\nb']) {
    assert.throws(() => fill('{{a}}', { a }, 'x'), { code: 'config_invalid' })
  }
  assert.throws(() => fill('{{b}}', { a: '' }, 'x'), TypeError)
})
