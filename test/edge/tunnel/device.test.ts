/** Both backends on a real wireguard-go: the same table, and the quirks that reconciling has to live with. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { CertpeerError } from '../../../src/core/errors.ts'
import { formatPrefix, hostPrefix, parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { diffPeers } from '../../../src/core/wireguard/diff.ts'
import { wireGuardKeyFromBytes, type WireGuardKey } from '../../../src/core/wireguard/key.ts'
import type { DeviceState, PeerChange } from '../../../src/core/wireguard/types.ts'
import { x25519PublicFromPrivate } from '../../../src/core/wireguard/x25519.ts'
import { openInterface, type TunnelInterface } from '../../../src/edge/tunnel/interface.ts'
import type { ConfigurableDevice } from '../../../src/edge/tunnel/port.ts'
import { UAPI_DIRECTORY, UapiDevice } from '../../../src/edge/tunnel/uapi.ts'
import { WgDevice } from '../../../src/edge/tunnel/wg.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { createNetworkNamespace, uniqueInterface, withoutWireGuard } from '../../support/network-namespace.ts'
import type { NetworkNamespace } from '../../support/network-namespace.ts'

const skip = withoutWireGuard()

function newKey(): { privateKey: Buffer; publicKey: WireGuardKey } {
  const privateKey = randomBytes(32)
  return { privateKey, publicKey: wireGuardKeyFromBytes(x25519PublicFromPrivate(privateKey)) }
}

function setPeer(publicKey: WireGuardKey, ...allowedIps: readonly string[]): PeerChange {
  return { kind: 'set', peer: { publicKey, allowedIps: allowedIps.map(parsePrefix) } }
}

function dump(state: DeviceState): Record<string, string[]> {
  return Object.fromEntries([...state.peers].map(([key, peer]) => [key, peer.allowedIps.map(formatPrefix).sort()]))
}

const rejectsWith = (code: string) => (error: unknown) => error instanceof CertpeerError && error.code === code

for (const backend of ['uapi', 'wg'] as const) {
  describe(`a real device through ${backend}`, { skip }, () => {
    let namespace: NetworkNamespace
    let tunnel: TunnelInterface
    let device: ConfigurableDevice
    let folder: string
    const name = uniqueInterface()
    const own = newKey()
    const socketPath = join(UAPI_DIRECTORY, `${name}.sock`)

    before(async () => {
      namespace = await createNetworkNamespace()
      folder = mkdtempSync(join(tmpdir(), 'certpeer-device-'))
      tunnel = await openInterface({ name, backend, log: silentLogger(), run: namespace.run })
      device = backend === 'uapi' ? new UapiDevice({ socketPath }) : new WgDevice({ name, run: namespace.run })
      const privateKeyFile = join(folder, 'wireguard.key')
      writeFileSync(privateKeyFile, `${own.privateKey.toString('base64')}\n`, { mode: 0o600 })
      await device.setIdentity({ privateKeyFile, listenPort: 40_000 + Math.floor(Math.random() * 20_000) })
    })
    after(async () => {
      device.close()
      await tunnel.remove()
      await namespace.remove()
      rmSync(folder, { recursive: true })
    })

    async function clear(): Promise<void> {
      const { peers } = await device.read()
      await device.apply([...peers.keys()].map((publicKey) => ({ kind: 'remove', publicKey })))
    }

    test('reading gives the own public key, the port and no peer', async () => {
      const state = await device.read()
      assert.equal(state.publicKey, own.publicKey)
      assert.ok(state.listenPort >= 40_000)
      assert.equal(state.peers.size, 0)
    })

    test('a peer is set, narrowed, widened with IPv6 and removed; setting it again changes nothing', async () => {
      const { publicKey } = newKey()
      await device.apply([setPeer(publicKey, '10.9.0.1/32', '10.9.0.2/32')])
      assert.deepEqual(dump(await device.read()), { [publicKey]: ['10.9.0.1/32', '10.9.0.2/32'] })
      await device.apply([setPeer(publicKey, '10.9.0.2/32')])
      await device.apply([setPeer(publicKey, '10.9.0.2/32', 'fd00::5/128')])
      await device.apply([setPeer(publicKey, '10.9.0.2/32', 'fd00::5/128')])
      assert.deepEqual(dump(await device.read()), { [publicKey]: ['10.9.0.2/32', 'fd00::5/128'] })
      await device.apply([setPeer(publicKey)])
      assert.deepEqual(dump(await device.read()), { [publicKey]: [] })
      await device.apply([{ kind: 'remove', publicKey }])
      assert.deepEqual(dump(await device.read()), {})
    })

    test('endpoint and keepalive are written and read back', async () => {
      const { publicKey } = newKey()
      const peer = { publicKey, allowedIps: [], endpoint: '127.0.0.1:9', persistentKeepaliveSeconds: 25 }
      await device.apply([{ kind: 'set', peer }])
      const found = (await device.read()).peers.get(publicKey)
      assert.equal(found?.endpoint, '127.0.0.1:9')
      assert.equal(found.persistentKeepaliveSeconds, 25)
      await clear()
    })

    test('an address given to a second peer is taken from the first without an error: only reading back shows it', async () => {
      const [first, second] = [newKey().publicKey, newKey().publicKey]
      await device.apply([setPeer(first, '10.9.0.1/32')])
      await device.apply([setPeer(second, '10.9.0.1/32')])
      const state = await device.read()
      assert.deepEqual(dump(state), { [first]: [], [second]: ['10.9.0.1/32'] })
      const wanted = new Map([
        [first, { allowedIps: [parsePrefix('10.9.0.1/32')] }],
        [second, { allowedIps: [parsePrefix('10.9.0.2/32')] }],
      ])
      await device.apply(diffPeers(wanted, state.peers))
      assert.deepEqual(dump(await device.read()), { [first]: ['10.9.0.1/32'], [second]: ['10.9.0.2/32'] })
      await clear()
    })

    test('the own key as a peer is silently not added', async () => {
      await device.apply([setPeer(own.publicKey, '10.9.0.1/32')])
      assert.equal((await device.read()).peers.size, 0)
    })

    test('removing a peer that is not there is no error', async () => {
      await device.apply([{ kind: 'remove', publicKey: newKey().publicKey }])
    })

    test('a change that cannot be written is refused before anything of its batch is there', async () => {
      const bad: PeerChange = {
        kind: 'set',
        peer: { publicKey: newKey().publicKey, allowedIps: [], endpoint: 'x\ny:1' },
      }
      await assert.rejects(
        device.apply([setPeer(newKey().publicKey, '10.9.0.1/32'), bad]),
        rejectsWith('malformed_request'),
      )
      assert.equal((await device.read()).peers.size, 0)
    })

    test('2 000 peers: set, set again as they are, a tenth removed, all in good time', async () => {
      const keys = Array.from({ length: 2000 }, () => newKey().publicKey)
      const changes = keys.map((publicKey, index) => {
        const allowedIps = [
          hostPrefix(4, 0x0a09_0000n + BigInt(index)),
          hostPrefix(6, (0xfd00n << 112n) + BigInt(index)),
        ]
        return { kind: 'set', peer: { publicKey, allowedIps } } as const
      })
      await device.apply(changes)
      const first = await device.read()
      assert.equal(first.peers.size, 2000)
      await device.apply(changes)
      assert.deepEqual(dump(await device.read()), dump(first))
      assert.deepEqual(diffPeers(new Map(changes.map(({ peer }) => [peer.publicKey, peer])), first.peers), [])
      await device.apply(keys.slice(0, 200).map((publicKey) => ({ kind: 'remove', publicKey })))
      assert.equal((await device.read()).peers.size, 1800)
      await clear()
    })

    test('changes at the same time all arrive', async () => {
      const keys = Array.from({ length: 64 }, () => newKey().publicKey)
      await Promise.all(keys.map((publicKey, index) => device.apply([setPeer(publicKey, `10.9.1.${index}/32`)])))
      assert.equal((await device.read()).peers.size, 64)
      await clear()
    })

    test('a UDP port that is taken is an error', async () => {
      const other = new UapiDevice({ socketPath })
      try {
        const privateKeyFile = join(folder, 'wireguard.key')
        await namespace.exec('ip', 'link', 'set', 'dev', name, 'up')
        const second = uniqueInterface()
        const tunnel2 = await openInterface({ name: second, backend: 'uapi', log: silentLogger(), run: namespace.run })
        try {
          await namespace.exec('ip', 'link', 'set', 'dev', second, 'up')
          const { listenPort } = await device.read()
          const device2 = new UapiDevice({ socketPath: join(UAPI_DIRECTORY, `${second}.sock`) })
          await assert.rejects(device2.setIdentity({ privateKeyFile, listenPort }), rejectsWith('port_in_use'))
          device2.close()
        } finally {
          await tunnel2.remove()
        }
      } finally {
        other.close()
      }
    })
  })
}

describe('the control socket', { skip }, () => {
  let namespace: NetworkNamespace
  let tunnel: TunnelInterface
  const name = uniqueInterface()
  const socketPath = join(UAPI_DIRECTORY, `${name}.sock`)

  before(async () => {
    namespace = await createNetworkNamespace()
    tunnel = await openInterface({ name, backend: 'uapi', log: silentLogger(), run: namespace.run })
  })
  after(async () => {
    await tunnel.remove()
    await namespace.remove()
  })

  test('somebody who begins a request and stalls costs us a timeout, not for ever', async () => {
    const staller = connect(socketPath)
    await new Promise((resolve) => staller.once('connect', resolve))
    staller.write('set=1\n')
    await new Promise((resolve) => setTimeout(resolve, 50))
    const device = new UapiDevice({ socketPath, timeoutMs: 300 })
    await assert.rejects(device.read(), rejectsWith('timeout'))
    staller.destroy()
    // The stalled request has ended; a new connection is made by itself.
    assert.equal((await device.read()).peers.size, 0)
    device.close()
  })

  test('a device that has gone is unavailable, and its going is told once', async () => {
    let lost = 0
    const other = uniqueInterface()
    const opened = await openInterface({
      name: other,
      backend: 'uapi',
      log: silentLogger(),
      run: namespace.run,
      onLost: () => (lost += 1),
    })
    await opened.device.read()
    await namespace.exec('ip', 'link', 'del', 'dev', other)
    await new Promise((resolve) => setTimeout(resolve, 300))
    assert.equal(lost, 1)
    await assert.rejects(opened.device.read(), rejectsWith('unavailable'))
    opened.close()
  })

  test('no answer holds a private key', async () => {
    const text = JSON.stringify(await tunnel.device.read(), (_, value: unknown) =>
      value instanceof Map ? [...(value as ReadonlyMap<string, unknown>)] : value,
    )
    assert.doesNotMatch(text, /private|preshared/i)
  })
})
