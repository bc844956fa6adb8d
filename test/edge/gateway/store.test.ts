/** What a disk can do to an agent, and that it goes on: torn, damaged, full, and gone. */
import assert from 'node:assert/strict'
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, afterEach, before, beforeEach, describe, test } from 'node:test'
import type { JournalRecord } from '../../../src/core/messages/gateway-journal.ts'
import type { GatewaySession } from '../../../src/edge/gateway/session.ts'
import { GatewayStore, loadStore } from '../../../src/edge/gateway/store.ts'
import { createLogger, silentLogger } from '../../../src/platform/log.ts'
import { run } from '../../../src/platform/spawn.ts'
import { NOW } from '../../support/certificates.ts'
import { at, failures, GatewayWorld, NETWORK } from '../../support/gateway-world.ts'

const log = silentLogger()
let world: GatewayWorld
let dir: string
let session: GatewaySession
let store: GatewayStore
const journal = () => join(dir, 'peers', 'journal.ndjson')

before(async () => {
  world = await GatewayWorld.create()
})
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'certpeer-store-'))
  session = world.readySession()
  store = new GatewayStore({ dir, log, dump: () => session.dump(NOW) })
  await loadStore(dir, log)
  await store.rewrite()
})
afterEach(async () => {
  await store.close()
  rmSync(dir, { recursive: true, force: true })
})

async function save(): Promise<void> {
  const work = session.takeWork()
  await store.append(work.records)
  await store.saveCrls(work.crls)
  await store.saveDocuments(work.documents)
}

async function restarted(): Promise<GatewaySession> {
  return world.newSession(await loadStore(dir, log), NOW)
}

function fill(from: number, to: number): void {
  for (let n = from; n <= to; n++) session.receive(world.set(n, world.makeDevice(n)), NOW)
}

describe('the store', () => {
  test('gives back what was written: peers, CRLs, documents', async () => {
    fill(2, 6)
    await save()
    const again = await restarted()
    assert.deepEqual(again.wanted, session.wanted)
    assert.equal(again.trust.crls.size, 3)
    assert.equal(again.trust.documents.size, 1)
    assert.equal(readFileSync(journal()).toString('latin1').includes('PRIVATE'), false)
  })

  test('torn at any byte of its last lines, it brings back a state that was', async () => {
    fill(2, 4)
    await save()
    const whole = readFileSync(journal())
    for (let cut = 1; cut < 2500; cut += 97) {
      writeFileSync(journal(), whole.subarray(0, whole.length - cut))
      const again = await restarted()
      assert.ok(again.peerCount <= 3)
      for (const [key, peer] of again.wanted) assert.deepEqual(peer, session.wanted.get(key))
    }
  })

  test('a torn last line does not spoil what is written after it', async () => {
    fill(2, 2)
    await save()
    await store.close()
    truncateSync(journal(), readFileSync(journal()).length - 10)
    // An agent that starts reads, and writes anew.
    session = await restarted()
    store = new GatewayStore({ dir, log, dump: () => session.dump(NOW) })
    await store.rewrite()
    session.connected(NOW)
    session.receive(world.snapshot(9, [world.makeDevice(5), world.makeDevice(6)]), NOW)
    await save()
    assert.equal((await restarted()).peerCount, 2)
  })

  test('poisoned lines and files are passed over, the good ones count', async () => {
    fill(2, 4)
    await save()
    appendFileSync(journal(), 'garbage\n{"type":"peer"}\n{"type":"allow","everything":true}\n\0\0\0\n[]\nnull\n')
    writeFileSync(join(dir, 'peers', `${'0'.repeat(64)}.crl`), 'poison')
    writeFileSync(join(dir, 'peers', 'default.default.jws'), 'poison')
    mkdirSync(join(dir, 'networks'))
    writeFileSync(join(dir, 'networks', 'default.default.jws'), world.document)
    const again = await restarted()
    assert.deepEqual(again.wanted, session.wanted)
  })

  test('without the CRL file nobody is a peer until one is there', async () => {
    fill(2, 2)
    await save()
    rmSync(join(dir, 'peers', `${world.deviceCa.certificate.keyId}.crl`))
    const again = await restarted()
    assert.equal(again.peerCount, 0)
    again.acceptCrl(world.makeCrl(world.deviceCa), NOW)
    assert.equal(again.peerCount, 1)
  })

  test('no peer is written before the CRL and the document without which it could not come back', async () => {
    session.receive(world.set(2, world.makeDevice(2)), NOW)
    const { records, crls, documents } = session.takeWork()
    assert.ok(crls.length > 0 && documents.length > 0)
    void store.saveCrls(crls)
    void store.saveDocuments(documents)
    await store.append(records)
    assert.equal((await restarted()).peerCount, 1)
  })

  test('a CRL that was put back to an earlier one does not bring a revoked peer back', async () => {
    const certificate = world.makeDevice(2)
    session.receive(world.set(2, certificate), NOW)
    await save()
    const path = join(dir, 'peers', `${world.deviceCa.certificate.keyId}.crl`)
    const earlier = readFileSync(path)
    session.acceptCrl(world.makeCrl(world.deviceCa, { thisUpdate: 0, revoked: [certificate.serial] }), NOW)
    await save()
    writeFileSync(path, earlier)
    const again = await restarted()
    again.connected(NOW)
    again.receive(world.snapshot(9, [certificate]), NOW)
    assert.equal(again.peerCount, 0)
    assert.equal(failures(again)[certificate.serial], 'certificate_revoked')
  })

  test('after damage it does not claim a revision: what was lost has to be said again', async () => {
    fill(2, 5)
    await save()
    const lines = readFileSync(journal(), 'utf8').split('\n')
    const index = lines.findIndex((line) => line.includes('"peer"'))
    lines[index] = lines[index]?.replace('"peer"', '"pear"') ?? ''
    writeFileSync(journal(), lines.join('\n'))
    const again = await restarted()
    assert.equal(again.peerCount, 3)
    again.connected(NOW)
    assert.deepEqual(again.takeWork().replies, [
      { type: 'hello', endpoint: 'gw.example:51820', revisions: { [NETWORK]: 0 } },
    ])
  })

  test('grows by what happens and is written anew when it has grown', async () => {
    const record: JournalRecord = { type: 'gone', identity: 'spiffe://x/y' }
    await store.append(Array.from({ length: 10_001 }, () => record))
    assert.ok(readFileSync(journal()).length > 300_000)
    await store.append([record])
    assert.ok(readFileSync(journal()).length < 20_000)
  })
})

