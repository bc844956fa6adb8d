/**
 * Signed network documents as an edge keeps them: one file per network below the credential directory, so that a lower
 * number is refused also after a restart. What is read back is verified again; the directory is not a trust anchor.
 */
import { mkdir } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CertpeerError } from '../core/errors.ts'
import { requireNotOlder, verifyNetworkDocument } from '../core/messages/network-document.ts'
import type { VerifiedNetworkDocument } from '../core/messages/network-document.ts'
import type { Certificate } from '../core/x509/certificate.ts'
import type { CertpeerOids } from '../core/x509/oids.ts'
import { readTextFile, writeFileAtomic } from '../platform/files.ts'

export interface DocumentTrust {
  readonly root: Certificate
  readonly oids: CertpeerOids
  readonly trustDomain: string
  readonly now: Date
}

export interface NetworkName {
  readonly tenant: string
  readonly network: string
}

/**
 * Verifies `jws` as the document of exactly this network and remembers it. Throws foreign_network for another network's
 * document, network_document_stale for a lower number than the remembered one, and network_document_invalid when one
 * number comes with two contents.
 */
export async function acceptNetworkDocument(
  dir: string,
  jws: string,
  name: NetworkName,
  trust: DocumentTrust,
): Promise<VerifiedNetworkDocument> {
  const offered = verifyNetworkDocument({ jws, ...trust })
  const { tenant, network } = offered.document
  if (tenant !== name.tenant || network !== name.network) {
    throw new CertpeerError(
      'foreign_network',
      `the network document is for ${tenant}/${network}, not for ${name.tenant}/${name.network}`,
    )
  }
  const held = await findNetworkDocument(dir, name, trust)
  if (held !== undefined && requireNotOlder(held, offered) === 'same') return held
  await mkdir(join(dir, 'networks'), { recursive: true, mode: 0o700 })
  await writeFileAtomic(documentPath(dir, name), offered.jws, { mode: 0o600 })
  return offered
}

/** The remembered document, verified again; undefined when none was ever accepted. Throws when the file was changed. */
export async function findNetworkDocument(
  dir: string,
  name: NetworkName,
  trust: DocumentTrust,
): Promise<VerifiedNetworkDocument | undefined> {
  const path = documentPath(dir, name)
  if (!existsSync(path)) return undefined
  const jws = (await readTextFile(path, 'network document')).trim()
  const held = verifyNetworkDocument({ jws, ...trust })
  if (held.document.tenant !== name.tenant || held.document.network !== name.network) {
    throw new CertpeerError('foreign_network', `${path} holds the document of another network`)
  }
  return held
}

/** Both names are labels without dots, so the file name cannot mean two networks. */
function documentPath(dir: string, { tenant, network }: NetworkName): string {
  return join(dir, 'networks', `${tenant}.${network}.jws`)
}
