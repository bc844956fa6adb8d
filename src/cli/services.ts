/** `certpeer server`, `certpeer front` and `certpeer migrate`: one role each, configured by the file in its directory. */
import type { Command } from 'commander'
import { CertpeerError } from '../core/errors.ts'
import { printJson } from './output.ts'
import type { Io } from './output.ts'

interface MigrateOptions {
  readonly caPasswordFile?: string
  readonly serverPasswordFile?: string
  readonly json?: true
}

export function addServiceCommands(program: Command, io: Io): void {
  program
    .command('server')
    .description('run the control plane: provisioning, lists, gateway streams')
    .option('--dir <dir>', 'directory with config.json', './var/server')
    .action(async ({ dir }: { dir: string }) => {
      const { runServer } = await import('../control/main.ts')
      const { createLogger } = await import('../platform/log.ts')
      await runServer({ dir, log: createLogger({ name: 'server' }), signal: io.stopSignal() })
    })

  program
    .command('front')
    .description('keep the nginx beside it supplied: configuration, CRLs, server certificate')
    .option('--dir <dir>', 'directory with config.json', './var/front')
    .option('--once', 'end when a complete configuration is in place: what nginx needs before it can start')
    .option('--with-nginx', 'also start nginx and keep it running, where nobody else does')
    .action(async ({ dir, once, withNginx }: { dir: string; once?: true; withNginx?: true }) => {
      const { runFront } = await import('../edge/front/main.ts')
      const { createLogger } = await import('../platform/log.ts')
      const log = createLogger({ name: 'front' })
      await runFront({ dir, log, signal: io.stopSignal(), once: once === true, startNginx: withNginx === true })
    })

  program
    .command('migrate')
    .description('bring the schema of the database in DATABASE_URL up to date, as its owner')
    .option('--ca-password-file <file>', 'set the password of the role certpeer_ca to what the file holds')
    .option('--server-password-file <file>', 'set the password of the role certpeer_server to what the file holds')
    .option('--json', 'print one JSON value')
    .action(async (options: MigrateOptions) => {
      const ownerUrl = io.env['DATABASE_URL']
      if (ownerUrl === undefined || ownerUrl === '') {
        throw new CertpeerError('usage', 'set DATABASE_URL to the address of the database, as its owner')
      }
      const { migrate } = await import('../platform/db/migrate.ts')
      const { ensureRoles } = await import('../platform/db/roles.ts')
      const { readSecretFile } = await import('../platform/files.ts')
      const { commandLog } = await import('./command-log.ts')
      // Not the URL: it holds the owner's password.
      const tellWhy = (error: unknown): never => {
        if (!(error instanceof CertpeerError) || error.code !== 'unavailable') throw error
        const cause = error.cause instanceof Error ? error.cause.message : 'no answer'
        throw new CertpeerError('unavailable', `the database in DATABASE_URL cannot be used: ${cause}`, {
          cause: error,
        })
      }
      const passwordIn = async (file: string) => (await readSecretFile(file, 'the password')).trim()
      await ensureRoles(ownerUrl, {
        ...(options.caPasswordFile === undefined ? {} : { caPassword: await passwordIn(options.caPasswordFile) }),
        ...(options.serverPasswordFile === undefined
          ? {}
          : { serverPassword: await passwordIn(options.serverPasswordFile) }),
      }).catch(tellWhy)
      const applied = await migrate({ ownerUrl, log: commandLog(io) }).catch(tellWhy)
      if (options.json === true) printJson(io, { applied })
      else io.print(applied.length === 0 ? 'nothing to do' : applied.join('\n'))
    })
}
