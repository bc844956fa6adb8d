/**
 * What the attack tests have in common: a hand on the database with its owner's rights, requests as an outsider makes
 * them (curl, in a namespace of the lab), and the questions that every attack ends with: who is a peer, who still runs.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import pg from 'pg'
import { SUPERUSER, socketUrl } from '../../src/platform/db/embedded.ts'
import { parseCertificate, type Certificate } from '../../src/core/x509/certificate.ts'
import { readWireGuardKey } from '../../src/core/x509/certpeer-extensions.ts'
import { derToPem, pemToDerAll } from '../../src/core/x509/pem.ts'
import { OIDS } from './certificates.ts'
import { eventually, type Lab } from './lab.ts'

/** A credential directory, read. */
export interface Holder {
  readonly dir: string
  readonly certificate: Certificate
  /** As `wg` prints it. */
  readonly publicKey: string
}

export function readCertificate(dir: string): Certificate {
  const [leaf] = pemToDerAll(readFileSync(join(dir, 'certificate.pem'), 'utf8'))
  if (leaf === undefined) throw new Error(`no certificate in ${dir}`)
  return parseCertificate(leaf)
}

/** Of a device or gateway. */
export function readHolder(dir: string): Holder {
  const certificate = readCertificate(dir)
  return { dir, certificate, publicKey: readWireGuardKey(certificate, OIDS).key }
}

/** Token and enrollment; no tunnel. */
export async function enrollHolder(
  lab: Lab,
  namespace: string,
  name: string,
  token: readonly string[] = [],
): Promise<Holder> {
  const text = await lab.ok(lab.host, ['token', 'create', '--device', name, ...token])
  const dir = join(lab.dir, name)
  await lab.ok(namespace, ['device', 'enroll', '-', '--dir', dir], { input: text })
  return readHolder(dir)
}

export interface Answered {
  readonly status: number
  readonly contentType: string
  /** Undefined when the body is no JSON. */
  readonly json: unknown
  /** Of a problem. */
  readonly code: string | undefined
}

export interface Call {
  readonly url: string
  readonly method?: string
  readonly json?: unknown
  /** Directory with certificate.pem and tls.key; none: no client certificate. */
  readonly credential?: string
  readonly headers?: readonly string[]
}

/** One request by curl, which trusts the lab's root and nobody else. */
export async function call(lab: Lab, namespace: string, request: Call): Promise<Answered> {
  const { credential, headers = [], method = 'GET' } = request
  const { stdout, stderr } = await lab.run(
    namespace,
    'curl',
    [
      ...['-sS', '--max-time', '20', '--cacert', join(lab.stateDir, 'ca', 'root.pem'), '-X', method],
      ...(credential === undefined
        ? []
        : ['--cert', join(credential, 'certificate.pem'), '--key', join(credential, 'tls.key')]),
      ...headers.flatMap((header) => ['-H', header]),
      ...(request.json === undefined ? [] : ['-H', 'content-type: application/json', '--data-binary', '@-']),
      ...['-w', '\n%{http_code} %{content_type}', request.url],
    ],
    request.json === undefined ? {} : { input: JSON.stringify(request.json) },
  )
  const at = stdout.lastIndexOf('\n')
  const [status = '0', contentType = ''] = stdout.slice(at + 1).split(' ')
  if (status === '000') throw new Error(`curl ${request.url}: ${stderr}`)
  const json = parseJson(stdout.slice(0, at))
  const code = typeof json === 'object' && json !== null && 'code' in json ? String(json.code) : undefined
  return { status: Number(status), contentType, json, code }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown
  } catch {
    return undefined
  }
}

/** A refusal is problem+json with that code, whoever of nginx and the applications said it. */
export function assertRefused(answer: Answered, code: string | RegExp, what: string): void {
  const told = `${what}: ${answer.status} ${JSON.stringify(answer.json)}`
  assert.ok(answer.status >= 400 && answer.status < 500, told)
  assert.match(answer.contentType, /^application\/problem\+json/, told)
  if (typeof code === 'string') assert.equal(answer.code, code, told)
  else assert.match(answer.code ?? '', code, told)
}

/** Provisions with a device's own certificate, as `device up` does. */
export async function provision(lab: Lab, namespace: string, holder: Pick<Holder, 'dir'>): Promise<Answered> {
  return call(lab, namespace, {
    url: `${lab.ready?.apiUrl ?? ''}/v1/peer`,
    method: 'PUT',
    credential: holder.dir,
  })
}

/** Writes a certificate chain and its key as a credential directory that `call` can use. */
export function writeCredential(
  dir: string,
  chain: readonly Buffer[],
  tlsKey: { export(options: { type: 'pkcs8'; format: 'pem' }): string | Buffer },
): string {
  writeFileSync(join(dir, 'certificate.pem'), chain.map((der) => derToPem(der)).join(''))
  writeFileSync(join(dir, 'tls.key'), tlsKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 })
  return dir
}

/** A row of `peers` as somebody with the database makes it: every column is theirs to choose. */
export interface ForgedPeer {
  readonly certificate: Buffer
  readonly identity: string
  readonly serial: string
  readonly wireGuardKey: Buffer
  readonly network?: string
  readonly kind?: 'set' | 'remove'
}

