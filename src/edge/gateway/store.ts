/**
 * What a gateway knows, on its disk: a journal of verified certificates and what became of them, and a file for each CRL
 * and network document. Appended before the device is touched, so that an agent that is killed finds what it had
 * decided; durable a moment later, and before anybody is told that a peer is gone. A disk that fails stops nothing: it
 * is told, and tried again.
 */
import { constants } from 'node:fs'
import { open, readdir, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { journalRecordSchema, type JournalRecord } from '../../core/messages/gateway-journal.ts'
import type { VerifiedNetworkDocument } from '../../core/messages/network-document.ts'
import type { Crl } from '../../core/x509/crl.ts'
import { makePrivateDirectory, removeAbandonedTemporaries, writeFileAtomic } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import type { SavedState } from './session.ts'

const JOURNAL = 'journal.ndjson'
const SYNC_AFTER_MS = 500
const TRY_AGAIN_MS = 15_000
/** The journal is written anew when it has grown by more lines than this and than it began with. */
const MIN_GROWTH_LINES = 10_000
/** A CRL of a million entries is about 40 MB, a journal of 65 536 peers about 90. */
const MAX_FILE_BYTES = 402_653_184

export interface StoreOptions {
  /** The credential directory; the store is `peers/` in it. */
  readonly dir: string
  readonly log: Logger
  /** Everything that is known now, for writing the journal anew. */
  readonly dump: () => Iterable<JournalRecord>
}

export class GatewayStore {
  readonly #options: StoreOptions
  readonly #folder: string
  #journal: FileHandle | undefined
  #lines = 0
  #linesAtRewrite = 0
  /** Some of what should be there is not: everything has to be written anew. */
  #isBehind = false
  #triedAtMs = -Infinity
  #isSynced = true
  #syncTimer: NodeJS.Timeout | undefined
  #retryTimer: NodeJS.Timeout | undefined
  /** One thing at a time. */
  #tail: Promise<void> = Promise.resolve()
  /** Files beside the journal that are not written yet, by name; a large CRL must not hold up a removal. */
  readonly #unsaved = new Map<string, string | Buffer>()
  readonly #saved = new Set<string>()
  #filesTail: Promise<void> = Promise.resolve()

  constructor(options: StoreOptions) {
    this.#options = options
    this.#folder = join(options.dir, 'peers')
  }

  /** True while something that should be on disk is not. */
  get isBehind(): boolean {
    return this.#isBehind
  }

  /** Appends; resolves when the kernel has it. Never rejects. */
  append(records: readonly JournalRecord[]): Promise<void> {
    return this.#queue(async () => {
      if (records.length === 0 && !this.#isBehind) return
      if (this.#isBehind || this.#hasOutgrown()) {
        if (this.#isBehind && Date.now() - this.#triedAtMs < TRY_AGAIN_MS) return
        await this.#rewrite()
        return
      }
      // Without any CRL of its issuer, or document of its network, a peer could not be taken back: those come first.
      const lacksFiles = [...this.#unsaved.keys()].some((name) => !this.#saved.has(name))
      if (lacksFiles && records.some(({ type }) => type === 'peer')) await this.#filesTail
      this.#journal ??= await open(join(this.#folder, JOURNAL), constants.O_WRONLY | constants.O_APPEND, 0o600)
      this.#isSynced = false
      await this.#journal.appendFile(encode(records))
      this.#lines += records.length
      this.#syncSoon()
    })
  }

  /** Resolves when what was appended so far would survive a power cut, or has failed and been told. Never rejects. */
  makeDurable(): Promise<void> {
    return this.#queue(() => this.#sync())
  }

  /** Writes the journal anew from what is known. Never rejects. */
  rewrite(): Promise<void> {
    return this.#queue(() => this.#rewrite())
  }

  /** Never rejects. */
  saveCrls(crls: readonly { readonly issuerKeyId: string; readonly crl: Crl }[]): Promise<void> {
    for (const { issuerKeyId, crl } of crls) this.#unsaved.set(`${issuerKeyId}.crl`, crl.der)
    return this.#saveFiles()
  }

  /** Never rejects. */
  saveDocuments(documents: readonly VerifiedNetworkDocument[]): Promise<void> {
    for (const { jws, document } of documents) this.#unsaved.set(`${document.tenant}.${document.network}.jws`, jws)
    return this.#saveFiles()
  }

  /** Waits for what is under way and makes it durable. */
  async close(): Promise<void> {
    await this.#filesTail
    await this.#queue(async () => {
      await this.#sync()
      await this.#closeJournal()
    })
    clearTimeout(this.#syncTimer)
    clearTimeout(this.#retryTimer)
  }

  #queue(act: () => Promise<void>): Promise<void> {
    this.#tail = this.#tail.then(act).catch(async (err: unknown) => {
      await this.#closeJournal().catch(() => undefined)
      this.#fallBehind(err)
    })
    return this.#tail
  }

  #saveFiles(): Promise<void> {
    this.#filesTail = this.#filesTail
      .then(async () => {
        for (const [name, data] of [...this.#unsaved]) {
          await writeFileAtomic(join(this.#folder, name), data, { mode: 0o600 })
          this.#saved.add(name)
          if (this.#unsaved.get(name) === data) this.#unsaved.delete(name)
        }
      })
      .catch((err: unknown) => this.#fallBehind(err))
    return this.#filesTail
  }

  #fallBehind(err: unknown): void {
    const isNews = !this.#isBehind
    this.#isBehind = true
    this.#triedAtMs = Date.now()
    // Also when nothing happens any more that would be appended.
    this.#retryTimer ??= setTimeout(() => {
      this.#retryTimer = undefined
      if (this.#isBehind) void this.rewrite()
    }, TRY_AGAIN_MS).unref()
    if (isNews) this.#options.log.error({ err, folder: this.#folder }, 'gateway state cannot be written; going on')
  }

  async #rewrite(): Promise<void> {
    await makePrivateDirectory(this.#folder)
    const records = [...this.#options.dump()]
    await this.#closeJournal()
    await writeFileAtomic(join(this.#folder, JOURNAL), encode(records), { mode: 0o600 })
    this.#lines = records.length
    this.#linesAtRewrite = records.length
    this.#isSynced = true
    if (this.#unsaved.size > 0) void this.#saveFiles()
    if (this.#isBehind) this.#options.log.info({ folder: this.#folder }, 'gateway state is written again')
    this.#isBehind = false
  }

  #hasOutgrown(): boolean {
    return this.#lines - this.#linesAtRewrite > Math.max(MIN_GROWTH_LINES, this.#linesAtRewrite)
  }

  async #closeJournal(): Promise<void> {
    const journal = this.#journal
    this.#journal = undefined
    await journal?.close()
  }

  async #sync(): Promise<void> {
    if (this.#isSynced) return
    await this.#journal?.datasync()
    this.#isSynced = true
  }

  #syncSoon(): void {
    this.#syncTimer ??= setTimeout(() => {
      this.#syncTimer = undefined
      void this.makeDurable()
    }, SYNC_AFTER_MS).unref()
  }
}

/** What an earlier process and enrollment left. What cannot be read is passed over and told; none of it is believed yet. */
export async function loadStore(dir: string, log: Logger): Promise<SavedState> {
  const folder = join(dir, 'peers')
  await makePrivateDirectory(folder)
  await removeAbandonedTemporaries(folder)
  const crls: Buffer[] = []
  const documents: string[] = []
  // Enrollment and renewal keep the documents that they bring in networks/.
  for (const place of [folder, join(dir, 'networks')]) {
    for (const name of await namesIn(place)) {
      if (/^[0-9a-f]{64}\.crl$/.test(name)) crls.push(await readBounded(join(place, name)))
      if (name.endsWith('.jws')) documents.push((await readBounded(join(place, name))).toString('utf8').trim())
    }
  }
  const { records, damaged } = parseJournal((await readBounded(join(folder, JOURNAL))).toString('utf8'))
  if (damaged === 0) return { records, crls, documents }
  log.warn({ damaged, kept: records.length }, 'lines of the gateway journal cannot be read')
  // What stood in them has to be said again: a revision would claim that all of it is here.
  return { records: records.filter(({ type }) => type !== 'revision'), crls, documents }
}

function parseJournal(text: string): { records: JournalRecord[]; damaged: number } {
  const records: JournalRecord[] = []
  let damaged = 0
  for (const line of text.split('\n')) {
    if (line === '') continue
    try {
      records.push(journalRecordSchema.parse(JSON.parse(line)))
    } catch {
      damaged += 1
    }
  }
  return { records, damaged }
}

function encode(records: readonly JournalRecord[]): string {
  return records.map((record) => `${JSON.stringify(record)}\n`).join('')
}

async function namesIn(folder: string): Promise<string[]> {
  try {
    return (await readdir(folder)).sort()
  } catch (error) {
    if (isMissing(error)) return []
    throw error
  }
}

/** A missing or oversized file counts as an empty one, which no parser takes for anything. */
async function readBounded(path: string): Promise<Buffer> {
  try {
    const handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    try {
      const stat = await handle.stat()
      return stat.isFile() && stat.size <= MAX_FILE_BYTES ? await handle.readFile() : Buffer.alloc(0)
    } finally {
      await handle.close()
    }
  } catch (error) {
    if (isMissing(error)) return Buffer.alloc(0)
    throw error
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT'
}
