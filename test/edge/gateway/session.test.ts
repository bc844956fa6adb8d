/** Order, gaps, snapshots, acknowledgements, ends and restarts, story by story. */
import assert from 'node:assert/strict'
import { before, describe, test } from 'node:test'
import type { JournalRecord } from '../../../src/core/messages/gateway-journal.ts'
import type { Acknowledgement, GatewaySession, Work } from '../../../src/edge/gateway/session.ts'
import { ipAddrBlocks } from '../../../src/core/x509/extensions.ts'
import { parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { makeDeviceCa, NOW } from '../../support/certificates.ts'
import {
  at,
  base64,
  failures,
  GatewayWorld,
  HOUR,
  KEY_PREFIX,
  MINUTE,
  NETWORK,
  newWireGuardKey,
} from '../../support/gateway-world.ts'

let world: GatewayWorld
before(async () => {
  world = await GatewayWorld.create()
})

function applied(work: Work): Acknowledgement[] {
  return work.acks.filter(({ kind }) => kind === 'applied')
}

function revisionOf(session: GatewaySession): number | undefined {
  const [ack] = applied(session.takeWork())
  return ack?.kind === 'applied' ? ack.revision : undefined
}

describe('the stream', () => {
  test('begins with hello: endpoint, and 0 for every network that is not known yet', () => {
    const session = world.newSession()
    session.connected(NOW)
    const [hello] = session.takeWork().replies
    assert.deepEqual(hello, { type: 'hello', endpoint: 'gw.example:51820', revisions: { [NETWORK]: 0 } })
  })

  test('says again on the next connection what it holds, and what it has applied', () => {
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    session.takeWork()
    session.connected(NOW)
    const work = session.takeWork()
    assert.deepEqual(work.replies, [{ type: 'hello', endpoint: 'gw.example:51820', revisions: { [NETWORK]: 2 } }])
    assert.deepEqual(applied(work), [{ kind: 'applied', network: NETWORK, revision: 2 }])
    assert.equal(work.acks.filter(({ kind }) => kind === 'crl').length, 3)
  })

  test('answers a ping', () => {
    const session = world.readySession()
    session.takeWork()
    session.receive({ type: 'ping' }, NOW)
    assert.deepEqual(session.takeWork().replies, [{ type: 'pong' }])
  })

  test('a gap asks for a snapshot, once, and counts nothing as known; removals are carried out all the same', () => {
    const session = world.readySession()
    const [first, second] = [world.makeDevice(2), world.makeDevice(3)]
    session.receive(world.set(2, first), NOW)
    session.takeWork()
    session.receive(world.set(4, second), NOW)
    session.receive(world.remove(6, first), NOW)
    const work = session.takeWork()
    assert.deepEqual(work.replies, [{ type: 'resync', network: NETWORK }])
    assert.equal(session.peerCount, 0)
    assert.ok(applied(work).every((ack) => ack.kind === 'applied' && ack.revision === 2))
    // Unanswered, it is asked again after a while.
    session.tick(at(6000))
    assert.deepEqual(session.takeWork().replies, [{ type: 'resync', network: NETWORK }])
    session.receive(world.snapshot(6, [second]), NOW)
    assert.equal(session.peerCount, 1)
    assert.equal(revisionOf(session), 6)
    session.tick(at(12_000))
    assert.deepEqual(session.takeWork().replies, [])
  })

  test('a change that was seen before is acknowledged again and not made again', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    session.receive(world.set(2, certificate), NOW)
    session.receive(world.remove(3, certificate), NOW)
    session.receive(world.set(2, certificate), NOW)
    assert.equal(session.peerCount, 0)
    assert.equal(revisionOf(session), 3)
  })

  test("other bytes under a peer's serial number are refused; once its own are stated again nothing has failed", () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    const forged = world.makeDevice(3, { serial: certificate.serial, issuerDer: world.root.certificate.subjectDer })
    session.receive(world.set(2, certificate), NOW)
    for (const truth of [world.set(4, certificate), world.snapshot(4, [certificate])]) {
      session.receive(world.snapshot(3, [certificate, forged]), NOW)
      assert.deepEqual(failures(session), { [certificate.serial]: 'certificate_untrusted' })
      session.receive(truth, NOW)
      assert.deepEqual(failures(session), {})
      assert.equal(revisionOf(session), 4)
      assert.equal(session.peerCount, 1)
    }
    // Also when the forgery came first.
    session.receive(world.snapshot(5, [forged]), NOW)
    session.receive(world.set(6, certificate), NOW)
    assert.deepEqual(failures(session), {})
    assert.equal(session.peerCount, 1)
  })

  test('a snapshot in parts takes effect as a whole; changes that arrive in between come after it', () => {
    const session = world.readySession()
    const devices = [2, 3, 4, 5].map((n) => world.makeDevice(n))
    const [old, a, b, c] = devices
    assert.ok(old && a && b && c)
    session.receive(world.set(2, old), NOW)
    session.receive(world.snapshot(10, [a], true), NOW)
    session.receive(world.set(11, c), NOW)
    assert.deepEqual([...session.wanted.keys()].length, 1)
    session.receive(world.snapshot(10, [b]), NOW)
    assert.equal(session.peerCount, 3)
    assert.equal(revisionOf(session), 11)
    assert.deepEqual(failures(session), {})
  })

  test('a removal within a snapshot holds, also when a part still to come names the peer', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    session.receive(world.set(2, certificate), NOW)
    session.receive(world.snapshot(10, [], true), NOW)
    session.receive(world.remove(11, certificate), NOW)
    assert.equal(session.peerCount, 0)
    session.receive(world.snapshot(10, [certificate]), NOW)
    assert.equal(session.peerCount, 0)
    assert.equal(revisionOf(session), 11)
  })

  test('half a snapshot is forgotten with its connection', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    session.receive(world.set(2, certificate), NOW)
    session.receive(world.snapshot(10, [], true), NOW)
    session.connected(NOW)
    session.receive(world.set(3, world.makeDevice(3)), NOW)
    assert.equal(session.peerCount, 2)
  })

  test('messages of a network that is not ours change nothing', () => {
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    session.takeWork()
    session.receive({ type: 'snapshot', network: 'default/lab', revision: 9, certificates: [], more: false }, NOW)
    session.receive({ type: 'remove', network: 'default/lab', revision: 9, serial: '01' }, NOW)
    assert.equal(session.peerCount, 1)
    assert.deepEqual(applied(session.takeWork()), [])
  })
})

