/** What the benchmarks say of their samples and of the machine they ran on. */
import { cpus, loadavg, totalmem } from 'node:os'

/** Nearest-rank percentile; `q` between 0 and 1. NaN of nothing. */
export function percentile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(q * sorted.length) - 1))] ?? Number.NaN
}

export function median(values: readonly number[]): number {
  return percentile(values, 0.5)
}

/** How far the rounds lie apart: (largest − smallest) / median, in percent. */
export function spreadPercent(values: readonly number[]): number {
  return ((Math.max(...values) - Math.min(...values)) / median(values)) * 100
}

/** Columns as wide as their widest cell; the first one reads from the left, the others end on the right. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => row[column]?.length ?? 0)))
  const line = (cells: readonly string[]) =>
    cells.map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)))
  return [head, widths.map((width) => '-'.repeat(width)), ...rows].map((row) => `  ${line(row).join('  ')}`).join('\n')
}

export function describeMachine(): string {
  const gibibytes = Math.round(totalmem() / 2 ** 30)
  return `${cpus().length} × ${cpus()[0]?.model ?? 'unknown CPU'}, ${gibibytes} GiB, Node ${process.version}, OpenSSL ${process.versions.openssl}`
}

/** Load average of the last minute, which counts what else runs on the machine too. */
export function load(): number {
  return loadavg()[0] ?? Number.NaN
}

export function ms(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)
}
