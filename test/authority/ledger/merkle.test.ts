import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { EMPTY_ROOT, leafHash, MerkleFrontier } from '../../../src/authority/ledger/merkle.ts'

/** RFC 9162 section 2.1.1, as it is written there. */
function definition(leaves: readonly Buffer[]): Buffer {
  const [only] = leaves
  if (only === undefined) return createHash('sha256').digest()
  if (leaves.length === 1) return only
  let k = 1
  while (k * 2 < leaves.length) k *= 2
  return createHash('sha256')
    .update(Buffer.of(1))
    .update(definition(leaves.slice(0, k)))
    .update(definition(leaves.slice(k)))
    .digest()
}

test('the frontier has the root of RFC 9162 at every size', () => {
  const frontier = new MerkleFrontier()
  assert.deepEqual(frontier.root(), EMPTY_ROOT)
  const leaves: Buffer[] = []
  for (let size = 1; size <= 130; size++) {
    const leaf = leafHash(Buffer.from(`entry ${size}`))
    leaves.push(leaf)
    frontier.append(leaf)
    assert.equal(frontier.size, size)
    assert.deepEqual(frontier.root(), definition(leaves))
  }
})

test('the root of the well-known test vector of eight leaves', () => {
  // certificate-transparency's reference tree: leaves "", 00, 10, 2021, 3031, 40414243, 50..57, 60..6f.
  const inputs = ['', '00', '10', '2021', '3031', '40414243', '5051525354555657', '606162636465666768696a6b6c6d6e6f']
  const frontier = new MerkleFrontier()
  for (const input of inputs) frontier.append(leafHash(Buffer.from(input, 'hex')))
  assert.equal(frontier.root().toString('hex'), '5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328')
})

test('a copy grows by itself', () => {
  const frontier = new MerkleFrontier()
  frontier.append(leafHash(Buffer.from('a')))
  const root = frontier.root()
  const copy = frontier.copy()
  copy.append(leafHash(Buffer.from('b')))
  assert.deepEqual(frontier.root(), root)
  assert.equal(frontier.size, 1)
  assert.equal(copy.size, 2)
})
