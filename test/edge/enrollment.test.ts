/** Enrolling and renewing against a real authority behind a real nginx. */
import assert from 'node:assert/strict'
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { parseToken } from '../../src/core/messages/token.ts'
import { readOwnIdentity } from '../../src/edge/client-certificate.ts'
import { deviceEnroll, deviceRenew } from '../../src/edge/device/commands.ts'
import { enroll } from '../../src/edge/enrollment.ts'
import { renewServerCertificate } from '../../src/edge/front/server-certificate.ts'
import { readCredential, writeCredential } from '../../src/platform/credentials.ts'
import { AuthorityStage } from './stage.ts'

describe('enrollment', () => {
  let stage: AuthorityStage
  before(async () => {
    stage = await AuthorityStage.start()
  })
  after(async () => stage[Symbol.asyncDispose]())

  test('a token becomes a verified credential; private keys are readable by their owner alone', async () => {
    const dir = stage.at('laptop')
    const report = await deviceEnroll({
      token: await stage.token('laptop', '--group', 'staff'),
      dir,
      log: stage.captured.log,
    })
    assert.match(report.identity, /^spiffe:\/\/default\.certpeer\.test\/network\/default\/device\//)
    assert.deepEqual({ name: report.name, groups: report.groups }, { name: 'laptop', groups: ['staff'] })
    assert.equal(report.addresses.length, 2)
    for (const file of ['tls.key', 'wireguard.key', 'config.json'])
      assert.equal(statSync(`${dir}/${file}`).mode & 0o077, 0)
    assert.ok(existsSync(`${dir}/networks/default.default.jws`))
    assert.deepEqual(
      readdirSync(dir).filter((name) => name.startsWith('.') || name === 'pending.json'),
      [],
    )
  })

  test('a retry after a lost answer sends the same bytes and gets the same certificate; a copied token gets none', async () => {
    const token = await stage.token('lost')
    const [first, second] = [stage.at('lost-1'), stage.at('lost-2')]
    mkdirSync(first)
    mkdirSync(second, { mode: 0o700 })
    // The request as it lay on disk when it was sent: what a device finds whose answer never came.
    const watch = setInterval(() => {
      if (existsSync(`${first}/pending.json`) && !existsSync(`${second}/pending.json`)) {
        copyFileSync(`${first}/pending.json`, `${second}/pending.json`)
      }
    }, 1)
    await enroll({ token, dir: first, wireGuard: true })
    clearInterval(watch)
    assert.ok(existsSync(`${second}/pending.json`))
    await enroll({ token, dir: second, wireGuard: true })
    for (const file of ['certificate.pem', 'tls.key', 'wireguard.key']) {
      assert.equal(readFileSync(`${second}/${file}`, 'utf8'), readFileSync(`${first}/${file}`, 'utf8'))
    }
    await assert.rejects(enroll({ token, dir: stage.at('lost-3'), wireGuard: true }), { code: 'token_used' })
    assert.ok(!existsSync(stage.at('lost-3', 'certificate.pem')))
  })

  for (const [name, change, code] of [
    ['another root', { root: '0'.repeat(64) }, 'certificate_untrusted'],
    ['another trust domain', { trustDomain: 'evil.test' }, 'certificate_untrusted'],
    ['an expiry in the past', { exp: 1_000_000_000 }, 'token_expired'],
    ['a later expiry than it was made with', { exp: 4_000_000_000 }, 'token_invalid'],
    ['another device', { name: 'other' }, 'token_invalid'],
  ] as const) {
    test(`a token that names ${name} is refused and leaves no credential`, async () => {
      const { claims, secret } = parseToken(await stage.token('changed', '--replace'))
      const segment = Buffer.from(JSON.stringify({ ...claims, ...change })).toString('base64url')
      const dir = stage.at(`refused-${name.replaceAll(' ', '-')}`)
      const token = `cpt1.${segment}.${secret.toString('base64url')}`
      await assert.rejects(enroll({ token, dir, wireGuard: true }), { code })
      assert.ok(!existsSync(`${dir}/certificate.pem`))
    })
  }

  test('a token is spent only for what it is for, and only into an empty place', async () => {
    const token = await stage.token('place')
    await assert.rejects(enroll({ token, dir: stage.at('x'), wireGuard: false, expect: 'operator' }), {
      code: 'token_invalid',
    })
    await assert.rejects(enroll({ token, dir: stage.at('laptop'), wireGuard: true }), { code: 'already_exists' })
    await enroll({ token, dir: stage.at('place'), wireGuard: true })
  })

  test('a renewal keeps keys, identity and addresses, and has a new serial number', async () => {
    const dir = stage.at('laptop')
    const before = await readCredential(dir)
    const old = await readOwnIdentity(dir, new Date())
    const report = await deviceRenew({ dir, log: stage.captured.log })
    const after = await readCredential(dir)
    assert.deepEqual([after.tlsKey, after.wireGuardKey], [before.tlsKey, before.wireGuardKey])
    assert.equal(report.identity, old.verified.uri)
    assert.notEqual(report.serial, old.verified.certificate.serial)
  })

  test('the front renews its server certificate over the socket, in the last third and not before', async () => {
    const dir = stage.at('front', 'server')
    const options = {
      dir,
      enrollSource: `unix:${stage.at('run', 'ca-enroll.sock')}`,
      frontSecret: readFileSync(stage.at('secret'), 'utf8'),
    }
    const serial = async () => (await readOwnIdentity(dir, new Date())).verified.certificate.serial
    const first = await serial()
    assert.equal(await renewServerCertificate({ ...options, now: () => new Date() }), false)
    assert.equal(await serial(), first)
    const { notAfter } = (await readOwnIdentity(dir, new Date())).verified.certificate
    const late = () => new Date(notAfter.getTime() - 3_600_000)
    await assert.rejects(renewServerCertificate({ ...options, frontSecret: 'x', now: late }), { code: 'front_refused' })
    assert.equal(await serial(), first)
    assert.equal(await renewServerCertificate({ ...options, now: late }), true)
    assert.notEqual(await serial(), first)
  })

  test('an operator joins with a token, and its role is what it may do', async () => {
    const made = await stage.certpeer(['operator', 'token', '--name', 'auditor', '--role', 'operator-auditor'])
    assert.equal(made.code, 0, made.stderr)
    const joined = await stage.certpeer(['operator', 'join', '-', '--dir', stage.at('auditor')], made.stdout)
    assert.equal(joined.code, 0, joined.stderr)
    const args = ['token', 'create', '--device', 'no', '--operator', stage.at('auditor')]
    const refused = await stage.certpeer(args)
    assert.deepEqual({ code: refused.code, stdout: refused.stdout }, { code: 4, stdout: '' })
    assert.match(refused.stderr, /^certpeer: [^\n]+$/)
  })

  test('a key that is not the certificate’s, or open to others, is refused', async () => {
    const laptop = await readCredential(stage.at('laptop'))
    const place = await readCredential(stage.at('place'))
    const dir = stage.at('mixed')
    await writeCredential(dir, laptop)
    writeFileSync(`${dir}/tls.key`, place.tlsKey)
    await assert.rejects(readCredential(dir), { code: 'config_invalid' })
    await writeCredential(dir, laptop)
    assert.equal((await readCredential(dir)).tlsKey, laptop.tlsKey)
  })

  test('network show is verified; revoke --wait is 3 while gateways cannot be asked, with the proof from CRL or OCSP', async () => {
    const shown = await stage.certpeer(['network', 'show', '--json'])
    assert.equal(shown.code, 0, shown.stderr)
    assert.equal((JSON.parse(shown.stdout) as { mtu: number }[])[0]?.mtu, 1400)
    const args = ['revoke', '--device', 'place', '--reason', 'keyCompromise', '--wait', '--timeout', '3s', '--json']
    const revoked = await stage.certpeer(args)
    assert.equal(revoked.code, 3, revoked.stderr)
    const { confirmation } = JSON.parse(revoked.stdout) as {
      confirmation: { complete: boolean; certificates: { proof: string; missing: { gateway: string }[] }[] }
    }
    assert.equal(confirmation.complete, false)
    assert.match(confirmation.certificates[0]?.proof ?? '', /^(crl|ocsp)$/)
    assert.equal(confirmation.certificates[0]?.missing[0]?.gateway, 'server')
    const renewed = await stage.certpeer(['device', 'renew', '--dir', stage.at('place')])
    assert.equal(renewed.code, 4)
    assert.equal((await readCredential(stage.at('place'))).config.role, 'device')
  })
})
