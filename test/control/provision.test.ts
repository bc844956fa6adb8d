import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createIssuers } from '../../src/control/issuers.ts'
import { createPrincipals, requireDevice } from '../../src/control/principal.ts'
import type { DevicePrincipal, Principals } from '../../src/control/principal.ts'
import { createProvisioner } from '../../src/control/provision.ts'
import { createRevocations } from '../../src/control/revocations.ts'
import { sweepExpiredPeers, sweepOldChanges } from '../../src/control/sweep.ts'
import { CertpeerError } from '../../src/core/errors.ts'
import type { Certificate } from '../../src/core/x509/certificate.ts'
import { openDatabase } from '../../src/platform/db/connection.ts'
import { silentLogger } from '../../src/platform/log.ts'
import { OIDS, TRUST_DOMAIN } from '../support/certificates.ts'
import { Stage, newWireGuardKey } from './stage.ts'

function principalsOf(stage: Stage): Principals {
  const issuers = createIssuers(stage.root.certificate, OIDS)
  const revocations = createRevocations(issuers)
  for (const ca of [stage.deviceCa, stage.otherCa, stage.infrastructureCa]) issuers.offer(ca.certificate.der, stage.now)
  for (const ca of [stage.root, stage.deviceCa, stage.otherCa, stage.infrastructureCa]) {
    revocations.accept(stage.crl(ca).der, stage.now)
  }
  return createPrincipals({ issuers, revocations, oids: OIDS, trustDomain: TRUST_DOMAIN, now: stage.clock })
}

