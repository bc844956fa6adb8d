import assert from 'node:assert/strict'
import { createPrivateKey, createPublicKey, generateKeyPairSync } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { ensureAuthorityCertificate } from '../../src/authority/authority-certificate.ts'
import { renew } from '../../src/authority/renew.ts'
import { enroll } from '../../src/authority/enroll.ts'
import { revoke } from '../../src/authority/revoke.ts'
import { applyNetwork } from '../../src/authority/networks.ts'
import { formatPrefix } from '../../src/core/ipam/prefix.ts'
import { readWireGuardKey } from '../../src/core/x509/certpeer-extensions.ts'
import {
  ADMIN,
  enrollDevice,
  enrollmentRequest,
  newKeys,
  newNetworkStage,
  newToken,
  renewalRequest,
  renewDevice,
  settings,
} from './support.ts'

const DEVICE = { kind: 'device', name: 'laptop', tenant: 'red' } as const

test('a renewal keeps identity and tunnel addresses, and notBefore rises every time', async (t) => {
  const stage = await newNetworkStage(t)
  let current = await enrollDevice(stage, 'laptop')
  const { identity } = current.answer
  const addresses = current.certificate.addressBlocks?.map(formatPrefix)
  for (let round = 0; round < 5; round++) {
    const next = await renewDevice(stage, current)
    assert.equal(next.answer.identity, identity)
    assert.deepEqual(next.certificate.addressBlocks?.map(formatPrefix), addresses)
    assert.ok(next.certificate.notBefore > current.certificate.notBefore)
    current = next
  }
  await stage.restart()
  const next = await renewDevice(stage, current)
  assert.deepEqual(next.certificate.addressBlocks?.map(formatPrefix), addresses)
})

test('the same renewal again gives the same certificate, also after a restart', async (t) => {
  const stage = await newNetworkStage(t)
  const request = await renewalRequest(stage, await enrollDevice(stage, 'laptop'))
  const first = await renew(stage.authority, request)
  assert.deepEqual(await renew(stage.authority, request), first)
  await stage.restart()
  assert.deepEqual(await renew(stage.authority, request), first)
})

test('both keys may change, the WireGuard key with proof', async (t) => {
  const stage = await newNetworkStage(t)
  const before = await enrollDevice(stage, 'laptop')
  const keys = newKeys()
  const after = await renewDevice(stage, before, { newKeys: keys })
  assert.equal(readWireGuardKey(after.certificate, stage.authority.oids).key, keys.wireGuard)
  // The old key is not free: a certificate that carries it is in force.
  await assert.rejects(enrollDevice(stage, 'other', before.keys), { code: 'key_conflict' })
})

test('after expiry a certificate is renewed for as long as the network allows', async (t) => {
  const stage = await newNetworkStage(
    t,
    { renewAfterExpirySeconds: 3600, quarantineSeconds: 7200 },
    { lifetimes: { device: 60 } },
  )
  const first = await enrollDevice(stage, 'laptop')
  stage.clock.advance(60 + 3600)
  const second = await renewDevice(stage, first)
  assert.deepEqual(second.certificate.addressBlocks, first.certificate.addressBlocks)
  stage.clock.advance(60 + 3601)
  await assert.rejects(renewDevice(stage, second), { code: 'certificate_expired' })
})

for (const seconds of [30, 60, 300, 86_400]) {
  test(`a certificate of ${seconds} s is not born in the last third of its life`, async (t) => {
    const stage = await newNetworkStage(t, {}, { lifetimes: { device: seconds } })
    const { certificate } = await enrollDevice(stage, 'laptop')
    const now = stage.clock.now().getTime()
    const lifeMs = certificate.notAfter.getTime() - certificate.notBefore.getTime()
    const share = (now - certificate.notBefore.getTime()) / lifeMs
    assert.ok(share >= 0 && share < 0.1, `${share} of it are over`)
    assert.equal(certificate.notAfter.getTime() - now, seconds * 1000)
  })
}

test('an address that went to another after quarantine is replaced, not shared', async (t) => {
  const stage = await newNetworkStage(
    t,
    { pools: ['10.1.0.0/29'], quarantineSeconds: 0 },
    { lifetimes: { device: 60 } },
  )
  const first = await enrollDevice(stage, 'laptop')
  stage.clock.advance(120)
  stage.authority.state.sweep(stage.clock.now())
  for (let at = 0; at < 6; at++) {
    const other = await enrollDevice(stage, `d${at}`)
    const taken = other.certificate.addressBlocks?.map(formatPrefix)[0]
    if (taken !== first.certificate.addressBlocks?.map(formatPrefix)[0]) continue
  }
  await assert.rejects(renewDevice(stage, first), { code: 'pool_exhausted' })
  stage.clock.advance(120)
  const again = await renewDevice(stage, first)
  assert.equal(again.answer.identity, first.answer.identity)
})

