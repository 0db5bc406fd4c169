// Who may talk to the form, and how it ends: raw HTTP against the real program.
import { test, beforeEach, afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { request } from 'node:http';
import { chmod, chown, copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exedev, newHome, runExedev, startForm } from './configure_form.mjs';

let home, form;
beforeEach(async () => { home = await newHome(); form = await startForm(home.home); });
afterEach(async () => { await form.close(); await home.close(); });

const ask = (path, { method = 'GET', headers = {}, body } = {}) => new Promise((resolve, reject) => {
  const req = request({ host: '127.0.0.1', port: form.port, path, method, headers, agent: false }, (res) => {
    let text = '';
    res.setEncoding('utf8').on('data', (d) => { text += d; }).on('end', () => resolve({ status: res.statusCode, headers: res.headers, text }));
  });
  req.on('error', reject);
  req.end(body);
});
const enter = async () => (await ask(new URL(form.url).search.replace(/^/, '/'))).headers['set-cookie'][0].split(';')[0];
const json = { 'content-type': 'application/json' };
const post = (cookie, path, body, headers) => ask(path, { method: 'POST', body: JSON.stringify(body),
  headers: { ...json, cookie, origin: form.origin, ...headers } });

test('without the token nothing is given out', async () => {
  for (const path of ['/', '/form.js', '/page.js', '/form.css', '/?t=', '/?t=0000', `/form.js${new URL(form.url).search}`]) {
    const a = await ask(path);
    assert.equal(a.status, 403, path);
    assert.match(a.text, /Run `exedev configure` again/);
  }
  assert.equal((await ask('/api/state', { method: 'POST', headers: { ...json, origin: form.origin }, body: '{}' })).status, 403);
});

test('the token works once and gives a cookie that scripts and other sites cannot use', async () => {
  const first = await ask(`/${new URL(form.url).search}`);
  assert.equal(first.status, 200);
  assert.match(first.headers['set-cookie'][0], new RegExp(`^exedev_${form.port}=[0-9a-f]{48}; Path=/; HttpOnly; SameSite=Strict$`));
  const cookie = first.headers['set-cookie'][0].split(';')[0];
  assert.equal((await ask(`/${new URL(form.url).search}`)).status, 403, 'a second browser');
  assert.equal((await ask('/', { headers: { cookie } })).status, 200);
  assert.equal((await ask('/', { headers: { cookie: cookie.replace(/.$/, (c) => (c === '0' ? '1' : '0')) } })).status, 403);
});

test('other host names and other origins are refused', async () => {
  const cookie = await enter();
  for (const host of ['evil.example', `evil.example:${form.port}`, '127.0.0.1', `127.0.0.1:${form.port + 1}`, `localhost.evil:${form.port}`]) {
    const a = await ask('/', { headers: { host, cookie } });
    assert.equal(a.status, 403, host);
    assert.match(a.text, /answers to no other name/);
  }
  assert.equal((await ask('/', { headers: { host: `localhost:${form.port}`, cookie } })).status, 200);
  for (const origin of ['http://evil.example', 'null', `http://127.0.0.1:${form.port + 1}`, `https://127.0.0.1:${form.port}`, `${form.origin}.evil`]) {
    assert.equal((await post(cookie, '/api/state', {}, { origin })).status, 403, origin);
  }
  assert.equal((await ask('/api/state', { method: 'POST', headers: { ...json, cookie }, body: '{}' })).status, 403, 'no origin at all');
  assert.equal((await post(cookie, '/api/state', {})).status, 200);
});

test('what is no JSON of ours is refused: type, size, method, address', async () => {
  const cookie = await enter();
  assert.equal((await post(cookie, '/api/state', {}, { 'content-type': 'text/plain' })).status, 415);
  assert.equal((await ask('/api/state', { method: 'POST', headers: { ...json, cookie, origin: form.origin }, body: 'x' })).status, 400);
  assert.equal((await ask('/api/state', { method: 'POST', headers: { ...json, cookie, origin: form.origin }, body: '[]' })).status, 400);
  assert.equal((await ask('/api/save', { method: 'POST', headers: { ...json, cookie, origin: form.origin }, body: `"${'x'.repeat(5 << 20)}"` })).status, 413);
  assert.equal((await ask('/', { method: 'DELETE', headers: { cookie } })).status, 405);
  assert.equal((await post(cookie, '/api/nothing', {})).status, 404);
  assert.equal((await ask('/../etc/passwd', { headers: { cookie } })).status, 404);
});

test('the page may load nothing but itself, and nobody may keep or frame it', async () => {
  const { headers, text } = await ask(`/${new URL(form.url).search}`);
  assert.match(headers['content-security-policy'], /default-src 'none'; script-src 'self'; style-src 'self'/);
  assert.match(headers['content-security-policy'], /frame-ancestors 'none'/);
  assert.equal(headers['cache-control'], 'no-store');
  assert.equal(headers['x-content-type-options'], 'nosniff');
  assert.equal(headers['referrer-policy'], 'no-referrer');
  assert.ok(!/https?:\/\//.test(text), 'no address of anybody else in the page');
});

test('stored secrets never leave the server', async () => {
  await home.put('config.json', { version: 1, default: 'a', environments: { a: { cpu: 2 } } });
  await home.put('secrets.json', { a: { apiKey: 'exe1.very-secret-text', sshPrivateKey: 'another-secret-text' } });
  await form.close();
  form = await startForm(home.home);
  const cookie = await enter();
  const state = await post(cookie, '/api/state', {});
  assert.ok(!state.text.includes('secret-text'));
  assert.deepEqual(JSON.parse(state.text).environments, [{ name: 'a', settings: { cpu: 2 }, stored: ['apiKey', 'sshPrivateKey'] }]);
  const checked = await post(cookie, '/api/validate', { from: 'a', settings: {}, cleared: [] });
  assert.ok(!checked.text.includes('secret-text'), checked.text);
});

test('saving: secrets apart, both files private, unknown settings kept', async () => {
  const cookie = await enter();
  const body = { generation: 0, default: 'b', environments: [
    { name: 'a', from: null, settings: { cpu: 2, novel: { x: 1 }, apiKey: 'exe1.a' }, cleared: [] },
    { name: 'b', from: null, settings: { memory: '8GB' }, cleared: [] }] };
  assert.equal((await post(cookie, '/api/save', body)).status, 200);
  assert.deepEqual(await home.config(), { version: 1, default: 'b', environments: { a: { cpu: 2, novel: { x: 1 } }, b: { memory: '8GB' } } });
  assert.deepEqual(await home.secrets(), { a: { apiKey: 'exe1.a' } });
  assert.equal(await home.mode('secrets.json'), 0o600);
  // Renamed and copied with the stored secret; then cleared in one of the two.
  const again = { generation: 1, default: 'c', environments: [
    { name: 'c', from: 'a', settings: { cpu: 2 }, cleared: [] }, { name: 'd', from: 'a', settings: {}, cleared: ['apiKey'] }] };
  assert.equal((await post(cookie, '/api/save', again)).status, 200);
  assert.deepEqual(await home.secrets(), { c: { apiKey: 'exe1.a' } });
});

test('bad saves change nothing', async () => {
  const cookie = await enter();
  const env = (over) => ({ generation: 0, environments: [{ name: 'a', from: null, settings: {}, cleared: [], ...over }] });
  for (const [body, says] of [[env({ name: '../x' }), /no name/], [env({ name: '' }), /no name/], [env({ settings: [] }), /no name|no settings/],
    [env({ settings: { apiKey: 5 } }), /no text/], [env({ settings: { apiKey: 'a\u0000b' } }), /no text/], [{ generation: 0 }, /reload/],
    [{ generation: 0, environments: [...env().environments, ...env().environments] }, /two environments/]]) {
    const a = await post(cookie, '/api/save', body);
    assert.equal(a.status, 400);
    assert.match(JSON.parse(a.text).error, says);
  }
  await assert.rejects(home.config(), { code: 'ENOENT' });
});

test('a file changed behind its back is never overwritten', async () => {
  const cookie = await enter();
  const save = (generation, name) => post(cookie, '/api/save', { generation, default: name, environments: [{ name, from: null, settings: {}, cleared: [] }] });
  assert.equal((await save(0, 'mine')).status, 200);
  assert.equal((await save(0, 'tab')).status, 409, 'another tab that read the old state');
  const theirs = '{"version": 1, "environments": {"theirs": {}}}';
  await writeFile(join(home.folder, 'config.json'), theirs);
  const a = await save(1, 'mine2');
  assert.equal(a.status, 409);
  assert.match(JSON.parse(a.text).error, /changed by another program/);
  assert.deepEqual(Object.keys((await home.config()).environments), ['theirs']);
  assert.equal((await save(1, 'mine2')).status, 409, 'and not at the second attempt either');
  const now = JSON.parse((await post(cookie, '/api/reload', {})).text);
  assert.deepEqual(now.environments.map((e) => e.name), ['theirs']);
  assert.equal((await save(now.generation, 'mine3')).status, 200);
});

test('it ends when asked, when idle, and on SIGTERM', async () => {
  const cookie = await enter();
  assert.equal((await post(cookie, '/api/done', {})).status, 200);
  assert.deepEqual(await form.ended, { code: 0, signal: null });
  form = await startForm(home.home, { args: ['--no-browser', '--idle', '1'] });
  assert.deepEqual(await form.ended, { code: 0, signal: null });
  assert.match(form.output, /nobody used it/);
  form = await startForm(home.home);
  form.child.kill('SIGTERM');
  assert.deepEqual(await form.ended, { code: 0, signal: null });
});

test('without a display it says how to come through ssh', async () => {
  await form.close();
  form = await startForm(home.home, { args: [], env: { SSH_CONNECTION: '192.0.2.1 50000 192.0.2.7 22' } });
  assert.match(form.output, new RegExp(`ssh -N -L ${form.port}:127\\.0\\.0\\.1:${form.port} somebody@192\\.0\\.2\\.7`));
});

test('with a display the browser gets a private file, and the token is in no argument', async () => {
  await form.close();
  const bin = join(home.home, 'bin');
  await mkdir(bin);
  await writeFile(join(bin, 'xdg-open'), `#!/bin/sh\n{ printf '%s\\n' "$@"; stat -c %a "$1"; cat "$1"; } > ${home.home}/seen.tmp && mv ${home.home}/seen.tmp ${home.home}/seen\n`, { mode: 0o755 });
  form = await startForm(home.home, { args: [], env: { DISPLAY: ':9', PATH: `${bin}:${process.env.PATH}` } });
  let seen;
  for (let i = 0; i < 200 && !seen; i++) {
    seen = await readFile(join(home.home, 'seen'), 'utf8').catch(() => new Promise((r) => setTimeout(r, 25)));
  }
  const [argument, mode, ...html] = seen.split('\n');
  const token = new URL(form.url).searchParams.get('t');
  assert.ok(!argument.includes(token));
  assert.equal(mode, '600');
  assert.ok(html.join('').includes(token));
  await form.close();
  await assert.rejects(readFile(argument), { code: 'ENOENT' }, 'the file is gone');
});

for (const [what, files, says] of [
  ['of another version', { 'config.json': '{"version": 7, "environments": {}}' }, /version 7/],
  ['truncated', { 'config.json': '{"version": 1, "environments": {"a": {"cpu"' }, /damaged/],
  ['with world-readable secrets', { 'secrets.json': '{"a": {"apiKey": "x"}}' }, /chmod 600/],
]) {
  test(`a file ${what} is refused with the remedy and left alone`, async () => {
    for (const [name, text] of Object.entries(files)) await home.put(name, text, 0o644);
    for (const args of [['configure', '--no-browser'], ['config', 'list'], ['config', 'set', 'cpu', '2']]) {
      const a = await runExedev(home.home, args);
      assert.notEqual(a.code, 0);
      assert.match(a.stderr, says);
    }
      for (const [name, text] of Object.entries(files)) assert.equal(await readFile(join(home.folder, name), 'utf8'), text);
  });
}

test('a file that cannot be read, or is no file, is told and left alone', async () => {
  await home.put('config.json', { version: 1, environments: { a: {} } });
  await chmod(join(home.folder, 'config.json'), 0o000);
  // Root may read anything: then somebody else asks.
  const as = process.getuid() === 0 ? ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'] : [];
  const program = join(home.home, 'exedev'); // where that somebody can reach it, too
  await copyFile(exedev, program);
  await chmod(program, 0o755);
  if (as.length) for (const path of [home.home, join(home.home, '.config'), home.folder, join(home.folder, 'config.json')]) await chown(path, 65534, 65534);
  const unreadable = await runExedev(home.home, ['config', 'set', 'cpu', '2'], { as, program });
  assert.notEqual(unreadable.code, 0);
  assert.match(unreadable.stderr, /Permission denied.*make it readable/);
  await rm(join(home.folder, 'config.json'));
  await mkdir(join(home.folder, 'config.json'));
  assert.match((await runExedev(home.home, ['config', 'list'])).stderr, /not a regular file/);
});
