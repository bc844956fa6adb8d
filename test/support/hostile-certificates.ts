/**
 * Certificates, CRLs and network documents that are in order and were made for somebody else, or for another time: what
 * a hostile server may have come by. They are made with the real keys of a lab's CAs, so that only the guard under test
 * stands in their way.
 */
import { createPrivateKey, createPublicKey, randomBytes, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { keyAddress } from '../../src/core/ipam/key-address.ts'
import { parsePrefix } from '../../src/core/ipam/prefix.ts'
import { encodeNetworkDocument } from '../../src/core/messages/network-document.ts'
import { networkDocumentSchema, type NetworkDocument } from '../../src/core/messages/network.ts'
import { wireGuardKeyFromBytes, type WireGuardKey } from '../../src/core/wireguard/key.ts'
import { x25519PublicFromPrivate } from '../../src/core/wireguard/x25519.ts'
import { parseCertificate, type Certificate } from '../../src/core/x509/certificate.ts'
import { encodeCrlEntry, encodeTbsCertList } from '../../src/core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../../src/core/x509/encode.ts'
import {
  extendedKeyUsage,
  ipAddrBlocks,
  nameConstraintsUri,
  servedNetworksExtension,
  subjectAltName,
} from '../../src/core/x509/extensions.ts'
import { OID } from '../../src/core/x509/oids.ts'
import { pemToDer, pemToDerAll } from '../../src/core/x509/pem.ts'
import type { Serial } from '../../src/core/x509/serial.ts'
import { makeCa, makeDevice, makeGateway, OIDS, type Authority } from './certificates.ts'
import type { Lab } from './lab.ts'

export const TRUST_DOMAIN = 'certpeer.internal'
const HOUR = 3_600_000

export function newKey(): WireGuardKey {
  return wireGuardKeyFromBytes(x25519PublicFromPrivate(randomBytes(32)))
}

/** A moment from now, in milliseconds. */
export function fromNow(ms: number): Date {
  return new Date(Date.now() + ms)
}

/** The CAs of a lab with their keys. */
export interface LabPki {
  readonly root: Authority
  readonly deviceCa: Authority
  readonly infrastructureCa: Authority
  readonly keyPrefix: string
}

export function readLabPki(lab: Lab): LabPki {
  const ca = join(lab.stateDir, 'ca')
  const state = JSON.parse(readFileSync(join(lab.stateDir, 'state.json'), 'utf8')) as { keyPrefix: string }
  return {
    root: readAuthority(join(ca, 'root.pem'), join(lab.stateDir, 'root', 'root.key')),
    deviceCa: readAuthority(join(ca, 'issuers', 'device-default.pem'), join(ca, 'keys', 'device-default.key')),
    infrastructureCa: readAuthority(join(ca, 'issuers', 'infrastructure.pem'), join(ca, 'keys', 'infrastructure.key')),
    keyPrefix: state.keyPrefix,
  }
}

function readAuthority(certificatePath: string, keyPath: string): Authority {
  const privateKey = createPrivateKey(readFileSync(keyPath))
  const certificate = parseCertificate(pemToDer(readFileSync(certificatePath, 'utf8')))
  return { certificate, privateKey, publicKey: createPublicKey(privateKey) }
}

/** The leaf of a credential directory, as it is now. */
export function readLeaf(dir: string): Certificate {
  const [leaf] = pemToDerAll(readFileSync(join(dir, 'certificate.pem'), 'utf8'))
  if (leaf === undefined) throw new Error(`${dir} holds no certificate`)
  return parseCertificate(leaf)
}

/** The device CA of another tenant, under the same root. */
export function makeTenantCa(pki: LabPki, tenant: string): Authority {
  const validity = { notBefore: fromNow(-HOUR), notAfter: fromNow(1000 * HOUR) }
  return makeCa(pki.root, `${tenant} devices`, validity, {
    extendedKeyUsage: extendedKeyUsage([OID.clientAuth, OIDS.roles.device]),
    nameConstraints: nameConstraintsUri([`${tenant}.${TRUST_DOMAIN}`]),
    ipAddrBlocks: ipAddrBlocks([parsePrefix('10.88.0.0/16'), parsePrefix(pki.keyPrefix)]),
  })
}

export interface MintedDevice {
  readonly id: string
  readonly address: string
  readonly key?: WireGuardKey
  readonly tenant?: string
  readonly network?: string
  readonly notBefore?: Date
  readonly notAfter?: Date
  readonly ca?: Authority
}

/** A device certificate that is in order in itself. */
export function mintDevice(pki: LabPki, parts: MintedDevice): Certificate {
  const { id, address, key = newKey(), tenant = 'default', network = 'default', ca = pki.deviceCa } = parts
  return makeDevice(ca, {
    key,
    uri: `spiffe://${tenant}.${TRUST_DOMAIN}/network/${network}/device/${id}`,
    notBefore: parts.notBefore ?? fromNow(-60_000),
    notAfter: parts.notAfter ?? fromNow(HOUR),
    extensions: {
      ipAddrBlocks: ipAddrBlocks([parsePrefix(address), keyAddress(parsePrefix(pki.keyPrefix), key)]),
    },
  })
}

/** A gateway certificate that is in order in itself; it serves `network`. */
export function mintGateway(
  ca: Authority,
  parts: { name: string; network: string; key?: WireGuardKey; notBefore?: Date; notAfter?: Date },
): Certificate {
  const { name, network, key = newKey() } = parts
  return makeGateway(ca, {
    key,
    notBefore: parts.notBefore ?? fromNow(-60_000),
    notAfter: parts.notAfter ?? fromNow(HOUR),
    addresses: [parsePrefix('10.88.0.0/16')],
    extensions: {
      subjectAltName: subjectAltName({ uris: [`spiffe://${TRUST_DOMAIN}/gateway/${name}`], ips: ['10.88.0.77'] }),
      servedNetworks: servedNetworksExtension(OIDS, [network]),
    },
  })
}

export function signCrl(
  ca: Authority,
  parts: { number: bigint; revoked?: readonly Serial[]; thisUpdate?: Date; signer?: Authority },
): Buffer {
  const thisUpdate = parts.thisUpdate ?? fromNow(-1000)
  const entries = (parts.revoked ?? []).map((serial) =>
    encodeCrlEntry({ serial, revokedAt: thisUpdate, reason: 'keyCompromise' }),
  )
  const tbs = encodeTbsCertList({
    issuer: ca.certificate,
    thisUpdate,
    nextUpdate: new Date(thisUpdate.getTime() + 24 * HOUR),
    number: parts.number,
    entries: Buffer.concat(entries),
    oids: OIDS,
  })
  const { privateKey, publicKey } = parts.signer ?? ca
  const algorithm = signatureAlgorithmFor(publicKey)
  return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, privateKey))
}

