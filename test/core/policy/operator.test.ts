import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { OPERATOR_ROLES } from '../../../src/core/messages/common.ts'
import type { OperatorRole } from '../../../src/core/messages/common.ts'
import { tokenRequestSchema } from '../../../src/core/messages/enrollment.ts'
import { ACTS, evaluateTokenRequest, may, requireAct } from '../../../src/core/policy/operator.ts'
import type { Act, Operator } from '../../../src/core/policy/operator.ts'

const RIGHTS: Record<Act, readonly OperatorRole[]> = {
  'token-create-device': ['operator-admin', 'operator-security', 'operator-enroller'],
  'token-create-gateway': ['operator-admin'],
  'token-create-operator': ['operator-admin'],
  'token-replace': ['operator-admin', 'operator-security'],
  revoke: ['operator-admin', 'operator-security'],
  'network-apply': ['operator-admin'],
  'network-show': ['operator-admin', 'operator-security', 'operator-enroller', 'operator-auditor'],
  list: ['operator-admin', 'operator-security', 'operator-enroller', 'operator-auditor'],
}
const operator = (role: OperatorRole, more: Partial<Operator> = {}): Operator => ({
  role,
  name: 'alice',
  groups: [],
  ...more,
})

describe('rights', () => {
  for (const act of ACTS) {
    for (const role of OPERATOR_ROLES) {
      const able = RIGHTS[act].includes(role)
      test(`${role} ${able ? 'may' : 'may not'} ${act}`, () => {
        assert.equal(may(role, act), able)
        if (able) requireAct(operator(role), act, 'default')
        else assert.throws(() => requireAct(operator(role), act, 'default'), { code: 'policy_denied' })
      })
    }
  }

  test('an operator of a tenant stays in it', () => {
    const local = operator('operator-admin', { tenant: 'acme' })
    requireAct(local, 'revoke', 'acme')
    assert.throws(() => requireAct(local, 'revoke', 'other'), { code: 'policy_denied' })
    assert.throws(() => requireAct(local, 'revoke', undefined), { code: 'policy_denied' })
  })
})

