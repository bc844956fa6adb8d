import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ensureAuthorityCertificate } from '../../src/authority/authority-certificate.ts'
import { enroll } from '../../src/authority/enroll.ts'
import { applyNetwork } from '../../src/authority/networks.ts'
import { revoke } from '../../src/authority/revoke.ts'
import { formatPrefix } from '../../src/core/ipam/prefix.ts'
import { requireNotOlder, verifyNetworkDocument } from '../../src/core/messages/network-document.ts'
import {
  ADMIN,
  certificateOf,
  enrollDevice,
  enrollmentRequest,
  newKeys,
  newNetworkStage,
  newToken,
  renewDevice,
  settings,
  type Stage,
} from './support.ts'

function verify(stage: Stage, jws: string, now = stage.clock.now()) {
  const { root, oids, trustDomain } = stage.authority
  return verifyNetworkDocument({ jws, root, oids, trustDomain, now })
}

function addressOf(answer: { certificate: string }): string | undefined {
  return certificateOf({ ...answer } as Parameters<typeof certificateOf>[0]).addressBlocks?.map(formatPrefix)[0]
}

test('the next document is never issued before the one in force, though the clock went back', async (t) => {
  const stage = await newNetworkStage(t)
  const before = stage.authority.state.networks.get('red/lan')
  assert.ok(before)
  stage.clock.advance(-120)
  const { jws } = await applyNetwork(stage.authority, ADMIN, settings('red', { mtu: 1400 }))
  assert.equal(requireNotOlder(verify(stage, before.jws), verify(stage, jws)), 'newer')
})

test('a document whose signer was revoked is signed anew when it is applied again', async (t) => {
  const stage = await newNetworkStage(t)
  const { certificate } = await ensureAuthorityCertificate(stage.authority)
  const target = { kind: 'serial', serial: certificate.serial } as const
  await revoke(stage.authority, ADMIN, { target, reason: 'keyCompromise' })
  const { number, jws } = await applyNetwork(stage.authority, ADMIN, settings('red'))
  assert.equal(number, 2)
  assert.notEqual(verify(stage, jws).signer.certificate.serial, certificate.serial)
})

test('what a pool gave away before it shrank goes to no other network until it is free', async (t) => {
  const stage = await newNetworkStage(
    t,
    { pools: ['10.1.0.0/24'], quarantineSeconds: 600 },
    { lifetimes: { device: 60 } },
  )
  const held = await enrollDevice(stage, 'laptop')
  assert.equal(addressOf(held.answer), '10.1.0.1/32')
  await applyNetwork(stage.authority, ADMIN, settings('red', { pools: ['10.1.1.0/24'] }))
  const other = { network: 'other', pools: ['10.1.0.0/24'], keyPrefix: 'fd01:0:0:1::/64' }
  const apply = () => applyNetwork(stage.authority, ADMIN, settings('red', other))
  await assert.rejects(apply(), { code: 'network_document_invalid', message: /10\.1\.0\.1\/32.*red\/lan/ })
  await stage.restart()
  await assert.rejects(apply(), { code: 'network_document_invalid' })
  // A renewal moves into the new pool; the old address stays held to the end of its quarantine.
  assert.equal(addressOf((await renewDevice(stage, held)).answer), '10.1.1.1/32')
  await assert.rejects(apply(), { code: 'network_document_invalid' })
  stage.clock.advance(661)
  await apply()
})

test('an address that a request has taken while its pool moves away is held all the same', async (t) => {
  const stage = await newNetworkStage(t, { pools: ['10.1.0.0/24'] })
  const request = await enrollmentRequest(stage, await newToken(stage, { name: 'laptop' }), newKeys())
  await ensureAuthorityCertificate(stage.authority)
  // Both are written in one group, the document first.
  const applied = applyNetwork(stage.authority, ADMIN, settings('red', { pools: ['10.1.1.0/24'] }))
  const entries: Promise<unknown>[] = []
  const commit = stage.authority.commit.bind(stage.authority)
  let enrolled: ReturnType<typeof enroll> | undefined
  stage.authority = Object.assign(stage.authority, {
    commit: (entry: Parameters<typeof commit>[0]) => {
      if (entry.kind !== 'network' || enrolled) return commit(entry)
      // It decides before the document is in force and is written after it.
      const written = commit(entry)
      enrolled = enroll(stage.authority, request)
      entries.push(enrolled)
      return written
    },
  })
  await applied
  assert.ok(enrolled)
  const address = addressOf(await enrolled)
  assert.equal(address, '10.1.0.1/32')
  const hold = () => stage.authority.state.networks.get('red/lan')?.holds.get(address)?.until
  assert.ok(hold() !== undefined)
  const before = hold()
  await stage.restart()
  assert.equal(hold(), before)
  await applyNetwork(stage.authority, ADMIN, settings('red', { pools: ['10.1.0.0/16'] }))
  assert.notEqual(addressOf((await enrollDevice(stage, 'phone')).answer), address)
})

test('no document may leave a gateway without a certificate that could hold what it serves', async (t) => {
  const stage = await newNetworkStage(t, { pools: ['10.1.0.0/24'] })
  const other = { network: 'other', pools: ['10.1.3.0/24'], keyPrefix: 'fd01:0:0:1::/64' }
  await applyNetwork(stage.authority, ADMIN, settings('red', other))
  const keys = newKeys()
  const token = await newToken(stage, { name: 'edge', role: 'gateway', networks: ['lan', 'other'] })
  const answer = await enroll(stage.authority, await enrollmentRequest(stage, token, keys))
  await applyNetwork(stage.authority, ADMIN, settings('red', { pools: ['10.1.0.0/24'], routes: ['10.1.2.0/25'] }))
  // Alone it would do; beside 10.1.3.0/24 it would take a range, which address blocks do not hold.
  const bad = settings('red', { pools: ['10.1.0.0/24'], routes: ['10.1.2.128/25'] })
  await assert.rejects(applyNetwork(stage.authority, ADMIN, bad), {
    code: 'network_document_invalid',
    message: /gateway edge/,
  })
  await renewDevice(stage, { certificate: certificateOf(answer), keys }, { profile: 'gateway' })
})
