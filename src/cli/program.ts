/** The command line: one file per noun, and nothing behind a command is loaded before it is called. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Command, CommanderError } from 'commander'
import { refuseUnknownVariables } from '../platform/config/config-file.ts'
import { packageRoot } from '../platform/package-root.ts'
import { addAuthorityCommands } from './authority.ts'
import { addDeviceCommands } from './device.ts'
import { addGatewayCommands } from './gateway.ts'
import { addListCommands } from './list.ts'
import { addMachineCommands } from './machine.ts'
import { addNetworkCommands } from './network.ts'
import { addOperatorCommands } from './operator.ts'
import { errorLine, EXIT, exitCodeOf } from './output.ts'
import type { ExitCode, Io } from './output.ts'
import { addRevokeCommand } from './revoke.ts'
import { addServiceCommands } from './services.ts'
import { addTokenCommands } from './token.ts'

const ENVIRONMENT = ['CERTPEER_OPERATOR'] as const

/** Runs one command and returns its exit code; whatever it throws is told in one line. */
export async function runProgram(args: readonly string[], io: Io): Promise<ExitCode> {
  let code: ExitCode = EXIT.done
  const program = buildProgram(io, (other) => {
    code = other
  })
  try {
    refuseUnknownVariables(ENVIRONMENT, io.env)
    await program.parseAsync(args, { from: 'user' })
    return code
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage
    io.say(errorLine(error))
    return exitCodeOf(error)
  }
}

function buildProgram(io: Io, exit: (code: ExitCode) => void): Command {
  const program = new Command('certpeer')
    .description('WireGuard at scale, run from a PKI: your certificate is your tunnel.')
    .version(packageVersion(), '--version')
    .helpCommand(false)
    .showHelpAfterError(false)
  settle(program, io)
  addMachineCommands(program, io, exit)
  addTokenCommands(program, io)
  addDeviceCommands(program, io)
  addGatewayCommands(program, io)
  addNetworkCommands(program, io)
  addListCommands(program, io)
  addRevokeCommand(program, io, exit)
  addOperatorCommands(program, io)
  addAuthorityCommands(program, io)
  addServiceCommands(program, io)
  // Settings are inherited only by commands made after them on the same parent, so every command gets its own.
  for (const command of descendants(program)) settle(command, io)
  return program
}

/** Help is a result, a mistake is one line for people with where to look. */
function settle(command: Command, io: Io): void {
  command.exitOverride().configureOutput({
    writeOut: (text) => io.print(text.trimEnd()),
    writeErr: (text) => io.say(text.trimEnd()),
    outputError: (text, write) => {
      const fault = text
        .replace(/^error: /, '')
        .trim()
        .replaceAll(/\s*\n\s*/g, ' ')
      write(`certpeer: ${fault} (see ${pathOf(command)} --help)`)
    },
  })
}

function descendants(command: Command): Command[] {
  return command.commands.flatMap((child) => [child, ...descendants(child)])
}

function pathOf(command: Command): string {
  return command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`
}

function packageVersion(): string {
  const { version } = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { version: string }
  return version
}
