/**
 * The device's place at the gateways: asked for over mTLS, checked, and kept on disk so that the tunnel also comes up
 * while control is away. What is kept is verified again like what is heard.
 */
import { existsSync } from 'node:fs'
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { CertpeerError } from '../../core/errors.ts'
import { parseMessage } from '../../core/messages/common.ts'
import type { VerifiedNetworkDocument } from '../../core/messages/network-document.ts'
import { peerAnswerSchema } from '../../core/messages/views.ts'
import type { PeerAnswer } from '../../core/messages/views.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import { parseCertificate } from '../../core/x509/certificate.ts'
import { readWireGuardKey } from '../../core/x509/certpeer-extensions.ts'
import { readDevice } from '../../core/x509/path.ts'
import type { DeviceFacts } from '../../core/x509/path.ts'
import { pemToDer } from '../../core/x509/pem.ts'
import type { Now } from '../../platform/clock.ts'
import { readTextFile, writeFileAtomic } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import { clientFor } from '../client-certificate.ts'
import type { OwnIdentity } from '../client-certificate.ts'
import { acceptNetworkDocument } from '../network-documents.ts'
import { verifyGateway } from './plan.ts'
import type { Gateway, GatewayTrust } from './plan.ts'
import type { GatewayRevocations } from './revocations.ts'

/** Who asks, and by what the answer is judged. */
export interface PeerContext {
  readonly own: OwnIdentity
  readonly revocations: Pick<GatewayRevocations, 'isRevoked'>
  readonly now: Now
  readonly log: Logger
}

export interface Peering {
  readonly device: DeviceFacts
  readonly network: VerifiedNetworkDocument
  readonly gateways: readonly Gateway[]
  readonly state: PeerAnswer['state']
  readonly waitingFor: readonly string[]
}

const PEER_FILE = 'peer.json'
/** The server holds a `wait` for 30 s. */
const WAIT_TIMEOUT_MS = 45_000

/** Asks for the peer and waits until every connected gateway has it. */
export async function provision(context: PeerContext): Promise<Peering> {
  return ask(context, { change: true })
}

/** Asks again without changing anything: new gateways, moved endpoints, a new network document. */
export async function refresh(context: PeerContext): Promise<Peering> {
  return ask(context, { change: false })
}

/** Takes the peer off the gateways. */
export async function withdraw(own: OwnIdentity): Promise<void> {
  const api = clientFor(own, own.credential.config.apiUrl)
  await api.request({ method: 'DELETE', path: '/v1/peer' })
  api.close()
}

/** The answer of last time, verified again; undefined when there was none or nothing in it holds any more. */
export async function findKeptPeering(context: PeerContext): Promise<Peering | undefined> {
  try {
    const kept = await findKeptAnswer(context.own)
    return kept === undefined ? undefined : await verifyAnswer(context, kept)
  } catch (error) {
    context.log.warn({ err: error }, 'kept gateways not usable')
    return undefined
  }
}

/** The peering without the gateways that are revoked by now; the very same when there are none. */
export function withoutRevoked(peering: Peering, { revocations, log }: PeerContext): Peering {
  const gateways = peering.gateways.filter(({ facts }) => !revocations.isRevoked(facts))
  if (gateways.length === peering.gateways.length) return peering
  for (const { facts } of peering.gateways) {
    if (revocations.isRevoked(facts)) log.warn({ gateway: facts.name, serial: facts.serial }, 'gateway revoked')
  }
  return { ...peering, gateways }
}

/**
 * WireGuard keys of gateways in the answer of last time whose certificate is revoked by now, and of no other gateway
 * there: what an interface from before may still hold.
 */
