/**
 * One writer for what many ask at once: while a flush is under way the next items gather, and they go together when it
 * ends. There is no timer, so a lone item never waits, and under load the batch grows by itself.
 */

export interface BatcherOptions<I, O> {
  /**
   * Does the work of a batch. Answers one result for each item, in order; an Error in a place fails that item alone.
   * A rejection fails the whole batch (see `splitOn`).
   */
  readonly flush: (items: readonly I[]) => Promise<readonly (O | Error)[]>
  readonly maxItems: number
  /**
   * Says of a rejection whether a single item may be the reason (a constraint that one row breaks, not a lost
   * connection). Then the batch is done again in halves, so that the bad item fails alone. Only for a flush that did
   * nothing when it rejected.
   */
  readonly splitOn?: (error: Error) => boolean
}

export interface Batcher<I, O> {
  /** Settles with the item's own result, after the flush that carried it. */
  submit(item: I): Promise<O>
  /** Resolves when everything submitted so far, and meanwhile, has settled. */
  drain(): Promise<void>
  /** Items that wait or are in flight. */
  readonly pending: number
}

interface Waiting<I, O> {
  readonly item: I
  readonly resolve: (value: O) => void
  readonly reject: (error: Error) => void
}

export function createBatcher<I, O>(options: BatcherOptions<I, O>): Batcher<I, O> {
  let queue: Waiting<I, O>[] = []
  let inFlight = 0
  let running: Promise<void> | undefined

  async function runAll(): Promise<void> {
    // One turn of the microtask queue: what the same event submits goes together already the first time.
    await Promise.resolve()
    while (queue.length > 0) {
      const batch = queue.slice(0, options.maxItems)
      queue = queue.slice(options.maxItems)
      inFlight = batch.length
      await flushBatch(batch)
      inFlight = 0
    }
    running = undefined
  }

  async function flushBatch(batch: readonly Waiting<I, O>[]): Promise<void> {
    let results: readonly (O | Error)[]
    try {
      results = await options.flush(batch.map((waiting) => waiting.item))
      if (results.length !== batch.length) {
        throw new TypeError(`flush answered ${results.length} results for ${batch.length} items`)
      }
    } catch (thrown) {
      const error = thrown instanceof Error ? thrown : new Error('flush failed', { cause: thrown })
      if (batch.length > 1 && options.splitOn?.(error) === true) {
        const middle = batch.length >> 1
        await flushBatch(batch.slice(0, middle))
        await flushBatch(batch.slice(middle))
        return
      }
      for (const waiting of batch) waiting.reject(error)
      return
    }
    batch.forEach((waiting, index) => {
      const result = results[index] as O | Error // lengths were compared above
      if (result instanceof Error) waiting.reject(result)
      else waiting.resolve(result)
    })
  }

  return {
    submit(item) {
      return new Promise<O>((resolve, reject) => {
        queue.push({ item, resolve, reject })
        running ??= runAll()
      })
    },
    async drain() {
      while (running !== undefined) await running
    },
    get pending() {
      return queue.length + inFlight
    },
  }
}
