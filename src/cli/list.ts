/** `certpeer list devices|certificates|peers|gateways`: every page of a view. */
import type { Command } from 'commander'
import { addOperatorOptions } from './arguments.ts'
import type { OperatorArguments } from './arguments.ts'
import { printJson, printTable } from './output.ts'
import type { Io } from './output.ts'

const VIEWS = {
  devices: 'devices with their addresses and current certificate',
  certificates: 'certificates, also revoked and expired ones',
  peers: 'peers that gateways are told to have',
  gateways: 'gateways and what they have applied',
} as const

export function addListCommands(program: Command, io: Io): void {
  const list = program.command('list').description('what there is')
  for (const [view, description] of Object.entries(VIEWS)) {
    addOperatorOptions(list.command(view).description(description), io).action(async (options: OperatorArguments) => {
      const { withOperator } = await import('./operator-session.ts')
      const { isView, readView } = await import('./views.ts')
      if (!isView(view)) throw new TypeError(`no view ${view}`)
      await withOperator(options, io, async (session) => {
        const { items, header, rows } = await readView(view, session.api)
        if (options.json === true) printJson(io, items)
        else printTable(io, header, rows)
      })
    })
  }
}
