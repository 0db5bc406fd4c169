// The npm folder's worker, driven as the host drives it, against a lobby: the life of leases.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { newKey, startLobby, startWorker, until, token } from './worker_lib.mjs';

let lobby;
before(async () => { lobby = await startLobby(); });
after(async () => { await lobby.close(); });

const withWorker = (body) => async () => {
  const worker = await startWorker();
  try {
    await body(worker);
    assert.deepEqual(await lobby.vms(), [], 'every VM is gone');
  } finally {
    const end = await worker.close();
    for (const vm of await lobby.vms()) await lobby.exec(`rm ${vm}`); // after a failure: the next test starts clean
    assert.deepEqual(end, { code: 0, signal: null }, worker.stderr);
    assert.equal(worker.stderr, '');
  }
};

test('initialize, health, validate, probe', withWorker(async (w) => {
  const env = w.env(lobby.config());
  const init = await w.call('initialize', { manifest: {}, config: {}, apiVersion: 1, databaseNamespace: null });
  assert.equal(init.ok, true);
  for (const m of ['environmentExecute', 'environmentResumeLease', 'environmentDestroyLease', 'duplexChannelOpen', 'loginPtyOpen', 'environmentCaptureTemplate'])
    assert.ok(init.supportedMethods.includes(m), m);
  const health = await w.call('health');
  assert.equal(health.status, 'ok');
  const valid = await env.validate();
  assert.equal(valid.ok, true);
  assert.equal(valid.normalizedConfig.timeoutMs, 60000);
  const invalid = await w.call('environmentValidateConfig', { driverKey: 'exe-dev', config: { apiUrl: 'ftp://x', sshPort: 0, timeoutMs: 'soon' } });
  assert.equal(invalid.ok, false);
  for (const field of ['apiUrl', 'sshPort', 'timeoutMs']) assert.ok(invalid.errors.some((e) => e.startsWith(field)), field);
  assert.equal('normalizedConfig' in invalid, false);

  const probe = await env.probe();
  assert.equal(probe.ok, true, probe.summary);
  assert.deepEqual(probe.diagnostics.map((d) => d.code), ['create', 'connect', 'command', 'setup', 'delete']);
  for (const d of probe.diagnostics) assert.equal(typeof d.details.durationMs, 'number');
  assert.deepEqual(Object.keys(probe.metadata).sort(), ['provider', 'remoteCwd', 'reuseLease', 'shellCommand', 'sshDest', 'timeoutMs', 'vmName']);
  assert.match(probe.metadata.vmName, /^paperclip-probe-/);
}));

