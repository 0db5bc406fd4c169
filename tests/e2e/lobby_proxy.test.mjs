// exedev-lobby's HTTPS side: HTTP and WebSockets to a VM's ports, with VM tokens.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { request } from 'node:https';
import { connect } from 'node:tls';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { freePort, mint, root, startLobby, until } from './lobby_lib.mjs';

// Node is not promised on a VM, python3 is on any machine that builds this.
const source = await readFile(join(root, 'tests/e2e/fixtures/echo_server.py'), 'utf8');
const server = (port, address) => `cat > s.py <<'END'\n${source}END\nnohup python3 s.py ${port} ${address} >/dev/null 2>&1 &`;

let lobby, vm, ca, token, main, further, web;
before(async () => {
  [main, further] = [await freePort(), await freePort()];
  lobby = await startLobby(['--proxy', '127.0.0.1:0', '--proxy-port', String(further)]);
  ca = await readFile(lobby.told.caFile);
  vm = await lobby.exec('new --name=web');
  await lobby.exec(`share port web ${main}`);
  token = await mint(lobby.key, { ctx: { run: 'a' } }, 'v0@web.exe.xyz');
  await lobby.on(vm, server(main, vm.ssh_host));
  await lobby.on(vm, server(further, '127.0.0.1'));
  web = new URL(vm.https_url);
  await until(async () => (await get({})).status === 200 && (await get({ port: further })).status === 200, 'the servers in the VM listen');
});
after(async () => { await lobby?.stop(); });

const get = ({ host = web.hostname, port = web.port, headers = {}, body, method = body ? 'POST' : 'GET', bearer = token, servername } = {}) => new Promise((resolve, reject) => {
  const req = request({ host, port, path: '/p?q', method, ca, agent: false, servername, headers: { ...(bearer ? { 'X-Exedev-Authorization': `Bearer ${bearer}` } : {}), ...headers } }, (res) => {
    let text = '';
    res.on('data', (d) => { text += d; }).on('end', () => resolve({ status: res.statusCode, headers: res.headers, text }));
  });
  req.on('error', reject).end(body);
});

test('a request reaches the VM with our fields instead of the client\'s', async () => {
  const { text } = await get({ headers: { 'X-ExeDev-Email': 'evil@example.com', 'X-Forwarded-For': '6.6.6.6', Keep: 'me' } });
  assert.match(text, new RegExp(`^${main}\\|GET /p\\?q HTTP/1.1\\r\\n`));
  assert.match(text, /\r\nKeep: me\r\n/);
  assert.match(text, /\r\nX-ExeDev-Email: you@localhost\r\n/);
  assert.match(text, /\r\nX-ExeDev-Token-Ctx: \{"run":"a"\}/);
  assert.match(text, /\r\nX-Forwarded-Proto: https\r\n/);
  assert.ok(!text.includes('evil') && !text.includes('6.6.6.6') && !/authorization/i.test(text) && !text.includes(token));
  const big = await get({ body: Buffer.alloc(3_000_000, 'x') });
  assert.ok(big.text.endsWith('|3000000'));
});

test('by name, by the Host field\'s port, by a further port', async () => {
  const proxy = lobby.told.proxy.split(':');
  const at = { host: proxy[0], port: proxy[1], servername: 'web.exe.xyz' };
  assert.ok((await get({ ...at, headers: { Host: 'WEB.exe.xyz' } })).text.startsWith(`${main}|`));
  assert.ok((await get({ ...at, headers: { Host: `web.exe.xyz:${further}` } })).text.startsWith(`${further}|`));
  assert.ok((await get({ port: further })).text.startsWith(`${further}|`));
  assert.equal((await get({ ...at, headers: { Host: 'other.exe.xyz' } })).status, 401, 'the token is for another VM');
  assert.equal((await get({ ...at, headers: { Host: 'example.com' } })).status, 404);
  const nobody = await get({ ...at, headers: { Host: `web.exe.xyz:${await freePort()}` } });
  assert.equal(nobody.status, 502);
  assert.match(nobody.text, /nothing listens on port/);
});

test('401 without a token of this VM, and nothing reaches it', async () => {
  for (const bearer of [null, 'x', await mint(lobby.key, {}), await mint(lobby.key, {}, 'v0@other.exe.xyz'), await mint(lobby.key, { exp: 1700000000 }, 'v0@web.exe.xyz')]) {
    const r = await get({ bearer });
    assert.equal(r.status, 401);
    assert.ok(r.headers['www-authenticate']);
  }
  const { token: made } = await lobby.exec('ssh-key generate-api-key --vm=web');
  assert.equal((await get({ bearer: made })).status, 200);
  assert.equal((await lobby.call('ls', made)).status, 401, 'and that one is not for the lobby');
});

const raw = (text, done) => new Promise((resolve, reject) => {
  let got = '';
  const s = connect({ host: web.hostname, port: web.port, ca }, () => s.write(text));
  s.on('data', (d) => { got += d.toString('latin1'); if (done?.(got, s)) { s.end(); resolve(got); } }).on('end', () => resolve(got)).on('error', reject);
});

test('WebSockets: bytes both ways after the upgrade, those behind the request too', async () => {
  const head = `GET /ws HTTP/1.1\r\nHost: web.exe.xyz\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nX-Exedev-Authorization: Bearer ${token}\r\n\r\n`;
  const payload = Buffer.alloc(2_000_000, 'abc').toString();
  let sent = false;
  const got = await raw(`${head}early`, (all, s) => {
    if (!sent && all.includes('early')) { sent = true; s.write(`${payload}END`); }
    return all.endsWith('END');
  });
  assert.match(got, /^HTTP\/1\.1 101 /);
  assert.equal(got.length, got.indexOf('early') + 5 + payload.length + 3);
});

test('what could smuggle a second request is refused or cut', async () => {
  const auth = `Host: web.exe.xyz\r\nX-Exedev-Authorization: Bearer ${token}\r\n`;
  assert.match(await raw(`POST / HTTP/1.1\r\n${auth}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`), /^HTTP\/1\.1 400 /);
  assert.match(await raw(`GET / HTTP/1.1\r\n${auth}X : y\r\n\r\n`), /^HTTP\/1\.1 400 /);
  const second = await raw(`POST / HTTP/1.1\r\n${auth}Content-Length: 3\r\n\r\nabcGET /second HTTP/1.1\r\nX-ExeDev-Email: evil\r\n\r\n`);
  assert.match(second, /\|abc$/);
  const endless = await raw(`GET / HTTP/1.1\r\nX: ${'y'.repeat(70000)}`);
  assert.equal(endless, '', 'a head without end is hung up on');
});

test('a VM that is gone has no HTTPS', async () => {
  await lobby.exec('new --name=brief');
  const brief = (await lobby.exec('ls brief')).vms[0], url = new URL(brief.https_url);
  const bearer = await mint(lobby.key, {}, 'v0@brief.exe.xyz');
  assert.equal((await get({ host: url.hostname, port: url.port, bearer })).status, 502);
  await lobby.exec('rm brief');
  await assert.rejects(get({ host: url.hostname, port: url.port, bearer }), /ECONNREFUSED/);
});
