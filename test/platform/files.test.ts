import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { pathToFileURL } from 'node:url'
import {
  lockDirectory,
  makePrivateDirectory,
  readSecretFile,
  readTextFile,
  removeAbandonedTemporaries,
  writeFileAtomic,
} from '../../src/platform/files.ts'
import { run } from '../../src/platform/spawn.ts'

const folder = mkdtempSync(join(tmpdir(), 'certpeer-files-'))
after(() => rmSync(folder, { recursive: true, force: true }))
let count = 0
const newFolder = () => mkdtempSync(join(folder, `${(count += 1)}-`))

/** The module under test as this process runs it: compiled, or source with the same loader. */
const extension = import.meta.filename.endsWith('.ts') ? '.ts' : '.js'
const FILES_MODULE = pathToFileURL(join(import.meta.dirname, '..', '..', 'src', 'platform', `files${extension}`)).href

/** Starts a process of our own that runs a script with the module as `files`; its first line says that it is ready. */
async function startNode(script: string): Promise<ChildProcess> {
  const source = `const files = await import(${JSON.stringify(FILES_MODULE)}); ${script}`
  const child = spawn(process.execPath, [...process.execArgv.filter(isLoader), '--input-type=module', '-e', source], {
    stdio: ['ignore', 'pipe', 'inherit'],
    // Not a test file of the runner that runs us.
    env: { ...process.env, NODE_TEST_CONTEXT: undefined },
  })
  await once(child.stdout, 'data')
  return child
}

function isLoader(argument: string, index: number, all: readonly string[]): boolean {
  return argument.startsWith('--import') || all[index - 1] === '--import'
}

async function kill(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit')
  child.kill('SIGKILL')
  await ended
}

describe('writeFileAtomic', () => {
  test('writes new files and replaces old ones, with exactly the mode that was asked', async () => {
    const path = join(newFolder(), 'file')
    for (const mode of [0o600, 0o644, 0o640]) {
      await writeFileAtomic(path, `mode ${mode}`, { mode })
      assert.equal(readFileSync(path, 'utf8'), `mode ${mode}`)
      assert.equal(statSync(path).mode & 0o777, mode)
    }
    await writeFileAtomic(path, Buffer.from([0, 255]), { mode: 0o600 })
    assert.deepEqual(readFileSync(path), Buffer.from([0, 255]))
  })

  test('leaves nothing beside the file', async () => {
    const inside = newFolder()
    await writeFileAtomic(join(inside, 'file'), 'x', { mode: 0o600 })
    assert.deepEqual(readdirSync(inside), ['file'])
  })

  test('after a failure the old content stands and nothing is left', async () => {
    const inside = newFolder()
    await makePrivateDirectory(join(inside, 'taken', 'by'))
    await assert.rejects(writeFileAtomic(join(inside, 'taken'), 'x', { mode: 0o600 }))
    assert.deepEqual(readdirSync(inside), ['taken'])
    await assert.rejects(writeFileAtomic(join(inside, 'missing', 'file'), 'x', { mode: 0o600 }), { code: 'ENOENT' })
  })

  test('a symbolic link is replaced, its target is left alone', async () => {
    const inside = newFolder()
    writeFileSync(join(inside, 'target'), 'target')
    symlinkSync('target', join(inside, 'link'))
    await writeFileAtomic(join(inside, 'link'), 'new', { mode: 0o600 })
    assert.equal(readFileSync(join(inside, 'target'), 'utf8'), 'target')
    assert.equal(readFileSync(join(inside, 'link'), 'utf8'), 'new')
  })

  test('a reader never sees half a file, also when the writer is killed', async () => {
    const inside = newFolder()
    const path = join(inside, 'file')
    const whole = (text: string) => /^(a+|b+)$/.test(text) && text.length === 200_000
    for (let round = 0; round < 3; round += 1) {
      const child = await startNode(`
        const sizes = ['a', 'b'].map((letter) => letter.repeat(200_000))
        for (let i = 0; ; i++) {
          await files.writeFileAtomic(${JSON.stringify(path)}, sizes[i % 2], { mode: 0o600 })
          if (i === 0) console.log('ready')
        }`)
      const until = Date.now() + 150
      while (Date.now() < until) {
        assert.ok(whole(readFileSync(path, 'utf8')))
        await new Promise(setImmediate)
      }
      await kill(child)
      assert.ok(whole(readFileSync(path, 'utf8')))
    }
    // What the killed writers left is no danger to anyone, and can be swept.
    writeFileSync(join(inside, '.file.123.0123456789ab.tmp'), 'half', { mode: 0o600 })
    await removeAbandonedTemporaries(inside)
    assert.deepEqual(readdirSync(inside), ['file'])
  })
})

