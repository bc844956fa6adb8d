import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { test } from 'node:test'
import { issueLocal } from '../../src/authority/local-credential.ts'
import { OcspResponder } from '../../src/authority/ocsp.ts'
import type { OperatorPrincipal } from '../../src/authority/principal.ts'
import { revoke } from '../../src/authority/revoke.ts'
import type { RevocationRequest } from '../../src/core/messages/revocation.ts'
import { ADMIN, enrollDevice, newNetworkStage, type Stage } from './support.ts'

const OF_RED: OperatorPrincipal = {
  role: 'operator-admin',
  name: 'red-admin',
  tenant: 'red',
  groups: [],
  uri: 'spiffe://red.certpeer.internal/operator/red-admin',
}
const OF_BLUE = { ...OF_RED, name: 'blue-admin', tenant: 'blue', uri: 'spiffe://blue.certpeer.internal/operator/blue' }

function serialOfRole(stage: Stage, role: string): string {
  const record = [...stage.authority.state.certificates.values()].find((candidate) => candidate.role === role)
  assert.ok(record, role)
  return record.serial
}

const REFUSED: { name: string; operator: OperatorPrincipal; target: (stage: Stage) => RevocationRequest['target'] }[] =
  [
    {
      name: "another tenant's device by serial",
      operator: OF_BLUE,
      target: (stage) => ({ kind: 'serial', serial: serialOfRole(stage, 'device') }),
    },
    {
      name: "another tenant's device by name",
      operator: OF_BLUE,
      target: () => ({ kind: 'device', name: 'laptop', tenant: 'red' }),
    },
    { name: 'a gateway', operator: OF_RED, target: () => ({ kind: 'gateway', name: 'edge' }) },
    {
      name: "the authority's certificate",
      operator: OF_RED,
      target: (stage) => ({ kind: 'serial', serial: serialOfRole(stage, 'authority') }),
    },
    {
      name: "an OCSP signer, which is nobody's",
      operator: OF_RED,
      target: (stage) => ({ kind: 'serial', serial: serialOfRole(stage, 'ocsp-signer') }),
    },
  ]
for (const { name, operator, target } of REFUSED) {
  test(`an operator of one tenant does not revoke ${name}`, async (t) => {
    const stage = await newNetworkStage(t)
    await enrollDevice(stage, 'laptop')
    const [issuer] = stage.authority.issuers
    assert.ok(issuer)
    const responder = new OcspResponder(stage.authority, issuer)
    await responder.start()
    t.after(() => responder.stop())
    const wanted = { target: target(stage), reason: 'unspecified' } as const
    await assert.rejects(revoke(stage.authority, operator, wanted), { code: 'policy_denied' })
    assert.equal(stage.authority.state.revocations.size, 0)
  })
}

test('an operator of the whole trust domain does', async (t) => {
  const stage = await newNetworkStage(t)
  const { answer } = await enrollDevice(stage, 'laptop')
  const wanted = { target: { kind: 'serial', serial: answer.serial }, reason: 'unspecified' } as const
  assert.equal((await revoke(stage.authority, ADMIN, wanted)).identity, answer.identity)
})

test('an operator asked for without its tenant is told in which tenant there is one', async (t) => {
  const { authority } = await newNetworkStage(t)
  const spki = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ type: 'spki', format: 'der' })
  const made = { role: 'operator-enroller', name: 'eve', tenant: 'red', groups: [], dns: [], ips: [], spki } as const
  await issueLocal(authority, made)
  const wanted = { target: { kind: 'operator', name: 'eve' }, reason: 'unspecified' } as const
  await assert.rejects(revoke(authority, ADMIN, wanted), { code: 'not_found', message: /one in tenant red: name the/ })
  const within = { ...wanted, target: { ...wanted.target, tenant: 'red' } }
  assert.equal((await revoke(authority, ADMIN, within)).already, false)
})
