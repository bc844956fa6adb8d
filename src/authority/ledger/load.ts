/**
 * Reads a ledger's segments from the first byte, proves them against the signed checkpoints and against every witness
 * (the head file, the heads inside published CRLs), and finds where the next group goes.
 *
 * One kind of damage is understood: bytes after the last checkpoint that no witness knows of. That is a group that was
 * being written when the process died; it was never acknowledged, so it is cut off and reported. All else refuses.
 */
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { CHECKPOINT_MARKER, readCheckpoint } from './checkpoint.ts'
import type { Checkpoint, CheckpointSigner, TreeHead } from './checkpoint.ts'
import { findFrames, readFrame, readSegmentHeader, SEGMENT_HEADER_BYTES } from './frame.ts'
import { leafHash, MerkleFrontier } from './merkle.ts'

/** A tree head that somebody outside the segments holds. */
export interface Witness extends TreeHead {
  /** For messages: "the head file", "crl/device-default.crl". */
  readonly source: string
}

export interface LoadedLedger {
  readonly frontier: MerkleFrontier
  readonly lastCheckpoint: Checkpoint
  /** File name of the segment that is appended to, and its length up to the last checkpoint. */
  readonly segment: string
  readonly offset: number
  /** What has to be cut off or removed before anything is appended. */
  readonly repair: Repair | undefined
}
export interface Repair {
  readonly kind: 'torn_group' | 'torn_segment'
  readonly segment: string
  readonly offset: number
  readonly tornBytes: number
}

export interface LoadOptions {
  readonly dir: string
  readonly signer: CheckpointSigner
  /** `undefined` stands for a head file that is missing: then torn bytes cannot be told from lost ones. */
  readonly head: TreeHead | undefined
  readonly witnesses: readonly Witness[]
  readonly onEntry: (payload: Buffer, index: number) => void
}

export const SEGMENT_NAME = /^([0-9]{16})\.segment$/

export function segmentName(firstIndex: number): string {
  return `${String(firstIndex).padStart(16, '0')}.segment`
}

export function listSegments(dir: string): string[] {
  return readdirSync(dir)
    .filter((name) => SEGMENT_NAME.test(name))
    .sort()
}

/** Throws ledger_corrupt or ledger_truncated with one line that says where and against what. Changes nothing. */
export function loadLedger(options: LoadOptions): LoadedLedger {
  return new Loader(options).load()
}

class Loader {
  private readonly options: LoadOptions
  private readonly witnesses: ReadonlyMap<number, readonly Witness[]>
  private readonly frontier = new MerkleFrontier()
  private lastCheckpoint: Checkpoint | undefined

  constructor(options: LoadOptions) {
    this.options = options
    const all = [...options.witnesses]
    if (options.head) all.push({ ...options.head, source: 'the head file' })
    const bySize = new Map<number, Witness[]>()
    for (const witness of all) bySize.set(witness.size, [...(bySize.get(witness.size) ?? []), witness])
    this.witnesses = bySize
  }

  load(): LoadedLedger {
    const names = listSegments(this.options.dir)
    const first = names[0]
    if (first === undefined) {
      throw new CertpeerError(
        'ledger_truncated',
        `${this.options.dir} holds no ledger segment; restore it from its backup`,
      )
    }
    let end = { segment: first, offset: SEGMENT_HEADER_BYTES }
    let repair: Repair | undefined
    for (const [at, name] of names.entries()) {
      const isLast = at === names.length - 1
      const bytes = readFileSync(join(this.options.dir, name))
      const index = readSegmentHeader(bytes)
      if (index === undefined && isLast && at > 0 && bytes.length <= SEGMENT_HEADER_BYTES) {
        // The process died while it began this file; the segment before it ends in a checkpoint.
        repair = { kind: 'torn_segment', segment: name, offset: 0, tornBytes: bytes.length }
        break
      }
      if (index === undefined) throw this.corrupt(name, 0, 'its header is damaged')
      if (index !== this.frontier.size || segmentName(index) !== name) {
        throw this.corrupt(name, 0, `it begins at entry ${index}, the segments before it end at ${this.frontier.size}`)
      }
      const offset = this.readSegment(name, bytes)
      end = { segment: name, offset }
      if (offset < bytes.length) {
        if (!isLast) throw this.corrupt(name, offset, 'a later segment exists, so this one was complete')
        repair = this.judgeTail(name, bytes, offset)
      }
    }
    this.requireWitnessed(end.segment, end.offset, repair)
    const lastCheckpoint = this.lastCheckpoint
    if (lastCheckpoint === undefined) throw this.corrupt(end.segment, end.offset, 'it holds no checkpoint')
    return { frontier: this.frontier, lastCheckpoint, ...end, repair }
  }