/** The payload of a network document, believed by nobody yet. */
export function readPayload(jws: string): NetworkDocument {
  return JSON.parse(Buffer.from(jws.split('.')[1] ?? '', 'base64url').toString()) as NetworkDocument
}

/** A network document with other content under the signature of the real one. */
export function changePayload(jws: string, changes: Partial<NetworkDocument>): string {
  const [header = '', , signature = ''] = jws.split('.')
  const payload = Buffer.from(JSON.stringify({ ...readPayload(jws), ...changes })).toString('base64url')
  return [header, payload, signature].join('.')
}

/** A network document signed by whoever's credential directory this is: it is in order, and the signer is no authority. */
export function signDocument(jws: string, changes: Partial<NetworkDocument>, signerDir: string): Promise<string> {
  const [leaf, issuer] = pemToDerAll(readFileSync(join(signerDir, 'certificate.pem'), 'utf8'))
  if (leaf === undefined || issuer === undefined) throw new Error(`${signerDir} holds no chain`)
  const key = createPrivateKey(readFileSync(join(signerDir, 'tls.key')))
  return encodeNetworkDocument({
    document: networkDocumentSchema.parse({ ...readPayload(jws), ...changes }),
    certificates: [leaf, issuer],
    sign: (data) => sign('sha256', data, key),
  })
}
