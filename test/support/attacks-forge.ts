/**
 * Certificates with the lab's real CA keys, or under a CA of one's own: everything that somebody with a stolen CA key,
 * or with none, could put before a gateway. All of them are good but for the one thing that a test changes.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, sign, type KeyObject } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { keyAddress } from '../../src/core/ipam/key-address.ts'
import { parsePrefix } from '../../src/core/ipam/prefix.ts'
import type { Role } from '../../src/core/messages/common.ts'
import { wireGuardKeyFromBytes, type WireGuardKey } from '../../src/core/wireguard/key.ts'
import { parseCertificate } from '../../src/core/x509/certificate.ts'
import { encodeTbsCertList } from '../../src/core/x509/crl.ts'
import { assembleSigned, signatureAlgorithmFor } from '../../src/core/x509/encode.ts'
import {
  accessGroupsExtension,
  extendedKeyUsage,
  ipAddrBlocks,
  nameConstraintsUri,
  subjectAltName,
  wireGuardKeyExtension,
} from '../../src/core/x509/extensions.ts'
import { OID } from '../../src/core/x509/oids.ts'
import { pemToDer } from '../../src/core/x509/pem.ts'
import { makeCa, makeLeafDer, OIDS, type Authority } from './certificates.ts'
import type { Lab, Ready } from './lab.ts'

export const TRUST_DOMAIN = 'certpeer.internal'

/** Of the lab's network `default`, as `up` fixed it on its first run. */
export function readPlan(lab: Lab): { pools: string[]; keyPrefix: string } {
  return JSON.parse(readFileSync(join(lab.stateDir, 'state.json'), 'utf8')) as { pools: string[]; keyPrefix: string }
}

/** For `up`: room for a second network of the same tenant. */
const BLOCKS = '10.88.0.0/16,fd88:0:0:10::/60'

/** `certpeer up` with two networks, `default` and `other`, side by side in the blocks of one tenant's CA. */
export async function upWithTwoNetworks(lab: Lab): Promise<Ready> {
  const ready = await lab.up(['--network', BLOCKS])
  await applyNetwork(lab, { name: 'default', possession: 'required' })
  await applyNetwork(lab, { name: 'other', possession: 'optional' })
  return ready
}

export async function applyNetwork(
  lab: Lab,
  { name, possession }: { name: 'default' | 'other'; possession: 'required' | 'optional' },
): Promise<void> {
  const plan = {
    default: { pools: ['10.88.0.0/17', 'fd88:0:0:10::/64'], keyPrefix: readPlan(lab).keyPrefix },
    other: { pools: ['10.88.128.0/17'], keyPrefix: 'fd88:0:0:12::/64' },
  }
  // JSON is YAML.
  const input = JSON.stringify({ network: name, possession, ...plan[name] })
  await lab.ok(lab.host, ['network', 'apply', '-'], { input })
}

/** A CA of the lab with its private key. */
export function readRealCa(lab: Lab, name: 'root' | 'device-default' | 'infrastructure'): Authority {
  const [certificate, key] =
    name === 'root' ? ['ca/root.pem', 'root/root.key'] : [`ca/issuers/${name}.pem`, `ca/keys/${name}.key`]
  const privateKey = createPrivateKey(readFileSync(join(lab.stateDir, key)))
  return {
    certificate: parseCertificate(pemToDer(readFileSync(join(lab.stateDir, certificate), 'utf8'))),
    privateKey,
    publicKey: createPublicKey(privateKey),
  }
}

/** A device CA under `root`, for any tenant and with the lab's own blocks. */
export function makeDeviceCa(lab: Lab, root: Authority, tenant: string): Authority {
  const { pools, keyPrefix } = readPlan(lab)
  return makeCa(root, `device CA ${tenant}`, validity(365), {
    extendedKeyUsage: extendedKeyUsage([OID.clientAuth, OIDS.roles.device]),
    nameConstraints: nameConstraintsUri([`${tenant}.${TRUST_DOMAIN}`]),
    ipAddrBlocks: ipAddrBlocks([...pools, keyPrefix].map((text) => parsePrefix(text))),
  })
}

export interface ForgedLeaf {
  readonly der: Buffer
  readonly serial: string
  readonly uri: string
  readonly tlsKey: KeyObject
  readonly wireGuardKey: WireGuardKey
}

export interface LeafWish {
  readonly role?: Role
  readonly uri?: string
  readonly addresses?: readonly string[]
  readonly key?: WireGuardKey
  readonly groups?: readonly string[]
  /** Replaces extensions by name. */
  readonly extensions?: Readonly<Record<string, Buffer | null>>
  readonly notAfter?: Date
}

let made = 0

/** A device's certificate that a gateway of `default/default` would take, unless `wish` spoils it. */
export function forgeLeaf(lab: Lab, ca: Authority, wish: LeafWish = {}): ForgedLeaf {
  const { keyPrefix } = readPlan(lab)
  made += 1
  const tls = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const key = wish.key ?? newWireGuardKey()
  const uri = wish.uri ?? `spiffe://default.${TRUST_DOMAIN}/network/default/device/forged-${made}`
  const addresses = wish.addresses ?? [`10.88.100.${made}/32`]
  const der = makeLeafDer(
    ca,
    `forged-${made}`,
    wish.role ?? 'device',
    {
      ...validity(1),
      ...(wish.notAfter === undefined ? {} : { notAfter: wish.notAfter }),
      publicKey: tls.publicKey,
      ...(wish.extensions === undefined ? {} : { extensions: wish.extensions }),
    },
    {
      subjectAltName: subjectAltName({ uris: [uri] }),
      ipAddrBlocks: ipAddrBlocks([
        ...addresses.map((text) => parsePrefix(text)),
        keyAddress(parsePrefix(keyPrefix), key),
      ]),
      wireGuardKey: wireGuardKeyExtension(OIDS, key, true),
      accessGroups: accessGroupsExtension(OIDS, wish.groups ?? []),
    },
  )
  return { der, serial: parseCertificate(der).serial, uri, tlsKey: tls.privateKey, wireGuardKey: key }
}

export function newWireGuardKey(): WireGuardKey {
  const { publicKey } = generateKeyPairSync('x25519')
  return wireGuardKeyFromBytes(publicKey.export({ type: 'spki', format: 'der' }).subarray(-32))
}

/** A CRL that revokes nobody, fresh now. */
export function makeEmptyCrl(ca: Authority, number = BigInt(Date.now())): Buffer {
  const now = Math.floor(Date.now() / 1000) * 1000
  const tbs = encodeTbsCertList({
    issuer: ca.certificate,
    thisUpdate: new Date(now - 1000),
    nextUpdate: new Date(now + 3_600_000),
    number,
    entries: Buffer.alloc(0),
    oids: OIDS,
  })
  const algorithm = signatureAlgorithmFor(ca.publicKey)
  return assembleSigned(tbs, algorithm.der, sign(algorithm.hash, tbs, ca.privateKey))
}

function validity(days: number): { notBefore: Date; notAfter: Date } {
  const now = Math.floor(Date.now() / 1000) * 1000
  return { notBefore: new Date(now - 60_000), notAfter: new Date(now + days * 86_400_000) }
}
