/**
 * The stage for tests of the server process: a hierarchy of CAs, a publisher of CRLs, a real PostgreSQL filled as the
 * authority's projection would, and servers on their sockets. Time is the stage's: `stage.now` may be moved.
 */
import { generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import { mkdtempSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { runServer } from '../../src/control/main.ts'
import { encodeNetworkDocument } from '../../src/core/messages/network-document.ts'
import { networkDocumentSchema } from '../../src/core/messages/network.ts'
import { downMessageSchema } from '../../src/core/messages/stream.ts'
import type { DownMessage, UpMessage } from '../../src/core/messages/stream.ts'
import { formatPrefix, parsePrefix } from '../../src/core/ipam/prefix.ts'
import { wireGuardKeyFromBytes } from '../../src/core/wireguard/key.ts'
import type { WireGuardKey } from '../../src/core/wireguard/key.ts'
import type { Certificate } from '../../src/core/x509/certificate.ts'
import { encodeCrlEntry, encodeTbsCertList } from '../../src/core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../../src/core/x509/encode.ts'
import { servedNetworksExtension, subjectAltName } from '../../src/core/x509/extensions.ts'
import { derToPem } from '../../src/core/x509/pem.ts'
import type { Serial } from '../../src/core/x509/serial.ts'
import { ApiClient } from '../../src/platform/api-client/client.ts'
import type { ApiStream } from '../../src/platform/api-client/client.ts'
import { openDatabase, queryRows } from '../../src/platform/db/connection.ts'
import type { Db } from '../../src/platform/db/connection.ts'
import { createLogger, silentLogger } from '../../src/platform/log.ts'
import {
  KEY_PREFIX,
  NOW,
  OIDS,
  TRUST_DOMAIN,
  makeDevice,
  makeDeviceCa,
  makeGateway,
  makeInfrastructureCa,
  makeInfrastructureLeaf,
  makeRoot,
  newKeyPair,
} from '../support/certificates.ts'
import type { Authority, CertificateParts } from '../support/certificates.ts'
import { createTestDatabase } from '../support/postgres.ts'
import type { TestDatabase } from '../support/postgres.ts'

export const FRONT_SECRET = 'front-secret-for-tests'
const DAY_MS = 86_400_000

export function newWireGuardKey(): WireGuardKey {
  const { x } = generateKeyPairSync('x25519').publicKey.export({ format: 'jwk' })
  return wireGuardKeyFromBytes(Buffer.from(x ?? '', 'base64url'))
}

export interface RunningServer {
  readonly name: string
  readonly runDir: string
  /** A client as nginx would pass it on; without a certificate, none was shown. */
  api(certificate?: Buffer, headers?: Record<string, string>): ApiClient
  /** Opens a gateway's stream and says hello. */
  stream(certificate: Certificate, options?: { revisions?: Record<string, number> }): Promise<TestGateway>
  /** A stream that the test drives itself. */
  rawStream(certificate: Certificate): Promise<ApiStream>
  stop(): Promise<void>
}

/** What nginx sends for a verified client certificate. */
export function clientHeaders(der: Buffer): Record<string, string> {
  return {
    'x-client-verify': 'SUCCESS',
    'x-client-cert': encodeURIComponent(derToPem(der, 'CERTIFICATE')).replace(
      /[!'()*]/g,
      (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
    ),
  }
}

/** A gateway's end of a stream that remembers what came, applies it, and says so unless it is told not to. */
export class TestGateway {
  readonly #stream: ApiStream
  readonly messages: DownMessage[] = []
  /** Serial numbers or base64 certificates held, per network. */
  readonly peers = new Map<string, Set<string>>()
  readonly revisions = new Map<string, number>()
  readonly gaps: string[] = []
  acknowledge = true
  snapshots = 0
  over = false
  #failed: { serial: string; code: string }[] = []
  readonly #parts = new Map<string, Set<string>>()

  constructor(stream: ApiStream, revisions: Record<string, number>) {
    this.#stream = stream
    for (const [network, revision] of Object.entries(revisions)) this.revisions.set(network, revision)
    void this.#follow()
  }

  say(message: UpMessage): void {
    this.#stream.write(JSON.stringify(message))
  }

  refuse(failed: { serial: string; code: string }[]): void {
    this.#failed = failed
  }

  close(): void {
    this.#stream.destroy()
  }

  async #follow(): Promise<void> {
    try {
      for await (const line of this.#stream.lines) this.#take(downMessageSchema.parse(JSON.parse(line)))
    } catch {
      // The stream broke off; `over` says so.
    }
    this.over = true
  }

  #take(message: DownMessage): void {
    this.messages.push(message)
    switch (message.type) {
      case 'ping':
        this.say({ type: 'pong' })
        return
      case 'snapshot': {
        const parts = this.#parts.get(message.network) ?? new Set<string>()
        this.#parts.set(message.network, parts)
        for (const certificate of message.certificates) parts.add(certificate)
        if (message.more) return
        this.#parts.delete(message.network)
        this.snapshots += 1
        this.peers.set(message.network, parts)
        this.revisions.set(message.network, message.revision)
        break
      }
      case 'set':
      case 'remove': {
        const held = this.revisions.get(message.network)
        if (held === undefined || message.revision !== held + 1) {
          this.gaps.push(`${message.network} ${held ?? 'nothing'} -> ${message.revision}`)
        }
        this.revisions.set(message.network, message.revision)
        break
      }
      default:
        return
    }
    if (this.acknowledge) {
      this.say({
        type: 'applied',
        network: message.network,
        revision: this.revisions.get(message.network) ?? 0,
        failed: this.#failed,
      })
    }
  }

  of<T extends DownMessage['type']>(type: T): Extract<DownMessage, { type: T }>[] {
    return this.messages.filter((message): message is Extract<DownMessage, { type: T }> => message.type === type)
  }
}

export class Stage implements AsyncDisposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'certpeer-control-'))
  readonly root = makeRoot()
  readonly deviceCa = makeDeviceCa(this.root)
  readonly otherCa = makeDeviceCa(this.root, {}, 'other')
  readonly infrastructureCa = makeInfrastructureCa(this.root)
  readonly database: TestDatabase
  /** With the authority's role. */
  readonly ca: Db
  /** With the server's role, for looking and for calling its statements. */
  readonly db: Db
  now = NOW
  /** False: the publisher answers nothing. */
  publishing = true
  readonly #published = new Map<string, { etag: string; body: Buffer }>()
  readonly #numbers = new Map<string, bigint>()
  readonly #revoked = new Map<string, Map<Serial, Date>>()
  readonly #servers: RunningServer[] = []
  #closePublisher: () => Promise<void> = () => Promise.resolve()

  private constructor(database: TestDatabase) {
    this.database = database
    this.ca = openDatabase({ url: database.caUrl, log: silentLogger(), max: 4 })
    this.db = openDatabase({ url: database.serverUrl, log: silentLogger(), max: 8 })
  }

  static async create(): Promise<Stage> {
    const stage = new Stage(await createTestDatabase())
    await stage.#startPublisher()
    for (const [name, authority] of stage.#authorities()) stage.publish(authority, name)
    await stage.projectIssuers()
    await stage.projectNetwork('default', 'default')
    return stage
  }

  /** Test servers answer before the disk has it; a test that kills one must not. For connections made from now on. */
  async makeDurable(): Promise<void> {
    const superuser = openDatabase({ url: this.database.superuserUrl, log: silentLogger(), max: 1 })
    await superuser.raw(`alter database ${this.database.name} set synchronous_commit = on`)
    await superuser.destroy()
  }

  readonly clock = (): Date => this.now

  later(ms: number): Date {
    return new Date(this.now.getTime() + ms)
  }

  #authorities(): [string, Authority][] {
    return [
      ['root', this.root],
      ['device-default', this.deviceCa],
      ['device-other', this.otherCa],
      ['infrastructure', this.infrastructureCa],
    ]
  }

  // The cast

  device(n: number, parts: CertificateParts & { key?: WireGuardKey; network?: string } = {}): Certificate {
    const { network = 'default', ...rest } = parts
    return makeDevice(this.deviceCa, {
      key: newWireGuardKey(),
      uri: `spiffe://default.${TRUST_DOMAIN}/network/${network}/device/d${n}`,
      addresses: [parsePrefix(`10.88.${n >> 8}.${n & 255}/32`), parsePrefix(`fd00:0:0:1::${n.toString(16)}/128`)],
      ...rest,
    })
  }

  gateway(name: string, networks: string[] = ['default/default'], parts: CertificateParts = {}): Certificate {
    return makeGateway(this.infrastructureCa, {
      key: newWireGuardKey(),
      ...parts,
      extensions: {
        subjectAltName: subjectAltName({
          uris: [`spiffe://${TRUST_DOMAIN}/gateway/${name}`],
          ips: ['10.88.0.1', 'fd00:0:0:1::1'],
        }),
        servedNetworks: servedNetworksExtension(OIDS, networks),
        ...parts.extensions,
      },
    })
  }

  operator(role: 'operator-admin' | 'operator-auditor' = 'operator-admin', tenant?: string): Certificate {
    const host = tenant === undefined ? TRUST_DOMAIN : `${tenant}.${TRUST_DOMAIN}`
    return makeInfrastructureLeaf(this.infrastructureCa, role, `spiffe://${host}/operator/o1`)
  }

  // What the authority publishes and projects

  /** Makes the next CRL of the CA; `revoke` adds to what it revoked before. */
  crl(
    authority: Authority,
    options: { revoke?: readonly Serial[]; number?: bigint; nextUpdate?: Date; forget?: boolean } = {},
  ): { der: Buffer; number: bigint; nextUpdate: Date } {
    const { keyId } = authority.certificate
    const revoked = this.#revoked.get(keyId) ?? new Map<Serial, Date>()
    this.#revoked.set(keyId, revoked)
    for (const serial of options.revoke ?? []) revoked.set(serial, this.now)
    const number = options.number ?? (this.#numbers.get(keyId) ?? 0n) + 1n
    this.#numbers.set(keyId, number)
    const nextUpdate = options.nextUpdate ?? new Date(this.now.getTime() + DAY_MS)
    const entries = [...revoked].map(([serial, revokedAt]) =>
      encodeCrlEntry({ serial, revokedAt, reason: 'keyCompromise' }),
    )
    const algorithm = signatureAlgorithmFor(authority.publicKey)
    const tbs = encodeTbsCertList({
      issuer: authority.certificate,
      thisUpdate: new Date(this.now.getTime() - 1000),
      nextUpdate,
      number,
      entries: options.forget === true ? Buffer.alloc(0) : Buffer.concat(entries),
      oids: OIDS,
    })
    const der = assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, authority.privateKey))
    return { der, number, nextUpdate }
  }

  /** Puts a new CRL where the pki listener would. */
  publish(authority: Authority, name: string, options: Parameters<Stage['crl']>[1] = {}): { der: Buffer } {
    const crl = this.crl(authority, options)
    this.publishBytes(`/crl/${name}.crl`, crl.der, `"${crl.number}"`)
    return crl
  }

  publishBytes(path: string, body: Buffer, etag = `"${randomBytes(6).toString('hex')}"`): void {
    this.#published.set(path, { etag, body })
  }

  async #startPublisher(): Promise<void> {
    const issuers = this.#authorities()
      .slice(1)
      .map(([name, authority]) => ({
        name,
        certificate: derToPem(authority.certificate.der, 'CERTIFICATE'),
        crl: `/crl/${name}.crl`,
      }))
    this.publishBytes(
      '/issuers.json',
      Buffer.from(JSON.stringify({ root: derToPem(this.root.certificate.der, 'CERTIFICATE'), issuers })),
    )
    const server = createServer((request, response) => {
      const found = this.#published.get(request.url ?? '')
      if (!this.publishing) {
        response.destroy()
      } else if (found === undefined) {
        response.writeHead(404).end()
      } else if (request.headers['if-none-match'] === found.etag) {
        response.writeHead(304, { etag: found.etag }).end()
      } else {
        response.writeHead(200, { etag: found.etag, 'content-length': found.body.length }).end(found.body)
      }
    })
    await new Promise<void>((resolve) => server.listen(join(this.dir, 'pki.sock'), resolve))
    this.#closePublisher = async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    }
  }

  async projectIssuers(): Promise<void> {
    for (const [name, { certificate }] of this.#authorities()) {
      const role = name === 'root' ? 'root' : name === 'infrastructure' ? 'infrastructure' : 'device'
      await this.ca.raw('insert into issuers (key_id, name, role, certificate) values (?, ?, ?, ?)', [
        certificate.keyId,
        name,
        role,
        certificate.der,
      ])
    }
  }

  /** Puts the CRL in the issuer's row and notifies, as the authority does. */
  async projectCrl(authority: Authority, crl: { der: Buffer; number: bigint; nextUpdate: Date }): Promise<void> {
    const { keyId } = authority.certificate
    await this.ca.raw('update issuers set crl = ?, crl_number = ?, crl_next_update = ? where key_id = ?', [
      crl.der,
      crl.number.toString(),
      crl.nextUpdate.toISOString(),
      keyId,
    ])
    await this.ca.raw(`select pg_notify('certpeer_crl', ?)`, [JSON.stringify({ issuerKeyId: keyId })])
  }

  async networkDocument(tenant: string, network: string, number = 1, mtu = 1420): Promise<string> {
    const signer = newKeyPair()
    const leaf = makeInfrastructureLeaf(this.infrastructureCa, 'authority', `spiffe://${TRUST_DOMAIN}/authority/a1`, {
      publicKey: signer.publicKey,
    })
    return encodeNetworkDocument({
      document: networkDocumentSchema.parse({
        tenant,
        network,
        mtu,
        pools: ['10.88.0.0/16', 'fd00:0:0:1::/64'],
        keyPrefix: formatPrefix(KEY_PREFIX),
        trustDomain: TRUST_DOMAIN,
        number,
        issuedAt: this.now.toISOString(),
      }),
      certificates: [leaf.der, this.infrastructureCa.certificate.der],
      sign: (data) => sign('sha256', data, signer.privateKey),
    })
  }

  async projectNetwork(tenant: string, network: string): Promise<void> {
    const document = await this.networkDocument(tenant, network)
    await this.ca.raw('insert into networks (tenant, name, document, document_number) values (?, ?, ?, 1)', [
      tenant,
      network,
      document,
    ])
    await this.ca.raw(`select pg_notify('certpeer_networks', ?)`, [JSON.stringify({ network: `${tenant}/${network}` })])
  }

  async projectGateway(name: string, certificate: Certificate, networks = ['default/default']): Promise<void> {
    await this.ca.raw(
      `insert into gateways (identity, name, networks, addresses, serial, certificate, not_after, status)
        values (?, ?, ?::text[], array['10.88.0.1']::inet[], ?, ?, ?, 'active')
        on conflict (identity) do update set serial = excluded.serial, certificate = excluded.certificate`,
      [
        `spiffe://${TRUST_DOMAIN}/gateway/${name}`,
        name,
        networks,
        certificate.serial,
        certificate.der,
        certificate.notAfter.toISOString(),
      ] as string[],
    )
  }

  async projectDevice(certificate: Certificate, name: string, ca = this.deviceCa, tenant = 'default'): Promise<void> {
    const [identity = ''] = certificate.sanUris
    await this.ca.raw(
      `insert into certificates (serial, issuer_key_id, identity, name, role, tenant, network, possession, der,
          not_before, not_after, ledger_index)
        values (?, ?, ?, ?, 'device', ?, 'default', true, ?, ?, ?, 0)`,
      [
        certificate.serial,
        ca.certificate.keyId,
        identity,
        name,
        tenant,
        certificate.der,
        certificate.notBefore.toISOString(),
        certificate.notAfter.toISOString(),
      ],
    )
    await this.ca.raw(
      `insert into devices (identity, id, name, tenant, network, groups, addresses, possession, status, serial,
          not_after, created_at)
        values (?, ?, ?, ?, 'default', array['staff'], array['10.88.0.2']::inet[], true, 'active', ?, ?, ?)
        on conflict (identity) do update set serial = excluded.serial`,
      [
        identity,
        identity.split('/').at(-1) ?? '',
        name,
        tenant,
        certificate.serial,
        certificate.notAfter.toISOString(),
        this.now.toISOString(),
      ],
    )
  }

  /** The projection of a revocation. */
  async projectRevocation(
    certificates: readonly Certificate[],
    network = 'default/default',
    at = this.now,
  ): Promise<void> {
    await this.ca.raw(
      `select project_revocation(array[?]::text[], ?::text[], ?::text[], ?::timestamptz, 'keyCompromise', 1)`,
      [
        network,
        certificates.map((certificate) => certificate.serial),
        certificates.map(() => this.deviceCa.certificate.keyId),
        at.toISOString(),
      ] as string[],
    )
  }

  // Servers

  async startServer(name = 'server-a'): Promise<RunningServer> {
    const dir = join(this.dir, name)
    const runDir = join(dir, 'run')
    mkdirSync(dir, { recursive: true })
    writeFileSync(join(dir, 'front-secret'), `${FRONT_SECRET}\n`, { mode: 0o600 })
    writeFileSync(join(dir, 'database-url'), `${this.database.serverUrl}\n`, { mode: 0o600 })
    writeFileSync(join(dir, 'root.pem'), derToPem(this.root.certificate.der, 'CERTIFICATE'))
    writeFileSync(
      join(dir, 'config.json'),
      JSON.stringify({
        runDir: 'run',
        frontSecretFile: 'front-secret',
        databaseUrlFile: 'database-url',
        rootCertificate: 'root.pem',
        trustDomain: TRUST_DOMAIN,
        pen: OIDS.pen,
        pkiSource: `unix:${join(this.dir, 'pki.sock')}`,
        serverName: name,
      }),
    )
    const stop = new AbortController()
    const log = process.env['TEST_LOG'] === undefined ? silentLogger() : createLogger({ name, destination: 'stderr' })
    const running = runServer({ dir, log, signal: stop.signal, now: this.clock })
    running.catch(() => undefined)
    const client = (socket: string, certificate?: Buffer, headers: Record<string, string> = {}): ApiClient =>
      new ApiClient({
        base: `unix:${join(runDir, socket)}`,
        headers: {
          'x-certpeer-front': FRONT_SECRET,
          ...(certificate === undefined ? {} : clientHeaders(certificate)),
          ...headers,
        },
        timeoutMs: 45_000,
      })
    const rawStream = (certificate: Certificate): Promise<ApiStream> =>
      client('server-gateways.sock', certificate.der).openStream('/v1/stream')
    const server: RunningServer = {
      name,
      runDir,
      api: (certificate, headers) => client('server-api.sock', certificate, headers),
      rawStream,
      async stream(certificate, options = {}) {
        const revisions = options.revisions ?? {}
        const gateway = new TestGateway(await rawStream(certificate), revisions)
        gateway.say({ type: 'hello', endpoint: '192.0.2.1:51820', revisions })
        return gateway
      },
      async stop() {
        stop.abort()
        await running
      },
    }
    this.#servers.push(server)
    const probe = client('server-api.sock')
    await until('the server is ready', async () => {
      await Promise.race([running, Promise.resolve()])
      return (await probe.get('/readyz')).status === 200
    })
    probe.close()
    return server
  }

  async rows<Row>(sql: string, bindings: unknown[] = []): Promise<Row[]> {
    return queryRows<Row>(this.db, sql, bindings)
  }

  /**
   * What must hold whatever happened: revisions without a hole up to the network's own, at most one peer per key, the
   * peers equal to what the changes add up to, and no peer on a revoked certificate.
   */
  async checkInvariants(): Promise<void> {
    const broken = await this.rows<{ what: string }>(
      `with latest as (
        select distinct on (network_id, serial) network_id, serial, kind, revision
        from peer_changes order by network_id, serial, revision desc
      )
      select 'hole before ' || revision as what from (
        select revision, lag(revision, 1, 0::bigint) over (partition by network_id order by revision) as previous
        from peer_changes
      ) c where revision <> previous + 1
      union all
      select 'revision of the network is not its last change' from networks n
        where n.revision <> coalesce((select max(revision) from peer_changes c where c.network_id = n.id), 0)
      union all
      select 'peer on a revoked certificate ' || p.serial from peers p join revocations r on r.serial = p.serial
      union all
      select 'peer without its change ' || p.serial from peers p
        left join latest l on l.network_id = p.network_id and l.serial = p.serial
        where l.kind is distinct from 'set' or l.revision <> p.revision
      union all
      select 'key held twice' from peers group by network_id, wireguard_key having count(*) > 1`,
    )
    if (broken.length > 0) throw new Error(`invariants broken: ${broken.map((row) => row.what).join('; ')}`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) await server.stop().catch(() => undefined)
    await this.#closePublisher()
    await this.ca.destroy()
    await this.db.destroy()
    await this.database.close().catch(() => undefined)
    rmSync(this.dir, { recursive: true, force: true })
  }
}

/** Waits until the condition holds; a condition that throws does not hold yet. */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 15_000,
): Promise<void> {
  const deadline = Date.now() + timeoutMs
  let fault: unknown
  while (Date.now() < deadline) {
    try {
      if (await condition()) return
      fault = undefined
    } catch (error) {
      fault = error
    }
    await delay(20)
  }
  throw new Error(`not within ${timeoutMs} ms: ${what}`, { cause: fault })
}
