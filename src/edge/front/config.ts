/** Which listeners a front serves. */

export const LISTENERS = ['enroll', 'authority', 'api', 'gateways', 'pki'] as const
export type Listener = (typeof LISTENERS)[number]

/** The listeners of each role: an authority's front and a control's front may be different machines. */
export const LISTENERS_OF_ROLE = {
  authority: ['enroll', 'authority', 'pki'],
  control: ['api', 'gateways'],
} as const satisfies Record<string, readonly Listener[]>

export function listenersOf(roles: readonly (keyof typeof LISTENERS_OF_ROLE)[]): readonly Listener[] {
  return LISTENERS.filter((listener) =>
    roles.some((role) => (LISTENERS_OF_ROLE[role] as readonly Listener[]).includes(listener)),
  )
}
