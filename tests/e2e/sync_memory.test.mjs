// Memory of a transfer, at both ends, whatever the size: under 16 MB. EXEDEV_MIB=1024 says the size in MiB and measures that.
import test from 'node:test';
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, open, readFile, rm, stat, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startLobby, startWorker } from './worker_lib.mjs';

const SIZE = Number(process.env.EXEDEV_MIB || 128), LIMIT = 16 << 10; // KiB
let lobby, worker, dir, lease;

test.before(async () => {
  lobby = await startLobby();
  worker = await startWorker({ binary: true });
  dir = await mkdtemp(join(tmpdir(), 'exedev-memory-'));
  lease = await worker.call('environmentAcquireLease', { ...base(), runId: 'run-memory' });
});
test.after(async () => {
  await worker?.close();
  await lobby?.close();
  if (dir) await rm(dir, { recursive: true, force: true });
});

const base = () => ({ driverKey: 'exe-dev', companyId: 'c', environmentId: 'env-memory', config: lobby.config({ timeoutMs: 600000 }) });
const sh = async (script) => (await worker.call('environmentExecute', { ...base(), lease, command: 'sh', args: ['-c', script] })).stdout;
const peak = async () => +/VmHWM:\s+(\d+)/.exec(await readFile(`/proc/${worker.child.pid}/status`, 'utf8'))[1];

// The helper's processes, looked at from beside them; each one's highest.
const WATCH = `until [ -n "$over" ]; do
  [ ! -e ~/stop ] || over=1
  for p in /proc/[0-9]*; do case $(readlink $p/exe) in */exedev-vm-*) echo "\${p#/proc/} $(grep VmHWM $p/status)";; esac; done; sleep 0.1
done 2>/dev/null`;

async function watched(what) {
  await sh('rm -f ~/stop'); // not by the watch: it may begin after the end
  const watch = sh(WATCH);
  await what();
  await sh('touch ~/stop');
  const most = {};
  for (const [, pid, kib] of (await watch).matchAll(/^(\d+) VmHWM:\s+(\d+) kB$/gm)) most[pid] = Math.max(most[pid] ?? 0, +kib);
  return most;
}

test('memory at both ends stays under 16 MB', async (t) => {
  const { bavail, bsize } = await statfs(dir);
  assert.ok(bavail * bsize > SIZE * (3 << 20), 'room for the files');
  const src = join(dir, 'big'), file = await open(src, 'w'), block = randomBytes(1 << 20);
  for (let i = 0; i < SIZE; i++) { block.writeUInt32LE(i); await file.write(block); }
  await file.close();
  const sync = (method, sourcePath, targetPath) => worker.call(method, { ...base(), lease, operations: [{ operationId: 'o', files: [{ sourcePath, targetPath, kind: 'file' }] }] });
  await sh('true');
  for (const [way, run] of [['in', () => sync('environmentSyncIn', src, '/home/exedev/big')], ['out', () => sync('environmentSyncOut', '/home/exedev/big', join(dir, 'back'))]]) {
    const before = await peak(), idle = await watched(async () => {}), most = await watched(run), after = await peak();
    const transfer = Object.entries(most).filter(([pid]) => !(pid in idle)).map(([, kib]) => kib);
    assert.ok(transfer.length, 'the far end of the transfer was seen');
    for (const [pid, kib] of Object.entries(most)) assert.ok(kib < LIMIT, `${way}: process ${pid} of the helper had ${kib} KiB at its peak`);
    assert.ok(after - before < LIMIT, `${way}: the worker grew from ${before} to ${after} KiB`);
    t.diagnostic(`${SIZE} MiB ${way}: worker's peak ${before} KiB before, ${after} KiB after; helper's processes at most ${Math.max(...Object.values(most))} KiB, the transfer's own ${Math.max(...transfer)} KiB`);
  }
  assert.equal((await stat(join(dir, 'back'))).size, SIZE << 20);
});
