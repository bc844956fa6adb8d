/**
 * One gateway's stream. Level-based: it compares what it has sent with what there is and sends the difference, issuers
 * and CRLs first. Nothing is queued for a gateway: when its reader is behind, this stream alone stops until the socket
 * drains, and then goes on from the shared feed, from the database, or with a snapshot, whichever still reaches back far
 * enough. So a stalled gateway costs what the socket already holds and slows nobody.
 */
import { CertpeerError } from '../../core/errors.ts'
import { parseMessage } from '../../core/messages/common.ts'
import { upMessageSchema } from '../../core/messages/stream.ts'
import type { UpMessage } from '../../core/messages/stream.ts'
import type { StreamDuplex } from '../../platform/http/types.ts'
import type { Logger } from '../../platform/log.ts'
import type { GatewayPrincipal } from '../principal.ts'
import { encodeDown } from './encode.ts'
import type { Feed } from './feed.ts'

/** Further behind than this, a snapshot is the shorter way. */
const MAX_CATCH_UP = 20_000
/** Least time between two snapshots that a gateway asks for itself. */
const MIN_RESYNC_MS = 1000

export interface SharedLine {
  /** Changes with the content: CRL number, document number. */
  readonly version: string
  readonly bytes: Buffer
}

/** A page of a network for one gateway, encoded. */
export interface Page {
  readonly bytes: Buffer
  /** Revision the gateway holds after it; undefined in the middle of a snapshot. */
  readonly revision: number | undefined
  /** Where the snapshot goes on; undefined when it is complete, or was none. */
  readonly after: string | undefined
}

/** What the hub gives its streams. Everything here is shared; nothing here waits for a gateway. */
export interface StreamSource {
  issuers(): SharedLine | undefined
  /** By issuer key id. */
  crls(): ReadonlyMap<string, SharedLine>
  document(network: string): SharedLine | undefined
  feed(network: string): Feed | undefined
  /** The changes behind `revision` out of the database; undefined when they are no longer all there. */
  readChanges(feed: Feed, revision: number): Promise<Page | undefined>
  readSnapshot(feed: Feed, revision: number, after: string): Promise<Page>
  /** `revisions` are what the gateway was told before, of every network it serves; 0 is nothing. */
  onHello(stream: GatewayStream, revisions: ReadonlyMap<string, number>): void
  onApplied(stream: GatewayStream, report: Extract<UpMessage, { type: 'applied' }>): void
  onCrlApplied(stream: GatewayStream, report: Extract<UpMessage, { type: 'crl-applied' }>): void
}

interface ServedNetwork {
  readonly key: string
  /** Highest revision sent; undefined asks for a snapshot. */
  revision: number | undefined
  snapshot: { readonly revision: number; after: string } | undefined
  page: Page | undefined
  fetching: boolean
  /** A read failed: wait for the next wake from the hub instead of asking the database again and again. */
  failed: boolean
  resyncAtMs: number
  /** Counts restarts: a read that began before one belongs to nothing any more. */
  epoch: number
}

export class GatewayStream {
  readonly principal: GatewayPrincipal
  readonly connectedTo: string
  readonly openedAtMs: number
  /** HOST:PORT, known after hello. */
  endpoint: string | undefined
  heardAtMs: number
  /** Since when the reader has been behind; undefined while it keeps up. */
  stalledSinceMs: number | undefined

  readonly #source: StreamSource
  readonly #duplex: StreamDuplex
  readonly #log: Logger
  readonly #nowMs: () => number
  readonly #networks: readonly ServedNetwork[]
  readonly #sent = new Map<string, string>()
  #nextNetwork = 0
  #pingDue = false
  #wanted = false
  #running = false
  #over = false
  readonly #ended: Promise<void>
  #resolveEnded: () => void = () => undefined