describe('renewal', () => {
  test('with the same key changes nothing on the device but is acknowledged', () => {
    const session = world.readySession()
    const key = newWireGuardKey()
    session.receive(world.set(2, world.makeDevice(2, { key })), NOW)
    const wanted = new Map(session.wanted)
    session.takeWork()
    session.receive(world.set(3, world.makeDevice(2, { key, notBefore: at(-1000), notAfter: at(48 * HOUR) })), NOW)
    assert.deepEqual(session.wanted, wanted)
    assert.equal(revisionOf(session), 3)
    session.tick(at(24.5 * HOUR))
    assert.equal(session.peerCount, 1)
  })

  test('with another key takes the earlier one away', () => {
    const session = world.readySession()
    const [before, after] = [newWireGuardKey(), newWireGuardKey()]
    session.receive(world.set(2, world.makeDevice(2, { key: before })), NOW)
    session.takeWork()
    session.receive(world.set(3, world.makeDevice(2, { key: after, notBefore: at(-1000) })), NOW)
    assert.deepEqual([...session.wanted.keys()], [after])
    assert.deepEqual(session.takeWork().changedKeys, new Set([before, after]))
  })

  test('and the address of one that has gone is free for another', () => {
    const session = world.readySession()
    const first = world.makeDevice(2)
    const second = world.makeDevice(3, { addresses: world.makeDevice(2).addressBlocks?.slice(0, 1) ?? [] })
    session.receive(world.set(2, first), NOW)
    session.receive(world.set(3, second), NOW)
    assert.equal(failures(session)[second.serial], 'address_conflict')
    session.receive(world.remove(4, first), NOW)
    assert.equal(session.peerCount, 1)
    assert.deepEqual(failures(session), {})
  })
})