/** The database with its owner's rights: what nobody should have, and somebody may. */
export class DatabaseOwner implements AsyncDisposable {
  readonly #client: pg.Client

  private constructor(client: pg.Client) {
    this.#client = client
  }

  static async open(lab: Lab): Promise<DatabaseOwner> {
    const dir = join(lab.stateDir, 'postgres')
    const password = readFileSync(join(dir, 'superuser-password'), 'utf8').trim()
    const url = socketUrl({ socketDir: join(dir, 'run'), user: SUPERUSER, password, database: 'certpeer' })
    const client = new pg.Client({ connectionString: url })
    await client.connect()
    return new DatabaseOwner(client)
  }

  async query<R extends pg.QueryResultRow>(sql: string, values: readonly unknown[] = []): Promise<R[]> {
    return (await this.#client.query<R>(sql, [...values])).rows
  }

  /** All of it or nothing; several statements without parameters. */
  async run(sql: string): Promise<void> {
    await this.#client.query(`begin; ${sql}; commit`)
  }

  /** Puts the row into `peers`, a change with the next revision beside it, and tells everybody. Gives the revision. */
  async forgePeer(peer: ForgedPeer): Promise<number> {
    const { network = 'default', kind = 'set' } = peer
    await this.#client.query('begin')
    const [row] = await this.query<{ id: string; revision: string }>(
      `update networks set revision = revision + 1 where tenant = 'default' and name = $1 returning id, revision`,
      [network],
    )
    assert.ok(row, `network ${network}`)
    await this.query(
      `insert into peers (network_id, identity, serial, wireguard_key, certificate, not_before, not_after, revision)
        values ($1, $2, $3, $4, $5, now() - interval '1 minute', now() + interval '1 day', $6)
        on conflict on constraint peers_one_per_identity do update set serial = excluded.serial,
          wireguard_key = excluded.wireguard_key, certificate = excluded.certificate, not_before = excluded.not_before,
          not_after = excluded.not_after, revision = excluded.revision`,
      [row.id, peer.identity, peer.serial, peer.wireGuardKey, peer.certificate, row.revision],
    )
    await this.query(
      `insert into peer_changes (network_id, revision, kind, serial, certificate) values ($1, $2, $3, $4, $5)`,
      [row.id, row.revision, kind, peer.serial, kind === 'set' ? peer.certificate : null],
    )
    await this.notify('certpeer_changes', { network: `default/${network}`, revision: Number(row.revision) })
    await this.#client.query('commit')
    return Number(row.revision)
  }

  /** Makes every gateway read all of `peers` anew: with a hole before it, a new change cannot be joined on. */
  async forceSnapshot(network = 'default'): Promise<number> {
    const [row] = await this.query<{ id: string; revision: string }>(
      `update networks set revision = revision + 2 where tenant = 'default' and name = $1 returning id, revision`,
      [network],
    )
    assert.ok(row, `network ${network}`)
    await this.query(`insert into peer_changes (network_id, revision, kind, serial) values ($1, $2, 'remove', '00')`, [
      row.id,
      row.revision,
    ])
    await this.notify('certpeer_changes', { network: `default/${network}`, revision: Number(row.revision) })
    return Number(row.revision)
  }

  async notify(channel: string, payload: unknown): Promise<void> {
    const text = typeof payload === 'string' ? payload : JSON.stringify(payload)
    await this.query('select pg_notify($1, $2)', [channel, text])
  }

  async revision(network = 'default'): Promise<number> {
    const [row] = await this.query<{ revision: string }>(`select revision from networks where name = $1`, [network])
    return Number(row?.revision)
  }

  /**
   * Waits until the local gateway says that it has worked off the revision, and gives what it refused by serial: the
   * proof that an attack arrived and was looked at, not merely lost on the way.
   */
  async refusals(revision: number): Promise<Map<string, string>> {
    let failed: readonly { serial: string; code: string }[] = []
    await eventually(`the gateway has applied revision ${revision}`, async () => {
      const [row] = await this.query<{ applied: string; failed: typeof failed }>(
        `select r.applied_revision as applied, r.failed from gateway_revisions r join networks n on n.id = r.network_id
          where n.name = 'default' and r.gateway like '%/gateway/local'`,
      )
      failed = row?.failed ?? []
      return row !== undefined && Number(row.applied) >= revision
    })
    return new Map(failed.map(({ serial, code }) => [serial, code]))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client.end()
  }
}

/** The processes under `certpeer up`, by pid and command: one that was restarted has another pid. */
export function listProcesses(lab: Lab): string[] {
  const parent = lab.upPid
  if (parent === undefined) throw new Error('up is not running')
  return readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name))
    .flatMap((pid) => {
      const stat = read(`/proc/${pid}/stat`)
      // pid (comm) state ppid …; comm may hold anything but ends at the last parenthesis.
      const [state, ppid] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      if (Number(ppid) !== parent || state === 'Z') return []
      return [`${pid} ${read(`/proc/${pid}/cmdline`).split('\0').slice(0, 4).join(' ')}`]
    })
    .sort()
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    // It ended between the listing and the look.
    return ''
  }
}
