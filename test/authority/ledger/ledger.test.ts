import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { createLedger } from '../../../src/authority/ledger/ledger.ts'
import {
  copyOf,
  faultyOpen,
  KEYS,
  newLedgerDir,
  openTestLedger,
  SIGNER,
  temporaryDirectory,
  type FaultPlan,
} from './support.ts'

const FIRST = '0000000000000000.segment'

test('entries come back after a restart, in order and with the same head', async (t) => {
  const dir = await newLedgerDir(t)
  const first = await openTestLedger(dir)
  const indexes = await Promise.all(['a', 'b', 'c'].map((text) => first.ledger.append(Buffer.from(text))))
  assert.deepEqual(indexes, [1, 2, 3])
  assert.equal(await first.ledger.append(Buffer.from('d')), 4)
  const head = first.ledger.head
  await first.ledger.close()
  const second = await openTestLedger(dir)
  assert.deepEqual(second.seen, ['genesis', 'a', 'b', 'c', 'd'])
  assert.deepEqual(second.ledger.head, head)
  assert.equal(second.ledger.repair, undefined)
  assert.deepEqual(
    second.ledger.read(2, 2).map((entry) => `${entry.index} ${entry.payload.toString()}`),
    ['2 b', '3 c'],
  )
  await second.ledger.close()
})

test('a ledger is made once, and not opened where there is none', async (t) => {
  const dir = await newLedgerDir(t)
  await assert.rejects(createLedger({ dir, signer: SIGNER, genesis: Buffer.from('x') }), { code: 'already_exists' })
  await assert.rejects(openTestLedger(temporaryDirectory(t)), { code: 'ledger_truncated' })
})

test('segments rotate, and reading goes across them', async (t) => {
  const dir = await newLedgerDir(t)
  const { ledger } = await openTestLedger(dir, { segmentBytes: 400 })
  for (let at = 1; at <= 20; at++) await ledger.append(Buffer.from(`entry ${at} ${'x'.repeat(60)}`))
  await ledger.close()
  assert.ok(readdirSync(dir).filter((name) => name.endsWith('.segment')).length > 3)
  const again = await openTestLedger(dir, { segmentBytes: 400 })
  assert.equal(again.seen.length, 21)
  assert.deepEqual(
    again.ledger.read(3, 100).map((entry) => entry.index),
    Array.from({ length: 18 }, (_, at) => at + 3),
  )
  await again.ledger.close()
  for (const name of readdirSync(dir).filter((file) => file.endsWith('.segment'))) {
    const copy = copyOf(t, dir)
    rmSync(join(copy, name))
    await assert.rejects(openTestLedger(copy), (error: { code?: string }) => error.code?.startsWith('ledger_') === true)
  }
})

test('a group that was never acknowledged may be torn at any byte: it is cut off and reported', async (t) => {
  const dir = await newLedgerDir(t)
  const writer = await openTestLedger(dir)
  await writer.ledger.append(Buffer.from('kept'))
  const good = statSync(join(dir, FIRST)).size
  const headBefore = readFileSync(join(dir, 'head'))
  await Promise.all([writer.ledger.append(Buffer.from('one')), writer.ledger.append(Buffer.from('two'))])
  await writer.ledger.close()
  const whole = statSync(join(dir, FIRST)).size
  const copy = copyOf(t, dir)
  const original = readFileSync(join(dir, FIRST))
  for (let length = good; length < whole; length++) {
    writeFileSync(join(copy, FIRST), original.subarray(0, length))
    writeFileSync(join(copy, 'head'), headBefore)
    const { ledger, seen } = await openTestLedger(copy)
    assert.deepEqual(seen, ['genesis', 'kept'], `cut at ${length}`)
    assert.equal(ledger.repair?.tornBytes, length === good ? undefined : length - good)
    assert.equal(await ledger.append(Buffer.from('next')), 2)
    await ledger.close()
    // The same cut of a group that was acknowledged refuses.
    writeFileSync(join(copy, FIRST), original.subarray(0, length))
    writeFileSync(join(copy, 'head'), readFileSync(join(dir, 'head')))
    await assert.rejects(openTestLedger(copy), { code: length === good ? 'ledger_truncated' : 'ledger_corrupt' })
    assert.equal(statSync(join(copy, FIRST)).size, length, 'a refused start changes nothing')
  }
  // Written whole but killed before the head: counts, although nobody was told.
  writeFileSync(join(copy, FIRST), original)
  writeFileSync(join(copy, 'head'), headBefore)
  const { ledger, seen } = await openTestLedger(copy)
  assert.deepEqual(seen, ['genesis', 'kept', 'one', 'two'])
  await ledger.close()
})

