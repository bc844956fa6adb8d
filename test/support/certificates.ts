/**
 * Makes hierarchies for tests: a root, a device CA, an infrastructure CA and leaves, each with parts that a test may
 * replace by what must be refused. Keys are P-256 and made anew; instants are fixed.
 */
import { generateKeyPairSync, randomBytes, sign, type KeyObject } from 'node:crypto'
import type { OperatorRole, Role } from '../../src/core/messages/common.ts'
import { keyAddress } from '../../src/core/ipam/key-address.ts'
import { parsePrefix, type Prefix } from '../../src/core/ipam/prefix.ts'
import { parseWireGuardKey, type WireGuardKey } from '../../src/core/wireguard/key.ts'
import { parseCertificate, type Certificate } from '../../src/core/x509/certificate.ts'
import { assembleSigned, encodeName, encodeTbsCertificate, signatureAlgorithmFor } from '../../src/core/x509/encode.ts'
import {
  accessGroupsExtension,
  authorityKeyIdentifier,
  basicConstraints,
  extendedKeyUsage,
  ipAddrBlocks,
  keyUsage,
  nameConstraintsUri,
  servedNetworksExtension,
  subjectAltName,
  subjectKeyIdentifier,
  wireGuardKeyExtension,
} from '../../src/core/x509/extensions.ts'
import { certpeerOids, DEFAULT_PEN, OID } from '../../src/core/x509/oids.ts'
import { newSerial, type Serial } from '../../src/core/x509/serial.ts'

export const OIDS = certpeerOids(DEFAULT_PEN)
export const TRUST_DOMAIN = 'certpeer.test'
export const NOW = new Date('2026-11-20T12:00:00Z')
/** Public key of the private key 01…01, as `wg pubkey` prints it. */
export const WIREGUARD_KEY = parseWireGuardKey('pOCSkraZjOHuCDTnxH8qBTVzL4kQhAS9jxXKDTkT5VQ=')
export const KEY_PREFIX = parsePrefix('fd00:0:0:ff::/64')

export interface Authority {
  readonly certificate: Certificate
  readonly publicKey: KeyObject
  readonly privateKey: KeyObject
}

/** Every part that a test may replace; extensions by name, `null` leaves one out. */
export interface CertificateParts {
  readonly serial?: Serial
  readonly subjectDer?: Buffer
  readonly issuerDer?: Buffer
  readonly notBefore?: Date
  readonly notAfter?: Date
  readonly publicKey?: KeyObject
  readonly extensions?: Readonly<Record<string, Buffer | null>>
}

export function newKeyPair(namedCurve = 'P-256'): { publicKey: KeyObject; privateKey: KeyObject } {
  return generateKeyPairSync('ec', { namedCurve })
}

export function spkiOf(publicKey: KeyObject): Buffer {
  return publicKey.export({ type: 'spki', format: 'der' })
}

/** A self-signed root with the whole address space. */
export function makeRoot(parts: CertificateParts = {}): Authority {
  const pair = newKeyPair()
  const subjectDer = encodeName('certpeer test root')
  const keyId = subjectKeyIdentifier(spkiOf(pair.publicKey))
  return makeAuthority({ subjectDer, ...pair }, pair, {
    ...parts,
    extensions: {
      basicConstraints: basicConstraints(true),
      keyUsage: keyUsage(['keyCertSign', 'cRLSign']),
      subjectKeyIdentifier: keyId,
      ipAddrBlocks: ipAddrBlocks([parsePrefix('0.0.0.0/0'), parsePrefix('::/0')]),
      ...parts.extensions,
    },
  })
}

/** A device CA of tenant `default` (or another), with pools 10.88.0.0/16, fd00:0:0:1::/64 and the key prefix. */
export function makeDeviceCa(
  root: Authority,
  parts: CertificateParts = {},
  tenant = 'default',
  pair = newKeyPair(),
): Authority {
  const extensions = {
    extendedKeyUsage: extendedKeyUsage([OID.clientAuth, OIDS.roles.device]),
    nameConstraints: nameConstraintsUri([`${tenant}.${TRUST_DOMAIN}`]),
    ipAddrBlocks: ipAddrBlocks([parsePrefix('10.88.0.0/16'), parsePrefix('fd00:0:0:1::/64'), KEY_PREFIX]),
  }
  return makeCa(root, `${tenant} devices`, parts, extensions, pair)
}

/** The CA of gateways, servers, operators and the authority; its block is the address plan. */
export function makeInfrastructureCa(root: Authority, parts: CertificateParts = {}): Authority {
  const { device: _device, ...roles } = OIDS.roles
  return makeCa(root, 'infrastructure', parts, {
    extendedKeyUsage: extendedKeyUsage([OID.clientAuth, OID.serverAuth, ...Object.values(roles)]),
    ipAddrBlocks: ipAddrBlocks([parsePrefix('10.0.0.0/8'), parsePrefix('fd00::/16')]),
  })
}

export interface DeviceParts extends CertificateParts {
  readonly key?: WireGuardKey
  readonly possession?: boolean
  readonly addresses?: readonly Prefix[]
  readonly uri?: string
}

