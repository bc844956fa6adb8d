/**
 * Clients of a kill loop, as a program of their own inside a network namespace: devices enroll, are provisioned, renew
 * and are revoked, several at once, and try again as real ones would. Whatever the service has acknowledged is printed
 * at once, a JSON line each; whoever started it compares that with what the service still knows later.
 *
 * Arguments: operator directory, working directory, clients at once. Standard input: a number runs that many rounds,
 * `check` asks what every device is told now. Each is answered by a line when it is done.
 */
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { errorCode } from '../../src/core/errors.ts'
import { parseMessage } from '../../src/core/messages/common.ts'
import { tokenAnswerSchema } from '../../src/core/messages/enrollment.ts'
import { revocationAnswerSchema } from '../../src/core/messages/revocation.ts'
import { peerAnswerSchema } from '../../src/core/messages/views.ts'
import { readDevice, type DeviceFacts } from '../../src/core/x509/path.ts'
import { formatPrefix } from '../../src/core/ipam/prefix.ts'
import { ApiClient } from '../../src/platform/api-client/client.ts'
import { readCredential } from '../../src/platform/credentials.ts'
import { sleep } from '../../src/platform/lifecycle.ts'
import { clientFor, readOwnIdentity } from '../../src/edge/client-certificate.ts'
import { enroll, renew } from '../../src/edge/enrollment.ts'
import { seededRandom } from './random.ts'

/** What the service has said yes to. */
export type Acknowledged =
  | {
      readonly kind: 'certificate'
      readonly device: string
      readonly serial: string
      readonly issuerKeyId: string
      readonly publicKey: string
      readonly allowedIps: readonly string[]
      readonly certificate: string
      readonly renewed: boolean
    }
  | { readonly kind: 'peer'; readonly device: string }
  /** An operator is about to ask: from here on either outcome is right. */
  | { readonly kind: 'revoking'; readonly device: string }
  | { readonly kind: 'revoked'; readonly device: string; readonly serials: readonly string[] }
  | { readonly kind: 'answer'; readonly device: string; readonly code: string }
  /** A round that was given up, which no kill excuses. */
  | { readonly kind: 'failed'; readonly device: string; readonly step: string; readonly message: string }
  | { readonly kind: 'done'; readonly retries: number }

/** Codes that a client meets while parts of the service are away. */
const PASSING = new Set(['unavailable', 'timeout', 'revocation_unknown', 'rate_limited', 'challenge_unknown'])
/** Longer than `up` takes to come back with everything. */
const PATIENCE_MS = 90_000
const [operatorDir = '', workDir = '', clients = '4', seed = '1'] = process.argv.slice(2)

let retries = 0
let rounds = 0
const enrolled: string[] = []
const random = seededRandom(Number(seed))

for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'check') await inParallel(enrolled, askForPeer)
  else
    await inParallel(
      Array.from({ length: Number(line) }, () => `d${++rounds}`),
      round,
    )
  say({ kind: 'done', retries })
}

async function inParallel<T>(items: readonly T[], act: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items]
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await act(item)
  }
  await Promise.all(Array.from({ length: Number(clients) }, worker))
}

/** Enroll, provision, sometimes renew and provision again, mostly revoke. */
async function round(device: string): Promise<void> {
  const dir = join(workDir, device)
  let step = 'token'
  try {
    await think()
    const token = await persistently(() => createToken(device))
    step = 'enroll'
    await persistently(() => enroll({ token, dir, wireGuard: true, expect: 'device' }))
    enrolled.push(device)
    say(describe(device, await ownFacts(dir), false))
    step = 'provision'
    await think()
    await persistently(() => provision(dir))
    say({ kind: 'peer', device })
    if (random() < 0.2) {
      step = 'renew'
      await think()
      await persistently(() => renew({ dir }))
      say(describe(device, await ownFacts(dir), true))
      step = 'provision again'
      await persistently(() => provision(dir))
    }
    if (random() < 0.4) return
    step = 'revoke'
    await think()
    say({ kind: 'revoking', device })
    const serials = await persistently(() => revoke(device))
    say({ kind: 'revoked', device, serials })
  } catch (error) {
    say({
      kind: 'failed',
      device,
      step,
      message: `${errorCode(error)}: ${error instanceof Error ? error.message : ''}`,
    })
  }
}

/** So that a round is spread over several kills. */
function think(): Promise<void> {
  return sleep(1000 * random())
}

/** Tries until it is told a yes or a no; a client that was killed itself would do the same. */
async function persistently<T>(act: () => Promise<T>): Promise<T> {
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    try {
      return await act()
    } catch (error) {
      const code = errorCode(error)
      if (!PASSING.has(code) || Date.now() > deadline) throw error
      retries += 1
    }
    await sleep(100 + 300 * random())
  }
}

async function operator(listener: 'authorityUrl' | 'apiUrl'): Promise<ApiClient> {
  const credential = await readCredential(operatorDir)
  return new ApiClient({
    base: credential.config[listener],
    root: credential.root,
    clientCertificate: { certificate: credential.chain, key: credential.tlsKey },
    timeoutMs: 15_000,
  })
}

async function createToken(name: string): Promise<string> {
  const client = await operator('authorityUrl')
  try {
    const json = { role: 'device', name, networks: ['default'] }
    const answer = await client.request({ method: 'POST', path: '/v1/tokens', json })
    return parseMessage(tokenAnswerSchema, answer.json, 'token').token
  } finally {
    client.close()
  }
}

async function revoke(name: string): Promise<string[]> {
  const client = await operator('authorityUrl')
  try {
    const json = { target: { kind: 'device', name }, reason: 'keyCompromise' }
    const answer = await client.request({ method: 'POST', path: '/v1/revocations', json })
    const { certificates } = parseMessage(revocationAnswerSchema, answer.json, 'revocation')
    return certificates.map(({ serial }) => serial)
  } finally {
    client.close()
  }
}

async function provision(dir: string): Promise<void> {
  const own = await readOwnIdentity(dir, new Date())
  const client = clientFor(own, own.credential.config.apiUrl, 15_000)
  try {
    const answer = await client.request({ method: 'PUT', path: '/v1/peer' })
    parseMessage(peerAnswerSchema, answer.json, 'peer')
  } finally {
    client.close()
  }
}

/** What a device is told now: `ok`, or the code of the refusal. */
async function askForPeer(device: string): Promise<void> {
  const own = await readOwnIdentity(join(workDir, device), new Date())
  const client = clientFor(own, own.credential.config.apiUrl, 15_000)
  const answer = await client.request({ method: 'GET', path: '/v1/peer' }).then(
    () => 'ok',
    (error: unknown) => errorCode(error),
  )
  client.close()
  say({ kind: 'answer', device, code: answer })
}

async function ownFacts(dir: string): Promise<{ facts: DeviceFacts; certificate: string }> {
  const own = await readOwnIdentity(dir, new Date())
  return { facts: readDevice(own.verified, own.oids), certificate: own.credential.certificate }
}

function describe(device: string, own: Awaited<ReturnType<typeof ownFacts>>, renewed: boolean): Acknowledged {
  const { serial, issuerKeyId, key, allowedIps } = own.facts
  const prefixes = allowedIps.map(formatPrefix)
  return {
    kind: 'certificate',
    device,
    serial,
    issuerKeyId,
    publicKey: key,
    allowedIps: prefixes,
    certificate: own.certificate,
    renewed,
  }
}

/** One write, finished before anything else happens: what was acknowledged is known outside whatever comes next. */
function say(fact: Acknowledged): void {
  process.stdout.write(`${JSON.stringify(fact)}\n`)
}
