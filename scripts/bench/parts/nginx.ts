/** nginx with certpeer's own rendered configuration of listener *api*, in front of whichever program is measured. */
import { mkdirSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { renderSet } from '../../../src/edge/front/render.ts'
import type { BenchPki } from './pki.ts'
import { freePort, until, type Children } from './processes.ts'

/** Starts it and waits for its port, which is returned. The upstream is `<runDir>/server-api.sock`. */
export async function startNginx(options: {
  name: string
  dir: string
  runDir: string
  pki: BenchPki
  frontSecret: string
  children: Children
}): Promise<number> {
  const { name, runDir, pki, frontSecret, children } = options
  const dir = join(options.dir, name)
  mkdirSync(dir, { mode: 0o700 })
  const port = await freePort()
  const set = join(dir, 'set')
  await renderSet({
    dir,
    set,
    runDir,
    workers: 'auto',
    listen: { api: `127.0.0.1:${port}` },
    frontSecret,
    issuersPem: pki.issuersPem,
    crlPem: pki.crlPem,
    serverCertificatePem: pki.server.certificate,
    serverKeyPem: pki.server.key,
  })
  const args = ['-p', `${dir}/`, '-c', join(set, 'nginx.conf'), '-e', 'stderr']
  // Debian keeps it where only root's PATH looks.
  const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin` }
  children.start({ name, command: 'nginx', args, env, logDir: dir, stopSignal: 'SIGTERM' })
  await until(`${name} listens`, () => accepts(port))
  return port
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port })
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}
