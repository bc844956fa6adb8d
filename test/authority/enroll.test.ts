import assert from 'node:assert/strict'
import { createHmac, randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { enroll } from '../../src/authority/enroll.ts'
import type { FaultPlan } from './ledger/support.ts'
import { faultyOpen } from './ledger/support.ts'
import { revoke } from '../../src/authority/revoke.ts'
import { applyNetwork } from '../../src/authority/networks.ts'
import type { EnrollRequest } from '../../src/core/messages/enrollment.ts'
import { parseToken, tokenSecret } from '../../src/core/messages/token.ts'
import { formatPrefix } from '../../src/core/ipam/prefix.ts'
import { isKeyAddressOf } from '../../src/core/ipam/key-address.ts'
import { parseCertificate } from '../../src/core/x509/certificate.ts'
import { pemToDer } from '../../src/core/x509/pem.ts'
import { readDevice, readGateway, verifyCertificate } from '../../src/core/x509/path.ts'
import type { WireGuardKey } from '../../src/core/wireguard/key.ts'
import {
  ADMIN,
  certificateOf,
  enrollDevice,
  enrollmentRequest,
  newKeys,
  newNetworkStage,
  newToken,
  settings,
  type Stage,
} from './support.ts'

function verified(stage: Stage, pem: string) {
  return verifyCertificate({
    certificate: parseCertificate(pemToDer(pem)),
    issuers: stage.authority.issuers.map((issuer) => issuer.certificate),
    root: stage.authority.root,
    now: stage.clock.now(),
    oids: stage.authority.oids,
    trustDomain: stage.authority.trustDomain,
  })
}

/** Rejects with the code, and issues nothing: no certificate more, no identity more, nothing left reserved. */
async function refused(stage: Stage, request: EnrollRequest, code: string): Promise<void> {
  const { state, reservations } = stage.authority
  const before = [state.certificates.size, state.identities.size, state.keys.size]
  await assert.rejects(enroll(stage.authority, request), { code })
  assert.deepEqual([state.certificates.size, state.identities.size, state.keys.size], before)
  assert.deepEqual(
    [reservations.keys.size, reservations.names.length, reservations.identities.size, reservations.tokens.size],
    [0, 0, 0, 0],
  )
  for (const network of state.networks.values()) assert.equal(network.pending.size, 0)
}

test('a device enrolls and gets what its token, its key and its network say, and nothing else', async (t) => {
  const stage = await newNetworkStage(t)
  const keys = newKeys()
  const token = await newToken(stage, { name: 'laptop', groups: ['staff'] })
  const answer = await enroll(stage.authority, await enrollmentRequest(stage, token, keys))
  const device = readDevice(verified(stage, answer.certificate), stage.authority.oids)
  assert.equal(device.tenant, 'red')
  assert.equal(device.network, 'lan')
  assert.equal(device.key, keys.wireGuard)
  assert.equal(device.possession, true)
  assert.deepEqual(device.groups, ['staff'])
  assert.deepEqual(device.addresses.map(formatPrefix), ['10.1.0.1/32', 'fd01:0:0:1::1/128'])
  assert.ok(isKeyAddressOf(device.keyAddress, keys.wireGuard))
  assert.equal(answer.networkDocuments.length, 1)
})

test('the same token with the same CSR gives the same certificate again, also after a restart', async (t) => {
  const stage = await newNetworkStage(t)
  const request = await enrollmentRequest(stage, await newToken(stage, { name: 'laptop' }), newKeys())
  const first = await enroll(stage.authority, request)
  assert.deepEqual(await enroll(stage.authority, request), first)
  await stage.restart()
  assert.deepEqual(await enroll(stage.authority, request), first)
  assert.equal(stage.authority.state.identities.size, 2) // the device and the authority itself
})

test('two at once with one request share one certificate', async (t) => {
  const stage = await newNetworkStage(t)
  const request = await enrollmentRequest(stage, await newToken(stage, { name: 'laptop' }), newKeys())
  const [a, b] = await Promise.all([enroll(stage.authority, request), enroll(stage.authority, request)])
  assert.deepEqual(a, b)
})

test('a token used a second time with another CSR is refused and alarms once', async (t) => {
  const stage = await newNetworkStage(t)
  const token = await newToken(stage, { name: 'laptop' })
  await enroll(stage.authority, await enrollmentRequest(stage, token, newKeys()))
  await refused(stage, await enrollmentRequest(stage, token, newKeys()), 'token_used')
  await refused(stage, await enrollmentRequest(stage, token, newKeys()), 'token_used')
  await stage.restart()
  assert.equal(countAlarms(stage), 1)
  await refused(stage, await enrollmentRequest(stage, token, newKeys()), 'token_used')
})

function countAlarms(stage: Stage): number {
  const entries = stage.authority.ledger.read(0, 1000)
  return entries.filter(({ payload }) => payload.toString().includes('"token-alarm"')).length
}

test('only who has the token itself raises its alarm: not the claims alone, nor a request seen before', async (t) => {
  const stage = await newNetworkStage(t)
  const token = await newToken(stage, { name: 'laptop' })
  const spent = await enrollmentRequest(stage, token, newKeys())
  await enroll(stage.authority, spent)
  const other = await enrollmentRequest(stage, token, newKeys())
  await refused(stage, { ...other, mac: randomBytes(32).toString('base64url') }, 'token_invalid')
  await refused(stage, { ...other, mac: spent.mac, challenge: spent.challenge }, 'challenge_unknown')
  await stage.restart()
  assert.equal(countAlarms(stage), 0)
  // The token without a key that could be proven is a stolen token all the same.
  await refused(stage, await enrollmentRequest(stage, token, newKeys(), { withoutWireGuard: true }), 'token_used')
  await stage.restart()
  assert.equal(countAlarms(stage), 1)
})

test('two at once with one token: one wins', async (t) => {
  const stage = await newNetworkStage(t)
  const token = await newToken(stage, { name: 'laptop' })
  const requests = [await enrollmentRequest(stage, token, newKeys()), await enrollmentRequest(stage, token, newKeys())]
  const results = await Promise.allSettled(requests.map((request) => enroll(stage.authority, request)))
  assert.deepEqual(results.map((result) => result.status).sort(), ['fulfilled', 'rejected'])
})

const ATTACKS: {
  name: string
  code: string
  request: (stage: Stage) => Promise<EnrollRequest>
}[] = [
  {
    name: 'a challenge that was used',
    code: 'challenge_unknown',
    request: async (stage) => {
      const spent = await enrollmentRequest(stage, await newToken(stage, { name: 'one' }), newKeys())
      await assert.rejects(enroll(stage.authority, { ...spent, mac: randomBytes(32).toString('base64url') }), {
        code: 'token_invalid',
      })
      return spent // the right proof comes too late: a wrong guess cannot be repeated
    },
  },
  {
    name: 'a challenge past its 120 seconds',
    code: 'challenge_unknown',
    request: async (stage) => {
      const request = await enrollmentRequest(stage, await newToken(stage, { name: 'one' }), newKeys())
      stage.clock.advance(121)
      return request
    },
  },
  {
    name: "another credential's challenge",
    code: 'challenge_unknown',
    request: async (stage) => {
      const token = await newToken(stage, { name: 'one' })
      const other = await enrollmentRequest(stage, await newToken(stage, { name: 'two' }), newKeys())
      return { ...(await enrollmentRequest(stage, token, newKeys())), challenge: other.challenge }
    },
  },
  {
    name: 'a token that expired',
    code: 'token_expired',
    request: async (stage) => {
      const token = await newToken(stage, { name: 'one', ttlSeconds: 60 })
      stage.clock.advance(60)
      return enrollmentRequest(stage, token, newKeys())
    },
  },
  {
    name: 'claims that were changed',
    code: 'token_invalid',
    request: async (stage) => {
      const { claims, secret } = parseToken(await newToken(stage, { name: 'one' }))
      const segment = Buffer.from(JSON.stringify({ ...claims, groups: ['admins'] })).toString('base64url')
      return enrollmentRequest(stage, `cpt1.${segment}.${secret.toString('base64url')}`, newKeys())
    },
  },
  {
    name: 'claims made with a stolen token key',
    code: 'token_invalid',
    request: async (stage) => {
      const { claims } = parseToken(await newToken(stage, { name: 'one' }))
      const forged = { ...claims, jti: randomBytes(16).toString('base64url'), name: 'intruder' }
      const segment = Buffer.from(JSON.stringify(forged)).toString('base64url')
      const secret = tokenSecret(stage.authority.tokenKey, segment)
      return enrollmentRequest(stage, `cpt1.${segment}.${secret.toString('base64url')}`, newKeys())
    },
  },
  {
    name: 'the claims without the secret',
    code: 'token_invalid',
    request: async (stage) => {
      const { segment } = parseToken(await newToken(stage, { name: 'one' }))
      const guess = createHmac('sha256', 'guess').digest('base64url')
      return enrollmentRequest(stage, `cpt1.${segment}.${guess}`, newKeys())
    },
  },
  {
    name: "another's public key, proven with one's own",
    code: 'bad_possession_proof',
    request: async (stage) =>
      enrollmentRequest(stage, await newToken(stage, { name: 'one' }), newKeys(), { claimedKey: newKeys().wireGuard }),
  },
  {
    name: 'no proof of possession',
    code: 'bad_possession_proof',
    request: async (stage) =>
      enrollmentRequest(stage, await newToken(stage, { name: 'one' }), newKeys(), { withoutPossession: true }),
  },
  {
    name: 'no WireGuard key',
    code: 'bad_wireguard_key',
    request: async (stage) =>
      enrollmentRequest(stage, await newToken(stage, { name: 'one' }), newKeys(), { withoutWireGuard: true }),
  },
  {
    name: 'a key of low order',
    code: 'bad_wireguard_key',
    request: async (stage) =>
      enrollmentRequest(stage, await newToken(stage, { name: 'one' }), newKeys(), {
        claimedKey: Buffer.alloc(32).toString('base64') as WireGuardKey,
      }),
  },
  {
    name: 'a key that another device holds',
    code: 'key_conflict',
    request: async (stage) => {
      const { keys } = await enrollDevice(stage, 'first')
      return enrollmentRequest(stage, await newToken(stage, { name: 'one' }), { ...newKeys(), ...keys })
    },
  },
  {
    name: "the bit-255 alias of another device's key",
    code: 'bad_wireguard_key',
    request: async (stage) => {
      const { keys } = await enrollDevice(stage, 'first')
      const alias = Buffer.from(keys.wireGuard, 'base64')
      alias[31] = (alias[31] ?? 0) | 0x80
      return enrollmentRequest(stage, await newToken(stage, { name: 'one' }), newKeys(), {
        claimedKey: alias.toString('base64') as WireGuardKey,
      })
    },
  },
  {
    name: 'a name that is live, without --replace',
    code: 'identity_live',
    request: async (stage) => {
      const second = await newToken(stage, { name: 'one' })
      await enrollDevice(stage, 'one')
      return enrollmentRequest(stage, second, newKeys())
    },
  },
  {
    name: 'a token from before its device was revoked',
    code: 'identity_revoked',
    request: async (stage) => {
      const second = await newToken(stage, { name: 'one' })
      await enrollDevice(stage, 'one')
      await revoke(stage.authority, ADMIN, {
        target: { kind: 'device', name: 'one', tenant: 'red' },
        reason: 'keyCompromise',
      })
      return enrollmentRequest(stage, second, newKeys())
    },
  },
]
for (const attack of ATTACKS) {
  test(`enroll: ${attack.name} is refused with ${attack.code}`, async (t) => {
    const stage = await newNetworkStage(t)
    let request: EnrollRequest
    try {
      request = await attack.request(stage)
    } catch (error) {
      // A key that cannot even be written into a CSR by our own tool.
      assert.equal((error as { code?: string }).code, attack.code)
      return
    }
    await refused(stage, request, attack.code)
  })
}

test('a token of one tenant cannot reach the network of another', async (t) => {
  const stage = await newNetworkStage(t)
  await applyNetwork(stage.authority, ADMIN, settings('blue'))
  const blue = await newToken(stage, { name: 'one', tenant: 'blue' })
  const answer = await enroll(stage.authority, await enrollmentRequest(stage, blue, newKeys()))
  assert.match(answer.identity, /^spiffe:\/\/blue\.certpeer\.internal\/network\/lan\/device\//)
  assert.deepEqual(certificateOf(answer).addressBlocks?.map(formatPrefix)[0], '10.3.0.1/32')
  await assert.rejects(newToken(stage, { name: 'two', tenant: 'green' }), { code: 'not_found' })
})

test('--replace: the old identity is revoked in the same entry, its key may be taken over with proof', async (t) => {
  const stage = await newNetworkStage(t)
  const old = await enrollDevice(stage, 'laptop')
  const token = await newToken(stage, { name: 'laptop', replace: true })
  const answer = await enroll(stage.authority, await enrollmentRequest(stage, token, old.keys))
  assert.notEqual(answer.identity, old.answer.identity)
  const { state } = stage.authority
  assert.equal(state.identities.get(old.answer.identity)?.blocked?.reason, 'superseded')
  assert.ok(state.revocations.has(old.certificate.serial))
  assert.equal(state.keys.get(old.keys.wireGuard)?.uri, answer.identity)
})

test('two at once with one key: one wins, the other conflicts', async (t) => {
  const stage = await newNetworkStage(t)
  const keys = newKeys()
  const requests = [
    await enrollmentRequest(stage, await newToken(stage, { name: 'a' }), keys),
    await enrollmentRequest(stage, await newToken(stage, { name: 'b' }), keys),
  ]
  const results = await Promise.allSettled(requests.map((request) => enroll(stage.authority, request)))
  const reasons = results.flatMap((result) =>
    result.status === 'rejected' ? [(result.reason as { code: string }).code] : [],
  )
  assert.deepEqual(reasons, ['key_conflict'])
})

test('many at once never share an address, and a full pool says so', async (t) => {
  const stage = await newNetworkStage(t, { pools: ['10.1.0.0/28'] })
  const requests = []
  for (let at = 0; at < 16; at++)
    requests.push(await enrollmentRequest(stage, await newToken(stage, { name: `d${at}` }), newKeys()))
  const results = await Promise.allSettled(requests.map((request) => enroll(stage.authority, request)))
  const addresses = results.flatMap((result) =>
    result.status === 'fulfilled'
      ? [formatPrefix(certificateOf(result.value).addressBlocks?.[0] ?? { family: 4, bits: 0n, length: 0 })]
      : [],
  )
  assert.equal(addresses.length, 14)
  assert.equal(new Set(addresses).size, 14)
  const codes = results.flatMap((result) =>
    result.status === 'rejected' ? [(result.reason as { code: string }).code] : [],
  )
  assert.deepEqual(codes, ['pool_exhausted', 'pool_exhausted'])
})

test('an address and a key come back only after the last notAfter and the quarantine', async (t) => {
  const stage = await newNetworkStage(
    t,
    { pools: ['10.1.0.0/30'], quarantineSeconds: 600 },
    { lifetimes: { device: 60 } },
  )
  const [a, b] = [await enrollDevice(stage, 'a'), await enrollDevice(stage, 'b')]
  await revoke(stage.authority, ADMIN, { target: { kind: 'device', name: 'a', tenant: 'red' }, reason: 'unspecified' })
  await assert.rejects(enrollDevice(stage, 'c'), { code: 'pool_exhausted' })
  await assert.rejects(enrollDevice(stage, 'c', a.keys), { code: 'key_conflict' })
  stage.clock.advance(659)
  await stage.restart()
  await assert.rejects(enrollDevice(stage, 'c'), { code: 'pool_exhausted' })
  stage.clock.advance(2)
  const c = await enrollDevice(stage, 'c', a.keys)
  const held = [a, c].map(({ certificate }) => certificate.addressBlocks?.map(formatPrefix)[0])
  assert.equal(held[0], held[1])
  assert.ok(b.answer.serial)
})

test('a gateway gets its tunnel addresses, the prefixes it serves and its networks', async (t) => {
  const stage = await newNetworkStage(t, { routes: [] })
  const token = await newToken(stage, { name: 'edge', role: 'gateway' })
  const answer = await enroll(stage.authority, await enrollmentRequest(stage, token, newKeys()))
  const gateway = readGateway(verified(stage, answer.certificate), stage.authority.oids)
  assert.deepEqual(gateway.servedNetworks, ['red/lan'])
  assert.deepEqual(gateway.tunnelAddresses, ['10.1.0.1', 'fd01:0:0:1::1'])
  assert.deepEqual(gateway.servedPrefixes.map(formatPrefix), ['10.1.0.0/16', 'fd01:0:0:1::/64', 'fd01:0:0:8::/64'])
})

for (const form of ['failed', 'done but reported failed'] as const) {
  test(`fsync ${form}: the enrollment is unavailable, leaves nothing, and goes through when asked again`, async (t) => {
    const plan: { next: FaultPlan } = { next: undefined }
    const stage = await newNetworkStage(t, {}, { openFile: faultyOpen(plan) })
    const token = await newToken(stage, { name: 'laptop' })
    const keys = newKeys()
    const request = await enrollmentRequest(stage, token, keys)
    plan.next = { call: 'datasync', form, code: 'EIO' }
    await refused(stage, request, 'unavailable')
    await stage.restart()
    await refused(stage, request, 'challenge_unknown')
    const answer = await enroll(stage.authority, await enrollmentRequest(stage, token, keys))
    assert.deepEqual(certificateOf(answer).addressBlocks?.map(formatPrefix)[0], '10.1.0.1/32')
  })
}
