// The package's worker.js: how the program takes the place of Node, and what happens where it cannot.
import assert from 'node:assert/strict';
import { fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, cp, mkdtemp, readFile, readdir, readlink, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { build, until } from './worker_lib.mjs';

const initialize = JSON.stringify({
  jsonrpc: '2.0', id: 1, method: 'initialize', params: { manifest: {}, config: {}, instanceInfo: {}, apiVersion: 1 },
});
let folder, program, worker;

before(async () => {
  folder = join(await mkdtemp(join(tmpdir(), 'exedev-test-npm-')), 'paperclip-plugin-exe-dev');
  await cp(join(build, 'npm/paperclip-plugin-exe-dev'), folder, { recursive: true });
  program = join(folder, 'dist/exedev');
  worker = join(folder, 'dist/worker.js');
});
after(() => rm(join(folder, '..'), { recursive: true }));

async function initialized(child) {
  child.stdin.write(`${initialize}\n`);
  for await (const line of createInterface({ input: child.stdout })) {
    const answer = JSON.parse(line);
    if (answer.id === 1) return answer.result;
  }
  throw new Error('no answer to initialize');
}

const exe = (pid) => readlink(`/proc/${pid}/exe`).catch(() => null);
const children = async (pid) => (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).trim().split(' ').filter(Boolean).map(Number);

// As the host does it.
const forked = (options = {}) => fork(worker, [], { stdio: ['pipe', 'pipe', 'pipe', 'ipc'], execArgv: [], ...options });

// A Node that cannot replace itself, as before 22.15.
async function old() {
  const file = join(folder, '..', 'old.cjs');
  await writeFile(file, 'process.execve = undefined;\n');
  const child = forked({ execArgv: ['--require', file] });
  const result = await initialized(child);
  assert.equal(result.ok, true);
  const [pid] = await children(child.pid);
  assert.equal(await exe(pid), program);
  return { child, pid };
}

test('the worker replaces Node, under its own process id', async () => {
  const child = forked();
  assert.equal((await initialized(child)).ok, true);
  assert.equal(await exe(child.pid), program);
  assert.deepEqual(await children(child.pid).then((pids) => Promise.all(pids.map(exe))), []);
  for (const fd of [0, 1, 2]) {
    const flags = parseInt(/^flags:\s+(\d+)/m.exec(await readFile(`/proc/${child.pid}/fdinfo/${fd}`, 'utf8'))[1], 8);
    assert.equal(flags & 0o4000, 0, `descriptor ${fd} is blocking`);
  }
  child.stdin.end();
  assert.deepEqual(await once(child, 'exit'), [0, null]);
});

test('a Node that cannot do that accompanies the program, to the end of its stdin', async () => {
  const { child } = await old();
  child.stdin.end();
  assert.deepEqual(await once(child, 'exit'), [0, null]);
});

for (const [what, end] of [
  ['a signal to that Node', (child) => child.kill('SIGTERM')],
  ['the death of that Node', (child) => child.kill('SIGKILL')],
  ['the loss of its host', (child) => child.disconnect()],
]) {
  test(`${what} ends the program`, async () => {
    const { child, pid } = await old();
    const ended = once(child, 'exit');
    end(child);
    await ended;
    await until(async () => (await exe(pid)) !== program, 'the end of the program');
  });
}

test('a mode that was lost on the way is put back', async () => {
  await chmod(program, 0o644);
  const child = forked();
  assert.equal((await initialized(child)).ok, true);
  assert.equal((await stat(program)).mode & 0o111, 0o111);
  child.stdin.end();
  await once(child, 'exit');
});

test('a package without its program says so', async () => {
  const bare = join(folder, '..', 'bare');
  await cp(folder, bare, { recursive: true, filter: (path) => !path.endsWith('/dist/exedev') });
  const child = spawn(process.execPath, [join(bare, 'dist/worker.js')], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (chunk) => (said += chunk));
  assert.deepEqual(await once(child, 'close'), [1, null]);
  assert.match(said, /dist\/exedev cannot be run .*install the package again/);
});

test('an upgrade in the same folder is seen', async () => {
  const path = join(folder, 'dist/manifest.js');
  const load = async (mtime) => {
    const url = pathToFileURL(path);
    url.searchParams.set('mtime', mtime);
    return (await import(url.href)).default.version;
  };
  const first = await load('1');
  await writeFile(path, (await readFile(path, 'utf8')).replace(`"version": "${first}"`, '"version": "99.0.0"'));
  assert.notEqual(first, '99.0.0');
  assert.equal(await load('2'), '99.0.0');
});

test('nothing is in it that does not belong there', async () => {
  const names = (await readdir(join(build, 'npm/paperclip-plugin-exe-dev'), { recursive: true })).sort();
  assert.deepEqual(names, ['LICENSE', 'README.md', 'dist', 'dist/exedev', 'dist/manifest.js', 'dist/worker.js', 'package.json']);
});
