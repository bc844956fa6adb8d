/** The local operator's client, for what `up` does as an operator: the network document and the gateway's token. */
import { ApiClient } from '../../platform/api-client/client.ts'
import { readCredential } from '../../platform/credentials.ts'
import type { StatePaths } from './options.ts'

export async function operatorClient(paths: StatePaths, listener: 'authorityUrl' | 'apiUrl'): Promise<ApiClient> {
  const credential = await readCredential(paths.operator)
  return new ApiClient({
    base: credential.config[listener],
    root: credential.root,
    clientCertificate: { certificate: credential.chain, key: credential.tlsKey },
  })
}
