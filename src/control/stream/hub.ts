/**
 * All gateway streams of this process. One reader per network follows `peer_changes` (a notification says when, the
 * revision says what, a poll every few seconds covers what a notification missed) and wakes the streams; a change is
 * encoded once. Several servers do this side by side, each for its own streams.
 */
import { randomUUID } from 'node:crypto'
import type { UpMessage } from '../../core/messages/stream.ts'
import { networkKey } from '../../core/x509/identity.ts'
import type { Now } from '../../platform/clock.ts'
import type { Db } from '../../platform/db/connection.ts'
import type { StreamDuplex } from '../../platform/http/types.ts'
import type { Logger } from '../../platform/log.ts'
import { listChanges, listNetworkHeads, listPeerCertificates } from '../db/changes.ts'
import { dropConnection, refreshConnections, takeConnection } from '../db/gateways.ts'
import type { Connection } from '../db/gateways.ts'
import type { Issuers } from '../issuers.ts'
import type { NetworkDocuments } from '../networks.ts'
import type { GatewayPrincipal } from '../principal.ts'
import type { HeldCrl, Revocations } from '../revocations.ts'
import { GatewayStream } from './connection.ts'
import type { Page, SharedLine, StreamSource } from './connection.ts'
import { encodeChange, encodeCrl, encodeDown } from './encode.ts'
import { Feed, followsOn } from './feed.ts'
import { createReports } from './reports.ts'

/** Changes per read of the database. */
const CHANGES_PER_READ = 500
/** Certificates per part of a snapshot: about 300 KB a line. */
const CERTIFICATES_PER_PART = 250
/** Reads for single gateways at once; the rest of the pool is for requests. */
const MAX_READS = 3
const HELLO_WITHIN_MS = 10_000
const PING_EVERY_MS = 10_000
/** A gateway answers every ping; silent for longer, it is gone. */
const SILENT_AFTER_MS = 35_000
/** A reader that takes nothing for this long is cut; it comes back and resumes. */
const STALLED_AFTER_MS = 60_000
/** Refused peers that one line of the log names. */
const MAX_TOLD = 20

type Applied = Extract<UpMessage, { type: 'applied' }>

export interface Hub {
  /** Carries one gateway's stream until it ends. */
  serve(principal: GatewayPrincipal, duplex: StreamDuplex): Promise<void>
  /** A notification of `certpeer_changes`: the network has new revisions. */
  pull(network: string): void
  /** Reads everything that a lost notification may have told: after a reconnect, and every few seconds. */
  poll(): Promise<void>
  /** Refreshes which gateways are connected here. Every 5 s. */
  heartbeat(): Promise<void>
  /** Ends what has expired, stalled or gone silent; pings. Every second. */
  tick(): void
  /** CRLs, issuers or documents have changed. */
  wakeAll(): void
  /** Ends streams of certificates that are revoked now. */
  enforceRevocations(): void
  /** Ends every stream and waits for what they still have to write. */
  close(): Promise<void>
  readonly size: number
}

