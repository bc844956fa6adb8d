/** Joining against a real authority behind nginx: whole or not at all, and again in the same place. */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { readGatewayConfig, readOwnGateway } from '../../../src/edge/gateway/config.ts'
import { joinGateway } from '../../../src/edge/gateway/join.ts'
import { readCredential } from '../../../src/platform/credentials.ts'
import { AuthorityStage } from '../stage.ts'

describe('gateway join', () => {
  let stage: AuthorityStage
  before(async () => {
    stage = await AuthorityStage.start()
  })
  after(async () => {
    await stage[Symbol.asyncDispose]()
  })

  async function token(name: string, ...more: string[]): Promise<string> {
    const { code, stdout, stderr } = await stage.certpeer(['gateway', 'token', '--gateway', name, ...more])
    assert.equal(code, 0, stderr)
    return stdout.trim()
  }

  const settings = { endpoint: '192.0.2.1:51820', interface: 'wg9', wireguardPort: 51_821 }

  test('makes a directory with everything in it', async () => {
    const dir = stage.at('g1')
    await joinGateway({ token: await token('g1'), dir, ...settings })
    const { config } = await readCredential(dir)
    assert.deepEqual(readGatewayConfig(config), { ...settings, backend: 'auto', reconcileSeconds: 30, pollSeconds: 10 })
    const { facts } = await readOwnGateway(dir)
    assert.deepEqual(facts.servedNetworks, ['default/default'])
    assert.ok(facts.tunnelAddresses.length > 0)
    assert.ok(existsSync(join(dir, 'networks', 'default.default.jws')))
    assert.equal(existsSync(join(dir, '.join')), false)
  })

  test('a token that is refused leaves what was there', async () => {
    const dir = stage.at('g1')
    const before = readFileSync(join(dir, 'certificate.pem'), 'utf8')
    const used = await token('g1', '--replace')
    await joinGateway({ token: used, dir: stage.at('elsewhere'), ...settings })
    await assert.rejects(joinGateway({ token: used, dir, ...settings }), { code: 'token_used' })
    assert.equal(readFileSync(join(dir, 'certificate.pem'), 'utf8'), before)
  })

  test('again in the same place gives new keys, keeps what is known, and only for the same gateway', async () => {
    const dir = stage.at('g1')
    mkdirSync(join(dir, 'peers'), { recursive: true })
    writeFileSync(join(dir, 'peers', 'journal.ndjson'), '')
    const before = (await readOwnGateway(dir)).identity
    await assert.rejects(joinGateway({ token: await token('g2'), dir, ...settings }), { code: 'already_exists' })
    await joinGateway({ token: await token('g1', '--replace'), dir, ...settings, wireguardPort: 51_900 })
    const own = await readOwnGateway(dir)
    assert.equal(own.identity.name, before.name)
    assert.notEqual(own.identity.key, before.key)
    assert.equal((await readCredential(dir)).config.wireguardPort, 51_900)
    assert.ok(existsSync(join(dir, 'peers', 'journal.ndjson')))
  })

  test('killed after the token was spent, it goes on with what it had received', async () => {
    const dir = stage.at('g3')
    const text = await token('g3')
    await joinGateway({ token: text, dir, ...settings })
    const { identity } = await readOwnGateway(dir)
    // The directory as it was between the answer and the last step.
    renameSync(dir, stage.at('half'))
    mkdirSync(dir)
    renameSync(stage.at('half'), join(dir, '.join'))
    await joinGateway({ token: text, dir, ...settings })
    assert.equal((await readOwnGateway(dir)).identity.serial, identity.serial)
    rmSync(dir, { recursive: true })
  })

  for (const endpoint of ['', 'host', 'host:0', 'host:65536', 'ho st:1', '::1:5', 'http://x:1']) {
    test(`endpoint ${JSON.stringify(endpoint)} is refused before the token is spent`, async () => {
      const fresh = await token(`e${Buffer.from(endpoint).toString('hex').slice(0, 20)}`)
      const dir = stage.at('never')
      await assert.rejects(joinGateway({ token: fresh, dir, ...settings, endpoint }), { code: 'usage' })
      assert.equal(existsSync(dir), false)
    })
  }
})
