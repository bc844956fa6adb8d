import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { z } from 'zod'
import { mergeConfig, readConfig, refuseUnknownVariables } from '../../../src/platform/config/config-file.ts'

const folder = mkdtempSync(join(tmpdir(), 'certpeer-config-'))
after(() => rmSync(folder, { recursive: true, force: true }))
const file = join(folder, 'config.json')
const schema = z.strictObject({
  runDir: z.string(),
  periodSeconds: z.int().min(1).default(300),
  endpoints: z.strictObject({ urls: z.array(z.url()) }).optional(),
})
const read = (text: string) => {
  writeFileSync(file, text)
  return readConfig(schema, file)
}

test('a good file is read, filled and frozen to the bottom', () => {
  const config = read('{"runDir":"/run/x","endpoints":{"urls":["https://a.example"]}}')
  assert.deepEqual(config, { runDir: '/run/x', periodSeconds: 300, endpoints: { urls: ['https://a.example'] } })
  assert.ok(Object.isFrozen(config) && Object.isFrozen(config.endpoints) && Object.isFrozen(config.endpoints.urls))
})

test('every fault is told at once, and where', () => {
  assert.throws(
    () => read('{"periodSeconds":"5","endpoints":{"urls":["https://a.example","x"]},"perod":1}'),
    (error: Error & { code?: string }) =>
      error.code === 'config_invalid' &&
      [file, '4 fault', 'runDir: ', 'periodSeconds: ', 'endpoints.urls.1: ', 'perod'].every((part) =>
        error.message.includes(part),
      ),
  )
})

test('what a program decides is written, what was added by hand stays', async () => {
  const place = join(folder, 'merged.json')
  await mergeConfig(place, { runDir: '/run/x' })
  assert.equal(statSync(place).mode & 0o777, 0o600)
  writeFileSync(place, '{"runDir":"/run/old","periodSeconds":5}')
  await mergeConfig(place, { runDir: '/run/new' })
  assert.deepEqual(JSON.parse(readFileSync(place, 'utf8')), { runDir: '/run/new', periodSeconds: 5 })
  for (const bad of ['{', '[]', 'null']) {
    writeFileSync(place, bad)
    await assert.rejects(mergeConfig(place, {}), { code: 'config_invalid' })
    assert.equal(readFileSync(place, 'utf8'), bad)
  }
})

test('a bad value is never replaced by the default', () => {
  assert.throws(() => read('{"runDir":"/run/x","periodSeconds":0}'), { code: 'config_invalid' })
  assert.throws(() => read('{"runDir":"/run/x","periodSeconds":null}'), { code: 'config_invalid' })
})

describe('a file that cannot be read', () => {
  test('is missing', () => {
    const missing = join(folder, 'missing.json')
    assert.throws(() => readConfig(schema, missing), { code: 'config_invalid', message: /does not exist/ })
  })

  test('is no JSON: the message does not quote it, since a secret may stand there', () => {
    assert.throws(
      () => read('{"password": hunter2}'),
      (error: Error & { code?: string }) =>
        error.code === 'config_invalid' && !error.message.includes('hunter2') && error.cause === undefined,
    )
  })
})

test('an unknown CERTPEER_ variable is a misspelt one', () => {
  refuseUnknownVariables(['CERTPEER_STATE'], { CERTPEER_STATE: 'x', PATH: '/bin' })
  assert.throws(() => refuseUnknownVariables(['CERTPEER_STATE'], { CERTPEER_STAET: 'x' }), {
    code: 'config_invalid',
    message: /CERTPEER_STAET; known are CERTPEER_STATE/,
  })
})
