/** The two listeners of the server process as data: method, path, who may, what happens. */
import { CertpeerError } from '../core/errors.ts'
import { serialSchema } from '../core/messages/common.ts'
import type { PeerAnswer } from '../core/messages/views.ts'
import { requireAct } from '../core/policy/operator.ts'
import { networkKey } from '../core/x509/identity.ts'
import type { Now } from '../platform/clock.ts'
import type { Db } from '../platform/db/connection.ts'
import { clientCertificate } from '../platform/http/client-cert.ts'
import { defineRoute, defineStream } from '../platform/http/types.ts'
import type { RateLimits, Route, RouteAnswer, RouteHead } from '../platform/http/types.ts'
import type { Logger } from '../platform/log.ts'
import { findPeer } from './db/lookups.ts'
import type { GatewayDirectory } from './gateways.ts'
import type { NetworkDocuments } from './networks.ts'
import { requireDevice, requireGateway, requireOperator } from './principal.ts'
import type { DevicePrincipal, GatewayPrincipal, OperatorPrincipal, Principals } from './principal.ts'
import { awaitActive, awaitGone } from './progress.ts'
import type { Progress } from './progress.ts'
import type { Provisioner } from './provision.ts'
import type { Revocations } from './revocations.ts'
import type { Hub } from './stream/hub.ts'
import { readPageQuery, viewCertificates, viewDevices, viewGateways, viewPeers } from './views.ts'
import type { Page } from './views.ts'
import type { PageQuery } from './db/views.ts'

const WAIT_ACTIVE_MS = 30_000
const WAIT_GONE_MS = 10_000
/** Beside the wait itself: the answer is ours, not the listener's timeout. */
const WAIT_MARGIN_MS = 10_000
/** The largest thing we ever queue for a gateway is one CRL in base64. */
const MAX_QUEUED_BYTES = 192 * 1024 * 1024
const MAX_UP_LINE_BYTES = 256 * 1024

/** A device asks once per certificate and once per wait; a fleet behind one address is many devices. */
const DEVICE_LIMITS: RateLimits = {
  address: { requests: 20_000, perSeconds: 10 },
  key: { requests: 120, perSeconds: 60 },
}
const OPERATOR_LIMITS: RateLimits = {
  address: { requests: 1000, perSeconds: 10 },
  key: { requests: 600, perSeconds: 60 },
}
/** A gateway holds one stream; its retries have a back-off. */
const STREAM_LIMITS: RateLimits = {
  address: { requests: 2000, perSeconds: 10 },
  key: { requests: 60, perSeconds: 60 },
}

export interface ServerContext {
  readonly db: Db
  readonly principals: Principals
  readonly revocations: Revocations
  readonly documents: NetworkDocuments
  readonly gateways: GatewayDirectory
  readonly provisioner: Provisioner
  readonly progress: Progress
  readonly hub: Hub
  readonly now: Now
  readonly log: Logger
  /** What keeps the server from working; empty when it is ready. */
  readonly listFaults: () => Promise<string[]>
}

/** Listener *api*: devices and operators. */
export function apiRoutes(context: ServerContext): Route[] {
  const device = (head: RouteHead): DevicePrincipal =>
    requireDevice(context.principals.authenticate(clientCertificate(head)))
  const operator = (head: RouteHead): OperatorPrincipal => {
    const principal = requireOperator(context.principals.authenticate(clientCertificate(head)))
    requireAct({ ...principal, groups: [] }, 'list', principal.tenant)
    return principal
  }
  const deviceKey = (_: RouteHead, principal: DevicePrincipal): string[] => [principal.device.uri]
  const operatorKey = (_: RouteHead, principal: OperatorPrincipal): string[] => [principal.verified.uri]

  const page = <T>(path: string, view: (context: ServerContext, query: PageQuery) => Promise<Page<T>>): Route =>
    defineRoute({
      method: 'GET',
      path,
      access: operator,
      rateLimitKey: operatorKey,
      rateLimits: OPERATOR_LIMITS,
      async handle(request, principal) {
        return { status: 200, json: await view(context, readPageQuery(request.query, principal.tenant, context.now)) }
      },
    })

  return [
    defineRoute({
      method: 'PUT',
      path: '/v1/peer',
      hot: true,
      // Everything is in the certificate; a body, if there is one, says nothing.
      bodyType: 'raw',
      maxBytes: 1024,
      access: device,
      rateLimitKey: deviceKey,
      rateLimits: DEVICE_LIMITS,
      handle: (_, principal) => putPeer(context, principal),
    }),
    defineRoute({
      method: 'GET',
      path: '/v1/peer',
      hot: true,
      timeoutMs: WAIT_ACTIVE_MS + WAIT_MARGIN_MS,
      access: device,
      rateLimitKey: deviceKey,
      rateLimits: DEVICE_LIMITS,
      handle: (request, principal) =>
        getPeer(context, principal, readWait(request.query, 'active', WAIT_ACTIVE_MS), request.signal),
    }),
    defineRoute({
      method: 'DELETE',
      path: '/v1/peer',
      hot: true,
      access: device,
      rateLimitKey: deviceKey,
      rateLimits: DEVICE_LIMITS,
      handle: (_, principal) => deletePeer(context, principal),
    }),
    defineRoute({
      method: 'GET',
      path: '/v1/peers/gone',
      timeoutMs: WAIT_GONE_MS + WAIT_MARGIN_MS,
      access: operator,
      rateLimitKey: operatorKey,
      rateLimits: OPERATOR_LIMITS,
      async handle(request, principal) {
        const serial = serialSchema.safeParse(request.query.get('serial'))
        if (!serial.success) {
          throw new CertpeerError('malformed_request', 'serial must be a serial number in lower-case hex')
        }
        const answer = await awaitGone({
          db: context.db,
          progress: context.progress,
          revocations: context.revocations,
          serial: serial.data,
          tenant: principal.tenant,
          waitMs: readWait(request.query, 'gone', WAIT_GONE_MS),
          signal: request.signal,
        })
        return { status: 200, json: answer }
      },
    }),
    page('/v1/devices', viewDevices),
    page('/v1/certificates', viewCertificates),
    page('/v1/peers', viewPeers),
    page('/v1/gateways', viewGateways),
    ...probeRoutes(context),
  ]
}

