// A VM whose disk has neither tar nor bash: everything but a call for bash itself works there.
import test from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { access, mkdir, mkdtemp, readFile, readlink, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build, startLobby, startWorker, token, until } from './worker_lib.mjs';

const away = ['bash', 'rbash', 'tar', 'rmt-tar', 'busybox', 'rsync', 'python3', 'perl'];
let lobby, worker, dir, lease;

test.before(async () => {
  lobby = await startLobby();
  worker = await startWorker();
  dir = await mkdtemp(join(tmpdir(), 'exedev-bare-'));
});
test.after(async () => {
  await worker?.close();
  await lobby?.close();
  if (dir) await rm(dir, { recursive: true, force: true });
});

function exedev(args, { input = '', pty = false } = {}) {
  const env = { ...process.env, EXE_API_KEY: token, EXEDEV_STATE_DIR: join(dir, 'state'), HOME: dir, TERM: 'xterm',
    EXEDEV_API_URL: lobby.url, EXEDEV_SSH_IDENTITY_FILE: lobby.keyFile, EXEDEV_SSH_PORT: String(lobby.sshPort) };
  const argv = [join(build, 'exedev'), ...args];
  if (pty) argv.unshift('python3', '-c', 'import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])) % 256)');
  return new Promise((resolve) => {
    const child = execFile(argv[0], argv.slice(1), { env, timeout: 60000 }, (error, stdout, stderr) => resolve({ code: error ? error.code : 0, stdout, stderr }));
    child.stdin.on('error', () => {});
    child.stdin.end(input);
  });
}

const base = (environmentId, config = {}) => ({ driverKey: 'exe-dev', companyId: 'c', environmentId, config: lobby.config(config) });
const params = (more) => ({ ...base('env-bare'), lease, ...more });
const execute = (command, args) => worker.call('environmentExecute', params({ command, args }));
const sh = async (script) => {
  const r = await execute('sh', ['-c', script]);
  assert.equal(r.exitCode, 0, `${script}: ${r.stderr}`);
  return r.stdout;
};

test('the image: a VM loses both, on its own disk, and is copied', async () => {
  const golden = await worker.call('environmentAcquireLease', { ...base('env-golden'), runId: 'run-golden' });
  const there = async (script) => (await worker.call('environmentExecute', { ...base('env-golden'), lease: golden, command: 'sh', args: ['-c', script] }));
  // Nothing is removed anywhere but in an overlay of the VM's own.
  const own = await there('test "$(id -un)" = exedev && grep -c " /usr .* overlay " /proc/self/mountinfo');
  assert.equal(own.stdout.trim(), '1', `the VM's /usr is not an overlay: ${lobby.note ?? ''}`);
  const r = await there(`for f in ${away.join(' ')}; do sudo rm -f /usr/bin/$f /usr/sbin/$f; done; sudo sed -i 's|:/bin/bash$|:/bin/sh|' /etc/passwd; command -v bash tar; grep ^exedev: /etc/passwd`);
  assert.match(r.stdout, /^exedev:.*:\/bin\/sh\n$/);
  await access('/bin/bash'); // this machine has kept its own
  await until(async () => (await lobby.vms()).includes(golden.providerLeaseId), 'the VM is listed');
  lease = await worker.call('environmentAcquireLease', { ...base('env-bare', { sourceVm: golden.providerLeaseId }), runId: 'run-bare' });
  assert.notEqual(lease.providerLeaseId, golden.providerLeaseId);
  assert.equal(lease.metadata.shellCommand, 'sh');
  assert.equal(await sh('command -v bash; command -v tar; echo none'), 'none\n');
  const again = await worker.call('environmentResumeLease', { ...base('env-bare'), providerLeaseId: lease.providerLeaseId, leaseMetadata: lease.metadata });
  assert.equal(again.providerLeaseId, lease.providerLeaseId);
  assert.equal(again.metadata.shellCommand, 'sh');
});

test('the login environment is sh\'s; what asks for bash is told so', async () => {
  await sh(`printf 'export FROM_PROFILE=yes\\n' >~/.profile`);
  await until(async () => (await sh('printf %s "$FROM_PROFILE"')) === 'yes', 'the profile counts');
  const r = await execute('bash', ['-c', 'true']);
  assert.equal(r.exitCode, 127);
  assert.match(r.stderr, /bash/);
});

test('sync in with commands, sync out, both kinds', async () => {
  const home = (await sh('printf %s "$HOME"')), src = join(dir, 'src');
  await mkdir(join(src, 'sub'), { recursive: true });
  await writeFile(join(src, 'sub/f'), 'text', { mode: 0o751 });
  await symlink('sub/f', join(src, 'l'));
  await worker.call('environmentSyncIn', params({ operations: [{ operationId: 'o',
    files: [{ sourcePath: src, targetPath: `${home}/t`, kind: 'directory' }, { sourcePath: join(src, 'sub/f'), targetPath: `${home}/one`, kind: 'file', mode: 0o600 }],
    postUploadCommands: [{ command: 'cat sub/f >made', cwd: `${home}/t` }] }] }));
  assert.equal(await sh('cat ~/t/made ~/t/l ~/one; stat -c %a ~/t/sub/f ~/one'), 'texttexttext751\n600\n');
  await worker.call('environmentSyncOut', params({ operations: [{ operationId: 'o', files: [
    { sourcePath: `${home}/t`, targetPath: join(dir, 'back'), kind: 'directory' }, { sourcePath: `${home}/one`, targetPath: join(dir, 'one'), kind: 'file' }] }] }));
  assert.equal(await readFile(join(dir, 'back/made'), 'utf8'), 'text');
  assert.equal(await readlink(join(dir, 'back/l')), 'sub/f');
  assert.equal((await stat(join(dir, 'one'))).mode & 0o777, 0o600);
});

test('push, pull, exec and shell', async () => {
  const vm = lease.providerLeaseId;
  let r = await exedev(['push', join(dir, 'src/'), `${vm}:pushed`]);
  assert.equal(r.code, 0, r.stderr);
  r = await exedev(['pull', `${vm}:pushed`, join(dir, 'pulled')]);
  assert.equal(r.code, 0, r.stderr);
  assert.equal(await readFile(join(dir, 'pulled/sub/f'), 'utf8'), 'text');
  r = await exedev(['exec', vm, '--', 'sh', '-c', 'echo "$0 works"; exit 5']);
  assert.deepEqual([r.code, r.stdout], [5, 'sh works\n']);
  r = await exedev(['exec', vm, '--', 'bash', '-c', 'true']);
  assert.equal(r.code, 127);
  assert.match(r.stderr, /bash/);
  r = await exedev(['shell', vm], { pty: true, input: 'echo "in a $((6*7)) shell: $0"; exit 3\n' });
  assert.match(r.stdout, /in a 42 shell: \S*sh/);
  assert.equal(r.code, 3, r.stdout);
});
