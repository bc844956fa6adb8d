/** The two roles that processes use. What each may do is written in the migrations; here they only come to be. */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto'
import pg from 'pg'
import { CertpeerError } from '../../core/errors.ts'
import { sqlStateOf, toDatabaseError } from './errors.ts'

export const CA_ROLE = 'certpeer_ca'
export const SERVER_ROLE = 'certpeer_server'

export interface RolePasswords {
  /** Absent: the password stays as it is; a role made without one cannot log in yet. */
  readonly caPassword?: string
  readonly serverPassword?: string
}

const MIN_PASSWORD_LENGTH = 16
const SCRAM_ITERATIONS = 4096
const INSUFFICIENT_PRIVILEGE = '42501'
/** duplicate_object, or unique_violation when two run at once: roles belong to the whole server, not to a database. */
const ALREADY_THERE = new Set(['42710', '23505'])
/** The same password set by two at once; the row version of the loser is gone. */
const CONCURRENT_UPDATE = 'XX000'

/**
 * Makes the roles where they are missing, sets the given passwords, and closes the database to everybody else. Throws
 * missing_privilege when the owner may not make roles and they are not there yet.
 */
export async function ensureRoles(ownerUrl: string, passwords: RolePasswords = {}): Promise<void> {
  const client = new pg.Client({ connectionString: ownerUrl, connectionTimeoutMillis: 5_000 })
  client.on('error', () => undefined)
  try {
    await client.connect()
    await ensureRole(client, CA_ROLE, passwords.caPassword)
    await ensureRole(client, SERVER_ROLE, passwords.serverPassword)
    const { rows } = await client.query<{ name: string }>('select quote_ident(current_database()) as name')
    const database = rows[0]?.name
    if (database === undefined) throw new TypeError('current_database() answered nothing')
    await client.query(`revoke all on database ${database} from public`)
    await client.query(`grant connect on database ${database} to ${CA_ROLE}, ${SERVER_ROLE}`)
  } catch (error) {
    throw toDatabaseError(error)
  } finally {
    await client.end().catch(() => undefined)
  }
}

async function ensureRole(client: pg.Client, role: string, password: string | undefined): Promise<void> {
  const { rows } = await client.query('select 1 from pg_roles where rolname = $1', [role])
  if (rows.length === 0) await createRole(client, role)
  if (password === undefined) return
  if (password.length < MIN_PASSWORD_LENGTH) {
    throw new CertpeerError(
      'config_invalid',
      `the password of ${role} must have ${MIN_PASSWORD_LENGTH} characters or more`,
    )
  }
  const alter = `alter role ${role} login password ${pg.escapeLiteral(scramVerifier(password, randomBytes(16)))}`
  try {
    await client.query(alter)
  } catch (error) {
    if (sqlStateOf(error) !== CONCURRENT_UPDATE) throw error
    await client.query(alter)
  }
}

async function createRole(client: pg.Client, role: string): Promise<void> {
  try {
    await client.query(`create role ${role} nologin nosuperuser nocreatedb nocreaterole noreplication nobypassrls`)
  } catch (error) {
    const state = sqlStateOf(error) ?? ''
    if (ALREADY_THERE.has(state)) return
    if (state !== INSUFFICIENT_PRIVILEGE) throw error
    throw new CertpeerError(
      'missing_privilege',
      `the role ${role} does not exist and the owner may not make it; as an administrator run: create role ${role} nologin`,
      { cause: error },
    )
  }
}

/**
 * What PostgreSQL stores for SCRAM-SHA-256 (RFC 5803 section 2.1). Made here, so that the password itself is in no
 * statement, and so in no server log.
 */
export function scramVerifier(password: string, salt: Buffer): string {
  // SASLprep (RFC 4013) leaves printable ASCII as it is; nothing else is taken, so it need not be done.
  if (!/^[\x21-\x7e]{1,512}$/.test(password)) {
    throw new CertpeerError('config_invalid', 'a database password must be printable ASCII without spaces')
  }
  const salted = pbkdf2Sync(password, salt, SCRAM_ITERATIONS, 32, 'sha256')
  const storedKey = createHash('sha256').update(hmac(salted, 'Client Key')).digest('base64')
  const serverKey = hmac(salted, 'Server Key').toString('base64')
  return `SCRAM-SHA-256$${SCRAM_ITERATIONS}:${salt.toString('base64')}$${storedKey}:${serverKey}`
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest()
}