describe('provision', () => {
  test('a peer is set once, and the same certificate again makes no new revision', async () => {
    await using stage = await Stage.create()
    const as = asPrincipal(stage)
    const provisioner = createProvisioner(stage.db)
    const laptop = as(stage.device(2))
    assert.deepEqual(await provisioner.put(laptop), { revision: 1, changed: true })
    assert.deepEqual(await provisioner.put(laptop), { revision: 1, changed: false })
    assert.deepEqual(await provisioner.put(as(stage.device(3))), { revision: 2, changed: true })
    assert.deepEqual(await provisioner.put(laptop), { revision: 1, changed: false })
    await stage.checkInvariants()
    assert.equal((await stage.rows('select 1 from peer_changes')).length, 2)
  })

  test('a newer certificate replaces, an older one is refused and changes nothing', async () => {
    await using stage = await Stage.create()
    const as = asPrincipal(stage)
    const provisioner = createProvisioner(stage.db)
    const old = as(stage.device(2, { notBefore: stage.later(-200_000) }))
    const renewed = as(stage.device(2, { notBefore: stage.later(-100_000) }))
    await provisioner.put(old)
    assert.deepEqual(await provisioner.put(renewed), { revision: 2, changed: true })
    await assert.rejects(provisioner.put(old), { code: 'older_certificate' })
    const peers = await stage.rows<{ serial: string; revision: string }>('select serial, revision from peers')
    assert.deepEqual(peers, [{ serial: renewed.device.serial, revision: '2' }])
    await stage.checkInvariants()
  })

  test('one bad row never fails its neighbours in the batch', async () => {
    await using stage = await Stage.create()
    const as = asPrincipal(stage)
    const provisioner = createProvisioner(stage.db)
    const revoked = stage.device(2)
    await stage.projectRevocation([revoked])
    const key = newWireGuardKey()
    const holder = as(stage.device(3, { key }))
    await provisioner.put(holder)
    const elsewhere = as(stage.device(9, { network: 'unknown' }))
    const results = await Promise.allSettled(
      [as(revoked), as(stage.device(4)), as(stage.device(5, { key })), as(stage.device(6)), elsewhere].map(
        (principal) => provisioner.put(principal),
      ),
    )
    assert.deepEqual(
      results.map((result) =>
        result.status === 'fulfilled' ? result.value.revision : (result.reason as CertpeerError).code,
      ),
      ['certificate_revoked', 2, 'key_conflict', 3, 'unavailable'],
    )
    await stage.checkInvariants()
  })

  test('a row that PostgreSQL itself refuses fails alone', async () => {
    await using stage = await Stage.create()
    const as = asPrincipal(stage)
    const provisioner = createProvisioner(stage.db)
    const good = [as(stage.device(2)), as(stage.device(3)), as(stage.device(4))]
    const [first, second, third] = good
    assert.ok(first && second && third)
    // No certificate of ours can hold this; what counts is that the neighbours do not pay for it.
    const bad: DevicePrincipal = { ...second, device: { ...second.device, uri: 'spiffe://nul\0byte' } }
    const results = await Promise.allSettled([first, bad, third].map((principal) => provisioner.put(principal)))
    assert.deepEqual(
      results.map((result) => result.status),
      ['fulfilled', 'rejected', 'fulfilled'],
    )
    assert.equal((await stage.rows('select 1 from peers')).length, 2)
    await stage.checkInvariants()
  })

  test('two certificates of one device, and one key of two devices, in the same batch', async () => {
    await using stage = await Stage.create()
    const as = asPrincipal(stage)
    const provisioner = createProvisioner(stage.db)
    const key = newWireGuardKey()
    const older = as(stage.device(2, { notBefore: stage.later(-200_000) }))
    const newer = as(stage.device(2, { notBefore: stage.later(-100_000) }))
    const results = await Promise.allSettled(
      [newer, older, as(stage.device(3, { key })), as(stage.device(4, { key }))].map((p) => provisioner.put(p)),
    )
    assert.deepEqual(
      results.map((result) =>
        result.status === 'fulfilled' ? result.value.revision : (result.reason as CertpeerError).code,
      ),
      [1, 'older_certificate', 2, 'key_conflict'],
    )
    await stage.checkInvariants()
  })

  test('release takes the peer away, and an older certificate does not', async () => {
    await using stage = await Stage.create()
    const as = asPrincipal(stage)
    const provisioner = createProvisioner(stage.db)
    const old = as(stage.device(2, { notBefore: stage.later(-200_000) }))
    const renewed = as(stage.device(2, { notBefore: stage.later(-100_000) }))
    await provisioner.put(renewed)
    assert.deepEqual(await provisioner.release(old), { revision: 1, changed: false })
    assert.equal((await stage.rows('select 1 from peers')).length, 1)
    assert.deepEqual(await provisioner.release(renewed), { revision: 2, changed: true })
    assert.deepEqual(await provisioner.release(renewed), { revision: 2, changed: false })
    assert.equal((await stage.rows('select 1 from peers')).length, 0)
    await stage.checkInvariants()
  })

  test('releases and puts of one batch go together; of one device, in the order of asking', async () => {
    await using stage = await Stage.create()
    const as = asPrincipal(stage)
    const provisioner = createProvisioner(stage.db)
    const [leaving, arriving, wavering, absent] = [2, 3, 4, 5].map((n) => as(stage.device(n)))
    assert.ok(leaving && arriving && wavering && absent)
    await provisioner.put(leaving)
    const answers = await Promise.all([
      provisioner.put(arriving),
      provisioner.put(wavering),
      provisioner.release(absent),
      provisioner.release(leaving),
      provisioner.release(wavering),
      provisioner.put(wavering),
    ])
    assert.deepEqual(answers, [
      { revision: 3, changed: true },
      { revision: 4, changed: true },
      { revision: 1, changed: false },
      { revision: 2, changed: true },
      { revision: 5, changed: true },
      { revision: 6, changed: true },
    ])
    const peers = await stage.rows<{ serial: string }>('select serial from peers order by revision')
    assert.deepEqual(
      peers.map(({ serial }) => serial),
      [arriving.device.serial, wavering.device.serial],
    )
    await stage.checkInvariants()
  })

  test('peers past their end are swept as changes; changes older than seven days are forgotten', async () => {
    await using stage = await Stage.create()
    const as = asPrincipal(stage)
    const provisioner = createProvisioner(stage.db)
    await provisioner.put(as(stage.device(2, { notAfter: stage.later(60_000) })))
    await provisioner.put(as(stage.device(3)))
    assert.equal(await sweepExpiredPeers(stage.db, stage.clock), 0)
    stage.now = stage.later(60_000)
    assert.equal(await sweepExpiredPeers(stage.db, stage.clock), 1)
    await stage.checkInvariants()
    const left = await stage.rows<{ identity: string }>('select identity from peers')
    assert.deepEqual(
      left.map((row) => row.identity.split('/').at(-1)),
      ['d3'],
    )
    assert.equal(await sweepOldChanges(stage.db, () => new Date()), 0)
    assert.equal(await sweepOldChanges(stage.db, () => new Date(Date.now() + 8 * 86_400_000)), 3)
  })

  test('several writers, a revoker and a sweep at once: no skipped revision, no deadlock, nothing revoked left', async () => {
    await using stage = await Stage.create()
    await stage.projectNetwork('default', 'second')
    const as = asPrincipal(stage)
    const writers = [1, 2, 3].map(() => openDatabase({ url: stage.database.serverUrl, log: silentLogger(), max: 3 }))
    const certificates = Array.from({ length: 120 }, (_, index) =>
      stage.device(index + 2, { network: index % 3 === 0 ? 'second' : 'default' }),
    )
    const principals = certificates.map(as)
    const errors: unknown[] = []
    const codes = new Set<string>()
    try {
      const writing = writers.map(async (db, writer) => {
        const provisioner = createProvisioner(db)
        for (let round = 0; round < 4; round += 1) {
          const asked = principals.filter((_, index) => (index + round) % 3 !== writer)
          await Promise.all(
            asked.map(async (principal, index) => {
              try {
                if ((index + round) % 11 === 0) await provisioner.release(principal)
                else await provisioner.put(principal)
              } catch (error) {
                if (error instanceof CertpeerError && error.code === 'certificate_revoked') codes.add(error.code)
                else errors.push(error)
              }
            }),
          )
        }
      })
      const revoking = (async () => {
        for (const [index, certificate] of certificates.entries()) {
          if (index % 2 === 0)
            await stage.projectRevocation([certificate], `default/${index % 3 === 0 ? 'second' : 'default'}`)
        }
      })()
      const sweeping = (async () => {
        for (let round = 0; round < 20; round += 1) await sweepExpiredPeers(stage.db, stage.clock)
      })()
      await Promise.all([...writing, revoking, sweeping])
    } finally {
      await Promise.all(writers.map((db) => db.destroy()))
    }
    assert.deepEqual(errors, [])
    assert.deepEqual([...codes], ['certificate_revoked'])
    await stage.checkInvariants()
    const live = await stage.rows<{ serial: string }>('select serial from peers')
    const revoked = new Set<string>(certificates.filter((_, index) => index % 2 === 0).map((c) => c.serial))
    assert.deepEqual(
      live.filter((row) => revoked.has(row.serial)),
      [],
    )
    assert.ok(live.length > 0)
  })
})

function asPrincipal(stage: Stage): (certificate: Certificate) => DevicePrincipal {
  const principals = principalsOf(stage)
  return (certificate) => requireDevice(principals.authenticate(certificate.der))
}
