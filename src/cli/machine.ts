/** `certpeer up` and `certpeer doctor`: everything on this machine. */
import type { Command } from 'commander'
import { parsePortNumber } from './arguments.ts'
import type { UpArguments } from './local/options.ts'
import { EXIT, printJson } from './output.ts'
import type { ExitCode, Io } from './output.ts'

interface DoctorOptions {
  readonly stateDir: string
  readonly listen?: string
  readonly basePort?: number
  readonly wireguardPort: number
  readonly json?: true
}

export function addMachineCommands(program: Command, io: Io, exit: (code: ExitCode) => void): void {
  program
    .command('up')
    .description('run everything on this machine, in the foreground; the next run resumes the same state')
    .option('--state-dir <dir>', 'where everything is kept', './var')
    .option('--base-port <port>', 'first of five ports: enroll, authority, api, gateways, pki', '8443')
    .option('--listen <address>', 'IP address to listen on', '127.0.0.1')
    .option('--hostname <name>', 'name that devices use; needed when listening everywhere')
    .option('--network <cidr[,cidr6]>', 'addresses of the network; fixed on the first run')
    .option('--interface <name>', 'WireGuard interface of the local gateway', 'certpeer-gw')
    .option('--wireguard-port <port>', 'UDP port of the local gateway', '51820')
    .option('--no-gateway', 'without the local gateway')
    .option('--json', 'print one JSON line when ready')
    .action(async (options: Omit<UpArguments, 'json'> & { json?: true }) => {
      const { runUp } = await import('./local/up.ts')
      const progress = { say: (line: string) => io.say(line), print: (line: string) => io.print(line) }
      await runUp({ ...options, json: options.json === true }, progress, io.stopSignal())
    })

  program
    .command('doctor')
    .description('check what certpeer relies on; a line a check, with what to do')
    .option('--state-dir <dir>', 'state directory of up', './var')
    .option('--listen <address>', 'IP address that up listens on (default: as it last did, else 127.0.0.1)')
    .option('--base-port <port>', 'first of the five ports (default: as up last had, else 8443)', parsePortNumber)
    .option('--wireguard-port <port>', 'UDP port of the local gateway', parsePortNumber, 51_820)
    .option('--json', 'print one JSON value')
    .action(async (options: DoctorOptions) => {
      const { formatResult, runDoctor } = await import('./doctor/doctor.ts')
      const { findState } = await import('./local/state-dir.ts')
      const last = findState(options.stateDir)
      const listen = options.listen ?? last?.listen ?? '127.0.0.1'
      const basePort = options.basePort ?? last?.basePort ?? 8443
      const results = await runDoctor({ ...options, listen, basePort, now: () => new Date() })
      if (options.json === true) printJson(io, results)
      else for (const result of results) io.print(formatResult(result))
      if (results.some(({ status }) => status === 'fail')) exit(EXIT.failed)
    })
}