describe('what was refused', () => {
  test('because its CA was known by an older certificate only is taken when the renewed one comes', () => {
    const { deviceCa, root } = world
    const { publicKey, privateKey } = deviceCa
    const blocks = ipAddrBlocks([parsePrefix('10.88.0.0/24'), KEY_PREFIX])
    const narrow = makeDeviceCa(root, { extensions: { ipAddrBlocks: blocks } }, 'default', { publicKey, privateKey })
    const session = world.newSession()
    session.connected(NOW)
    for (const message of world.introduction().slice(1)) session.receive(message, NOW)
    session.receive({ type: 'issuers', certificates: [base64(narrow.certificate.der)] }, NOW)
    session.receive(world.crlMessage(deviceCa), NOW)
    const certificate = world.makeDevice(300)
    session.receive(world.snapshot(1, [certificate]), NOW)
    assert.equal(failures(session)[certificate.serial], 'certificate_untrusted')
    session.receive({ type: 'issuers', certificates: [base64(deviceCa.certificate.der)] }, NOW)
    assert.deepEqual(failures(session), {})
    assert.equal(session.peerCount, 1)
  })

  test('is judged again by what may have changed it: not all of it with every peer that goes', () => {
    const session = world.readySession()
    for (let n = 2; n < 12; n++) session.receive(world.set(n, world.makeDevice(n, { possession: false })), NOW)
    const leaving = world.makeDevice(20)
    const other = world.makeDevice(21, { addresses: world.makeDevice(20).addressBlocks?.slice(0, 1) ?? [] })
    session.receive(world.set(12, leaving), NOW)
    session.receive(world.set(13, other), NOW)
    assert.equal(Object.keys(failures(session)).length, 11)
    let judged = 0
    const { trust } = session
    const isRevoked = trust.isRevoked.bind(trust)
    trust.isRevoked = (...certificate) => {
      judged += 1
      return isRevoked(...certificate)
    }
    session.receive(world.remove(14, leaving), NOW)
    assert.equal(failures(session)[other.serial], undefined)
    assert.ok(judged < 10, `${judged} looks at revocations for one peer that went`)
  })
})

