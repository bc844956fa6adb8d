/** `certpeer pki init`, `certpeer ca` and `certpeer ca credential`: everything that touches the authority's own disk. */
import { Option } from 'commander'
import type { Command } from 'commander'
import { CertpeerError } from '../core/errors.ts'
import { LOCAL_ROLES } from '../core/messages/local-credential.ts'
import type { LocalRole } from '../core/messages/local-credential.ts'
import { collect, parsePositive } from './arguments.ts'
import { printFields, printJson } from './output.ts'
import type { Io } from './output.ts'

interface InitOptions {
  readonly dir: string
  readonly rootDir: string
  readonly trustDomain: string
  readonly pen: number
  readonly tenant: readonly string[]
  readonly block: readonly string[]
  readonly organization?: string
  readonly pkiUrl?: string
}

interface CredentialOptions {
  readonly dir: string
  readonly role: LocalRole
  readonly name: string
  readonly out: string
  readonly tenant?: string
  readonly group: readonly string[]
  readonly dns: readonly string[]
  readonly ip: readonly string[]
  readonly json?: true
}

export function addAuthorityCommands(program: Command, io: Io): void {
  const pki = program.command('pki').description('the public key infrastructure')
  pki
    .command('init')
    .description('make root and issuing CAs; afterwards move the root key to a safe place')
    .requiredOption('--dir <dir>', 'directory of the authority to make')
    .requiredOption('--root-dir <dir>', 'directory for the root key')
    .option('--trust-domain <name>', 'trust domain of every identity', 'certpeer.internal')
    .option('--pen <number>', 'private enterprise number for our OIDs', parsePositive, 32_473)
    .requiredOption('--block <prefix>', 'addresses that may be certified; may be given several times', collect)
    .option(
      '--tenant <name=prefix,…>',
      'a tenant with its own part of the blocks; may be given several times',
      collect,
      [],
    )
    .option('--organization <name>', 'O of every subject')
    .option('--pki-url <url>', 'listener pki, for the CA certificates')
    .action(async (options: InitOptions) => {
      const { initializePki } = await import('../authority/pki-init.ts')
      const { parsePrefix } = await import('../core/ipam/prefix.ts')
      const { commandLog } = await import('./command-log.ts')
      const blocks = options.block.map(parsePrefix)
      const tenants = options.tenant.map((text) => {
        const [name, prefixes, ...more] = text.split('=')
        if (name === undefined || prefixes === undefined || more.length > 0) {
          throw new CertpeerError('usage', `--tenant takes NAME=PREFIX[,PREFIX], not "${text}"`)
        }
        return { name, blocks: prefixes.split(',').map(parsePrefix) }
      })
      await initializePki({
        caDir: options.dir,
        rootDir: options.rootDir,
        trustDomain: options.trustDomain,
        pen: options.pen,
        ...(options.organization === undefined ? {} : { organization: options.organization }),
        ...(options.pkiUrl === undefined ? {} : { pkiUrl: options.pkiUrl }),
        tenants: tenants.length === 0 ? [{ name: 'default', blocks }] : tenants,
        infrastructureBlocks: blocks,
        log: commandLog(io),
      })
      io.print(`made ${options.dir} and the root key in ${options.rootDir}: move that directory off this machine`)
    })

  const ca = program.command('ca').description('run the authority: ledger, issuing, CRL, OCSP')
  // An option of `ca` itself would swallow the one of `ca credential`, so it is asked for in each action.
  ca.option('--dir <dir>', 'directory of the authority', './var/ca').action(async ({ dir }: { dir: string }) => {
    const { runAuthority } = await import('../authority/main.ts')
    const { createLogger } = await import('../platform/log.ts')
    await runAuthority({ dir, log: createLogger({ name: 'ca' }), signal: io.stopSignal() })
  })
  ca.command('credential')
    .description("make an operator's or front's credential; only on the authority's own machine")
    .addOption(new Option('--role <role>', 'what it is for').choices(LOCAL_ROLES).makeOptionMandatory())
    .requiredOption('--out <dir>', 'credential directory to make')
    .option('--name <name>', 'name of the operator or front', 'admin')
    .option('--tenant <name>', 'confine an operator to one tenant')
    .option('--group <name>', 'access group an operator may grant; may be given several times', collect, [])
    .option('--dns <name>', 'server: DNS name; may be given several times', collect, [])
    .option('--ip <address>', 'server: IP address; may be given several times', collect, [])
    .option('--json', 'print one JSON value')
    .action(async (own: CredentialOptions, command: Command) => {
      const options = { ...own, ...command.optsWithGlobals<CredentialOptions>() }
      const { issueCredential } = await import('../authority/credential.ts')
      const { readOwnIdentity } = await import('../edge/client-certificate.ts')
      const { commandLog } = await import('./command-log.ts')
      await issueCredential({
        caDir: options.dir,
        role: options.role,
        name: options.name,
        out: options.out,
        ...(options.tenant === undefined ? {} : { tenant: options.tenant }),
        groups: options.group,
        dns: options.dns,
        ips: options.ip,
        log: commandLog(io),
      })
      const { verified } = await readOwnIdentity(options.out, new Date())
      const { uri, role, certificate } = verified
      const report = { identity: uri, role, serial: certificate.serial, notAfter: certificate.notAfter.toISOString() }
      if (options.json === true) printJson(io, report)
      else printFields(io, Object.entries(report))
    })
}
