/** The authority's route tables: method, path, who may, what happens. One table for each socket. */
import { CertpeerError } from '../core/errors.ts'
import { parseMessage } from '../core/messages/common.ts'
import {
  challengeRequestSchema,
  enrollRequestSchema,
  renewRequestSchema,
  tokenRequestSchema,
  type ChallengeAnswer,
  type TrustAnswer,
} from '../core/messages/enrollment.ts'
import { localCredentialRequestSchema } from '../core/messages/local-credential.ts'
import { networkSettingsSchema } from '../core/messages/network.ts'
import { revocationRequestSchema } from '../core/messages/revocation.ts'
import { derToPem } from '../core/x509/pem.ts'
import { defineRoute, pathParameter, type Route, type RouteAnswer, type RouteHead } from '../platform/http/types.ts'
import type { Authority } from './authority.ts'
import { certificateAnswer } from './answer.ts'
import type { CrlPublisher } from './crl.ts'
import { enroll } from './enroll.ts'
import { issueLocal } from './local-credential.ts'
import { applyNetwork, listNetworks } from './networks.ts'
import type { OcspResponder } from './ocsp.ts'
import { requireOperator } from './principal.ts'
import { renew } from './renew.ts'
import { revoke } from './revoke.ts'
import { createToken } from './tokens.ts'

export interface Published {
  readonly name: string
  readonly crl: CrlPublisher
  readonly ocsp: OcspResponder
}

export interface RouteContext {
  readonly authority: Authority
  readonly published: ReadonlyMap<string, Published>
  /** DER and number of the root's CRL. */
  readonly rootCrl: () => { readonly der: Buffer; readonly number: bigint }
}

/** Listener *enroll*: nobody shows a client certificate; each request proves itself. */
export function enrollRoutes({ authority }: RouteContext): Route[] {
  const { root, rootPem, issuers, endpoints, trustDomain, oids } = authority
  const trust: TrustAnswer = {
    trustDomain,
    pen: oids.pen,
    root: rootPem,
    issuers: issuers.map((issuer) => derToPem(issuer.certificate.der)),
    endpoints,
  }
  return [
    defineRoute({
      method: 'GET',
      path: '/v1/trust',
      access: anyone,
      handle: () => ({ status: 200, json: trust, headers: { 'x-root-fingerprint': root.fingerprint } }),
    }),
    defineRoute({
      method: 'POST',
      path: '/v1/challenges',
      hot: true,
      maxBytes: 1024,
      access: anyone,
      handle: (request) => {
        const { credential } = parseMessage(challengeRequestSchema, request.body)
        const hash = Buffer.from(credential, 'base64url')
        const challenge = authority.challenges.issue(hash, request.remoteAddress, authority.now())
        const answer: ChallengeAnswer = {
          id: challenge.id,
          publicKey: challenge.publicKey.toString('base64url'),
          nonce: challenge.nonce.toString('base64url'),
          expiresAt: challenge.expiresAt.toISOString(),
        }
        return { status: 201, json: answer }
      },
    }),
    defineRoute({
      method: 'POST',
      path: '/v1/certificates',
      hot: true,
      access: anyone,
      handle: async (request) => ({
        status: 201,
        json: await enroll(authority, parseMessage(enrollRequestSchema, request.body)),
      }),
    }),
    defineRoute({
      method: 'POST',
      path: '/v1/certificates/renew',
      hot: true,
      access: anyone,
      handle: async (request) => ({
        status: 201,
        json: await renew(authority, parseMessage(renewRequestSchema, request.body)),
      }),
    }),
    ...healthRoutes(authority),
  ]
}

/** Listener *authority*: operators. */
export function operatorRoutes({ authority }: RouteContext): Route[] {
  // Asked before the body is read, so that a stranger costs no parsing, and again when it is there: a body may take
  // seconds, and who was revoked meanwhile may nothing any more.
  const operator = (head: RouteHead) => requireOperator(authority, head)
  return [
    defineRoute({
      method: 'POST',
      path: '/v1/tokens',
      access: operator,
      handle: async (request) => ({
        status: 201,
        json: await createToken(authority, operator(request), parseMessage(tokenRequestSchema, request.body)),
      }),
    }),
    defineRoute({
      method: 'PUT',
      path: '/v1/networks',
      access: operator,
      handle: async (request) => ({
        status: 200,
        json: await applyNetwork(authority, operator(request), parseMessage(networkSettingsSchema, request.body)),
      }),
    }),
    defineRoute({
      method: 'GET',
      path: '/v1/networks',
      access: operator,
      handle: (_request, principal) => ({ status: 200, json: { items: listNetworks(authority, principal) } }),
    }),
    defineRoute({
      method: 'POST',
      path: '/v1/revocations',
      access: operator,
      handle: async (request) => ({
        status: 200,
        json: await revoke(authority, operator(request), parseMessage(revocationRequestSchema, request.body)),
      }),
    }),
    ...healthRoutes(authority),
  ]
}

