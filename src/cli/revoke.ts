/** `certpeer revoke`: by identity or by serial number, with --wait until it is proven to be gone everywhere. */
import { Option } from 'commander'
import type { Command } from 'commander'
import { CertpeerError } from '../core/errors.ts'
import { parseMessage, REVOCATION_REASONS } from '../core/messages/common.ts'
import type { RevocationReason } from '../core/messages/common.ts'
import type { RevocationRequest } from '../core/messages/revocation.ts'
import { addOperatorOptions, durationOption } from './arguments.ts'
import type { OperatorArguments } from './arguments.ts'
import { EXIT, printJson } from './output.ts'
import type { ExitCode, Io } from './output.ts'

interface RevokeOptions extends OperatorArguments {
  readonly device?: string
  readonly gateway?: string
  readonly operatorName?: string
  readonly serial?: string
  readonly tenant?: string
  readonly network?: string
  readonly reason: RevocationReason
  readonly wait?: true
  readonly timeout: number
}

export function addRevokeCommand(program: Command, io: Io, exit: (code: ExitCode) => void): void {
  addOperatorOptions(
    program
      .command('revoke')
      .description(
        'revoke an identity, or one certificate: from then on OCSP and the next CRL say so, peers are removed',
      )
      .option('--device <name>', 'the device of this name or id')
      .option('--gateway <name>', 'the gateway of this name')
      .option('--operator-name <name>', 'the operator of this name')
      .option('--serial <hex>', 'one certificate alone')
      .option('--tenant <name>', 'tenant of the device or operator')
      .option('--network <name>', 'network of the device')
      .addOption(new Option('--reason <reason>', 'why').choices(REVOCATION_REASONS).default('unspecified'))
      .option('--wait', 'until a CRL or OCSP answer that verifies here says so and every gateway has confirmed')
      .addOption(durationOption('--timeout <duration>', 'how long --wait waits', '30s')),
    io,
  )
    .addHelpText('after', '\nExit code with --wait: 0 gone everywhere, 3 not confirmed everywhere yet.')
    .action(async (options: RevokeOptions) => {
      const target = targetOf(options)
      const { withOperator } = await import('./operator-session.ts')
      const { revocationAnswerSchema } = await import('../core/messages/revocation.ts')
      const { confirmRevocation, reportConfirmation } = await import('./revocation-wait.ts')
      await withOperator(options, io, async (session) => {
        const request: RevocationRequest = { target, reason: options.reason }
        const { json } = await session.authority.request({ method: 'POST', path: '/v1/revocations', json: request })
        const answer = parseMessage(revocationAnswerSchema, json, 'revocation answer')
        const again = answer.already ? ', already' : ''
        if (options.json !== true) {
          const serials = answer.certificates.map(({ serial }) => serial).join(' ') || 'no live certificate'
          io.print(`revoked ${answer.identity} (${answer.reason}${again}) at ${answer.revokedAt}: ${serials}`)
        }
        if (options.wait !== true) {
          if (options.json === true) printJson(io, answer)
          return
        }
        const confirmation = await confirmRevocation(session, answer, { timeoutMs: options.timeout * 1000 })
        if (options.json === true) printJson(io, { ...answer, confirmation })
        else reportConfirmation(confirmation, io)
        if (!confirmation.complete) exit(EXIT.unconfirmed)
      })
    })
}

function targetOf({
  device,
  gateway,
  operatorName,
  serial,
  tenant,
  network,
}: RevokeOptions): RevocationRequest['target'] {
  const given = [device, gateway, operatorName, serial].filter((value) => value !== undefined)
  if (given.length !== 1) {
    throw new CertpeerError('usage', 'revoke takes exactly one of --device, --gateway, --operator-name or --serial')
  }
  const within = tenant === undefined ? {} : { tenant }
  if (device !== undefined) {
    return { kind: 'device', name: device, ...within, ...(network === undefined ? {} : { network }) }
  }
  if (network !== undefined || (tenant !== undefined && operatorName === undefined)) {
    throw new CertpeerError('usage', '--network goes with --device, --tenant with --device or --operator-name')
  }
  if (gateway !== undefined) return { kind: 'gateway', name: gateway }
  if (operatorName !== undefined) return { kind: 'operator', name: operatorName, ...within }
  // As people paste it: openssl prints upper case, browsers put colons in between.
  return { kind: 'serial', serial: (serial ?? '').toLowerCase().replaceAll(/[\s:]/g, '') }
}
