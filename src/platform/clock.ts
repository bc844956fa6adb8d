/** The clock as an argument, so that everything that depends on time can be tested at any time. */
export type Now = () => Date

export const systemNow: Now = () => new Date()