/** Listener *pki*, plain HTTP: everything here is signed and public. */
export function pkiRoutes(context: RouteContext): Route[] {
  const { authority, published } = context
  const issuerNamed = (name: string) => {
    const issuer = authority.issuers.find((ca) => ca.name === name)
    if (issuer) return issuer
    throw new CertpeerError('not_found', `there is no issuing CA ${name}`)
  }
  const get = (path: string, handle: (request: RouteHead) => RouteAnswer) =>
    defineRoute({ method: 'GET', path, hot: true, access: anyone, handle })
  return [
    get('/issuers.json', () => ({
      status: 200,
      json: {
        trustDomain: authority.trustDomain,
        pen: authority.oids.pen,
        root: authority.rootPem,
        issuers: authority.issuers.map(({ name, role, tenant, certificate }) => ({
          name,
          role,
          ...(tenant === undefined ? {} : { tenant }),
          certificate: derToPem(certificate.der),
          crl: `/crl/${name}.crl`,
        })),
      },
    })),
    get('/crl/:file', (request) => {
      const name = stripSuffix(pathParameter(request, 'file'), '.crl')
      const crl = name === 'root' ? context.rootCrl() : published.get(name)?.crl.current
      if (!crl) throw new CertpeerError('not_found', `there is no CRL ${name}`)
      const etag = `"${crl.number}"`
      const headers = { etag, 'cache-control': 'no-cache' }
      if (request.headers['if-none-match'] === etag) return { status: 304, headers }
      return { status: 200, raw: { contentType: 'application/pkix-crl', body: crl.der }, headers }
    }),
    get('/certs/:file', (request) => {
      const name = stripSuffix(pathParameter(request, 'file'), '.crt')
      const body = name === 'root' ? authority.root.der : issuerNamed(name).certificate.der
      return { status: 200, raw: { contentType: 'application/pkix-cert', body } }
    }),
    get('/networks/:tenant/:file', (request) => {
      const name = `${pathParameter(request, 'tenant')}/${stripSuffix(pathParameter(request, 'file'), '.jws')}`
      const network = authority.state.networks.get(name)
      if (!network) throw new CertpeerError('not_found', `there is no network ${name}`)
      return { status: 200, raw: { contentType: 'application/jose', body: Buffer.from(network.jws, 'ascii') } }
    }),
    defineRoute({
      method: 'POST',
      path: '/ocsp/:issuer',
      hot: true,
      bodyType: 'raw',
      contentTypes: ['application/ocsp-request'],
      maxBytes: 16_384,
      access: anyone,
      handle: (request) => answerOcsp(context, pathParameter(request, 'issuer'), request.body),
    }),
    defineRoute({
      method: 'GET',
      path: '/ocsp/:issuer/*request',
      hot: true,
      access: anyone,
      // RFC 6960 A.1: base64, URL-encoded; a slash inside it may arrive as it is.
      handle: (request) =>
        answerOcsp(context, pathParameter(request, 'issuer'), Buffer.from(pathParameter(request, 'request'), 'base64')),
    }),
    ...healthRoutes(authority),
  ]
}

/** ca-admin.sock, mode 0600: whoever can open it owns the authority's directory. */
export function adminRoutes({ authority }: RouteContext): Route[] {
  return [
    defineRoute({
      method: 'POST',
      path: '/v1/credentials',
      access: anyone,
      handle: async (request) => {
        const { spki, ...wanted } = parseMessage(localCredentialRequestSchema, request.body)
        const issued = await issueLocal(authority, { ...wanted, spki: Buffer.from(spki, 'base64') })
        return { status: 201, json: certificateAnswer(authority, issued) }
      },
    }),
    ...healthRoutes(authority),
  ]
}

function healthRoutes(authority: Authority): Route[] {
  return [
    defineRoute({
      method: 'GET',
      path: '/healthz',
      frontless: true,
      access: anyone,
      handle: () => ({ status: 200, json: { status: 'ok' } }),
    }),
    defineRoute({
      method: 'GET',
      path: '/readyz',
      frontless: true,
      access: anyone,
      handle: () => {
        const failure = authority.ledger.failure
        return failure
          ? { status: 503, json: { status: 'ledger failed; restart the authority' } }
          : { status: 200, json: { status: 'ready', ledgerSize: authority.ledger.head.size } }
      },
    }),
  ]
}

async function answerOcsp({ published }: RouteContext, name: string, body: unknown): Promise<RouteAnswer> {
  const responder = published.get(name)?.ocsp
  if (!responder) throw new CertpeerError('not_found', `there is no OCSP responder for ${name}`)
  const answer = await responder.respond(Buffer.isBuffer(body) ? body : Buffer.alloc(0))
  const caching = answer.maxAgeSeconds > 0 ? `max-age=${answer.maxAgeSeconds}, public, no-transform` : 'no-store'
  return {
    status: 200,
    raw: { contentType: 'application/ocsp-response', body: answer.body },
    headers: { 'cache-control': caching },
  }
}

function stripSuffix(file: string, suffix: string): string {
  if (file.endsWith(suffix)) return file.slice(0, -suffix.length)
  throw new CertpeerError('not_found', 'there is nothing at this path')
}

function anyone(): undefined {
  return undefined
}
