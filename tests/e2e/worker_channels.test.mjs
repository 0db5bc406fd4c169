// Duplex channels, login terminals, interactive setup, templates, the runner's way in: through the worker.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join } from 'node:path';
import { encodeChannelBytes, decodeChannelBytes } from '@paperclipai/plugin-sdk/protocol';
import { root, startLobby, startWorker, until, build, token } from './worker_lib.mjs';
import { freePort } from './lobby_lib.mjs';

let lobby;
before(async () => { lobby = await startLobby(); });
after(async () => { await lobby.close(); });

const withLease = (body) => async () => {
  const worker = await startWorker({ binary: true });
  const env = worker.env(lobby.config());
  try {
    const lease = await env.acquire({ runId: randomUUID() });
    await body(worker, env, lease);
    await env.destroy(lease);
    assert.deepEqual(await lobby.vms(), []);
  } finally {
    const end = await worker.close();
    for (const vm of await lobby.vms()) await lobby.exec(`rm ${vm}`);
    assert.deepEqual(end, { code: 0, signal: null });
  }
};

let routes = 0;
function duplex(worker, env, lease, command) {
  const hostRouteId = `duplex-route-${++routes}`;
  const ch = { hostRouteId, exit: null, chunks: [], sessions: new Set() };
  const old = worker.onNote;
  worker.onNote = (n) => {
    old?.(n);
    if (n.params?.hostRouteId !== hostRouteId) return;
    ch.sessions.add(n.params.workerSessionId); // the answer's own handler runs after the lines that came with it
    assert.equal(ch.exit, null, 'nothing after the exit');
    if (n.method === 'duplexChannel.data') {
      const bytes = decodeChannelBytes(n.params.chunk);
      assert.ok(bytes && bytes.length > 0 && bytes.length <= 262144);
      ch.chunks.push(bytes);
    } else if (n.method === 'duplexChannel.exit') ch.exit = n.params;
  };
  const base = { driverKey: 'exe-dev', companyId: 'co', environmentId: 'e', providerLeaseId: lease.providerLeaseId };
  ch.text = () => Buffer.concat(ch.chunks).toString();
  ch.open = worker.call('duplexChannelOpen', { ...base, hostRouteId, command }).then((r) => { ch.workerSessionId = r.workerSessionId; return r; });
  ch.write = (data) => worker.call('duplexChannelWrite', { hostRouteId, workerSessionId: ch.workerSessionId, data: encodeChannelBytes(Buffer.from(data)) });
  ch.stop = () => worker.call('duplexChannelStop', { hostRouteId, workerSessionId: ch.workerSessionId });
  ch.close = () => worker.call('duplexChannelClose', { hostRouteId });
  return ch;
}

test('a duplex channel: bytes both ways in order, stop, exit, close with the bound pair', withLease(async (w, env, lease) => {
  const ch = duplex(w, env, lease, ['sh', '-c', 'echo "ready $0"; exec cat', "it's $HOME; rm -rf x"]);
  const opened = await ch.open;
  assert.deepEqual(Object.keys(opened).sort(), ['hostRouteId', 'workerSessionId']);
  await until(() => ch.text() === "ready it's $HOME; rm -rf x\n", 'the first line');
  const blob = randomBytes(3 << 20);
  const writes = [];
  for (let i = 0; i < blob.length; i += 100000) writes.push(ch.write(blob.subarray(i, i + 100000))); // not awaited: order must hold
  await Promise.all(writes);
  await until(() => Buffer.concat(ch.chunks).length === blob.length + 27, 'all of it comes back');
  assert.ok(Buffer.concat(ch.chunks).subarray(27).equals(blob));
  await assert.rejects(w.call('duplexChannelWrite', { hostRouteId: ch.hostRouteId, workerSessionId: 'another', data: 'AAAA' }));
  for (const data of ['', 'A', 'AAA', 'AA=A', 'AB==', 'AAAA\n', '!!!!'])
    await assert.rejects(w.call('duplexChannelWrite', { hostRouteId: ch.hostRouteId, workerSessionId: ch.workerSessionId, data }), (e) => e.code === -32602, data);
  await ch.stop();
  await until(() => ch.exit, 'the exit');
  assert.deepEqual([...ch.sessions], [ch.workerSessionId], 'the exact pair on every frame');
  assert.deepEqual(ch.exit, { hostRouteId: ch.hostRouteId, workerSessionId: ch.workerSessionId, exitCode: null });
  assert.deepEqual(await ch.close(), { hostRouteId: ch.hostRouteId, workerSessionId: ch.workerSessionId });
}));

