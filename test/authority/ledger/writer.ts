/** A process that appends to a ledger until it is killed, and tells its parent what was acknowledged. */
import { createPrivateKey, createPublicKey } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CheckpointSigner } from '../../../src/authority/ledger/checkpoint.ts'
import { openLedger } from '../../../src/authority/ledger/ledger.ts'

const [dir = '', round = ''] = process.argv.slice(2)
const privateKey = createPrivateKey(readFileSync(join(dir, '..', 'key.pem')))
const ledger = await openLedger({
  dir,
  signer: new CheckpointSigner({ privateKey, publicKey: createPublicKey(privateKey) }, 'test.internal'),
  onCommitted: () => undefined,
  segmentBytes: 20_000,
})
for (let at = 0; ; at += 5) {
  await Promise.all(
    Array.from({ length: 5 }, async (_, k) => {
      const text = `round ${round} entry ${at + k} ${'.'.repeat(200)}`
      const index = await ledger.append(Buffer.from(text))
      process.send?.({ index, text })
    }),
  )
}
