import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { systemNow } from '../../src/platform/clock.ts'
import { aborted, sleep } from '../../src/platform/lifecycle.ts'
import { packageRoot } from '../../src/platform/package-root.ts'

const extension = import.meta.filename.endsWith('.ts') ? '.ts' : '.js'
const MODULE = pathToFileURL(join(import.meta.dirname, '..', '..', 'src', 'platform', `lifecycle${extension}`)).href

describe('sleep', () => {
  test('lasts about as long as asked', async () => {
    const startedAt = performance.now()
    await sleep(30)
    assert.ok(performance.now() - startedAt >= 28)
  })

  test('ends at once when the signal aborts, before or meanwhile, and leaves no listener', async () => {
    await sleep(60_000, AbortSignal.abort())
    const controller = new AbortController()
    const sleeping = sleep(60_000, controller.signal)
    controller.abort()
    await sleeping
    await aborted(controller.signal)
  })

  test('aborted waits for the signal', async () => {
    const controller = new AbortController()
    let ended = false
    const waiting = aborted(controller.signal).then(() => (ended = true))
    await sleep(1)
    assert.equal(ended, false)
    controller.abort()
    await waiting
  })
})

describe('abortOnSignals', () => {
  test('two at once are one wish: the drain goes on', async () => {
    const script = `
      const { abortOnSignals } = await import(${JSON.stringify(MODULE)})
      const timer = setInterval(() => {}, 1000)
      abortOnSignals().addEventListener('abort', () => setTimeout(() => {
        console.log('drained')
        clearInterval(timer)
      }, 300))
      console.log('ready')`
    const loader = process.execArgv.filter(
      (argument, index, all) => argument.startsWith('--import') || all[index - 1] === '--import',
    )
    const child = spawn(process.execPath, [...loader, '--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, NODE_TEST_CONTEXT: undefined },
    })
    let said = ''
    child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()))
    const ended = once(child, 'exit')
    await once(child.stdout, 'data')
    child.kill('SIGTERM')
    child.kill('SIGINT')
    const [status] = (await ended) as [number | null]
    assert.equal(status, 0)
    assert.match(said, /drained/)
  })

  for (const { name, signals, code, said } of [
    { name: 'SIGTERM asks to stop', signals: ['SIGTERM'], code: 0, said: 'stopping\n' },
    { name: 'SIGINT asks to stop', signals: ['SIGINT'], code: 0, said: 'stopping\n' },
    { name: 'another one after a second ends the process', signals: ['SIGTERM', 'SIGTERM'], code: 143, said: 'slow\n' },
  ] as const) {
    test(name, async () => {
      const script = `
        const { abortOnSignals } = await import(${JSON.stringify(MODULE)})
        const signal = abortOnSignals()
        const timer = setInterval(() => {}, 1000)
        signal.addEventListener('abort', () => {
          console.log(${JSON.stringify(said.trim())})
          ${signals.length === 1 ? 'clearInterval(timer)' : ''}
        })
        console.log('ready')`
      const loader = process.execArgv.filter(
        (argument, index, all) => argument.startsWith('--import') || all[index - 1] === '--import',
      )
      const child = spawn(process.execPath, [...loader, '--input-type=module', '-e', script], {
        stdio: ['ignore', 'pipe', 'inherit'],
        env: { ...process.env, NODE_TEST_CONTEXT: undefined },
      })
      const ended = once(child, 'exit')
      await once(child.stdout, 'data')
      for (const signal of signals) {
        child.kill(signal)
        if (signals.length > 1) await Promise.race([once(child.stdout, 'data'), ended])
        if (signals.length > 1) await Promise.race([sleep(1_100), ended])
      }
      const [status] = (await ended) as [number | null]
      assert.equal(status, code)
    })
  }
})

test('the package root holds package.json', () => {
  assert.ok(existsSync(join(packageRoot(), 'package.json')))
  assert.ok(existsSync(join(packageRoot(), 'pki', 'certpeer.asn1')))
  assert.equal(packageRoot(), packageRoot())
})

test('the system clock is the system clock', () => {
  assert.ok(Math.abs(systemNow().getTime() - Date.now()) < 1000)
})
