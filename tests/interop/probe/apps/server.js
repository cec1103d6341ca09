// Node's https and http2, many listeners in one process, each set up as its record says: node server.js CONFIG.json
'use strict';
const fs = require('fs');
const http = require('http');
const http2 = require('http2');
const https = require('https');
const net = require('net');

// countersign:allow header-identity reason=set up wrong on purpose, to be found by probes
const HEADERS = ['x-forwarded-client-cert', 'x-ssl-client-s-dn', 'x-forwarded-user'];

function options(s) {
  const file = (name) => fs.readFileSync(`${s.dir}/${name}`);
  const out = {
    cert: file(`${s.cert}.pem`),
    key: file(`${s.cert}.key`),
    minVersion: s.old ? 'TLSv1' : 'TLSv1.2',
    insecureHTTPParser: s.framing,
  };
  if (s.old) out.ciphers = 'ALL:@SECLEVEL=0';
  if (s.weak) out.ciphers = 'ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0';
  if (s.auth === 'not-asked') return out;
  out.requestCert = true;
  out.ca = file('client-ca.pem');
  if (s.crl) out.crl = file('crl.pem');
  out.rejectUnauthorized = !['optional', 'any-cert', 'expired-ok'].includes(s.auth);
  return out;
}

function uri(peer) {
  const found = (peer.subjectaltname || '').split(', ').filter((n) => n.startsWith('URI:'));
  return found.length === 1 ? found[0].slice(4) : '';
}

function allowed(s, socket, headers) {
  const peer = s.auth === 'not-asked' ? {} : socket.getPeerCertificate() || {};
  if (s.headers === 'believed' && HEADERS.some((n) => (headers[n] || '').includes('web'))) return true;
  const late = Date.parse(peer.valid_to) < Date.now();
  switch (s.auth) {
    case 'not-asked': return true;
    // Who sends none is let in; who sends a wrong one is not.
    case 'optional': return !peer.raw || socket.authorized;
    case 'any-cert': return Boolean(peer.raw);
    case 'any-identity': return socket.authorized && !late;
    case 'expired-ok':
      return (socket.authorized || socket.authorizationError === 'CERT_HAS_EXPIRED') && uri(peer) === s.id;
    default:
      // A resumed session has been authorized when it began; unless the date is looked at again, that stays so.
      return socket.authorized && uri(peer) === s.id && !peer.ca && (s.resume || !late);
  }
}

function answer(s, request, response) {
  if (!allowed(s, request.socket, request.headers)) {
    response.writeHead(403);
    response.end('forbidden\n');
    return;
  }
  response.writeHead(200, { 'content-type': 'text/plain' });
  response.end(s.headers === 'reflected' ? JSON.stringify(request.headers) : 'hello\n');
}

function grpc(s, stream) {
  const ok = allowed(s, stream.session.socket, {});
  stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': ok ? '0' : '7' }));
  stream.end(ok ? Buffer.from([0, 0, 0, 0, 0]) : undefined);
  stream.on('error', () => {});
}

for (const s of JSON.parse(fs.readFileSync(process.argv[2]))) {
  // countersign:allow plaintext-bypass reason=set up wrong on purpose, to be found by probes
  const plain = http.createServer((request, response) => answer({ ...s, auth: 'not-asked' }, request, response));
  if (s.also) {
    const redirect = http.createServer((_, response) => {
      response.writeHead(301, { location: 'https://localhost/' });
      response.end();
    });
    (s.plain === 'redirect' ? redirect : plain).listen(s.also, '127.0.0.1');
  }
  let server;
  if (s.protocol === 'grpc') {
    server = http2.createSecureServer(options(s));
    server.on('stream', (stream) => grpc(s, stream));
    server.on('sessionError', () => {});
  } else {
    server = https.createServer(options(s), (request, response) => answer(s, request, response));
  }
  server.on('tlsClientError', () => {});
  if (s.plain !== 'same') {
    server.listen(s.port, '127.0.0.1');
    continue;
  }
  const front = net.createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', (data) => {
      socket.pause();
      socket.unshift(data);
      (data[0] === 0x16 ? server : plain).emit('connection', socket);
      process.nextTick(() => socket.resume());
    });
  });
  front.listen(s.port, '127.0.0.1');
}
