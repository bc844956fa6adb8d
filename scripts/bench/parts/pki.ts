/**
 * A PKI for measuring, made in process with the encoders that the authority uses: root, issuing CAs, CRLs, a server
 * certificate, a network document and as many devices as are asked for.
 */
import { generateKeyPairSync, sign, type KeyObject } from 'node:crypto'
import { createServer } from 'node:http'
import { formatPrefix, hostPrefix, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { encodeNetworkDocument } from '../../../src/core/messages/network-document.ts'
import { networkDocumentSchema } from '../../../src/core/messages/network.ts'
import { wireGuardKeyFromBytes } from '../../../src/core/wireguard/key.ts'
import { encodeTbsCertList } from '../../../src/core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../../../src/core/x509/encode.ts'
import { subjectAltName } from '../../../src/core/x509/extensions.ts'
import { derToPem } from '../../../src/core/x509/pem.ts'
import { openDatabase } from '../../../src/platform/db/connection.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import {
  KEY_PREFIX,
  OIDS,
  TRUST_DOMAIN,
  makeDevice,
  makeDeviceCa,
  makeInfrastructureCa,
  makeInfrastructureLeaf,
  makeRoot,
  newKeyPair,
  type Authority,
} from '../../../test/support/certificates.ts'

const DAY_MS = 86_400_000
const POOL_V4 = parsePrefix('10.88.0.0/16')
const POOL_V6 = parsePrefix('fd00:0:0:1::/64')

export interface Credential {
  /** PEM. */
  readonly certificate: string
  readonly key: string
}

export interface BenchPki {
  readonly rootPem: string
  readonly deviceCaPem: string
  /** Root and issuing CAs, and a CRL of each: what nginx loads. */
  readonly issuersPem: string
  readonly crlPem: string
  readonly server: Credential
  makeDevice(n: number): Credential
  /** Serves what listener *pki* publishes on a unix socket; returns how to stop it. */
  publish(socketPath: string): Promise<() => Promise<void>>
  /** Writes what the authority's projection would: issuers and the network. */
  project(caUrl: string): Promise<void>
}

export function makePki(): BenchPki {
  const now = new Date()
  const lifetime = { notBefore: new Date(now.getTime() - DAY_MS), notAfter: new Date(now.getTime() + 30 * DAY_MS) }
  const root = makeRoot(lifetime)
  const deviceCa = makeDeviceCa(root, lifetime)
  const infrastructureCa = makeInfrastructureCa(root, lifetime)
  const named = [
    ['root', root],
    ['device-default', deviceCa],
    ['infrastructure', infrastructureCa],
  ] as const
  const crls = new Map(named.map(([name, authority]) => [`/crl/${name}.crl`, emptyCrl(authority, now)]))
  const leafLifetime = {
    notBefore: new Date(now.getTime() - 60_000),
    notAfter: new Date(now.getTime() + DAY_MS),
  }

  return {
    rootPem: pem(root.certificate.der),
    deviceCaPem: pem(deviceCa.certificate.der),
    issuersPem: named.map(([, { certificate }]) => pem(certificate.der)).join(''),
    crlPem: [...crls.values()].map((der) => derToPem(der, 'X509 CRL')).join(''),
    server: makeServer(infrastructureCa, leafLifetime),

    makeDevice(n) {
      const pair = newKeyPair()
      const { x } = generateKeyPairSync('x25519').publicKey.export({ format: 'jwk' })
      const { der } = makeDevice(deviceCa, {
        ...leafLifetime,
        publicKey: pair.publicKey,
        key: wireGuardKeyFromBytes(Buffer.from(x ?? '', 'base64url')),
        uri: `spiffe://default.${TRUST_DOMAIN}/network/default/device/d${n}`,
        // The first hundred addresses are the gateways'.
        addresses: [POOL_V4, POOL_V6].map((pool) => hostPrefix(pool.family, pool.bits + BigInt(n + 100))),
      })
      return { certificate: pem(der), key: keyPem(pair.privateKey) }
    },

    async publish(socketPath) {
      const issuers = named.slice(1).map(([name, { certificate }]) => ({
        name,
        certificate: pem(certificate.der),
        crl: `/crl/${name}.crl`,
      }))
      const list = Buffer.from(JSON.stringify({ trustDomain: TRUST_DOMAIN, root: pem(root.certificate.der), issuers }))
      const server = createServer((request, response) => {
        const body = request.url === '/issuers.json' ? list : crls.get(request.url ?? '')
        if (body === undefined) response.writeHead(404).end()
        else if (request.headers['if-none-match'] === '"1"') response.writeHead(304).end()
        else response.writeHead(200, { etag: '"1"', 'content-length': body.length }).end(body)
      })
      await new Promise<void>((resolve) => server.listen(socketPath, resolve))
      return async () => {
        server.closeAllConnections()
        await new Promise((resolve) => server.close(resolve))
      }
    },

    async project(caUrl) {
      const db = openDatabase({ url: caUrl, log: silentLogger(), max: 1 })
      try {
        for (const [name, { certificate }] of named) {
          const role = name === 'device-default' ? 'device' : name
          const row = [certificate.keyId, name, role, certificate.der]
          await db.raw('insert into issuers (key_id, name, role, certificate) values (?, ?, ?, ?)', row)
        }
        const document = await networkDocument(infrastructureCa, leafLifetime)
        await db.raw(
          `insert into networks (tenant, name, document, document_number) values ('default', 'default', ?, 1)`,
          [document],
        )
      } finally {
        await db.destroy()
      }
    },
  }
}

function emptyCrl(authority: Authority, now: Date): Buffer {
  const algorithm = signatureAlgorithmFor(authority.publicKey)
  const tbs = encodeTbsCertList({
    issuer: authority.certificate,
    thisUpdate: new Date(now.getTime() - 60_000),
    nextUpdate: new Date(now.getTime() + DAY_MS),
    number: 1n,
    entries: Buffer.alloc(0),
    oids: OIDS,
  })
  return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, authority.privateKey))
}

function makeServer(ca: Authority, lifetime: { notBefore: Date; notAfter: Date }): Credential {
  const pair = newKeyPair()
  const uri = `spiffe://${TRUST_DOMAIN}/server/nginx`
  const names = subjectAltName({ uris: [uri], dns: ['localhost'], ips: ['127.0.0.1'] })
  const leaf = makeInfrastructureLeaf(ca, 'server', uri, {
    ...lifetime,
    publicKey: pair.publicKey,
    extensions: { subjectAltName: names },
  })
  return { certificate: `${pem(leaf.der)}${pem(ca.certificate.der)}`, key: keyPem(pair.privateKey) }
}

function networkDocument(ca: Authority, lifetime: { notBefore: Date; notAfter: Date }): Promise<string> {
  const signer = newKeyPair()
  const leaf = makeInfrastructureLeaf(ca, 'authority', `spiffe://${TRUST_DOMAIN}/authority/a1`, {
    ...lifetime,
    publicKey: signer.publicKey,
  })
  return encodeNetworkDocument({
    document: networkDocumentSchema.parse({
      tenant: 'default',
      network: 'default',
      pools: [POOL_V4, POOL_V6].map(formatPrefix),
      keyPrefix: formatPrefix(KEY_PREFIX),
      trustDomain: TRUST_DOMAIN,
      number: 1,
      issuedAt: new Date().toISOString(),
    }),
    certificates: [leaf.der, ca.certificate.der],
    sign: (data) => sign('sha256', data, signer.privateKey),
  })
}

function pem(der: Buffer): string {
  return derToPem(der, 'CERTIFICATE')
}

function keyPem(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }).toString()
}
