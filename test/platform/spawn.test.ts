import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { run, runOrThrow } from '../../src/platform/spawn.ts'

const SHORT = { timeoutMs: 5000 }

test('output, status and input', async () => {
  assert.deepEqual(await run('sh', ['-c', 'cat; echo no >&2; exit 3'], { ...SHORT, input: 'in' }), {
    code: 3,
    stdout: 'in',
    stderr: 'no\n',
  })
})

test('arguments reach the program as they are, no shell reads them', async () => {
  const odd = ['$(id)', '; exit 9', "'", '*', 'a b', '']
  const { stdout } = await run('printf', ['%s\n', ...odd], SHORT)
  assert.deepEqual(stdout.split('\n').slice(0, -1), odd)
})

test('without input the program reads nothing', async () => {
  assert.equal((await run('cat', [], SHORT)).stdout, '')
})

test('a program that does not read its input is no failure', async () => {
  assert.equal((await run('true', [], { ...SHORT, input: 'x'.repeat(1_000_000) })).code, 0)
})

test('environment and working directory', async () => {
  const { stdout } = await run('/bin/sh', ['-c', 'echo $A $HOME; pwd'], { ...SHORT, env: { A: '1' }, cwd: '/' })
  assert.equal(stdout, '1\n/\n')
})

test('ended by a signal: 128 + number', async () => {
  assert.equal((await run('sh', ['-c', 'kill -TERM $$'], SHORT)).code, 143)
})

describe('thrown', () => {
  for (const [name, start, code] of [
    ['a program that is not there', () => run('certpeer-no-such-program', [], SHORT), 'missing_program'],
    ['a file that is no program', () => run('/etc/passwd', [], SHORT), 'missing_privilege'],
    [
      'a working directory that is not there',
      () => run('true', [], { ...SHORT, cwd: '/nonexistent' }),
      'missing_program',
    ],
    ['too late', () => run('sleep', ['30'], { timeoutMs: 50 }), 'timeout'],
    ['too much', () => run('yes', [], { ...SHORT, maxBytes: 1000 }), 'unavailable'],
    ['stopped before', () => run('sleep', ['30'], { ...SHORT, signal: AbortSignal.abort() }), 'unavailable'],
    ['stopped meanwhile', () => run('sleep', ['30'], { ...SHORT, signal: AbortSignal.timeout(50) }), 'unavailable'],
  ] as const) {
    test(name, async () => {
      const startedAt = Date.now()
      await assert.rejects(start(), { code })
      assert.ok(Date.now() - startedAt < 4000)
    })
  }

  test('runOrThrow: a status other than 0, with what was said last', async () => {
    assert.equal((await runOrThrow('echo', ['x'], SHORT)).stdout, 'x\n')
    const failing = runOrThrow('sh', ['-c', 'for i in 1 2 3 4 5; do echo line $i >&2; done; exit 4'], SHORT)
    await assert.rejects(failing, { code: 'unavailable', message: /status 4: line 3 \| line 4 \| line 5$/ })
  })
})
