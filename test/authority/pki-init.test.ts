import assert from 'node:assert/strict'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { initializePki } from '../../src/authority/pki-init.ts'
import { parsePrefix } from '../../src/core/ipam/prefix.ts'
import { silentLogger } from '../../src/platform/log.ts'

function place(t: TestContext) {
  const base = mkdtempSync(join(tmpdir(), 'certpeer-init-'))
  t.after(() => rmSync(base, { recursive: true, force: true }))
  const blocks = [parsePrefix('10.1.0.0/16')]
  return {
    base,
    options: {
      caDir: join(base, 'ca'),
      rootDir: join(base, 'root'),
      trustDomain: 'certpeer.internal',
      pen: 32473,
      tenants: [{ name: 'red', blocks }],
      infrastructureBlocks: blocks,
      log: silentLogger(),
    },
  }
}

test('a PKI is made once, with its keys closed to others', async (t) => {
  const { base, options } = place(t)
  mkdirSync(options.caDir)
  writeFileSync(join(options.caDir, 'config.json'), '{}')
  await initializePki(options)
  for (const name of ['ca/keys/authority.key', 'ca/keys/device-red.key', 'ca/token.key', 'root/root.key']) {
    assert.equal(statSync(join(base, name)).mode & 0o777, 0o600, name)
  }
  assert.ok(existsSync(join(options.caDir, 'config.json')))
  await assert.rejects(initializePki(options), { code: 'already_exists' })
})

test('what an interrupted run left is finished or made anew, never mixed', async (t) => {
  const { base, options } = place(t)
  await initializePki(options)
  const root = readFileSync(join(base, 'root', 'root.pem'), 'utf8')
  // Died between the two moves.
  renameSync(join(base, 'ca'), join(base, 'ca.partial'))
  await initializePki(options)
  assert.equal(readFileSync(join(base, 'ca', 'root.pem'), 'utf8'), root)
  assert.ok(!existsSync(join(base, 'ca.partial')))
  // Died while building.
  cpSync(join(base, 'ca'), join(base, 'ca.partial'), { recursive: true })
  rmSync(join(base, 'ca.partial', 'authority.json'))
  rmSync(join(base, 'ca'), { recursive: true })
  rmSync(join(base, 'root'), { recursive: true })
  await initializePki(options)
  assert.notEqual(readFileSync(join(base, 'ca', 'root.pem'), 'utf8'), root)
  assert.equal(readFileSync(join(base, 'ca', 'root.pem'), 'utf8'), readFileSync(join(base, 'root', 'root.pem'), 'utf8'))
})

for (const { name, changes } of [
  { name: 'no tenant', changes: { tenants: [] } },
  { name: 'a bad trust domain', changes: { trustDomain: 'Not a domain' } },
  { name: 'a tenant name that no certificate can hold', changes: { tenants: [{ name: 'x'.repeat(60), blocks: [] }] } },
]) {
  test(`${name} is refused before anything is made`, async (t) => {
    const { base, options } = place(t)
    await assert.rejects(initializePki({ ...options, ...changes }), { code: 'config_invalid' })
    assert.ok(!existsSync(join(base, 'ca')))
    assert.ok(!existsSync(join(base, 'root')))
  })
}
