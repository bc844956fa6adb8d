/** The real openssl beside our own code: it makes what we read and judges what we write. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export interface OpensslResult {
  readonly code: number | null
  readonly stdout: Buffer
  readonly stderr: string
}

/** A folder of its own for one test's files; `using` removes it. */
export class OpensslFolder {
  readonly path: string

  constructor() {
    this.path = mkdtempSync(join(tmpdir(), 'certpeer-openssl-'))
  }

  /** Writes a file and gives its path. */
  write(name: string, content: string | Buffer): string {
    const path = join(this.path, name)
    writeFileSync(path, content, { mode: 0o600 })
    return path
  }

  /** Reads what openssl wrote. */
  read(name: string): Buffer {
    return readFileSync(join(this.path, name))
  }

  run(args: readonly string[], input?: Buffer): OpensslResult {
    const { status, stdout, stderr } = spawnSync('openssl', args, { cwd: this.path, input, timeout: 20_000 })
    return { code: status, stdout, stderr: stderr.toString('utf8') }
  }

  /** Standard output of a run that must succeed. */
  ok(args: readonly string[], input?: Buffer): Buffer {
    const { code, stdout, stderr } = this.run(args, input)
    if (code !== 0) throw new Error(`openssl ${args.join(' ')} ended with ${String(code)}: ${stderr}`)
    return stdout
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}
