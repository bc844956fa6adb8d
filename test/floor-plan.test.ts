/** The house's arrows point down: who may import whom, and which third party lives where (docs/design/architecture.md). */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { builtinModules } from 'node:module'
import { dirname, join, relative, resolve } from 'node:path'
import { test } from 'node:test'
import { packageRoot } from '../src/platform/package-root.ts'

const ROOT = packageRoot()
const SRC = join(ROOT, 'src')

interface SourceFile {
  readonly path: string // relative to src
  readonly imports: readonly { readonly specifier: string; readonly typeOnly: boolean; readonly lazy: boolean }[]
}

function sourceFiles(): SourceFile[] {
  const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'))
  return files.sort().map((path) => ({ path, imports: importsOf(readFileSync(join(SRC, path), 'utf8')) }))
}

function importsOf(source: string): SourceFile['imports'] {
  const statement = /^(?:import|export)\s+(type\s+)?(?:[^'"`;]*?\sfrom\s+)?['"]([^'"]+)['"]/gm
  const lazy = /\bimport\(\s*['"]([^'"]+)['"]\s*\)/g
  return [
    ...[...source.matchAll(statement)].map((m) => ({
      specifier: m[2] ?? '',
      typeOnly: m[1] !== undefined,
      lazy: false,
    })),
    ...[...source.matchAll(lazy)].map((m) => ({ specifier: m[1] ?? '', typeOnly: false, lazy: true })),
  ]
}

const FILES = sourceFiles()
const BY_PATH = new Map(FILES.map((file) => [file.path, file]))

function target(file: SourceFile, specifier: string): string {
  return relative(SRC, resolve(SRC, dirname(file.path), specifier))
}

/** A room, and the rooms it may import from beside itself. The three towers never import each other. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  core: [],
  platform: ['core'],
  authority: ['core', 'platform'],
  control: ['core', 'platform'],
  edge: ['core', 'platform'],
  cli: ['core', 'platform', 'authority', 'control', 'edge'],
  bin: ['core', 'platform', 'authority', 'control', 'edge', 'cli'],
}
const INSIDE_CORE: Readonly<Record<string, readonly string[]>> = {
  'errors.ts': [],
  der: ['errors.ts'],
  wireguard: ['errors.ts', 'ipam'],
  ipam: ['errors.ts', 'wireguard'],
  x509: ['errors.ts', 'der', 'wireguard', 'ipam', 'messages'],
  policy: ['errors.ts', 'der', 'wireguard', 'ipam', 'x509', 'messages'],
  messages: ['errors.ts', 'der', 'wireguard', 'ipam', 'x509', 'policy'],
}
/** Each third party's one home; a place is a folder or a file. */
const HOMES: Readonly<Record<string, readonly string[]>> = {
  express: ['platform/http/'],
  'rate-limiter-flexible': ['platform/http/'],
  knex: ['platform/db/'],
  pg: ['platform/db/'],
  pino: ['platform/log.ts'],
  zod: ['core/messages/', 'core/policy/', 'platform/config/', 'platform/credentials.ts'],
  yaml: ['core/messages/network-yaml.ts', 'cli/'],
  commander: ['cli/'],
  '@peculiar/x509': ['core/x509/'],
  'reflect-metadata': ['core/x509/'],
  '@peculiar/asn1-schema': ['core/x509/'],
  '@peculiar/asn1-x509': ['core/x509/'],
  pkijs: ['core/x509/'],
  'node-forge': ['core/x509/pkcs12.ts'],
}

test('rooms import only from rooms below them', () => {
  const wrong: string[] = []
  for (const file of FILES) {
    const room = file.path.split('/')[0] ?? ''
    const allowed = MAY_IMPORT[room]
    assert.ok(allowed, `src/${file.path} stands in no known room`)
    for (const { specifier } of file.imports.filter((i) => i.specifier.startsWith('.'))) {
      const other = target(file, specifier).split('/')[0] ?? ''
      if (other !== room && !allowed.includes(other)) wrong.push(`${file.path} -> ${specifier}`)
    }
  }
  assert.deepEqual(wrong, [])
})

test('inside core, the foundations do not know what stands on them', () => {
  const wrong: string[] = []
  for (const file of FILES.filter((f) => f.path.startsWith('core/'))) {
    const room = file.path.split('/')[1] ?? ''
    const allowed = INSIDE_CORE[room]
    assert.ok(allowed, `src/${file.path} stands in no known room of core`)
    for (const { specifier } of file.imports.filter((i) => i.specifier.startsWith('.'))) {
      const other = target(file, specifier).split('/')[1] ?? ''
      if (other !== room && !allowed.includes(other)) wrong.push(`${file.path} -> ${specifier}`)
    }
  }
  assert.deepEqual(wrong, [])
})

test('core is pure: no files, sockets, processes, clocks or randomness of its own', () => {
  const pure = new Set(['node:crypto', 'node:buffer', 'node:net'])
  const wrong: string[] = []
  for (const file of FILES.filter((f) => f.path.startsWith('core/'))) {
    for (const { specifier } of file.imports) {
      if (specifier.startsWith('node:') && !pure.has(specifier)) wrong.push(`${file.path} -> ${specifier}`)
    }
    const source = readFileSync(join(SRC, file.path), 'utf8')
    for (const impurity of [
      /\bDate\.now\(/,
      /\bnew Date\(\)/,
      /\brandomBytes\(/,
      /\bMath\.random\(/,
      /\brandomUUID\(/,
    ]) {
      if (impurity.test(source)) wrong.push(`${file.path}: ${impurity.source}`)
    }
  }
  assert.deepEqual(wrong, [])
})

test('each third party has one home', () => {
  const builtin = new Set(builtinModules)
  const wrong: string[] = []
  for (const file of FILES) {
    for (const { specifier } of file.imports) {
      if (specifier.startsWith('.') || specifier.startsWith('node:')) continue
      if (builtin.has(specifier)) wrong.push(`${file.path} -> ${specifier} (write node:${specifier})`)
      const name = specifier.startsWith('@')
        ? specifier.split('/').slice(0, 2).join('/')
        : (specifier.split('/')[0] ?? '')
      const homes = HOMES[name]
      if (!homes?.some((home) => file.path.startsWith(home))) wrong.push(`${file.path} -> ${specifier}`)
    }
  }
  assert.deepEqual(wrong, [])
})

/** Everything that loads when `entry` is imported: static imports that are not types only, transitively. */
function closure(entry: string): { files: Set<string>; packages: Set<string> } {
  const files = new Set<string>()
  const packages = new Set<string>()
  const walk = (path: string): void => {
    if (files.has(path)) return
    files.add(path)
    const file = BY_PATH.get(path)
    assert.ok(file, `src/${path} does not exist`)
    for (const { specifier, typeOnly, lazy } of file.imports) {
      if (typeOnly || lazy) continue
      if (specifier.startsWith('.')) walk(target(file, specifier))
      else packages.add(specifier)
    }
  }
  walk(entry)
  return { files, packages }
}

test('the gateway role loads no express, knex, pg, pkijs or node-forge', () => {
  const { packages } = closure('edge/gateway/main.ts')
  for (const name of ['express', 'knex', 'pg', 'pkijs', 'node-forge']) {
    assert.ok(!packages.has(name), `the gateway role loads ${name}`)
  }
})

test('the server role holds no signer', () => {
  const { files } = closure('control/main.ts')
  assert.deepEqual(
    [...files].filter((path) => path.startsWith('authority/')),
    [],
  )
})

test('no import cycles', () => {
  const state = new Map<string, 'open' | 'done'>()
  const trail: string[] = []
  const visit = (path: string): void => {
    if (state.get(path) === 'done') return
    if (state.get(path) === 'open') assert.fail(`cycle: ${[...trail.slice(trail.indexOf(path)), path].join(' -> ')}`)
    state.set(path, 'open')
    trail.push(path)
    const file = BY_PATH.get(path)
    for (const { specifier, typeOnly, lazy } of file?.imports ?? []) {
      if (!typeOnly && !lazy && file && specifier.startsWith('.')) visit(target(file, specifier))
    }
    trail.pop()
    state.set(path, 'done')
  }
  for (const file of FILES) visit(file.path)
})

test('no barrels: no file only re-exports', () => {
  const barrels = FILES.filter((file) => {
    const code = readFileSync(join(SRC, file.path), 'utf8').replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '')
    const statements = code.split('\n').filter((line) => line.trim() !== '')
    return statements.length > 0 && statements.every((line) => /^\s*export\s.*\sfrom\s/.test(line))
  })
  assert.deepEqual(
    barrels.map((file) => file.path),
    [],
  )
})

test('entries of bin stay small: parse, wire, run', () => {
  for (const file of FILES.filter((f) => f.path.startsWith('bin/'))) {
    const lines = readFileSync(join(SRC, file.path), 'utf8').split('\n').length
    assert.ok(lines <= 61, `src/${file.path} has ${lines} lines`)
  }
})
