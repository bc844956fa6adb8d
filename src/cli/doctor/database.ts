/** The two database roles: each connects with its own password, and PostgreSQL refuses it what the other may do. */
import { existsSync } from 'node:fs'
import { errorCode } from '../../core/errors.ts'
import { openDatabase, type Db } from '../../platform/db/connection.ts'
import { readSecretFile } from '../../platform/files.ts'
import { silentLogger } from '../../platform/log.ts'
import { statePaths } from '../local/options.ts'
import { fail, pass, warn, type Check, type CheckResult } from './check.ts'

export const checkDatabase: Check = async ({ stateDir }) => {
  const paths = statePaths(stateDir)
  return [
    await checkRole('certpeer_ca', paths.caDatabaseUrl, 'insert', 'peers'),
    await checkRole('certpeer_server', paths.serverDatabaseUrl, 'insert', 'certificates'),
  ]
}

/** `act` on `table` is the other role's business: having the right for it is the fault looked for. */
async function checkRole(role: string, urlFile: string, act: string, table: string): Promise<CheckResult> {
  const name = `database ${role}`
  if (!existsSync(urlFile)) return warn(name, `${urlFile} is not there yet`, 'run ./scripts/up, or certpeer migrate')
  let db: Db | undefined
  try {
    db = openDatabase({ url: (await readSecretFile(urlFile, 'the database URL')).trim(), log: silentLogger(), max: 1 })
    const answer = await db.raw<{ rows: { me: string; may: boolean; super: boolean }[] }>(
      `select current_user as me, has_table_privilege(?, ?) as may,
        (select rolsuper from pg_roles where rolname = current_user) as super`,
      [table, act],
    )
    const row = answer.rows[0]
    if (row?.me !== role || row.may || row.super) {
      const detail = `connects as ${row?.me ?? 'nobody'}${row?.super ? ', a superuser' : ''}${row?.may ? `, and may ${act} into ${table}` : ''}`
      return fail(name, detail, 'give each process its own role: run certpeer migrate with the owner’s DATABASE_URL')
    }
    return pass(name, `connects, and may not ${act} into ${table}`)
  } catch (error) {
    return warn(name, `cannot be reached (${errorCode(error)})`, 'start it with ./scripts/up, or check the URL file')
  } finally {
    await db?.destroy()
  }
}
