/** Addresses, MTU, state and routes of one interface, read and made with ip(8). */
import { CertpeerError } from '../../core/errors.ts'
import { formatPrefix, parseAddress, parsePrefixOrAddress, type Prefix } from '../../core/ipam/prefix.ts'
import type { Logger } from '../../platform/log.ts'
import type { Run } from './wg.ts'

export interface Addressing {
  /** /32 and /128: what lies behind the tunnel is said by routes, never by an on-link prefix. */
  readonly addresses: readonly Prefix[]
  readonly mtu: number
  readonly routes: readonly Prefix[]
}

export interface AddressingState {
  readonly up: boolean
  readonly mtu: number
  readonly addresses: ReadonlySet<string>
  /** Only routes of ours. */
  readonly routes: ReadonlySet<string>
}

const TIMEOUT_MS = 10_000
/** Marks our routes (rtnetlink(7), rtm_protocol): what somebody else routed into the tunnel is left alone. */
const ROUTE_PROTOCOL = '151'

interface IpAddress {
  readonly flags?: readonly string[]
  readonly mtu?: number
  readonly addr_info?: readonly { local?: string; prefixlen?: number; scope?: string }[]
}

export async function readAddressing(name: string, run: Run): Promise<AddressingState> {
  const [links, ...routesByFamily] = await Promise.all([
    ipJson(['addr', 'show', 'dev', name], run),
    readRoutes(name, '-4', run),
    readRoutes(name, '-6', run),
  ])
  const [link] = links as IpAddress[]
  if (link === undefined) throw new CertpeerError('device_failed', `interface ${name} is not there`)
  const addresses = new Set<string>()
  for (const { local, prefixlen, scope } of link.addr_info ?? []) {
    // fe80:: belongs to the kernel.
    if (local !== undefined && scope === 'global') addresses.add(withLength(local, prefixlen))
  }
  return {
    up: link.flags?.includes('UP') === true,
    mtu: link.mtu ?? 0,
    addresses,
    routes: new Set(routesByFamily.flat()),
  }
}

async function readRoutes(name: string, family: '-4' | '-6', run: Run): Promise<string[]> {
  const routes = (await ipJson([family, 'route', 'show', 'dev', name, 'proto', ROUTE_PROTOCOL], run)) as {
    dst?: string
  }[]
  return routes.flatMap(({ dst }) => (dst === undefined ? [] : [routeText(dst, family)]))
}

/** Makes the interface what `wanted` says, changing only what differs. Throws already_exists for a route of others. */
export async function writeAddressing(
  name: string,
  wanted: Addressing,
  { run, log }: { readonly run: Run; readonly log: Logger },
): Promise<void> {
  const state = await readAddressing(name, run)
  if (!state.up || state.mtu !== wanted.mtu) {
    await ip(['link', 'set', 'dev', name, 'mtu', String(wanted.mtu), 'up'], run)
  }
  for (const text of difference(state.routes, wanted.routes.map(formatPrefix))) {
    await ip([familyOf(text), 'route', 'del', text, 'dev', name, 'proto', ROUTE_PROTOCOL], run)
  }
  for (const text of difference(state.addresses, wanted.addresses.map(formatPrefix))) {
    await ip(['addr', 'del', text, 'dev', name], run)
  }
  const missing = (prefixes: readonly Prefix[], have: ReadonlySet<string>) =>
    prefixes.filter((prefix) => !have.has(formatPrefix(prefix)))
  const addresses = missing(wanted.addresses, state.addresses)
  const routes = missing(wanted.routes, state.routes)
  for (const family of [4, 6] as const) {
    try {
      for (const prefix of addresses.filter((address) => address.family === family)) await addAddress(name, prefix, run)
      for (const prefix of routes.filter((route) => route.family === family)) await addRoute(name, prefix, run)
    } catch (error) {
      // Many containers have no IPv6 at all. IPv4 goes on without; with nothing but IPv6 there is nothing to go on with.
      if (family === 4 || !wanted.addresses.some((address) => address.family === 4)) throw error
      log.warn({ interface: name, err: error }, 'ipv6 in the tunnel is not available')
    }
  }
}

async function addAddress(name: string, prefix: Prefix, run: Run): Promise<void> {
  // nodad: nobody else can have an address on a tunnel, and a tentative one answers nothing for a second.
  await ip(['addr', 'add', formatPrefix(prefix), 'dev', name, ...(prefix.family === 6 ? ['nodad'] : [])], run)
}

/** Added, never replaced: `ip route replace` would take the prefix from another interface without a word. */
async function addRoute(name: string, prefix: Prefix, run: Run): Promise<void> {
  const text = formatPrefix(prefix)
  const args = [familyOf(text), 'route', 'add', text, 'dev', name, 'proto', ROUTE_PROTOCOL]
  const { code, stderr } = await run('ip', args, { timeoutMs: TIMEOUT_MS })
  if (code === 0) return
  const [existing] = (await ipJson([familyOf(text), 'route', 'show', 'exact', text], run)) as { dev?: string }[]
  if (existing?.dev === name) return
  if (existing !== undefined) {
    throw new CertpeerError(
      'already_exists',
      `${text} is already routed through ${existing.dev ?? 'something else'}: remove that route, or use another prefix`,
    )
  }
  throw new CertpeerError('device_failed', `route ${text} through ${name} failed: ${stderr.trim().slice(0, 300)}`)
}

async function ip(args: readonly string[], run: Run): Promise<string> {
  const { code, stdout, stderr } = await run('ip', args, { timeoutMs: TIMEOUT_MS })
  if (code === 0) return stdout
  throw new CertpeerError('device_failed', `ip ${args.join(' ')} failed: ${stderr.trim().slice(0, 300)}`)
}

async function ipJson(args: readonly string[], run: Run): Promise<unknown[]> {
  const text = (await ip(['-j', ...args], run)).trim()
  const value: unknown = text === '' ? [] : JSON.parse(text)
  if (!Array.isArray(value)) throw new CertpeerError('device_failed', `ip ${args.join(' ')} did not answer with a list`)
  return value as unknown[]
}

function difference(have: ReadonlySet<string>, wanted: readonly string[]): string[] {
  const keep = new Set(wanted)
  return [...have].filter((text) => !keep.has(text))
}

function familyOf(text: string): string {
  return text.includes(':') ? '-6' : '-4'
}

function withLength(local: string, length: number | undefined): string {
  const address = parseAddress(local)
  // An on-link prefix has host bits set and is none of ours: its text is only there to be different.
  return length === address.length ? formatPrefix(address) : `${local}/${length ?? 0}`
}

function routeText(dst: string, family: string): string {
  if (dst === 'default') return family === '-6' ? '::/0' : '0.0.0.0/0'
  return formatPrefix(parsePrefixOrAddress(dst))
}