test('exit codes; a close before, during and after the open; the link breaking', withLease(async (w, env, lease) => {
  const code = duplex(w, env, lease, ['sh', '-c', 'echo bye; exit 5']);
  await code.open;
  await until(() => code.exit, 'the exit');
  assert.equal(code.exit.exitCode, 5);
  assert.equal('transportClosed' in code.exit, false);
  assert.equal(code.text(), 'bye\n');
  assert.deepEqual(await code.close(), { hostRouteId: code.hostRouteId, workerSessionId: code.workerSessionId });

  const early = `duplex-route-${routes + 1}`;
  assert.deepEqual(await w.call('duplexChannelClose', { hostRouteId: early }), { hostRouteId: early });
  await assert.rejects(duplex(w, env, lease, ['cat']).open, /closed|in use/);
  const during = duplex(w, env, lease, ['sh', '-c', 'echo on; exec sleep 555']);
  during.open.catch(() => {});
  const ack = await during.close();
  assert.equal(ack.hostRouteId, during.hostRouteId);
  assert.match((await env.sh(lease, 'ps ax -o args= | grep "[s]leep 555" | wc -l')).stdout, /^\s*0\n/);
  await assert.rejects(w.call('duplexChannelOpen', { hostRouteId: 'x', providerLeaseId: 'never-seen', command: ['cat'] }), /no connection to lease/);
  for (const command of [[], 'cat', [7], ['a\u0000b'], undefined])
    await assert.rejects(w.call('duplexChannelOpen', { hostRouteId: `y${routes++}`, providerLeaseId: lease.providerLeaseId, command }), (e) => e.code === -32602);

  const broken = duplex(w, env, lease, ['cat']);
  await broken.open;
  await broken.write('x');
  await until(() => broken.text() === 'x', 'the echo');
  await env.sh(lease, 'sudo poweroff').catch(() => {});
  await until(() => broken.exit, 'the exit of a broken link');
  assert.equal(broken.exit.transportClosed, true);
  assert.equal(broken.exit.exitCode, null);
  await broken.close();
}));

test('releasing with cancelActiveWork ends an open channel', withLease(async (w, env, lease) => {
  const ch = duplex(w, env, lease, ['cat']);
  await ch.open;
  assert.deepEqual(await env.release(lease, { cancelActiveWork: true }), { providerLeaseId: lease.providerLeaseId, state: 'destroyed' });
  await until(() => ch.exit, 'its exit');
  await ch.close();
}));

test('a login terminal: the fixed command, a fresh private home, a terminal of 120x30, gone afterwards', withLease(async (w, env, lease) => {
  await env.sh(lease, `mkdir -p ~/bin && cat > ~/bin/claude <<'END'
#!/bin/sh
echo "args:$*"; echo "home:$CLAUDE_CONFIG_DIR"; stat -c 'mode:%a' "$CLAUDE_CONFIG_DIR"; stty size; test -t 0 && echo tty
stty -echo; printf 'code? '; read code; echo "got:$code"; exit 3
END
chmod +x ~/bin/claude; echo 'PATH=$HOME/bin:$PATH' >> ~/.profile`);
  const sessionHome = `/tmp/paperclip-adapter-login/${randomUUID()}`;
  const hostRouteId = randomUUID();
  let text = '', exit = null;
  w.onNote = (n) => {
    if (n.params?.hostRouteId !== hostRouteId) return;
    if (n.method === 'loginPty.output') text += n.params.chunk;
    if (n.method === 'loginPty.exit') exit = n.params;
  };
  const base = { driverKey: 'exe-dev', companyId: 'co', environmentId: 'e', providerLeaseId: lease.providerLeaseId };
  for (const [key, home] of [['bash', sessionHome], ['claude', '/tmp/x'], ['claude', `${sessionHome}/../x`], ['claude', `/tmp/paperclip-adapter-login/${randomUUID().toUpperCase()}`]])
    await assert.rejects(w.call('loginPtyOpen', { ...base, hostRouteId: randomUUID(), loginCommandKey: key, sessionHome: home }), /claude, codex or grok|session home/);
  const { workerSessionId } = await w.call('loginPtyOpen', { ...base, hostRouteId, loginCommandKey: 'claude', sessionHome });
  await until(() => text.includes('code? '), 'the question');
  assert.match(text, /args:setup-token\r\n/);
  assert.ok(text.includes(`home:${sessionHome}\r\n`));
  assert.match(text, /mode:700\r\n30 120\r\ntty/);
  await w.call('loginPtyInput', { workerSessionId, data: 'the-secret-code\r' });
  await until(() => exit, 'the exit');
  assert.match(text, /got:the-secret-code/);
  assert.deepEqual(exit, { hostRouteId, workerSessionId, exitCode: 3 });
  assert.equal((await w.call('loginPtyClose', { hostRouteId })).hostRouteId, hostRouteId);
  assert.equal((await env.sh(lease, `test -e ${sessionHome}; echo $?`)).stdout, '1\n');
  assert.ok(!w.logs().some((l) => l.includes('the-secret-code')));
}));

