#!/usr/bin/env node
/** The executable: this process's arguments, streams and signals, handed to the command line. */
import { runProgram } from '../cli/program.ts'
import { abortOnSignals } from '../platform/lifecycle.ts'

const MAX_INPUT_BYTES = 1_048_576

async function readInput(): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of process.stdin) {
    const bytes = Buffer.from(chunk as Buffer)
    size += bytes.length
    if (size > MAX_INPUT_BYTES) throw new RangeError('standard input is too long')
    chunks.push(bytes)
  }
  return Buffer.concat(chunks).toString('utf8')
}

// `certpeer list … | head`: a reader that has seen enough is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1))

process.exitCode = await runProgram(process.argv.slice(2), {
  env: process.env,
  print: (text) => void process.stdout.write(`${text}\n`),
  say: (text) => void process.stderr.write(`${text}\n`),
  readInput,
  stopSignal: abortOnSignals,
})