export async function findRevokedKeys({ own, revocations, log }: PeerContext): Promise<ReadonlySet<WireGuardKey>> {
  const revoked = new Set<WireGuardKey>()
  const inForce = new Set<WireGuardKey>()
  const kept = await findKeptAnswer(own).catch((error: unknown) => {
    log.warn({ err: error }, 'kept gateways not readable')
    return undefined
  })
  for (const hint of kept?.gateways ?? []) {
    try {
      const certificate = parseCertificate(pemToDer(hint.certificate))
      const { keyId } = parseCertificate(pemToDer(hint.issuer))
      const isRevoked = revocations.isRevoked({ issuerKeyId: keyId, serial: certificate.serial })
      ;(isRevoked ? revoked : inForce).add(readWireGuardKey(certificate, own.oids).key)
    } catch (error) {
      // What is no gateway's certificate was refused when it came, and must not hide its neighbours.
      if (!(error instanceof CertpeerError)) throw error
    }
  }
  return new Set([...revoked].filter((key) => !inForce.has(key)))
}

async function findKeptAnswer({ credential }: OwnIdentity): Promise<PeerAnswer | undefined> {
  const path = join(credential.dir, PEER_FILE)
  if (!existsSync(path)) return undefined
  return parseMessage(peerAnswerSchema, JSON.parse(await readTextFile(path, 'the kept peer')), path)
}

async function ask(context: PeerContext, { change }: { change: boolean }): Promise<Peering> {
  const { own } = context
  const api = clientFor(own, own.credential.config.apiUrl, WAIT_TIMEOUT_MS)
  const path = '/v1/peer'
  try {
    let answer = parseAnswer((await api.request({ method: change ? 'PUT' : 'GET', path })).json)
    if (change && answer.state === 'pending') {
      answer = parseAnswer((await api.request({ method: 'GET', path, query: { wait: 'active' } })).json)
    }
    const peering = await verifyAnswer(context, answer)
    await writeFileAtomic(join(own.credential.dir, PEER_FILE), `${JSON.stringify(answer)}\n`, { mode: 0o600 })
    return peering
  } finally {
    api.close()
  }
}

function parseAnswer(json: unknown): PeerAnswer {
  return parseMessage(peerAnswerSchema, json, 'peer answer')
}

async function verifyAnswer({ own, revocations, now, log }: PeerContext, answer: PeerAnswer): Promise<Peering> {
  const { oids, root, trustDomain } = own
  const device = readDevice(own.verified, oids)
  const trust = { root, oids, trustDomain, now: now() }
  const network = await acceptNetworkDocument(own.credential.dir, answer.networkDocument, device, trust)
  const isRevoked: GatewayTrust['isRevoked'] = (facts) => revocations.isRevoked(facts)
  const gateways: Gateway[] = []
  let refusal: unknown
  for (const hint of answer.gateways) {
    try {
      const gateway = verifyGateway(hint, device, { ...trust, isRevoked })
      // Two hints for one key would be two peers in one; the first that verifies stands.
      if (gateways.some(({ facts }) => facts.key === gateway.facts.key)) continue
      gateways.push({ ...gateway, endpoint: await resolveEndpoint(hint.endpoint) })
    } catch (error) {
      refusal ??= error
      log.warn({ err: error }, 'gateway refused')
    }
  }
  // One bad gateway among good ones is left out; nothing but bad ones is an attack or a fault, and says so.
  if (gateways.length === 0 && refusal instanceof Error) throw refusal
  return { device, network, gateways, state: answer.state, waitingFor: answer.waitingFor }
}

/** `ADDRESS:PORT` out of `HOST:PORT`; WireGuard itself knows no names. */
export async function resolveEndpoint(endpoint: string): Promise<string> {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^\s:[\]]+)):([0-9]{1,5})$/.exec(endpoint)
  const host = match?.[1] ?? match?.[2]
  const port = Number(match?.[3])
  if (host === undefined || port < 1 || port > 65_535) {
    throw new CertpeerError('malformed_message', `${JSON.stringify(endpoint.slice(0, 80))} is not HOST:PORT`)
  }
  const family = isIP(host)
  if (family !== 0) return family === 6 ? `[${host}]:${port}` : `${host}:${port}`
  try {
    const found = await lookup(host)
    return found.family === 6 ? `[${found.address}]:${port}` : `${found.address}:${port}`
  } catch (cause) {
    throw new CertpeerError('unavailable', `the gateway's name ${host} cannot be resolved`, { cause })
  }
}
