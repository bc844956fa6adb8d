/**
 * The ledger: the authority's memory and its proof. Append-only, one writer, group commit: entries that are submitted
 * while a group is being written go together in the next one; a group is one write, one fsync, then everybody in it is
 * answered. docs/design/ledger.md has the format and the reasons.
 *
 * Whoever submits gets the entry's index after it is durable and after `onCommitted` has seen it, or `unavailable`, and
 * then the entry is in no file, no root hash and no state.
 */
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { open, unlink, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { createBatcher, type Batcher } from '../../platform/batcher.ts'
import { lockDirectory, syncDirectory, type DirectoryLock } from '../../platform/files.ts'
import { encodeCheckpoint, type Checkpoint, type CheckpointSigner, type TreeHead } from './checkpoint.ts'
import { encodeFrame, encodeSegmentHeader, readFrame, SEGMENT_HEADER_BYTES } from './frame.ts'
import { HeadFile, readHeadFile } from './head.ts'
import { listSegments, loadLedger, SEGMENT_NAME, segmentName, type Repair, type Witness } from './load.ts'
import { leafHash, MerkleFrontier } from './merkle.ts'

const MAX_GROUP_ENTRIES = 1024
const DEFAULT_SEGMENT_BYTES = 64 * 1024 * 1024

/** How segment files are opened; tests put faults here. */
export type OpenFile = (path: string, flags: string, mode: number) => Promise<FileHandle>

export interface LedgerOptions {
  readonly dir: string
  readonly signer: CheckpointSigner
  /** Sees each entry once, in order: those on disk while opening, each new one when it is durable. Must not throw. */
  readonly onCommitted: (payload: Buffer, index: number) => void
  /** Heads that were published, to be found again in this ledger. */
  readonly witnesses?: readonly Witness[]
  readonly segmentBytes?: number
  readonly openFile?: OpenFile
  /** The head file could not be written; the group itself is durable. */
  readonly onHeadFailure?: (error: unknown) => void
}

/** Makes a ledger with its first entry. Throws already_exists when anything is in the directory. */
export async function createLedger(options: {
  readonly dir: string
  readonly signer: CheckpointSigner
  readonly genesis: Buffer
}): Promise<void> {
  mkdirSync(options.dir, { recursive: true, mode: 0o700 })
  if (readdirSync(options.dir).length > 0) {
    throw new CertpeerError('already_exists', `${options.dir} is not empty: a ledger is made once and then only opened`)
  }
  const lock = await lockDirectory(options.dir, { code: 'ledger_locked' })
  try {
    const file = await beginSegment(options.dir, 0, open)
    const ledger = new Ledger({
      options: { ...options, onCommitted: () => undefined },
      lock,
      file,
      segmentStart: 0,
      offset: SEGMENT_HEADER_BYTES,
      frontier: new MerkleFrontier(),
      head: HeadFile.open(options.dir),
      repair: undefined,
    })
    await ledger.append(options.genesis)
    await ledger.close()
    await syncDirectory(options.dir)
  } finally {
    await lock.release()
  }
}

/**
 * Opens a ledger, feeds every entry to `onCommitted`, and repairs a torn last group (`ledger.repair` says so). Throws
 * ledger_locked, ledger_corrupt or ledger_truncated, and then has changed nothing.
 */
export async function openLedger(options: LedgerOptions): Promise<Ledger> {
  const lock = await lockDirectory(options.dir, { code: 'ledger_locked' })
  try {
    const loaded = loadLedger({
      dir: options.dir,
      signer: options.signer,
      head: readHeadFile(options.dir),
      witnesses: options.witnesses ?? [],
      onEntry: options.onCommitted,
    })
    if (loaded.repair?.kind === 'torn_segment') await unlink(join(options.dir, loaded.repair.segment))
    const file = await (options.openFile ?? open)(join(options.dir, loaded.segment), 'r+', 0o600)
    if (loaded.repair?.kind === 'torn_group') await file.truncate(loaded.offset)
    // Also when nothing was torn: what was read may so far be in the page cache of a process that died before its fsync.
    await file.sync()
    await syncDirectory(options.dir)
    const head = HeadFile.open(options.dir)
    head.write(loaded.lastCheckpoint)
    return new Ledger({
      options,
      lock,
      file,
      segmentStart: Number(SEGMENT_NAME.exec(loaded.segment)?.[1]),
      offset: loaded.offset,
      frontier: loaded.frontier,
      head,
      repair: loaded.repair,
    })
  } catch (error) {
    await lock.release()
    throw error
  }
}

interface LedgerParts {
  readonly options: LedgerOptions
  readonly lock: DirectoryLock
  readonly file: FileHandle
  readonly segmentStart: number
  readonly offset: number
  readonly frontier: MerkleFrontier
  readonly head: HeadFile
  readonly repair: Repair | undefined
}

export class Ledger {
  /** What opening had to cut off; undefined when the ledger was whole. */
  readonly repair: Repair | undefined
  private readonly options: LedgerOptions
  private readonly lock: DirectoryLock
  private readonly headFile: HeadFile
  private readonly batcher: Batcher<Buffer, number>
  // Owned by the flush under way; nothing else changes them.
  private file: FileHandle
  private offset: number
  private frontier: MerkleFrontier
  private committed: TreeHead
  private segmentStart: number
  /** Set when the files may no longer be what memory says; only a restart helps. */
  private broken: Error | undefined
  private closed = false

  constructor(parts: LedgerParts) {
    this.options = parts.options
    this.lock = parts.lock
    this.file = parts.file
    this.offset = parts.offset
    this.frontier = parts.frontier
    this.committed = { size: parts.frontier.size, rootHash: parts.frontier.root() }
    this.segmentStart = parts.segmentStart
    this.headFile = parts.head
    this.repair = parts.repair
    this.batcher = createBatcher<Buffer, number>({
      flush: (payloads) => this.flush(payloads),
      maxItems: MAX_GROUP_ENTRIES,
    })
  }

  /** Size and root hash up to the newest durable group. */
  get head(): TreeHead {
    return this.committed
  }

  /** Why nothing can be written any more, or undefined. */
  get failure(): Error | undefined {
    return this.broken
  }

  /** Resolves with the entry's index when it is durable; rejects with `unavailable` and then it does not exist. */
  async append(payload: Buffer): Promise<number> {
    if (this.closed) throw new CertpeerError('unavailable', 'the ledger is closed')
    return await this.batcher.submit(payload)
  }

  /** Up to `max` committed entries from `index` on, read from the files. */
  read(index: number, max: number): { readonly payload: Buffer; readonly index: number }[] {
    const size = this.committed.size
    const entries: { payload: Buffer; index: number }[] = []
    const names = listSegments(this.options.dir)
    const starts = names.map((name) => Number(SEGMENT_NAME.exec(name)?.[1]))
    for (const [position, name] of names.entries()) {
      let at = starts[position] ?? size
      const end = Math.min(starts[position + 1] ?? size, size)
      if (end <= index + entries.length || entries.length >= max) continue
      const bytes = readFileSync(join(this.options.dir, name))
      for (let frame = readFrame(bytes, SEGMENT_HEADER_BYTES); frame && at < end; frame = readFrame(bytes, frame.end)) {
        if (frame.kind !== 'entry') continue
        if (at >= index && entries.length < max) entries.push({ payload: Buffer.from(frame.payload), index: at })
        at += 1
      }
    }
    return entries
  }

  /** Waits for what was submitted, then lets go of files and lock. */
  async close(): Promise<void> {
    if (this.closed) return
    this.closed = true
    await this.batcher.drain()
    await this.file.close()
    this.headFile.close()
    await this.lock.release()
  }

  private async flush(payloads: readonly Buffer[]): Promise<number[]> {
    if (this.broken) throw unavailable(this.broken)
    const frontier = this.frontier.copy()
    const frames: Buffer[] = []
    for (const payload of payloads) {
      frontier.append(leafHash(payload))
      frames.push(encodeFrame('entry', payload))
    }
    const checkpoint: Checkpoint = this.options.signer.sign({ size: frontier.size, rootHash: frontier.root() })
    frames.push(encodeFrame('checkpoint', encodeCheckpoint(checkpoint)))
    const group = Buffer.concat(frames)
    try {
      await this.rotateIfFull()
      await writeFully(this.file, group, this.offset)
      await this.file.datasync()
    } catch (cause) {
      await this.rollBack(cause)
      throw unavailable(cause)
    }
    const firstIndex = this.frontier.size
    this.frontier = frontier
    this.offset += group.length
    this.committed = { size: checkpoint.size, rootHash: checkpoint.rootHash }
    try {
      this.headFile.write(checkpoint)
    } catch (error) {
      // The group is durable and proves itself; a head that lags only weakens the next start's check.
      this.options.onHeadFailure?.(error)
    }
    try {
      payloads.forEach((payload, at) => this.options.onCommitted(payload, firstIndex + at))
    } catch (cause) {
      // The group is durable, but memory does not follow it: nothing may be decided from it any more.
      this.broken = new Error('a ledger entry could not be applied', { cause })
      throw new CertpeerError('unavailable', 'a ledger entry was written but not applied; restart the authority', {
        cause,
      })
    }
    return payloads.map((_, at) => firstIndex + at)
  }

  /**
   * Cuts the file back to the last good group and makes that durable. A failed fsync may have dropped the pages or
   * kept them; after the cut neither matters. When not even that works, only a restart can tell what the disk holds.
   */
  private async rollBack(cause: unknown): Promise<void> {
    try {
      await this.file.truncate(this.offset)
      await this.file.sync()
    } catch (error) {
      this.broken = new Error('the ledger file could not be cut back after a failed write', {
        cause: new AggregateError([cause, error]),
      })
    }
  }

  private async rotateIfFull(): Promise<void> {
    if (this.offset < (this.options.segmentBytes ?? DEFAULT_SEGMENT_BYTES)) return
    const size = this.frontier.size
    if (size === this.segmentStart) return
    const next = await beginSegment(this.options.dir, size, this.options.openFile ?? open)
    await this.file.close()
    this.file = next
    this.segmentStart = size
    this.offset = SEGMENT_HEADER_BYTES
  }
}

async function beginSegment(dir: string, firstIndex: number, openFile: OpenFile): Promise<FileHandle> {
  const path = join(dir, segmentName(firstIndex))
  // 'w': a file of that name can only be what an attempt that failed left behind; it holds no acknowledged entry.
  const file = await openFile(path, 'w', 0o600)
  try {
    await writeFully(file, encodeSegmentHeader(firstIndex), 0)
    await file.sync()
    await syncDirectory(dir)
    return file
  } catch (error) {
    await file.close()
    await unlink(path).catch(() => undefined)
    throw error
  }
}

async function writeFully(file: FileHandle, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, position + done)
    done += bytesWritten
  }
}

function unavailable(cause: unknown): CertpeerError {
  const code = cause instanceof Error && 'code' in cause ? String(cause.code) : undefined
  const why = code === 'ENOSPC' || code === 'EDQUOT' ? 'its disk is full' : 'its disk failed'
  return new CertpeerError('unavailable', `the ledger cannot be written: ${why}; nothing was changed`, { cause })
}
