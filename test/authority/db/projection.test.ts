import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { startProjection, type Projection } from '../../../src/authority/db/projection.ts'
import { applyNetwork } from '../../../src/authority/networks.ts'
import { revoke } from '../../../src/authority/revoke.ts'
import { enroll } from '../../../src/authority/enroll.ts'
import { openDatabase, queryRows, type Db } from '../../../src/platform/db/connection.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { createTestDatabase, testServer } from '../../support/postgres.ts'
import {
  ADMIN,
  enrollDevice,
  enrollmentRequest,
  newKeys,
  newNetworkStage,
  newToken,
  renewDevice,
  settings,
  type Stage,
} from '../support.ts'

async function databases(t: TestContext): Promise<{ caUrl: string; db: Db }> {
  const database = await createTestDatabase()
  const db = openDatabase({ url: database.ownerUrl, log: silentLogger(), max: 2 })
  t.after(async () => {
    await db.destroy()
    await database.close()
  })
  return { caUrl: database.caUrl, db }
}

async function caughtUp(projection: Projection): Promise<void> {
  const deadline = Date.now() + 10_000
  while (projection.lag() !== 0) {
    assert.ok(Date.now() < deadline, `the projection lags by ${projection.lag() ?? 'an unknown number'}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Every row says what the ledger's state says. */
async function checkInvariants(stage: Stage, db: Db): Promise<void> {
  const { state } = stage.authority
  const certificates = await queryRows<{ serial: string; status: string; identity: string }>(
    db,
    'select serial, status, identity from certificates',
  )
  const meant = [...state.certificates.values()].filter((record) => record.role !== 'ocsp-signer')
  assert.deepEqual(
    new Map(certificates.map((row) => [row.serial, row.status])),
    new Map(meant.map((record) => [record.serial, record.revoked ? 'revoked' : 'good'])),
  )
  const devices = await queryRows<{ identity: string; status: string; serial: string }>(
    db,
    'select identity, status, serial from devices',
  )
  assert.equal(devices.length, [...state.identities.values()].filter((identity) => identity.role === 'device').length)
  for (const { identity, status, serial } of devices) {
    const known = state.identities.get(identity)
    assert.equal(status, known?.blocked ? 'revoked' : 'active')
    assert.equal(serial, known?.current)
  }
  const revocations = await queryRows<{ serial: string }>(db, 'select serial from revocations')
  assert.deepEqual(new Set(revocations.map((row) => row.serial)), new Set(state.revocations.keys()))
  const leases = await queryRows<{ address: string; identity: string }>(
    db,
    'select host(address) as address, identity from leases',
  )
  for (const { address, identity } of leases) {
    const holds = [...state.networks.values()].flatMap((network) => [...network.holds])
    assert.ok(
      holds.some(([text, hold]) => text.startsWith(`${address}/`) && hold.uri === identity),
      address,
    )
  }
  const [row] = await queryRows<{ ledger_size: string }>(db, 'select ledger_size from projection')
  assert.equal(Number(row?.ledger_size), stage.authority.ledger.head.size)
}

test('what the ledger says arrives in the rows, while it happens and after a restart', async (t) => {
  const stage = await newNetworkStage(t)
  const { caUrl, db } = await databases(t)
  const laptop = await enrollDevice(stage, 'laptop')
  const first = startProjection({ authority: stage.authority, url: caUrl, log: silentLogger() })
  await caughtUp(first)
  await checkInvariants(stage, db)
  const phone = await enrollDevice(stage, 'phone')
  await renewDevice(stage, laptop)
  const gateway = await newToken(stage, { name: 'edge', role: 'gateway' })
  await enroll(stage.authority, await enrollmentRequest(stage, gateway, newKeys()))
  await enroll(
    stage.authority,
    await enrollmentRequest(stage, await newToken(stage, { name: 'phone', replace: true }), newKeys()),
  )
  await caughtUp(first)
  await checkInvariants(stage, db)
  await first.close()
  await revoke(stage.authority, ADMIN, {
    target: { kind: 'device', name: 'laptop', tenant: 'red' },
    reason: 'keyCompromise',
  })
  await applyNetwork(stage.authority, ADMIN, settings('red', { mtu: 1400 }))
  await stage.restart()
  const second = startProjection({ authority: stage.authority, url: caUrl, log: silentLogger() })
  t.after(() => second.close())
  await caughtUp(second)
  await checkInvariants(stage, db)
  const [network] = await queryRows<{ document_number: string }>(db, 'select document_number from networks')
  assert.equal(network?.document_number, '2')
  assert.ok(phone.answer.serial)
})

test('with the database down the authority works on, and the rows follow when it is back', async (t) => {
  const stage = await newNetworkStage(t)
  const { caUrl, db } = await databases(t)
  const projection = startProjection({ authority: stage.authority, url: caUrl, log: silentLogger() })
  t.after(() => projection.close())
  await enrollDevice(stage, 'laptop')
  await caughtUp(projection)
  const server = await testServer()
  await server.kill()
  await enrollDevice(stage, 'phone')
  const answer = await revoke(stage.authority, ADMIN, {
    target: { kind: 'device', name: 'laptop', tenant: 'red' },
    reason: 'unspecified',
  })
  assert.equal(answer.certificates.length, 1)
  await server.restart()
  await caughtUp(projection)
  await checkInvariants(stage, db)
})

test('a database of another, longer ledger is left alone', async (t) => {
  const stage = await newNetworkStage(t)
  const { caUrl, db } = await databases(t)
  await db.raw('update projection set ledger_size = 1000')
  const projection = startProjection({ authority: stage.authority, url: caUrl, log: silentLogger() })
  await new Promise((resolve) => setTimeout(resolve, 300))
  assert.equal(projection.lag(), undefined)
  await projection.close()
  assert.deepEqual(await queryRows(db, 'select 1 from certificates'), [])
})

test('a revocation that comes alone takes the peer away; moved by another writer, it changes nothing', async (t) => {
  const stage = await newNetworkStage(t)
  const { caUrl, db } = await databases(t)
  const projection = startProjection({ authority: stage.authority, url: caUrl, log: silentLogger() })
  t.after(() => projection.close())
  for (const name of ['laptop', 'phone']) {
    await enrollDevice(stage, name)
    await caughtUp(projection)
    await db.raw(
      `insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
        select n.id, c.identity, c.serial, c.wireguard_key, c.der, c.not_before, c.not_after, n.revision
        from certificates c join networks n on n.tenant = c.tenant and n.name = c.network where c.name = ?`,
      [name],
    )
  }
  const revokeDevice = (name: string) =>
    revoke(stage.authority, ADMIN, { target: { kind: 'device', name, tenant: 'red' }, reason: 'keyCompromise' })
  const peers = () => queryRows<{ name: string }>(db, 'select name from peers join certificates using (serial)')

  await revokeDevice('laptop')
  await caughtUp(projection)
  await checkInvariants(stage, db)
  assert.deepEqual(await peers(), [{ name: 'phone' }])
  assert.deepEqual(await queryRows(db, 'select kind from peer_changes'), [{ kind: 'remove' }])

  const before = await queryRows(db, 'select serial from revocations')
  await db.raw('update projection set ledger_size = 1000')
  await revokeDevice('phone')
  await new Promise((resolve) => setTimeout(resolve, 300))
  assert.equal(projection.lag(), undefined)
  assert.deepEqual(await queryRows(db, 'select serial from revocations'), before)
  assert.deepEqual(await peers(), [{ name: 'phone' }])
  assert.deepEqual(await queryRows(db, `select name from devices where status = 'revoked'`), [{ name: 'laptop' }])
})
