/** The gateway's interface as the loop needs it: a device that is put back in place when it has gone or was changed. */
import { isDeepStrictEqual } from 'node:util'
import { errorCode } from '../../core/errors.ts'
import type { Prefix } from '../../core/ipam/prefix.ts'
import type { VerifiedNetworkDocument } from '../../core/messages/network-document.ts'
import type { DeviceState, PeerChange } from '../../core/wireguard/types.ts'
import type { Logger } from '../../platform/log.ts'
import { isConfigured, openInterface, removeInterface } from '../tunnel/interface.ts'
import type { Backend, InterfaceSettings, TunnelInterface } from '../tunnel/interface.ts'
import type { Run } from '../tunnel/wg.ts'
import type { RepairableDevice } from './loop.ts'

const DEFAULT_MTU = 1420

export interface ManagedTunnelOptions {
  readonly name: string
  readonly backend: Backend
  readonly log: Logger
  /** What the interface shall be by now. */
  readonly settings: () => InterfaceSettings
  readonly onLost: () => void
  readonly run?: Run
}

export class ManagedTunnel implements RepairableDevice {
  readonly #options: ManagedTunnelOptions
  #tunnel: TunnelInterface | undefined
  /** What was refused last time, so that it is told once and not at every look. */
  #refused: InterfaceSettings | undefined
  /** Made or configured by us: one that was found and refused is somebody else's. */
  #isOurs = false

  constructor(options: ManagedTunnelOptions) {
    this.#options = options
  }

  /** Opens and configures for the first time; a fault that only people can mend is thrown. */
  async start(): Promise<void> {
    const tunnel = await this.#open()
    this.#isOurs = !tunnel.adopted
    await tunnel.configure(this.#options.settings())
    this.#isOurs = true
  }

  async repair(): Promise<DeviceState> {
    const { log, run } = this.#options
    const settings = this.#options.settings()
    const { tunnel, state } = await this.#reach()
    if (await isConfigured(tunnel, settings, { state, ...(run !== undefined && { run }) })) return state
    try {
      await tunnel.configure(settings)
      this.#refused = undefined
      log.info({ interface: tunnel.name }, 'interface configured')
    } catch (err) {
      const code = errorCode(err)
      if (code !== 'already_exists' && code !== 'device_failed') throw err
      // An interface that has another key now is not ours any more, and its peers are none of ours.
      if ((await tunnel.device.read()).publicKey !== settings.publicKey) throw err
      // A route that somebody else has is no reason to take every peer away.
      if (!isDeepStrictEqual(settings, this.#refused)) log.error({ err }, 'interface cannot be configured')
      this.#refused = settings
    }
    return tunnel.device.read()
  }

  async read(): Promise<DeviceState> {
    return (await this.#open()).device.read()
  }

  async apply(changes: readonly PeerChange[]): Promise<void> {
    await (await this.#open()).device.apply(changes)
  }

  /** Takes the interface away, also when it does not answer just now. */
  async remove(): Promise<void> {
    const { name, run } = this.#options
    this.#tunnel?.close()
    // Never opened: whatever has that name is not ours.
    if (!this.#isOurs) return
    await removeInterface(name, run)
    this.#options.log.info({ interface: name }, 'interface removed')
  }

  async #open(): Promise<TunnelInterface> {
    this.#tunnel ??= await openInterface(this.#options)
    return this.#tunnel
  }

  /** The tunnel with what it has; made anew when the one that was open does not answer any more. */
  async #reach(): Promise<{ tunnel: TunnelInterface; state: DeviceState }> {
    const tunnel = await this.#open()
    try {
      return { tunnel, state: await tunnel.device.read() }
    } catch (err) {
      this.#options.log.warn({ err, interface: tunnel.name }, 'interface does not answer')
      tunnel.close()
      this.#tunnel = undefined
      const reopened = await this.#open()
      return { tunnel: reopened, state: await reopened.device.read() }
    }
  }
}

/** What goes into the tunnel: the pools and key addresses of the networks. What lies behind the gateway does not. */
export function tunnelRoutes(documents: Iterable<VerifiedNetworkDocument>): Prefix[] {
  return [...documents].flatMap(({ pools, keyPrefix }) => [...pools, keyPrefix])
}

/** The smallest of the networks' MTUs: an interface has one. */
export function tunnelMtu(documents: Iterable<VerifiedNetworkDocument>): number {
  const mtus = [...documents].map(({ document }) => document.mtu)
  return mtus.length === 0 ? DEFAULT_MTU : Math.min(...mtus)
}