test('interactive setup, capture, a lease from the template, and what may be deleted', async () => {
  const w = await startWorker({ binary: true });
  const env = w.env(lobby.config());
  const start = await w.call('environmentStartInteractiveSetup', { ...env.base, sessionId: randomUUID(), sourceTemplateRef: null, sourceTemplateKind: null,
    connectionExpiresInMinutes: 15, expiresAt: new Date(Date.now() + 3600e3).toISOString() });
  assert.equal(start.status, 'waiting_for_user');
  assert.match(start.connectionPayload.command, new RegExp(`^ssh -p ${lobby.sshPort} exedev@127\\.`));
  assert.equal(start.connectionPayload.token, null);
  assert.ok(Date.parse(start.expiresAt) > Date.now());
  assert.equal(JSON.stringify(start.connectionSummary).includes('127.'), false, 'the summary names no host');
  const session = { providerLeaseId: start.providerLeaseId, setupMetadata: { vmName: '[REDACTED]' } };
  const seen = await w.call('environmentGetInteractiveSetup', { ...env.base, ...session, includeConnectionPayload: false });
  assert.deepEqual([seen.status, seen.connectionPayload], ['waiting_for_user', null]);
  await env.sh({ providerLeaseId: start.providerLeaseId, metadata: {} }, 'echo tool > ~/installed');
  const captured = await w.call('environmentCaptureTemplate', { ...env.base, ...session, templateLabel: 'first', timeoutMs: 60000 });
  assert.equal(captured.templateKind, 'provider_template');
  assert.match(captured.templateRef, /^paperclip-template-/);
  assert.deepEqual((await w.call('environmentCancelInteractiveSetup', { ...env.base, providerLeaseId: captured.templateRef, reason: 'x' }).catch((e) => e.message.slice(0, 3))), 'VM ',
    'a template is no setup session');
  assert.equal((await w.call('environmentCancelInteractiveSetup', { ...env.base, ...session, reason: 'promoted' })).status, 'cancelled');
  assert.equal((await w.call('environmentCancelInteractiveSetup', { ...env.base, ...session, reason: 'cancelled' })).status, 'missing');
  assert.equal((await w.call('environmentGetInteractiveSetup', { ...env.base, ...session })).status, 'missing');
  assert.deepEqual(await lobby.vms(), [captured.templateRef]);

  const copy = w.env(lobby.config({ sourceVm: captured.templateRef }));
  const lease = await copy.acquire();
  assert.equal((await copy.sh(lease, 'cat ~/installed')).stdout, 'tool\n');
  await assert.rejects(w.call('environmentDeleteTemplate', { ...env.base, templateRef: lease.providerLeaseId }), /not marked as a template/);
  const gc = (...args) => new Promise((resolve) => {
    const child = spawn(join(build, 'exedev'), ['gc', '--json', ...args], { env: { PATH: process.env.PATH, HOME: '/nonexistent', EXEDEV_STATE_DIR: w.state,
      EXE_API_KEY: token, EXEDEV_API_URL: lobby.url } });
    let out = '', err = '';
    child.stdout.on('data', (d) => { out += d; });
    child.stderr.on('data', (d) => { err += d; });
    child.on('close', (code) => resolve({ code, err, list: out ? JSON.parse(out) : null }));
  });
  await lobby.exec('new --json --name=stranger');
  await lobby.exec("new --json --name=stray --tag=exedev --comment='[exedev lease env=e run=r]'");
  const dry = await gc('--dry-run');
  assert.equal(dry.code, 0, dry.err);
  const by = Object.fromEntries(dry.list.map((i) => [i.name, i]));
  assert.deepEqual(Object.keys(by).sort(), [captured.templateRef, lease.providerLeaseId, 'stray'].sort());
  assert.deepEqual([by.stray.remove, by[captured.templateRef].remove, by[lease.providerLeaseId].remove], [true, false, false]);
  const young = await gc('--older-than', '24h');
  assert.ok(young.list.every((i) => !i.removed), 'of unknown age: kept');
  const real = await gc();
  assert.deepEqual(real.list.filter((i) => i.removed).map((i) => i.name), ['stray']);
  await copy.destroy(lease);
  assert.deepEqual((await lobby.vms()).sort(), [captured.templateRef, 'stranger'].sort());
  await assert.rejects(w.call('environmentDeleteTemplate', { ...env.base, templateRef: 'stranger' }), /not marked as a template/);
  assert.equal((await w.call('environmentDeleteTemplate', { ...env.base, templateRef: captured.templateRef, templateKind: 'provider_template' })).deleted, true);
  assert.equal((await w.call('environmentDeleteTemplate', { ...env.base, templateRef: captured.templateRef })).metadata.alreadyGone, true);
  await lobby.exec('rm stranger');
  assert.deepEqual(await lobby.vms(), []);
  assert.deepEqual(await w.close(), { code: 0, signal: null });
});