test('revoked by serial or by identity: no renewal, also after a restart and after expiry', async (t) => {
  const stage = await newNetworkStage(t)
  const bySerial = await enrollDevice(stage, 'laptop')
  await revoke(stage.authority, ADMIN, {
    target: { kind: 'serial', serial: bySerial.answer.serial },
    reason: 'keyCompromise',
  })
  await assert.rejects(renewDevice(stage, bySerial), { code: 'certificate_revoked' })
  const other = await enrollDevice(stage, 'phone')
  await revoke(stage.authority, ADMIN, { target: { ...DEVICE, name: 'phone' }, reason: 'keyCompromise' })
  await assert.rejects(renewDevice(stage, other), { code: 'identity_revoked' })
  await stage.restart()
  stage.clock.advance(100_000)
  stage.authority.state.sweep(stage.clock.now())
  await assert.rejects(renewDevice(stage, bySerial), { code: 'certificate_revoked' })
  await assert.rejects(renewDevice(stage, other), { code: 'identity_revoked' })
})

test('a renewal and a revocation at once: nothing of the identity is left in force', async (t) => {
  const stage = await newNetworkStage(t)
  const enrolled = await enrollDevice(stage, 'laptop')
  for (const order of ['renewal first', 'revocation first']) {
    const device = order === 'renewal first' ? enrolled : await enrollDevice(stage, 'laptop')
    const request = await renewalRequest(stage, device)
    const work = [
      () => renew(stage.authority, request),
      () => revoke(stage.authority, ADMIN, { target: DEVICE, reason: 'keyCompromise' }),
    ]
    if (order === 'revocation first') work.reverse()
    await Promise.allSettled(work.map((start) => start()))
    const identity = stage.authority.state.identities.get(device.answer.identity)
    assert.ok(identity?.blocked, order)
    assert.equal(identity.live.size, 0, order)
  }
})

test('a certificate whose revocation is being written renews nothing past it', async (t) => {
  const stage = await newNetworkStage(t)
  const device = await enrollDevice(stage, 'laptop')
  const request = await renewalRequest(stage, device)
  const target = { kind: 'serial', serial: device.answer.serial } as const
  const revoked = revoke(stage.authority, ADMIN, { target, reason: 'keyCompromise' })
  await assert.rejects(renew(stage.authority, request), { code: 'identity_revoked' })
  await revoked
  assert.equal(stage.authority.state.identities.get(device.answer.identity)?.live.size, 0)
})

test('a replacement and a revocation by name at once: neither the old nor the new one is left in force', async (t) => {
  const stage = await newNetworkStage(t)
  await enrollDevice(stage, 'laptop')
  const token = await newToken(stage, { name: 'laptop', replace: true })
  const request = await enrollmentRequest(stage, token, newKeys())
  const enrolled = enroll(stage.authority, request)
  const answer = await revoke(stage.authority, ADMIN, { target: DEVICE, reason: 'keyCompromise' })
  assert.equal((await enrolled).identity, answer.identity)
  for (const identity of stage.authority.state.identities.values()) {
    if (identity.role === 'device') assert.equal(identity.live.size, 0)
  }
})

const REFUSALS: { name: string; code: string; options: Parameters<typeof renewalRequest>[2] }[] = [
  {
    name: 'another key signs',
    code: 'bad_renewal_proof',
    options: { signer: generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey },
  },
  { name: 'the proof is for another profile', code: 'bad_renewal_proof', options: { profile: 'gateway' } },
  { name: 'no possession', code: 'bad_possession_proof', options: { withoutPossession: true } },
  { name: "another's WireGuard key", code: 'bad_possession_proof', options: { claimedKey: newKeys().wireGuard } },
  {
    name: 'no WireGuard key',
    code: 'bad_renewal_proof',
    options: { withoutWireGuard: true, withoutPossession: true, profile: 'x' },
  },
]
for (const { name, code, options } of REFUSALS) {
  test(`renew: ${name} is refused with ${code}`, async (t) => {
    const stage = await newNetworkStage(t)
    const enrolled = await enrollDevice(stage, 'laptop')
    const size = stage.authority.state.certificates.size
    await assert.rejects(renewDevice(stage, enrolled, options), { code })
    assert.equal(stage.authority.state.certificates.size, size)
  })
}

