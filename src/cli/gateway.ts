/** `certpeer gateway token|join|run`. */
import type { Command } from 'commander'
import { addOperatorOptions, collect, durationOption, parsePortNumber, readToken } from './arguments.ts'
import type { OperatorArguments } from './arguments.ts'
import { printFields, printJson } from './output.ts'
import type { Io } from './output.ts'
import { createToken } from './token.ts'

interface GatewayTokenOptions extends OperatorArguments {
  readonly gateway: string
  readonly network?: readonly string[]
  readonly tenant?: string
  readonly ttl: number
  readonly replace?: true
}

interface JoinOptions {
  readonly dir: string
  readonly endpoint: string
  readonly interface: string
  readonly wireguardPort: number
  readonly json?: true
}

export function addGatewayCommands(program: Command, io: Io): void {
  const gateway = program.command('gateway').description('gateways: where the peers are')
  addOperatorOptions(
    gateway
      .command('token')
      .description('make a token with which one gateway joins; prints the token alone')
      .requiredOption('--gateway <name>', 'name of the gateway')
      .option('--network <name>', 'network it serves; may be given several times (default: "default")', collect)
      .option('--tenant <name>', 'tenant of these networks')
      .addOption(durationOption('--ttl <duration>', 'how long the token can be used, 10s to 7d', '1h'))
      .option('--replace', 'revoke the live certificate of that name when the token is used'),
    io,
  ).action(async (options: GatewayTokenOptions) => {
    await createToken(
      {
        role: 'gateway',
        name: options.gateway,
        ...(options.tenant === undefined ? {} : { tenant: options.tenant }),
        networks: options.network ?? ['default'],
        ttlSeconds: options.ttl,
        replace: options.replace === true,
      },
      options,
      io,
    )
  })

  gateway
    .command('join')
    .description('spend a gateway token on this machine: keys are made here')
    .argument('<token>', 'the token, or - for standard input')
    .requiredOption('--dir <dir>', 'credential directory to make')
    .requiredOption('--endpoint <host:port>', 'where devices reach this gateway')
    .option('--interface <name>', 'WireGuard interface', 'certpeer-gw')
    .option('--wireguard-port <port>', 'UDP port WireGuard listens on', parsePortNumber, 51_820)
    .option('--json', 'print one JSON value')
    .action(async (argument: string, options: JoinOptions) => {
      const { joinGateway } = await import('../edge/gateway/join.ts')
      const { readOwnIdentity } = await import('../edge/client-certificate.ts')
      const { readGateway } = await import('../core/x509/path.ts')
      const { dir, endpoint, interface: interfaceName, wireguardPort } = options
      const token = await readToken(argument, io)
      await joinGateway({ token, dir, endpoint, interface: interfaceName, wireguardPort })
      const own = await readOwnIdentity(dir, new Date())
      const facts = readGateway(own.verified, own.oids)
      const report = {
        gateway: facts.name,
        identity: facts.uri,
        publicKey: facts.key,
        addresses: facts.tunnelAddresses,
        networks: facts.servedNetworks,
        endpoint,
        interface: interfaceName,
        serial: facts.serial,
        notAfter: facts.notAfter.toISOString(),
      }
      if (options.json === true) printJson(io, report)
      else
        printFields(
          io,
          Object.entries(report).map(([name, value]) => [name, [value].flat().join(' ')] as const),
        )
    })

  gateway
    .command('run')
    .description('stay: verify peers, keep the WireGuard device in line, confirm; needs CAP_NET_ADMIN')
    .requiredOption('--dir <dir>', 'credential directory')
    .action(async ({ dir }: { dir: string }) => {
      const { runGateway } = await import('../edge/gateway/main.ts')
      const { createLogger } = await import('../platform/log.ts')
      await runGateway({ dir, log: createLogger({ name: 'gateway' }), signal: io.stopSignal() })
    })
}
