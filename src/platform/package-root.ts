/** Where the package lies: the folder of package.json, from a checkout (src/) as well as from a build (dist/src/). */
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'

let found: string | undefined

/** Absolute path of the folder that holds package.json, migrations/, nginx/ and pki/. */
export function packageRoot(): string {
  found ??= walkUp(import.meta.dirname)
  return found
}

function walkUp(start: string): string {
  for (let folder = start; ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder
    if (dirname(folder) === folder) throw new TypeError(`no package.json above ${start}`)
  }
}
