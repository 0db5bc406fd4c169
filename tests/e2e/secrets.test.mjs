// Every secret through every failing path; then everything the worker said, its processes, its files and its core are
// searched for them.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build, sleep, startLobby, startWorker } from './worker_lib.mjs';

let lobby, worker, folder, secrets;
const said = [];          // every answer and error
const processes = [];     // every argv and environment of ours that was seen

// This worker and its children, whatever they are at this moment.
async function look(pid, seen = new Set()) {
  if (seen.has(pid)) return;
  seen.add(pid);
  for (const file of ['cmdline', 'environ']) {
    const text = await readFile(`/proc/${pid}/${file}`, 'latin1').catch(() => '');
    if (text) processes.push({ pid, file, text: text.replaceAll('\0', ' ') });
  }
  for (const task of await readdir(`/proc/${pid}/task`).catch(() => [])) {
    const children = await readFile(`/proc/${pid}/task/${task}/children`, 'latin1').catch(() => '');
    for (const child of children.split(' ').filter(Boolean)) await look(child, seen);
  }
}

async function watched(promise) {
  let over = false;
  const watching = (async () => { while (!over) { await look(String(worker.child.pid)); await sleep(3); } })();
  const result = await promise.then((value) => ({ value }), (error) => ({ error: error.message }));
  over = true;
  await watching;
  said.push(JSON.stringify(result));
  return result;
}

// In each spelling that could slip through; of a key each line of its own.
function spellings(secret) {
  const lines = secret.split('\n').filter((line) => line.length >= 16 && !line.startsWith('-----'));
  return [...new Set([secret, ...lines].flatMap((s) => [s, JSON.stringify(s).slice(1, -1), encodeURIComponent(s), Buffer.from(s).toString('base64')]))];
}

function found(text) {
  return Object.entries(secrets).filter(([, s]) => spellings(s).some((one) => text.includes(one))).map(([name]) => name);
}

before(async () => {
  lobby = await startLobby();
  folder = await mkdtemp(join(tmpdir(), 'exedev-secrets-'));
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(folder, 'stranger')]);
  secrets = {
    apiKey: 'test-token-0123456789',
    wrongKey: 'exe1.wrong-token-987654321',
    sshPrivateKey: lobby.privateKey,
    strangersKey: (await readFile(join(folder, 'stranger'), 'utf8')).trim(),
    registryAuth: 'robot:registry-pass-4711',
    envValue: 'env-value-hunter2222',
    envTextValue: "it's \"quoted\" env text",
    prompt: 'a prompt that is nobody else\'s business',
    setupScript: 'echo setup-script-is-private >/dev/null',
  };
  worker = await startWorker({ state: join(folder, 'state'), env: { EXEDEV_SETTLE_MS: '200' } });
  await worker.call('initialize', { manifest: {}, config: {}, instanceInfo: { instanceId: 'i', hostVersion: '1' }, apiVersion: 1 });
});
after(async () => {
  await worker?.close();
  await lobby?.close();
  if (folder) await rm(folder, { recursive: true, force: true });
});

const full = (more = {}) => lobby.config({ registryAuth: secrets.registryAuth, env: { PRIVATE: secrets.envValue },
  envText: `OTHER="${secrets.envTextValue.replaceAll('"', '\\"')}"`, prompt: secrets.prompt, setupScript: secrets.setupScript, timeoutMs: 15000, ...more });

const failing = [
  ['an API that refuses', ['new:status=422,body={"error":"cannot parse --env=\'PRIVATE=env-value-hunter2222\' of robot:registry-pass-4711"}'], {}],
  ['an API that echoes what it got', ['new:status=400,body=a prompt that is nobody else\'s business: echo setup-script-is-private >/dev/null, Bearer test-token-0123456789'], {}],
  ['an API that fails', ['new:status=500,times=9'], {}],
  ['a lost answer', ['new:lost'], { sshPort: 1 }],
  ['a wrong token', [], () => ({ apiKey: secrets.wrongKey })],
  ['a key nobody knows', [], () => ({ sshPrivateKey: secrets.strangersKey })],
  ['an address where nobody listens', [], { apiUrl: 'http://127.0.0.1:1' }],
  ['a proxy where nobody listens', [], { httpsProxy: 'http://someone:registry-pass-4711@127.0.0.1:1' }],
];

