/** One encoder per extension that certpeer issues. Each returns the whole Extension, criticality included. */
import { hash } from 'node:crypto'
import { CertpeerError } from '../errors.ts'
import { readDer } from '../der/reader.ts'
import {
  asciiBytes,
  contextTag,
  derBitString,
  derBoolean,
  derContext,
  derInteger,
  derNull,
  derOctetString,
  derOid,
  derSequence,
  derTlv,
  derUtf8String,
} from '../der/writer.ts'
import { parseAddress, type Prefix } from '../ipam/prefix.ts'
import { wireGuardKeyToBytes, type WireGuardKey } from '../wireguard/key.ts'
import { encodeIpAddrBlocks } from './address-blocks.ts'
import { KEY_USAGES, readSubjectPublicKey, type Certificate, type KeyUsage } from './certificate.ts'
import { encodeExtension } from './encode.ts'
import { OID, type CertpeerOids } from './oids.ts'

/** RFC 5280 4.2.1.9; critical. Without cA it says so by an empty SEQUENCE. */
export function basicConstraints(isCa: boolean, pathLength?: number): Buffer {
  const parts = isCa ? [derBoolean(true)] : []
  if (pathLength !== undefined) parts.push(derInteger(pathLength))
  return encodeExtension(OID.basicConstraints, true, derSequence(...parts))
}

/** RFC 5280 4.2.1.3; critical. */
export function keyUsage(usages: readonly KeyUsage[]): Buffer {
  const bits = usages.map((usage) => KEY_USAGES.indexOf(usage))
  if (bits.length === 0) throw new TypeError('keyUsage needs at least one usage')
  const bitCount = Math.max(...bits) + 1
  const octets = Buffer.alloc(Math.ceil(bitCount / 8))
  for (const bit of bits) octets[bit >> 3] = (octets[bit >> 3] ?? 0) | (0x80 >> (bit & 7))
  return encodeExtension(OID.keyUsage, true, derBitString(octets, octets.length * 8 - bitCount))
}

/** RFC 5280 4.2.1.12; not critical: nginx and browsers do not know our private purposes, path.ts demands them anyway. */
export function extendedKeyUsage(purposes: readonly string[]): Buffer {
  return encodeExtension(OID.extendedKeyUsage, false, derSequence(...purposes.map(derOid)))
}

/** RFC 5280 4.2.1.2. */
export function subjectKeyIdentifier(spki: Buffer): Buffer {
  return encodeExtension(OID.subjectKeyIdentifier, false, derOctetString(keyIdentifier(spki)))
}

/** Leftmost 160 bits of SHA-256 of the subject's public key bits (RFC 7093 section 2, method 1). */
export function keyIdentifier(spki: Buffer): Buffer {
  return hash('sha256', readSubjectPublicKey(readDer(spki)), 'buffer').subarray(0, 20)
}

/** RFC 5280 4.2.1.1: the issuer's own subjectKeyIdentifier. */
export function authorityKeyIdentifier(issuer: Pick<Certificate, 'subjectKeyId'>): Buffer {
  if (issuer.subjectKeyId === undefined) {
    throw new CertpeerError('malformed_certificate', 'the issuing certificate has no subjectKeyIdentifier')
  }
  const value = derContext(0, Buffer.from(issuer.subjectKeyId, 'hex'), false)
  return encodeExtension(OID.authorityKeyIdentifier, false, derSequence(value))
}

/** RFC 5280 4.2.1.6; at least one name. Not critical, because our certificates have a subject. */
export function subjectAltName(names: {
  readonly uris?: readonly string[]
  readonly dns?: readonly string[]
  readonly ips?: readonly string[]
}): Buffer {
  const { uris = [], dns = [], ips = [] } = names
  if (uris.length + dns.length + ips.length === 0) throw new TypeError('subjectAltName needs at least one name')
  return encodeExtension(
    OID.subjectAltName,
    false,
    derSequence(...uris.map(uriName), ...dns.map(dnsName), ...ips.map(ipName)),
  )
}

