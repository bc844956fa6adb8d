/**
 * A checkpoint says: the ledger had this many entries and this root hash. It is signed by the authority's key
 * (ECDSA P-256 with SHA-256) and stands in the segment right after the group of entries it closes.
 *
 *     checkpoint = "cpck" ‖ size (64 bits, big-endian) ‖ root hash (32 bytes) ‖ signature (DER)
 *     signature over "certpeer-checkpoint-v1" ‖ SHA-256(trust domain) ‖ size ‖ root hash
 */
import { createHash, sign, verify, type KeyObject } from 'node:crypto'

export interface TreeHead {
  readonly size: number
  readonly rootHash: Buffer
}
export interface Checkpoint extends TreeHead {
  readonly signature: Buffer
}

/** Begins every checkpoint; also what a search for one looks for. */
export const CHECKPOINT_MARKER = Buffer.from('cpck', 'ascii')
const CONTEXT = Buffer.from('certpeer-checkpoint-v1', 'ascii')
const ROOT_BYTES = 32
const FIXED_BYTES = CHECKPOINT_MARKER.length + 8 + ROOT_BYTES

/** Signs and verifies checkpoints of one authority. */
export class CheckpointSigner {
  private readonly privateKey: KeyObject
  private readonly publicKey: KeyObject
  private readonly domainHash: Buffer

  constructor(keys: { privateKey: KeyObject; publicKey: KeyObject }, trustDomain: string) {
    this.privateKey = keys.privateKey
    this.publicKey = keys.publicKey
    this.domainHash = createHash('sha256').update(trustDomain, 'utf8').digest()
  }

  sign(head: TreeHead): Checkpoint {
    return { ...head, signature: sign('sha256', this.message(head), this.privateKey) }
  }

  isValid(checkpoint: Checkpoint): boolean {
    return verify('sha256', this.message(checkpoint), this.publicKey, checkpoint.signature)
  }

  private message(head: TreeHead): Buffer {
    return Buffer.concat([CONTEXT, this.domainHash, encodeHead(head)])
  }
}

export function encodeCheckpoint(checkpoint: Checkpoint): Buffer {
  return Buffer.concat([CHECKPOINT_MARKER, encodeHead(checkpoint), checkpoint.signature])
}

/** Undefined when the bytes are no checkpoint. Does not verify the signature. */
export function readCheckpoint(payload: Buffer): Checkpoint | undefined {
  if (payload.length <= FIXED_BYTES || !payload.subarray(0, CHECKPOINT_MARKER.length).equals(CHECKPOINT_MARKER)) {
    return undefined
  }
  const size = payload.readBigUInt64BE(CHECKPOINT_MARKER.length)
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) return undefined
  return {
    size: Number(size),
    // Copies: the segment's buffer must not stay alive for a few bytes of it.
    rootHash: Buffer.from(payload.subarray(CHECKPOINT_MARKER.length + 8, FIXED_BYTES)),
    signature: Buffer.from(payload.subarray(FIXED_BYTES)),
  }
}

function encodeHead(head: TreeHead): Buffer {
  const size = Buffer.alloc(8)
  size.writeBigUInt64BE(BigInt(head.size))
  return Buffer.concat([size, head.rootHash])
}
