/**
 * The tunnel interface: created or adopted, configured, removed. Kernel WireGuard where the kernel has it, else
 * wireguard-go, started in a session of its own so that it outlives an agent that was killed: tunnels go on, and the
 * next agent adopts the interface by its socket. Needs CAP_NET_ADMIN and nothing else.
 */
import { existsSync } from 'node:fs'
import { readFile, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { CertpeerError, errorCode } from '../../core/errors.ts'
import { formatPrefix, type Prefix } from '../../core/ipam/prefix.ts'
import type { WireGuardKey } from '../../core/wireguard/key.ts'
import type { DeviceState } from '../../core/wireguard/types.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import { run as runProgram } from '../../platform/spawn.ts'
import { readAddressing, writeAddressing } from './addressing.ts'
import type { Addressing } from './addressing.ts'
import type { ConfigurableDevice, WireGuardDevice } from './port.ts'
import { isUapiAlive, UAPI_DIRECTORY, UapiDevice } from './uapi.ts'
import { WgDevice, type Run } from './wg.ts'

export const BACKENDS = ['auto', 'uapi', 'wg'] as const
/**
 * `uapi`: wireguard-go, spoken to over its socket. `wg`: whatever is there, through wg(8). `auto`: the kernel through
 * wg(8) where it has WireGuard, else `uapi`.
 */
export type Backend = (typeof BACKENDS)[number]

export interface InterfaceOptions {
  readonly name: string
  readonly backend: Backend
  readonly log: Logger
  /** Called when a userspace device has gone by itself. */
  readonly onLost?: () => void
  /** Runs ip(8), wg(8) and wireguard-go; another one may put a network namespace in front. */
  readonly run?: Run
}

export interface InterfaceSettings extends Addressing {
  /** The private key in base64, in a file that only its owner can read. */
  readonly privateKeyFile: string
  /** Its public half: an interface that holds another key is somebody else's and is not touched. */
  readonly publicKey: WireGuardKey
  /** Keys that were ours before: an interface that still holds one of them is taken over. */
  readonly formerPublicKeys?: readonly WireGuardKey[]
  /** Absent: any free port, and one that is there is kept. */
  readonly listenPort?: number
}

export interface TunnelInterface {
  readonly name: string
  readonly kind: 'kernel' | 'userspace'
  /** True when it was there before. */
  readonly adopted: boolean
  readonly device: WireGuardDevice
  /** Makes key, port, MTU, addresses and routes what `settings` say. Idempotent; a running session is not touched. */
  configure(settings: InterfaceSettings): Promise<void>
  /** Takes the interface away with its addresses, routes and peers. */
  remove(): Promise<void>
  /** Lets go of the interface and leaves it as it is. */
  close(): void
}

const COMMAND_TIMEOUT_MS = 10_000
/** How long an interface may take to come or to go. */
const SETTLE_MS = 1500
const START_MS = 5000
/** IFNAMSIZ is 16 with the final zero; wireguard-go and sockets take these characters. */
const NAME = /^[A-Za-z0-9_=+-][A-Za-z0-9_=+.-]{0,14}$/
/** Bit of CAP_NET_ADMIN in /proc/self/status (capabilities(7)). */
const CAP_NET_ADMIN = 12n

/** Adopts the interface of that name, or creates it. Throws already_exists when the name belongs to something else. */
export async function openInterface(options: InterfaceOptions): Promise<TunnelInterface> {
  requireName(options.name)
  await requireNetAdmin()
  const run = options.run ?? runProgram
  const found = await findSettled(options.name, run)
  if (found !== undefined) return assemble(options, run, found, true)
  const kind = await create(options, run)
  options.log.info({ interface: options.name, kind }, 'interface created')
  return assemble(options, run, kind, false)
}

/**
 * Removes the interface of that name when it is a WireGuard one; false when there is none. With `publicKey` one that
 * holds another key is somebody else's: it stays, and the answer is false.
 */
export async function removeInterface(name: string, run: Run = runProgram, publicKey?: WireGuardKey): Promise<boolean> {
  requireName(name)
  await requireNetAdmin()
  const found = await findSettled(name, run)
  if (found !== undefined && publicKey !== undefined) {
    const device = openDevice({ name, backend: 'auto' }, run, found)
    try {
      const has = (await device.read()).publicKey
      if (has !== undefined && has !== publicKey) return false
    } finally {
      device.close()
    }
  }
  if (found !== undefined) await removeLink(name, run)
  else await removeStaleSocket(name)
  return found !== undefined
}

/** What is behind an interface of ours without touching it; undefined when there is no such interface here. */
export async function findInterface(name: string, log: Logger): Promise<TunnelInterface | undefined> {
  requireName(name)
  const found = await findSettled(name, runProgram)
  return found === undefined ? undefined : assemble({ name, log, backend: 'auto' }, runProgram, found, true)
}

function assemble(
  options: InterfaceOptions,
  run: Run,
  kind: 'kernel' | 'userspace',
  adopted: boolean,
): TunnelInterface {
  const { name, log } = options
  const device = openDevice(options, run, kind)
  return {
    name,
    kind,
    adopted,
    device,
    async configure(settings) {
      await refuseForeignKey(device, name, settings)
      // Up first: only then is the port bound, and a port that is taken is an error here instead of a dead interface.
      await writeAddressing(name, settings, { run, log })
      const state = await device.read()
      const samePort = settings.listenPort === undefined || state.listenPort === settings.listenPort
      if (state.publicKey !== settings.publicKey || !samePort) await device.setIdentity(settings)
    },
    async remove() {
      device.close()
      await removeLink(name, run)
      log.info({ interface: name }, 'interface removed')
    },
    close: () => device.close(),
  }
}

function openDevice(
  options: Pick<InterfaceOptions, 'name' | 'backend' | 'onLost'>,
  run: Run,
  kind: 'kernel' | 'userspace',
): ConfigurableDevice {
  if (kind === 'kernel' || options.backend === 'wg') return new WgDevice({ name: options.name, run })
  const { onLost } = options
  return new UapiDevice({ socketPath: socketPathOf(options.name), ...(onLost !== undefined && { onLost }) })
}

/**
 * True when key, port, MTU, addresses and routes are what `settings` say: the cheap look before `configure`. `state` is
 * what was read of the device, when it just was.
 */
export async function isConfigured(
  { name, device }: TunnelInterface,
  settings: InterfaceSettings,
  { run = runProgram, state }: { readonly run?: Run; readonly state?: DeviceState } = {},
): Promise<boolean> {
  const { publicKey, listenPort } = state ?? (await device.read())
  if (publicKey !== settings.publicKey) return false
  if (settings.listenPort !== undefined && listenPort !== settings.listenPort) return false
  const addressing = await readAddressing(name, run)
  return (
    addressing.up &&
    addressing.mtu === settings.mtu &&
    sameSet(addressing.addresses, settings.addresses) &&
    sameSet(addressing.routes, settings.routes)
  )
}

function sameSet(have: ReadonlySet<string>, wanted: readonly Prefix[]): boolean {
  const texts = new Set(wanted.map(formatPrefix))
  return texts.size === have.size && [...texts].every((text) => have.has(text))
}

/** Another key is another tunnel, made by hand or by another agent: overwriting it would end it. */
async function refuseForeignKey(device: WireGuardDevice, name: string, settings: InterfaceSettings): Promise<void> {
  const { publicKey } = await device.read()
  if (publicKey === undefined || publicKey === settings.publicKey) return
  if (settings.formerPublicKeys?.includes(publicKey) === true) return
  throw new CertpeerError(
    'already_exists',
    `interface ${name} has another WireGuard key than ours: choose another name, or remove it with ip link del ${name}`,
  )
}

/** As `find`, but gives a device that is just ending or starting the time to do so. */
async function findSettled(name: string, run: Run): Promise<'kernel' | 'userspace' | undefined> {
  const deadline = Date.now() + SETTLE_MS
  for (;;) {
    const found = await find(name, run)
    if (found === 'kernel' || found === 'userspace' || found === undefined) return found
    if (Date.now() >= deadline) throw new CertpeerError('already_exists', found.fault)
    await sleep(50)
  }
}

async function find(name: string, run: Run): Promise<'kernel' | 'userspace' | undefined | { readonly fault: string }> {
  const link = await findLink(name, run)
  if (link === 'wireguard') return 'kernel'
  // The socket is a file for all network namespaces, so that it answers does not yet mean that it is about ours.
  const alive = existsSync(socketPathOf(name)) && (await isUapiAlive(socketPathOf(name)))
  if (link === undefined) {
    return alive
      ? { fault: `interface ${name} is in use in another network namespace; choose another name` }
      : undefined
  }
  return alive ? 'userspace' : { fault: `interface ${name} exists and is not a WireGuard interface` }
}

/** The kind of the link in this network namespace; undefined when there is none of that name. */
async function findLink(name: string, run: Run): Promise<string | undefined> {
  const { code, stdout } = await run('ip', ['-j', '-d', 'link', 'show', 'dev', name], { timeoutMs: COMMAND_TIMEOUT_MS })
  if (code !== 0) return undefined
  const [link] = JSON.parse(stdout) as { linkinfo?: { info_kind?: string } }[]
  return link === undefined ? undefined : (link.linkinfo?.info_kind ?? 'unknown')
}

async function create({ name, backend, log }: InterfaceOptions, run: Run): Promise<'kernel' | 'userspace'> {
  if (backend !== 'uapi') {
    const added = await run('ip', ['link', 'add', 'dev', name, 'type', 'wireguard'], { timeoutMs: COMMAND_TIMEOUT_MS })
    if (added.code === 0) return 'kernel'
    log.debug({ interface: name, reason: added.stderr.trim() }, 'no kernel wireguard')
  }
  // Without -f it goes to the background by itself once TUN device and socket are there, and says what went wrong
  // before. setsid: an interrupt typed at the agent's terminal is not for the tunnel.
  const started = await startUserspace(name, run)
  if (started.code !== 0) {
    // It tells its faults on standard output and fills standard error with a box.
    const said = `${started.stdout}\n${started.stderr}`
      .split('\n')
      .filter((line) => /[a-z]/.test(line) && !line.startsWith('│'))
    throw new CertpeerError(
      'device_failed',
      `neither the kernel nor wireguard-go can make interface ${name}: ${said.join(' | ').slice(-300) || `status ${started.code}`}`,
    )
  }
  const deadline = Date.now() + START_MS
  while (!(await isUapiAlive(socketPathOf(name)))) {
    if (Date.now() >= deadline) {
      throw new CertpeerError('device_failed', `wireguard-go for ${name} opened no socket in ${UAPI_DIRECTORY}`)
    }
    await sleep(20)
  }
  return 'userspace'
}

async function startUserspace(name: string, run: Run) {
  const { LOG_LEVEL: _, ...environment } = process.env
  try {
    return await run('setsid', ['--wait', 'wireguard-go', name], {
      timeoutMs: COMMAND_TIMEOUT_MS,
      // With a log level it would keep our output open for as long as it lives.
      env: environment,
    })
  } catch (cause) {
    if (errorCode(cause) !== 'missing_program') throw cause
    throw new CertpeerError(
      'missing_program',
      'this kernel has no WireGuard and wireguard-go is not installed: install wireguard-go or load the kernel module',
      { cause },
    )
  }
}

async function removeLink(name: string, run: Run): Promise<void> {
  const removed = await run('ip', ['link', 'del', 'dev', name], { timeoutMs: COMMAND_TIMEOUT_MS })
  if (removed.code !== 0 && (await findLink(name, run)) !== undefined) {
    throw new CertpeerError(
      'device_failed',
      `interface ${name} cannot be removed: ${removed.stderr.trim().slice(0, 300)}`,
    )
  }
  // wireguard-go ends by itself when its TUN device is gone; one that was killed before left its socket behind.
  const deadline = Date.now() + SETTLE_MS
  while (!(await removeStaleSocket(name)) && Date.now() < deadline) await sleep(20)
}

/** True when no socket is left; one that still answers is not touched. */
async function removeStaleSocket(name: string): Promise<boolean> {
  const socketPath = socketPathOf(name)
  if (existsSync(socketPath) && !(await isUapiAlive(socketPath))) await unlink(socketPath).catch(() => undefined)
  return !existsSync(socketPath)
}

function socketPathOf(name: string): string {
  return join(UAPI_DIRECTORY, `${name}.sock`)
}

function requireName(name: string): void {
  if (NAME.test(name)) return
  throw new CertpeerError(
    'config_invalid',
    `${JSON.stringify(name.slice(0, 40))} is not an interface name (1 to 15 letters, digits, _ = + . -)`,
  )
}

/** Asked beforehand, because ip(8) and wireguard-go each say it in their own words, or as something else. */
async function requireNetAdmin(): Promise<void> {
  const status = await readFile('/proc/self/status', 'utf8')
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1]
  if (effective !== undefined && ((BigInt(`0x${effective}`) >> CAP_NET_ADMIN) & 1n) === 1n) return
  throw new CertpeerError(
    'missing_privilege',
    'a WireGuard interface needs CAP_NET_ADMIN: run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN',
  )
}
