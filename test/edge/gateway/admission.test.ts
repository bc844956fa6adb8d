/** Every message that a hostile control plane can send about a certificate, and that none of them brings a peer. */
import assert from 'node:assert/strict'
import { before, describe, test } from 'node:test'
import { CertpeerError } from '../../../src/core/errors.ts'
import { parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { ipAddrBlocks, wireGuardKeyExtension } from '../../../src/core/x509/extensions.ts'
import type { Certificate } from '../../../src/core/x509/certificate.ts'
import { parseCertificate } from '../../../src/core/x509/certificate.ts'
import { evaluateAdmission } from '../../../src/edge/gateway/admission.ts'
import { parseDownMessage } from '../../../src/edge/gateway/stream-client.ts'
import { makeDeviceCa, makeGateway, makeRoot, NOW, OIDS, WIREGUARD_KEY } from '../../support/certificates.ts'
import {
  at,
  base64,
  deviceUri,
  failures,
  GatewayWorld,
  HOUR,
  MINUTE,
  NETWORK,
  newWireGuardKey,
} from '../../support/gateway-world.ts'

let world: GatewayWorld
before(async () => {
  world = await GatewayWorld.create()
})

/** The same certificate with one bit of its signature turned. */
function spoil(certificate: Certificate): Certificate {
  const der = Buffer.from(certificate.der)
  const last = der.length - 1
  der.writeUInt8(der.readUInt8(last) ^ 1, last)
  return parseCertificate(der)
}

interface HostileCase {
  readonly name: string
  readonly code: string
  readonly offer: (world: GatewayWorld) => Certificate
  /** Where it is offered; the served network unless said. */
  readonly network?: string
  /** Peers that are there before. */
  readonly present?: (world: GatewayWorld) => Certificate[]
}

const sharedKey = newWireGuardKey()

const HOSTILE: readonly HostileCase[] = [
  {
    name: "another tenant's valid device",
    code: 'certificate_untrusted',
    // Its CA is not among those announced.
    offer: (w) => w.makeDevice(9, { ca: makeDeviceCa(w.root, {}, 'other'), uri: deviceUri(9, 'other') }),
  },
  {
    name: 'a device of another network of the same tenant',
    code: 'foreign_network',
    offer: (w) => w.makeDevice(9, { uri: deviceUri(9, 'default', 'lab') }),
  },
  {
    name: 'a device under a root of somebody else',
    code: 'certificate_untrusted',
    offer: (w) => w.makeDevice(9, { ca: makeDeviceCa(makeRoot()) }),
  },
  {
    name: 'a certificate with a spoiled signature',
    code: 'certificate_untrusted',
    offer: (w) => spoil(w.makeDevice(9)),
  },
  {
    name: 'an expired certificate',
    code: 'certificate_expired',
    offer: (w) => w.makeDevice(9, { notBefore: at(-2 * HOUR), notAfter: at(-1) }),
  },
  {
    name: 'a certificate that is not valid yet',
    code: 'certificate_expired',
    offer: (w) => w.makeDevice(9, { notBefore: at(HOUR), notAfter: at(2 * HOUR) }),
  },
  {
    name: 'a certificate for a century',
    code: 'certificate_untrusted',
    offer: (w) => w.makeDevice(9, { notAfter: at(3000 * 24 * HOUR) }),
  },
  {
    name: 'a gateway as a device',
    code: 'bad_client_certificate',
    offer: (w) => makeGateway(w.infrastructureCa, { uri: 'spiffe://certpeer.test/gateway/g2', key: newWireGuardKey() }),
  },
  {
    name: "a device certificate by the gateways' CA",
    code: 'certificate_untrusted',
    offer: (w) => w.makeDevice(9, { ca: w.infrastructureCa }),
  },
  {
    name: 'an address outside the block of the CA',
    code: 'certificate_untrusted',
    offer: (w) => w.makeDevice(9, { addresses: [parsePrefix('10.99.0.9/32')] }),
  },
  {
    name: 'a whole prefix instead of an address',
    code: 'bad_client_certificate',
    offer: (w) => w.makeDevice(9, { addresses: [parsePrefix('10.88.0.0/24')] }),
  },
  {
    name: 'a key other than the one its key address is made of',
    code: 'bad_client_certificate',
    offer: (w) =>
      w.makeDevice(9, { extensions: { wireGuardKey: wireGuardKeyExtension(OIDS, newWireGuardKey(), true) } }),
  },
  {
    name: 'no WireGuard key at all',
    code: 'bad_client_certificate',
    offer: (w) => w.makeDevice(9, { extensions: { wireGuardKey: null } }),
  },
  {
    name: 'no address block at all',
    code: 'bad_client_certificate',
    offer: (w) => w.makeDevice(9, { extensions: { ipAddrBlocks: null } }),
  },
  {
    name: 'an address without its key address',
    code: 'bad_client_certificate',
    offer: (w) => w.makeDevice(9, { extensions: { ipAddrBlocks: ipAddrBlocks([parsePrefix('10.88.0.9/32')]) } }),
  },
  {
    name: "the gateway's own key",
    code: 'key_conflict',
    offer: (w) => w.makeDevice(9, { key: w.gatewayKey }),
  },
  {
    name: "the gateway's own address",
    code: 'address_conflict',
    offer: (w) => w.makeDevice(9, { addresses: [parsePrefix('10.88.0.1/32')] }),
  },
  {
    name: "another live identity's address",
    code: 'address_conflict',
    present: (w) => [w.makeDevice(2)],
    offer: (w) => w.makeDevice(9, { addresses: [parsePrefix('10.88.0.2/32')] }),
  },
  {
    name: "another live identity's key",
    code: 'key_conflict',
    present: (w) => [w.makeDevice(2, { key: sharedKey })],
    offer: (w) => w.makeDevice(9, { key: sharedKey }),
  },
  {
    name: 'an older certificate of the same identity',
    code: 'older_certificate',
    present: (w) => [w.makeDevice(2, { notBefore: at(-MINUTE) })],
    offer: (w) => w.makeDevice(2, { notBefore: at(-2 * MINUTE) }),
  },
  {
    name: 'another certificate of the same identity and the same notBefore',
    code: 'older_certificate',
    present: (w) => [w.makeDevice(2, { notBefore: at(-MINUTE) })],
    offer: (w) => w.makeDevice(2, { notBefore: at(-MINUTE) }),
  },
  {
    name: 'a key whose possession was not proven, where the network requires it',
    code: 'policy_denied',
    offer: (w) => w.makeDevice(9, { possession: false }),
  },
  {
    name: "a served network's name over another network's device",
    code: 'foreign_network',
    offer: (w) => w.makeDevice(9, { uri: deviceUri(9, 'default', 'lab') }),
    network: NETWORK,
  },
]

describe('admission refuses', () => {
  for (const { name, code, offer, present, network = NETWORK } of HOSTILE) {
    test(`${name}: ${code}`, () => {
      const session = world.readySession()
      const peers = present?.(world) ?? []
      let revision = 1
      for (const peer of peers) session.receive(world.set((revision += 1), peer), NOW)
      assert.equal(session.peerCount, peers.length)
      const wanted = new Map(session.wanted)
      const hostile = offer(world)
      session.receive(world.set(revision + 1, hostile, network), NOW)
      assert.deepEqual(session.wanted, wanted)
      assert.equal(failures(session)[hostile.serial], code)
    })
  }

  test('each of them in a snapshot, too', () => {
    const good = world.makeDevice(2)
    for (const { name, offer, present } of HOSTILE) {
      const peers = present?.(world) ?? [good]
      const session = world.readySession()
      session.receive(world.snapshot(5, [...peers, offer(world)]), NOW)
      assert.deepEqual([...session.wanted.keys()].length, peers.length, name)
    }
  })
})

describe('admission', () => {
  test('takes exactly the certified key and AllowedIPs', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2, {
      key: WIREGUARD_KEY,
      addresses: [parsePrefix('10.88.0.2/32'), parsePrefix('fd00:0:0:1::2/128')],
    })
    session.receive(world.set(2, certificate), NOW)
    assert.deepEqual([...session.wanted.keys()], [WIREGUARD_KEY])
    assert.deepEqual(session.wanted.get(WIREGUARD_KEY)?.allowedIps, certificate.addressBlocks)
    assert.deepEqual(failures(session), {})
  })

  test('a revoked certificate is refused whatever is sent, also when a later CRL no longer names it', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 0, revoked: [certificate.serial] }), NOW)
    session.receive(world.set(2, certificate), NOW)
    assert.equal(failures(session)[certificate.serial], 'certificate_revoked')
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 1000 }), NOW)
    session.receive(world.snapshot(3, [certificate]), NOW)
    assert.equal(session.peerCount, 0)
    assert.equal(failures(session)[certificate.serial], 'certificate_revoked')
  })

  test('a device of an issuing CA that the root has revoked is refused, and those there go', () => {
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    const revoked = [world.deviceCa.certificate.serial]
    session.receive(world.crlMessage(world.root, { thisUpdate: 0, nextUpdate: 300 * 24 * HOUR, revoked }), NOW)
    assert.equal(session.peerCount, 0)
    const other = world.makeDevice(3)
    session.receive(world.set(3, other), NOW)
    assert.equal(failures(session)[other.serial], 'certificate_revoked')
  })

  test("another tenant's device is refused also when its CA is known", () => {
    const session = world.readySession()
    const ca = makeDeviceCa(world.root, {}, 'other')
    session.receive({ type: 'issuers', certificates: [base64(ca.certificate.der)] }, NOW)
    session.receive(world.crlMessage(ca), NOW)
    const certificate = world.makeDevice(9, { ca, uri: deviceUri(9, 'other') })
    session.receive(world.set(2, certificate), NOW)
    assert.equal(failures(session)[certificate.serial], 'foreign_network')
    session.receive(world.set(1, certificate, 'other/default'), NOW)
    assert.equal(session.peerCount, 0)
  })

  test('a device of one served network is no peer of another one', () => {
    const session = world.readySession()
    session.setOwn({ ...world.own, networks: new Set([NETWORK, 'default/lab']) }, NOW)
    const certificate = world.makeDevice(9, { uri: deviceUri(9, 'default', 'lab') })
    session.receive(world.set(2, certificate), NOW)
    assert.equal(failures(session)[certificate.serial], 'foreign_network')
    assert.equal(session.peerCount, 0)
  })

  test('by itself refuses what is not served, and what ends at this very instant', () => {
    const session = world.readySession()
    const context = {
      trust: session.trust,
      own: world.own,
      holderOfKey: () => undefined,
      holderOfAddress: () => undefined,
      newestAccepted: () => undefined,
      clock: NOW,
    }
    for (const { certificate, network, code } of [
      {
        certificate: world.makeDevice(9, { uri: deviceUri(9, 'default', 'lab') }),
        network: 'default/lab',
        code: 'foreign_network',
      },
      { certificate: world.makeDevice(9, { notAfter: NOW }), network: NETWORK, code: 'certificate_expired' },
    ]) {
      const decision = evaluateAdmission({ certificate, network, mode: 'add' }, context)
      assert.equal(decision.kind === 'refuse' && decision.code, code)
    }
  })

  test("a tenant's CA cannot name another tenant's device", () => {
    const session = world.readySession()
    const ca = makeDeviceCa(world.root, {}, 'other')
    session.receive({ type: 'issuers', certificates: [base64(ca.certificate.der)] }, NOW)
    session.receive(world.crlMessage(ca), NOW)
    const certificate = world.makeDevice(9, { ca })
    session.receive(world.set(2, certificate), NOW)
    assert.equal(failures(session)[certificate.serial], 'certificate_untrusted')
  })

  for (const { name, messages, code } of [
    { name: 'no CRL of the issuing CA (withheld)', messages: [1, 2, 4], code: 'revocation_unknown' },
    { name: 'no CRL of the root (withheld)', messages: [2, 3, 4], code: 'revocation_unknown' },
    { name: 'no network document (withheld)', messages: [1, 2, 3], code: 'network_document_stale' },
  ]) {
    test(`${name}: ${code}, and taken as soon as it is there`, () => {
      const session = world.newSession()
      const introduction = world.introduction()
      const certificate = world.makeDevice(2)
      session.connected(NOW)
      session.receive(parseDownMessage(JSON.stringify(introduction[0])), NOW)
      for (const index of messages) session.receive(parseDownMessage(JSON.stringify(introduction[index])), NOW)
      session.receive(world.snapshot(1, [certificate]), NOW)
      assert.equal(session.peerCount, 0)
      assert.equal(failures(session)[certificate.serial], code)
      for (const message of introduction) session.receive(message, NOW)
      assert.equal(session.peerCount, 1)
      assert.deepEqual(failures(session), {})
    })
  }

  test('nothing is added under a CRL of more than 15 minutes; it is taken under the next, without being sent again', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    const later = at(14 * MINUTE + 1)
    session.receive(world.set(2, certificate), later)
    assert.equal(session.peerCount, 0)
    assert.equal(failures(session)[certificate.serial], 'stale_crl')
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 13 * MINUTE }), later)
    assert.equal(session.peerCount, 1)
  })

  test('a renewal waits for a fresh CRL while the peer stays', () => {
    const session = world.readySession()
    const key = newWireGuardKey()
    const first = world.makeDevice(2, { key })
    session.receive(world.set(2, first), NOW)
    const renewed = world.makeDevice(2, { key, notBefore: at(0), notAfter: at(48 * HOUR) })
    session.receive(world.set(3, renewed), at(20 * MINUTE))
    assert.equal(session.peerCount, 1)
    assert.equal(failures(session)[renewed.serial], 'stale_crl')
    // Also when the control plane then says everything anew.
    session.receive(world.snapshot(4, [renewed]), at(20 * MINUTE))
    assert.deepEqual([...session.wanted.keys()], [key])
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 19 * MINUTE }), at(20 * MINUTE))
    assert.deepEqual(failures(session), {})
    assert.deepEqual([...session.wanted.keys()], [key])
  })

  test('a lower CRL number, a forged CRL and a lower document number change nothing', async () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 0, revoked: [certificate.serial] }), NOW)
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 1000, number: 5n }), NOW)
    const held = session.trust.crls.get(world.deviceCa.certificate.keyId)?.number
    assert.equal(held, BigInt(NOW.getTime()))
    const live = world.makeDevice(3)
    session.receive(world.set(2, live), NOW)
    const forged = { ...world.deviceCa, privateKey: world.infrastructureCa.privateKey }
    session.receive(world.crlMessage(forged, { thisUpdate: 2000, revoked: [live.serial] }), NOW)
    session.receive(world.set(3, certificate), NOW)
    assert.equal(session.trust.crls.get(world.deviceCa.certificate.keyId)?.number, held)
    assert.deepEqual(Object.keys(failures(session)), [certificate.serial])
    assert.equal(session.peerCount, 1)

    session.receive({ type: 'network', document: await world.makeDocument({ number: 7, mtu: 1400 }) }, NOW)
    for (const document of [
      world.document,
      await world.makeDocument({ number: 7, mtu: 1300 }),
      await world.makeDocument({ number: 8, mtu: 1300, signer: world.deviceCa.privateKey }),
      await world.makeDocument({ number: 9, mtu: 1300, network: 'lab' }),
    ]) {
      session.receive({ type: 'network', document }, NOW)
    }
    assert.deepEqual([...session.trust.documents.keys()], [NETWORK])
    assert.equal(session.trust.documents.get(NETWORK)?.document.mtu, 1400)
  })

  test('a clock that is set back revives nothing: signed time holds', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2, { notAfter: at(HOUR) })
    session.receive(world.set(2, certificate), NOW)
    session.tick(at(HOUR))
    assert.equal(session.peerCount, 0)
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: HOUR + 6 * MINUTE }), at(HOUR + 6 * MINUTE))
    for (const clock of [at(0), at(-24 * HOUR), new Date(0)]) {
      session.receive(world.snapshot(10, [certificate]), clock)
      assert.equal(session.peerCount, 0, clock.toISOString())
    }
  })

  test("one tenant's CA cannot end another tenant's peers by dating its CRL into the future", () => {
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    const ca = makeDeviceCa(world.root, {}, 'other')
    session.receive({ type: 'issuers', certificates: [base64(ca.certificate.der)] }, NOW)
    session.receive(world.crlMessage(ca, { thisUpdate: 1000 * 24 * HOUR }), NOW)
    session.tick(NOW)
    assert.equal(session.peerCount, 1)
  })

  test('an own certificate that is revoked takes all peers down, and nothing that is on disk', () => {
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    session.takeWork()
    session.receive(world.crlMessage(world.infrastructureCa, { thisUpdate: 0, revoked: [world.gateway.serial] }), NOW)
    assert.equal(session.peerCount, 0)
    assert.ok(!session.takeWork().records.some(({ type }) => type === 'gone'))
    session.setOwn({ ...world.own, serial: world.authority.serial }, NOW)
    assert.equal(session.peerCount, 1)
  })

  test('bytes that are no certificate, and lines that are no message, bring nothing and break nothing', () => {
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    const wanted = new Map(session.wanted)
    const { der } = world.makeDevice(3)
    let revision = 2
    for (const bytes of [
      Buffer.alloc(0),
      Buffer.from('not a certificate'),
      Buffer.concat([der, Buffer.from([0])]),
      der.subarray(0, der.length - 1),
      Buffer.alloc(20_000, 0x30),
    ]) {
      revision += 1
      session.receive({ type: 'set', network: NETWORK, revision, certificate: base64(bytes) }, NOW)
      session.receive({ type: 'crl', crl: base64(bytes) }, NOW)
      session.receive({ type: 'issuers', certificates: [base64(bytes)] }, NOW)
      session.receive({ type: 'network', document: bytes.toString('latin1') }, NOW)
    }
    assert.deepEqual(session.wanted, wanted)
    const good = world.set(1, world.makeDevice(4))
    for (const line of [
      '',
      'null',
      '[]',
      '{"type":"set"}',
      JSON.stringify({ ...good, extra: 1 }),
      JSON.stringify({ ...good, type: 'allow' }),
      JSON.stringify({ ...good, revision: -1 }),
      JSON.stringify({ ...good, revision: 1.5 }),
      JSON.stringify({ ...good, certificate: 'ü' }),
      JSON.stringify({ ...good, allowedIps: ['0.0.0.0/0'] }),
    ]) {
      assert.throws(
        () => parseDownMessage(line),
        (error) => error instanceof CertpeerError && error.code.startsWith('malformed_'),
        line,
      )
    }
  })
})