/** RFC 5280 4.2.1.13: one distribution point with all URLs, which name copies of the same CRL. */
export function crlDistributionPoints(urls: readonly string[]): Buffer {
  const fullName = derContext(0, Buffer.concat(urls.map(uriName)), true)
  return encodeExtension(OID.crlDistributionPoints, false, derSequence(derSequence(derContext(0, fullName, true))))
}

/** RFC 5280 4.2.2.1. */
export function authorityInfoAccess(access: { readonly ocsp?: string; readonly caIssuers?: string }): Buffer {
  const { ocsp, caIssuers } = access
  const descriptions: Buffer[] = []
  if (ocsp !== undefined) descriptions.push(derSequence(derOid(OID.accessOcsp), uriName(ocsp)))
  if (caIssuers !== undefined) descriptions.push(derSequence(derOid(OID.accessCaIssuers), uriName(caIssuers)))
  if (descriptions.length === 0) throw new TypeError('authorityInfoAccess needs at least one URL')
  return encodeExtension(OID.authorityInfoAccess, false, derSequence(...descriptions))
}

/** RFC 5280 4.2.1.10; critical: identities issued below must have one of these hosts (a leading dot: any host under it). */
export function nameConstraintsUri(hosts: readonly string[]): Buffer {
  if (hosts.length === 0) throw new TypeError('name constraints need at least one host')
  const permitted = Buffer.concat(hosts.map((host) => derSequence(uriName(host))))
  return encodeExtension(OID.nameConstraints, true, derSequence(derContext(0, permitted, true)))
}

/** RFC 3779 2.2; not critical: Go's verifier refuses a critical one, and OpenSSL and path.ts enforce it either way. */
export function ipAddrBlocks(prefixes: readonly Prefix[]): Buffer {
  return encodeExtension(OID.ipAddrBlocks, false, encodeIpAddrBlocks(prefixes))
}

/**
 * WireGuardKey ::= SEQUENCE { publicKey OCTET STRING (SIZE (32)), possession OBJECT IDENTIFIER OPTIONAL }
 * Not critical: critical and unknown makes nginx refuse the certificate.
 */
export function wireGuardKeyExtension(oids: CertpeerOids, key: WireGuardKey, possession: boolean): Buffer {
  const proof = possession ? [derOid(oids.possessionV1)] : []
  const value = derSequence(derOctetString(wireGuardKeyToBytes(key)), ...proof)
  return encodeExtension(oids.wireGuardKey, false, value)
}

/** AccessGroups ::= SEQUENCE OF UTF8String, ascending, each once. */
export function accessGroupsExtension(oids: CertpeerOids, groups: readonly string[]): Buffer {
  return encodeExtension(oids.accessGroups, false, encodeTexts(groups))
}

/** ServedNetworks ::= SEQUENCE OF UTF8String, each `<tenant>/<network>`, ascending, each once. */
export function servedNetworksExtension(oids: CertpeerOids, networks: readonly string[]): Buffer {
  return encodeExtension(oids.servedNetworks, false, encodeTexts(networks))
}

/** RFC 6960 4.2.2.2.1: an OCSP signer's own revocation is not asked for; its life is short instead. */
export function ocspNoCheck(): Buffer {
  return encodeExtension(OID.ocspNoCheck, false, derNull())
}

function encodeTexts(texts: readonly string[]): Buffer {
  return derSequence(...[...new Set(texts)].toSorted(byCodeUnit).map(derUtf8String))
}

function byCodeUnit(a: string, b: string): number {
  if (a === b) return 0
  return a < b ? -1 : 1
}

function uriName(uri: string): Buffer {
  return derTlv(contextTag(6, false), asciiBytes(uri))
}

function dnsName(name: string): Buffer {
  return derTlv(contextTag(2, false), asciiBytes(name))
}

function ipName(text: string): Buffer {
  const { family, bits } = parseAddress(text)
  const hex = bits.toString(16).padStart(family === 4 ? 8 : 32, '0')
  return derTlv(contextTag(7, false), Buffer.from(hex, 'hex'))
}
