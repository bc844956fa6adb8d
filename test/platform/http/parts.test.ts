import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CertpeerError, ERROR_CODES } from '../../../src/core/errors.ts'
import { problemSchema } from '../../../src/core/messages/problem.ts'
import { parseJson } from '../../../src/platform/http/json.ts'
import { STATUS, toProblem } from '../../../src/platform/http/problem.ts'
import { addressKey } from '../../../src/platform/http/rate-limit.ts'
import { compilePath, parseTarget } from '../../../src/platform/http/target.ts'

test('every error code is a problem with a status of its own, and nothing of its cause', () => {
  for (const code of ERROR_CODES) {
    const problem = problemSchema.parse(
      toProblem(new CertpeerError(code, 'said', { cause: new Error('secret') }), 'id'),
    )
    assert.equal(problem.status, STATUS[code])
    assert.ok(problem.status >= 400 && problem.status < 600)
    assert.equal(problem.code, code)
    assert.equal(problem.detail, code === 'internal' ? undefined : 'said')
    assert.ok(!JSON.stringify(problem).includes('secret'))
  }
  for (const thrown of [new Error('secret'), 'secret', null, undefined, { code: 'not_found', message: 'secret' }]) {
    const problem = toProblem(thrown, 'id')
    assert.deepEqual([problem.status, problem.code, problem.detail], [500, 'internal', undefined])
  }
})

test('JSON of any shape comes through as it is, unless it can reach a prototype', () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      const text = JSON.stringify(value)
      assert.deepEqual(parseJson(text), JSON.parse(text))
    }),
  )
  const deep = `${'['.repeat(50_000)}"\\u0041"${']'.repeat(50_000)}`
  assert.doesNotThrow(() => parseJson(deep))
  assert.deepEqual(parseJson('{"constructor":"me"}'), { constructor: 'me' })
  assert.deepEqual(parseJson('{"a":"__proto__"}'), { a: '__proto__' })
})

test('a target that parses has one reading', () => {
  fc.assert(
    fc.property(
      fc.array(fc.constantFrom('/', 'a', '.', '..', '%2e', '%2F', '//', '\\', '%', '%00', 'ä', ' ')),
      (parts) => {
        const url = `/${parts.join('')}`
        let target
        try {
          target = parseTarget(url)
        } catch (error) {
          assert.ok(error instanceof CertpeerError && error.code === 'malformed_request')
          return
        }
        // What a URL parser makes of it is what we made of it: no dot segment, no backslash, nothing repaired.
        assert.equal(new URL(`http://h${target.path}`).pathname, target.path)
      },
    ),
  )
})

test('the last *name takes what is left, slashes and all, as OCSP by GET needs', () => {
  const pattern = compilePath('/ocsp/:issuer/*request')
  const match = (path: string) => pattern.match(parseTarget(path).segments)
  assert.deepEqual(match('/ocsp/ca/MEow%2BA%3D%3D'), { issuer: 'ca', request: 'MEow+A==' })
  assert.deepEqual(match('/ocsp/ca/a/b//c%2Fd'), { issuer: 'ca', request: 'a/b//c/d' })
  assert.equal(match('/ocsp/ca'), undefined)
  assert.equal(match('/ocsp/ca/'), undefined)
  assert.equal(match('/ocsp//x'), undefined)
  assert.throws(() => match('/ocsp/ca/../x'), { code: 'malformed_request' })
  assert.throws(() => compilePath('/a/*b/c'), TypeError)
  assert.throws(() => compilePath('a'), TypeError)
})

for (const [address, key] of [
  ['192.0.2.1', '192.0.2.1'],
  ['::ffff:192.0.2.1', '192.0.2.1'],
  ['2001:db8::1', '2001:db8:0:0::/64'],
  ['2001:0db8:0000:0000:ffff::1', '2001:db8:0:0::/64'],
  ['2001:DB8:0:1:2:3:4:5', '2001:db8:0:1::/64'],
  ['::1', '0:0:0:0::/64'],
  ['fe80::1%eth0', 'fe80:0:0:0::/64'],
  ['2001:db8::192.0.2.1', '2001:db8:0:0::/64'],
  ['local', 'local'],
] as const) {
  test(`${address} is counted as ${key}`, () => assert.equal(addressKey(address), key))
}