test('a flipped byte anywhere refuses to start', async (t) => {
  const dir = await newLedgerDir(t)
  const writer = await openTestLedger(dir)
  await Promise.all([writer.ledger.append(Buffer.from('one')), writer.ledger.append(Buffer.from('two'))])
  await writer.ledger.append(Buffer.from('three'))
  await writer.ledger.close()
  const copy = copyOf(t, dir)
  for (const name of [FIRST, 'head']) {
    const original = readFileSync(join(dir, name))
    for (let at = 0; at < original.length; at++) {
      const damaged = Buffer.from(original)
      damaged[at] = (damaged[at] ?? 0) ^ 0x10
      writeFileSync(join(copy, name), damaged)
      await assert.rejects(openTestLedger(copy), { code: 'ledger_corrupt' }, `${name} byte ${at}`)
      assert.deepEqual(readFileSync(join(copy, name)), damaged, 'a refused start changes nothing')
    }
    writeFileSync(join(copy, name), original)
  }
})

test('truncation and bytes after the end refuse to start', async (t) => {
  const dir = await newLedgerDir(t)
  const writer = await openTestLedger(dir)
  for (const text of ['one', 'two', 'three']) await writer.ledger.append(Buffer.from(text))
  const head = writer.ledger.head
  await writer.ledger.close()
  const whole = statSync(join(dir, FIRST)).size
  for (let length = 0; length < whole; length += 7) {
    const copy = copyOf(t, dir)
    truncateSync(join(copy, FIRST), length)
    await assert.rejects(openTestLedger(copy), (error: { code?: string }) => error.code?.startsWith('ledger_') === true)
  }
  const cut = copyOf(t, dir)
  // Cut at a group, and the head file taken away: only what was published can tell.
  const groupEnd = readFileSync(join(cut, FIRST)).lastIndexOf('three') - 9
  truncateSync(join(cut, FIRST), groupEnd)
  rmSync(join(cut, 'head'))
  await assert.rejects(openTestLedger(cut, { witnesses: [{ ...head, source: 'crl/x.crl' }] }), {
    code: 'ledger_truncated',
    message: /crl\/x\.crl says that 4 were acknowledged/,
  })
  await assert.rejects(
    openTestLedger(dir, { witnesses: [{ size: 2, rootHash: Buffer.alloc(32), source: 'crl/x.crl' }] }),
    { code: 'ledger_corrupt', message: /another root hash than crl\/x\.crl/ },
  )
  const longer = copyOf(t, dir)
  appendFileSync(join(longer, FIRST), 'garbage that no group left')
  const repaired = await openTestLedger(longer)
  assert.equal(repaired.ledger.repair?.kind, 'torn_group')
  await repaired.ledger.close()
  rmSync(join(longer, 'head'))
  appendFileSync(join(longer, FIRST), 'garbage')
  await assert.rejects(openTestLedger(longer), { code: 'ledger_corrupt', message: /without the head file/ })
})

test('a ledger of another key or trust domain is refused', async (t) => {
  const dir = await newLedgerDir(t)
  const { generateKeyPairSync } = await import('node:crypto')
  const { CheckpointSigner } = await import('../../../src/authority/ledger/checkpoint.ts')
  const other = new CheckpointSigner(generateKeyPairSync('ec', { namedCurve: 'P-256' }), 'test.internal')
  await assert.rejects(openTestLedger(dir, { signer: other }), { code: 'ledger_corrupt', message: /signature/ })
})

