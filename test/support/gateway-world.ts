/**
 * Everything around one gateway, for tests: a PKI, certificates for devices as needed, CRLs and network documents, and a
 * session that starts with what an honest control plane would have sent.
 */
import { randomBytes, sign } from 'node:crypto'
import { parseAddress, parsePrefix } from '../../src/core/ipam/prefix.ts'
import { encodeNetworkDocument } from '../../src/core/messages/network-document.ts'
import { networkDocumentSchema, type NetworkSettings } from '../../src/core/messages/network.ts'
import type { DownMessage } from '../../src/core/messages/stream.ts'
import { wireGuardKeyFromBytes, type WireGuardKey } from '../../src/core/wireguard/key.ts'
import { x25519PublicFromPrivate } from '../../src/core/wireguard/x25519.ts'
import type { Certificate } from '../../src/core/x509/certificate.ts'
import { encodeCrlEntry, encodeTbsCertList } from '../../src/core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../../src/core/x509/encode.ts'
import { derToPem } from '../../src/core/x509/pem.ts'
import { readGateway, verifyCertificate } from '../../src/core/x509/path.ts'
import type { Serial } from '../../src/core/x509/serial.ts'
import type { OwnIdentity } from '../../src/edge/gateway/admission.ts'
import { GatewaySession, type SavedState } from '../../src/edge/gateway/session.ts'
import { TrustStore } from '../../src/edge/gateway/trust-store.ts'
import { writeCredential, type CredentialConfig } from '../../src/platform/credentials.ts'
import {
  KEY_PREFIX,
  makeDevice,
  makeDeviceCa,
  makeGateway,
  makeInfrastructureCa,
  makeInfrastructureLeaf,
  makeRoot,
  newKeyPair,
  NOW,
  OIDS,
  TRUST_DOMAIN,
  type Authority,
  type DeviceParts,
} from './certificates.ts'

export const NETWORK = 'default/default'
export const MINUTE = 60_000
export const HOUR = 60 * MINUTE

export function newWireGuardKey(): WireGuardKey {
  return wireGuardKeyFromBytes(x25519PublicFromPrivate(randomBytes(32)))
}

/** An instant, in milliseconds from the fixed one. */
export function at(ms: number): Date {
  return new Date(NOW.getTime() + ms)
}

export interface CrlParts {
  readonly revoked?: readonly Serial[]
  /** Milliseconds from the fixed instant. */
  readonly thisUpdate?: number
  readonly nextUpdate?: number
  readonly number?: bigint
}