  constructor(options: {
    principal: GatewayPrincipal
    connectedTo: string
    source: StreamSource
    duplex: StreamDuplex
    log: Logger
    nowMs: () => number
  }) {
    this.principal = options.principal
    this.connectedTo = options.connectedTo
    this.#source = options.source
    this.#duplex = options.duplex
    this.#log = options.log
    this.#nowMs = options.nowMs
    this.openedAtMs = options.nowMs()
    this.heardAtMs = this.openedAtMs
    this.#networks = options.principal.gateway.servedNetworks.map((key) => ({
      key,
      revision: undefined,
      snapshot: undefined,
      page: undefined,
      fetching: false,
      failed: false,
      resyncAtMs: 0,
      epoch: 0,
    }))
    this.#ended = new Promise((resolve) => {
      this.#resolveEnded = resolve
    })
  }

  get name(): string {
    return this.principal.gateway.name
  }

  get identity(): string {
    return this.principal.gateway.uri
  }

  get isOver(): boolean {
    return this.#over
  }

  serves(network: string): boolean {
    return this.#networks.some((served) => served.key === network)
  }

  /** Highest revision sent of each network whose place in the sequence is known. */
  revisions(): ReadonlyMap<string, number> {
    const known = new Map<string, number>()
    for (const { key, revision } of this.#networks) if (revision !== undefined) known.set(key, revision)
    return known
  }

  /** Runs until the gateway goes, or `end` is called. */
  async run(): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      if (this.#duplex.closed.aborted) resolve()
      else this.#duplex.closed.addEventListener('abort', () => resolve(), { once: true })
    })
    try {
      await Promise.race([this.#readAll(), closed, this.#ended])
    } finally {
      this.end('over')
    }
  }

  end(reason: string): void {
    if (this.#over) return
    this.#over = true
    this.#log.info({ gateway: this.name, reason }, 'gateway stream ended')
    this.#duplex.end()
    this.#resolveEnded()
  }

  ping(): void {
    this.#pingDue = true
    this.wake()
  }

  /** Something may have changed. Sends synchronously as far as the socket takes it. */
  wake(): void {
    this.#wanted = true
    if (!this.#running) void this.#sendAll()
  }

  /** The hub's slow beat: reads that failed may be tried again. */
  retry(): void {
    for (const network of this.#networks) network.failed = false
    this.wake()
  }

  /** What was sent of the network no longer joins up with what there is: begin again. */
  restart(network: string): void {
    for (const served of this.#networks) if (served.key === network) restart(served)
    this.wake()
  }

  async #sendAll(): Promise<void> {
    this.#running = true
    try {
      while (this.#wanted && !this.isOver && this.endpoint !== undefined) {
        this.#wanted = false
        for (let bytes = this.#next(); bytes !== undefined; bytes = this.#next()) {
          if (this.#duplex.write(bytes)) continue
          this.stalledSinceMs = this.#nowMs()
          await this.#duplex.drained()
          this.stalledSinceMs = undefined
          if (this.#duplex.closed.aborted) this.end('connection closed')
          if (this.#mustStop()) break
        }
      }
    } catch (err) {
      this.#log.error({ gateway: this.name, err }, 'gateway stream failed')
      this.end('failed')
    } finally {
      this.#running = false
    }
  }

  #mustStop(): boolean {
    return this.#over
  }

  /** The next thing to say, the urgent first; undefined when the gateway has everything. Never waits. */
  #next(): Buffer | undefined {
    return this.#nextShared() ?? this.#nextOfNetworks() ?? this.#nextPing()
  }

  #nextShared(): Buffer | undefined {
    const issuers = this.#unsent('issuers', this.#source.issuers())
    if (issuers !== undefined) return issuers
    for (const [issuerKeyId, line] of this.#source.crls()) {
      const crl = this.#unsent(`crl ${issuerKeyId}`, line)
      if (crl !== undefined) return crl
    }
    for (const { key } of this.#networks) {
      const document = this.#unsent(`network ${key}`, this.#source.document(key))
      if (document !== undefined) return document
    }
    return undefined
  }

  #unsent(what: string, line: SharedLine | undefined): Buffer | undefined {
    if (line === undefined || this.#sent.get(what) === line.version) return undefined
    this.#sent.set(what, line.version)
    return line.bytes
  }

  /** Each network in turn, so that a long snapshot of one does not hold back the changes of the others. */
  #nextOfNetworks(): Buffer | undefined {
    const first = this.#nextNetwork
    this.#nextNetwork = this.#networks.length === 0 ? 0 : (first + 1) % this.#networks.length
    for (const network of [...this.#networks.slice(first), ...this.#networks.slice(0, first)]) {
      const bytes = this.#nextOf(network)
      if (bytes !== undefined) return bytes
    }
    return undefined
  }

  #nextOf(network: ServedNetwork): Buffer | undefined {
    const feed = this.#source.feed(network.key)
    if (feed === undefined) return undefined
    const { page } = network
    if (page !== undefined) {
      network.page = undefined
      if (network.snapshot !== undefined && page.after !== undefined) network.snapshot.after = page.after
      else network.snapshot = undefined
      if (page.revision !== undefined) network.revision = page.revision
      return page.bytes
    }
    if (network.fetching || network.failed) return undefined
    if (network.revision === undefined) {
      network.snapshot ??= { revision: feed.revision, after: '' }
      this.#fetch(network, this.#source.readSnapshot(feed, network.snapshot.revision, network.snapshot.after))
      return undefined
    }
    // Ahead of the feed: it came from another server a moment ago, and the hub's next poll says whether that is all.
    if (network.revision >= feed.revision) return undefined
    const lines = feed.linesAfter(network.revision)
    if (lines !== undefined) {
      network.revision = lines.last
      return lines.bytes
    }
    if (feed.revision - network.revision > MAX_CATCH_UP) {
      restart(network)
      return this.#nextOf(network)
    }
    this.#fetch(network, this.#source.readChanges(feed, network.revision))
    return undefined
  }

  /** Reads beside the stream: CRLs go out while the database is slow or away. */
  #fetch(network: ServedNetwork, reading: Promise<Page | undefined>): void {
    network.fetching = true
    const { epoch } = network
    reading
      .then((page) => {
        if (network.epoch !== epoch) return
        if (page === undefined) restart(network)
        else network.page = page
      })
      .catch((err: unknown) => {
        network.failed = true
        this.#log.warn({ gateway: this.name, network: network.key, err }, 'network not read yet')
      })
      .finally(() => {
        network.fetching = false
        if (!network.failed) this.wake()
      })
  }

  #nextPing(): Buffer | undefined {
    if (!this.#pingDue) return undefined
    this.#pingDue = false
    return PING
  }

  async #readAll(): Promise<void> {
    for await (const line of this.#duplex.lines) {
      if (this.#over) return
      this.heardAtMs = this.#nowMs()
      this.#take(parseMessage(upMessageSchema, parseJson(line), 'stream message'))
    }
  }

  #take(message: UpMessage): void {
    if (message.type !== 'hello' && this.endpoint === undefined) {
      throw new CertpeerError('malformed_message', 'the first message of a stream is hello')
    }
    switch (message.type) {
      case 'hello':
        this.#takeHello(message)
        return
      case 'resync':
        this.#takeResync(message.network)
        return
      case 'applied':
        if (this.serves(message.network)) this.#source.onApplied(this, message)
        return
      case 'crl-applied':
        this.#source.onCrlApplied(this, message)
        return
      case 'pong':
        return
      default:
        message satisfies never
    }
  }

  #takeHello(message: Extract<UpMessage, { type: 'hello' }>): void {
    if (this.endpoint !== undefined) throw new CertpeerError('malformed_message', 'a stream has one hello')
    this.endpoint = message.endpoint
    const revisions = new Map<string, number>()
    for (const network of this.#networks) {
      const held = Object.hasOwn(message.revisions, network.key) ? message.revisions[network.key] : undefined
      const revision = held ?? 0
      if (revision > 0) network.revision = revision
      revisions.set(network.key, revision)
    }
    this.#log.info({ gateway: this.name, networks: this.#networks.map((network) => network.key) }, 'gateway connected')
    this.#source.onHello(this, revisions)
    this.wake()
  }

  #takeResync(key: string): void {
    const now = this.#nowMs()
    for (const network of this.#networks) {
      if (network.key !== key || network.snapshot !== undefined || now - network.resyncAtMs < MIN_RESYNC_MS) continue
      network.resyncAtMs = now
      restart(network)
    }
    this.wake()
  }
}

const PING = encodeDown({ type: 'ping' })

function restart(network: ServedNetwork): void {
  network.epoch += 1
  network.revision = undefined
  network.snapshot = undefined
  network.page = undefined
}

function parseJson(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch (error) {
    throw new CertpeerError('malformed_message', 'a stream message is not JSON', { cause: error })
  }
}
