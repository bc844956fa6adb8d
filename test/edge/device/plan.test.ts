/** What a device believes: certificates and the signed network document, never the server's word. */
import assert from 'node:assert/strict'
import { sign } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import type { ErrorCode } from '../../../src/core/errors.ts'
import { formatPrefix, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { encodeNetworkDocument, verifyNetworkDocument } from '../../../src/core/messages/network-document.ts'
import { networkDocumentSchema, type NetworkDocument } from '../../../src/core/messages/network.ts'
import { wireGuardKeyFromBytes } from '../../../src/core/wireguard/key.ts'
import { x25519PublicFromPrivate } from '../../../src/core/wireguard/x25519.ts'
import { servedNetworksExtension, subjectAltName } from '../../../src/core/x509/extensions.ts'
import { readDevice, verifyCertificate } from '../../../src/core/x509/path.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import type { Certificate } from '../../../src/core/x509/certificate.ts'
import { resolveEndpoint } from '../../../src/edge/device/peer.ts'
import { planTunnel, verifyGateway, type Gateway } from '../../../src/edge/device/plan.ts'
import { acceptNetworkDocument, findNetworkDocument } from '../../../src/edge/network-documents.ts'
import { isRenewalDue, renewalDelayMs, retryDelayMs } from '../../../src/edge/renewal-window.ts'
import {
  makeDevice,
  makeDeviceCa,
  makeGateway,
  makeInfrastructureCa,
  makeInfrastructureLeaf,
  makeRoot,
  newKeyPair,
  NOW,
  OIDS,
  TRUST_DOMAIN,
  WIREGUARD_KEY,
  type DeviceParts,
} from '../../support/certificates.ts'
import { temporaryDirectory } from '../../support/http.ts'

const root = makeRoot()
const devices = makeDeviceCa(root)
const infrastructure = makeInfrastructureCa(root)
const foreignRoot = makeRoot()
const foreignInfrastructure = makeInfrastructureCa(foreignRoot)
const trust = { root: root.certificate, oids: OIDS, trustDomain: TRUST_DOMAIN, now: NOW, isRevoked: () => false }
const key = (byte: number) => wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, byte)))
const device = readDevice(
  verifyCertificate({ certificate: makeDevice(devices), issuers: [devices.certificate], ...trust }),
  OIDS,
)
const gatewayKey = key(7)
const hint = (certificate: Certificate, issuer = infrastructure.certificate, endpoint = '192.0.2.1:51820') => ({
  certificate: derToPem(certificate.der),
  issuer: derToPem(issuer.der),
  endpoint,
})
const gateway = (parts: DeviceParts = {}) => makeGateway(infrastructure, { key: gatewayKey, ...parts })

const authorityKeys = newKeyPair()
const authority = makeInfrastructureLeaf(infrastructure, 'authority', `spiffe://${TRUST_DOMAIN}/authority/a`, {
  publicKey: authorityKeys.publicKey,
})
const settings = {
  pools: ['10.88.0.0/16', 'fd00:0:0:1::/64'],
  keyPrefix: 'fd00:0:0:ff::/64',
  routes: ['10.20.0.0/16'],
  mtu: 1400,
}
function document(number: number, changes: Partial<NetworkDocument> = {}): Promise<string> {
  return encodeNetworkDocument({
    document: networkDocumentSchema.parse({
      ...settings,
      trustDomain: TRUST_DOMAIN,
      number,
      issuedAt: NOW.toISOString(),
      ...changes,
    }),
    certificates: [authority.der, infrastructure.certificate.der],
    sign: (data) => sign('sha256', data, authorityKeys.privateKey),
  })
}

let folder: ReturnType<typeof temporaryDirectory>
beforeEach(() => (folder = temporaryDirectory()))
afterEach(() => folder.remove())

