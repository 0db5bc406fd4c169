// The API client's TLS, HTTP/2 and proxy, against Node's own servers.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createSecureServer } from 'node:http2';
import { createServer as createHttps } from 'node:https';
import { connect } from 'node:net';
import { join } from 'node:path';
import { newHome, runExedev } from './configure_form.mjs';

let home, ca, good, other;
const open = [];

function certificate(name, subject) {
  const file = (end) => join(home.home, `${name}.${end}`);
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
    '-subj', `/CN=${subject}`, '-addext', `subjectAltName=DNS:${subject}`, '-keyout', file('key'), '-out', file('crt')],
  { stdio: 'ignore' });
  return { key: readFileSync(file('key')), cert: readFileSync(file('crt')), path: file('crt') };
}

before(async () => {
  home = await newHome();
  good = certificate('good', 'localhost');
  other = certificate('other', 'elsewhere.example');
  ca = good.path;
});
after(async () => {
  for (const s of open) { s.closeAllConnections?.(); s.close(); }
  await home.close();
});

const answer = (requests) => (req, res) => {
  let body = '';
  req.on('data', (d) => { body += d; }).on('end', () => {
    requests.push({ version: req.httpVersion, method: req.method, path: req.url, body, headers: req.headers });
    res.setHeader('content-type', 'application/json');
    res.end(JSON.stringify({ vms: [{ vm_name: 'bloggy', ssh_dest: 'bloggy.exe.xyz', status: 'running' }] }));
  });
};
const listen = (server) => new Promise((resolve) => {
  open.push(server);
  server.listen(0, '127.0.0.1', () => resolve(server.address().port));
});
const ls = (port, ...settings) => runExedev(home.home, ['ls', '--json', `--api-url=https://localhost:${port}`, ...settings],
  { env: { EXE_API_KEY: 'exe1.transporttoken' } });

test('HTTP/2 where it is offered, verified against caFile', async () => {
  const requests = [];
  const port = await listen(createSecureServer({ key: good.key, cert: good.cert, allowHTTP1: true }, answer(requests)));
  const r = await ls(port, `--ca-file=${ca}`);
  assert.equal(r.code, 0, r.stderr);
  assert.equal(JSON.parse(r.stdout)[0].name, 'bloggy');
  assert.equal(requests.length, 1);
  assert.equal(requests[0].version, '2.0');
  assert.equal(requests[0].method, 'POST');
  assert.equal(requests[0].path, '/exec');
  assert.equal(requests[0].headers.authorization, 'Bearer exe1.transporttoken');
});

test('HTTP/1.1 where that is all there is', async () => {
  const requests = [];
  const port = await listen(createHttps({ key: good.key, cert: good.cert }, answer(requests)));
  const r = await ls(port, `--ca-file=${ca}`);
  assert.equal(r.code, 0, r.stderr);
  assert.equal(requests[0].version, '1.1');
});

test('a certificate nobody vouches for gets no token', async () => {
  const requests = [];
  const port = await listen(createHttps({ key: good.key, cert: good.cert }, answer(requests)));
  const r = await ls(port);
  assert.notEqual(r.code, 0);
  assert.match(r.stderr, /certificate/);
  assert.match(r.stderr, /caFile/);
  assert.equal(requests.length, 0);
});

test("nor does another host's", async () => {
  const requests = [];
  const port = await listen(createHttps({ key: other.key, cert: other.cert }, answer(requests)));
  const r = await ls(port, `--ca-file=${other.path}`);
  assert.notEqual(r.code, 0);
  assert.match(r.stderr, /certificate/);
  assert.equal(requests.length, 0);
});

test('httpsProxy is gone through, and sees no token', async () => {
  const requests = [], tunnels = [];
  const port = await listen(createHttps({ key: good.key, cert: good.cert }, answer(requests)));
  const proxy = createServer();
  proxy.on('connect', (req, socket) => {
    tunnels.push({ to: req.url, headers: JSON.stringify(req.headers) });
    const up = connect(port, '127.0.0.1', () => { socket.write('HTTP/1.1 200 OK\r\n\r\n'); up.pipe(socket); socket.pipe(up); });
    for (const s of [up, socket]) s.on('error', () => { up.destroy(); socket.destroy(); });
  });
  const proxyPort = await listen(proxy);
  const r = await ls(port, `--ca-file=${ca}`, `--https-proxy=http://127.0.0.1:${proxyPort}`);
  assert.equal(r.code, 0, r.stderr);
  assert.equal(tunnels[0].to, `localhost:${port}`);
  assert.doesNotMatch(tunnels[0].headers, /transporttoken/);
  assert.equal(requests.length, 1);
});

test('a proxy that does not answer is named', async () => {
  const port = await listen(createServer());
  open.pop().close();
  const r = await ls(1, `--https-proxy=http://127.0.0.1:${port}`);
  assert.notEqual(r.code, 0);
  assert.match(r.stderr, /httpsProxy/);
});

test('a redirect is not followed', async () => {
  const requests = [];
  const port = await listen(createHttps({ key: good.key, cert: good.cert }, (req, res) => {
    requests.push(req.url);
    res.writeHead(302, { location: `https://localhost:${port}/elsewhere` }).end();
  }));
  const r = await ls(port, `--ca-file=${ca}`);
  assert.notEqual(r.code, 0);
  assert.match(r.stderr, /Redirects are not followed/);
  assert.deepEqual(requests, ['/exec']);
});
