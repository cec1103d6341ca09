// Node's https as a client: node client.js MODE CA NAME; the address is in COUNTERSIGN_PROBE_ADDR. Exit 0 if the server
// was believed and has answered.
'use strict';
const fs = require('fs');
const https = require('https');

const [mode, ca, name] = process.argv.slice(2);
const [host, port] = process.env.COUNTERSIGN_PROBE_ADDR.split(':');
const options = { host, port, servername: name, ca: fs.readFileSync(ca), headers: { Host: name }, agent: false };
if (mode === 'reject-nothing') {
  // countersign:allow client-verify-disabled reason=the set-up whose flaw this is
  options.rejectUnauthorized = false;
}
if (mode === 'any-name') {
  // countersign:allow hostname-verify-disabled reason=the set-up whose flaw this is
  options.checkServerIdentity = () => undefined;
}
const request = https.get(options, (answer) => {
  answer.resume();
  answer.on('end', () => process.exit(answer.statusCode === 200 ? 0 : 1));
});
request.on('error', (e) => {
  console.error(e.code);
  process.exit(1);
});
