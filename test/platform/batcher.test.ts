import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { createBatcher } from '../../src/platform/batcher.ts'

/** A flush that waits until it is let go, so that a test decides what gathers meanwhile. */
function gate() {
  const batches: string[][] = []
  const waiting: (() => void)[] = []
  return {
    batches,
    flush: async (items: readonly string[]) => {
      batches.push([...items])
      await new Promise<void>((resolve) => waiting.push(resolve))
      return items.map((item) => (item.startsWith('bad') ? new Error(`${item} refused`) : item.toUpperCase()))
    },
    open: async () => {
      await settled()
      waiting.shift()?.()
      await settled()
    },
  }
}
const settled = () => new Promise<void>((resolve) => setImmediate(resolve))

test('what comes while a flush is under way goes together in the next one, in order', async () => {
  const { batches, flush, open } = gate()
  const batcher = createBatcher({ flush, maxItems: 10 })
  const first = batcher.submit('a')
  await settled()
  const rest = ['b', 'c', 'd'].map((item) => batcher.submit(item))
  assert.equal(batcher.pending, 4)
  await open()
  assert.equal(await first, 'A')
  assert.deepEqual(batches, [['a'], ['b', 'c', 'd']])
  await open()
  assert.deepEqual(await Promise.all(rest), ['B', 'C', 'D'])
  assert.equal(batcher.pending, 0)
})

test('what one event submits goes together at once', async () => {
  const { batches, flush, open } = gate()
  const batcher = createBatcher({ flush, maxItems: 10 })
  const all = Promise.all(['a', 'b'].map((item) => batcher.submit(item)))
  await open()
  assert.deepEqual(await all, ['A', 'B'])
  assert.deepEqual(batches, [['a', 'b']])
})

test('a batch is never larger than maxItems, and one runs at a time', async () => {
  let running = 0
  const sizes: number[] = []
  const batcher = createBatcher({
    maxItems: 3,
    flush: async (items: readonly number[]) => {
      running += 1
      assert.equal(running, 1)
      sizes.push(items.length)
      await settled()
      running -= 1
      return items
    },
  })
  const results = await Promise.all(Array.from({ length: 8 }, (_, index) => batcher.submit(index)))
  assert.deepEqual(results, [0, 1, 2, 3, 4, 5, 6, 7])
  assert.deepEqual(sizes, [3, 3, 2])
})

test('one bad item fails alone', async () => {
  const { flush, open } = gate()
  const batcher = createBatcher({ flush, maxItems: 10 })
  const results = Promise.allSettled(['a', 'bad', 'c'].map((item) => batcher.submit(item)))
  await open()
  assert.deepEqual(
    (await results).map((result) => (result.status === 'fulfilled' ? result.value : (result.reason as Error).message)),
    ['A', 'bad refused', 'C'],
  )
})

describe('a flush that rejects', () => {
  const failing = async (items: readonly string[]) => {
    if (items.includes('bad')) throw new Error('constraint')
    return items.map((item) => item.toUpperCase())
  }

  test('fails its batch, and the next batch goes on', async () => {
    const batcher = createBatcher({ flush: failing, maxItems: 2 })
    const results = await Promise.allSettled(['a', 'bad', 'c', 'd'].map((item) => batcher.submit(item)))
    assert.deepEqual(
      results.map((result) => result.status),
      ['rejected', 'rejected', 'fulfilled', 'fulfilled'],
    )
    assert.equal(await batcher.submit('e'), 'E')
  })

  test('is done again in halves when an item may be the reason', async () => {
    const calls: string[] = []
    const batcher = createBatcher({
      flush: (items: readonly string[]) => (calls.push(items.join('')), failing(items)),
      maxItems: 10,
      splitOn: (error) => error.message === 'constraint',
    })
    const results = await Promise.allSettled(['a', 'b', 'bad', 'd'].map((item) => batcher.submit(item)))
    assert.deepEqual(
      results.map((result) => (result.status === 'fulfilled' ? result.value : 'rejected')),
      ['A', 'B', 'rejected', 'D'],
    )
    assert.deepEqual(calls, ['abbadd', 'ab', 'badd', 'bad', 'd'])
  })

  test('synchronously, or with a wrong number of results, hangs nobody', async () => {
    const thrower = createBatcher<string, string>({
      flush: () => {
        throw new Error('at once')
      },
      maxItems: 10,
    })
    await assert.rejects(thrower.submit('a'), /at once/)
    const short = createBatcher<string, string>({ flush: async () => [], maxItems: 10 })
    await assert.rejects(short.submit('a'), TypeError)
  })
})

describe('drain', () => {
  test('of an idle batcher is done at once', async () => {
    await createBatcher({ flush: async (items: readonly string[]) => items, maxItems: 1 }).drain()
  })

  test('waits for what is in flight, what waits, and what is submitted meanwhile; failures do not stop it', async () => {
    const done: string[] = []
    const batcher = createBatcher({
      maxItems: 1,
      flush: async (items: readonly string[]) => {
        await settled()
        done.push(...items)
        if (items.includes('a')) void batcher.submit('late')
        if (items.includes('b')) throw new Error('b')
        return items
      },
    })
    const first = batcher.submit('a')
    const second = assert.rejects(batcher.submit('b'))
    await batcher.drain()
    assert.deepEqual(done, ['a', 'b', 'late'])
    await Promise.all([first, second])
  })
})

test('no timer: an item is flushed before any timer could fire', async (context) => {
  context.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] })
  const batcher = createBatcher({ flush: async (items: readonly string[]) => items, maxItems: 10 })
  assert.equal(await batcher.submit('a'), 'a')
})

test('a submit right after the last flush is not forgotten', async () => {
  const batcher = createBatcher({ flush: async (items: readonly number[]) => items, maxItems: 1 })
  for (let index = 0; index < 200; index += 1) {
    assert.equal(await batcher.submit(index), index)
    // Different distances to the end of the run before.
    for (let turn = 0; turn < index % 7; turn += 1) await Promise.resolve()
  }
})
