/** What a check of `certpeer doctor` is: a name, a verdict and, unless it passes, what to do. */
export interface CheckResult {
  readonly name: string
  readonly status: 'pass' | 'warn' | 'fail'
  /** What was found, in one line. */
  readonly detail: string
  /** What to do about it; only where the status is not `pass`. */
  readonly advice?: string
}

export interface DoctorContext {
  /** The state directory of `certpeer up`; checks that need one say so when it is not there. */
  readonly stateDir: string
  readonly listen: string
  readonly basePort: number
  readonly wireguardPort: number
  readonly now: () => Date
}

export type Check = (context: DoctorContext) => Promise<CheckResult[]>

export function pass(name: string, detail: string): CheckResult {
  return { name, status: 'pass', detail }
}

export function warn(name: string, detail: string, advice: string): CheckResult {
  return { name, status: 'warn', detail, advice }
}

export function fail(name: string, detail: string, advice: string): CheckResult {
  return { name, status: 'fail', detail, advice }
}
