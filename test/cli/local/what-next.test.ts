import assert from 'node:assert/strict'
import { test } from 'node:test'
import { whatNext } from '../../../src/cli/local/up.ts'

const REPORT = {
  enrollUrl: 'https://127.0.0.1:8443',
  authorityUrl: 'https://127.0.0.1:8444',
  apiUrl: 'https://127.0.0.1:8445',
  gatewaysUrl: 'https://127.0.0.1:8446',
  pkiUrl: 'http://127.0.0.1:8447',
  rootCertificate: '/srv/state/ca/root.pem',
  stateDir: '/srv/state',
  operatorDir: '/srv/state/operator',
  gateway: null,
}

test('what up prints can be typed: the program by its name, directories as a shell takes them', () => {
  const text = whatNext(REPORT, 'certpeer')
  assert.match(text, /^ {2}export CERTPEER_OPERATOR=\/srv\/state\/operator$/m)
  assert.match(text, /^ {2}certpeer device enroll TOKEN --dir laptop /m)
  const quoted = whatNext({ ...REPORT, operatorDir: "/srv/Ann's state/operator" }, 'certpeer')
  assert.ok(quoted.includes("export CERTPEER_OPERATOR='/srv/Ann'\\''s state/operator'"))
})
