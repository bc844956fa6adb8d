/** Creating, adopting, repairing and removing interfaces, on real ones. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, test } from 'node:test'
import { CertpeerError } from '../../../src/core/errors.ts'
import { parsePrefix } from '../../../src/core/ipam/prefix.ts'
import { wireGuardKeyFromBytes } from '../../../src/core/wireguard/key.ts'
import { x25519PublicFromPrivate } from '../../../src/core/wireguard/x25519.ts'
import {
  isConfigured,
  openInterface,
  removeInterface,
  type InterfaceSettings,
  type TunnelInterface,
} from '../../../src/edge/tunnel/interface.ts'
import { UAPI_DIRECTORY } from '../../../src/edge/tunnel/uapi.ts'
import { silentLogger } from '../../../src/platform/log.ts'
import { createNetworkNamespace, uniqueInterface, withoutWireGuard } from '../../support/network-namespace.ts'
import type { NetworkNamespace } from '../../support/network-namespace.ts'

const log = silentLogger()
const rejectsWith = (code: string) => (error: unknown) => error instanceof CertpeerError && error.code === code

describe('a tunnel interface', { skip: withoutWireGuard() }, () => {
  let namespace: NetworkNamespace
  let folder: string
  let name: string
  let settings: InterfaceSettings

  beforeEach(async () => {
    namespace = await createNetworkNamespace()
    folder = mkdtempSync(join(tmpdir(), 'certpeer-interface-'))
    name = uniqueInterface()
    settings = newSettings('first.key')
  })
  afterEach(async () => {
    await removeInterface(name, namespace.run)
    await namespace.remove()
    rmSync(folder, { recursive: true })
  })

  function newSettings(file: string): InterfaceSettings {
    const privateKey = randomBytes(32)
    const privateKeyFile = join(folder, file)
    writeFileSync(privateKeyFile, privateKey.toString('base64'), { mode: 0o600 })
    return {
      privateKeyFile,
      publicKey: wireGuardKeyFromBytes(x25519PublicFromPrivate(privateKey)),
      listenPort: 40_000 + Math.floor(Math.random() * 20_000),
      addresses: [parsePrefix('10.9.0.1/32'), parsePrefix('fd00:9::1/128')],
      mtu: 1400,
      routes: [parsePrefix('10.9.0.0/16'), parsePrefix('fd00:9::/64')],
    }
  }

  const open = (backend: 'auto' | 'uapi' | 'wg' = 'auto') => openInterface({ name, backend, log, run: namespace.run })

  for (const backend of ['auto', 'uapi', 'wg'] as const) {
    test(`is made, configured and removed with nothing left (${backend})`, async () => {
      const tunnel = await open(backend)
      assert.equal(tunnel.adopted, false)
      await tunnel.configure(settings)
      assert.equal(await isConfigured(tunnel, settings, { run: namespace.run }), true)
      const addresses = await namespace.exec('ip', '-o', 'addr', 'show', 'dev', name)
      assert.match(addresses, /10\.9\.0\.1\/32/)
      assert.match(addresses, /fd00:9::1\/128/)
      assert.match(await namespace.exec('ip', 'route', 'get', '10.9.4.5'), new RegExp(`dev ${name} src 10\\.9\\.0\\.1`))
      assert.match(await namespace.exec('ip', 'link', 'show', 'dev', name), /mtu 1400/)
      await tunnel.remove()
      assert.equal(existsSync(join(UAPI_DIRECTORY, `${name}.sock`)), false)
      assert.equal(await removeInterface(name, namespace.run), false)
    })
  }

  test('is adopted with its peers by the next agent, and configuring again touches no peer', async () => {
    const first = await open()
    await first.configure(settings)
    const peer = wireGuardKeyFromBytes(x25519PublicFromPrivate(randomBytes(32)))
    await first.device.apply([
      { kind: 'set', peer: { publicKey: peer, allowedIps: [parsePrefix('10.9.0.7/32')], endpoint: '127.0.0.1:9' } },
    ])
    first.close() // what kill -9 does to an agent's end of the socket
    const second = await open()
    assert.equal(second.adopted, true)
    await second.configure(settings)
    const state = await second.device.read()
    assert.equal(state.listenPort, settings.listenPort)
    assert.equal(state.peers.get(peer)?.endpoint, '127.0.0.1:9')
    second.close()
  })

  test('settings that somebody changed by hand are seen and put right', async () => {
    const tunnel = await open()
    await tunnel.configure(settings)
    for (const edit of [
      ['ip', 'addr', 'del', '10.9.0.1/32', 'dev', name],
      ['ip', 'addr', 'add', '10.99.0.1/24', 'dev', name],
      ['ip', 'route', 'del', '10.9.0.0/16', 'dev', name],
      ['ip', 'link', 'set', 'dev', name, 'mtu', '1300'],
      ['ip', 'link', 'set', 'dev', name, 'down'],
      ['wg', 'set', name, 'listen-port', '39999'],
    ] as const) {
      const [command, ...args] = edit
      await namespace.exec(command, ...args)
      assert.equal(await isConfigured(tunnel, settings, { run: namespace.run }), false, edit.join(' '))
      await tunnel.configure(settings)
      assert.equal(await isConfigured(tunnel, settings, { run: namespace.run }), true, edit.join(' '))
    }
    tunnel.close()
  })

  test('a route that somebody else put into the tunnel stays', async () => {
    const tunnel = await open()
    await tunnel.configure(settings)
    await namespace.exec('ip', 'route', 'add', '192.0.2.0/24', 'dev', name)
    await tunnel.configure({ ...settings, routes: [] })
    const routes = await namespace.exec('ip', 'route', 'show', 'dev', name)
    assert.match(routes, /192\.0\.2\.0\/24/)
    assert.doesNotMatch(routes, /10\.9\.0\.0\/16/)
    tunnel.close()
  })

  test('a prefix that is routed elsewhere is not taken away from there', async () => {
    await namespace.exec('ip', 'route', 'add', '10.9.0.0/16', 'dev', 'lo')
    const tunnel = await open()
    await assert.rejects(tunnel.configure(settings), rejectsWith('already_exists'))
    assert.match(await namespace.exec('ip', 'route', 'show', '10.9.0.0/16'), /dev lo/)
    tunnel.close()
  })

  test("another agent's interface is left alone", async () => {
    const first = await open()
    await first.configure(settings)
    const second = await open()
    await assert.rejects(second.configure(newSettings('second.key')), rejectsWith('already_exists'))
    assert.equal((await first.device.read()).publicKey, settings.publicKey)
    // Known as a key of ours from before: a gateway that joined anew.
    const third = newSettings('third.key')
    await second.configure({ ...third, formerPublicKeys: [settings.publicKey] })
    assert.equal((await first.device.read()).publicKey, third.publicKey)
    first.close()
    second.close()
  })

  test('a name that another network namespace or another kind of interface has is refused', async () => {
    const tunnel = await open()
    const elsewhere = await createNetworkNamespace()
    try {
      await assert.rejects(
        openInterface({ name, backend: 'auto', log, run: elsewhere.run }),
        rejectsWith('already_exists'),
      )
      await assert.rejects(removeInterface('lo', namespace.run), rejectsWith('already_exists'))
    } finally {
      await elsewhere.remove()
      tunnel.close()
    }
  })

  test('kill -9 of wireguard-go: told, and made anew under the same name over the stale socket', async () => {
    let lost = 0
    const options = { name, backend: 'uapi', log, run: namespace.run, onLost: () => (lost += 1) } as const
    const tunnel = await openInterface(options)
    await tunnel.configure(settings)
    process.kill(findWireGuardGo(name), 'SIGKILL')
    const deadline = Date.now() + 3000
    while (lost === 0 && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 10))
    assert.equal(lost, 1)
    assert.equal(existsSync(join(UAPI_DIRECTORY, `${name}.sock`)), true)
    const again = await openInterface(options)
    assert.equal(again.adopted, false)
    await again.configure(settings)
    assert.equal(await isConfigured(again, settings, { run: namespace.run }), true)
    again.close()
  })

  test('is removed only for the key it holds', async () => {
    const tunnel = await open()
    await tunnel.configure(settings)
    const other = wireGuardKeyFromBytes(x25519PublicFromPrivate(Buffer.alloc(32, 7)))
    assert.equal(await removeInterface(name, namespace.run, other), false)
    assert.equal(await isConfigured(tunnel, settings, { run: namespace.run }), true)
    assert.equal(await removeInterface(name, namespace.run, settings.publicKey), true)
    tunnel.close()
  })

  test('a stale socket alone goes with the interface', async () => {
    for (const remove of [(tunnel: TunnelInterface) => tunnel.remove(), () => removeInterface(name, namespace.run)]) {
      const tunnel = await open('uapi')
      process.kill(findWireGuardGo(name), 'SIGKILL')
      await remove(tunnel)
      assert.equal(existsSync(join(UAPI_DIRECTORY, `${name}.sock`)), false)
      tunnel.close()
    }
  })

  test('wireguard-go has a session of its own and none of our files open', async () => {
    const tunnel = await open('uapi')
    const pid = findWireGuardGo(name)
    const session = (text: string) => text.slice(text.lastIndexOf(')') + 2).split(' ')[3]
    assert.notEqual(
      session(readFileSync(`/proc/${pid}/stat`, 'utf8')),
      session(readFileSync('/proc/self/stat', 'utf8')),
    )
    for (const fd of ['0', '1', '2']) assert.equal(readlinkSync(`/proc/${pid}/fd/${fd}`), '/dev/null')
    tunnel.close()
  })

  test('a bad name is refused before anything is run', async () => {
    for (const bad of ['', 'a'.repeat(16), '../x', 'a b', '-x; rm', '.']) {
      const fail = () => Promise.reject(new Error('ran a program'))
      await assert.rejects(
        openInterface({ name: bad, backend: 'auto', log, run: fail }),
        rejectsWith('config_invalid'),
        bad,
      )
    }
  })
})

/** The process behind an interface of ours, found by its whole command line. */
function findWireGuardGo(name: string): number {
  for (const pid of readdirSync('/proc').filter((entry) => /^[0-9]+$/.test(entry))) {
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
      if (words[0]?.endsWith('wireguard-go') === true && words[1] === name) return Number(pid)
    } catch {
      // It ended while we looked.
    }
  }
  throw new Error(`no wireguard-go for ${name}`)
}
