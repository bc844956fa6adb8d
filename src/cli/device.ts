/** `certpeer device …`: enroll, up, down, status, renew, run. */
import type { Command } from 'commander'
import type { DeviceCertificateReport } from '../edge/device/commands.ts'
import { readToken } from './arguments.ts'
import { printFields, printJson, printTable } from './output.ts'
import type { Io } from './output.ts'

interface DeviceArguments {
  readonly dir: string
  readonly interface?: string
  readonly json?: true
}

export function addDeviceCommands(program: Command, io: Io): void {
  const device = program.command('device').description('this machine as a device')
  const command = (name: string, description: string) =>
    device.command(name).description(description).requiredOption('--dir <dir>', 'credential directory')
  const withJson = (added: Command) => added.option('--json', 'print one JSON value')
  const load = async () => ({
    commands: await import('../edge/device/commands.ts'),
    log: (await import('./command-log.ts')).commandLog(io),
  })
  const show = (report: DeviceCertificateReport, options: DeviceArguments) => {
    if (options.json === true) printJson(io, report)
    else printFields(io, fieldsOf(report))
  }

  withJson(command('enroll', 'spend a token: keys are made here and stay here'))
    .argument('<token>', 'enrollment token, or - for standard input')
    .action(async (argument: string, options: DeviceArguments) => {
      const token = await readToken(argument, io)
      const { commands, log } = await load()
      show(await commands.deviceEnroll({ token, dir: options.dir, log }), options)
    })

  withJson(command('up', 'ask for the peer on the gateways, then bring the tunnel up'))
    .option('--interface <name>', 'WireGuard interface; certpeer0 unless it was another before')
    .action(async (options: DeviceArguments) => {
      const { commands, log } = await load()
      const report = await commands.deviceUp({ ...options, log })
      if (options.json === true) {
        printJson(io, report)
        return
      }
      const waiting = report.waitingFor.length === 0 ? '' : ` (waiting for ${report.waitingFor.join(' ')})`
      io.print(
        `${report.interface} is up: ${report.addresses.join(' ')} through ${report.gateways.map(({ name }) => name).join(' ')}`,
      )
      if (report.state !== 'active') io.say(`certpeer: warning: not every gateway has confirmed yet${waiting}`)
    })

  withJson(command('down', 'take the tunnel down; the certificate stays')).action(async (options: DeviceArguments) => {
    const { commands, log } = await load()
    const report = await commands.deviceDown({ dir: options.dir, log })
    if (options.json === true) printJson(io, report)
    else io.print(report.removed ? `${report.interface} is down` : `${report.interface} was not up`)
  })

  withJson(command('status', 'certificate and tunnel')).action(async (options: DeviceArguments) => {
    const { commands, log } = await load()
    const report = await commands.deviceStatus({ dir: options.dir, log })
    if (options.json === true) {
      printJson(io, report)
      return
    }
    printFields(io, [
      ...fieldsOf(report),
      ['document', report.networkDocument === null ? '-' : `number ${report.networkDocument}`],
      ['tunnel', `${report.interface} ${report.tunnel}${report.expired ? ', certificate EXPIRED' : ''}`],
    ])
    if (report.gateways.length === 0) return
    printTable(
      io,
      ['GATEWAY', 'ENDPOINT', 'LATEST HANDSHAKE', 'RECEIVED', 'SENT'],
      report.gateways.map((gateway) => [
        gateway.name ?? gateway.publicKey,
        gateway.endpoint ?? '-',
        gateway.latestHandshakeAt ?? '-',
        String(gateway.receiveBytes),
        String(gateway.transmitBytes),
      ]),
    )
  })

  withJson(command('renew', 'renew the certificate now; a tunnel that is up stays up')).action(
    async (options: DeviceArguments) => {
      const { commands, log } = await load()
      show(await commands.deviceRenew({ dir: options.dir, log }), options)
    },
  )

  command('run', 'stay: keep the tunnel up and the certificate fresh until stopped')
    .option('--interface <name>', 'WireGuard interface; certpeer0 unless it was another before')
    .action(async (options: DeviceArguments) => {
      const { deviceRun } = await import('../edge/device/run.ts')
      const { createLogger } = await import('../platform/log.ts')
      await deviceRun({ ...options, log: createLogger({ name: 'device' }), signal: io.stopSignal() })
    })
}

function fieldsOf(report: DeviceCertificateReport): (readonly [string, string])[] {
  return [
    ['device', report.name ?? '-'],
    ['identity', report.identity],
    ['network', `${report.tenant}/${report.network}`],
    ['addresses', report.addresses.join(' ')],
    ['groups', report.groups.join(' ') || '-'],
    ['public key', report.publicKey],
    ['serial', report.serial],
    ['valid', `${report.notBefore} to ${report.notAfter}, renewed from ${report.renewFrom}`],
  ]
}
