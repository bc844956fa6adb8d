/** `certpeer operator token` and `certpeer operator join`: further operators, enrolled like everybody else. */
import { Option } from 'commander'
import type { Command } from 'commander'
import { OPERATOR_ROLES } from '../core/messages/common.ts'
import type { OperatorRole } from '../core/messages/common.ts'
import { addOperatorOptions, collect, durationOption, readToken } from './arguments.ts'
import type { OperatorArguments } from './arguments.ts'
import { printFields, printJson } from './output.ts'
import type { Io } from './output.ts'
import { createToken } from './token.ts'

interface OperatorTokenOptions extends OperatorArguments {
  readonly name: string
  readonly role: OperatorRole
  readonly tenant?: string
  readonly group?: readonly string[]
  readonly ttl: number
  readonly replace?: true
}

export function addOperatorCommands(program: Command, io: Io): void {
  const operator = program.command('operator').description('credentials of operators')
  addOperatorOptions(
    operator
      .command('token')
      .description('make a token with which another operator joins; needs operator-admin')
      .requiredOption('--name <name>', 'name of the new operator')
      .addOption(new Option('--role <role>', 'what it may do').choices(OPERATOR_ROLES).makeOptionMandatory())
      .option(
        '--tenant <name>',
        'tenant it is for; one of the whole trust domain is made with certpeer ca credential (default: yours, or "default")',
      )
      .option('--group <name>', 'access group it may grant; may be given several times', collect)
      .addOption(durationOption('--ttl <duration>', 'how long the token can be used, 10s to 7d', '1h'))
      .option('--replace', 'revoke the live certificate of that name when the token is used'),
    io,
  ).action(async (options: OperatorTokenOptions) => {
    const { role, name, tenant, group, ttl, replace } = options
    await createToken(
      {
        role,
        name,
        ...(tenant === undefined ? {} : { tenant }),
        networks: [],
        groups: group ?? [],
        ttlSeconds: ttl,
        replace: replace === true,
      },
      options,
      io,
    )
  })

  operator
    .command('join')
    .description('spend an operator token: keys are made here')
    .argument('<token>', 'the token, or - for standard input')
    .requiredOption('--dir <dir>', 'credential directory to make')
    .option('--json', 'print one JSON value')
    .action(async (argument: string, options: { dir: string; json?: true }) => {
      const { enroll } = await import('../edge/enrollment.ts')
      const token = await readToken(argument, io)
      const { verified } = await enroll({ token, dir: options.dir, wireGuard: false, expect: 'operator' })
      const { uri, role, certificate } = verified
      const report = { identity: uri, role, serial: certificate.serial, notAfter: certificate.notAfter.toISOString() }
      if (options.json === true) printJson(io, report)
      else printFields(io, Object.entries(report))
    })
}