test('a gateway of our own network is believed; its endpoint is only passed on', () => {
  const { facts, endpoint } = verifyGateway(hint(gateway()), device, trust)
  assert.deepEqual(
    { name: facts.name, key: facts.key, endpoint },
    { name: 'g1', key: gatewayKey, endpoint: '192.0.2.1:51820' },
  )
})

const day = 86_400_000
const REFUSED: readonly [string, () => ReturnType<typeof hint>, ErrorCode][] = [
  [
    'under another root',
    () => hint(makeGateway(foreignInfrastructure, { key: gatewayKey }), foreignInfrastructure.certificate),
    'certificate_untrusted',
  ],
  ["with another CA's issuer beside it", () => hint(gateway(), devices.certificate), 'certificate_untrusted'],
  [
    'that serves another network',
    () => hint(gateway({ extensions: { servedNetworks: servedNetworksExtension(OIDS, ['default/other']) } })),
    'foreign_network',
  ],
  [
    'that serves another tenant',
    () => hint(gateway({ extensions: { servedNetworks: servedNetworksExtension(OIDS, ['other/default']) } })),
    'foreign_network',
  ],
  [
    'that has expired',
    () => hint(gateway({ notBefore: new Date(NOW.getTime() - 3 * day), notAfter: new Date(NOW.getTime() - day) })),
    'certificate_expired',
  ],
  ['that is a device', () => hint(makeDevice(devices), devices.certificate), 'bad_client_certificate'],
  ['with our own key', () => hint(gateway({ key: WIREGUARD_KEY })), 'key_conflict'],
]
for (const [name, offer, code] of REFUSED) {
  test(`a gateway ${name} is refused`, () => assert.throws(() => verifyGateway(offer(), device, trust), { code }))
}

test('the plan holds what is certified and signed, for both families', async () => {
  const network = verifyNetworkDocument({ jws: await document(1), ...trust })
  const plan = planTunnel(device, network, [verifyGateway(hint(gateway()), device, trust)])
  assert.deepEqual(
    plan.addresses.map(formatPrefix).sort(),
    [...device.addresses, device.keyAddress].map(formatPrefix).sort(),
  )
  assert.equal(plan.mtu, 1400)
  // The gateway is certified for the pools but not for 10.20.0.0/16: nothing is sent to it for that.
  assert.deepEqual(plan.routes.map(formatPrefix), ['10.88.0.0/16', 'fd00:0:0:1::/64'])
  const peer = plan.peers.get(gatewayKey)
  assert.ok(peer)
  assert.deepEqual(peer.allowedIps.map(formatPrefix), [
    '10.88.0.0/16',
    '10.88.0.1/32',
    'fd00:0:0:1::/64',
    'fd00:0:0:1::1/128',
  ])
  assert.equal(peer.persistentKeepaliveSeconds, 25)
})

test('two gateways never share an AllowedIP, whatever order they come in', async () => {
  const network = verifyNetworkDocument({ jws: await document(1), ...trust })
  const second = gateway({
    key: key(9),
    uri: `spiffe://${TRUST_DOMAIN}/gateway/g2`,
    addresses: ['10.20.0.0/16', '10.88.0.0/16', 'fd00:0:0:1::/64'].map(parsePrefix),
    extensions: {
      subjectAltName: subjectAltName({ uris: [`spiffe://${TRUST_DOMAIN}/gateway/g2`], ips: ['10.88.0.9'] }),
    },
  })
  const pair: Gateway[] = [gateway(), second].map((certificate) => verifyGateway(hint(certificate), device, trust))
  const describe = (gateways: readonly Gateway[]) =>
    [...planTunnel(device, network, gateways).peers].map(([publicKey, { allowedIps }]) => [
      publicKey,
      allowedIps.map(formatPrefix),
    ])
  assert.deepEqual(describe(pair), [
    [gatewayKey, ['10.88.0.0/16', '10.88.0.1/32', 'fd00:0:0:1::/64', 'fd00:0:0:1::1/128']],
    [key(9), ['10.20.0.0/16', '10.88.0.9/32']],
  ])
  assert.deepEqual(describe(pair.toReversed()), describe(pair))
})

