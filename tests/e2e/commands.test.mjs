// Commands at depth, through the worker and real sshd on a lobby's VMs: one session allowed, links killed and frozen,
// trees that resist, look-alikes, many at once.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { startLobby, startWorker, until, sleep } from './worker_lib.mjs';

let lobby;
before(async () => { lobby = await startLobby(['--relay', '--max-sessions', '1']); });
after(async () => { await lobby.close(); });

const withLease = (config, body) => async () => {
  const worker = await startWorker();
  try {
    const env = worker.env(lobby.config(config));
    const lease = await env.acquire();
    await body(worker, env, lease);
    await lobby.faults();
    await env.destroy(lease);
    assert.deepEqual(await lobby.vms(), []);
  } finally {
    await lobby.faults();
    const end = await worker.close();
    for (const vm of await lobby.vms()) await lobby.exec(`rm ${vm}`);
    assert.deepEqual(end, { code: 0, signal: null }, worker.stderr);
  }
};

const stat = (pid) => { try { return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' '); } catch { return null; } };
const comm = (pid) => { try { return readFileSync(`/proc/${pid}/comm`, 'utf8').trim(); } catch { return ''; } };
// Under an older Node the worker is the shim's child.
const below = (pid) => {
  const children = readdirSync('/proc').filter((p) => /^\d+$/.test(p) && stat(p)?.[1] === String(pid));
  return [...children, ...children.flatMap(below)];
};
const sshOf = (worker) => below(worker.child.pid).filter((p) => comm(p) === 'ssh').sort();
const exedevOf = (worker) => [String(worker.child.pid), ...below(worker.child.pid)].find((p) => comm(p).startsWith('exedev'));
const rssMB = (pid) => Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;

test('200 at once on one VM whose sshd allows one session: one connection, nobody fails', withLease({}, async (w, env, lease) => {
  const before = sshOf(w);
  assert.equal(before.length, 1);
  const all = await Promise.all(Array.from({ length: 200 }, (_, i) => env.sh(lease, `echo ${i}; exit ${i % 100}`)));
  all.forEach((r, i) => assert.deepEqual([r.stdout, r.exitCode, r.metadata.transportError], [`${i}\n`, i % 100, undefined]));
  assert.deepEqual(sshOf(w), before);
}));

test('ssh killed under 50 commands: each says so, keeps its output, and the next command works', withLease({}, async (w, env, lease) => {
  const all = Array.from({ length: 50 }, (_, i) => env.sh(lease, `echo before ${i}; exec sleep 777`));
  await until(() => all.every((p) => p.log('stdout')), 'all run');
  for (const pid of sshOf(w)) process.kill(Number(pid), 'SIGKILL');
  (await Promise.all(all)).forEach((r, i) => {
    assert.equal(r.exitCode, 255);
    assert.equal(r.stdout, `before ${i}\n`);
    assert.equal(r.metadata.transportError, 'network');
    assert.match(r.stderr, /^exedev: VM .*network.*\n$/);
  });
  const next = await env.sh(lease, 'echo again');
  assert.equal(next.stdout, 'again\n');
  await until(async () => /^0\n/.test((await env.sh(lease, 'ps ax -o args= | grep -c "[s]leep 777"; true')).stdout), 'the commands are ended on the VM');
}));

test('frozen for far longer than it takes to notice: a durable command loses no number and repeats none',
  withLease({ durableCommands: true, heartbeatSeconds: 1 }, async (w, env, lease) => {
    const count = 1200;
    const running = env.sh(lease, `i=0; while [ $i -lt ${count} ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 6`);
    await until(() => running.log('stdout').includes('\n100\n'), 'it runs');
    await lobby.faults('ssh:freeze');
    await until(() => w.logs().some((l) => /nothing was heard/.test(l)), 'the dead link is noticed', 30000);
    await sleep(3000);
    await lobby.faults();
    const r = await running;
    assert.equal(r.stdout, Array.from({ length: count }, (_, i) => `${i}\n`).join(''));
    assert.deepEqual([r.exitCode, r.metadata.transportError], [6, undefined]);
    assert.ok(r.stdout.startsWith(running.log('stdout')), 'the result begins with what was streamed');
  }));