/** Listener *gateways*: the stream. */
export function gatewayRoutes(context: ServerContext): Route[] {
  return [
    defineStream<GatewayPrincipal>({
      path: '/v1/stream',
      access: (head) => requireGateway(context.principals.authenticate(clientCertificate(head))),
      rateLimitKey: (_, principal) => [principal.gateway.uri],
      rateLimits: STREAM_LIMITS,
      maxLineBytes: MAX_UP_LINE_BYTES,
      maxQueuedBytes: MAX_QUEUED_BYTES,
      handle: (_, principal, duplex) => context.hub.serve(principal, duplex),
    }),
    ...probeRoutes(context),
  ]
}

/** For whoever watches the process on its own socket. They tell nothing that a stranger could use. */
function probeRoutes(context: ServerContext): Route[] {
  const everybody = (): void => undefined
  return [
    defineRoute({
      method: 'GET',
      path: '/healthz',
      frontless: true,
      access: everybody,
      handle: () => ({ status: 200, json: { status: 'ok' } }),
    }),
    defineRoute({
      method: 'GET',
      path: '/readyz',
      frontless: true,
      access: everybody,
      async handle() {
        const faults = await context.listFaults()
        if (faults.length === 0) return { status: 200, json: { status: 'ready' } }
        return { status: 503, json: { status: 'not ready', faults } }
      },
    }),
  ]
}

async function putPeer(context: ServerContext, principal: DevicePrincipal): Promise<RouteAnswer> {
  const { tenant, network, serial } = principal.device
  // Before anything is written: a device cannot use a peer without its network's law.
  const document = networkDocument(context, principal)
  const { revision, changed } = await context.provisioner.put(principal)
  // It waited for the database, and a revocation may have come meanwhile.
  context.principals.requireInForce(principal)
  const active = changed
    ? { state: 'pending' as const, waitingFor: context.gateways.connectedNames(tenant, network) }
    : await awaitActive({
        progress: context.progress,
        ...{ tenant, network, revision, serial },
        waitMs: 0,
        signal: AbortSignal.timeout(WAIT_MARGIN_MS),
      })
  return answerPeer(context, principal, document, { ...active, revision })
}

async function getPeer(
  context: ServerContext,
  principal: DevicePrincipal,
  waitMs: number,
  signal: AbortSignal,
): Promise<RouteAnswer> {
  const { tenant, network, uri } = principal.device
  const document = networkDocument(context, principal)
  const peer = await findPeer(context.db, tenant, network, uri)
  if (peer === undefined)
    return answerPeer(context, principal, document, { state: 'absent', revision: 0, waitingFor: [] })
  const active = await awaitActive({
    progress: context.progress,
    ...{ tenant, network, revision: peer.revision, serial: peer.serial },
    waitMs,
    signal,
  })
  // Thirty seconds may have passed.
  context.principals.requireInForce(principal)
  return answerPeer(context, principal, document, { ...active, revision: peer.revision })
}

async function deletePeer(context: ServerContext, principal: DevicePrincipal): Promise<RouteAnswer> {
  const document = networkDocument(context, principal)
  const { revision } = await context.provisioner.release(principal)
  return answerPeer(context, principal, document, { state: 'absent', revision, waitingFor: [] })
}

function networkDocument(context: ServerContext, { device }: DevicePrincipal): string {
  const key = networkKey(device.tenant, device.network)
  const document = context.documents.find(key)
  if (document === undefined) {
    throw new CertpeerError('unavailable', `the document of network ${key} is not known here yet; try again`)
  }
  return document.jws
}

function answerPeer(
  context: ServerContext,
  { device }: DevicePrincipal,
  document: string,
  state: { readonly state: PeerAnswer['state']; readonly revision: number; readonly waitingFor: readonly string[] },
): RouteAnswer {
  const answer: PeerAnswer = {
    state: state.state,
    revision: state.revision,
    waitingFor: [...state.waitingFor],
    networkDocument: document,
    gateways: context.gateways.hints(device.tenant, device.network),
  }
  return { status: 200, json: answer }
}

/** `wait=NAME` waits, no `wait` answers at once; anything else is a mistake worth telling. */
function readWait(query: URLSearchParams, name: string, waitMs: number): number {
  const wait = query.get('wait')
  if (wait === null) return 0
  if (wait !== name) throw new CertpeerError('malformed_request', `wait can only be ${name}`)
  return waitMs
}
