/**
 * The Merkle tree over the ledger's entries, RFC 9162 section 2.1: a leaf is SHA-256(0x00 ‖ entry), a node
 * SHA-256(0x01 ‖ left ‖ right). Only the frontier is kept: the roots of the complete subtrees that the size's binary
 * digits name, largest first, so appending and the root cost O(log n).
 */
import { createHash } from 'node:crypto'

const LEAF = Buffer.of(0x00)
const NODE = Buffer.of(0x01)

/** MTH({}) is the hash of the empty string, RFC 9162 section 2.1.1. */
export const EMPTY_ROOT = createHash('sha256').digest()

export function leafHash(entry: Buffer): Buffer {
  return createHash('sha256').update(LEAF).update(entry).digest()
}

function nodeHash(left: Buffer, right: Buffer): Buffer {
  return createHash('sha256').update(NODE).update(left).update(right).digest()
}

/** A tree that can only grow. `copy` is cheap, so a group of entries can be tried and dropped. */
export class MerkleFrontier {
  private count = 0
  private subtrees: Buffer[] = []

  get size(): number {
    return this.count
  }

  append(leaf: Buffer): void {
    let hash = leaf
    // Each trailing one bit of the size is a complete subtree that the new one merges with, like a carry.
    for (let size = this.count; size % 2 === 1; size = Math.floor(size / 2)) {
      const left = this.subtrees.pop()
      if (left === undefined) throw new TypeError('the Merkle frontier does not fit its size')
      hash = nodeHash(left, hash)
    }
    this.subtrees.push(hash)
    this.count += 1
  }

  root(): Buffer {
    let hash: Buffer | undefined
    for (const subtree of this.subtrees.toReversed()) hash = hash === undefined ? subtree : nodeHash(subtree, hash)
    return hash ?? EMPTY_ROOT
  }

  copy(): MerkleFrontier {
    const other = new MerkleFrontier()
    other.count = this.count
    other.subtrees = [...this.subtrees]
    return other
  }
}