export function createHub(options: {
  db: Db
  issuers: Issuers
  revocations: Revocations
  documents: NetworkDocuments
  serverName: string
  now: Now
  log: Logger
  feedBytes?: number
}): Hub {
  const { db, issuers, revocations, documents, serverName, log } = options
  const nowMs = (): number => options.now().getTime()
  const streams = new Set<GatewayStream>()
  const serving = new Set<Promise<void>>()
  const feeds = new Map<string, Feed>()
  const pulling = new Map<string, { again: boolean }>()
  /** Streams whose row could not be taken yet: the projection has no gateway row, or the database is away. */
  const untaken = new Set<GatewayStream>()
  const reports = createReports(db, log)
  const read = limitConcurrency(MAX_READS)
  let lastPingMs = nowMs()

  let issuersLine: SharedLine | undefined
  function currentIssuers(): SharedLine | undefined {
    if (issuersLine === undefined) {
      const list = issuers.list(options.now())
      issuersLine = {
        version: list.map((issuer) => issuer.fingerprint).join(),
        bytes: encodeDown({ type: 'issuers', certificates: list.map((issuer) => issuer.der.toString('base64')) }),
      }
    }
    return issuersLine
  }

  const documentLines = new Map<string, SharedLine>()
  function currentDocument(key: string): SharedLine | undefined {
    const known = documentLines.get(key)
    if (known !== undefined) return known
    const document = documents.find(key)
    if (document === undefined) return undefined
    const line = {
      version: document.document.number.toString(),
      bytes: encodeDown({ type: 'network', document: document.jws }),
    }
    documentLines.set(key, line)
    return line
  }

  const crlLines = new Map<string, SharedLine>()
  const putCrl = (crl: HeldCrl): void => {
    crlLines.set(crl.issuerKeyId, { version: crl.number.toString(), bytes: encodeCrl(crl.der) })
  }
  for (const crl of revocations.list()) putCrl(crl)
  revocations.onAccepted((crl) => {
    putCrl(crl)
    wakeAll()
    enforceRevocations()
  })
  issuers.onAdded(() => {
    issuersLine = undefined
    wakeAll()
  })
  documents.onChanged((key) => {
    documentLines.delete(key)
    wakeAll()
  })

  const source: StreamSource = {
    issuers: currentIssuers,
    crls: () => crlLines,
    document: currentDocument,
    feed: (key) => feeds.get(key),
    readChanges: (feed, revision) =>
      read(async (): Promise<Page | undefined> => {
        const rows = await listChanges(db, feed.id, revision, CHANGES_PER_READ)
        if (rows.length === 0 || !followsOn(rows, revision)) return undefined
        return {
          bytes: Buffer.concat(rows.map((row) => encodeChange(feed.key, row))),
          revision: revision + rows.length,
          after: undefined,
        }
      }),
    readSnapshot: (feed, revision, after) => read(() => readSnapshotPart(db, feed, revision, after)),
    onHello(stream, revisions) {
      void take(stream)
      for (const [key, revision] of revisions) {
        const { tenant, network } = splitKey(key)
        reports.applied({ gateway: stream.identity, tenant, network, revision, failed: null }, () => !stream.isOver)
      }
      // The feeds of its networks may not be followed yet.
      void poll().catch((err: unknown) => log.warn({ err }, 'networks not read yet'))
    },
    onApplied(stream, { network: key, revision, failed }) {
      tellRefused(stream, key, failed)
      // It may be ahead of our feed, having come from another server; the statement knows the network's own revision.
      const { tenant, network } = splitKey(key)
      reports.applied({ gateway: stream.identity, tenant, network, revision, failed }, () => !stream.isOver)
    },
    onCrlApplied(stream, { issuerKeyId, number }) {
      const crl = revocations.findCrl(issuerKeyId)
      if (crl === undefined || !/^[0-9]+$/.test(number)) return
      reports.crlApplied({ gateway: stream.identity, issuerKeyId, number }, () => !stream.isOver)
    },
  }

  /** What each stream's gateway refused last, per network: a list that stays comes with every report. */
  const refused = new WeakMap<GatewayStream, Map<string, string>>()
  function tellRefused(stream: GatewayStream, network: string, failed: Applied['failed']): void {
    const known = refused.get(stream) ?? new Map<string, string>()
    refused.set(stream, known)
    const list = failed.map(({ serial, code }) => `${serial} ${code}`).join()
    if ((known.get(network) ?? '') === list) return
    known.set(network, list)
    const some = failed.slice(0, MAX_TOLD)
    log.warn({ gateway: stream.name, network, refused: failed.length, failed: some }, 'gateway refuses peers')
  }

  const connectionOf = (stream: GatewayStream): Connection => ({
    identity: stream.identity,
    connectedTo: stream.connectedTo,
    endpoint: stream.endpoint ?? '',
  })

  async function take(stream: GatewayStream): Promise<void> {
    untaken.delete(stream)
    try {
      const taken = await takeConnection(db, connectionOf(stream))
      if (!taken && streams.has(stream)) untaken.add(stream)
      // It ended while the statement was under way, and its own drop may have come first.
      if (stream.isOver) await dropConnection(db, connectionOf(stream))
    } catch (err) {
      if (streams.has(stream)) untaken.add(stream)
      log.warn({ gateway: stream.name, err }, 'gateway connection not stored yet')
    }
  }

  async function carry(stream: GatewayStream): Promise<void> {
    try {
      await stream.run()
    } finally {
      streams.delete(stream)
      untaken.delete(stream)
      await dropConnection(db, connectionOf(stream)).catch((err: unknown) =>
        log.warn({ gateway: stream.name, err }, 'end of a gateway connection not stored'),
      )
    }
  }

  function wakeAll(): void {
    for (const stream of streams) stream.wake()
  }

  function enforceRevocations(): void {
    for (const stream of streams) {
      const { certificate, issuer, root } = stream.principal.verified
      if (revocations.isRevoked(issuer.keyId, certificate.serial) || revocations.isRevoked(root.keyId, issuer.serial)) {
        stream.end('certificate revoked')
      }
    }
  }

  function isServed(key: string): boolean {
    for (const stream of streams) if (stream.serves(key)) return true
    return false
  }

  function pull(key: string): void {
    const feed = feeds.get(key)
    if (feed === undefined) return
    if (!isServed(key)) {
      // Nobody left to follow it for; the next gateway's hello begins it afresh.
      feeds.delete(key)
      return
    }
    const running = pulling.get(key)
    if (running !== undefined) {
      running.again = true
      return
    }
    const state = { again: true }
    pulling.set(key, state)
    void follow(feed, state)
      .catch((err: unknown) => log.warn({ network: key, err }, 'changes not read yet'))
      .finally(() => pulling.delete(key))
  }

  async function follow(feed: Feed, state: { again: boolean }): Promise<void> {
    while (state.again) {
      state.again = false
      const rows = await listChanges(db, feed.id, feed.revision, CHANGES_PER_READ)
      if (rows.length === 0 || feeds.get(feed.key) !== feed) continue
      if (!feed.append(rows)) {
        log.warn({ network: feed.key, revision: feed.revision }, 'changes are missing: streams begin again')
        reset(feed, rows.at(-1)?.revision ?? feed.revision)
      }
      wakeNetwork(feed.key)
      if (rows.length === CHANGES_PER_READ) state.again = true
    }
  }

  function reset(feed: Feed, revision: number): void {
    feed.reset(revision)
    for (const stream of streams) stream.restart(feed.key)
  }

  function wakeNetwork(key: string): void {
    for (const stream of streams) if (stream.serves(key)) stream.wake()
  }

  let polling: Promise<void> | undefined
  let pollAgain = false
  /** Resolves after a poll that began after the call. */
  function poll(): Promise<void> {
    pollAgain = true
    polling ??= pollAll().finally(() => {
      polling = undefined
    })
    return polling
  }

  async function pollAll(): Promise<void> {
    while (pollAgain) {
      pollAgain = false
      await pollOnce()
    }
  }

  async function pollOnce(): Promise<void> {
    // What was known before the query: only that can be told to be ahead of its answer.
    const feedRevisions = new Map([...feeds].map(([key, feed]) => [key, feed.revision]))
    const streamRevisions = [...streams].map((stream) => ({ stream, revisions: stream.revisions() }))
    if (streams.size === 0) return
    for (const head of await listNetworkHeads(db)) {
      const key = networkKey(head.tenant, head.network)
      if (!isServed(key)) continue
      const feed = feeds.get(key)
      if (feed?.id !== head.id || head.revision < (feedRevisions.get(key) ?? 0)) {
        const { feedBytes } = options
        feeds.set(
          key,
          new Feed({ id: head.id, key, revision: head.revision, ...(feedBytes && { maxBytes: feedBytes }) }),
        )
        if (feed !== undefined) for (const stream of streams) stream.restart(key)
      } else if (head.revision > feed.revision) {
        pull(key)
      }
      for (const { stream, revisions } of streamRevisions) {
        if ((revisions.get(key) ?? 0) <= head.revision) continue
        log.warn({ gateway: stream.name, network: key, revision: head.revision }, 'gateway is ahead of the database')
        stream.restart(key)
      }
    }
    for (const stream of streams) stream.retry()
  }

  return {
    get size() {
      return streams.size
    },
    async serve(principal, duplex) {
      const stream = new GatewayStream({
        principal,
        connectedTo: `${serverName}/${randomUUID()}`,
        source,
        duplex,
        log,
        nowMs,
      })
      // A gateway has one stream: the newest. The older one is a connection that died without a word.
      for (const other of streams) if (other.identity === stream.identity) other.end('replaced')
      streams.add(stream)
      const over = carry(stream)
      serving.add(over)
      await over.finally(() => serving.delete(over))
    },
    pull,
    poll,
    async heartbeat() {
      const taken = [...streams].filter((stream) => stream.endpoint !== undefined && !untaken.has(stream))
      if (taken.length > 0) await refreshConnections(db, taken.map(connectionOf))
    },
    tick() {
      const now = nowMs()
      const pingDue = now - lastPingMs >= PING_EVERY_MS
      if (pingDue) lastPingMs = now
      for (const stream of streams) {
        const { certificate, issuer } = stream.principal.verified
        if (now > Math.min(certificate.notAfter.getTime(), issuer.notAfter.getTime())) stream.end('certificate expired')
        else if (stream.endpoint === undefined && now - stream.openedAtMs > HELLO_WITHIN_MS) stream.end('no hello')
        else if (now - stream.heardAtMs > SILENT_AFTER_MS) stream.end('silent')
        else if (stream.stalledSinceMs !== undefined && now - stream.stalledSinceMs > STALLED_AFTER_MS) {
          stream.end('stalled')
        } else if (pingDue) stream.ping()
      }
      // One that was revoked between its request's check and its place among the streams was not there to be ended.
      enforceRevocations()
      for (const stream of untaken) void take(stream)
      reports.retry()
    },
    wakeAll,
    enforceRevocations,
    async close() {
      for (const stream of streams) stream.end('server stopping')
      await Promise.allSettled(serving)
      await reports.drain()
    },
  }
}

