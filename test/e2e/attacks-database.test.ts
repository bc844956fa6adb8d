/**
 * Attacks with full rights on the database. Whoever owns it may withhold service and nothing else: no foreign peer ever
 * stands on the gateway, nothing revoked comes back, the authority decides as if nothing had happened, every process
 * lives on, and once the rows are right again everything works. Each attack is seen to arrive: the gateway names it
 * among what it refused, or has worked off the revision that carried it.
 */
import assert from 'node:assert/strict'
import { randomBytes, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { formatPrefix } from '../../src/core/ipam/prefix.ts'
import { NETWORK_DOCUMENT_TYPE } from '../../src/core/messages/network-document.ts'
import { encodeJws, parseJws } from '../../src/core/messages/jws.ts'
import { readAccessGroups } from '../../src/core/x509/certpeer-extensions.ts'
import { parseCertificate } from '../../src/core/x509/certificate.ts'
import {
  assertRefused,
  call,
  DatabaseOwner,
  enrollHolder,
  listProcesses,
  provision,
  readCertificate,
  readHolder,
  type Holder,
} from '../support/attacks.ts'
import {
  forgeLeaf,
  makeDeviceCa,
  makeEmptyCrl,
  newWireGuardKey,
  readRealCa,
  upWithTwoNetworks,
} from '../support/attacks-forge.ts'
import { makeInfrastructureCa, makeInfrastructureLeaf, makeRoot, OIDS } from '../support/certificates.ts'
import { cannotRunLab, eventually, Lab } from '../support/lab.ts'

const skip = cannotRunLab()
const CHANNELS = ['certpeer_changes', 'certpeer_crl', 'certpeer_networks', 'certpeer_applied', 'certpeer_gateways']

let lab: Lab
let owner: DatabaseOwner
let namespace: string
let gatewayAddress: string
let processes: string[]
/** Has a tunnel, and keeps it through everything. */
let alice: Holder
/** Provisioned, without a tunnel. */
let bob: Holder
/** Everybody who may be a peer of the gateway: key → addresses. */
const rightful = new Map<string, string[]>()
/** The same, by key. */
const holders = new Map<string, Holder>()

before(async () => {
  if (skip !== false) return
  lab = await Lab.create()
  const ready = await upWithTwoNetworks(lab)
  namespace = await lab.addHost('dev', 10)
  gatewayAddress = ready.gateway?.addresses.find((address) => address.includes('.')) ?? ''
  owner = await DatabaseOwner.open(lab)
  alice = readHolder(await lab.enrollDevice(namespace, 'alice'))
  bob = await enrollHolder(lab, namespace, 'bob')
  admit(alice)
  await provisionAndAwait(bob)
  processes = listProcesses(lab)
  assert.equal(processes.length, 6, processes.join('\n'))
})

after(async () => {
  if (skip !== false) return
  await owner[Symbol.asyncDispose]()
  await lab[Symbol.asyncDispose]()
})

function admit(holder: Holder): void {
  holders.set(holder.publicKey, holder)
  rightful.set(holder.publicKey, (holder.certificate.addressBlocks ?? []).map(formatPrefix).sort())
}

async function provisionAndAwait(holder: Holder): Promise<void> {
  admit(holder)
  await eventually(
    'the server takes the provisioning',
    async () => (await provision(lab, namespace, holder)).status === 200,
  )
  await eventually('the gateway carries the peer', async () => (await lab.gatewayPeers()).has(holder.publicKey))
}

/** Exactly those who may, with exactly their addresses; and everything runs that ran at the start. */
async function assertUntouched(what: string): Promise<void> {
  const peers = [...(await lab.gatewayPeers())].map(([key, prefixes]) => [key, prefixes.sort()] as const)
  assert.deepEqual(new Map(peers), rightful, `${what}${lab.logs()}`)
  assert.deepEqual(listProcesses(lab), processes, `${what}: a process ended${lab.logs()}`)
}

/** Nobody on the gateway who may not be there; who may, can be missing: service withheld. */
async function assertNoForeignPeer(what: string): Promise<void> {
  for (const [key, prefixes] of await lab.gatewayPeers()) {
    assert.deepEqual(prefixes.sort(), rightful.get(key), `${what}: ${key}${lab.logs()}`)
  }
  assert.deepEqual(listProcesses(lab), processes, `${what}: a process ended${lab.logs()}`)
}

async function renew(holder: Holder): Promise<Holder> {
  await lab.ok(namespace, ['device', 'renew', '--dir', holder.dir])
  return readHolder(holder.dir)
}

function addressesOf(holder: Pick<Holder, 'certificate'>): string[] {
  return (holder.certificate.addressBlocks ?? []).map(formatPrefix)
}

test('a row for a peer that nobody certified, or that was certified for something else', { skip }, async (t) => {
  const real = readRealCa(lab, 'device-default')
  const ownRoot = makeRoot()
  // The real CA's name and key identifier, with a key of one's own.
  const impostor = { ...makeDeviceCa(lab, ownRoot, 'default'), certificate: real.certificate }
  const ownCa = makeDeviceCa(lab, ownRoot, 'default')
  const otherTenant = makeDeviceCa(lab, readRealCa(lab, 'root'), 'other')
  const stranger = await enrollHolder(lab, namespace, 'stranger', ['--network', 'other'])
  const operator = readCertificate(lab.operatorDir)
  const gateway = readCertificate(join(lab.stateDir, 'gateway'))
  const leaves: { name: string; der: Buffer; code: string }[] = [
    {
      name: "signed by another key in the CA's name",
      der: forgeLeaf(lab, impostor).der,
      code: 'certificate_untrusted',
    },
    { name: 'of a CA of its own', der: forgeLeaf(lab, ownCa).der, code: 'certificate_untrusted' },
    { name: 'a real device of another network', der: stranger.certificate.der, code: 'foreign_network' },
    {
      name: 'a real device of another tenant, its CA and CRL known to the gateway',
      der: forgeLeaf(lab, otherTenant, { uri: 'spiffe://other.certpeer.internal/network/default/device/d1' }).der,
      code: 'foreign_network',
    },
    { name: 'an operator', der: operator.der, code: 'bad_client_certificate' },
    { name: 'the gateway itself', der: gateway.der, code: 'bad_client_certificate' },
  ]
  // CAs as rows: the one under the real root is a CA of this house, the other one is not.
  for (const [name, ca] of [
    ['own', ownCa],
    ['tenant-other', otherTenant],
  ] as const) {
    await owner.query(
      `insert into issuers (key_id, name, role, tenant, certificate, crl, crl_number) values ($1, $2, 'device', $2, $3, $4, 1)`,
      [ca.certificate.keyId, name, ca.certificate.der, makeEmptyCrl(ca)],
    )
  }
  await owner.notify('certpeer_crl', { issuerKeyId: otherTenant.certificate.keyId })
  for (const { name, der, code } of leaves) {
    await t.test(name, async () => {
      const { serial } = parseCertificate(der)
      const identity = `spiffe://attack/${serial}`
      const forged = { certificate: der, identity, serial, wireGuardKey: randomBytes(32) }
      // Once as a change, once as part of a snapshot.
      assert.equal((await owner.refusals(await owner.forgePeer(forged))).get(serial), code)
      await assertUntouched(`${name}, as a change`)
      assert.equal((await owner.refusals(await owner.forceSnapshot())).get(serial), code)
      await assertUntouched(`${name}, in a snapshot`)
      await owner.query('delete from peers where identity = $1', [identity])
    })
  }
  await owner.query(`delete from issuers where name in ('own', 'tenant-other')`)
})

test('a swapped key, moved addresses and foreign columns beside a true certificate', { skip }, async () => {
  const victim = alice.certificate
  await owner.forgePeer({
    certificate: victim.der,
    identity: victim.sanUris[0] ?? '',
    serial: victim.serial,
    wireGuardKey: Buffer.from(newWireGuardKey(), 'base64'),
  })
  await owner.run(`
    update devices set addresses = '{10.88.0.66}', groups = '{admins}', network = 'other';
    update leases set address = address + 1000, identity = 'spiffe://attack/x';
    update certificates set wireguard_key = decode(repeat('42', 32), 'hex'), network = 'other' where role = 'device';
    update gateways set addresses = '{10.88.0.99}', networks = '{default/default,default/other}'`)
  await owner.refusals(await owner.forceSnapshot())
  await assertUntouched('columns')
  assert.ok(await lab.ping(namespace, gatewayAddress), 'the tunnel carries on')
  await owner.query('delete from peers where identity = $1', [victim.sanUris[0]])
  await provisionAndAwait(alice)
})

test(
  'other pools, another network document and other groups before an enrollment and a renewal',
  { skip },
  async () => {
    const [row] = await owner.query<{ document: string; document_number: string }>(
      `select document, document_number from networks where name = 'default'`,
    )
    assert.ok(row)
    const genuine = parseJws(row.document, NETWORK_DOCUMENT_TYPE)
    const law = JSON.parse(genuine.payload.toString()) as Record<string, unknown>
    const changed = Buffer.from(
      JSON.stringify({ ...law, number: 99, pools: ['10.66.0.0/16'], possession: 'optional', routes: ['10.77.0.0/16'] }),
    )
    const ownRoot = makeRoot()
    const ownCa = makeInfrastructureCa(ownRoot)
    const leaf = makeInfrastructureLeaf(ownCa, 'authority', 'spiffe://certpeer.internal/authority/main')
    const [head, , tail] = row.document.split('.')
    const forgeries = [
      // The real signature under a changed text, and a well-made document of a self-made authority.
      `${head ?? ''}.${changed.toString('base64url')}.${tail ?? ''}`,
      await encodeJws({
        payload: changed,
        typ: NETWORK_DOCUMENT_TYPE,
        certificates: [leaf.der, ownCa.certificate.der],
        sign: (data) => sign('sha256', data, ownCa.privateKey),
      }),
    ]
    for (const [index, forged] of forgeries.entries()) {
      await owner.query(`update networks set document = $1, document_number = 1000000 where name = 'default'`, [forged])
      await owner.query(`update devices set groups = '{admins}'`)
      await owner.notify('certpeer_networks', { network: 'default/default' })
      const carol = await enrollHolder(lab, namespace, `carol-${index}`)
      assert.match(addressesOf(carol)[0] ?? '', /^10\.88\./)
      assert.deepEqual(readAccessGroups(carol.certificate, OIDS), [])
      const renewed = await renew(bob)
      assert.notEqual(renewed.certificate.serial, bob.certificate.serial)
      assert.deepEqual(addressesOf(renewed), addressesOf(bob))
      assert.deepEqual(readAccessGroups(renewed.certificate, OIDS), [])
      bob = renewed
      // The server carries on with the document that it verified, and hands out no other.
      await provisionAndAwait(carol)
      const answer = await provision(lab, namespace, bob)
      assert.equal((answer.json as { networkDocument: string }).networkDocument, row.document)
    }
    await owner.query(`update networks set document = $1, document_number = $2 where name = 'default'`, [
      row.document,
      row.document_number,
    ])
    await assertUntouched('network documents')
  },
)

test('tokens are as spent as the ledger says, whatever the rows say', { skip }, async () => {
  const token = await lab.ok(lab.host, ['token', 'create', '--device', 'dora'])
  await lab.ok(namespace, ['device', 'enroll', '-', '--dir', join(lab.dir, 'dora-1')], { input: token })
  // Nothing was ever enrolled, as far as the database remembers.
  await owner.run(`
    delete from leases; delete from devices; delete from certificates where role = 'device'; delete from revocations;
    update projection set ledger_size = 1`)
  const again = await lab.certpeer(namespace, ['device', 'enroll', '-', '--dir', join(lab.dir, 'dora-2')], {
    input: token,
  })
  assert.notEqual(again.code, 0)
  assert.match(again.stderr, /used before/)
  // The next entry shows the projection that it was moved; it begins anew, and all rows come back.
  await lab.ok(lab.host, ['token', 'create', '--device', 'nobody'])
  await eventually('the projection has written everything again', async () => {
    const rows = await owner.query(`select 1 from devices where name in ('alice', 'bob', 'dora')`)
    return rows.length === 3
  })
  // A projection that claims to know more than the ledger is not followed, and holds up no decision.
  await owner.query('update projection set ledger_size = ledger_size + 1000000')
  const erin = await enrollHolder(lab, namespace, 'erin')
  await provisionAndAwait(erin)
  await owner.query('update projection set ledger_size = ledger_size - 1000000')
  await eventually('the projection goes on', async () => {
    return (await owner.query(`select 1 from devices where name = 'erin'`)).length === 1
  })
  await assertUntouched('tokens')
})

test('with all leases deleted or given away, nobody gets an address that another holds', { skip }, async () => {
  await owner.run(`delete from leases; delete from devices; delete from certificates where role = 'device'`)
  const frank = await enrollHolder(lab, namespace, 'frank')
  await owner.query(
    `insert into leases (tenant, network, address, identity) select 'default', 'default', inet '10.88.0.0' + n, 'spiffe://attack/x'
       from generate_series(1, 60) as n on conflict do nothing`,
  )
  const grace = await enrollHolder(lab, namespace, 'grace')
  const held = [...rightful.values()].flat()
  for (const holder of [frank, grace]) {
    for (const address of addressesOf(holder)) assert.ok(!held.includes(address), `${address} is held by another`)
    held.push(...addressesOf(holder))
  }
  assert.deepEqual(addressesOf(await renew(frank)), addressesOf(frank), 'kept, although the rows give it to another')
  await owner.query('delete from leases')
  await assertUntouched('leases')
})

test('an older certificate of a device put back into its place stays out', { skip }, async () => {
  const old = readHolder(alice.dir)
  await lab.ok(namespace, ['device', 'renew', '--dir', alice.dir])
  alice = readHolder(alice.dir)
  assert.equal((await provision(lab, namespace, alice)).status, 200)
  const [row] = await owner.query<{ revision: string }>('select revision from peers where serial = $1', [
    alice.certificate.serial,
  ])
  await owner.refusals(Number(row?.revision))
  const identity = old.certificate.sanUris[0] ?? ''
  const replayed = await owner.forgePeer({
    certificate: old.certificate.der,
    identity,
    serial: old.certificate.serial,
    wireGuardKey: Buffer.from(old.publicKey, 'base64'),
  })
  assert.equal((await owner.refusals(replayed)).get(old.certificate.serial), 'older_certificate')
  await assertUntouched('an older certificate')
  await owner.query('delete from peers where identity = $1', [identity])
  await provisionAndAwait(alice)
})

test('a device whose rows were deleted is revoked by name all the same', { skip }, async () => {
  assert.equal((await provision(lab, namespace, bob)).status, 200)
  // Nor can the database undo it: its own function no longer takes anything away.
  const [projector] = await owner.query<{ sql: string }>(
    `select pg_get_functiondef('project_revocation'::regproc) as sql`,
  )
  assert.ok(projector)
  const powerless = projector.sql.replace(/(as \$function\$)[^]*(\$function\$)/i, '$1 begin end $2')
  assert.notEqual(powerless, projector.sql)
  await owner.query(powerless)
  await owner.run(`
    delete from devices; delete from certificates where role = 'device'; delete from leases;
    update peers set serial = '0badc0de' where serial = '${bob.certificate.serial}'`)
  await lab.ok(lab.host, ['revoke', '--device', 'bob', '--reason', 'keyCompromise'])
  rightful.delete(bob.publicKey)
  await eventually('the peer is gone from the gateway', async () => !(await lab.gatewayPeers()).has(bob.publicKey))
  await eventually('the server refuses it', async () => (await provision(lab, namespace, bob)).status === 403)
  assertRefused(await provision(lab, namespace, bob), /^(certificate_revoked|bad_client_certificate)$/, 'provisioning')
  assert.match(await ocsp(bob), /: revoked/)
  await assertUntouched('deleted rows')
  await owner.query(projector.sql)
})

test(
  'un-revoking: rows made good again bring nobody back, also after restarts',
  { skip, timeout: 90_000 },
  async () => {
    const { serial, sanUris, der } = bob.certificate
    const identity = sanUris[0] ?? ''
    const device = readRealCa(lab, 'device-default')
    const [before] = await owner.query<{ crl: Buffer; crl_number: string }>(
      'select crl, crl_number::text from issuers where key_id = $1',
      [device.certificate.keyId],
    )
    assert.ok(before)
    const forged = {
      certificate: der,
      identity,
      serial,
      wireGuardKey: Buffer.from(bob.publicKey, 'base64'),
    }
    const unrevoke = async () => {
      await owner.run(`
      delete from revocations;
      delete from peers where serial = '0badc0de';
      update certificates set status = 'good', revoked_at = null, revocation_reason = null;
      update devices set status = 'active'`)
      // A CRL of a self-made CA that revokes nobody, with a higher number than any.
      const own = { ...makeDeviceCa(lab, makeRoot(), 'default'), certificate: device.certificate }
      await owner.query('update issuers set crl = $1, crl_number = 10 ^ 30 where key_id = $2', [
        makeEmptyCrl(own, 10n ** 30n),
        device.certificate.keyId,
      ])
      await owner.notify('certpeer_crl', { issuerKeyId: device.certificate.keyId })
      return await owner.forgePeer(forged)
    }
    assert.equal((await owner.refusals(await unrevoke())).get(serial), 'certificate_revoked')
    await assertUntouched('un-revoked')
    assertRefused(
      await provision(lab, namespace, bob),
      /^(certificate_revoked|bad_client_certificate)$/,
      'provisioning',
    )
    const renewed = await lab.certpeer(namespace, ['device', 'renew', '--dir', bob.dir])
    assert.notEqual(renewed.code, 0)
    assert.match(renewed.stderr, /revoked/)
    assert.match(await ocsp(bob), /: revoked/)

    // What is remembered must not be in the processes' memory alone.
    for (const name of ['gateway run', 'server --dir']) {
      const line = listProcesses(lab).find((text) => text.includes(name))
      assert.ok(line, `${name} runs`)
      process.kill(Number(line.split(' ')[0]), 'SIGKILL')
    }
    await eventually(
      'both are back',
      () => listProcesses(lab).length === 6 && listProcesses(lab).join() !== processes.join(),
      30_000,
    )
    const attacked = await unrevoke()
    await eventually('the gateway has looked at it again', async () => {
      return (await owner.refusals(attacked)).get(serial) === 'certificate_revoked'
    })
    processes = listProcesses(lab)
    await assertUntouched('un-revoked, after restarts')
    await eventually('the server answers again', async () => (await provision(lab, namespace, alice)).status === 200)
    assertRefused(
      await provision(lab, namespace, bob),
      /^(certificate_revoked|bad_client_certificate)$/,
      'provisioning',
    )
    assert.ok(await lab.ping(namespace, gatewayAddress), 'the others carry on')
    await owner.query('delete from peers where identity = $1', [identity])
    await owner.query('update issuers set crl = $1, crl_number = $2::numeric where key_id = $3', [
      before.crl,
      before.crl_number,
      device.certificate.keyId,
    ])
  },
)

test('poisoned bytes in every row that somebody reads', { skip, timeout: 90_000 }, async (t) => {
  const good = alice.certificate.der
  const identity = alice.certificate.sanUris[0] ?? ''
  const poisons: [name: string, bytes: Buffer, crlNumber: string][] = [
    ['garbage', randomBytes(900), '1e30'],
    ['nothing', Buffer.alloc(0), 'NaN'],
    ['a truncated certificate', good.subarray(0, good.length - 40), '1e31'],
    ['a certificate and something behind it', Buffer.concat([good, Buffer.from([5, 0])]), '-1'],
    ['one megabyte', Buffer.alloc(1_048_576, 0x30), '1e32'],
  ]
  const rows = await owner.query<{
    key_id: string
    certificate: Buffer
    crl: Buffer | null
    crl_number: string | null
  }>('select key_id, certificate, crl, crl_number::text from issuers')
  const [network] = await owner.query<{ document: string }>(`select document from networks where name = 'default'`)
  assert.ok(network)
  for (const [name, bytes, crlNumber] of poisons) {
    await t.test(name, async () => {
      const seen = countRefusals()
      // A new row, the victim's own row, the trust material, and the notifications.
      await owner.forgePeer({
        certificate: bytes,
        identity: `spiffe://attack/${name.replaceAll(' ', '-')}`,
        serial: 'not a serial number',
        wireGuardKey: randomBytes(32),
      })
      await owner.query('update peers set certificate = $1 where identity = $2', [bytes, identity])
      await owner.query(`update issuers set certificate = $1 where name = 'infrastructure'`, [bytes])
      await owner.query(`update issuers set crl = $1, crl_number = $2::numeric where name <> 'infrastructure'`, [
        bytes,
        crlNumber,
      ])
      await owner.query(`update networks set document = $1, document_number = document_number + 1`, [
        bytes.toString('base64'),
      ])
      for (const channel of CHANNELS)
        for (const text of ['{', 'null', '{"network":7}']) await owner.notify(channel, text)
      await owner.refusals(await owner.forceSnapshot())
      await assertNoForeignPeer(name)
      for (const view of ['devices', 'certificates', 'peers', 'gateways', 'peers/gone?serial=00']) {
        await call(lab, namespace, { url: `${lab.ready?.apiUrl ?? ''}/v1/${view}`, credential: lab.operatorDir })
      }
      await eventually('the server has read what is there', () => countRefusals() > seen)

      for (const row of rows) {
        await owner.query('update issuers set certificate = $1, crl = $2, crl_number = $3::numeric where key_id = $4', [
          row.certificate,
          row.crl,
          row.crl_number,
          row.key_id,
        ])
      }
      await owner.query(
        `update networks set document = $1, document_number = document_number - 1 where name = 'default'`,
        [network.document],
      )
      await owner.query(`delete from peers where identity like 'spiffe://attack/%'`)
      // The device asks again, as it does in its run loop, and its row is made anew.
      await provisionAndAwait(alice)
      await assertUntouched(`${name}, repaired`)
    })
  }
})

/** How often the server told that a row's bytes are not what they should be. */
function countRefusals(): number {
  const log = readFileSync(join(lab.stateDir, 'log', 'server.log'), 'utf8')
  return log.split('source of trust material refused').length
}

test('a revision set back, set far ahead, and tables that are away', { skip, timeout: 90_000 }, async () => {
  const revision = await owner.revision()
  // Back: the gateway has seen more than the database says there is.
  await owner.query(`delete from peer_changes where revision > $1`, [revision - 5])
  await owner.query(`update networks set revision = $1 where name = 'default'`, [revision - 5])
  const forged = forgeLeaf(lab, makeDeviceCa(lab, makeRoot(), 'default'))
  const back = await owner.forgePeer({
    certificate: forged.der,
    identity: forged.uri,
    serial: forged.serial,
    wireGuardKey: randomBytes(32),
  })
  assert.ok(back < revision)
  await eventually('the gateway follows the database back', async () => {
    const [row] = await owner.query<{ applied: string; failed: { serial: string }[] }>(
      `select applied_revision as applied, failed from gateway_revisions where gateway like '%/gateway/local'`,
    )
    return Number(row?.applied) === back && row?.failed.some(({ serial }) => serial === forged.serial) === true
  })
  await assertUntouched('a revision set back')
  // Ahead: no number of JavaScript's, then beyond what the column holds after one more step.
  for (const far of ['9007199254740993', '9223372036854775807']) {
    await owner.query(`update networks set revision = $1 where name = 'default'`, [far])
    await owner.query(
      `insert into peer_changes (network_id, revision, kind, serial) select id, revision, 'remove', '00' from networks where name = 'default'`,
    )
    await owner.notify('certpeer_changes', { network: 'default/default', revision: 1 })
    await provision(lab, namespace, alice)
    await assertNoForeignPeer(`revision ${far}`)
    await owner.query(`delete from peer_changes where revision = $1`, [far])
  }
  await owner.query(`update networks set revision = $1 where name = 'default'`, [back])
  await owner.query(`delete from peers where identity = $1`, [forged.uri])
  // Instants that are none.
  const [times] = await owner.query<{ seen: Date; ends: Date }>(
    `select last_seen_at as seen, not_after as ends from gateways where name = 'local'`,
  )
  assert.ok(times)
  await owner.run(`update gateways set last_seen_at = 'infinity', not_after = '-infinity';
    update peers set not_before = '-infinity', not_after = 'infinity'`)
  await owner.notify('certpeer_gateways', {})
  await provision(lab, namespace, alice)
  await call(lab, namespace, { url: `${lab.ready?.apiUrl ?? ''}/v1/peers`, credential: lab.operatorDir })
  await call(lab, namespace, { url: `${lab.ready?.apiUrl ?? ''}/v1/gateways`, credential: lab.operatorDir })
  await assertNoForeignPeer('instants that are none')
  await owner.query('update gateways set last_seen_at = $1, not_after = $2', [times.seen, times.ends])
  await owner.run('delete from peers')

  await owner.run('alter table peers rename to peers_away; alter table issuers rename to issuers_away')
  await owner.notify('certpeer_changes', { network: 'default/default', revision: 1 })
  await owner.notify('certpeer_crl', {})
  assert.ok((await provision(lab, namespace, alice)).status >= 500)
  await assertNoForeignPeer('tables away')
  await owner.run('alter table peers_away rename to peers; alter table issuers_away rename to issuers')

  const heidi = await enrollHolder(lab, namespace, 'heidi')
  await provisionAndAwait(heidi)
  for (const key of rightful.keys()) await provisionAndAwait(holders.get(key) ?? alice)
  await assertUntouched('after all of it')
  // The gateway has forgotten the session; taking the tunnel up anew is quicker than waiting until WireGuard notices.
  await lab.ok(namespace, ['device', 'down', '--dir', alice.dir])
  await lab.ok(namespace, ['device', 'up', '--dir', alice.dir, '--interface', lab.deviceInterface('alice')])
  assert.ok(await lab.ping(namespace, gatewayAddress))
  await lab.ok(lab.host, ['revoke', '--device', 'heidi', '--wait'])
  rightful.delete(heidi.publicKey)
  await assertUntouched('and a revocation is worked off as ever')
})

async function ocsp(holder: Holder): Promise<string> {
  const issuer = join(lab.stateDir, 'ca', 'issuers', 'device-default.pem')
  const { stdout, stderr } = await lab.run(lab.host, 'openssl', [
    ...['ocsp', '-issuer', issuer, '-cert', join(holder.dir, 'certificate.pem'), '-verify_other', issuer],
    ...['-CAfile', join(lab.stateDir, 'ca', 'root.pem'), '-url', `${lab.ready?.pkiUrl ?? ''}/ocsp/device-default`],
  ])
  assert.match(stderr, /Response verify OK/)
  return stdout
}