export function makeDevice(ca: Authority, parts: DeviceParts = {}): Certificate {
  const key = parts.key ?? WIREGUARD_KEY
  const addresses = parts.addresses ?? [parsePrefix('10.88.0.2/32'), parsePrefix('fd00:0:0:1::2/128')]
  return parseCertificate(
    makeLeafDer(ca, 'laptop', 'device', parts, {
      subjectAltName: subjectAltName({
        uris: [parts.uri ?? `spiffe://default.${TRUST_DOMAIN}/network/default/device/d1`],
      }),
      ipAddrBlocks: ipAddrBlocks([...addresses, keyAddress(KEY_PREFIX, key)]),
      wireGuardKey: wireGuardKeyExtension(OIDS, key, parts.possession ?? true),
      accessGroups: accessGroupsExtension(OIDS, ['staff', 'admins']),
    }),
  )
}

export function makeGateway(ca: Authority, parts: DeviceParts = {}): Certificate {
  return parseCertificate(
    makeLeafDer(ca, 'g1', 'gateway', parts, {
      subjectAltName: subjectAltName({
        uris: [parts.uri ?? `spiffe://${TRUST_DOMAIN}/gateway/g1`],
        ips: ['10.88.0.1', 'fd00:0:0:1::1'],
      }),
      ipAddrBlocks: ipAddrBlocks(parts.addresses ?? [parsePrefix('10.88.0.0/16'), parsePrefix('fd00:0:0:1::/64')]),
      wireGuardKey: wireGuardKeyExtension(OIDS, parts.key ?? WIREGUARD_KEY, parts.possession ?? true),
      servedNetworks: servedNetworksExtension(OIDS, ['default/default']),
    }),
  )
}

/** An operator, the authority or a server; `uri` decides which identity it claims. */
export function makeInfrastructureLeaf(
  ca: Authority,
  role: OperatorRole | 'authority' | 'server',
  uri: string,
  parts: CertificateParts = {},
): Certificate {
  return parseCertificate(makeLeafDer(ca, role, role, parts, { subjectAltName: subjectAltName({ uris: [uri] }) }))
}

/** Any leaf, as DER: what parseCertificate must refuse can be made with it, too. */
export function makeLeafDer(
  ca: Authority,
  commonName: string,
  role: Role,
  parts: CertificateParts,
  extensions: Readonly<Record<string, Buffer | null>>,
): Buffer {
  const publicKey = parts.publicKey ?? newKeyPair().publicKey
  const purpose = role === 'server' ? OID.serverAuth : OID.clientAuth
  return encodeSigned(
    ca,
    { subjectDer: encodeName(commonName), publicKey },
    {
      ...parts,
      extensions: {
        keyUsage: keyUsage(['digitalSignature']),
        extendedKeyUsage: extendedKeyUsage([purpose, OIDS.roles[role]]),
        subjectKeyIdentifier: subjectKeyIdentifier(spkiOf(publicKey)),
        authorityKeyIdentifier: authorityKeyIdentifier(ca.certificate),
        ...extensions,
        ...parts.extensions,
      },
    },
  )
}

/** An issuing CA under `root`. */
export function makeCa(
  root: Authority,
  commonName: string,
  parts: CertificateParts,
  extensions: Readonly<Record<string, Buffer | null>>,
  pair = newKeyPair(),
): Authority {
  return makeAuthority(
    { subjectDer: root.certificate.subjectDer, privateKey: root.privateKey, publicKey: root.publicKey },
    pair,
    {
      subjectDer: encodeName(commonName),
      ...parts,
      extensions: {
        basicConstraints: basicConstraints(true, 0),
        keyUsage: keyUsage(['keyCertSign', 'cRLSign']),
        subjectKeyIdentifier: subjectKeyIdentifier(spkiOf(pair.publicKey)),
        authorityKeyIdentifier: authorityKeyIdentifier(root.certificate),
        ...extensions,
        ...parts.extensions,
      },
    },
  )
}

interface SigningName {
  readonly subjectDer: Buffer
  readonly publicKey: KeyObject
  readonly privateKey: KeyObject
}

function makeAuthority(
  issuer: SigningName,
  pair: { publicKey: KeyObject; privateKey: KeyObject },
  parts: CertificateParts,
): Authority {
  const subject = { subjectDer: parts.subjectDer ?? issuer.subjectDer, publicKey: pair.publicKey }
  const der = encodeUnder(issuer, subject, {
    notBefore: new Date(NOW.getTime() - 86_400_000),
    notAfter: new Date(NOW.getTime() + 86_400_000 * 3650),
    ...parts,
  })
  return { certificate: parseCertificate(der), ...pair }
}

function encodeSigned(
  ca: Authority,
  subject: { subjectDer: Buffer; publicKey: KeyObject },
  parts: CertificateParts,
): Buffer {
  const { publicKey, privateKey, certificate } = ca
  return encodeUnder({ subjectDer: certificate.subjectDer, publicKey, privateKey }, subject, parts)
}

function encodeUnder(
  issuer: SigningName,
  subject: { subjectDer: Buffer; publicKey: KeyObject },
  parts: CertificateParts,
): Buffer {
  const algorithm = signatureAlgorithmFor(issuer.publicKey)
  const tbs = encodeTbsCertificate({
    serial: parts.serial ?? newSerial(randomBytes(20)),
    signatureAlgorithm: algorithm.der,
    issuerDer: parts.issuerDer ?? issuer.subjectDer,
    notBefore: parts.notBefore ?? new Date(NOW.getTime() - 300_000),
    notAfter: parts.notAfter ?? new Date(NOW.getTime() + 86_400_000),
    subjectDer: parts.subjectDer ?? subject.subjectDer,
    spki: spkiOf(parts.publicKey ?? subject.publicKey),
    extensions: Object.values(parts.extensions ?? {}).filter((extension) => extension !== null),
  })
  return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, issuer.privateKey))
}
