/**
 * The file `head` beside the segments names the newest group that was acknowledged: size and root hash. With it a
 * ledger that lost acknowledged entries is told apart from one whose last group was torn before anybody heard of it.
 *
 * It is one block, overwritten in place by a single write(2): that needs no free space when the disk is full, and a
 * reader after kill -9 finds the old head or the new one. It is not fsynced (the group was): after a power cut it may
 * lag, never lead. Whoever can edit the disk can edit it too; against them stand the heads inside published CRLs.
 */
import { openSync, readFileSync, writeSync, closeSync, constants } from 'node:fs'
import { crc32 } from 'node:zlib'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import type { TreeHead } from './checkpoint.ts'

const BLOCK_BYTES = 256
const FORMAT = /^certpeer-ledger-head-1 (0|[1-9][0-9]{0,15}) ([0-9a-f]{64}) ([0-9a-f]{8}) *\n$/

export class HeadFile {
  private readonly fd: number

  private constructor(fd: number) {
    this.fd = fd
  }

  static open(dir: string): HeadFile {
    return new HeadFile(openSync(headPath(dir), constants.O_RDWR | constants.O_CREAT, 0o600))
  }

  write(head: TreeHead): void {
    writeSync(this.fd, encodeHeadBlock(head), 0, BLOCK_BYTES, 0)
  }

  close(): void {
    closeSync(this.fd)
  }
}

/** The head file's content; undefined when there is none or it is empty; throws ledger_corrupt when it is damaged. */
export function readHeadFile(dir: string): TreeHead | undefined {
  let text: string
  try {
    text = readFileSync(headPath(dir), 'latin1')
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw error
  }
  if (text === '') return undefined
  const [, size = '', root = '', sum] = FORMAT.exec(text) ?? []
  if (text.length !== BLOCK_BYTES || sum !== checksum(size, root)) {
    throw new CertpeerError(
      'ledger_corrupt',
      `${headPath(dir)} is damaged; compare the ledger with its backup, then delete this file to start without it`,
    )
  }
  return { size: Number(size), rootHash: Buffer.from(root, 'hex') }
}

function encodeHeadBlock(head: TreeHead): Buffer {
  const root = head.rootHash.toString('hex')
  const line = `certpeer-ledger-head-1 ${head.size} ${root} ${checksum(String(head.size), root)}`
  return Buffer.from(`${line.padEnd(BLOCK_BYTES - 1)}\n`, 'latin1')
}

function checksum(size: string, root: string): string {
  return crc32(Buffer.from(`${size} ${root}`, 'latin1'))
    .toString(16)
    .padStart(8, '0')
}

function headPath(dir: string): string {
  return join(dir, 'head')
}
