/** The programs and privileges that `up` relies on. */
import { existsSync } from 'node:fs'
import { run } from '../../platform/spawn.ts'
import { findProgram, hasNetAdmin } from '../local/preflight.ts'
import { fail, pass, warn, type Check, type CheckResult } from './check.ts'

/** nginx 1.13.5 brought $ssl_client_escaped_cert, without which no certificate reaches the application. */
const NGINX_MINIMUM = [1, 13, 5]

export const checkNode: Check = async () => {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  return major > 20 || (major === 20 && minor >= 19)
    ? [pass('node', `Node.js ${process.versions.node}`)]
    : [fail('node', `Node.js ${process.versions.node} is too old`, 'install Node.js 20.19 or later')]
}

export const checkNginx: Check = async () => {
  const path = findProgram('nginx')
  if (!path) return [fail('nginx', 'nginx is missing', 'apt-get install --no-install-recommends nginx-light')]
  const { stderr } = await run(path, ['-V'], { timeoutMs: 10_000 })
  const version = /nginx\/([0-9.]+)/.exec(stderr)?.[1] ?? '0'
  const results: CheckResult[] = []
  if (!atLeast(version, NGINX_MINIMUM)) {
    results.push(fail('nginx', `nginx ${version} at ${path} is too old`, 'install nginx 1.13.5 or later'))
  } else if (!stderr.includes('--with-http_ssl_module')) {
    results.push(fail('nginx', `nginx at ${path} has no TLS`, 'install a build with http_ssl_module'))
  } else {
    const built = /built with (OpenSSL [0-9.a-z]+)/.exec(stderr)?.[1]
    results.push(pass('nginx', `nginx ${version} at ${path}${built === undefined ? '' : `, ${built}`}`))
  }
  return results
}

export const checkWireGuard: Check = async () => {
  const kernel = existsSync('/sys/module/wireguard')
  const userspace = findProgram('wireguard-go')
  const results: CheckResult[] = []
  if (kernel) results.push(pass('wireguard', 'the kernel has WireGuard'))
  else if (userspace && existsSync('/dev/net/tun')) {
    results.push(pass('wireguard', `wireguard-go at ${userspace} (the kernel's module is not loaded)`))
  } else {
    const advice = 'apt-get install --no-install-recommends wireguard-go, and make /dev/net/tun available'
    results.push(fail('wireguard', 'neither WireGuard in the kernel nor wireguard-go with /dev/net/tun', advice))
  }
  if (hasNetAdmin()) results.push(pass('privilege', 'CAP_NET_ADMIN is there: this user can run a gateway'))
  else {
    const advice = 'run the gateway as root or with CAP_NET_ADMIN; everything else runs with `up --no-gateway`'
    results.push(warn('privilege', 'no CAP_NET_ADMIN: this user cannot run a gateway', advice))
  }
  return results
}

/** What is called by name: locks, children that end with their parent, addresses and routes. */
const TOOLS = [
  ['flock', 'util-linux'],
  ['setpriv', 'util-linux'],
  ['ip', 'iproute2'],
] as const

export const checkTools: Check = async () => {
  const missing = TOOLS.filter(([name]) => findProgram(name) === undefined)
  if (missing.length === 0) return [pass('tools', `${TOOLS.map(([name]) => name).join(', ')} are there`)]
  const packages = [...new Set(missing.map(([, name]) => name))].join(' ')
  return [
    fail(
      'tools',
      `missing: ${missing.map(([name]) => name).join(', ')}`,
      `apt-get install --no-install-recommends ${packages}`,
    ),
  ]
}

function atLeast(version: string, minimum: readonly number[]): boolean {
  const parts = version.split('.').map(Number)
  for (const [index, wanted] of minimum.entries()) {
    const part = parts[index] ?? 0
    if (part !== wanted) return part > wanted
  }
  return true
}
