/** Plays the transcripts beside this file: command, exit code, and what people and programs see. */
import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { runProgram } from '../../src/cli/program.ts'
import { packageRoot } from '../../src/platform/package-root.ts'
import { temporaryDirectory } from '../support/http.ts'

interface Step {
  readonly line: number
  readonly args: readonly string[]
  readonly exit: number
  readonly stdout: RegExp
  readonly stderr: RegExp
}

const EMPTY = /^$/
const FOLDER = join(packageRoot(), 'test', 'cli')

function parseTranscript(text: string): Step[] {
  const steps: Step[] = []
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue
    if (line.startsWith('> ')) {
      steps.push({ line: index + 1, args: line.slice(2).split(' '), exit: 0, stdout: EMPTY, stderr: EMPTY })
      continue
    }
    const last = steps.pop() ?? assert.fail(`line ${index + 1} stands before any command`)
    const [, what, value = ''] = /^(exit|stdout|stderr) (.+)$/.exec(line) ?? assert.fail(`line ${index + 1}: ${line}`)
    if (what === 'exit') steps.push({ ...last, exit: Number(value) })
    else {
      const pattern = /^\/(.+)\/$/.exec(value)?.[1] ?? assert.fail(`line ${index + 1} has no /pattern/`)
      steps.push({ ...last, [what === 'stdout' ? 'stdout' : 'stderr']: new RegExp(pattern) })
    }
  }
  return steps
}

for (const file of readdirSync(FOLDER).filter((name) => name.endsWith('.txt'))) {
  describe(file, () => {
    for (const step of parseTranscript(readFileSync(join(FOLDER, file), 'utf8'))) {
      test(`${file}:${step.line} certpeer ${step.args.join(' ')}`, async () => {
        const folder = temporaryDirectory()
        const out: string[] = []
        const err: string[] = []
        try {
          const args = step.args.map((argument) => argument.replaceAll('$DIR', folder.path))
          const exit = await runProgram(args, {
            env: {},
            print: (text) => void out.push(text),
            say: (text) => void err.push(text),
            readInput: () => Promise.resolve(''),
            stopSignal: () => AbortSignal.abort(),
          })
          assert.match(err.join('\n'), step.stderr)
          assert.match(out.join('\n'), step.stdout)
          assert.equal(exit, step.exit)
          // Nothing is left behind by a command that was used wrongly.
          if (exit === 2) assert.deepEqual(readdirSync(folder.path), [])
        } finally {
          folder.remove()
        }
      })
    }
  })
}

test('an unknown CERTPEER_ variable is a misspelt one', async () => {
  const err: string[] = []
  const exit = await runProgram(['list', 'devices'], {
    env: { CERTPEER_OPERATR: 'x' },
    print: () => undefined,
    say: (text) => void err.push(text),
    readInput: () => Promise.resolve(''),
    stopSignal: () => AbortSignal.abort(),
  })
  assert.equal(exit, 7)
  assert.match(err.join('\n'), /^certpeer: unknown environment variable CERTPEER_OPERATR; known are CERTPEER_OPERATOR$/)
})
