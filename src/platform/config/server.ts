/** Configuration of the `server` process: config.json in its directory. Relative paths start at that directory. */
import { hostname } from 'node:os'
import { isAbsolute, join } from 'node:path'
import { z } from 'zod'
import { LOG_LEVELS } from '../log.ts'
import type { LogLevel } from '../log.ts'
import { readConfig } from './config-file.ts'

const serverConfigSchema = z.strictObject({
  /** Where server-api.sock and server-gateways.sock go. */
  runDir: z.string().min(1),
  /** Holds what nginx sends as x-certpeer-front, so that nobody else on the socket path is believed. */
  frontSecretFile: z.string().min(1),
  databaseUrlFile: z.string().min(1),
  /** The pinned root, PEM. */
  rootCertificate: z.string().min(1),
  trustDomain: z.string().min(1).max(253),
  pen: z.int().positive(),
  /** Where CRLs and issuing certificates are published: http://host:port or unix:/path/ca-pki.sock. */
  pkiSource: z
    .string()
    .regex(/^(https?:\/\/[^/]+|unix:\/.+)$/, 'must be http://host:port or unix:/path, without a path behind the host'),
  /** Name of this server among several; the host's name unless said. */
  serverName: z
    .string()
    .regex(/^[A-Za-z0-9._-]{1,64}$/, 'must be 1 to 64 letters, digits, dots, hyphens or underscores')
    .optional(),
  databaseConnections: z.int().min(2).max(100).default(8),
  logLevel: z.enum(LOG_LEVELS).optional(),
})

export interface ServerConfig {
  readonly runDir: string
  readonly frontSecretFile: string
  readonly databaseUrlFile: string
  readonly rootCertificate: string
  readonly trustDomain: string
  readonly pen: number
  readonly pkiSource: string
  readonly serverName: string
  readonly databaseConnections: number
  readonly logLevel: LogLevel | undefined
}

/** Reads `config.json` of the directory; throws config_invalid with every fault. */
export function readServerConfig(dir: string): ServerConfig {
  const config = readConfig(serverConfigSchema, join(dir, 'config.json'))
  const resolve = (path: string): string => (isAbsolute(path) ? path : join(dir, path))
  return {
    ...config,
    runDir: resolve(config.runDir),
    frontSecretFile: resolve(config.frontSecretFile),
    databaseUrlFile: resolve(config.databaseUrlFile),
    rootCertificate: resolve(config.rootCertificate),
    serverName: config.serverName ?? hostname(),
    logLevel: config.logLevel,
  }
}
