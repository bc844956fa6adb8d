import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { test } from 'node:test'
import { issueLocal } from '../../src/authority/local-credential.ts'
import { requireOperator } from '../../src/authority/principal.ts'
import { revoke } from '../../src/authority/revoke.ts'
import { parseCertificate } from '../../src/core/x509/certificate.ts'
import { verifyCertificate } from '../../src/core/x509/path.ts'
import { derToPem } from '../../src/core/x509/pem.ts'
import { ADMIN, enrollDevice, newKeys, newNetworkStage, newStage, renewDevice } from './support.ts'

const SPKI = () => generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ type: 'spki', format: 'der' })
const PLAIN = { groups: [], dns: [], ips: [] }

function headersOf(der: Buffer) {
  return { headers: { 'x-client-verify': 'SUCCESS', 'x-client-cert': encodeURIComponent(derToPem(der)) } }
}

test('a server credential verifies, and renews with its names', async (t) => {
  const stage = await newStage(t)
  const keys = newKeys()
  const spki = keys.tls.publicKey.export({ type: 'spki', format: 'der' })
  const names = { dns: ['localhost'], ips: ['127.0.0.1'] }
  const { der } = await issueLocal(stage.authority, { ...PLAIN, ...names, role: 'server', name: 'nginx', spki })
  const certificate = parseCertificate(der)
  const { role } = verifyCertificate({
    certificate,
    issuers: stage.authority.issuers.map((issuer) => issuer.certificate),
    root: stage.authority.root,
    now: stage.clock.now(),
    oids: stage.authority.oids,
    trustDomain: stage.authority.trustDomain,
  })
  assert.equal(role, 'server')
  const renewed = await renewDevice(stage, { certificate, keys }, { profile: 'server', withoutWireGuard: true })
  assert.deepEqual(renewed.certificate.sanDnsNames, ['localhost'])
  assert.deepEqual(renewed.certificate.sanIpAddresses, ['127.0.0.1'])
})

test('an operator is who the ledger says: in force, of this ledger, and nobody else', async (t) => {
  const stage = await newNetworkStage(t)
  const { authority } = stage
  const { der } = await issueLocal(authority, {
    ...PLAIN,
    role: 'operator-enroller',
    name: 'eve',
    tenant: 'red',
    groups: ['staff'],
    spki: SPKI(),
  })
  const principal = requireOperator(authority, headersOf(der))
  assert.equal(principal.role, 'operator-enroller')
  assert.equal(principal.tenant, 'red')
  assert.deepEqual(principal.groups, ['staff'])
  const device = await enrollDevice(stage, 'laptop')
  assert.throws(() => requireOperator(authority, headersOf(device.certificate.der)), { code: 'bad_client_certificate' })
  const other = await newStage(t)
  const foreign = await issueLocal(other.authority, { ...PLAIN, role: 'operator-admin', name: 'eve', spki: SPKI() })
  assert.throws(() => requireOperator(authority, headersOf(foreign.der)), { code: 'certificate_untrusted' })
  assert.throws(() => requireOperator(authority, { headers: { 'x-client-verify': 'NONE' } }), {
    code: 'client_certificate_required',
  })
  await revoke(authority, ADMIN, { target: { kind: 'operator', name: 'eve', tenant: 'red' }, reason: 'unspecified' })
  assert.throws(() => requireOperator(authority, headersOf(der)), { code: 'certificate_revoked' })
  stage.clock.advance(8 * 86_400)
  assert.throws(() => requireOperator(authority, headersOf(der)), { code: 'certificate_expired' })
})
