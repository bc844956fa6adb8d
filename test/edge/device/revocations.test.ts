/** What a device knows of revoked gateways: only what verifies, numbers only rise, and what was seen stays. */
import assert from 'node:assert/strict'
import { readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { after, afterEach, before, beforeEach, test } from 'node:test'
import { readDevice, readGateway, verifyCertificate } from '../../../src/core/x509/path.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import { readOwnIdentity, type OwnIdentity } from '../../../src/edge/client-certificate.ts'
import { findRevokedKeys, withoutRevoked, type Peering } from '../../../src/edge/device/peer.ts'
import { verifyGateway } from '../../../src/edge/device/plan.ts'
import { checkRevocations, GatewayRevocations } from '../../../src/edge/device/revocations.ts'
import { makeGateway, makeInfrastructureCa, NOW, OIDS, TRUST_DOMAIN } from '../../support/certificates.ts'
import { at, GatewayWorld, HOUR, MINUTE, newWireGuardKey } from '../../support/gateway-world.ts'
import { captureLog, temporaryDirectory } from '../../support/http.ts'

const CRL_TYPE = 'application/pkix-crl'

let world: GatewayWorld
let server: Server
let folder: ReturnType<typeof temporaryDirectory>
let own: OwnIdentity
let captured: ReturnType<typeof captureLog>
let asked: string[]
/** What the pki listener serves, by path; a path that is not there hangs up. */
const published = new Map<string, Buffer>()

before(async () => {
  world = await GatewayWorld.create()
  server = createServer((request, response) => {
    asked.push(request.url ?? '')
    const body = published.get(request.url ?? '')
    if (body === undefined) request.socket.destroy()
    else
      response
        .writeHead(200, { 'content-type': request.url?.endsWith('.crl') ? CRL_TYPE : 'application/json' })
        .end(body)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
})
after(async () => {
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
})
beforeEach(async () => {
  asked = []
  captured = captureLog()
  folder = temporaryDirectory()
  const dir = join(folder.path, 'device')
  await world.writeCredential(dir, `http://127.0.0.1:${(server.address() as AddressInfo).port}`, {})
  own = await readOwnIdentity(dir, NOW)
  published.clear()
  publishIssuers()
  published.set('/crl/root.crl', world.makeCrl(world.root, { nextUpdate: 300 * 24 * HOUR }))
  published.set('/crl/infrastructure.crl', world.makeCrl(world.infrastructureCa, { number: 5n }))
})
afterEach(() => folder.remove())

function publishIssuers(infrastructure = world.infrastructureCa): void {
  const issuers = { 'device-default': world.deviceCa, infrastructure }
  const listed = Object.entries(issuers).map(([name, { certificate }]) => ({
    name,
    certificate: derToPem(certificate.der),
    crl: `/crl/${name}.crl`,
  }))
  const root = derToPem(world.root.certificate.der)
  published.set('/issuers.json', Buffer.from(JSON.stringify({ root, issuers: listed })))
}

const revokedCrl = (number: bigint) =>
  world.makeCrl(world.infrastructureCa, { number, revoked: [world.gateway.serial], thisUpdate: Number(number) * 1000 })
const emptyCrl = (number: bigint) =>
  world.makeCrl(world.infrastructureCa, { number, thisUpdate: Number(number) * 1000 })
const check = (now = NOW) => checkRevocations({ own, now: () => now, log: captured.log })
/** As another process, which asks nobody. */
const reopen = () => GatewayRevocations.open({ own, now: () => NOW, log: captured.log })
const facts = () => ({ issuerKeyId: world.infrastructureCa.certificate.keyId, serial: world.gateway.serial })
const warnings = () => captured.lines.filter(({ level }) => level === 40 || level === 'warn')

test('a gateway that the CRL names is revoked, for the next process too and with nobody to ask', async () => {
  assert.equal((await check()).isRevoked(facts()), false)
  published.set('/crl/infrastructure.crl', revokedCrl(6n))
  assert.equal((await check()).isRevoked(facts()), true)
  published.clear()
  assert.equal((await reopen()).isRevoked(facts()), true)
  assert.equal((await check()).isRevoked(facts()), true)
  assert.equal(asked.includes('/crl/device-default.crl'), false, 'the CRL of devices does not concern a device')
})

test('once seen, a revocation stays: a later CRL without it takes nothing back, not even after a restart', async () => {
  published.set('/crl/infrastructure.crl', revokedCrl(6n))
  await check()
  published.set('/crl/infrastructure.crl', emptyCrl(7n))
  assert.equal((await check()).isRevoked(facts()), true)
  published.clear()
  assert.equal((await reopen()).isRevoked(facts()), true)
})

test('what does not verify, or is older, changes nothing and is told', async () => {
  published.set('/crl/infrastructure.crl', revokedCrl(6n))
  await check()
  assert.equal(warnings().length, 0)
  const foreign = makeInfrastructureCa(world.root)
  for (const [what, body] of [
    ['a lower number', emptyCrl(5n)],
    ['a second content of the number', world.makeCrl(world.infrastructureCa, { number: 6n })],
    ["another CA's", world.makeCrl(foreign, { number: 9n })],
    ['a changed byte', Buffer.from(emptyCrl(8n)).fill(1, 40, 41)],
    ['no CRL at all', Buffer.from('<html>')],
  ] as const) {
    captured.lines.length = 0
    published.set('/crl/infrastructure.crl', body)
    assert.equal((await check()).isRevoked(facts()), true, what)
    assert.equal((await reopen()).isRevoked(facts()), true, what)
    assert.equal(warnings().length, 1, what)
  }
})

test('without the pki listener the newest CRL holds, and that is said once until it is back', async () => {
  const missing = await checkAway(() => check())
  assert.equal(missing.isRevoked(facts()), false)
  assert.match(String(warnings()[0]?.['msg']), /going on without any CRL/)

  published.set('/crl/infrastructure.crl', revokedCrl(6n))
  const revocations = await check()
  captured.lines.length = 0
  await checkAway(() => revocations.refresh())
  await checkAway(() => revocations.refresh())
  assert.deepEqual(
    warnings().map(({ msg }) => String(msg)),
    [`revocation of gateways could not be checked, going on with the CRL of ${at(6000).toISOString()}`],
  )
  assert.equal(revocations.isRevoked(facts()), true)
  await revocations.refresh()
  await checkAway(() => revocations.refresh())
  assert.equal(warnings().length, 2)
})

async function checkAway<T>(act: () => Promise<T>): Promise<T> {
  const kept = [...published]
  published.clear()
  try {
    return await act()
  } finally {
    for (const [path, body] of kept) published.set(path, body)
  }
}

test('a CRL past its nextUpdate holds and is told', async () => {
  published.set('/crl/infrastructure.crl', revokedCrl(6n))
  assert.equal((await check(at(48 * HOUR))).isRevoked(facts()), true)
  assert.equal(warnings().length, 1)
})

test('an issuing CA that the root has revoked makes every gateway of it a revoked one', async () => {
  const revoked = [world.infrastructureCa.certificate.serial]
  published.set('/crl/root.crl', world.makeCrl(world.root, { revoked, thisUpdate: MINUTE, nextUpdate: 99 * HOUR }))
  assert.equal((await check()).isRevoked(facts()), true)
})

test('one part that is refused does not hide the others', async () => {
  published.set('/crl/root.crl', Buffer.from('nothing'))
  published.set('/crl/infrastructure.crl', revokedCrl(6n))
  assert.equal((await check()).isRevoked(facts()), true)
  assert.equal(warnings().length, 1)
})

test('a CA under another root is not taken, whatever its CRL says', async () => {
  const other = await GatewayWorld.create()
  publishIssuers(other.infrastructureCa)
  const crl = other.makeCrl(other.infrastructureCa, { number: 99n, revoked: [world.gateway.serial] })
  published.set('/crl/infrastructure.crl', crl)
  assert.equal((await check()).isRevoked(facts()), false)
  assert.equal(warnings().length, 1)
})

test('damage on disk is passed over', async () => {
  published.set('/crl/infrastructure.crl', revokedCrl(6n))
  await check()
  const kept = join(own.credential.dir, 'revocations')
  for (const name of readdirSync(kept)) writeFileSync(join(kept, name), 'damaged\n')
  assert.equal((await reopen()).isRevoked(facts()), false)
  assert.equal((await check()).isRevoked(facts()), true)
  rmSync(kept, { recursive: true })
  assert.equal((await check()).isRevoked(facts()), true)
})

test('a revoked gateway is refused, leaves a peering that has it, and is found by its key in what was kept', async () => {
  const trust = { root: world.root.certificate, oids: OIDS, trustDomain: TRUST_DOMAIN, now: NOW }
  const issuer = world.infrastructureCa.certificate
  const device = readDevice(
    verifyCertificate({ certificate: world.makeDevice(2), issuers: [world.deviceCa.certificate], ...trust }),
    OIDS,
  )
  const second = makeGateway(world.infrastructureCa, { key: newWireGuardKey() })
  // The first is no gateway: it was refused, and must not hide the others.
  const hints = [world.authority, world.gateway, second].map((certificate) => ({
    certificate: derToPem(certificate.der),
    issuer: derToPem(issuer.der),
    endpoint: '192.0.2.1:51820',
  }))
  const gateways = [world.gateway, second].map((certificate) => ({
    facts: readGateway(verifyCertificate({ certificate, issuers: [issuer], ...trust }), OIDS),
    endpoint: '192.0.2.1:51820',
  }))
  const answer = { state: 'active', revision: 1, waitingFor: [], networkDocument: world.document, gateways: hints }
  writeFileSync(join(own.credential.dir, 'peer.json'), JSON.stringify(answer))
  const peering = { gateways, device, state: 'active', waitingFor: [] } as unknown as Peering
  const before = await check()
  const contextOf = (revocations: GatewayRevocations) => ({ own, revocations, now: () => NOW, log: captured.log })
  assert.equal(withoutRevoked(peering, contextOf(before)), peering)
  assert.equal((await findRevokedKeys(contextOf(before))).size, 0)

  published.set('/crl/infrastructure.crl', revokedCrl(6n))
  const revocations = await check()
  const isRevoked = revocations.isRevoked.bind(revocations)
  const [, hint, other] = hints
  assert.ok(hint && other)
  assert.throws(() => verifyGateway(hint, device, { ...trust, isRevoked }), { code: 'certificate_revoked' })
  assert.equal(verifyGateway(other, device, { ...trust, isRevoked }).facts.serial, second.serial)
  const left = withoutRevoked(peering, contextOf(revocations))
  assert.deepEqual(
    left.gateways.map(({ facts: { serial } }) => serial),
    [second.serial],
  )
  assert.deepEqual([...(await findRevokedKeys(contextOf(revocations)))], [world.gatewayKey])
})
