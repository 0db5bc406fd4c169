// environmentSyncIn and environmentSyncOut through the npm folder's worker, push and pull through the program, on a lobby.
import test from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, readdir, readlink, rm, stat, lstat, symlink, writeFile, chmod, utimes } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build, startLobby, startWorker, token } from './worker_lib.mjs';

let lobby, worker, lease, vm, home, dir;

test.before(async () => {
  lobby = await startLobby();
  worker = await startWorker();
  const base = { driverKey: 'exe-dev', companyId: 'c', environmentId: 'env-sync', config: lobby.config() };
  lease = await worker.call('environmentAcquireLease', { ...base, runId: 'run-sync' });
  vm = lease.providerLeaseId;
  home = (await execute('printf %s "$HOME"')).stdout;
  dir = await mkdtemp(join(tmpdir(), 'exedev-sync-'));
});

test.after(async () => {
  await worker?.close?.();
  await lobby?.close();
  if (dir) await rm(dir, { recursive: true, force: true });
});

const params = (more) => ({ driverKey: 'exe-dev', companyId: 'c', environmentId: 'env-sync', config: lobby.config(), lease, ...more });
const execute = (script) => worker.call('environmentExecute', params({ command: 'sh', args: ['-c', script] }));
const syncIn = (...operations) => worker.call('environmentSyncIn', params({ operations }));
const syncOut = (...operations) => worker.call('environmentSyncOut', params({ operations }));
let serial = 0;
const fresh = async () => { const p = join(dir, String(serial++)); await mkdir(p); return p; };

function exedev(...args) {
  const env = { ...process.env, EXE_API_KEY: token, EXEDEV_STATE_DIR: join(dir, 'state'), HOME: dir };
  const settings = ['--set', `apiUrl=${lobby.url}`, '--set', `sshIdentityFile=${lobby.keyFile}`, '--set', `sshPort=${lobby.sshPort}`];
  return new Promise((resolve) => {
    execFile(join(build, 'exedev'), [args[0], ...settings, ...args.slice(1)], { env }, (error, stdout, stderr) =>
      resolve({ code: error ? error.code : 0, stdout, stderr }));
  });
}

test('the worker announces both methods', async () => {
  const { supportedMethods } = await worker.call('initialize', {});
  assert.ok(supportedMethods.includes('environmentSyncIn') && supportedMethods.includes('environmentSyncOut'));
});

test('a file and a folder go in with their modes, commands follow, and the counts are right', async () => {
  const src = await fresh();
  await writeFile(join(src, 'secret'), 'x'.repeat(1000), { mode: 0o644 });
  await mkdir(join(src, 'tree/sub'), { recursive: true });
  await writeFile(join(src, "tree/sub/it's\n-odd"), 'odd', { mode: 0o751 });
  await writeFile(join(src, 'tree/skip.log'), 'log');
  await symlink('sub', join(src, 'tree/link'));
  await chmod(join(src, "tree/sub/it's\n-odd"), 0o751);
  const result = await syncIn({
    operationId: 'op-1',
    files: [
      { sourcePath: join(src, 'secret'), targetPath: `${home}/new/secret`, kind: 'file', mode: 0o600 },
      { sourcePath: join(src, 'tree'), targetPath: `${home}/new/tree`, kind: 'directory', exclude: ['*.log'] },
    ],
    postUploadCommands: [{ command: 'pwd > ../order', cwd: `${home}/new/tree` }, { command: 'cd ../.. && cat order > second', cwd: `${home}/new/tree/sub` }],
  });
  assert.deepEqual(result, { operations: [{ operationId: 'op-1', filesTransferred: 2, bytesTransferred: 1003 }] });
  const { stdout } = await execute(`cd ~/new && stat -c %a secret tree/sub/* && readlink tree/link && ls tree && cat second && ls -A`);
  assert.equal(stdout, `600\n751\nsub\nlink\nsub\n${home}/new/tree\norder\nsecond\nsecret\ntree\n`);
});

test('a directory mapping replaces its target; a failed one leaves it', async () => {
  const src = await fresh();
  await writeFile(join(src, 'new'), '1');
  await execute('mkdir -p ~/rep && echo old > ~/rep/old');
  const files = [{ sourcePath: src, targetPath: `${home}/rep`, kind: 'directory' }];
  await assert.rejects(syncIn({ operationId: 'o', files: [{ sourcePath: join(dir, 'missing'), targetPath: `${home}/rep`, kind: 'directory' }] }),
    (e) => /missing/.test(e.message) && /No such file/.test(e.message));
  await assert.rejects(syncIn({ operationId: 'o', files: [{ sourcePath: join(src, 'new'), targetPath: `${home}/rep`, kind: 'directory' }] }), /folder was expected/);
  assert.equal((await execute('ls -A ~/rep')).stdout, 'old\n');
  await syncIn({ operationId: 'o', files });
  assert.equal((await execute('ls -A ~/rep; ls -A ~ | grep exedev-tmp')).stdout, 'new\n');
});

