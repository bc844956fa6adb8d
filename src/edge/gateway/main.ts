/** `certpeer gateway run`: wires disk, trust, session, device, stream and the pki listener, and runs until told to stop. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { errorCode } from '../../core/errors.ts'
import { parseWireGuardKey, type WireGuardKey } from '../../core/wireguard/key.ts'
import { ApiClient } from '../../platform/api-client/client.ts'
import { systemNow, type Now } from '../../platform/clock.ts'
import { lockDirectory, writeFileAtomic } from '../../platform/files.ts'
import { sleep } from '../../platform/lifecycle.ts'
import type { Logger } from '../../platform/log.ts'
import { clientFor } from '../client-certificate.ts'
import type { WireGuardDevice } from '../tunnel/port.ts'
import type { Run } from '../tunnel/wg.ts'
import { readGatewayConfig, readOwnGateway, type OwnGateway } from './config.ts'
import { CrlFetcher } from './crl-fetch.ts'
import { ReconcileLoop, type RepairableDevice } from './loop.ts'
import { ManagedTunnel, tunnelMtu, tunnelRoutes } from './managed-tunnel.ts'
import { runRenewal } from './renewal.ts'
import { GatewaySession, type Work } from './session.ts'
import { SignedClock } from './signed-clock.ts'
import { GatewayStore, loadStore } from './store.ts'
import { StreamClient } from './stream-client.ts'
import { TrustStore } from './trust-store.ts'

export interface GatewayOptions {
  readonly dir: string
  readonly log: Logger
  readonly signal: AbortSignal
  /** Instead of an interface of this machine. */
  readonly device?: WireGuardDevice
  readonly now?: Now
  /** Runs ip(8), wg(8) and wireguard-go; another one may put a network namespace in front. */
  readonly run?: Run
}

/** How long the first look at the pki listener may hold back the start: what was revoked meanwhile shall not come up. */
const FIRST_POLL_MS = 3000

/** Runs until the signal aborts; then the interface is taken away. Throws when it cannot start. */
export async function runGateway(options: GatewayOptions): Promise<void> {
  const { dir, log } = options
  const failed = new AbortController()
  const signal = AbortSignal.any([options.signal, failed.signal])
  await using _lock = await lockDirectory(dir)
  let own = await readOwnGateway(dir)
  const config = readGatewayConfig(own.credential.credential.config)
  const session = createSession(own, config.endpoint)
  const signed = new SignedClock(options.now ?? systemNow, () => performance.now())
  const clock = () => signed.now()

  session.restore(await loadStore(dir, log), clock())
  witnessTime(session.trust, signed)
  const store = new GatewayStore({ dir, log, dump: () => session.dump(clock()) })
  await store.rewrite()

  const tunnel =
    options.device === undefined
      ? await createTunnel(dir, () => own, session, {
          ...config,
          log,
          onLost: () => loop.lookAgain(),
          ...(options.run !== undefined && { run: options.run }),
        })
      : undefined
  const stream = new StreamClient({
    session,
    connect: () => clientFor(own.credential, own.credential.credential.config.gatewaysUrl),
    clock,
    log,
    onChange: () => onChange(),
  })
  const loop = new ReconcileLoop({
    session,
    device: tunnel ?? withoutRepair(options.device),
    persist: (work) => persist(store, work),
    makeDurable: () => store.makeDurable(),
    send: (message) => stream.send(message),
    clock,
    log,
    reconcileMs: config.reconcileSeconds * 1000,
  })
  const onChange = () => {
    witnessTime(session.trust, signed)
    loop.wake()
  }
  const fetcher = new CrlFetcher({
    client: new ApiClient({ base: own.credential.credential.config.pkiUrl }),
    session,
    clock,
    log,
    onChange,
  })
  const onRenewed = async () => {
    own = await readOwnGateway(dir)
    session.setOwn(own.identity, clock())
    stream.reconnect()
    loop.lookAgain()
  }

  try {
    await tunnel?.start()
    const { facts } = own
    log.info({ gateway: facts.name, networks: facts.servedNetworks, peers: session.peerCount }, 'gateway started')
    await Promise.race([fetcher.poll(signal), sleep(FIRST_POLL_MS, signal)])
    const parts = [
      loop.run(signal),
      stream.run(signal),
      fetcher.run(config.pollSeconds * 1000, signal),
      runRenewal({ dir, validity: facts, onRenewed, clock, log }, signal),
    ]
    // They end when told to. One that fails is a fault of ours: the others stop, and the caller hears of it.
    for (const part of parts) part.catch(() => failed.abort())
    await Promise.allSettled(parts)
    await Promise.all(parts)
  } finally {
    await store.close()
    // Told to stop, it takes its tunnel along; killed, it leaves it for the next agent to adopt.
    await tunnel?.remove()
  }
}