for (const [name, faults, more] of failing) {
  test(name, async () => {
    await lobby.faults(...faults);
    const config = full(typeof more === 'function' ? more() : more);
    const result = await watched(worker.env(config).acquire());
    assert.ok(result.error, 'this was to fail');
    assert.deepEqual(found(result.error), [], result.error);
    await watched(worker.env(config).probe());
    await lobby.faults();
  });
}

test('a config that cannot be right', async () => {
  for (const more of [{ sshPrivateKey: secrets.sshPrivateKey.slice(0, 200) }, { apiKey: `${secrets.apiKey} ${secrets.wrongKey}` },
    { envText: secrets.envTextValue }, { env: { 'bad key': secrets.envValue } }, { registryAuth: 'registry-pass-4711' }]) {
    const { value } = await watched(worker.env(full(more)).validate());
    assert.equal(value.ok, false);
    assert.deepEqual(found(JSON.stringify([value.errors, value.warnings])), []);
  }
});

// The worker itself: where Node cannot be replaced by the program, the program is its child. Asked when nothing is being
// started, for between fork and exec a child of the worker has its command line.
async function workerPid() {
  const { child } = worker;
  const children = (await readFile(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8')).split(' ').filter(Boolean);
  for (const pid of [String(child.pid), ...children])
    if (/\bexedev\0worker\b/.test(await readFile(`/proc/${pid}/cmdline`, 'latin1'))) return pid;
  return assert.fail('there is no worker');
}

// gcore writes what the kernel would, by the same filter and leaving out the same mappings, wherever core_pattern leads.
async function core(pid) {
  const file = join(folder, `core.${pid}`);
  execFileSync('gcore', ['-o', join(folder, 'core'), pid], { stdio: 'pipe' });
  const text = await readFile(file, 'latin1');
  await rm(file);
  return text;
}

test('a lease that works, commands that fail, a core of the worker', async () => {
  const env = worker.env(full({ prompt: '', registryAuth: '' }));
  const { value: lease, error } = await watched(env.acquire());
  assert.ok(lease, error);
  await watched(env.execute(lease, '/nonexistent/program'));
  await watched(env.sh(lease, 'kill -9 $$'));
  assert.deepEqual(found(JSON.stringify(lease)), []);
  const pid = await workerPid();
  // The limit keeps a crash's memory from the disk, the filter out of a dump that is piped to a program.
  assert.match(await readFile(`/proc/${pid}/limits`, 'utf8'), /Max core file size +0 +0/);
  const filter = `/proc/${pid}/coredump_filter`;
  assert.equal(parseInt(await readFile(filter, 'utf8'), 16), 0);
  const dump = await core(pid);
  assert.ok(dump.startsWith('\x7fELF'), 'gcore wrote no core');
  assert.deepEqual(found(dump), []);
  // With the filter away they are there: the search finds what there is to find.
  await writeFile(filter, '0x7f');
  const whole = found(await core(pid));
  assert.ok(whole.includes('envValue'), 'this test cannot find what there is');
  await writeFile(filter, '0');
  const { value: receipt } = await watched(env.destroy(lease));
  assert.ok(receipt !== undefined);
  assert.deepEqual(await lobby.vms(), []);
});

test('nothing of it in answers, logs and the error stream', () => {
  // normalizedConfig is handed back to whom it came from: those answers were looked at above.
  const text = said.filter((s) => !s.includes('normalizedConfig')).join('\n');
  assert.ok(said.length > 15);
  assert.deepEqual(found(text), []);
  assert.deepEqual(found(worker.notes.map((n) => JSON.stringify(n)).join('\n')), []);
  assert.deepEqual(found(worker.stderr), []);
});

test('nothing of it in an argv or an environment', () => {
  assert.ok(processes.some((p) => p.file === 'cmdline' && /\bssh\b/.test(p.text)), 'no ssh was seen: this test looked too late');
  for (const p of processes) assert.deepEqual(found(p.text), [], `${p.file} of ${p.pid}: ${p.text}`);
});

test('nothing of it in a file left behind', async () => {
  const skip = new Set([join(folder, 'stranger')]);
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath ?? entry.path, entry.name);
    if (entry.isFile() && !skip.has(path)) assert.deepEqual(found(await readFile(path, 'latin1')), [], path);
  }
  for (const entry of await readdir(tmpdir(), { withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const text = await readFile(join(tmpdir(), entry.name), 'latin1').catch(() => '');
    if (entry.name.startsWith('exedev')) assert.deepEqual(found(text), [], entry.name);
  }
});