test('a network document: a higher number is taken, a lower one and a second content are refused, also after a restart', async () => {
  const name = { tenant: 'default', network: 'default' }
  const accept = (jws: string) => acceptNetworkDocument(folder.path, jws, name, trust)
  assert.equal((await accept(await document(3))).document.number, 3)
  assert.equal((await accept(await document(5))).document.number, 5)
  await assert.rejects(accept(await document(4)), { code: 'network_document_stale' })
  await assert.rejects(accept(await document(5, { mtu: 1380 })), { code: 'network_document_invalid' })
  assert.equal((await accept(await document(5))).document.number, 5)
  assert.equal((await findNetworkDocument(folder.path, name, trust))?.document.number, 5)
  assert.equal(readdirSync(join(folder.path, 'networks')).length, 1)
})

test('changed routes and DNS, another network and another signer are refused, and nothing of it is kept', async () => {
  const name = { tenant: 'default', network: 'default' }
  const accept = (jws: string) => acceptNetworkDocument(folder.path, jws, name, trust)
  await accept(await document(1))
  const path = join(folder.path, 'networks', 'default.default.jws')
  const held = readFileSync(path, 'utf8')
  const [header = '', payload = '', signature = ''] = (await document(2)).split('.')
  for (const change of [{ routes: ['10.0.0.0/9'] }, { dns: { servers: ['10.88.0.66'], search: [] } }]) {
    const text = { ...(JSON.parse(Buffer.from(payload, 'base64url').toString()) as NetworkDocument), ...change }
    const changed = [header, Buffer.from(JSON.stringify(text)).toString('base64url'), signature].join('.')
    await assert.rejects(accept(changed))
  }
  await assert.rejects(accept(await document(2, { network: 'other' })), { code: 'foreign_network' })
  const gatewayKeys = newKeyPair()
  const byGateway = await encodeNetworkDocument({
    document: networkDocumentSchema.parse({
      ...settings,
      trustDomain: TRUST_DOMAIN,
      number: 9,
      issuedAt: NOW.toISOString(),
    }),
    certificates: [gateway({ publicKey: gatewayKeys.publicKey }).der, infrastructure.certificate.der],
    sign: (data) => sign('sha256', data, gatewayKeys.privateKey),
  })
  await assert.rejects(accept(byGateway), { code: 'bad_client_certificate' })
  assert.equal(readFileSync(path, 'utf8'), held)
})

test('endpoints are HOST:PORT, names are resolved, anything else is refused', async () => {
  assert.equal(await resolveEndpoint('192.0.2.1:51820'), '192.0.2.1:51820')
  assert.equal(await resolveEndpoint('[2001:db8::1]:51820'), '[2001:db8::1]:51820')
  assert.match(await resolveEndpoint('localhost:1'), /^(127\.0\.0\.1|\[::1\]):1$/)
  for (const text of ['', 'x', 'x:0', 'x:70000', '2001:db8::1:1', 'a b:1', 'x:1\n']) {
    await assert.rejects(resolveEndpoint(text), { code: 'malformed_message' }, text)
  }
})

test('renewal: in the last third, spread by jitter; back-off grows and ends', () => {
  const validity = { notBefore: new Date(0), notAfter: new Date(90_000) }
  assert.equal(isRenewalDue(validity, new Date(59_999)), false)
  assert.equal(isRenewalDue(validity, new Date(60_000)), true)
  assert.equal(renewalDelayMs(validity, new Date(0), 0), 60_000)
  assert.ok(renewalDelayMs(validity, new Date(0), 0.999) < 75_001)
  assert.equal(renewalDelayMs(validity, new Date(80_000), 0.999), 0)
  for (let failures = 0; failures < 20; failures++) {
    const delayMs = retryDelayMs(failures, 0.5)
    assert.ok(delayMs >= 500 && delayMs <= 300_000)
  }
})