function createSession({ credential, identity }: OwnGateway, endpoint: string): GatewaySession {
  const { root, oids, trustDomain, verified } = credential
  const trust = new TrustStore({ root, oids, trustDomain, infrastructureKeyId: verified.issuer.keyId })
  trust.acceptIssuer(verified.issuer.der, verified.issuer.notBefore)
  return new GatewaySession({ trust, own: identity, endpoint })
}

/** Signed time holds the clock: also while nobody can be reached, and when somebody sets it back. */
function witnessTime(trust: TrustStore, clock: SignedClock): void {
  const signedAt = trust.newestSignedInstant
  if (signedAt !== undefined) clock.witness(signedAt)
}

async function persist(store: GatewayStore, work: Work): Promise<void> {
  // Whole files, which may take their time.
  if (work.crls.length > 0) void store.saveCrls(work.crls)
  if (work.documents.length > 0) void store.saveDocuments(work.documents)
  // Awaited: it is what a killed agent starts from.
  await store.append(work.records)
}

/** A device that was handed in is always there. */
function withoutRepair(device: WireGuardDevice | undefined): RepairableDevice {
  if (device === undefined) throw new TypeError('without an interface there must be a device')
  return {
    read: () => device.read(),
    apply: (changes) => device.apply(changes),
    repair: () => device.read(),
  }
}

interface TunnelSetting {
  readonly interface: string
  readonly wireguardPort: number
  readonly backend: 'auto' | 'uapi' | 'wg'
  readonly log: Logger
  readonly onLost: () => void
  readonly run?: Run
}

async function createTunnel(
  dir: string,
  own: () => OwnGateway,
  session: GatewaySession,
  { interface: name, wireguardPort, ...others }: TunnelSetting,
): Promise<ManagedTunnel> {
  const former = await rememberKey(join(dir, 'interface.key'), own().identity.key)
  return new ManagedTunnel({
    name,
    ...others,
    settings: () => ({
      privateKeyFile: join(dir, 'wireguard.key'),
      publicKey: own().identity.key,
      formerPublicKeys: former,
      listenPort: wireguardPort,
      addresses: own().identity.addresses,
      mtu: tunnelMtu(session.trust.documents.values()),
      routes: tunnelRoutes(session.trust.documents.values()),
    }),
  })
}

/**
 * Public keys that this directory has had, the newest first: a gateway that joined anew finds its interface with the
 * key of before, and may take it over.
 */
async function rememberKey(path: string, key: WireGuardKey): Promise<WireGuardKey[]> {
  let text = ''
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error
  }
  const former = text.split('\n').flatMap((line) => parseKeyOrNone(line))
  const keys = [...new Set([key, ...former])].slice(0, 16)
  if (keys.join('\n') !== former.join('\n')) await writeFileAtomic(path, `${keys.join('\n')}\n`, { mode: 0o644 })
  return keys
}

function parseKeyOrNone(line: string): WireGuardKey[] {
  try {
    return line === '' ? [] : [parseWireGuardKey(line)]
  } catch (error) {
    if (errorCode(error) !== 'bad_wireguard_key') throw error
    return []
  }
}
