/** The supervisor of `certpeer up`: who is started again, who is given up, and what is said about it. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { Supervisor, type ChildSpec } from '../../src/cli/local/supervisor.ts'
import { temporaryDirectory } from '../support/http.ts'

function stage(t: TestContext) {
  const folder = temporaryDirectory()
  const said: string[] = []
  const supervisor = new Supervisor(folder.path, (line) => said.push(line))
  t.after(async () => {
    await supervisor.stop()
    folder.remove()
  })
  return { supervisor, said, log: (name: string) => readFileSync(join(folder.path, `${name}.log`), 'utf8') }
}

function shell(name: string, script: string): ChildSpec {
  return { name, command: 'sh', args: ['-c', script], stopSignal: 'SIGTERM' }
}

async function until(condition: () => boolean): Promise<void> {
  for (const deadline = Date.now() + 15_000; !condition();) {
    assert.ok(Date.now() < deadline, 'not in time')
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

test('a refusal that stays is told by its own words, after three times', async (t) => {
  const { supervisor, said, log } = stage(t)
  const script = 'echo noise; echo "certpeer: the ledger is damaged; restore it" >&2; echo more; exit 7'
  supervisor.start(shell('ca', script))
  await assert.rejects(supervisor.failed, {
    code: 'config_invalid',
    message: 'ca does not start: the ledger is damaged; restore it',
  })
  assert.equal(log('ca').match(/noise/g)?.length, 3)
  assert.deepEqual(said, [
    'ca ended with 7; starting it again in 200 ms',
    'ca ended with 7; starting it again in 400 ms',
  ])
})

test('other failures are tried five times, also refusals that differ', async (t) => {
  const { supervisor, log } = stage(t)
  supervisor.start(shell('gateway', 'echo "certpeer: device $$ is away" >&2; exit 7'))
  await assert.rejects(supervisor.failed, {
    code: 'unavailable',
    message: /^gateway ended with 7, 5 times within a minute: device \d+ is away \(see .*gateway\.log\)$/,
  })
  assert.equal(log('gateway').match(/is away/g)?.length, 5)
})

test('what was killed is started again, after its leftovers were cleared', async (t) => {
  const { supervisor, said } = stage(t)
  let cleared = 0
  const beforeRestart = () => {
    cleared += 1
    return Promise.resolve()
  }
  supervisor.start({ ...shell('nginx', 'exec sleep 60'), beforeRestart })
  const first = supervisor.pid('nginx') ?? 0
  process.kill(first, 'SIGKILL')
  await until(() => supervisor.pid('nginx') !== undefined && supervisor.pid('nginx') !== first)
  assert.equal(cleared, 1)
  assert.deepEqual(said, ['nginx ended by SIGKILL; starting it again in 200 ms'])
})

test('stopping: nothing is started any more, and who does not end is killed', async (t) => {
  const { supervisor, said } = stage(t)
  supervisor.start({ ...shell('deaf', 'trap "" TERM; echo ready; while :; do sleep 0.1; done'), stopTimeoutMs: 200 })
  supervisor.start(shell('brief', 'exit 1'))
  await until(() => said.length > 0)
  await supervisor.stop()
  assert.equal(supervisor.pid('deaf'), undefined)
  assert.ok(said.includes('deaf does not end; killing it'))
  assert.throws(() => supervisor.start(shell('late', 'exit 0')), { code: 'unavailable' })
  await new Promise((resolve) => setTimeout(resolve, 400))
  assert.equal(supervisor.pid('brief'), undefined, 'not started again')
})