describe('ends', () => {
  test('a peer goes at its notAfter although nobody says so, and a deadline says when to look', () => {
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2, { notAfter: at(HOUR) })), NOW)
    session.receive(world.set(3, world.makeDevice(3, { notAfter: at(2 * HOUR) })), NOW)
    assert.deepEqual(session.nextDeadline(NOW), at(HOUR))
    session.tick(at(HOUR - 1))
    assert.equal(session.peerCount, 2)
    session.tick(at(HOUR))
    assert.equal(session.peerCount, 1)
    session.tick(at(2 * HOUR))
    assert.equal(session.peerCount, 0)
  })

  test('what a clock that ran ahead had ended is asked for again when the clock is put right', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2, { notAfter: at(HOUR) })
    session.receive(world.set(2, certificate), NOW)
    session.tick(at(24 * HOUR))
    assert.equal(session.peerCount, 0)
    session.takeWork()
    session.tick(at(MINUTE))
    assert.deepEqual(session.takeWork().replies, [{ type: 'resync', network: NETWORK }])
    session.receive(world.snapshot(2, [certificate]), at(MINUTE))
    assert.equal(session.peerCount, 1)
    session.tick(at(2 * MINUTE))
    assert.deepEqual(session.takeWork().replies, [], 'asked once')
  })

  test('a clock that wavers around an end asks for nothing', () => {
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2, { notAfter: at(HOUR) })), NOW)
    session.tick(at(HOUR + 10))
    session.takeWork()
    session.tick(at(HOUR - 10))
    assert.deepEqual(session.takeWork().replies, [])
    assert.equal(session.peerCount, 0)
  })

  test('a CRL on any way takes a revoked peer away and is acknowledged', () => {
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    session.receive(world.set(2, certificate), NOW)
    session.takeWork()
    const crl = world.makeCrl(world.deviceCa, { thisUpdate: 0, revoked: [certificate.serial] })
    session.acceptCrl(crl, NOW)
    assert.equal(session.peerCount, 0)
    const { acks, changedKeys } = session.takeWork()
    assert.equal(changedKeys.size, 1)
    assert.ok(acks.some((ack) => ack.kind === 'crl' && ack.number === BigInt(NOW.getTime())))
  })

  for (const { action, peers } of [
    { action: 'remove', peers: 0 },
    { action: 'keep', peers: 1 },
  ] as const) {
    test(`staleCrl ${action}: after nextUpdate and grace ${peers} peer(s) are left`, async () => {
      const session = world.readySession()
      const staleCrl = { action, graceSeconds: 600 }
      session.receive({ type: 'network', document: await world.makeDocument({ number: 2, staleCrl }) }, NOW)
      session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 0, nextUpdate: HOUR }), NOW)
      const certificate = world.makeDevice(2, { notAfter: at(10 * HOUR) })
      session.receive(world.set(2, certificate), NOW)
      session.tick(at(HOUR + 10 * MINUTE))
      assert.equal(session.peerCount, 1)
      session.tick(at(HOUR + 10 * MINUTE + 1))
      assert.equal(session.peerCount, peers)
      // With a fresh CRL whoever was taken down comes back by itself.
      const clock = at(2 * HOUR)
      session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 2 * HOUR, nextUpdate: 3 * HOUR }), clock)
      assert.equal(session.peerCount, 1)
      assert.deepEqual(failures(session), {})
    })
  }

  test('a document that begins to require possession takes those without it down', async () => {
    const session = world.newSession()
    session.connected(NOW)
    for (const message of world.introduction().slice(0, 4)) session.receive(message, NOW)
    session.receive({ type: 'network', document: await world.makeDocument({ possession: 'optional' }) }, NOW)
    const certificate = world.makeDevice(2, { possession: false })
    session.receive(world.snapshot(1, [certificate, world.makeDevice(3)]), NOW)
    assert.equal(session.peerCount, 2)
    session.receive({ type: 'network', document: await world.makeDocument({ number: 2 }) }, NOW)
    assert.equal(session.peerCount, 1)
    assert.equal(failures(session)[certificate.serial], 'policy_denied')
  })
})

