/** Asked anew each time: the compiler takes a signal that was not aborted once for one that never is. */
export function isAborted(signal: AbortSignal): boolean {
  return signal.aborted
}