test('postUploadCommands stop at the first failure and report its output', async () => {
  const commands = (...list) => syncIn({ operationId: 'op-x', files: [], postUploadCommands: list });
  await assert.rejects(commands({ command: 'echo one; echo two >&2; exit 3' }, { command: 'touch ~/never' }),
    (e) => /op-x/.test(e.message) && /\[0\]/.test(e.message) && /exited with 3/.test(e.message) && /one/.test(e.message) && /two/.test(e.message));
  await assert.rejects(commands({ command: 'sleep 30', timeoutMs: 300 }), /timed out after 300 ms/);
  assert.equal((await execute('ls ~/never 2>/dev/null')).stdout, '');
  assert.equal((await syncIn({ operationId: 'p', files: [], postUploadCommands: [{ command: 'test "$PWD" = "' + lease.metadata.remoteCwd + '"' }] })).operations.length, 1);
});

test('out: confined, without special bits, over links that the sandbox planted', async () => {
  const out = await fresh(), victim = await fresh();
  await execute(`mkdir -p ~/o/d && cd ~/o && echo f > d/f && chmod 4755 d/f && ln -s ${victim} trap && ln -s /etc/passwd abs && mkfifo pipe`);
  const result = await syncOut({ operationId: 'o', files: [{ sourcePath: `${home}/o`, targetPath: join(out, 'o'), kind: 'directory' }] });
  assert.equal(result.operations[0].filesTransferred, 1);
  assert.equal((await stat(join(out, 'o/d/f'))).mode & 0o7777, 0o755);
  assert.equal(await readlink(join(out, 'o/abs')), '/etc/passwd');
  assert.deepEqual((await readdir(join(out, 'o'))).sort(), ['abs', 'd', 'trap']);
  // A later mapping whose target leads through the planted link.
  await assert.rejects(syncOut({ operationId: 'o', files: [
    { sourcePath: `${home}/o`, targetPath: join(out, 'o'), kind: 'directory' },
    { sourcePath: `${home}/o/d/f`, targetPath: join(out, 'o/trap/f'), kind: 'file', mode: 0o600 }] }), /not followed/);
  assert.deepEqual(await readdir(victim), []);
  assert.deepEqual((await readdir(out)), ['o']);
  // A file mapping carries its mode, and replaces a link at the target instead of writing through it.
  await symlink(join(victim, 'x'), join(out, 'l'));
  await syncOut({ operationId: 'o', files: [{ sourcePath: `${home}/o/d/f`, targetPath: join(out, 'l'), kind: 'file', mode: 0o600 }] });
  const st = await lstat(join(out, 'l'));
  assert.ok(st.isFile() && (st.mode & 0o7777) === 0o600);
  assert.deepEqual(await readdir(victim), []);
});

test('out: more than the settings allow is refused, and the folder here stays', async () => {
  const out = await fresh();
  await execute('mkdir -p ~/many && cd ~/many && touch 1 2 3 && truncate -s 2G hole');
  await writeFile(join(out, 'old'), 'old');
  const take = (more) => worker.call('environmentSyncOut', { ...params({ operations: [{ operationId: 'o', files: [
    { sourcePath: `${home}/many`, targetPath: out, kind: 'directory' }] }] }), config: lobby.config(more) });
  await assert.rejects(take({ syncMaxEntries: 3 }), /more than 3 entries, the limit/);
  await assert.rejects(take({ syncMaxBytes: 1000000 }), /more than 1000000 bytes altogether, the limit/);
  assert.deepEqual(await readdir(out), ['old']);
  await take({ syncMaxEntries: 5, syncMaxBytes: 2 ** 31 });
  assert.deepEqual((await readdir(out)).sort(), ['1', '2', '3', 'hole']);
});

test('followSymlinks takes what links lead to', async () => {
  const src = await fresh(), out = await fresh();
  await writeFile(join(out, 'real'), 'followed');
  await symlink(join(out, 'real'), join(src, 'link'));
  await syncIn({ operationId: 'o', files: [{ sourcePath: src, targetPath: `${home}/fl`, kind: 'directory', followSymlinks: true }] });
  assert.equal((await execute('cd ~/fl && test ! -L link && cat link')).stdout, 'followed');
});

