/**
 * How bytes lie in a segment file: a header, then frames.
 *
 *     header = "certpeer-ledger-1\n" ‖ index of the first entry (64 bits, big-endian)
 *     frame  = length of the payload (32 bits) ‖ CRC-32 of kind and payload (32 bits) ‖ kind (8 bits) ‖ payload
 *
 * The CRC finds damage at the frame where it is and costs next to nothing; what nobody may forge is protected by the
 * signed checkpoints.
 */
import { crc32 } from 'node:zlib'

export const FRAME_KIND = { entry: 1, checkpoint: 2 } as const
export type FrameKind = keyof typeof FRAME_KIND

/** An entry is at most a network document or a certificate; a larger length can only be damage. */
export const MAX_PAYLOAD_BYTES = 1_048_576

const MAGIC = Buffer.from('certpeer-ledger-1\n', 'ascii')
export const SEGMENT_HEADER_BYTES = MAGIC.length + 8
const FRAME_HEADER_BYTES = 9

export function encodeSegmentHeader(firstIndex: number): Buffer {
  const header = Buffer.alloc(SEGMENT_HEADER_BYTES)
  MAGIC.copy(header)
  header.writeBigUInt64BE(BigInt(firstIndex), MAGIC.length)
  return header
}

/** The index in a segment's header, or undefined when the header is short or damaged. */
export function readSegmentHeader(bytes: Buffer): number | undefined {
  if (bytes.length < SEGMENT_HEADER_BYTES || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) return undefined
  const index = bytes.readBigUInt64BE(MAGIC.length)
  return index <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(index) : undefined
}

export function encodeFrame(kind: FrameKind, payload: Buffer): Buffer {
  if (payload.length === 0 || payload.length > MAX_PAYLOAD_BYTES) {
    throw new TypeError(`a ledger frame holds 1 to ${MAX_PAYLOAD_BYTES} bytes, not ${payload.length}`)
  }
  const frame = Buffer.allocUnsafe(FRAME_HEADER_BYTES + payload.length)
  frame.writeUInt32BE(payload.length, 0)
  frame.writeUInt8(FRAME_KIND[kind], 8)
  payload.copy(frame, FRAME_HEADER_BYTES)
  frame.writeUInt32BE(crc32(frame.subarray(8)), 4)
  return frame
}

export interface Frame {
  readonly kind: FrameKind
  readonly payload: Buffer
  /** Offset of the byte after the frame. */
  readonly end: number
}

/** The frame at `offset`; undefined when no whole, undamaged frame stands there. */
export function readFrame(bytes: Buffer, offset: number): Frame | undefined {
  if (offset + FRAME_HEADER_BYTES > bytes.length) return undefined
  const length = bytes.readUInt32BE(offset)
  const end = offset + FRAME_HEADER_BYTES + length
  if (length === 0 || length > MAX_PAYLOAD_BYTES || end > bytes.length) return undefined
  if (crc32(bytes.subarray(offset + 8, end)) !== bytes.readUInt32BE(offset + 4)) return undefined
  const kind = kindOf(bytes.readUInt8(offset + 8))
  return kind === undefined ? undefined : { kind, payload: bytes.subarray(offset + FRAME_HEADER_BYTES, end), end }
}

/** Offsets beyond which a checkpoint frame may start: where `marker` stands right after a frame header. */
export function* findFrames(bytes: Buffer, from: number, marker: Buffer): Generator<Frame> {
  for (let at = bytes.indexOf(marker, from); at !== -1; at = bytes.indexOf(marker, at + 1)) {
    const frame = at - FRAME_HEADER_BYTES >= from ? readFrame(bytes, at - FRAME_HEADER_BYTES) : undefined
    if (frame?.kind === 'checkpoint') yield frame
  }
}

function kindOf(value: number): FrameKind | undefined {
  if (value === FRAME_KIND.entry) return 'entry'
  return value === FRAME_KIND.checkpoint ? 'checkpoint' : undefined
}
