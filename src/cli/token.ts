/** `certpeer token create`, and the request that all three kinds of token share. */
import type { Command } from 'commander'
import { parseMessage } from '../core/messages/common.ts'
import type { Role } from '../core/messages/common.ts'
import { addOperatorOptions, collect, durationOption } from './arguments.ts'
import type { OperatorArguments } from './arguments.ts'
import { printJson } from './output.ts'
import type { Io } from './output.ts'

interface TokenOptions extends OperatorArguments {
  readonly device: string
  readonly network: string
  readonly tenant?: string
  readonly group: readonly string[]
  readonly ttl: number
  readonly possession: boolean
  readonly replace?: true
}

export interface TokenWish {
  readonly role: Exclude<Role, 'authority' | 'server'>
  readonly name: string
  readonly tenant?: string
  readonly networks: readonly string[]
  readonly groups?: readonly string[]
  readonly ttlSeconds: number
  readonly possession?: boolean
  readonly replace?: boolean
}

export function addTokenCommands(program: Command, io: Io): void {
  const token = program.command('token').description('enrollment tokens for devices')
  addOperatorOptions(
    token
      .command('create')
      .description('make an enrollment token: one device, one use; prints the token alone')
      .requiredOption('--device <name>', 'name of the device')
      .option('--network <name>', 'network it joins', 'default')
      .option('--tenant <name>', 'tenant, where the operator serves several')
      .option('--group <name>', 'access group; may be given several times', collect)
      .addOption(durationOption('--ttl <duration>', 'how long the token can be used, 10s to 7d', '1h'))
      .option('--without-possession', 'accept a WireGuard key without proof (audited exception)')
      .option('--replace', 'revoke the live certificate of that name when the token is used'),
    io,
  ).action(async (options: TokenOptions & { withoutPossession?: true }) => {
    await createToken(
      {
        role: 'device',
        name: options.device,
        ...(options.tenant === undefined ? {} : { tenant: options.tenant }),
        networks: [options.network],
        groups: options.group,
        ttlSeconds: options.ttl,
        possession: options.withoutPossession !== true,
        replace: options.replace === true,
      },
      options,
      io,
    )
  })
}

/** Asks the authority for a token and prints it: alone, so that it can be piped. */
export async function createToken(wish: TokenWish, options: OperatorArguments, io: Io): Promise<void> {
  const { withOperator } = await import('./operator-session.ts')
  const { tokenAnswerSchema, tokenRequestSchema } = await import('../core/messages/enrollment.ts')
  const request = parseMessage(tokenRequestSchema, wish, 'token')
  await withOperator(options, io, async (session) => {
    const { json } = await session.authority.request({ method: 'POST', path: '/v1/tokens', json: request })
    const answer = parseMessage(tokenAnswerSchema, json, 'token answer')
    if (options.json === true) printJson(io, answer)
    else io.print(answer.token)
  })
}
