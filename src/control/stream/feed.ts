/**
 * The newest changes of one network, encoded, for every gateway of this process that keeps up. Bounded: a gateway that
 * has fallen behind it reads the database, or gets a snapshot, and nobody waits for it.
 */
import type { ChangeRow } from '../db/changes.ts'
import { encodeChange } from './encode.ts'

/** What is kept for all streams of a network together. */
const MAX_BYTES = 4 * 1024 * 1024

interface Batch {
  readonly first: number
  readonly last: number
  readonly bytes: Buffer
  /** Where each change begins in `bytes`. */
  readonly offsets: readonly number[]
}

export interface Lines {
  readonly bytes: Buffer
  /** Revision of the last change in `bytes`. */
  readonly last: number
}

export class Feed {
  readonly id: string
  /** `<tenant>/<network>` */
  readonly key: string
  readonly #maxBytes: number
  #revision: number
  #batches: Batch[] = []
  #bytes = 0

  constructor(options: { id: string; key: string; revision: number; maxBytes?: number }) {
    this.id = options.id
    this.key = options.key
    this.#revision = options.revision
    this.#maxBytes = options.maxBytes ?? MAX_BYTES
  }

  /** The last revision read from the database. */
  get revision(): number {
    return this.#revision
  }

  /** Takes the next changes in. False, and nothing taken, when the first does not follow on: rows are missing. */
  append(rows: readonly ChangeRow[]): boolean {
    const [head] = rows
    if (head === undefined) return true
    if (!followsOn(rows, this.#revision)) return false
    const lines = rows.map((row) => encodeChange(this.key, row))
    const offsets: number[] = []
    let length = 0
    for (const line of lines) {
      offsets.push(length)
      length += line.length
    }
    const last = this.#revision + rows.length
    this.#batches.push({ first: head.revision, last, bytes: Buffer.concat(lines, length), offsets })
    this.#bytes += length
    this.#revision = last
    while (this.#bytes > this.#maxBytes && this.#batches.length > 1) {
      this.#bytes -= this.#batches.shift()?.bytes.length ?? 0
    }
    return true
  }

  /** Forgets everything and goes on from `revision`: after a hole, or a database that was restored. */
  reset(revision: number): void {
    this.#revision = revision
    this.#batches = []
    this.#bytes = 0
  }

  /** The changes that follow `revision`, as far as one piece reaches; undefined when they are no longer (or not yet) here. */
  linesAfter(revision: number): Lines | undefined {
    const batch = this.#batches.find((candidate) => candidate.first <= revision + 1 && revision < candidate.last)
    if (batch === undefined) return undefined
    const offset = batch.offsets[revision + 1 - batch.first] ?? 0
    return { bytes: batch.bytes.subarray(offset), last: batch.last }
  }
}

/** True when the rows are exactly the revisions behind `revision`, without a hole. */
export function followsOn(rows: readonly ChangeRow[], revision: number): boolean {
  return rows.every((row, index) => row.revision === revision + 1 + index)
}
