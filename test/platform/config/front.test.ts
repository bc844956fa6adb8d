import assert from 'node:assert/strict'
import { test } from 'node:test'
import { frontConfigSchema } from '../../../src/platform/config/front.ts'

const CONFIG = {
  listen: '127.0.0.1',
  ports: { enroll: 8443, authority: 8444, api: 8445, gateways: 8446, pki: 8447 },
  roles: ['authority', 'control'],
  runDir: '/srv/state/run',
  pkiSource: 'unix:/srv/state/run/ca-pki.sock',
  enrollSource: 'https://ca.example:8443',
  rootCertificate: '/srv/state/root.pem',
  frontSecretFile: '/srv/state/front.secret',
  trustDomain: 'example.internal',
  pen: 32_473,
}

for (const { name, change, ok } of [
  { name: 'as it is', change: {}, ok: true },
  {
    name: 'a directory with a space in its name',
    change: { runDir: '/srv/my state/run', pkiSource: 'unix:/srv/my state/run/ca-pki.sock' },
    ok: true,
  },
  { name: 'a path that ends the quotes of nginx', change: { runDir: '/srv/"; include x' }, ok: false },
  { name: 'a path with a variable of nginx', change: { runDir: '/srv/$host' }, ok: false },
  { name: 'a relative path', change: { runDir: 'run' }, ok: false },
  { name: 'a URL with a space', change: { pkiSource: 'http://ca.example/a b' }, ok: false },
  { name: 'an unknown setting', change: { listenn: '::1' }, ok: false },
]) {
  test(`front configuration: ${name} is ${ok ? 'taken' : 'refused'}`, () => {
    assert.equal(frontConfigSchema.safeParse({ ...CONFIG, ...change }).success, ok)
  })
}
