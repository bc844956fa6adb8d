import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { CertpeerError } from '../../src/core/errors.ts'
import { REDACTED_FIELDS, createLogger, silentLogger } from '../../src/platform/log.ts'
import type { LogLevel, Logger } from '../../src/platform/log.ts'

function record(level: LogLevel = 'info'): { log: Logger; text: () => string; lines: () => Record<string, unknown>[] } {
  const written: string[] = []
  const log = createLogger({ name: 'test', level, destination: { write: (line: string) => void written.push(line) } })
  const text = () => written.join('')
  return { log, text, lines: () => written.map((line) => JSON.parse(line) as Record<string, unknown>) }
}

const SECRET = 'hunter2hunter2'
const KEY_PEM = `-----BEGIN PRIVATE KEY-----\n${SECRET}\n-----END PRIVATE KEY-----\n`
const TOKEN = `cpt1.eyJ2IjoxfQ.${SECRET}`

test('a line has level, time, name, fields and a message', () => {
  const { log, lines } = record()
  log.info({ gateway: 'g1', revision: 7 }, 'revision applied')
  const [line] = lines()
  assert.equal(line?.['level'], 'info')
  assert.equal(line['name'], 'test')
  assert.equal(line['gateway'], 'g1')
  assert.equal(line['revision'], 7)
  assert.equal(line['msg'], 'revision applied')
  assert.match(String(line['time']), /^\d{4}-\d\d-\d\dT.*Z$/)
})

test('levels below the chosen one are not written', () => {
  const { log, lines } = record('warn')
  log.info('no')
  log.warn('yes')
  assert.equal(lines().length, 1)
})

describe('nothing secret is written', () => {
  const deep = { a: { b: [{ c: { privateKey: SECRET } }] } }
  for (const [name, write] of [
    ...[...REDACTED_FIELDS].map(
      (field) => [`field ${field}`, (log: Logger) => log.info({ [field]: SECRET }, 'x')] as const,
    ),
    [
      'a field in another spelling',
      (log: Logger) => log.info({ private_key: SECRET, 'X-Certpeer-Front': SECRET, PSK: SECRET }, 'x'),
    ],
    ['deep inside', (log: Logger) => log.info(deep, 'x')],
    ['bindings of a child', (log: Logger) => log.child({ psk: SECRET }).info('x')],
    [
      'bindings of a grandchild',
      (log: Logger) =>
        log
          .child({ a: 1 })
          .child({ more: { token: SECRET } })
          .info('x'),
    ],
    ['fields of a child', (log: Logger) => log.child({ a: 1 }).info({ secret: SECRET }, 'x')],
    ['a key as text', (log: Logger) => log.info({ note: `here: ${KEY_PEM}` }, 'x')],
    ['a cut-off key', (log: Logger) => log.info({ note: KEY_PEM.slice(0, 50) }, 'x')],
    ['a token as text', (log: Logger) => log.info({ argv: ['enroll', TOKEN] }, 'x')],
    ['a message', (log: Logger) => log.info(`enroll with ${TOKEN}`)],
    ['a message behind fields', (log: Logger) => log.info({ a: 1 }, `enroll with ${TOKEN}`)],
    ['an argument of a message', (log: Logger) => log.info('enroll with %s', TOKEN)],
    ['an error', (log: Logger) => log.error({ err: new Error(`bad ${TOKEN}`) }, 'x')],
    ['a bare error', (log: Logger) => log.error(new Error(`bad ${TOKEN}`))],
    ['an object as an argument of a message', (log: Logger) => log.info('with %o', { token: SECRET })],
    ['a bare error and a message', (log: Logger) => log.error(new Error(`bad ${TOKEN}`), `bad ${TOKEN}`)],
    [
      'the cause of an error',
      (log: Logger) => log.error({ err: new CertpeerError('internal', 'x', { cause: new Error(KEY_PEM) }) }, 'x'),
    ],
    [
      'own fields of an error',
      (log: Logger) => log.error({ err: Object.assign(new Error('x'), { query: SECRET }) }, 'x'),
    ],
    [
      'the password of a URL',
      (log: Logger) => log.error({ err: new Error(`connect postgres://ca:${SECRET}@/db`) }, 'x'),
    ],
    ['bytes', (log: Logger) => log.info({ raw: Buffer.from(SECRET) }, 'x')],
  ] as const) {
    test(name, () => {
      const { log, text, lines } = record()
      write(log)
      assert.equal(lines().length, 1)
      assert.ok(!text().includes(SECRET), text())
      assert.ok(!text().includes(Buffer.from(SECRET).toString('base64')), text())
      assert.ok(!text().includes(Buffer.from(SECRET).join()), text())
    })
  }
})

test('a child keeps the bindings of those above it', () => {
  const { log, lines } = record()
  log.child({ tenant: 't' }).child({ device: 'd' }).info('x')
  assert.equal(lines()[0]?.['tenant'], 't')
  assert.equal(lines()[0]?.['device'], 'd')
})

test('an error is told with type, code, message, stack and causes', () => {
  const { log, lines } = record()
  const cause = Object.assign(new Error('connect'), { code: 'ECONNREFUSED' })
  log.error({ err: new CertpeerError('unavailable', 'database away', { cause }) }, 'failed')
  const err = lines()[0]?.['err'] as Record<string, unknown>
  assert.equal(err['code'], 'unavailable')
  assert.equal(err['message'], 'database away')
  assert.match(String(err['stack']), /log\.test/)
  assert.equal((err['cause'] as Record<string, unknown>)['code'], 'ECONNREFUSED')
})

test('what is odd is written all the same: cycles, big numbers, long text, instants', () => {
  const { log, lines } = record()
  const cycle: Record<string, unknown> = { at: new Date(0), size: 12n, text: 'x'.repeat(100_000) }
  cycle['self'] = cycle
  log.info(cycle, 'x')
  assert.equal(lines()[0]?.['size'], '12')
  assert.equal(lines()[0]?.['at'], '1970-01-01T00:00:00.000Z')
  assert.ok(JSON.stringify(lines()[0]).length < 100_000)
})

test('a file is a destination, closed to others', () => {
  const folder = mkdtempSync(join(tmpdir(), 'certpeer-log-'))
  try {
    const file = join(folder, 'x.log')
    createLogger({ name: 'test', destination: { file } }).info('hello')
    assert.match(readFileSync(file, 'utf8'), /"msg":"hello"/)
    assert.equal(statSync(file).mode & 0o007, 0)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('the silent logger is silent', () => {
  silentLogger().fatal('x')
})