/**
 * A part of a snapshot. The parts are not of one instant: each is at least as new as `revision`, and the changes behind
 * `revision` follow, which set and remove by themselves whatever the parts had too early or too late. So a snapshot
 * holds no transaction open, however slowly a gateway reads.
 */
async function readSnapshotPart(db: Db, feed: Feed, revision: number, after: string): Promise<Page> {
  const peers = await listPeerCertificates(db, feed.id, after, CERTIFICATES_PER_PART)
  const more = peers.length === CERTIFICATES_PER_PART
  const certificates = peers.flatMap(({ certificate }) =>
    certificate === null || certificate.length === 0 ? [] : [certificate.toString('base64')],
  )
  return {
    bytes: encodeDown({ type: 'snapshot', network: feed.key, revision, certificates, more }),
    revision: more ? undefined : revision,
    after: more ? peers.at(-1)?.identity : undefined,
  }
}

function splitKey(key: string): { tenant: string; network: string } {
  const slash = key.indexOf('/')
  return { tenant: key.slice(0, slash), network: key.slice(slash + 1) }
}

/** At most `limit` of the given tasks run at once; the others wait their turn. */
function limitConcurrency(limit: number): <T>(task: () => Promise<T>) => Promise<T> {
  let free = limit
  const waiting: (() => void)[] = []
  return async (task) => {
    if (free > 0) free -= 1
    else await new Promise<void>((resolve) => waiting.push(resolve))
    try {
      return await task()
    } finally {
      const next = waiting.shift()
      if (next === undefined) free += 1
      else next()
    }
  }
}
