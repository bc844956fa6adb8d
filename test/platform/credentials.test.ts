import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import {
  hasCredential,
  readCredential,
  updateCredentialConfig,
  writeCredential,
  type CredentialFiles,
} from '../../src/platform/credentials.ts'
import { temporaryDirectory } from '../support/http.ts'

const directory = temporaryDirectory()
after(() => directory.remove())

let old: CredentialFiles
let renewed: CredentialFiles
let folders = 0

const freshDirectory = (): string => join(directory.path, String(++folders))

function makeCredential(name: string): CredentialFiles {
  const path = join(directory.path, name)
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
  execFileSync(
    'openssl',
    ['req', '-x509', ...curve, '-keyout', `${path}.key`, '-out', `${path}.pem`, '-subj', `/CN=${name}`],
    {
      stdio: 'pipe',
    },
  )
  const certificate = readFileSync(`${path}.pem`, 'utf8')
  return {
    certificate,
    issuer: certificate,
    root: certificate,
    tlsKey: readFileSync(`${path}.key`, 'utf8'),
    wireGuardKey: Buffer.alloc(32, name.length).toString('base64'),
    config: {
      role: 'device',
      identity: `spiffe://default.certpeer.internal/network/default/device/${name}`,
      name: 'laptop',
      trustDomain: 'certpeer.internal',
      pen: 32473,
      enrollUrl: 'https://ca.test:8443',
      authorityUrl: 'https://ca.test:8444',
      apiUrl: 'https://ca.test:8445',
      gatewaysUrl: 'https://ca.test:8446',
      pkiUrl: 'http://ca.test:8447',
    },
  }
}

before(() => {
  old = makeCredential('old')
  renewed = makeCredential('renewed')
})

test('what is written is read back, keys closed to others, nothing else left', async () => {
  const dir = freshDirectory()
  assert.equal(hasCredential(dir), false)
  await writeCredential(dir, old)
  assert.equal(hasCredential(dir), true)
  const got = await readCredential(dir)
  assert.deepEqual(
    [got.certificate, got.issuer, got.tlsKey, got.wireGuardKey, got.root, got.config],
    [old.certificate, old.issuer, old.tlsKey, old.wireGuardKey, old.root, old.config],
  )
  assert.deepEqual(readdirSync(dir).sort(), ['certificate.pem', 'config.json', 'root.pem', 'tls.key', 'wireguard.key'])
  for (const [name, mode] of [
    ['tls.key', 0o600],
    ['wireguard.key', 0o600],
    ['config.json', 0o600],
    ['certificate.pem', 0o644],
  ] as const) {
    assert.equal(statSync(join(dir, name)).mode & 0o777, mode, name)
  }
  assert.equal(statSync(dir).mode & 0o777, 0o700)
})

test('a renewal replaces certificate and key together and leaves other files alone', async () => {
  const dir = freshDirectory()
  await writeCredential(dir, old)
  writeFileSync(join(dir, 'networks.json'), 'kept')
  await writeCredential(dir, renewed)
  assert.equal((await readCredential(dir)).tlsKey, renewed.tlsKey)
  assert.equal(readFileSync(join(dir, 'networks.json'), 'utf8'), 'kept')
  const changed = await updateCredentialConfig(dir, { interface: 'wg7' })
  assert.equal(changed.config.interface, 'wg7')
  assert.deepEqual((await readCredential(dir)).config, { ...renewed.config, interface: 'wg7' })
})

describe('killed while it is replaced', () => {
  const FILES = ['tls.key', 'wireguard.key', 'root.pem', 'config.json', 'certificate.pem']

  test('before the one rename: the old one, whole', async () => {
    for (let written = 0; written <= FILES.length; written++) {
      const dir = freshDirectory()
      const source = freshDirectory()
      await writeCredential(dir, old)
      await writeCredential(source, renewed)
      mkdirSync(join(dir, '.next'), { mode: 0o700 })
      for (const name of FILES.slice(0, written)) copyFileSync(join(source, name), join(dir, '.next', name))
      assert.equal((await readCredential(dir)).certificate, old.certificate)
      await writeCredential(dir, renewed)
      assert.equal((await readCredential(dir)).certificate, renewed.certificate)
    }
  })

  test('after it, with any of its files already in place: the new one, whole', async () => {
    for (let moved = 0; moved <= FILES.length; moved++) {
      const dir = freshDirectory()
      const source = freshDirectory()
      await writeCredential(dir, old)
      await writeCredential(source, renewed)
      mkdirSync(join(dir, '.commit'), { mode: 0o700 })
      for (const [index, name] of FILES.entries()) {
        copyFileSync(join(source, name), index < moved ? join(dir, name) : join(dir, '.commit', name))
      }
      const got = await Promise.all([readCredential(dir), readCredential(dir), readCredential(dir)])
      for (const credential of got) {
        assert.equal(credential.certificate, renewed.certificate)
        assert.equal(credential.tlsKey, renewed.tlsKey)
      }
      assert.equal(existsSync(join(dir, '.commit')), false)
    }
  })
})

describe('refused', () => {
  for (const { name, spoil, code } of [
    { name: 'an empty directory', spoil: undefined, code: 'not_found' },
    {
      name: 'a TLS key open to its group',
      spoil: (dir: string) => chmodSync(join(dir, 'tls.key'), 0o640),
      code: 'config_invalid',
    },
    {
      name: 'a WireGuard key open to others',
      spoil: (dir: string) => chmodSync(join(dir, 'wireguard.key'), 0o604),
      code: 'config_invalid',
    },
    {
      name: 'a certificate without its issuer',
      spoil: (dir: string) => writeFileSync(join(dir, 'certificate.pem'), old.certificate),
      code: 'config_invalid',
    },
    {
      name: 'a third certificate',
      spoil: (dir: string) => writeFileSync(join(dir, 'certificate.pem'), old.certificate.repeat(3)),
      code: 'config_invalid',
    },
    {
      name: 'another certificate’s key',
      spoil: (dir: string) => writeFileSync(join(dir, 'tls.key'), renewed.tlsKey, { mode: 0o600 }),
      code: 'config_invalid',
    },
    {
      name: 'a key that is none',
      spoil: (dir: string) => writeFileSync(join(dir, 'tls.key'), 'x'),
      code: 'config_invalid',
    },
    {
      name: 'a configuration with a fault',
      spoil: (dir: string) => writeFileSync(join(dir, 'config.json'), '{"role":"king"}'),
      code: 'config_invalid',
    },
  ]) {
    test(name, async () => {
      const dir = freshDirectory()
      if (spoil !== undefined) {
        await writeCredential(dir, old)
        spoil(dir)
      }
      await assert.rejects(readCredential(dir), (error: Error & { code?: string }) => {
        assert.equal(error.code, code, error.message)
        assert.ok(!error.message.includes('PRIVATE KEY'))
        return true
      })
    })
  }
})
