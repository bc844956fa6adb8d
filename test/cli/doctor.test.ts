/** `certpeer doctor` on states that are good, missing and bad: what it finds, and that it goes on after each. */
import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { rmSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo, type Server } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { initializePki } from '../../src/authority/pki-init.ts'
import type { CheckResult, DoctorContext } from '../../src/cli/doctor/check.ts'
import { formatResult, runDoctor } from '../../src/cli/doctor/doctor.ts'
import { parsePrefix } from '../../src/core/ipam/prefix.ts'
import { silentLogger } from '../../src/platform/log.ts'
import { temporaryDirectory } from '../support/http.ts'

const DAY_MS = 86_400_000

/** A state directory with a PKI and nothing else, and ports that nobody has. */
async function place(t: TestContext, pen = 32_473): Promise<DoctorContext> {
  const folder = temporaryDirectory()
  t.after(() => folder.remove())
  const blocks = [parsePrefix('10.1.0.0/16')]
  await initializePki({
    caDir: join(folder.path, 'ca'),
    rootDir: join(folder.path, 'root'),
    trustDomain: 'certpeer.internal',
    pen,
    tenants: [{ name: 'default', blocks }],
    infrastructureBlocks: blocks,
    log: silentLogger(),
  })
  return { stateDir: folder.path, listen: '127.0.0.1', basePort: 28_443, wireguardPort: 28_820, now: () => new Date() }
}

function find(results: readonly CheckResult[], name: string, detail = /./): CheckResult {
  const found = results.find((result) => result.name === name && detail.test(result.detail))
  return found ?? assert.fail(`no ${name} ${String(detail)} in\n${results.map(formatResult).join('\n')}`)
}

test('each fault is told with what to do, and nothing else is', async (t) => {
  const context = await place(t)
  const results = await runDoctor(context)
  for (const { name, status, advice } of results) assert.equal(advice !== undefined, status !== 'pass', name)
  for (const name of ['node', 'nginx', 'tools', 'ports', 'rfc3779', 'issuer', 'crl']) {
    assert.equal(find(results, name).status, 'pass', name)
  }
  assert.match(find(results, 'pen').detail, /reserved for documentation/)
  assert.equal(find(results, 'root key').status, 'warn')
  assert.match(find(results, 'root key').advice ?? '', /offline/)
  assert.match(find(results, 'database certpeer_ca').detail, /is not there yet/)
  assert.match(
    formatResult(find(results, 'root key')),
    /^warn {2}root key +the root key is on this machine: .*\n +-> move /,
  )
})

test('an own enterprise number, and the root key taken away', async (t) => {
  const context = await place(t, 4711)
  rmSync(join(context.stateDir, 'root', 'root.key'))
  const results = await runDoctor(context)
  assert.equal(find(results, 'pen').status, 'pass')
  assert.equal(find(results, 'root key').status, 'pass')
})

test('a clock that is wrong, CRLs and CAs that end', async (t) => {
  const context = await place(t)
  const at = (days: number) => runDoctor({ ...context, now: () => new Date(Date.now() + days * DAY_MS) })
  assert.equal(find(await runDoctor({ ...context, now: () => new Date(0) }), 'clock').status, 'fail')
  const late = await at(370)
  assert.match(find(late, 'crl', /^root CRL/).advice ?? '', /publish the next root CRL/)
  assert.equal(find(late, 'crl', /^root CRL/).status, 'warn')
  const tooLate = await at(20_000)
  assert.equal(find(tooLate, 'crl', /^root CRL/).status, 'fail')
  assert.equal(find(tooLate, 'issuer', /device-default/).status, 'fail')
})

test('ports that somebody else has', async (t) => {
  const context = await place(t)
  const server = await listen(t)
  const { port } = server.address() as AddressInfo
  const socket = createSocket('udp4')
  await new Promise<void>((resolve) => socket.bind(0, () => resolve()))
  t.after(() => socket.close())
  const results = await runDoctor({ ...context, basePort: port - 2, wireguardPort: socket.address().port })
  const ports = find(results, 'ports')
  assert.equal(ports.status, 'fail')
  assert.match(ports.detail, new RegExp(`api ${port}`))
  assert.equal(find(results, 'wireguard port').status, 'warn')
})

test('without a PKI, and with one that cannot be read', async (t) => {
  const context = await place(t)
  writeFileSync(join(context.stateDir, 'ca', 'authority.json'), '{')
  const damaged = find(await runDoctor(context), 'pki')
  assert.equal(damaged.status, 'fail')
  assert.match(damaged.detail, /could not be checked \(config_invalid\): .*authority\.json/)
  rmSync(join(context.stateDir, 'ca'), { recursive: true })
  assert.equal(find(await runDoctor(context), 'pki').status, 'warn')
})

async function listen(t: TestContext): Promise<Server> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => server.close())
  return server
}
