/** What stands in the state directory: PEN, lifetimes, the age of every CRL, and where the root key is. */
import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseCertificate } from '../../core/x509/certificate.ts'
import { parseCrl } from '../../core/x509/crl.ts'
import { certpeerOids, DEFAULT_PEN } from '../../core/x509/oids.ts'
import { pemToDer } from '../../core/x509/pem.ts'
import { readAuthorityConfig, readAuthorityFile } from '../../platform/config/authority.ts'
import { statePaths } from '../local/options.ts'
import { fail, pass, warn, type Check, type CheckResult } from './check.ts'

const DAY_MS = 86_400_000
const ROOT_CRL_ALARM_DAYS = 60
const ISSUER_ALARM_DAYS = 90
const SHORT_LIFETIME_SECONDS = 300

export const checkPki: Check = async ({ stateDir, now }) => {
  const { ca } = statePaths(stateDir)
  if (!existsSync(join(ca, 'authority.json'))) {
    return [warn('pki', `there is no PKI in ${stateDir} yet`, 'run ./scripts/up, or certpeer pki init')]
  }
  const authority = readAuthorityFile(ca)
  return [
    penResult(authority.pen),
    ...(await issuerResults(ca, authority.issuers, now())),
    ...(await crlResults(ca, authority.pen, now())),
    ...lifetimeResults(ca),
  ]
}

export const checkRootKey: Check = async ({ stateDir }) => {
  const key = join(statePaths(stateDir).root, 'root.key')
  if (!existsSync(key)) return [pass('root key', 'not on this machine')]
  const advice = `move ${key} to offline storage (two copies) as pki/ceremony.md says; it is needed again for a new issuing CA and before the root CRL ends`
  return [warn('root key', `the root key is on this machine: ${key}`, advice)]
}

function penResult(pen: number): CheckResult {
  return pen === DEFAULT_PEN
    ? warn(
        'pen',
        `OIDs are under ${pen}, the number reserved for documentation (RFC 5612)`,
        'ask IANA for a Private Enterprise Number (free) and give it to pki init before real devices enroll',
      )
    : pass('pen', `OIDs are under Private Enterprise Number ${pen}`)
}

async function issuerResults(
  ca: string,
  issuers: readonly { name: string; certificate: string }[],
  now: Date,
): Promise<CheckResult[]> {
  const results: CheckResult[] = []
  for (const issuer of issuers) {
    const certificate = parseCertificate(pemToDer(await readFile(join(ca, issuer.certificate), 'utf8')))
    const days = Math.floor((certificate.notAfter.getTime() - now.getTime()) / DAY_MS)
    const detail = `issuing CA ${issuer.name} ends in ${days} days`
    if (days > ISSUER_ALARM_DAYS) results.push(pass('issuer', detail))
    else
      results.push((days > 0 ? warn : fail)('issuer', detail, 'sign a new issuing CA with the root (pki/ceremony.md)'))
  }
  return results
}

async function crlResults(ca: string, pen: number, now: Date): Promise<CheckResult[]> {
  const published = join(ca, 'crl')
  const names = existsSync(published) ? (await readdir(published)).filter((name) => name.endsWith('.crl')) : []
  const files = [
    { name: 'root', path: join(ca, 'root.crl') },
    ...names.map((name) => ({ name: name.slice(0, -4), path: join(published, name) })),
  ]
  const results: CheckResult[] = []
  for (const { name, path } of files) {
    if (name === 'root' && results.some((result) => result.detail.startsWith('root CRL'))) continue
    const crl = parseCrl(await readFile(path), certpeerOids(pen))
    const leftMs = crl.nextUpdate.getTime() - now.getTime()
    const detail = `${name} CRL ${crl.number} is good until ${crl.nextUpdate.toISOString()}`
    const alarmMs = name === 'root' ? ROOT_CRL_ALARM_DAYS * DAY_MS : DAY_MS / 2
    const advice =
      name === 'root'
        ? 'publish the next root CRL: nginx refuses everybody under an expired one (pki/ceremony.md)'
        : 'the authority publishes every 5 minutes: see that `certpeer ca` runs and can write its directory'
    if (leftMs > alarmMs) results.push(pass('crl', detail))
    else results.push((leftMs > 0 ? warn : fail)('crl', detail, advice))
  }
  return results
}

function lifetimeResults(ca: string): CheckResult[] {
  if (!existsSync(join(ca, 'config.json'))) return []
  return Object.entries(readAuthorityConfig(ca).lifetimeSeconds)
    .filter(([, seconds]) => seconds < SHORT_LIFETIME_SECONDS)
    .map(([profile, seconds]) => {
      const advice = 'lifetimes under 5 minutes are for tests: a short outage of the authority ends every tunnel'
      return warn('lifetime', `certificates of profile ${profile} live ${seconds} s`, advice)
    })
}
