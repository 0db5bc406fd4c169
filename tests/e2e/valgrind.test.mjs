// A whole lifecycle under valgrind: no error, no leak.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { readFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startLobby, startWorker } from './worker_lib.mjs';

test('validate, probe, acquire, realize, sync, execute, release, resume, destroy, a refused token: valgrind has nothing to say', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'exedev-valgrind-'));
  const log = join(folder, 'log');
  const lobby = await startLobby();
  // Leaks are what nothing points to any more at the end; threads that still run keep their own blocks.
  const worker = await startWorker({ under: ['valgrind', '-q', '--leak-check=full', '--errors-for-leak-kinds=definite', '--show-leak-kinds=definite',
    '--child-silent-after-fork=yes', `--log-file=${log}`, '--error-exitcode=99'] });
  try {
    const env = worker.env(lobby.config({ reuseLease: true }));
    await worker.call('initialize', { manifest: {}, config: {}, instanceInfo: {}, apiVersion: 1 });
    assert.equal((await env.validate()).ok, true);
    const probe = await env.probe();
    assert.equal(probe.ok, true, JSON.stringify(probe));
    const lease = await env.acquire();
    await worker.call('environmentRealizeWorkspace', { ...env.base, lease, workspace: {} });
    await writeFile(join(folder, 'in'), 'x'.repeat(100000));
    await worker.call('environmentSyncIn', { ...env.base, lease, operations: [{ operationId: 'op', files: [
      { kind: 'file', sourcePath: join(folder, 'in'), targetPath: `${lease.metadata.remoteCwd}/in`, mode: 0o600 }] }] });
    const run = await env.execute(lease, 'sh', ['-c', 'wc -c <in; echo oops >&2; kill -9 $$'], { cwd: lease.metadata.remoteCwd });
    assert.equal(run.stdout.trim(), '100000');
    assert.equal(run.signal, 'SIGKILL');
    assert.equal((await env.sh(lease, 'sleep 60', { timeoutMs: 200 })).timedOut, true);
    await Promise.all(Array.from({ length: 20 }, () => env.execute(lease, 'true')));
    await worker.call('environmentSyncOut', { ...env.base, lease, operations: [{ operationId: 'op', files: [
      { kind: 'directory', sourcePath: lease.metadata.remoteCwd, targetPath: join(folder, 'out') }] }] });
    assert.equal((await readFile(join(folder, 'out/in'))).length, 100000);
    lease.metadata.reusableSandboxLease = { key: 'x' };
    await env.release(lease);
    const again = await env.resume(lease);
    assert.equal(again.providerLeaseId, lease.providerLeaseId);
    await env.destroy(again);
    await assert.rejects(worker.env(lobby.config({ apiKey: 'wrong' })).acquire(), /401|token/i);
    assert.deepEqual(await lobby.vms(), []);
  } finally {
    const end = await worker.close();
    const said = await readFile(log, 'utf8').catch(() => '');
    await lobby.close();
    await rm(folder, { recursive: true, force: true });
    assert.equal(said.split('\n').filter((line) => line.startsWith('==')).join('\n'), ''); // a line with -- is about valgrind itself
    assert.equal(end.code, 0);
  }
});
