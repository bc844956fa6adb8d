/** Counts in memory: per route and address, and per route and key. Each process counts for itself. */
import { isIPv6 } from 'node:net'
import { RateLimiterMemory, RateLimiterRes } from 'rate-limiter-flexible'
import type { RateLimit, RateLimits, Route } from './types.ts'

/** Each count is there only when it is limited. Both answer the seconds to wait, or undefined to go on. */
export interface RouteLimiter {
  readonly address: ((remoteAddress: string) => Promise<number | undefined>) | undefined
  readonly keys: ((keys: readonly string[]) => Promise<number | undefined>) | undefined
}

export function createRouteLimiter(route: Route, defaults: RateLimits): RouteLimiter {
  const limits = route.rateLimits ?? defaults
  return {
    address: limits.address && countAddresses(createLimiter(limits.address)),
    keys: limits.key && countKeys(createLimiter(limits.key)),
  }
}

function countAddresses(limiter: RateLimiterMemory): NonNullable<RouteLimiter['address']> {
  // On a unix socket without a front there is nobody to tell apart.
  return async (remoteAddress) => (remoteAddress === 'local' ? undefined : consume(limiter, addressKey(remoteAddress)))
}

function countKeys(limiter: RateLimiterMemory): NonNullable<RouteLimiter['keys']> {
  return async (keys) => {
    let retryAfterSeconds: number | undefined
    for (const key of keys) {
      const wait = await consume(limiter, key)
      if (wait !== undefined) retryAfterSeconds = Math.max(retryAfterSeconds ?? 0, wait)
    }
    return retryAfterSeconds
  }
}

/** An IPv6 caller has a /64 to itself: counting single addresses would count nothing. */
export function addressKey(address: string): string {
  if (!isIPv6(address)) return address
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1]
  if (mapped !== undefined) return mapped
  const [head = '', tail] = (address.split('%')[0] ?? '').toLowerCase().split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = tail === undefined ? 0 : 8 - left.length - right.length - (address.includes('.') ? 1 : 0)
  const groups = [...left, ...Array.from({ length: zeros }, () => '0'), ...right].slice(0, 4)
  return `${groups.map((group) => group.replace(/^0+(?=.)/, '')).join(':')}::/64`
}

function createLimiter(limit: RateLimit): RateLimiterMemory {
  return new RateLimiterMemory({ points: limit.requests, duration: limit.perSeconds })
}

async function consume(limiter: RateLimiterMemory, key: string): Promise<number | undefined> {
  try {
    await limiter.consume(key)
    return undefined
  } catch (refusal) {
    if (refusal instanceof RateLimiterRes) return Math.max(1, Math.ceil(refusal.msBeforeNext / 1000))
    throw refusal
  }
}