describe('reading', () => {
  test('a text file', async () => {
    const path = join(newFolder(), 'file')
    writeFileSync(path, 'text\n')
    assert.equal(await readTextFile(path, 'the file'), 'text\n')
  })

  for (const read of [readTextFile, readSecretFile]) {
    test(`${read.name} refuses what is no readable file, naming it`, async () => {
      const inside = newFolder()
      const refused = { code: 'config_invalid', message: /the thing .*(not exist|not a regular|larger)/ }
      await assert.rejects(read(join(inside, 'missing'), 'the thing'), refused)
      await assert.rejects(read(inside, 'the thing'), /the thing/)
      assert.equal((await run('mkfifo', ['-m', '600', join(inside, 'fifo')], { timeoutMs: 5000 })).code, 0)
      await assert.rejects(read(join(inside, 'fifo'), 'the thing'), refused)
      writeFileSync(join(inside, 'large'), Buffer.alloc(4 * 1024 * 1024 + 1), { mode: 0o600 })
      await assert.rejects(read(join(inside, 'large'), 'the thing'), refused)
    })
  }

  for (const { mode, accepted } of [
    { mode: 0o600, accepted: true },
    { mode: 0o400, accepted: true },
    { mode: 0o640, accepted: false },
    { mode: 0o604, accepted: false },
    { mode: 0o610, accepted: false },
    { mode: 0o620, accepted: false },
    { mode: 0o644, accepted: false },
    { mode: 0o777, accepted: false },
  ]) {
    test(`a secret of mode ${mode.toString(8)} is ${accepted ? 'read' : 'refused, and not told'}`, async () => {
      const path = join(newFolder(), 'secret')
      writeFileSync(path, 'hunter2')
      chmodSync(path, mode)
      if (accepted) {
        assert.equal(await readSecretFile(path, 'the key'), 'hunter2')
      } else {
        await assert.rejects(
          readSecretFile(path, 'the key'),
          (error: Error & { code?: string }) =>
            error.code === 'config_invalid' &&
            error.message.includes('chmod 600') &&
            !error.message.includes('hunter2'),
        )
      }
    })
  }

  test('a secret behind a symbolic link counts by its target', async () => {
    const inside = newFolder()
    writeFileSync(join(inside, 'open'), 'x', { mode: 0o644 })
    symlinkSync('open', join(inside, 'link'))
    await assert.rejects(readSecretFile(join(inside, 'link'), 'the key'), { code: 'config_invalid' })
  })

  test('a secret of another user is refused', { skip: process.geteuid?.() !== 0 && 'needs root' }, async () => {
    const path = join(newFolder(), 'secret')
    writeFileSync(path, 'x', { mode: 0o600 })
    chownSync(path, 12_345, 12_345)
    await assert.rejects(readSecretFile(path, 'the key'), { code: 'config_invalid', message: /user 12345/ })
  })

  test('private directories are private', async () => {
    const path = join(newFolder(), 'a', 'b')
    await makePrivateDirectory(path)
    await makePrivateDirectory(path)
    assert.equal(statSync(path).mode & 0o777, 0o700)
    assert.equal(statSync(join(path, '..')).mode & 0o777, 0o700)
  })
})

describe('lockDirectory', () => {
  const holder = (inside: string) =>
    startNode(`await files.lockDirectory(${JSON.stringify(inside)}); console.log('held'); setInterval(() => {}, 1000)`)

  test('one owner at a time, the code is the caller’s', async () => {
    const inside = newFolder()
    const lock = await lockDirectory(inside)
    await assert.rejects(lockDirectory(inside), { code: 'state_busy', message: new RegExp(`pid ${process.pid}`) })
    await assert.rejects(lockDirectory(inside, { code: 'ledger_locked' }), { code: 'ledger_locked' })
    await lock.release()
    await lock.release()
    await (await lockDirectory(inside)).release()
    assert.ok(existsSync(join(inside, 'lock')))
    assert.equal(statSync(join(inside, 'lock')).mode & 0o777, 0o600)
  })

  test('another process is kept out, and let in when the owner is killed', async () => {
    const inside = newFolder()
    const child = await holder(inside)
    try {
      await assert.rejects(lockDirectory(inside), { code: 'state_busy', message: new RegExp(`pid ${child.pid}\\)`) })
    } finally {
      await kill(child)
    }
    const lock = await lockDirectory(inside)
    assert.equal(readFileSync(join(inside, 'lock'), 'utf8'), `${process.pid}\n`)
    await lock.release()
  })

  test('of many that try at once after a kill, one wins', async () => {
    const inside = newFolder()
    await kill(await holder(inside))
    const tries = await Promise.allSettled(Array.from({ length: 8 }, () => lockDirectory(inside)))
    const won = tries.filter((result) => result.status === 'fulfilled')
    assert.equal(won.length, 1)
    for (const { value } of won) await value.release()
  })

  test('programs that the owner starts do not keep the lock', async () => {
    const inside = newFolder()
    const lock = await lockDirectory(inside)
    const child = spawn('sleep', ['30'], { stdio: 'ignore' })
    try {
      await lock.release()
      await (await lockDirectory(inside)).release()
    } finally {
      await kill(child)
    }
  })

  test('a directory that is not there', async () => {
    await assert.rejects(lockDirectory(join(folder, 'missing')), {
      code: 'not_found',
      message: /missing does not exist/,
    })
    await assert.rejects(lockDirectory('/dev/null'), { code: 'config_invalid', message: /is not a directory/ })
  })
})