describe('records', () => {
  /** What a disk would hold: everything that was handed over, in order. */
  class Disk {
    records: JournalRecord[] = []
    crls = new Map<string, Buffer>()
    documents = new Map<string, string>()

    take({ records, crls, documents }: Work): void {
      this.records.push(...records)
      for (const { issuerKeyId, crl } of crls) this.crls.set(issuerKeyId, crl.der)
      for (const { jws, document } of documents) this.documents.set(document.network, jws)
    }

    get saved() {
      return { records: this.records, crls: [...this.crls.values()], documents: [...this.documents.values()] }
    }
  }

  test('bring back peers and revision without anybody to ask, also under a CRL too old for adding', () => {
    const disk = new Disk()
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    session.receive(world.set(3, world.makeDevice(3, { notAfter: at(HOUR) })), NOW)
    disk.take(session.takeWork())
    const restarted = world.newSession(disk.saved, at(2 * HOUR))
    assert.equal(restarted.peerCount, 1)
    restarted.connected(at(2 * HOUR))
    const [hello] = restarted.takeWork().replies
    assert.deepEqual(hello?.type === 'hello' && hello.revisions, { [NETWORK]: 3 })
  })

  test('written anew they say the same', () => {
    const disk = new Disk()
    const session = world.readySession()
    const gone = world.makeDevice(4)
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    session.receive(world.set(3, gone), NOW)
    session.receive(world.remove(4, gone), NOW)
    disk.take(session.takeWork())
    disk.records = [...session.dump(NOW)]
    const restarted = world.newSession(disk.saved)
    assert.deepEqual(restarted.wanted, session.wanted)
    assert.deepEqual([...restarted.dump(NOW)], disk.records)
  })

  test('read by a clock that runs ahead are asked for again when it is put right', () => {
    const disk = new Disk()
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2, { notAfter: at(HOUR) })), NOW)
    disk.take(session.takeWork())
    const restarted = world.newSession(disk.saved, at(24 * HOUR))
    restarted.connected(at(24 * HOUR))
    restarted.takeWork()
    restarted.tick(at(MINUTE))
    assert.deepEqual(restarted.takeWork().replies, [{ type: 'resync', network: NETWORK }])
  })

  test('remember the newest certificate of an identity that is no peer any more', () => {
    const disk = new Disk()
    const session = world.readySession()
    const older = world.makeDevice(2, { notBefore: at(-2 * MINUTE) })
    const newer = world.makeDevice(2, { notBefore: at(-MINUTE) })
    session.receive(world.set(2, newer), NOW)
    session.receive(world.remove(3, newer), NOW)
    disk.take(session.takeWork())
    for (const records of [disk.records, [...session.dump(NOW)]]) {
      const restarted = world.newSession({ ...disk.saved, records })
      restarted.connected(NOW)
      for (const message of world.introduction()) restarted.receive(message, NOW)
      restarted.receive(world.snapshot(4, [older]), NOW)
      assert.equal(failures(restarted)[older.serial], 'older_certificate')
    }
  })

  test('remember a revocation that later CRLs do not name', () => {
    const disk = new Disk()
    const session = world.readySession()
    const certificate = world.makeDevice(2)
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 0, revoked: [certificate.serial] }), NOW)
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: 1000 }), NOW)
    disk.take(session.takeWork())
    for (const records of [disk.records, [...session.dump(NOW)]]) {
      const restarted = world.newSession({ ...disk.saved, records })
      restarted.connected(NOW)
      restarted.receive(world.snapshot(4, [certificate]), NOW)
      assert.equal(failures(restarted)[certificate.serial], 'certificate_revoked')
    }
  })

  test('do not claim a revision while something that was said is kept only in memory', () => {
    const disk = new Disk()
    const session = world.readySession()
    session.receive(world.set(2, world.makeDevice(2)), at(20 * MINUTE))
    disk.take(session.takeWork())
    const restarted = world.newSession(disk.saved, at(20 * MINUTE))
    restarted.connected(at(20 * MINUTE))
    const [hello] = restarted.takeWork().replies
    assert.deepEqual(hello?.type === 'hello' && hello.revisions, { [NETWORK]: 0 })
  })

  test('that were poisoned bring no peer that admission would not', () => {
    const disk = new Disk()
    const session = world.readySession()
    const good = world.makeDevice(2)
    session.receive(world.set(2, good), NOW)
    disk.take(session.takeWork())
    const revoked = world.makeDevice(5)
    const foreign = world.makeDevice(6, { uri: world.makeDevice(6).sanUris[0]?.replace('/default/', '/lab/') ?? '' })
    const spoiled = Buffer.from(world.makeDevice(7).der)
    spoiled.writeUInt8(spoiled.readUInt8(200) ^ 1, 200)
    const peer = (der: Buffer): JournalRecord => ({ type: 'peer', network: NETWORK, certificate: base64(der) })
    disk.crls.set('x', world.makeCrl(world.deviceCa, { thisUpdate: 0, revoked: [revoked.serial] }))
    const { crls, documents } = disk.saved
    const restarted = world.newSession({
      records: [
        ...disk.records,
        peer(revoked.der),
        peer(foreign.der),
        peer(spoiled),
        peer(Buffer.from('poison')),
        peer(world.makeDevice(8, { key: world.gatewayKey }).der),
        { type: 'issuer', certificate: base64(Buffer.from('poison')) },
        {
          type: 'newest',
          identity: world.makeDevice(9).sanUris[0] ?? '',
          notBefore: at(1000 * HOUR).toISOString(),
          serial: '01',
          issuerKeyId: world.deviceCa.certificate.keyId,
        },
      ],
      crls: [...crls, Buffer.from('poison'), Buffer.alloc(0)],
      documents: [...documents, 'poison', ''],
    })
    assert.equal(restarted.peerCount, 1)
    assert.deepEqual(
      [...restarted.wanted.values()].map(({ allowedIps }) => allowedIps),
      [good.addressBlocks],
    )
    // A line about the future locks nobody out.
    restarted.connected(NOW)
    restarted.receive(world.snapshot(9, [good, world.makeDevice(9)]), NOW)
    assert.equal(restarted.peerCount, 2)
  })
})
