/**
 * Renders nginx/ into one directory per generation. A generation is complete or it does not exist: configuration,
 * server certificate with its key, issuers and CRLs never mix between two of them.
 */
import { createHash } from 'node:crypto'
import { mkdir, readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { writeFileAtomic } from '../../platform/files.ts'
import { packageRoot } from '../../platform/package-root.ts'
import type { Listener } from './config.ts'

export interface NginxSet {
  /** Prefix of pid file and temporary files. */
  readonly dir: string
  /** Directory of this generation, absolute. */
  readonly set: string
  readonly runDir: string
  readonly workers: string
  /** What each listener to be served binds: ADDRESS:PORT, or unix:/PATH in the self-test. */
  readonly listen: Readonly<Partial<Record<Listener, string>>>
  readonly frontSecret: string
  /** Root and issuing CAs, PEM. */
  readonly issuersPem: string
  /** One CRL for each certificate in `issuersPem`, PEM. */
  readonly crlPem: string
  readonly serverCertificatePem: string
  readonly serverKeyPem: string
}

/** Writes the whole generation into `set`, which must be empty or missing. Nothing reads it yet. */
export async function renderSet(nginxSet: NginxSet): Promise<void> {
  const { dir, set } = nginxSet
  const templates = join(packageRoot(), 'nginx')
  for (const folder of [join(dir, 'tmp'), set, join(set, 'snippets'), join(set, 'listeners')]) {
    await mkdir(folder, { recursive: true, mode: 0o700 })
  }
  const values = {
    dir,
    set,
    runDir: nginxSet.runDir,
    workers: nginxSet.workers,
    frontSecret: nginxSet.frontSecret,
    // Workers drop to "nobody" otherwise, who cannot enter the directory of the sockets. Not root: no choice anyway.
    user: process.geteuid?.() === 0 ? 'user root;' : '',
  }
  const render = async (template: string, target: string, more: Readonly<Record<string, string>> = {}) => {
    const text = fill(await readFile(join(templates, template), 'utf8'), { ...values, ...more }, template)
    await writeFileAtomic(join(set, target), text, { mode: 0o600 })
  }
  for (const file of await readdir(join(templates, 'snippets'))) await render(`snippets/${file}`, `snippets/${file}`)
  for (const [listener, listen] of Object.entries(nginxSet.listen)) {
    await render(`${listener}.conf`, `listeners/${listener}.conf`, { listen })
  }
  await writeFileAtomic(join(set, 'issuers.pem'), nginxSet.issuersPem, { mode: 0o600 })
  await writeFileAtomic(join(set, 'crl.pem'), nginxSet.crlPem, { mode: 0o600 })
  await writeFileAtomic(join(set, 'server.pem'), nginxSet.serverCertificatePem, { mode: 0o600 })
  await writeFileAtomic(join(set, 'server.key'), nginxSet.serverKeyPem, { mode: 0o600 })
  await render('nginx.conf', 'nginx.conf')
}

/** SHA-256 over all templates: equal as long as a generation would be rendered alike from the same values. */
export async function templatesId(): Promise<string> {
  const templates = join(packageRoot(), 'nginx')
  const hash = createHash('sha256')
  const names = await readdir(templates, { recursive: true })
  for (const name of names.filter((file) => file.endsWith('.conf')).sort()) {
    hash.update(`${name}\0`).update(await readFile(join(templates, name)))
  }
  return hash.digest('hex')
}

/** Fills `{{name}}`. A name without a value is a fault of ours; a value that could end a quoted string is refused. */
export function fill(template: string, values: Readonly<Record<string, string>>, name: string): string {
  return template.replaceAll(/\{\{([A-Za-z]+)\}\}/g, (_, key: string) => {
    const value = values[key]
    if (value === undefined) throw new TypeError(`${name} asks for {{${key}}}, which has no value`)
    if (/["'\\${}\n\r\0]/.test(value) || (value.includes(';') && key !== 'user')) {
      throw new CertpeerError('config_invalid', `the value for ${key} holds a character that nginx would interpret`)
    }
    return value
  })
}