test('one process, one open ledger', async (t) => {
  const dir = await newLedgerDir(t)
  const { ledger } = await openTestLedger(dir)
  await assert.rejects(openTestLedger(dir), { code: 'ledger_locked' })
  await ledger.close()
  const again = await openTestLedger(dir)
  await again.ledger.close()
})

const FAULTS: NonNullable<FaultPlan>[] = [
  { call: 'write', form: 'failed', code: 'ENOSPC' },
  { call: 'write', form: 'done but reported failed', code: 'ENOSPC' },
  { call: 'datasync', form: 'failed', code: 'EIO' },
  { call: 'datasync', form: 'done but reported failed', code: 'EIO' },
]
for (const fault of FAULTS) {
  test(`${fault.call} ${fault.form} (${fault.code}): the group is nowhere, the next one is fine`, async (t) => {
    const dir = await newLedgerDir(t)
    const plan: { next: FaultPlan } = { next: undefined }
    const { ledger, seen } = await openTestLedger(dir, { openFile: faultyOpen(plan) })
    await ledger.append(Buffer.from('before'))
    const head = ledger.head
    const bytes = readFileSync(join(dir, FIRST))
    plan.next = fault
    const results = await Promise.allSettled([ledger.append(Buffer.from('x')), ledger.append(Buffer.from('y'))])
    for (const result of results) {
      assert.equal(result.status, 'rejected')
      assert.equal((result.reason as { code: string }).code, 'unavailable')
    }
    assert.deepEqual(seen, ['genesis', 'before'])
    assert.deepEqual(ledger.head, head)
    assert.deepEqual(readFileSync(join(dir, FIRST)), bytes, 'cut back to the last good group')
    assert.equal(await ledger.append(Buffer.from('after')), 2)
    await ledger.close()
    const again = await openTestLedger(dir)
    assert.deepEqual(again.seen, ['genesis', 'before', 'after'])
    await again.ledger.close()
  })
}

test('when not even cutting back works, nothing is accepted until a restart', async (t) => {
  const dir = await newLedgerDir(t)
  const plan: { next: FaultPlan } = { next: undefined }
  const inner = faultyOpen(plan)
  const { ledger, seen } = await openTestLedger(dir, {
    openFile: async (path, flags, mode) => {
      const file = await inner(path, flags, mode)
      return new Proxy(file, {
        get(target, name) {
          if (name === 'datasync') {
            return async () => {
              plan.next = { call: 'truncate', form: 'failed', code: 'EIO' }
              throw Object.assign(new Error('injected EIO'), { code: 'EIO' })
            }
          }
          return Reflect.get(target, name, target) as unknown
        },
      })
    },
  })
  await assert.rejects(ledger.append(Buffer.from('x')), { code: 'unavailable' })
  await assert.rejects(ledger.append(Buffer.from('y')), { code: 'unavailable' })
  assert.ok(ledger.failure)
  assert.deepEqual(seen, ['genesis'])
  await ledger.close()
})

test('kill -9 at random moments: everything acknowledged is there, in its place', async (t) => {
  const dir = await newLedgerDir(t)
  writeFileSync(join(dir, '..', 'key.pem'), KEYS.privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 })
  const acknowledged = new Map<number, string>()
  const writer = new URL(import.meta.url.endsWith('.ts') ? './writer.ts' : './writer.js', import.meta.url)
  for (let round = 0; round < 12; round++) {
    const child = fork(writer, [dir, String(round)], { stdio: 'inherit' })
    child.on('message', (message) => {
      const { index, text } = message as { index: number; text: string }
      acknowledged.set(index, text)
    })
    await once(child, 'message')
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 60))
    child.kill('SIGKILL')
    // 'close' comes after the last message that was in the pipe.
    await once(child, 'close')
    const { ledger, seen } = await openTestLedger(dir)
    for (const [index, text] of acknowledged) assert.equal(seen[index], text, `entry ${index} in round ${round}`)
    await ledger.close()
  }
  assert.ok(acknowledged.size > 12)
})
