/** Network namespaces for tests on real WireGuard devices. Names are unique: the sockets' directory is one for all. */
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { run, type RunOptions, type RunResult } from '../../src/platform/spawn.ts'

export interface NetworkNamespace {
  readonly name: string
  /** As `run` of platform/spawn, inside. */
  readonly run: (command: string, args: readonly string[], options: RunOptions) => Promise<RunResult>
  /** Runs a command inside; throws unless it ends with 0; gives its standard output. */
  readonly exec: (command: string, ...args: readonly string[]) => Promise<string>
  readonly remove: () => Promise<void>
}

/** Why real devices cannot be had here; false when they can. For the `skip` of a test. */
export function withoutWireGuard(): string | false {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'
  const capabilities = BigInt(`0x${effective}`)
  // ip netns add mounts, so it wants CAP_SYS_ADMIN (21) beside CAP_NET_ADMIN (12).
  if (((capabilities >> 12n) & 1n) === 0n || ((capabilities >> 21n) & 1n) === 0n) {
    return 'network namespaces need CAP_NET_ADMIN and CAP_SYS_ADMIN: run as root'
  }
  for (const [program, name] of [
    ['wireguard-go', 'wireguard-go'],
    ['wg', 'wireguard-tools'],
    ['ip', 'iproute2'],
  ] as const) {
    if (spawnSync('which', [program]).status !== 0) return `${program} is not installed: apt-get install ${name}`
  }
  return false
}

/** An interface name that no other test has. */
export function uniqueInterface(): string {
  return `wgt${randomBytes(4).toString('hex')}`
}

export async function createNetworkNamespace(): Promise<NetworkNamespace> {
  const name = `cpt-${randomBytes(4).toString('hex')}`
  const inside = (command: string, args: readonly string[]) => ['netns', 'exec', name, command, ...args]
  const exec = async (command: string, args: readonly string[]) => {
    const { code, stdout, stderr } = await run(command, args, { timeoutMs: 10_000 })
    if (code !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`)
    return stdout
  }
  await exec('ip', ['netns', 'add', name])
  await exec('ip', ['-n', name, 'link', 'set', 'lo', 'up'])
  return {
    name,
    run: (command, args, options) => run('ip', inside(command, args), options),
    exec: (command, ...args) => exec('ip', inside(command, args)),
    async remove() {
      await exec('ip', ['netns', 'del', name])
    },
  }
}
