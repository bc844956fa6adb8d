/** Network settings as an operator writes them: one YAML 1.2 document, nothing clever in it. */
import { LineCounter, parseDocument } from 'yaml'
import type { Document } from 'yaml'
import { CertpeerError } from '../errors.ts'
import { networkSettingsSchema } from './network.ts'
import type { NetworkSettings } from './network.ts'

const MAX_CHARACTERS = 65_536
const MAX_FAULTS = 8

/**
 * Reads network settings. Throws network_document_invalid naming every fault with its line. Defaults are filled in;
 * prefixes are still text here: core/policy/network.ts checks them.
 */
export function parseNetworkSettings(yamlText: string): NetworkSettings {
  if (yamlText.length > MAX_CHARACTERS) {
    throw new CertpeerError(
      'network_document_invalid',
      `the network settings are longer than ${MAX_CHARACTERS} characters`,
    )
  }
  const lines = new LineCounter()
  // `core`: no dates, no merge keys, no custom tags; a repeated key is an error and not the last one's win.
  const document = parseDocument(yamlText, {
    lineCounter: lines,
    schema: 'core',
    uniqueKeys: true,
    strict: true,
    prettyErrors: false,
  })
  const unreadable = [...document.errors, ...document.warnings]
  if (unreadable.length > 0) {
    throw invalid(unreadable.map((error) => `line ${lines.linePos(error.pos[0]).line}: ${error.message}`))
  }
  const result = networkSettingsSchema.safeParse(toPlain(document))
  if (result.success) return result.data
  throw invalid(
    result.error.issues.map((issue) => {
      const line = lineOf(document, issue.path, lines)
      const path = issue.path.map(String).join('.')
      return `${line === undefined ? '' : `line ${line}: `}${path === '' ? '' : `${path}: `}${issue.message}`
    }),
  )
}

function toPlain(document: Document): unknown {
  try {
    // No aliases: they are of no use here, and a few of them can stand for gigabytes.
    return document.toJS({ maxAliasCount: 0 })
  } catch (error) {
    throw new CertpeerError(
      'network_document_invalid',
      'network settings: aliases are not allowed; write the value out',
      {
        cause: error,
      },
    )
  }
}

/** The line of the innermost node on the path that is written down; undefined when nothing of it is. */
function lineOf(document: Document, path: readonly PropertyKey[], lines: LineCounter): number | undefined {
  for (let length = path.length; length > 0; length -= 1) {
    const node: unknown = document.getIn(path.slice(0, length), true)
    if (typeof node === 'object' && node !== null && 'range' in node && Array.isArray(node.range)) {
      const start: unknown = node.range[0]
      if (typeof start === 'number') return lines.linePos(start).line
    }
  }
  return undefined
}

function invalid(faults: readonly string[]): CertpeerError {
  const shown = faults.slice(0, MAX_FAULTS)
  const rest = faults.length - shown.length
  return new CertpeerError(
    'network_document_invalid',
    `network settings: ${shown.join('; ')}${rest > 0 ? `; and ${rest} more` : ''}`,
  )
}