test('frozen under a command that is not durable: it is told, and ended on the VM', withLease({ heartbeatSeconds: 1 }, async (w, env, lease) => {
  const running = env.sh(lease, 'echo on; exec sleep 776');
  await until(() => running.log('stdout'), 'it runs');
  await lobby.faults('ssh:freeze');
  const r = await running;
  assert.deepEqual([r.exitCode, r.stdout, r.metadata.transportError], [255, 'on\n', 'network']);
  await lobby.faults();
  await until(async () => /^0\n/.test((await env.sh(lease, 'ps ax -o args= | grep -c "[s]leep 776"; true')).stdout), 'it is ended');
}));

test('what looks like ssh failing is a result; ssh failing is told apart', withLease({}, async (w, env, lease) => {
  for (const words of ['Permission denied (publickey).', 'Host key verification failed.', 'Please enter your email address:',
    'Please complete registration by running: ssh exe.dev', 'client_loop: send disconnect: Broken pipe', 'EXEDEV-VM FAIL no']) {
    const r = await env.sh(lease, `echo '${words}'; echo '${words}' >&2; exit 255`);
    assert.deepEqual([r.exitCode, r.stdout, r.stderr, r.metadata.transportError], [255, `${words}\n`, `${words}\n`, undefined]);
  }
  for (const pid of sshOf(w)) process.kill(Number(pid), 'SIGKILL');
  await lobby.exec(`rm ${lease.providerLeaseId}`); // nobody is there to answer any more
  const r = await env.sh(lease, 'echo never');
  assert.equal(r.exitCode, 255);
  assert.equal(r.stdout, '');
  assert.equal(r.metadata.transportError, 'network');
  assert.match(r.stderr, new RegExp(`VM ${lease.providerLeaseId} .*network`));
}));

test('a tree that forks twice, leaves the session and ignores TERM is gone after a timeout; its neighbours are not', withLease({}, async (w, env, lease) => {
  const neighbour = env.sh(lease, 'sleep 6; echo still here');
  const r = await env.sh(lease, `trap '' TERM; echo begun
    (setsid sh -c 'trap "" TERM; (exec -a stubborn sleep 775 || sleep 775) & wait' >/dev/null 2>&1 &) & wait
    (trap '' TERM; sleep 775 &) ; while :; do sleep 1; done`, { timeoutMs: 700 });
  assert.deepEqual([r.timedOut, r.exitCode, r.stdout], [true, null, 'begun\n']);
  assert.match((await env.sh(lease, 'ps ax -o args= | grep -c "[s]leep 775"; true')).stdout, /^0\n/);
  assert.equal((await neighbour).stdout, 'still here\n');
}));

test('50 MB of stdin to a command that leaves, to one that counts, and one that closes it', withLease({}, async (w, env, lease) => {
  const stdin = 'x'.repeat(50e6);
  assert.equal((await env.sh(lease, 'exit 7', { stdin })).exitCode, 7);
  assert.equal((await env.sh(lease, 'wc -c', { stdin })).stdout.trim(), '50000000');
  assert.equal((await env.sh(lease, 'exec <&-; sleep 0.2; echo done', { stdin })).stdout, 'done\n');
}));

test('a server started in the background by one command serves the next', withLease({}, async (w, env, lease) => {
  const started = await env.sh(lease, 'mkfifo /tmp/ask; (while read -r word < /tmp/ask; do echo "heard $word" > /tmp/heard; done) & echo up');
  assert.deepEqual([started.exitCode, started.stdout], [0, 'up\n']);
  const asked = await env.sh(lease, 'echo hello > /tmp/ask; for i in 1 2 3 4 5 6 7 8 9 10; do [ -s /tmp/heard ] && break; sleep 0.1; done; cat /tmp/heard');
  assert.equal(asked.stdout, 'heard hello\n');
}));

test('one that floods slows no other to a halt, and its output is whole', withLease({}, async (w, env, lease) => {
  const flood = env.sh(lease, 'yes 0123456789abcde | head -c 60000000');
  const quick = [];
  for (let i = 0; i < 30; i++) quick.push((await env.sh(lease, `echo ${i}`)).stdout);
  assert.deepEqual(quick, Array.from({ length: 30 }, (_, i) => `${i}\n`));
  const r = await flood;
  assert.equal(r.stdout.length, 60000000);
  assert.ok(r.stdout.startsWith(flood.log('stdout')));
}));