test('renew: a challenge serves once', async (t) => {
  const stage = await newNetworkStage(t)
  const enrolled = await enrollDevice(stage, 'laptop')
  const bad = await renewalRequest(stage, enrolled, { withoutPossession: true })
  await assert.rejects(renew(stage.authority, bad), { code: 'bad_possession_proof' })
  await assert.rejects(renew(stage.authority, bad), { code: 'challenge_unknown' })
})

test('a gateway that enrolls anew cannot be brought back by its older certificate', async (t) => {
  const stage = await newNetworkStage(t)
  const keys = newKeys()
  const token = await newToken(stage, { name: 'edge', role: 'gateway' })
  const answer = await enroll(stage.authority, await enrollmentRequest(stage, token, keys))
  const { certificateOf } = await import('./support.ts')
  const old = { certificate: certificateOf(answer), keys }
  await revoke(stage.authority, ADMIN, { target: { kind: 'gateway', name: 'edge' }, reason: 'superseded' })
  const again = await newToken(stage, { name: 'edge', role: 'gateway' })
  const second = await enroll(stage.authority, await enrollmentRequest(stage, again, newKeys()))
  assert.equal(second.identity, answer.identity)
  await assert.rejects(renewDevice(stage, old, { profile: 'gateway' }), { code: 'certificate_revoked' })
  assert.ok(certificateOf(second).notBefore > old.certificate.notBefore)
})

test('a larger pool, applied while devices live, keeps their addresses', async (t) => {
  const stage = await newNetworkStage(t, { pools: ['10.1.0.0/24'] })
  const enrolled = await enrollDevice(stage, 'laptop')
  const applied = await applyNetwork(stage.authority, ADMIN, settings('red', { pools: ['10.1.0.0/16'] }))
  assert.equal(applied.number, 2)
  assert.deepEqual(await applyNetwork(stage.authority, ADMIN, settings('red', { pools: ['10.1.0.0/16'] })), applied)
  const renewed = await renewDevice(stage, enrolled)
  assert.deepEqual(renewed.certificate.addressBlocks, enrolled.certificate.addressBlocks)
  const other = await enrollDevice(stage, 'phone')
  assert.notDeepEqual(other.certificate.addressBlocks?.[0], enrolled.certificate.addressBlocks?.[0])
})

test('a key that a renewal left behind renews nothing; the newest key does, also with an older certificate', async (t) => {
  const stage = await newNetworkStage(t)
  const first = await enrollDevice(stage, 'laptop')
  const second = await renewDevice(stage, first, { newKeys: newKeys() })
  const third = await renewDevice(stage, second, { newKeys: newKeys() })
  await assert.rejects(renewDevice(stage, first), { code: 'older_certificate' })
  await stage.restart()
  await assert.rejects(renewDevice(stage, first), { code: 'older_certificate' })
  const fourth = await renewDevice(stage, third)
  // What a backup of the directory holds: yesterday's certificate, today's key.
  const fifth = await renewDevice(stage, third)
  assert.ok(fifth.certificate.notBefore > fourth.certificate.notBefore)
  await assert.rejects(renewDevice(stage, second), { code: 'older_certificate' })
})

test('answers that were lost cost nobody the identity', async (t) => {
  const stage = await newNetworkStage(t, {}, { lifetimes: { device: 60 } })
  const first = await enrollDevice(stage, 'laptop')
  const lost = await renewDevice(stage, first, { newKeys: newKeys() })
  const late = await renewDevice(stage, first, { newKeys: newKeys() })
  // The one that was thought lost came after all, and was kept.
  await renewDevice(stage, lost)
  await assert.rejects(renewDevice(stage, late), { code: 'older_certificate' })
  // Long after its end, when its record is forgotten, the one before the newest still counts.
  const phone = await enrollDevice(stage, 'phone')
  await renewDevice(stage, phone, { newKeys: newKeys() })
  stage.clock.advance(7200)
  stage.authority.state.sweep(stage.clock.now())
  assert.equal(stage.authority.state.certificates.has(phone.certificate.serial), false)
  await renewDevice(stage, phone, { newKeys: newKeys() })
})

test("the authority's own certificate is renewed by the authority alone", async (t) => {
  const stage = await newNetworkStage(t)
  const { certificate } = await ensureAuthorityCertificate(stage.authority)
  const privateKey = createPrivateKey(readFileSync(join(stage.dir, 'keys', 'authority.key')))
  const keys = { ...newKeys(), tls: { privateKey, publicKey: createPublicKey(privateKey) } }
  const stolen = { certificate, keys }
  const options = { profile: 'authority', withoutWireGuard: true, newKeys: newKeys() }
  await assert.rejects(renewDevice(stage, stolen, options), { code: 'bad_client_certificate' })
})
