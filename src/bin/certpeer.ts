#!/usr/bin/env node
/** The executable: this process's arguments, streams and signals, handed to the command line. */
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

// Before anything is loaded: an older Node would stop at the first import it does not know, with a stack trace.
const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
if (major < 20 || (major === 20 && minor < 19)) {
  process.stderr.write(`certpeer: Node.js ${process.versions.node} is too old; install 20.19 or later\n`)
  process.exit(7)
}
const { runProgram } = await import('../cli/program.ts')

process.exitCode = await runProgram(process.argv.slice(2), {
  env: process.env,
  print: (text) => void process.stdout.write(`${text}\n`),
  say: (text) => void process.stderr.write(`${text}\n`),
  readInput,
  stopSignal: abortOnSignals,
})
