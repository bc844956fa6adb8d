/** A ledger in a directory of its own, and the damage tests do to it. */
import { generateKeyPairSync } from 'node:crypto'
import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { CheckpointSigner } from '../../../src/authority/ledger/checkpoint.ts'
import { createLedger, openLedger, type Ledger, type LedgerOptions } from '../../../src/authority/ledger/ledger.ts'

export const KEYS = generateKeyPairSync('ec', { namedCurve: 'P-256' })
export const SIGNER = new CheckpointSigner(KEYS, 'test.internal')

export function temporaryDirectory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'certpeer-ledger-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

export async function newLedgerDir(t: TestContext): Promise<string> {
  const dir = join(temporaryDirectory(t), 'ledger')
  await createLedger({ dir, signer: SIGNER, genesis: Buffer.from('genesis') })
  return dir
}

export function copyOf(t: TestContext, dir: string): string {
  const copy = join(temporaryDirectory(t), 'ledger')
  cpSync(dir, copy, { recursive: true })
  return copy
}

export interface Opened {
  readonly ledger: Ledger
  /** Everything that was committed, as the state sees it. */
  readonly seen: string[]
}

export async function openTestLedger(dir: string, options: Partial<LedgerOptions> = {}): Promise<Opened> {
  const seen: string[] = []
  const ledger = await openLedger({
    dir,
    signer: SIGNER,
    onCommitted: (payload, index) => {
      if (index !== seen.length) throw new Error(`entry ${index} came at place ${seen.length}`)
      seen.push(payload.toString())
    },
    ...options,
  })
  return { ledger, seen }
}

type Fault = 'failed' | 'done but reported failed'
export type FaultPlan = { call: 'write' | 'datasync' | 'truncate'; form: Fault; code: string } | undefined

/** Opens files whose next `call` of the plan goes wrong once: without having happened, or after it has. */
export function faultyOpen(plan: { next: FaultPlan }) {
  return async (path: string, flags: string, mode: number): Promise<FileHandle> => {
    const file = await open(path, flags, mode)
    return new Proxy(file, {
      get(target, name) {
        const value: unknown = Reflect.get(target, name, target)
        if (typeof value !== 'function') return value
        return async (...args: unknown[]) => {
          const fault = plan.next
          const call = () => Reflect.apply(value, target, args) as Promise<unknown>
          if (fault?.call !== name) return await call()
          plan.next = undefined
          if (fault.form === 'done but reported failed') await call()
          throw Object.assign(new Error(`injected ${fault.code}`), { code: fault.code })
        }
      },
    })
  }
}