test('the runner ingress: a fresh, short-lived VM token on each call', withLease(async (w, env, lease) => {
  const ask = (more) => w.call('environmentRunnerIngressEndpoint', { ...env.base, lease, port: 8080, path: '/runner/ws', ...more });
  const [a, b] = [await ask({}), await ask({})];
  const url = new URL(a.websocketUrl);
  assert.deepEqual([a.kind, url.protocol, url.pathname, url.search, url.username], ['authenticated_websocket', 'wss:', '/runner/ws', '', '']);
  assert.equal(a.secretHeaders.length, 1);
  assert.equal(a.secretHeaders[0].name, 'X-Exedev-Authorization');
  assert.match(a.secretHeaders[0].value, /^Bearer exe0\.[\w-]+\.[\w-]+$/);
  const permissions = JSON.parse(Buffer.from(a.secretHeaders[0].value.split('.')[1], 'base64url'));
  assert.ok(permissions.exp <= Date.now() / 1000 + 3700 && permissions.exp > Date.now() / 1000);
  assert.notEqual(a.generation, b.generation);
  await assert.rejects(ask({ port: 22 }), /3000 to 9999/);
  await assert.rejects(ask({ path: '/a?b=c' }), /path/);
}));

test('the runner ingress, gone through: TLS, the token, a WebSocket to a server on the VM', async () => {
  const port = await freePort();
  const lobby = await startLobby(['--proxy', '127.0.0.1:0', '--proxy-port', String(port)]);
  const worker = await startWorker({ binary: true });
  try {
    const ca = await readFile(lobby.caFile);
    const env = worker.env(lobby.config());
    const lease = await env.acquire({ runId: randomUUID() });
    const source = await readFile(join(root, 'tests/e2e/fixtures/echo_server.py'), 'utf8');
    const started = await env.sh(lease, `cat > s.py <<'END'\n${source}END\nnohup python3 s.py ${port} 127.0.0.1 >/dev/null 2>&1 &`);
    assert.equal(started.exitCode, 0, started.stderr);
    const ask = () => worker.call('environmentRunnerIngressEndpoint', { ...env.base, lease, port, path: '/runner/ws' });
    const upgrade = (endpoint, headers) => new Promise((resolve, reject) => {
      const url = new URL(endpoint.websocketUrl);
      const req = request({ host: url.hostname, port: url.port, path: url.pathname, ca, agent: false,
        headers: { Connection: 'Upgrade', Upgrade: 'websocket', ...headers } }, (res) => { res.resume(); resolve({ status: res.statusCode }); });
      req.on('upgrade', (res, socket) => resolve({ status: res.statusCode, socket })).on('error', reject).end();
    });
    const endpoint = await ask();
    const secret = Object.fromEntries(endpoint.secretHeaders.map((h) => [h.name, h.value]));
    const { socket } = await until(async () => { const r = await upgrade(endpoint, secret); return r.status === 101 && r; }, 'the server on the VM answers');
    const sent = randomBytes(300000);
    const got = new Promise((resolve, reject) => {
      const parts = [];
      let n = 0;
      socket.on('data', (d) => { parts.push(d); if ((n += d.length) >= sent.length) resolve(Buffer.concat(parts)); }).on('error', reject);
    });
    socket.write(sent);
    assert.ok(sent.equals(await got));
    socket.destroy();
    assert.equal((await upgrade(endpoint, {})).status, 401, 'without the token');
    const other = await env.acquire({ runId: randomUUID() });
    const theirs = await worker.call('environmentRunnerIngressEndpoint', { ...env.base, lease: other, port, path: '/runner/ws' });
    assert.equal((await upgrade(endpoint, Object.fromEntries(theirs.secretHeaders.map((h) => [h.name, h.value])))).status, 401, 'with that of another VM');
    await Promise.all([env.destroy(lease), env.destroy(other)]);
  } finally {
    await worker.close();
    await lobby.close();
  }
});