test('a lease from acquire to release', withWorker(async (w) => {
  const env = w.env(lobby.config());
  const lease = await env.acquire();
  assert.equal(lease.providerLeaseId, 'paperclip-environm-run00000');
  assert.deepEqual(Object.keys(lease.metadata).sort(), ['httpsUrl', 'provider', 'region', 'regionDisplay', 'remoteCwd', 'resumedLease', 'reuseLease',
    'shellCommand', 'sshDest', 'sshHost', 'sshLogin', 'timeoutMs', 'vmName']);
  assert.equal(lease.metadata.remoteCwd, '/home/exedev/paperclip-workspace');
  assert.equal('expiresAt' in lease, false, 'no timer, no promise');

  const run = env.sh(lease, 'pwd; echo "$A|$B|$(cat)"; echo oops >&2; exit 3', { env: { A: 'x y', B: "it's", C: 7 }, stdin: 'in\u0000put' });
  const r = await run;
  assert.equal(r.exitCode, 3);
  assert.equal(r.stdout.split('\n')[0], '/home/exedev/paperclip-workspace');
  assert.match(r.stdout, /x y\|it's\|/);
  assert.equal(r.stderr, 'oops\n');
  assert.equal(r.timedOut, false);
  assert.deepEqual(r.metadata, { provider: 'exe-dev', vmName: lease.providerLeaseId, sshDest: lease.metadata.sshDest });
  assert.equal(run.log('stdout'), r.stdout, 'live output is the whole output');
  assert.equal(run.log('stderr'), r.stderr);

  assert.deepEqual((await w.call('environmentRealizeWorkspace', { ...env.base, lease: { providerLeaseId: lease.providerLeaseId, metadata: {} },
    workspace: { localPath: '/nope', remotePath: '/home/exedev/a b/c' } })), { cwd: '/home/exedev/a b/c', metadata: { provider: 'exe-dev', remoteCwd: '/home/exedev/a b/c' } });
  assert.equal((await env.sh(lease, 'pwd', { cwd: '/home/exedev/a b/c' })).stdout, '/home/exedev/a b/c\n');

  const before = lobby.count('ls');
  await env.sh(lease, 'true');
  assert.equal(lobby.count('ls'), before, 'execute does not ask the API');
  assert.equal((await w.call('health')).details.connectionsOpened, 1, 'one connection for all of it');

  assert.deepEqual(await env.release(lease), { providerLeaseId: lease.providerLeaseId, state: 'destroyed' });
  assert.deepEqual(await env.release(lease), { providerLeaseId: lease.providerLeaseId, state: 'destroyed' }, 'gone already is success');
}));

test('output: bytes that are no UTF-8, characters cut between reads, separators, NUL, and the cap', withWorker(async (w) => {
  const env = w.env(lobby.config({ outputCap: 100000 }));
  const lease = await env.acquire();
  const odd = env.sh(lease, "printf 'a\\0b\\342\\200\\250c\\n'; printf '\\303'; sleep 0.2; printf '\\251 \\377 '; printf '\\360\\237\\230'; sleep 0.2; printf '\\200'");
  assert.equal((await odd).stdout, 'a\u0000b\u2028c\né \ufffd 😀');
  assert.equal(odd.log('stdout'), (await odd).stdout);
  const flood = env.sh(lease, 'i=0; while [ $i -lt 4000 ]; do printf "line %05d with \\"quotes\\" and \\001 more\\n" $i; i=$((i+1)); done; echo end >&2');
  const r = await flood;
  assert.equal(r.exitCode, 0);
  assert.match(r.stdout, /\[exedev: output cut here, over the limit\]\n$/);
  assert.ok(JSON.stringify(r.stdout).length < 101000);
  assert.ok(r.stdout.startsWith(flood.log('stdout')), 'the result begins with what was streamed');
  assert.ok(flood.log('stdout').length > 50000);
  await env.destroy(lease);
}));

test('time-outs, signals, missing commands and folders', withWorker(async (w) => {
  const env = w.env(lobby.config());
  const lease = await env.acquire();
  const late = await env.sh(lease, 'echo early; (sleep 300 & ) ; sleep 300', { timeoutMs: 400 });
  assert.deepEqual([late.exitCode, late.timedOut, late.stdout], [null, true, 'early\n']);
  assert.match((await env.sh(lease, 'ps ax -o args= | grep "[s]leep 300" | wc -l')).stdout, /^\s*0\n$/, 'the whole tree is gone');
  const killed = await env.sh(lease, 'kill -9 $$');
  assert.deepEqual([killed.exitCode, killed.signal, killed.timedOut], [137, 'SIGKILL', false]);
  assert.equal((await env.execute(lease, 'no-such-program')).exitCode, 127);
  const nowhere = await env.sh(lease, 'echo ran', { cwd: '/no/such/folder' });
  assert.deepEqual([nowhere.exitCode, nowhere.stdout], [1, '']);
  assert.match(nowhere.stderr, /\/no\/such\/folder/);
  assert.equal((await env.sh(lease, 'echo never late', { timeoutMs: 0 })).stdout, 'never late\n');
  await assert.rejects(env.execute(lease, 'true', ['x'.repeat(140000)]), (e) => e.code === -32602 && /131/.test(e.message));
  assert.equal((await env.execute(lease, 'sh', ['-c', 'echo ${#1}', 'sh', 'y'.repeat(131000)])).stdout, '131000\n');
  const lookalike = await env.sh(lease, 'echo "Permission denied (publickey)." >&2; echo "Please complete registration by running: ssh exe.dev"; exit 255');
  assert.equal(lookalike.exitCode, 255);
  assert.equal('transportError' in lookalike.metadata, false);
  await env.destroy(lease);
}));

test('many at once share one connection, and background children outlive their command', withWorker(async (w) => {
  const env = w.env(lobby.config());
  const lease = await env.acquire();
  const runs = Array.from({ length: 100 }, (_, i) => env.sh(lease, `echo ${i}; sleep 0.1; exit ${i}`));
  for (const [i, p] of runs.entries()) {
    const r = await p;
    assert.deepEqual([r.exitCode, r.stdout], [i, `${i}\n`]);
  }
  await env.sh(lease, 'nohup sh -c "while :; do date +%s%N > tick; sleep 0.05; done" >/dev/null 2>&1 &');
  const tick = async () => (await env.sh(lease, 'cat tick')).stdout;
  const first = await until(tick, 'a tick of the background child');
  await until(async () => (await tick()) !== first, 'another tick');
  assert.equal((await w.call('health')).details.connectionsOpened, 1);
  await env.destroy(lease);
}));

test('reuse: kept only where config and metadata both say so; resumed; restarted when stopped', withWorker(async (w) => {
  const env = w.env(lobby.config({ reuseLease: true }));
  const lease = await env.acquire();
  await env.sh(lease, 'echo kept > file; nohup sleep 1000 >/dev/null 2>&1 &');
  const kept = { ...lease, metadata: { ...lease.metadata, reusableSandboxLease: { adapterType: 'x' } } };
  assert.deepEqual(await env.release(kept), { providerLeaseId: lease.providerLeaseId, state: 'stopped' });
  assert.deepEqual(await lobby.vms(), [lease.providerLeaseId]);
  const again = await env.resume(kept);
  assert.equal(again.providerLeaseId, lease.providerLeaseId);
  assert.equal(again.metadata.resumedLease, true);
  assert.deepEqual({ ...again.metadata, resumedLease: false }, lease.metadata);
  assert.equal((await env.sh(again, 'cat file; ps ax -o args= | grep "[s]leep 1000" | wc -l')).stdout.replace(/\s+/g, ' '), 'kept 0 ',
    'the file is there, the process is not');
  assert.equal((await w.call('health')).details.connectionsOpened, 1, 'the connection was kept warm');

  await env.sh(again, 'sudo poweroff');
  await until(async () => JSON.stringify((await lobby.exec('ls')).json).includes('stopped'), 'the VM is stopped');
  const restarted = await env.resume(again);
  assert.equal(restarted.providerLeaseId, lease.providerLeaseId);
  assert.equal((await env.sh(restarted, 'cat file')).stdout, 'kept\n');

  assert.deepEqual(await env.release(restarted), { providerLeaseId: lease.providerLeaseId, state: 'destroyed' }, 'no reusableSandboxLease: deleted');
  const gone = await env.resume(restarted);
  assert.equal(gone.providerLeaseId, null);
  assert.equal(gone.metadata.expired, true);
}));

test('cancelActiveWork ends what runs, and says so once it is over', withWorker(async (w) => {
  const env = w.env(lobby.config({ reuseLease: true }));
  const lease = await env.acquire();
  const kept = { ...lease, metadata: { ...lease.metadata, reusableSandboxLease: {} } };
  const running = env.sh(lease, 'trap "" TERM; echo on; sleep 777 & wait; sleep 777');
  await until(() => running.log('stdout'), 'the command runs');
  assert.deepEqual(await env.release(kept, { cancelActiveWork: true }), { providerLeaseId: lease.providerLeaseId, state: 'stopped' });
  const r = await running;
  assert.equal(r.exitCode, null);
  assert.equal(r.stdout, 'on\n');
  const again = await env.resume(kept);
  assert.match((await env.sh(again, 'ps ax -o args= | grep "[s]leep 777" | wc -l')).stdout, /^\s*0\n/);
  await env.destroy(again);
  await assert.rejects(env.sh(again, 'true').then((x) => { if (x.metadata.transportError) throw new Error('no VM'); }), Error);
}));

test('expiry: armed in the VM, promised only then, and it powers the VM off', withWorker(async (w) => {
  const env = w.env(lobby.config({ reuseLease: true }));
  const at = new Date(Date.now() + 6000).toISOString();
  const lease = await env.acquire({ requestedExpiresAt: at });
  assert.ok(Date.parse(lease.expiresAt) <= Date.parse(at));
  assert.ok(Date.parse(lease.expiresAt) > Date.now() - 1000);
  await until(async () => JSON.stringify((await lobby.exec('ls')).json).includes('stopped'), 'the timer powers the VM off', 30000);
  const gone = await env.resume(lease);
  assert.equal(gone.providerLeaseId, null);
  assert.match(gone.metadata.reason, /expiry/);
  await env.destroy(lease);
  await assert.rejects(env.acquire({ requestedExpiresAt: 'tomorrow', runId: 'other' }), /ISO 8601/);
}));

test('a key that does not open the VM: the VM is deleted, the message helps', withWorker(async (w) => {
  const key = await newKey();
  const env = w.env(lobby.config({ sshPrivateKey: key.text }));
  await assert.rejects(env.acquire(), (e) => /VM paperclip-/.test(e.message) && /key|regist/i.test(e.message) && !e.message.includes(key.text.split('\n')[2]));
  assert.deepEqual(await lobby.vms(), []);
  const probe = await env.probe();
  assert.equal(probe.ok, false);
  assert.deepEqual(Object.keys(probe.metadata).sort(), ['error', 'provider', 'reuseLease', 'timeoutMs']);
  assert.equal(probe.diagnostics.find((d) => d.code === 'connect').severity, 'error');
  const wrongHost = w.env(lobby.config({ sshKnownHosts: `* ${key.pub.split(' ').slice(0, 2).join(' ')}` }));
  await assert.rejects(wrongHost.acquire({ runId: 'hostkey1' }), /host key/i);
}));

test('names: our own earlier attempt is adopted, a stranger is left alone', withWorker(async (w) => {
  const env = w.env(lobby.config());
  const name = 'paperclip-environm-run00000';
  assert.equal((await lobby.exec(`new --json --name=${name}`)).status, 200); // no mark: a stranger's
  const lease = await env.acquire();
  assert.notEqual(lease.providerLeaseId, name);
  assert.match(lease.providerLeaseId, /^paperclip-environm-/);
  await assert.rejects(env.destroy({ providerLeaseId: name, metadata: {} }), /does not carry the tag/);
  await env.destroy(lease);
  assert.deepEqual(await lobby.vms(), [name]);
  const resumed = await env.resume({ providerLeaseId: name, metadata: {} });
  assert.equal(resumed.providerLeaseId, null, 'a stranger under the lease\'s name is not entered');
  await lobby.exec(`rm ${name}`);

  // The journal knows a name that by now is another's.
  const mine = await env.acquire();
  await lobby.exec(`rm ${mine.providerLeaseId}`);
  await lobby.exec(`new --json --name=${mine.providerLeaseId}`);
  await assert.rejects(env.destroy(mine), /does not carry the tag/);
  await lobby.exec(`rm ${mine.providerLeaseId}`);
}));

test('two runs whose short names collide do not share a VM', withWorker(async (w) => {
  const env = w.env(lobby.config());
  const [a, b] = await Promise.all([env.acquire({ runId: 'run-0000-a' }), env.acquire({ runId: 'run-0000-b' })]);
  assert.notEqual(a.providerLeaseId, b.providerLeaseId);
  const c = await env.acquire({ runId: 'run-0000-a' });
  assert.ok(![a.providerLeaseId, b.providerLeaseId].includes(c.providerLeaseId), 'a live lease\'s VM is never taken');
  await Promise.all([a, b, c].map((l) => env.destroy(l)));
}));

test('a configured setup script is waited for where that is asked for, and its failure is told', withWorker(async (w) => {
  const good = w.env(lobby.config({ setupScript: 'sleep 0.5\necho hello > ~/made-by-setup', waitForSetup: true }));
  const lease = await good.acquire();
  assert.equal((await good.sh(lease, 'cat ~/made-by-setup')).stdout, 'hello\n');
  assert.equal(lease.metadata.setup.state, 'done');
  await good.destroy(lease);
  const bad = w.env(lobby.config({ setupScript: '#!/bin/bash\necho it went wrong\nexit 4', waitForSetup: true }));
  const failed = await bad.acquire({ runId: 'setupbad' });
  assert.deepEqual([failed.metadata.setup.state, failed.metadata.setup.exitCode], ['failed', 4]);
  assert.match(failed.metadata.setup.log, /it went wrong/);
  assert.ok(w.logs().some((l) => l.startsWith('warn') && l.includes('it went wrong')));
  await bad.destroy(failed);
}));

const childrenOf = (pid) => readdirSync('/proc').filter((p) => /^\d+$/.test(p)).filter((p) => {
  try { return readFileSync(`/proc/${p}/stat`, 'utf8').split(') ')[1].split(' ')[1] === String(pid); } catch { return false; }
});

test('shutdown under a running command: it ends on the VM, nothing of ours stays here', async () => {
  const w = await startWorker();
  const env = w.env(lobby.config());
  const lease = await env.acquire();
  const running = env.sh(lease, 'echo on; exec sleep 888');
  running.catch(() => {});
  await until(() => running.log('stdout'), 'the command runs');
  const ours = childrenOf(w.child.pid);
  assert.ok(ours.length > 0, 'an ssh process');
  assert.equal(await w.call('shutdown'), null);
  assert.deepEqual(await w.ended, { code: 0, signal: null });
  for (const pid of ours) await until(() => { try { readFileSync(`/proc/${pid}/cmdline`); return childrenOf(pid).length < 0; } catch { return true; } }, `process ${pid} is gone`);
  const other = await startWorker({ state: w.state }); // another worker finds the VM without the first one's memory
  const again = other.env(lobby.config());
  assert.match((await again.sh(lease, 'ps ax -o args= | grep "[s]leep 888" | wc -l')).stdout, /^\s*0\n/);
  assert.deepEqual(await again.destroy(lease), { providerLeaseId: lease.providerLeaseId, state: 'destroyed' });
  await other.close();
  await w.close();
});

test('killed with SIGKILL: no ssh of ours stays, the next worker ends the lease', async () => {
  const w = await startWorker();
  const env = w.env(lobby.config());
  const lease = await env.acquire();
  env.sh(lease, 'sleep 999').catch(() => {});
  const ours = await until(() => { const c = childrenOf(w.child.pid); return c.length && c; }, 'an ssh process');
  await w.kill();
  for (const pid of ours) await until(() => { try { return readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z'); } catch { return true; } }, `process ${pid} is gone`);
  const other = await startWorker({ state: w.state });
  assert.deepEqual(await other.env(lobby.config()).destroy(lease), { providerLeaseId: lease.providerLeaseId, state: 'destroyed' });
  await other.close();
  await w.close();
  assert.deepEqual(await lobby.vms(), []);
});

test('secrets: not in a command line, an environment, a message or a file', async () => {
  const w = await startWorker();
  const env = w.env(lobby.config());
  const lease = await env.acquire();
  await env.sh(lease, 'echo fine');
  const bodyLine = lobby.privateKey.split('\n')[1];
  for (const pid of [w.child.pid, ...childrenOf(w.child.pid)]) {
    for (const file of ['cmdline', 'environ']) {
      const text = readFileSync(`/proc/${pid}/${file}`, 'latin1');
      assert.ok(!text.includes(token) && !text.includes(bodyLine), `${file} of ${pid}`);
    }
  }
  await env.destroy(lease);
  await w.call('shutdown');
  await w.ended;
  const search = spawnSync('grep', ['-rlaF', '-e', token, '-e', bodyLine, w.state], { encoding: 'utf8' });
  assert.equal(search.status, 1, `a secret is in ${search.stdout}`);
  for (const note of w.notes) assert.ok(!JSON.stringify(note).includes(token) && !JSON.stringify(note).includes(bodyLine));
  await w.close();
});
