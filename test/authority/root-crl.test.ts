import assert from 'node:assert/strict'
import { createPrivateKey } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { keySigner } from '../../src/authority/issuing/signer.ts'
import { RootCrl } from '../../src/authority/root-crl.ts'
import { encodeCrlEntry, encodeTbsCertList, parseCrl } from '../../src/core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../../src/core/x509/encode.ts'
import { newStage, type Stage } from './support.ts'

/** The next CRL as a ceremony would make it, `later` seconds from now. */
async function nextCrl(
  stage: Stage,
  number: bigint,
  { later = 0, keyFile = '../root/root.key' } = {},
): Promise<Buffer> {
  const { authority, clock, dir } = stage
  const signer = keySigner(createPrivateKey(readFileSync(join(dir, keyFile))))
  const algorithm = signatureAlgorithmFor(signer.publicKey)
  const thisUpdate = new Date(clock.now().getTime() + later * 1000)
  const [issuer] = authority.issuers
  assert.ok(issuer)
  const tbs = encodeTbsCertList({
    issuer: authority.root,
    thisUpdate,
    nextUpdate: new Date(thisUpdate.getTime() + 86_400_000),
    number,
    entries: encodeCrlEntry({ serial: issuer.certificate.serial, revokedAt: thisUpdate, reason: 'cACompromise' }),
    oids: authority.oids,
  })
  return assembleSigned(tbs, algorithm.der, await signer.sign(tbs))
}

async function publishedBefore(stage: Stage) {
  const path = join(stage.dir, 'root.crl')
  const { number } = parseCrl(readFileSync(path))
  const rootCrl = new RootCrl(stage.authority, path)
  assert.equal(rootCrl.current.number, number)
  const place = (der: Buffer) => {
    writeFileSync(path, der)
    stage.clock.advance(2)
  }
  return { path, number, rootCrl, place }
}

test('the next root CRL is served as soon as it is in its place', async (t) => {
  const stage = await newStage(t)
  const { number, rootCrl, place } = await publishedBefore(stage)
  place(await nextCrl(stage, number + 5n))
  assert.equal(rootCrl.current.number, number + 5n)
  assert.equal(rootCrl.current.entries.size, 1)
})

test('one that begins later waits for its time', async (t) => {
  const stage = await newStage(t)
  const { number, rootCrl, place } = await publishedBefore(stage)
  place(await nextCrl(stage, number + 1n, { later: 3600 }))
  assert.equal(rootCrl.current.number, number)
  stage.clock.advance(3600)
  assert.equal(rootCrl.current.number, number + 1n)
})

const REFUSED: { name: string; make: (stage: Stage, number: bigint) => Promise<Buffer> | Buffer }[] = [
  { name: 'a lower number', make: (stage, number) => nextCrl(stage, number - 1n) },
  { name: 'other content under the same number', make: (stage, number) => nextCrl(stage, number) },
  {
    name: 'the signature of another key',
    make: (stage, number) => nextCrl(stage, number + 1n, { keyFile: 'keys/authority.key' }),
  },
  { name: 'half a file', make: async (stage, number) => (await nextCrl(stage, number + 1n)).subarray(0, 200) },
  { name: 'no CRL at all', make: () => Buffer.from('-----BEGIN X509 CRL-----\n') },
]
for (const { name, make } of REFUSED) {
  test(`${name} changes nothing, and what is put right counts`, async (t) => {
    const stage = await newStage(t)
    const { number, rootCrl, place } = await publishedBefore(stage)
    place(await make(stage, number))
    assert.equal(rootCrl.current.number, number)
    assert.equal(rootCrl.current.entries.size, 0)
    place(await nextCrl(stage, number + 2n))
    assert.equal(rootCrl.current.number, number + 2n)
  })
}

test('a file that is gone leaves the one that is served; a start without a good one is refused', async (t) => {
  const stage = await newStage(t)
  const { path, number, rootCrl } = await publishedBefore(stage)
  rmSync(path)
  stage.clock.advance(2)
  assert.equal(rootCrl.current.number, number)
  assert.throws(() => new RootCrl(stage.authority, path), { code: 'config_invalid' })
  writeFileSync(path, await nextCrl(stage, number + 1n, { keyFile: 'keys/authority.key' }))
  assert.throws(() => new RootCrl(stage.authority, path), { code: 'config_invalid' })
})
