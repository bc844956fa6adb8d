import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CertpeerError } from '../../../src/core/errors.ts'
import { derIa5String, derOctetString, derPrintableString, derUtf8String } from '../../../src/core/der/writer.ts'
import { wireGuardKeyFromBytes } from '../../../src/core/wireguard/key.ts'
import { parseCertificate } from '../../../src/core/x509/certificate.ts'
import {
  parseWireGuardKeyFromRequest,
  parseWireGuardKeyValue,
  readAccessGroups,
  readServedNetworks,
  readWireGuardKey,
} from '../../../src/core/x509/certpeer-extensions.ts'
import { accessGroupsExtension, wireGuardKeyExtension } from '../../../src/core/x509/extensions.ts'
import { certpeerOids } from '../../../src/core/x509/oids.ts'
import {
  makeDevice,
  makeDeviceCa,
  makeGateway,
  makeInfrastructureCa,
  makeRoot,
  OIDS,
  WIREGUARD_KEY,
} from '../../support/certificates.ts'
import { vectorCertificate } from '../../support/vectors.ts'

const KEY_BYTES = Buffer.from(WIREGUARD_KEY, 'base64')
const KEY_HEX = KEY_BYTES.toString('hex')
/** A key whose text begins with 0, the octet of a SEQUENCE: a bare text must not be taken for DER. */
const KEY_LIKE_SEQUENCE = wireGuardKeyFromBytes(Buffer.from(`d0${'11'.repeat(31)}`, 'hex'))

test('what openssl wrote from a configuration file is read', () => {
  const device = parseCertificate(vectorCertificate('device'))
  assert.deepEqual(readWireGuardKey(device, OIDS), { key: WIREGUARD_KEY, possession: true })
  assert.deepEqual(readAccessGroups(device, OIDS), ['admins', 'staff'])
  assert.deepEqual(readServedNetworks(device, OIDS), [])
})

test('the WireGuard key extension has one encoding', () => {
  const oid = '060c2b0601040181fd5983946c'
  assert.equal(wireGuardKeyExtension(OIDS, WIREGUARD_KEY, false).toString('hex'), `3034${oid}01042430220420${KEY_HEX}`)
  assert.equal(
    wireGuardKeyExtension(OIDS, WIREGUARD_KEY, true).toString('hex'),
    `3043${oid}01043330310420${KEY_HEX}060d2b0601040181fd5983946c0501`,
  )
})

test('extensions under another enterprise number are not ours', () => {
  const device = parseCertificate(vectorCertificate('device'))
  const others = certpeerOids(12_345)
  assert.throws(() => readWireGuardKey(device, others), { code: 'bad_client_certificate' })
  assert.deepEqual(readAccessGroups(device, others), [])
})

for (const pen of [0, -1, 1.5, 2 ** 32, Number.NaN]) {
  test(`the enterprise number ${pen} is refused`, () => {
    assert.throws(() => certpeerOids(pen), { code: 'config_invalid' })
  })
}

test('groups and networks are written ascending, each once, and read so', () => {
  const certificate = makeDevice(makeDeviceCa(makeRoot()), {
    extensions: { accessGroups: accessGroupsExtension(OIDS, ['staff', 'admins', 'staff', 'a-1']) },
  })
  assert.deepEqual(readAccessGroups(certificate, OIDS), ['a-1', 'admins', 'staff'])
  assert.deepEqual(readServedNetworks(makeGateway(makeInfrastructureCa(makeRoot())), OIDS), ['default/default'])
})

for (const [name, value] of [
  ['the canonical SEQUENCE', Buffer.from(`30220420${KEY_HEX}`, 'hex')],
  ['the SEQUENCE with a claim of possession', Buffer.from(`30310420${KEY_HEX}060d2b0601040181fd5983946c0501`, 'hex')],
  ['bare base64', Buffer.from(WIREGUARD_KEY)],
  ['base64 as UTF8String', derUtf8String(WIREGUARD_KEY)],
  ['base64 as IA5String', derIa5String(WIREGUARD_KEY)],
  ['base64 as OCTET STRING', derOctetString(Buffer.from(WIREGUARD_KEY))],
  ['the 32 bytes as OCTET STRING', derOctetString(KEY_BYTES)],
] as const) {
  test(`a CSR may carry its WireGuard key as ${name}`, () => {
    assert.equal(parseWireGuardKeyFromRequest(value), WIREGUARD_KEY)
  })
}

test('a bare key that begins like a SEQUENCE is a key', () => {
  assert.equal(KEY_LIKE_SEQUENCE[0], '0')
  assert.equal(parseWireGuardKeyFromRequest(Buffer.from(KEY_LIKE_SEQUENCE)), KEY_LIKE_SEQUENCE)
})

const alias = Buffer.from(KEY_BYTES)
alias.writeUInt8(alias.readUInt8(31) | 0x80, 31)
for (const [name, value, code] of [
  ['nothing', Buffer.alloc(0), 'malformed_der'],
  ['32 bare bytes', Buffer.alloc(32, 9), 'malformed_der'],
  ['an alias with bit 255 set', derOctetString(alias), 'bad_wireguard_key'],
  ['an alias in base64', derUtf8String(alias.toString('base64')), 'bad_wireguard_key'],
  ['a low-order key', derOctetString(Buffer.alloc(32)), 'bad_wireguard_key'],
  ['base64 with a newline', derUtf8String(`${WIREGUARD_KEY}\n`), 'bad_wireguard_key'],
  ['bare base64 with a newline', Buffer.from(`${WIREGUARD_KEY}\n`), 'malformed_der'],
  ['bare base64 with stray bits', Buffer.from(WIREGUARD_KEY.replace('Q=', 'R=')), 'bad_wireguard_key'],
  ['hex', derUtf8String(KEY_HEX), 'bad_wireguard_key'],
  ['a PrintableString', derPrintableString(WIREGUARD_KEY), 'bad_wireguard_key'],
  ['31 bytes as OCTET STRING', derOctetString(KEY_BYTES.subarray(1)), 'bad_wireguard_key'],
  ['a trailing byte', Buffer.concat([derOctetString(KEY_BYTES), Buffer.of(0)]), 'malformed_der'],
] as const) {
  test(`a CSR whose WireGuard key is ${name} is ${code}`, () => {
    assert.throws(() => parseWireGuardKeyFromRequest(value), { name: 'CertpeerError', code })
  })
}

test('fuzz: arbitrary bytes are refused as DER or as a key, and nothing else happens', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 60 }),
      fc.constantFrom(parseWireGuardKeyFromRequest, parseWireGuardKeyValue),
      (input, parse) => {
        try {
          parse(Buffer.from(input))
        } catch (error) {
          assert.ok(error instanceof CertpeerError)
          assert.ok(error.code === 'malformed_der' || error.code === 'bad_wireguard_key')
        }
      },
    ),
    { numRuns: 2000 },
  )
})
