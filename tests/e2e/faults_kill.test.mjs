// The worker killed with SIGKILL at random points of acquire and release: the host's next call leaves no VM behind.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root, startLobby, startWorker, sleep } from './worker_lib.mjs';

const POINTS = +(process.env.KILL_POINTS || 200);
const AT_ONCE = 8;
// On a slow machine there are fewer points in `./dev test`, and the test says how many.
const LONGEST = process.env.EXEDEV_WRITE_DOCS ? Infinity : 110000;

let lobby, state;
before(async () => {
  lobby = await startLobby(['--disk', 'plain']);
  state = await mkdtemp(join(tmpdir(), 'exedev-state-'));
});
after(async () => { await lobby.close(); await rm(state, { recursive: true, force: true }); });

// How long a whole call takes here and now, so that the points fall all over it.
let whole = 600;

async function killed(which, id) {
  const worker = await startWorker({ binary: true, state });
  const env = worker.env(lobby.config());
  let lease = null;
  const began = Date.now();
  if (which === 'acquire') {
    const call = env.acquire({ runId: id }).then((l) => { lease = l; whole = (whole + Date.now() - began) / 2; }, () => {});
    await Promise.race([call, sleep(Math.random() * whole * 1.2)]);
  } else {
    lease = await env.acquire({ runId: id });
    const call = env.release(lease).then(() => { lease = null; }, () => {});
    await Promise.race([call, sleep(Math.random() * whole * 0.5)]);
  }
  await worker.kill();
  return lease; // what the host knows of
}

test(`${POINTS} points of SIGKILL in acquire and release`, { timeout: LONGEST < Infinity ? 300000 : 1800000 }, async (t) => {
  const began = Date.now();
  let left = 0, unknown = 0, done = 0;
  for (; done < POINTS && Date.now() - began < LONGEST; done += AT_ONCE) {
    const n = Math.min(AT_ONCE, POINTS - done);
    const leases = (await Promise.all(Array.from({ length: n }, (_, i) =>
      killed((done + i) % 2 ? 'release' : 'acquire', `r${(done + i).toString(36)}x${Math.random().toString(36).slice(2, 10)}`)))).filter(Boolean);
    const there = await lobby.vms();
    left += there.length;
    const orphans = there.filter((vm) => !leases.some((l) => l.providerLeaseId === vm));
    unknown += orphans.length;
    // The host starts the worker again, and ends the leases it knows. Any acquire works off the rest.
    const worker = await startWorker({ binary: true, state });
    const env = worker.env(lobby.config());
    for (const l of leases)
      assert.deepEqual(await env.destroy(l), { providerLeaseId: l.providerLeaseId, state: 'destroyed' });
    const next = await env.acquire({ runId: `next-${done}` });
    assert.deepEqual(await lobby.vms(), [next.providerLeaseId], `left after the kills: ${there}; known to the host: ${leases.map((l) => l.providerLeaseId)}`);
    await env.destroy(next);
    await worker.close();
  }
  const figures = `${done} kills, half of them in acquire, half in release: ${left} VMs were there afterwards, ${unknown} of them unknown to the host; ` +
    'after its next call none was left.';
  t.diagnostic(figures);
  assert.ok(unknown > 0, 'the points never hit a VM that nobody knew: the test proves nothing');
  assert.deepEqual(await lobby.vms(), []);
  if (process.env.EXEDEV_WRITE_DOCS) {
    const doc = join(root, 'docs/faults.md');
    const [faults] = (await readFile(doc, 'utf8')).split(/^(?=## Killed)/m);
    await writeFile(doc, `${faults}## Killed\n\nThe worker ended with SIGKILL at random points, printed by \`tests/e2e/faults_kill.test.mjs\`. ${figures}\n`);
  }
});

test('a live worker\'s lease is not taken for a leftover by another with the same state folder', async () => {
  const [a, b] = await Promise.all([startWorker({ binary: true, state }), startWorker({ binary: true, state })]);
  const [ea, eb] = [a.env(lobby.config()), b.env(lobby.config())];
  const mine = Array.from({ length: 4 }, (_, i) => ea.acquire({ runId: `mine${i}` }));
  const theirs = Array.from({ length: 4 }, (_, i) => eb.acquire({ runId: `theirs${i}` }));
  const la = await Promise.all(mine), lb = await Promise.all(theirs);
  assert.equal((await lobby.vms()).length, 8);
  assert.equal(new Set([...la, ...lb].map((l) => l.providerLeaseId)).size, 8);
  for (const l of la) assert.equal((await ea.sh(l, 'echo fine')).stdout, 'fine\n');
  await Promise.all([...la.map((l) => ea.destroy(l)), ...lb.map((l) => eb.destroy(l))]);
  await a.close();
  await b.close();
  assert.deepEqual(await lobby.vms(), []);
});
