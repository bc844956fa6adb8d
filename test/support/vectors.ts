/** Golden files of test/vectors, made by other tools; the command stands beside each. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { packageRoot } from '../../src/platform/package-root.ts'
import { pemToDer } from '../../src/core/x509/pem.ts'

export function vectorPath(...path: string[]): string {
  return join(packageRoot(), 'test', 'vectors', ...path)
}

/** DER of test/vectors/certificates/<name>.pem. */
export function vectorCertificate(name: string): Buffer {
  return pemToDer(readFileSync(vectorPath('certificates', `${name}.pem`), 'utf8'))
}
