/**
 * The plain version that certpeer is measured against: express, @peculiar/x509 and a knex transaction, each used as its
 * documentation shows. It does what provisioning must: reads the certificate that nginx passes on, verifies its
 * signature, validity and purpose, and puts or deletes the peer with a numbered change in one durable transaction.
 *
 * Usage: plain-provision.js CONFIG.json {socketPath, databaseUrl, issuerPem, roleOid, frontSecret}
 */
import 'reflect-metadata'
import { readFileSync } from 'node:fs'
import express from 'express'
import knex, { type Knex } from 'knex'
import { ExtendedKeyUsageExtension, SubjectAlternativeNameExtension, X509Certificate } from '@peculiar/x509'

export interface RivalConfig {
  readonly socketPath: string
  readonly databaseUrl: string
  readonly issuerPem: string
  readonly roleOid: string
  readonly frontSecret: string
}

const config = JSON.parse(readFileSync(process.argv[2] ?? '', 'utf8')) as RivalConfig
const issuer = new X509Certificate(config.issuerPem)
const db = knex({ client: 'pg', connection: { connectionString: config.databaseUrl }, pool: { min: 0, max: 8 } })

await db.schema.createTable('networks', (networks) => {
  networks.bigIncrements('id')
  networks.text('name').unique()
  networks.bigInteger('revision').notNullable().defaultTo(0)
})
await db.schema.createTable('peers', (peers) => {
  peers.bigInteger('network_id').references('networks.id')
  peers.text('identity')
  peers.text('serial').notNullable()
  peers.binary('certificate').notNullable()
  peers.timestamp('not_after').notNullable()
  peers.bigInteger('revision').notNullable()
  peers.primary(['network_id', 'identity'])
})
await db.schema.createTable('peer_changes', (changes) => {
  changes.bigInteger('network_id').references('networks.id')
  changes.bigInteger('revision')
  changes.text('kind').notNullable()
  changes.text('serial').notNullable()
  changes.timestamp('created_at').defaultTo(db.fn.now())
  changes.primary(['network_id', 'revision'])
})
await db('networks').insert({ name: 'default' })

interface Device {
  readonly identity: string
  readonly certificate: X509Certificate
}

async function authenticate(request: express.Request): Promise<Device> {
  if (request.get('x-certpeer-front') !== config.frontSecret) throw new Error('not through the front')
  if (request.get('x-client-verify') !== 'SUCCESS') throw new Error('no verified certificate')
  const certificate = new X509Certificate(decodeURIComponent(request.get('x-client-cert') ?? ''))
  if (!(await certificate.verify({ publicKey: issuer, date: new Date() }))) throw new Error('not issued here')
  const usages = certificate.getExtension(ExtendedKeyUsageExtension)?.usages ?? []
  if (!usages.map(String).includes(config.roleOid)) throw new Error('not a device')
  const names = certificate.getExtension(SubjectAlternativeNameExtension)?.names.items ?? []
  const identity = names.find(({ type }) => type === 'url')?.value
  if (identity === undefined) throw new Error('no identity')
  return { identity, certificate }
}

interface NetworkRow {
  readonly id: string
  readonly name: string
  readonly revision: string
}

/** Takes the network's next revision and appends the change under it; the row lock orders everybody. */
async function change(
  kind: 'set' | 'remove',
  { certificate }: Device,
  write: (trx: Knex.Transaction, networkId: string, revision: number) => Promise<unknown>,
): Promise<number> {
  return db.transaction(async (trx) => {
    const network = await trx<NetworkRow>('networks').where('name', 'default').forUpdate().first()
    if (network === undefined) throw new Error('no network')
    const revision = Number(network.revision) + 1
    await write(trx, network.id, revision)
    const { serialNumber } = certificate
    await trx('peer_changes').insert({ network_id: network.id, revision, kind, serial: serialNumber })
    await trx('networks').where({ id: network.id }).update({ revision })
    return revision
  })
}

const app = express()
app.put('/v1/peer', async (request, response) => {
  const device = await authenticate(request)
  const { identity, certificate } = device
  const revision = await change('set', device, (trx, networkId, next) =>
    trx('peers')
      .insert({
        network_id: networkId,
        identity,
        serial: certificate.serialNumber,
        certificate: Buffer.from(certificate.rawData),
        not_after: certificate.notAfter,
        revision: next,
      })
      .onConflict(['network_id', 'identity'])
      .merge(),
  )
  response.json({ state: 'pending', revision })
})
app.delete('/v1/peer', async (request, response) => {
  const device = await authenticate(request)
  const revision = await change('remove', device, (trx, networkId) =>
    trx('peers').where({ network_id: networkId, identity: device.identity }).delete(),
  )
  response.json({ state: 'absent', revision })
})

const server = app.listen(config.socketPath)
process.on('SIGTERM', () => {
  server.close()
  server.closeAllConnections()
  void db.destroy()
})
