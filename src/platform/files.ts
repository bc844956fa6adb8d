/** Files that must survive a crash, files that hold secrets, and the lock that lets one process own a directory. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { mkdir, open, readFile, readdir, rename, unlink } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { spawn } from 'node:child_process'
import { CertpeerError } from '../core/errors.ts'

const MAX_TEXT_BYTES = 4 * 1024 * 1024

/**
 * Replaces a file in one step: after a crash at any moment its reader finds the old content or the new one, whole.
 * `mode` holds whatever the umask says. A symbolic link at `path` is replaced, not followed.
 */
export async function writeFileAtomic(path: string, data: string | Buffer, options: { mode: number }): Promise<void> {
  const folder = dirname(path)
  const temporary = join(folder, `.${basename(path)}.${process.pid}.${randomBytes(6).toString('hex')}.tmp`)
  // Created unreadable to others and widened by chmod, so that a secret is never open, not even for an instant.
  const file = await open(temporary, 'wx', 0o600)
  try {
    try {
      await file.writeFile(data)
      await file.chmod(options.mode)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await unlink(temporary).catch(() => undefined)
    throw error
  }
  await syncDirectory(folder)
}

/** Makes renames and new files in the directory durable (fsync(2): the entry needs its own). */
export async function syncDirectory(folder: string): Promise<void> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Removes what writers that were killed left behind in a directory. Only for its owner, before anyone writes. */
export async function removeAbandonedTemporaries(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    if (/^\..+\.[0-9]+\.[0-9a-f]{12}\.tmp$/.test(name)) await unlink(join(folder, name))
  }
}

/** Makes a directory for secrets, and those above it, when they are missing. */
export async function makePrivateDirectory(path: string): Promise<void> {
  await mkdir(path, { recursive: true, mode: 0o700 })
}

/** Reads a text file of at most 4 MiB. `what` names it for people: "the root certificate". Throws config_invalid. */
export async function readTextFile(path: string, what: string): Promise<string> {
  const handle = await openForReading(path, what)
  try {
    return await readBounded(handle, path, what)
  } finally {
    await handle.close()
  }
}

/**
 * Reads a file that holds a secret; refuses one that its group or others may read, or that belongs to another user than
 * ours or root. The content is never part of an error.
 */
export async function readSecretFile(path: string, what: string): Promise<string> {
  const handle = await openForReading(path, what)
  try {
    // Checked on the open file, so that it cannot be exchanged between check and reading.
    const stat = await handle.stat()
    if ((stat.mode & 0o077) !== 0) {
      const mode = (stat.mode & 0o777).toString(8).padStart(4, '0')
      throw new CertpeerError(
        'config_invalid',
        `${what} ${path} has mode ${mode}: others may use it; run chmod 600 and replace the secret if they could`,
      )
    }
    const uid = process.geteuid?.()
    if (uid !== undefined && stat.uid !== uid && stat.uid !== 0) {
      throw new CertpeerError('config_invalid', `${what} ${path} belongs to user ${stat.uid}, not to ${uid}`)
    }
    return await readBounded(handle, path, what)
  } finally {
    await handle.close()
  }
}

export interface DirectoryLock extends AsyncDisposable {
  release(): Promise<void>
}

/**
 * Makes this process the only owner of a directory until `release`, or until it ends in whatever way: the kernel holds
 * the lock (flock(2)) on a descriptor of ours, so kill -9 leaves nothing to clean. It holds across namespaces and
 * containers on one machine, where pid files do not. Throws `code` when another process, or this one, has it.
 *
 * Node has no flock: the program flock(1) takes the lock on the descriptor it inherits, which is the same open file
 * description as ours, and ends. The file `lock` stays for good: deleting it would let two owners in.
 */
export async function lockDirectory(
  directory: string,
  options: { code?: 'state_busy' | 'ledger_locked' } = {},
): Promise<DirectoryLock> {
  const path = join(directory, 'lock')
  const handle = await openLock(directory, path)
  try {
    if (!(await takeLock(handle.fd))) {
      const owner = /^[0-9]{1,10}$/.exec((await readFile(path, 'utf8')).trim())?.[0]
      throw new CertpeerError(
        options.code ?? 'state_busy',
        `${directory} is in use by another process${owner === undefined ? '' : ` (pid ${owner})`}; stop it first`,
      )
    }
    await handle.truncate(0)
    await handle.write(`${process.pid}\n`, 0)
  } catch (error) {
    await handle.close()
    throw error
  }
  let held = true
  const release = async () => {
    if (!held) return
    held = false
    await handle.close()
  }
  return { release, [Symbol.asyncDispose]: release }
}

/** True when the lock is ours now; false when another has it. */
function takeLock(fd: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const child = spawn('flock', ['-x', '-n', '3'], { stdio: ['ignore', 'ignore', 'ignore', fd] })
    child.on('error', (error) => {
      reject(new CertpeerError('missing_program', 'cannot start flock; install util-linux', { cause: error }))
    })
    child.on('exit', (code) => {
      // flock(1): status 1 is a lock held by another; anything else is its own failure.
      if (code === 0 || code === 1) resolve(code === 0)
      else reject(new CertpeerError('unavailable', `flock ended with status ${code ?? 'of a signal'}`))
    })
  })
}

async function openLock(directory: string, path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDWR | constants.O_CREAT, 0o600)
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code === 'ENOENT') {
      throw new CertpeerError('not_found', `${directory} does not exist: name another directory`, { cause: error })
    }
    if (code === 'EACCES' || code === 'EROFS' || code === 'ENOTDIR') {
      throw new CertpeerError('config_invalid', `${directory} is not a directory that this user can write`, {
        cause: error,
      })
    }
    throw error
  }
}

async function openForReading(path: string, what: string): Promise<FileHandle> {
  try {
    // O_NONBLOCK: opening a FIFO by mistake must not hang.
    return await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (error) {
    throw new CertpeerError('config_invalid', `cannot read ${what} ${path}: ${reason(error)}`, { cause: error })
  }
}

async function readBounded(handle: FileHandle, path: string, what: string): Promise<string> {
  const stat = await handle.stat()
  if (!stat.isFile()) throw new CertpeerError('config_invalid', `${what} ${path} is not a regular file`)
  if (stat.size > MAX_TEXT_BYTES) {
    throw new CertpeerError('config_invalid', `${what} ${path} is larger than ${MAX_TEXT_BYTES} bytes`)
  }
  return await handle.readFile('utf8')
}

function reason(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown reason'
  if (code === 'ENOENT') return 'it does not exist'
  if (code === 'EACCES') return 'permission denied'
  return code
}