test('wrong parameters are refused before anything is done', async () => {
  const src = await fresh();
  await writeFile(join(src, 'f'), '1');
  const good = { sourcePath: join(src, 'f'), targetPath: `${home}/before`, kind: 'file' };
  for (const bad of [{ ...good, targetPath: 'relative' }, { ...good, targetPath: `${home}/../x` }, { ...good, kind: 'socket' }, { ...good, mode: 65536 }, { ...good, sourcePath: 7 }])
    await assert.rejects(syncIn({ operationId: 'o', files: [good, bad] }), (e) => e.code === -32602);
  await assert.rejects(syncIn({ operationId: 'o', files: [good], postUploadCommands: [{ command: 'true', cwd: '/etc' }] }), (e) => e.code === -32602 && /none of the operation's targets/.test(e.message));
  assert.equal((await execute('ls ~/before 2>/dev/null')).stdout, '');
});

test('both directions and commands side by side', async () => {
  const src = await fresh(), out = await fresh();
  await writeFile(join(src, 'big'), Buffer.alloc(20 << 20, 7));
  await syncIn({ operationId: 'o', files: [{ sourcePath: join(src, 'big'), targetPath: `${home}/big`, kind: 'file' }] });
  const opened = (await worker.call('health', {})).details.connectionsOpened;
  const [, , echo] = await Promise.all([
    syncIn({ operationId: 'a', files: [{ sourcePath: join(src, 'big'), targetPath: `${home}/big2`, kind: 'file' }] }),
    syncOut({ operationId: 'b', files: [{ sourcePath: `${home}/big`, targetPath: join(out, 'big'), kind: 'file' }] }),
    execute('echo hi'),
  ]);
  assert.equal(echo.stdout, 'hi\n');
  assert.ok((await readFile(join(out, 'big'))).equals(await readFile(join(src, 'big'))));
  assert.equal((await execute('cmp ~/big ~/big2 && echo same')).stdout, 'same\n');
  assert.equal((await worker.call('health', {})).details.connectionsOpened, opened);
});

test('push and pull: into folders as scp, update, delete, dry run, json', async () => {
  const src = await fresh(), out = await fresh();
  await writeFile(join(src, 'a'), 'one');
  await mkdir(join(src, 'sub'));
  await writeFile(join(src, 'sub/b'), 'two');
  let r = await exedev('push', '--json', src, `${vm}:`);
  assert.equal(r.code, 0, r.stderr);
  const name = src.split('/').pop();
  assert.equal((await execute(`cat ~/${name}/a ~/${name}/sub/b`)).stdout, 'onetwo');
  assert.equal(JSON.parse(r.stdout).files, 2);
  r = await exedev('push', '--json', '--update', `${src}/`, `${vm}:${name}`);
  assert.equal(JSON.parse(r.stdout).files, 0, 'nothing changed');
  assert.equal(JSON.parse(r.stdout).unchanged, 2);
  await execute(`echo extra > ~/${name}/extra; echo keep > ~/${name}/x.keep`);
  await writeFile(join(src, 'a'), 'three');
  r = await exedev('push', '--dry-run', '-u', '--delete', '-x', '*.keep', `${src}/`, `${vm}:${name}`);
  assert.match(r.stdout, /copy \.\/a\n/);
  assert.match(r.stdout, /delete \.\/extra\n/);
  assert.equal((await execute(`cat ~/${name}/extra ~/${name}/a`)).stdout, 'extra\none');
  r = await exedev('push', '-q', '-u', '--delete', '-x', '*.keep', `${src}/`, `${vm}:${name}`);
  assert.deepEqual([r.code, r.stdout, r.stderr], [0, '', '']);
  assert.equal((await execute(`ls ~/${name}; cat ~/${name}/a`)).stdout, 'a\nsub\nx.keep\nthree');
  // Same size, same time, other content: only --checksum sees it.
  const when = new Date(1700000000000);
  await writeFile(join(src, 'a'), 'THREE');
  await utimes(join(src, 'a'), when, when);
  await execute(`touch -d @1700000000 ~/${name}/a`);
  r = await exedev('push', '--json', '-u', `${src}/`, `${vm}:${name}`);
  assert.equal(JSON.parse(r.stdout).files, 0);
  r = await exedev('push', '--json', '-c', `${src}/`, `${vm}:${name}`);
  assert.equal(JSON.parse(r.stdout).files, 1);
  r = await exedev('pull', `${vm}:${name}/a`, `${vm}:${name}/sub`, out);
  assert.equal(r.code, 0, r.stderr);
  assert.equal(await readFile(join(out, 'a'), 'utf8'), 'THREE');
  assert.equal(await readFile(join(out, 'sub/b'), 'utf8'), 'two');
  r = await exedev('pull', `${vm}:nowhere`, out);
  assert.equal(r.code, 1);
  assert.match(r.stderr, /on the VM: .*nowhere.*No such file/);
  r = await exedev('push', src, out);
  assert.equal(r.code, 2);
});
