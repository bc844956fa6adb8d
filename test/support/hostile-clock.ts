/**
 * Loaded before a program (`node --import`), sets its wall clock aside by the milliseconds that a file holds; the file
 * may change while it runs. The monotonic clock goes on, as when somebody sets a machine's clock.
 */
import { readFileSync } from 'node:fs'

const RealDate = Date
const file = process.env['HOSTILE_CLOCK_FILE']
let offsetMs = 0

function read(path: string): void {
  try {
    offsetMs = Number(readFileSync(path, 'utf8').trim())
  } catch {
    offsetMs = 0
  }
}

class ShiftedDate extends RealDate {
  constructor(...args: readonly unknown[]) {
    if (args.length === 0) super(ShiftedDate.now())
    else super(...(args as [number]))
  }

  static override now(): number {
    return RealDate.now() + offsetMs
  }
}

if (file !== undefined) {
  read(file)
  setInterval(() => read(file), 20).unref()
  Object.defineProperty(globalThis, 'Date', { value: ShiftedDate, writable: true, configurable: true })
}
