/** `certpeer network apply` and `certpeer network show`: the law of a network, signed by the authority. */
import type { Command } from 'commander'
import { parseMessage } from '../core/messages/common.ts'
import { addOperatorOptions } from './arguments.ts'
import type { OperatorArguments } from './arguments.ts'
import { printJson } from './output.ts'
import type { Io } from './output.ts'

interface ShowOptions extends OperatorArguments {
  readonly tenant?: string
  readonly network?: string
}

export function addNetworkCommands(program: Command, io: Io): void {
  const network = program.command('network').description('network documents')
  addOperatorOptions(
    network
      .command('apply')
      .description('send a network document (YAML); the authority checks, numbers and signs it')
      .argument('<file>', 'YAML file, or - for standard input'),
    io,
  ).action(async (file: string, options: OperatorArguments) => {
    const { readTextFile } = await import('../platform/files.ts')
    const { parseNetworkSettings } = await import('../core/messages/network-yaml.ts')
    const { withOperator } = await import('./operator-session.ts')
    const { networkAnswerSchema } = await import('../core/messages/network-answers.ts')
    const { verifyForOperator } = await import('./network-answer.ts')
    const settings = parseNetworkSettings(
      file === '-' ? await io.readInput() : await readTextFile(file, 'network document'),
    )
    await withOperator(options, io, async (session) => {
      const { json } = await session.authority.request({ method: 'PUT', path: '/v1/networks', json: settings })
      const { document } = verifyForOperator(parseMessage(networkAnswerSchema, json, 'network answer').jws, session.own)
      if (options.json === true) printJson(io, document)
      else
        io.print(`${document.tenant}/${document.network} is at number ${document.number}, issued ${document.issuedAt}`)
    })
  })

  addOperatorOptions(
    network
      .command('show')
      .description('show network documents, verified under the pinned root')
      .option('--tenant <name>', 'of this tenant only')
      .option('--network <name>', 'this network only'),
    io,
  ).action(async (options: ShowOptions) => {
    const { withOperator } = await import('./operator-session.ts')
    const { networkListSchema } = await import('../core/messages/network-answers.ts')
    const { formatDocument, verifyForOperator } = await import('./network-answer.ts')
    const { CertpeerError } = await import('../core/errors.ts')
    await withOperator(options, io, async (session) => {
      const { json } = await session.authority.request({ method: 'GET', path: '/v1/networks' })
      const documents = parseMessage(networkListSchema, json, 'networks')
        .items.map(({ jws }) => verifyForOperator(jws, session.own).document)
        .filter(({ tenant }) => options.tenant === undefined || tenant === options.tenant)
        .filter((document) => options.network === undefined || document.network === options.network)
      if (documents.length === 0 && options.network !== undefined) {
        throw new CertpeerError(
          'not_found',
          `there is no network ${options.network}: make it with certpeer network apply`,
        )
      }
      if (options.json === true) printJson(io, documents)
      else for (const document of documents) io.print(formatDocument(document))
    })
  })
}
