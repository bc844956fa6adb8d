import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { test } from 'node:test'
import { enroll } from '../../src/authority/enroll.ts'
import { issueLocal } from '../../src/authority/local-credential.ts'
import type { OperatorPrincipal } from '../../src/authority/principal.ts'
import { requireOperator } from '../../src/authority/principal.ts'
import { revoke } from '../../src/authority/revoke.ts'
import { operatorRoutes } from '../../src/authority/routes.ts'
import { createToken } from '../../src/authority/tokens.ts'
import { tokenRequestSchema } from '../../src/core/messages/enrollment.ts'
import { derToPem } from '../../src/core/x509/pem.ts'
import type { RouteRequest } from '../../src/platform/http/types.ts'
import { ADMIN, enrollmentRequest, newKeys, newNetworkStage, type Stage } from './support.ts'

/** An operator with a certificate, as nginx would show it. */
async function newOperator(stage: Stage, name: string): Promise<{ headers: RouteRequest['headers'] }> {
  const spki = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ type: 'spki', format: 'der' })
  const wanted = { role: 'operator-enroller', name, tenant: 'red', groups: ['staff'], dns: [], ips: [], spki } as const
  const { der } = await issueLocal(stage.authority, wanted)
  return { headers: { 'x-client-verify': 'SUCCESS', 'x-client-cert': encodeURIComponent(derToPem(der)) } }
}

const REQUEST = tokenRequestSchema.parse({ name: 'laptop', tenant: 'red', networks: ['lan'] })
const REVOKED = { target: { kind: 'operator', name: 'ella', tenant: 'red' }, reason: 'keyCompromise' } as const

test("tokens end with their maker's revocation, and do not come back with a new life of the same name", async (t) => {
  const stage = await newNetworkStage(t)
  const ella: OperatorPrincipal = requireOperator(stage.authority, await newOperator(stage, 'ella'))
  const { token } = await createToken(stage.authority, ella, REQUEST)
  await revoke(stage.authority, ADMIN, REVOKED)
  const attempt = async () => enroll(stage.authority, await enrollmentRequest(stage, token, newKeys()))
  await assert.rejects(attempt(), { code: 'identity_revoked' })
  await stage.restart()
  await assert.rejects(attempt(), { code: 'identity_revoked' })
  const again = requireOperator(stage.authority, await newOperator(stage, 'ella'))
  await assert.rejects(attempt(), { code: 'identity_revoked' })
  const fresh = await createToken(stage.authority, again, REQUEST)
  await enroll(stage.authority, await enrollmentRequest(stage, fresh.token, newKeys()))
})

test('an operator who is revoked while the body of a request is still on its way gets nothing', async (t) => {
  const stage = await newNetworkStage(t)
  const { headers } = await newOperator(stage, 'ella')
  const context = {
    authority: stage.authority,
    published: new Map(),
    rootCrl: () => ({ der: Buffer.alloc(0), number: 0n }),
  }
  const route = operatorRoutes(context).find(({ path }) => path === '/v1/tokens')
  assert.ok(route?.kind === 'plain')
  const request = { headers, body: { name: 'laptop', networks: ['lan'] } } as unknown as RouteRequest
  const opened = await route.open(request)
  await revoke(stage.authority, ADMIN, REVOKED)
  const tokens = stage.authority.state.tokens.size
  await assert.rejects(async () => opened.handle(request), { code: /^(identity|certificate)_revoked$/ })
  assert.equal(stage.authority.state.tokens.size, tokens)
})