describe('token requests', () => {
  const device = { role: 'device', name: 'd1', networks: ['default'] }
  for (const { name, who, request, network, live, outcome } of [
    { name: 'an admin lets a device in', who: operator('operator-admin'), request: device, outcome: 'default' },
    {
      name: 'the tenant asked for',
      who: operator('operator-admin'),
      request: { ...device, tenant: 'acme' },
      outcome: 'acme',
    },
    {
      name: "the operator's own tenant",
      who: operator('operator-enroller', { tenant: 'acme' }),
      request: device,
      outcome: 'acme',
    },
    {
      name: 'not another tenant',
      who: operator('operator-enroller', { tenant: 'acme' }),
      request: { ...device, tenant: 'other' },
      outcome: 'policy_denied',
    },
    { name: 'an auditor lets nobody in', who: operator('operator-auditor'), request: device, outcome: 'policy_denied' },
    {
      name: 'an enroller grants its own groups',
      who: operator('operator-enroller', { groups: ['eng', 'ops'] }),
      request: { ...device, groups: ['eng'] },
      outcome: 'default',
    },
    {
      name: 'an enroller grants no other group',
      who: operator('operator-enroller', { groups: ['eng'] }),
      request: { ...device, groups: ['eng', 'root'] },
      outcome: 'policy_denied',
    },
    {
      name: 'an enroller without groups grants none',
      who: operator('operator-enroller'),
      request: { ...device, groups: ['eng'] },
      outcome: 'policy_denied',
    },
    {
      name: 'an admin grants any group',
      who: operator('operator-admin'),
      request: { ...device, groups: ['eng'] },
      outcome: 'default',
    },
    {
      name: 'a gateway takes an admin',
      who: operator('operator-admin'),
      request: { role: 'gateway', name: 'g1', networks: ['default'] },
      outcome: 'default',
    },
    {
      name: 'security makes no gateway',
      who: operator('operator-security'),
      request: { role: 'gateway', name: 'g1', networks: ['default'] },
      outcome: 'policy_denied',
    },
    {
      name: "a tenant's admin makes no gateway",
      who: operator('operator-admin', { tenant: 'acme' }),
      request: { role: 'gateway', name: 'g1', networks: ['default'] },
      outcome: 'policy_denied',
    },
    {
      name: 'an admin makes an operator',
      who: operator('operator-admin'),
      request: { role: 'operator-enroller', name: 'bob', groups: ['eng'] },
      outcome: 'default',
    },
    {
      name: 'security makes no operator',
      who: operator('operator-security'),
      request: { role: 'operator-auditor', name: 'bob' },
      outcome: 'policy_denied',
    },
    {
      name: 'an enroller makes no operator',
      who: operator('operator-enroller'),
      request: { role: 'operator-auditor', name: 'bob' },
      outcome: 'policy_denied',
    },
    {
      name: 'a device has one network',
      who: operator('operator-admin'),
      request: { ...device, networks: [] },
      outcome: 'malformed_request',
    },
    {
      name: 'a device has not two networks',
      who: operator('operator-admin'),
      request: { ...device, networks: ['a', 'b'] },
      outcome: 'malformed_request',
    },
    {
      name: 'a gateway has a network',
      who: operator('operator-admin'),
      request: { role: 'gateway', name: 'g1' },
      outcome: 'malformed_request',
    },
    {
      name: 'a gateway has no network twice',
      who: operator('operator-admin'),
      request: { role: 'gateway', name: 'g1', networks: ['a', 'a'] },
      outcome: 'malformed_request',
    },
    {
      name: 'a gateway is in no groups',
      who: operator('operator-admin'),
      request: { role: 'gateway', name: 'g1', networks: ['a'], groups: ['x'] },
      outcome: 'malformed_request',
    },
    {
      name: 'an operator has no network',
      who: operator('operator-admin'),
      request: { role: 'operator-admin', name: 'bob', networks: ['a'] },
      outcome: 'malformed_request',
    },
    {
      name: 'a group is not named twice',
      who: operator('operator-admin'),
      request: { ...device, groups: ['x', 'x'] },
      outcome: 'malformed_request',
    },
    {
      name: 'without possession where the network allows',
      who: operator('operator-admin'),
      request: { ...device, possession: false },
      network: 'optional' as const,
      outcome: 'default',
    },
    {
      name: 'without possession where it does not',
      who: operator('operator-admin'),
      request: { ...device, possession: false },
      outcome: 'policy_denied',
    },
    {
      name: 'no gateway without possession',
      who: operator('operator-admin'),
      request: { role: 'gateway', name: 'g1', networks: ['a'], possession: false },
      network: 'optional' as const,
      outcome: 'policy_denied',
    },
    {
      name: 'a living identity is not replaced by accident',
      who: operator('operator-security'),
      request: device,
      live: true,
      outcome: 'identity_live',
    },
    {
      name: 'security replaces a living identity',
      who: operator('operator-security'),
      request: { ...device, replace: true },
      live: true,
      outcome: 'default',
    },
    {
      name: 'an enroller replaces nothing that lives',
      who: operator('operator-enroller'),
      request: { ...device, replace: true },
      live: true,
      outcome: 'policy_denied',
    },
    {
      name: 'an enroller makes no token that could replace later',
      who: operator('operator-enroller'),
      request: { ...device, replace: true },
      outcome: 'policy_denied',
    },
  ]) {
    test(name, () => {
      const decide = () =>
        evaluateTokenRequest({
          operator: who,
          request: tokenRequestSchema.parse(request),
          network: { possession: network ?? 'required' },
          liveIdentity: live ?? false,
        })
      if (outcome.includes('_')) assert.throws(decide, { code: outcome })
      else assert.deepEqual(decide(), { tenant: outcome })
    })
  }
})