describe('a disk that is full', { skip: process.getuid?.() === 0 ? false : 'mounting a small disk needs root' }, () => {
  let mount: string
  before(async () => {
    mount = mkdtempSync(join(tmpdir(), 'certpeer-full-'))
    await run('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'none', mount], { timeoutMs: 5000 })
  })
  after(async () => {
    await run('umount', [mount], { timeoutMs: 5000 })
    rmSync(mount, { recursive: true })
  })

  test('stops nothing, is told once, and is made good as soon as there is room', async () => {
    const lines: string[] = []
    const told = createLogger({ name: 'test', level: 'error', destination: { write: (line) => void lines.push(line) } })
    const small = new GatewayStore({ dir: mount, log: told, dump: () => session.dump(NOW) })
    await loadStore(mount, log)
    await small.rewrite()
    writeFileSync(join(mount, 'ballast'), Buffer.alloc(200 * 1024))
    for (let n = 2; n < 60; n++) {
      session.receive(world.set(n, world.makeDevice(n)), at(0))
      await small.append(session.takeWork().records)
    }
    assert.equal(small.isBehind, true)
    assert.equal(lines.length, 1)
    assert.equal(session.peerCount, 58)
    session.receive(world.crlMessage(world.deviceCa, { thisUpdate: -1000 }), NOW)
    const { crls } = session.takeWork()
    assert.equal(crls.length, 1)
    assert.throws(() => appendFileSync(join(mount, 'ballast'), Buffer.alloc(256 * 1024)), { code: 'ENOSPC' })
    await small.saveCrls(crls)
    rmSync(join(mount, 'ballast'))
    await small.rewrite()
    await small.close()
    assert.equal(small.isBehind, false)
    assert.ok(crls.every(({ issuerKeyId }) => existsSync(join(mount, 'peers', `${issuerKeyId}.crl`))))
    assert.ok(existsSync(join(mount, 'peers', 'journal.ndjson')))
    const { records } = await loadStore(mount, log)
    assert.equal(records.filter(({ type }) => type === 'peer').length, 58)
    await small.close()
  })
})
