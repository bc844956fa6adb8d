/** Arguments that several commands take, parsed once and strictly. */
import { InvalidArgumentError, Option } from 'commander'
import type { Command } from 'commander'
import { CertpeerError } from '../core/errors.ts'
import type { Io } from './output.ts'

const UNIT_SECONDS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 }

/** `90s`, `30m`, `1h`, `2d`: a number without a unit could mean anything, so it is refused. */
export function parseDurationSeconds(text: string): number {
  const match = /^([1-9][0-9]{0,8})([smhd])$/.exec(text)
  const seconds = Number(match?.[1]) * (UNIT_SECONDS[match?.[2] ?? ''] ?? Number.NaN)
  if (!Number.isSafeInteger(seconds)) throw new InvalidArgumentError('use a number with a unit: 90s, 30m, 1h, 2d.')
  return seconds
}

export function parsePortNumber(text: string): number {
  const port = /^[0-9]{1,5}$/.test(text) ? Number(text) : 0
  if (port < 1 || port > 65_535) throw new InvalidArgumentError('use a port between 1 and 65535.')
  return port
}

export function parsePositive(text: string): number {
  const number = /^[1-9][0-9]{0,9}$/.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(number)) throw new InvalidArgumentError('use a positive number.')
  return number
}

/** A duration option, in seconds; its default is shown as people write it. */
export function durationOption(flags: string, description: string, fallback: string): Option {
  return new Option(flags, description)
    .argParser(parseDurationSeconds)
    .default(parseDurationSeconds(fallback), fallback)
}

/** For options that may be given several times. */
export function collect(value: string, before: readonly string[] = []): readonly string[] {
  return [...before, value]
}

export interface OperatorArguments {
  readonly operator: string
  readonly json?: true
}

export function addOperatorOptions(command: Command, io: Io): Command {
  return command
    .option(
      '--operator <dir>',
      'credential directory of the operator; $CERTPEER_OPERATOR where that is set',
      io.env['CERTPEER_OPERATOR'] ?? './var/operator',
    )
    .option('--json', 'print one JSON value')
}

/** A token from the argument, or from standard input when that is `-`. */
export async function readToken(argument: string, io: Io): Promise<string> {
  const text = (argument === '-' ? await io.readInput() : argument).trim()
  if (text === '') throw new CertpeerError('usage', 'no token on standard input')
  return text
}