export class GatewayWorld {
  readonly root = makeRoot()
  readonly deviceCa = makeDeviceCa(this.root)
  readonly infrastructureCa = makeInfrastructureCa(this.root)
  readonly gatewayPrivateKey = randomBytes(32)
  readonly gatewayKey = wireGuardKeyFromBytes(x25519PublicFromPrivate(this.gatewayPrivateKey))
  readonly #gatewayTlsKeys = newKeyPair()
  readonly gateway = makeGateway(this.infrastructureCa, {
    key: this.gatewayKey,
    publicKey: this.#gatewayTlsKeys.publicKey,
  })
  readonly #authorityKeys = newKeyPair()
  readonly authority = makeInfrastructureLeaf(
    this.infrastructureCa,
    'authority',
    `spiffe://${TRUST_DOMAIN}/authority/a1`,
    { publicKey: this.#authorityKeys.publicKey },
  )
  /** Number 1, with everything at its default. */
  readonly document: string

  private constructor(document: string) {
    this.document = document
  }

  static async create(): Promise<GatewayWorld> {
    const world = new GatewayWorld('')
    return Object.assign(world, { document: await world.makeDocument() })
  }

  get own(): OwnIdentity {
    const { certificate } = this.infrastructureCa
    const { root } = this
    const verified = verifyCertificate({
      certificate: this.gateway,
      issuers: [certificate],
      root: root.certificate,
      now: NOW,
      oids: OIDS,
      trustDomain: TRUST_DOMAIN,
    })
    const { name, key, tunnelAddresses, servedNetworks, serial, issuerKeyId } = readGateway(verified, OIDS)
    const networks = new Set(servedNetworks)
    return { name, key, addresses: tunnelAddresses.map(parseAddress), networks, serial, issuerKeyId }
  }

  /** Writes the credential directory of the gateway; every listener is at `url`. */
  async writeCredential(dir: string, url: string, config: Partial<CredentialConfig>): Promise<void> {
    await writeCredential(dir, {
      certificate: derToPem(this.gateway.der, 'CERTIFICATE'),
      issuer: derToPem(this.infrastructureCa.certificate.der, 'CERTIFICATE'),
      root: derToPem(this.root.certificate.der, 'CERTIFICATE'),
      tlsKey: this.#gatewayTlsKeys.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
      wireGuardKey: this.gatewayPrivateKey.toString('base64'),
      config: {
        role: 'gateway',
        identity: this.gateway.sanUris[0] ?? '',
        name: 'g1',
        trustDomain: TRUST_DOMAIN,
        pen: OIDS.pen,
        enrollUrl: url,
        authorityUrl: url,
        apiUrl: url,
        gatewaysUrl: url,
        pkiUrl: url,
        endpoint: 'gw.example:51820',
        ...config,
      },
    })
  }

  /** A session that knows nothing but the pinned root and its own issuer. */
  newSession(saved?: SavedState, clock = NOW): GatewaySession {
    const trust = new TrustStore({
      root: this.root.certificate,
      oids: OIDS,
      trustDomain: TRUST_DOMAIN,
      infrastructureKeyId: this.infrastructureCa.certificate.keyId,
    })
    trust.acceptIssuer(this.infrastructureCa.certificate.der, clock)
    const session = new GatewaySession({ trust, own: this.own, endpoint: 'gw.example:51820' })
    if (saved !== undefined) session.restore(saved, clock)
    return session
  }

  /** A session that has been told everything it needs, and an empty snapshot of revision 1. */
  readySession(clock = NOW): GatewaySession {
    const session = this.newSession()
    session.connected(clock)
    for (const message of this.introduction()) session.receive(message, clock)
    session.receive(this.snapshot(1, []), clock)
    return session
  }

  introduction(): DownMessage[] {
    return [
      {
        type: 'issuers',
        certificates: [this.deviceCa, this.infrastructureCa].map(({ certificate }) => base64(certificate.der)),
      },
      this.crlMessage(this.root, { nextUpdate: 300 * 24 * HOUR }),
      this.crlMessage(this.infrastructureCa),
      this.crlMessage(this.deviceCa),
      { type: 'network', document: this.document },
    ]
  }

  /** Device number `n` with its own identity, key and address; every part can be replaced. */
  makeDevice(n: number, parts: DeviceParts & { ca?: Authority } = {}): Certificate {
    return makeDevice(parts.ca ?? this.deviceCa, {
      key: parts.key ?? newWireGuardKey(),
      addresses: [parsePrefix(`10.88.${n >> 8}.${n & 255}/32`)],
      uri: deviceUri(n),
      ...parts,
    })
  }

  makeCrl(ca: Authority, parts: CrlParts = {}): Buffer {
    const thisUpdate = at(parts.thisUpdate ?? -MINUTE)
    const entries = (parts.revoked ?? []).map((serial) =>
      encodeCrlEntry({ serial, revokedAt: thisUpdate, reason: 'keyCompromise' }),
    )
    const tbs = encodeTbsCertList({
      issuer: ca.certificate,
      thisUpdate,
      nextUpdate: at(parts.nextUpdate ?? (parts.thisUpdate ?? -MINUTE) + 24 * HOUR),
      number: parts.number ?? BigInt(thisUpdate.getTime()),
      entries: Buffer.concat(entries),
      oids: OIDS,
    })
    const algorithm = signatureAlgorithmFor(ca.publicKey)
    return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, ca.privateKey))
  }

  crlMessage(ca: Authority, parts: CrlParts = {}): DownMessage {
    return { type: 'crl', crl: base64(this.makeCrl(ca, parts)) }
  }

  makeDocument(
    parts: Partial<NetworkSettings> & { number?: number; issuedAt?: string; signer?: Authority['privateKey'] } = {},
  ): Promise<string> {
    const { signer = this.#authorityKeys.privateKey, ...rest } = parts
    const document = networkDocumentSchema.parse({
      pools: ['10.88.0.0/16', 'fd00:0:0:1::/64'],
      keyPrefix: 'fd00:0:0:ff::/64',
      trustDomain: TRUST_DOMAIN,
      number: 1,
      issuedAt: NOW.toISOString(),
      ...rest,
    })
    return encodeNetworkDocument({
      document,
      certificates: [this.authority.der, this.infrastructureCa.certificate.der],
      sign: (data) => sign('sha256', data, signer),
    })
  }

  snapshot(revision: number, certificates: readonly Certificate[], more = false): DownMessage {
    const list = certificates.map(({ der }) => base64(der))
    return { type: 'snapshot', network: NETWORK, revision, certificates: list, more }
  }

  set(revision: number, certificate: Certificate, network = NETWORK): DownMessage {
    return { type: 'set', network, revision, certificate: base64(certificate.der) }
  }

  remove(revision: number, certificate: Certificate): DownMessage {
    return { type: 'remove', network: NETWORK, revision, serial: certificate.serial }
  }
}

export function deviceUri(n: number, tenant = 'default', network = 'default'): string {
  return `spiffe://${tenant}.${TRUST_DOMAIN}/network/${network}/device/d${n}`
}

export function base64(bytes: Buffer): string {
  return bytes.toString('base64')
}

/** The codes in the newest `applied` message, by serial. */
export function failures(session: GatewaySession): Record<string, string> {
  const message = session.acknowledgement({ kind: 'applied', network: NETWORK, revision: 0 })
  if (message.type !== 'applied') throw new Error('not an applied message')
  return Object.fromEntries(message.failed.map(({ serial, code }) => [serial, code]))
}

export { KEY_PREFIX }
