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
import { readDevice } from '../../core/x509/path.ts'
import type { DeviceFacts } from '../../core/x509/path.ts'
import { readTextFile, writeFileAtomic } from '../../platform/files.ts'
import type { Logger } from '../../platform/log.ts'
import { clientFor } from '../client-certificate.ts'
import type { OwnIdentity } from '../client-certificate.ts'
import { acceptNetworkDocument } from '../network-documents.ts'
import { verifyGateway } from './plan.ts'
import type { Gateway } from './plan.ts'

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
export async function provision(own: OwnIdentity, now: Date, log: Logger): Promise<Peering> {
  return ask(own, { change: true }, now, log)
}

/** Asks again without changing anything: new gateways, moved endpoints, a new network document. */
export async function refresh(own: OwnIdentity, now: Date, log: Logger): Promise<Peering> {
  return ask(own, { change: false }, now, log)
}

/** Takes the peer off the gateways. */
export async function withdraw(own: OwnIdentity): Promise<void> {
  const api = clientFor(own, own.credential.config.apiUrl)
  await api.request({ method: 'DELETE', path: '/v1/peer' })
  api.close()
}

/** The answer of last time, verified again; undefined when there was none or nothing in it holds any more. */
export async function findKeptPeering(own: OwnIdentity, now: Date, log: Logger): Promise<Peering | undefined> {
  const path = join(own.credential.dir, PEER_FILE)
  if (!existsSync(path)) return undefined
  try {
    const kept = parseMessage(peerAnswerSchema, JSON.parse(await readTextFile(path, 'the kept peer')), path)
    return await verifyAnswer(own, kept, now, log)
  } catch (error) {
    log.warn({ err: error }, 'kept gateways not usable')
    return undefined
  }
}

async function ask(own: OwnIdentity, { change }: { change: boolean }, now: Date, log: Logger): Promise<Peering> {
  const api = clientFor(own, own.credential.config.apiUrl, WAIT_TIMEOUT_MS)
  const path = '/v1/peer'
  try {
    let answer = parseAnswer((await api.request({ method: change ? 'PUT' : 'GET', path })).json)
    if (change && answer.state === 'pending') {
      answer = parseAnswer((await api.request({ method: 'GET', path, query: { wait: 'active' } })).json)
    }
    const peering = await verifyAnswer(own, answer, now, log)
    await writeFileAtomic(join(own.credential.dir, PEER_FILE), `${JSON.stringify(answer)}\n`, { mode: 0o600 })
    return peering
  } finally {
    api.close()
  }
}

function parseAnswer(json: unknown): PeerAnswer {
  return parseMessage(peerAnswerSchema, json, 'peer answer')
}

async function verifyAnswer(own: OwnIdentity, answer: PeerAnswer, now: Date, log: Logger): Promise<Peering> {
  const { oids, root, trustDomain } = own
  const device = readDevice(own.verified, oids)
  const trust = { root, oids, trustDomain, now }
  const network = await acceptNetworkDocument(own.credential.dir, answer.networkDocument, device, trust)
  const gateways: Gateway[] = []
  let refusal: unknown
  for (const hint of answer.gateways) {
    try {
      const gateway = verifyGateway(hint, device, trust)
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