  /** Takes over every group that a checkpoint closes; returns the offset after the last of them. */
  private readSegment(name: string, bytes: Buffer): number {
    let group: Buffer[] = []
    let closedAt = SEGMENT_HEADER_BYTES
    let checkpoint: Checkpoint | undefined
    for (let frame = readFrame(bytes, closedAt); frame; frame = readFrame(bytes, frame.end)) {
      if (frame.kind === 'entry') {
        group.push(frame.payload)
        continue
      }
      checkpoint = readCheckpoint(frame.payload)
      if (checkpoint?.size !== this.frontier.size + group.length || group.length === 0) {
        throw this.corrupt(name, closedAt, 'a checkpoint does not count the entries before it')
      }
      for (const payload of group) this.accept(name, payload)
      group = []
      closedAt = frame.end
    }
    // The last checkpoint's root covers every entry before it, so it alone needs its signature checked; the others
    // were proven undamaged by their CRC.
    if (checkpoint !== undefined && closedAt > SEGMENT_HEADER_BYTES) {
      if (!checkpoint.rootHash.equals(this.frontier.root())) {
        throw this.corrupt(name, closedAt, 'its entries do not have the root hash of its last checkpoint')
      }
      if (!this.options.signer.isValid(checkpoint)) {
        throw this.corrupt(name, closedAt, "its last checkpoint does not carry this authority's signature")
      }
      this.lastCheckpoint = checkpoint
    }
    return closedAt
  }

  private accept(segment: string, payload: Buffer): void {
    const index = this.frontier.size
    this.frontier.append(leafHash(payload))
    for (const witness of this.witnesses.get(this.frontier.size) ?? []) {
      if (witness.rootHash.equals(this.frontier.root())) continue
      throw new CertpeerError(
        'ledger_corrupt',
        `${this.path(segment)}: the first ${witness.size} entries have another root hash than ${witness.source} says; ` +
          'this is not the ledger that was published; restore the right one',
      )
    }
    this.options.onEntry(payload, index)
  }

  /** What stands after the last checkpoint of the last segment: a torn group, or damage to one that was complete. */
  private judgeTail(name: string, bytes: Buffer, offset: number): Repair {
    for (const frame of findFrames(bytes, offset, CHECKPOINT_MARKER)) {
      const later = readCheckpoint(frame.payload)
      if (later === undefined || later.size <= this.frontier.size || !this.options.signer.isValid(later)) continue
      // The next group is written only after this one was fsynced, so nothing ever follows a torn group.
      if (frame.end < bytes.length || this.options.head === undefined) {
        throw this.corrupt(name, offset, `a later checkpoint (${later.size} entries) is whole`)
      }
    }
    if (this.options.head === undefined) {
      throw this.corrupt(name, offset, 'and without the head file nobody can say whether that was acknowledged')
    }
    return { kind: 'torn_group', segment: name, offset, tornBytes: bytes.length - offset }
  }

  private requireWitnessed(segment: string, offset: number, repair: Repair | undefined): void {
    for (const [size, [witness]] of this.witnesses) {
      if (size <= this.frontier.size || witness === undefined) continue
      if (repair?.kind === 'torn_group') {
        throw this.corrupt(segment, offset, `${witness.source} says that ${size} entries were acknowledged`)
      }
      throw new CertpeerError(
        'ledger_truncated',
        `${this.path(segment)}: the ledger ends after ${this.frontier.size} entries, but ${witness.source} says that ` +
          `${size} were acknowledged; restore the newest copy of the ledger`,
      )
    }
  }

  private corrupt(segment: string, offset: number, why: string): CertpeerError {
    return new CertpeerError(
      'ledger_corrupt',
      `${this.path(segment)} is damaged after byte ${offset} (entry ${this.frontier.size}): ${why}; ` +
        'restore the ledger from its backup',
    )
  }

  private path(segment: string): string {
    return join(this.options.dir, segment)
  }
}