test('arguments and environment at their limits, and beyond', withLease({}, async (w, env, lease) => {
  const big = 'y'.repeat(131071), odd = ' a\'b"c\\d$HOME`x`\n\t*?\u0001\u20ac ';
  const r = await env.execute(lease, 'sh', ['-c', 'printf "%s|" "$1" "$#" "${#2}" "${#BIG}" "$ODD"', 'sh', odd, big, big, big, big],
    { env: { BIG: big.slice(4), ODD: odd } });
  assert.equal(r.stdout, `${odd}|5|131071|131067|${odd}|`);
  for (const args of [[`${big}y`], Array(9).fill(big)])
    await assert.rejects(env.execute(lease, 'echo', args), /131071|1048576/);
  assert.equal((await env.sh(lease, 'echo fine')).stdout, 'fine\n');
}));

test('the login environment is captured once, and again when a profile changed', withLease({}, async (w, env, lease) => {
  await env.sh(lease, 'echo "echo noise; export SEEN=\\$((SEEN+1)) COUNT=\\$(date +%N)" > ~/.profile');
  await sleep(200); // a file whose time is that of its capture could have changed after it: it is read once more
  const a = await env.sh(lease, 'echo $COUNT'), b = await env.sh(lease, 'echo $COUNT');
  assert.match(a.stdout, /^\d+\n$/);
  assert.equal(a.stdout, b.stdout);
  await env.sh(lease, 'echo "export COUNT=changed" > ~/.profile');
  assert.equal((await env.sh(lease, 'echo $COUNT')).stdout, 'changed\n');
  await env.sh(lease, 'echo "exit 3; if" > ~/.profile');
  assert.deepEqual([(await env.sh(lease, 'echo works')).stdout, (await env.sh(lease, 'exit 4')).exitCode], ['works\n', 4]);
}));

test('1,000 commands at once on 20 VMs: none fails, 20 connections, little memory', async () => {
  const worker = await startWorker();
  try {
    const env = worker.env(lobby.config());
    const leases = [];
    for (let i = 0; i < 20; i += 4)
      leases.push(...await Promise.all([0, 1, 2, 3].map((k) => env.acquire({ runId: `r${'abcdefghij'[i / 4]}${k}xxxxx` }))));
    const ssh = sshOf(worker);
    assert.equal(ssh.length, 20);
    const all = await Promise.all(Array.from({ length: 1000 }, (_, i) => env.sh(leases[i % 20], `echo ${i}; sleep 0.2; exit ${i % 50}`)));
    all.forEach((r, i) => assert.deepEqual([r.stdout, r.exitCode], [`${i}\n`, i % 50]));
    assert.deepEqual(sshOf(worker), ssh, 'the same 20 connections');
    const peak = rssMB(exedevOf(worker));
    assert.ok(peak < 64, `${peak} MB at the most`);
    await Promise.all(leases.map((lease) => env.destroy(lease)));
  } finally {
    const end = await worker.close();
    for (const vm of await lobby.vms()) await lobby.exec(`rm ${vm}`);
    assert.deepEqual(end, { code: 0, signal: null }, worker.stderr);
  }
});

test('the worker killed with SIGKILL: none of ours stays here, and the commands on the VM end', async () => {
  const worker = await startWorker({ binary: true }); // so that it is the worker that is killed, not a shim before it
  const env = worker.env(lobby.config({ reuseLease: true }));
  const lease = await env.acquire();
  const running = env.sh(lease, 'echo on; exec sleep 774');
  running.catch(() => {});
  await until(() => running.log('stdout'), 'it runs');
  const ours = sshOf(worker);
  assert.equal(ours.length, 1);
  await worker.kill();
  await until(() => ours.every((pid) => [null, 'Z'].includes(stat(pid)?.[0] ?? null)), 'ssh is gone', 2000);
  const other = await startWorker({ state: worker.state });
  const next = other.env(lobby.config({ reuseLease: true }));
  await until(async () => /^0\n/.test((await next.sh(lease, 'ps ax -o args= | grep -c "[s]leep 774"; true')).stdout), 'the command is ended');
  await next.destroy(lease);
  await other.close();
  await worker.close();
});
