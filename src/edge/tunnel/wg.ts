/**
 * A WireGuard device through wg(8), whatever is behind it: the kernel's own, or a userspace one. Starting a program
 * costs 2 to 4 ms a time, so changes go in batches, all as arguments of one `wg set`: public keys, addresses and
 * endpoints are public, and secrets go by the name of a file. `wg setconf` is not used, because it replaces every peer
 * and so ends every session.
 */
import { CertpeerError } from '../../core/errors.ts'
import { formatPrefix } from '../../core/ipam/prefix.ts'
import { parseNumericEndpoint } from '../../core/wireguard/endpoint.ts'
import { parseWgDump } from '../../core/wireguard/showconf.ts'
import type { DeviceState, PeerChange } from '../../core/wireguard/types.ts'
import type { run } from '../../platform/spawn.ts'
import type { ConfigurableDevice } from './port.ts'

export type Run = typeof run

const TIMEOUT_MS = 15_000
const MAX_OUTPUT_BYTES = 128 * 1024 * 1024
/** Well below the kernel's limits for all arguments (a quarter of the stack limit, 2 MB) and for one (128 KiB). */
const MAX_ARGUMENT_BYTES = 256 * 1024
const MAX_ONE_ARGUMENT_BYTES = 120 * 1024

export class WgDevice implements ConfigurableDevice {
  readonly #name: string
  readonly #run: Run

  constructor(options: { readonly name: string; readonly run: Run }) {
    this.#name = options.name
    this.#run = options.run
  }

  async read(): Promise<DeviceState> {
    // The output holds the private key: it goes to the parser and nowhere else.
    return parseWgDump(await this.#wg(['show', this.#name, 'dump']))
  }

  async apply(changes: readonly PeerChange[]): Promise<void> {
    const batches = splitBatches(changes.map(changeArguments))
    for (const batch of batches) await this.#wg(['set', this.#name, ...batch])
  }

  async setIdentity({ privateKeyFile, listenPort }: { privateKeyFile: string; listenPort?: number }): Promise<void> {
    const port = listenPort === undefined ? [] : ['listen-port', String(listenPort)]
    await this.#wg(['set', this.#name, 'private-key', privateKeyFile, ...port])
  }

  close(): void {
    // Nothing is kept open between two programs.
  }

  async #wg(args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.#run('wg', args, { timeoutMs: TIMEOUT_MS, maxBytes: MAX_OUTPUT_BYTES })
    if (code === 0) return stdout
    // wg names the argument it did not like; all of ours are public.
    const reason = stderr.trim().split('\n')[0] ?? ''
    throw new CertpeerError('device_failed', `wg ${args[0] ?? ''} ${this.#name} failed: ${reason.slice(0, 300)}`)
  }
}

function changeArguments(change: PeerChange): string[] {
  if (change.kind === 'remove') return ['peer', change.publicKey, 'remove']
  const { publicKey, allowedIps, endpoint, persistentKeepaliveSeconds } = change.peer
  const list = allowedIps.map(formatPrefix).join(',')
  if (list.length > MAX_ONE_ARGUMENT_BYTES) {
    throw new CertpeerError('device_failed', `peer ${publicKey} has too many AllowedIPs for one argument of wg set`)
  }
  return [
    'peer',
    publicKey,
    ...(endpoint === undefined ? [] : ['endpoint', parseNumericEndpoint(endpoint)]),
    ...(persistentKeepaliveSeconds === undefined ? [] : ['persistent-keepalive', String(persistentKeepaliveSeconds)]),
    // Replaces them; an empty list takes them all away (wg(8)).
    'allowed-ips',
    list,
  ]
}

function splitBatches(changes: readonly string[][]): string[][] {
  const batches: string[][] = []
  let batch: string[] = []
  let bytes = 0
  for (const args of changes) {
    const size = args.reduce((sum, argument) => sum + argument.length + 9, 0) // its end and a pointer
    if (bytes > 0 && bytes + size > MAX_ARGUMENT_BYTES) {
      batches.push(batch)
      batch = []
      bytes = 0
    }
    batch.push(...args)
    bytes += size
  }
  if (batch.length > 0) batches.push(batch)
  return batches
}
