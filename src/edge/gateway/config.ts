/** The gateway's settings out of its credential directory, and what its own certificate says of it. */
import { CertpeerError } from '../../core/errors.ts'
import { parseAddress } from '../../core/ipam/prefix.ts'
import { readGateway, type GatewayFacts } from '../../core/x509/path.ts'
import type { CredentialConfig } from '../../platform/credentials.ts'
import { readOwnIdentity, type OwnIdentity as OwnCredential } from '../client-certificate.ts'
import type { Backend } from '../tunnel/interface.ts'
import type { OwnIdentity } from './admission.ts'

export interface GatewayConfig {
  /** HOST:PORT */
  readonly endpoint: string
  readonly interface: string
  readonly wireguardPort: number
  readonly backend: Backend
  readonly reconcileSeconds: number
  readonly pollSeconds: number
}

export interface OwnGateway {
  readonly credential: OwnCredential
  readonly facts: GatewayFacts
  readonly identity: OwnIdentity
}

/** The last instant that a Date can hold. */
const END_OF_TIME = new Date(8_640_000_000_000_000)

/** Throws config_invalid naming what `gateway join` would have written. */
export function readGatewayConfig(config: CredentialConfig): GatewayConfig {
  const { endpoint, interface: name, wireguardPort } = config
  if (config.role !== 'gateway' || endpoint === undefined || name === undefined || wireguardPort === undefined) {
    throw new CertpeerError('config_invalid', 'this credential is not a joined gateway: run certpeer gateway join')
  }
  return {
    endpoint,
    interface: name,
    wireguardPort,
    backend: config.backend ?? 'auto',
    reconcileSeconds: config.reconcileSeconds ?? 30,
    pollSeconds: config.pollSeconds ?? 10,
  }
}

/**
 * Verified at the end of its life, whatever the clock says: whether the gateway is in force today is for those to judge
 * who are asked to believe it, and it must be able to start, serve and renew also when it is not.
 */
export async function readOwnGateway(dir: string): Promise<OwnGateway> {
  const credential = await readOwnIdentity(dir, END_OF_TIME)
  const facts = readGateway(credential.verified, credential.oids)
  const { name, key, tunnelAddresses, servedNetworks, serial, issuerKeyId } = facts
  const identity = {
    name,
    key,
    addresses: tunnelAddresses.map(parseAddress),
    networks: new Set(servedNetworks),
    serial,
    issuerKeyId,
  }
  return { credential, facts, identity }
}
