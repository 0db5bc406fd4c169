// Everything that can go wrong with the API, at every command, under every call that uses it. After each case the
// lobby must hold exactly the VMs it should, and the message must help. EXEDEV_WRITE_DOCS=1 writes docs/faults.md.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { newKey, startLobby, startWorker, until, root } from './worker_lib.mjs';

// Cases that wait for the end of their time run many at once; those that make VMs one after the other, few.
const WAITING = { slots: 16, timeout: 8000 };
const QUICK = { slots: 5, timeout: 45000 };
// In `./dev test` as many as fit into this, in random order; all of them where docs/faults.md is written.
const BUDGET = process.env.EXEDEV_WRITE_DOCS ? Infinity : 200000;
const AGAIN = 16; // cases that may be tried once more, alone: a busy machine is no fault of the program

// done: was the work done behind the fault? passing: may it heal by itself?
const faults = [
  ...[400, 401, 403, 404, 413, 422].map((s) => ({ name: `${s}`, spec: `status=${s}`, done: false, passing: false, says: new RegExp(`${s}`) })),
  { name: '429', spec: 'status=429,retry-after=1', done: false, passing: true, says: /rate limit/i },
  ...[500, 502, 503].map((s) => ({ name: `${s}`, spec: `status=${s}`, done: false, passing: true, says: new RegExp(`${s}`) })),
  { name: '504', spec: 'status=504', done: false, passing: true, says: /504/ },
  { name: '504, done', spec: 'lost=504', done: true, passing: true, says: /504/ },
  { name: 'refused', listen: true, spec: 'refuse', done: false, passing: true, says: /refused|connect/i },
  { name: 'reset before', spec: 'cut', done: false, passing: true, says: /reset|closed|network|broke|cut|lost/i },
  { name: 'reset after', spec: 'lost', done: true, passing: true, says: /reset|closed|network|broke|cut|lost/i },
  { name: 'hang', spec: 'hang=60000', done: false, passing: true, says: /timed out|time|answer/i },
  { name: 'slow drip', spec: 'drip=100', done: true, passing: true, says: /timed out|time|answer/i },
  { name: 'garbage', spec: 'garbage', done: true, passing: true, says: /JSON/ },
  { name: 'truncated', spec: 'truncate', done: true, passing: true, says: /JSON/ },
  { name: 'cut short', spec: 'short', done: true, passing: true, says: /JSON|closed|cut|lost|network|transfer/i },
  { name: '1 GB', spec: 'huge', done: true, passing: true, says: /8 MiB/ },
];

const retryWords = /timed out|rate limit|network|connection reset|service unavailable/;

// Each call with the commands it uses. `setup` makes what is there before the fault; `ok` says whether it may succeed.
const calls = [
  { name: 'probe', commands: ['new', 'rm', 'ls'], run: (s) => s.env.probe() },
  { name: 'acquire', commands: ['new'], run: (s) => s.env.acquire() },
  { name: 'acquire of a copy', commands: ['cp', 'tag', 'comment', 'ls'], copy: true, run: (s) => s.env.acquire() },
  { name: 'acquire that fails', commands: ['rm', 'ls'], badKey: true, run: (s) => s.env.acquire() },
  { name: 'resume', commands: ['ls', 'restart'], lease: true, run: (s) => s.env.resume(s.lease) },
  { name: 'release', commands: ['rm', 'ls'], lease: true, run: (s) => s.env.release(s.lease) },
  { name: 'destroy', commands: ['rm', 'ls'], lease: true, run: (s) => s.env.destroy(s.lease) },
];

const { text: badKey } = await newKey();

let run = 0;

async function oneCase(slot, call, command, fault) {
  const { lobby, state } = slot;
  let worker = await startWorker({ binary: true, state });
  slot.worker = worker;
  const good = lobby.config({ timeoutMs: slot.timeout, ...(call.copy ? { sourceVm: 'golden' } : {}) });
  const env = worker.env(call.badKey ? { ...good, sshPrivateKey: badKey } : good);
  const s = { env, lobby };
  const kept = call.copy ? ['golden'] : [];
  await lobby.faults();
  if (call.copy) {
    await lobby.exec('new --json --name=golden');
    await until(async () => (await lobby.vms()).includes('golden'), 'the VM to copy', 60000);
  }
  let calm = worker.env({ ...good, timeoutMs: 60000 });
  if (call.lease) s.lease = await calm.acquire({ runId: `run-${(run++).toString(36).padStart(8, '0')}` });
  if (command === 'restart') {
    await calm.sh(s.lease, 'sudo poweroff').catch(() => {});
    await until(async () => JSON.stringify((await lobby.exec('ls')).json).includes('stopped'), 'the VM is stopped');
  }
  const others = async () => (await lobby.vms()).filter((v) => !kept.includes(v));
  const set = await lobby.faults(`${fault.listen ? 'listen' : command}:${fault.spec}`);
  assert.equal(set.status, 200, JSON.stringify(set.json));

  let result, error;
  const runId = `run-${(run++).toString(36).padStart(8, '0')}`;
  const acquireEnv = { ...env, acquire: () => env.acquire({ runId }) };
  try { result = await call.run({ ...s, env: acquireEnv }); } catch (e) { error = e; }
  await lobby.faults();
  const peak = /VmHWM:\s+(\d+)/.exec(await readFile(`/proc/${worker.child.pid}/status`, 'utf8'))[1];
  assert.ok(+peak < 64 << 10, `the worker held ${peak} KiB at its peak`);
  const now = await others();
  const outcome = { call: call.name, command, fault: fault.name, ok: !error && result?.ok !== false, left: now.length };
  const message = error ? error.message : result?.ok === false ? result.summary : '';
  outcome.message = message;
  const about = `${call.name} / ${command} / ${fault.name}: ${message || 'ok'}; VMs: ${now}`;

  // The VMs, now.
  if (call.name === 'probe') {
    assert.equal(error, undefined, about);
    if (outcome.ok) assert.deepEqual(now, [], about);
    else if (command === 'new' && !fault.done) assert.deepEqual(now, [], about);
  } else if (call.name.startsWith('acquire')) {
    if (call.badKey) assert.ok(error, about);
    assert.ok(now.length <= 1, about);
    if (!error) assert.deepEqual(now, [result.providerLeaseId], about);
    else if ((command === 'new' || command === 'cp') && !fault.done) assert.deepEqual(now, [], about);
    if (command === 'tag' || command === 'comment') assert.equal(outcome.ok, !fault.listen, about); // with nobody listening there is no cp either
    if (call.badKey) assert.match(message, fault.listen ? fault.says : /key|regist|permission|timed out/i, `the first error goes out: ${about}`);
  } else if (call.name === 'resume') {
    assert.deepEqual(now, [s.lease.providerLeaseId], `a resume never deletes: ${about}`);
    if (error && fault.passing) assert.match(message, retryWords, `in words the host retries on: ${about}`);
    if (!error) assert.equal(result.providerLeaseId, s.lease.providerLeaseId, `a passing fault is no end of a lease: ${about}`);
  } else if (!error) {
    assert.deepEqual(result, { providerLeaseId: s.lease.providerLeaseId, state: 'destroyed' }, about);
    assert.deepEqual(now, [], `a receipt only for a VM that is gone: ${about}`);
  }
  // The message.
  if (message && !call.badKey) {
    // Where only the look afterwards failed, or the time ran out under a fault that is repeated, that is what happened.
    const says = command === 'ls' ? new RegExp(`${fault.says.source}|could not be|confirm|calls in a row`, 'i')
      : fault.passing ? new RegExp(`${fault.says.source}|timed out|calls in a row`, 'i') : fault.says;
    assert.match(message, says, `says what happened: ${about}`);
    assert.ok(message.length > 40 && message.length < 2000, `is a sentence: ${about}`);
    assert.ok(!message.includes('test-token-0123456789') && !message.includes('PRIVATE KEY'), `holds no secret: ${about}`);
  }
  // What was made and left is gone after the next call with a matching config: of another worker, after a restart.
  await worker.close();
  worker = slot.worker = await startWorker({ binary: true, state });
  calm = worker.env({ ...good, timeoutMs: 60000 });
  if (outcome.ok && result?.providerLeaseId && call.name !== 'release' && call.name !== 'destroy') await calm.destroy(result);
  else if (call.name === 'resume') await calm.destroy(s.lease);
  else if (now.length > 0) {
    const probe = await calm.probe();
    assert.equal(probe.ok, true, probe.summary);
  }
  outcome.after = await others();
  assert.deepEqual(outcome.after, [], `the next call cleans up: ${about}`);
  if (call.copy) await lobby.exec('rm golden');
  await worker.close();
  return outcome;
}

function table(outcomes) {
  const left = (o) => (o.call === 'resume' ? 'error, VM kept' : 'error, in the journal');
  const cell = (o) => (!o ? '' : o.ok ? 'done' : o.left ? left(o) : 'error');
  const rows = [];
  for (const call of calls) for (const command of call.commands) rows.push([call.name, command]);
  const find = (row, f) => outcomes.find((o) => o.call === row[0] && o.command === row[1] && o.fault === f.name);
  const lines = [`| fault | ${rows.map((r) => `${r[0]}: \`${r[1]}\``).join(' | ')} |`, `|---|${rows.map(() => '---').join('|')}|`];
  for (const f of faults) lines.push(`| ${f.name} | ${rows.map((r) => cell(find(r, f))).join(' | ')} |`);
  return lines.join('\n');
}

const intro = `# What happens when exe.dev fails

Printed by \`tests/e2e/faults.test.mjs\` (\`EXEDEV_WRITE_DOCS=1\` writes it again): each fault stays for the whole call, at the command
named, with a time limit of ${WAITING.timeout / 1000} s. "done": the call succeeded all the same (the fault was repaired, or its answer not needed).
"error": it failed with a message that says what happened and what to do, and no VM of it is left. "error, in the journal": the VM could not be
deleted then; the next call with the same account deletes it. "error, VM kept": a resume deletes nothing; its lease is as good as before, and the host may
try again. In no case does a VM stay behind, is a receipt given for a VM that lives, or a lease given up for a fault that may pass. "done" of 504, reset and garbage means that the work had been done and was found by \`ls\`.

`;

test('every command, every fault, every call', { timeout: BUDGET < Infinity ? 390000 : 1800000 }, async (t) => {
  const todo = [];
  for (const call of calls) for (const command of call.commands) for (const fault of faults) todo.push([call, command, fault]);
  const all = todo.length;
  if (BUDGET < Infinity) todo.forEach((_, i) => { const k = Math.floor(Math.random() * all); [todo[i], todo[k]] = [todo[k], todo[i]]; });
  const start = Date.now();
  const only = process.env.FAULT_ONLY ? new RegExp(process.env.FAULT_ONLY) : null;
  const outcomes = [];
  let failures = [];
  const first = ['new', 'cp'];
  const waits = ([call, command, f]) => f.passing && (!f.done || f.name === 'slow drip') && (call.lease || first.includes(command));
  const lanes = [[WAITING, todo.filter(waits)], [QUICK, todo.filter((c) => !waits(c))]];
  const work = (list) => Promise.all(list.flatMap(([lane, cases]) => Array.from({ length: lane.slots }, async () => {
    let slot = null;
    const open = async () => { slot = { timeout: lane.timeout, lobby: await startLobby(['--disk', 'plain']), state: await mkdtemp(join(tmpdir(), 'exedev-state-')) }; };
    const close = async () => {
      if (!slot) return;
      await slot.worker?.kill();
      await slot.lobby.close();
      await rm(slot.state, { recursive: true, force: true });
      slot = null;
    };
    try {
    await open();
    for (let next = cases.shift(); next && (lane.again || Date.now() - start < BUDGET); next = cases.shift()) {
      const label = `${next[0].name} / ${next[1]} / ${next[2].name}`;
      if (only && !only.test(label)) continue;
      const began = Date.now();
      try {
        outcomes.push(await oneCase(slot, ...next));
        if (process.env.FAULT_MESSAGES) console.log(`${((Date.now() - began) / 1000).toFixed(1)} s  ${label}: ${outcomes.at(-1).message || 'ok'}`);
      } catch (e) {
        if (process.env.FAULT_MESSAGES) console.log(`${((Date.now() - began) / 1000).toFixed(1)} s  FAILED ${label}: ${e.message}`);
        failures.push({ next, text: `${label}: ${e.message}` });
        await close(); // a new start: one failure must not make the next
        await open();
      }
    }
    } finally { await close(); }
  })));
  await work(lanes);
  if (failures.length > 0 && failures.length <= AGAIN) {
    const again = failures;
    failures = [];
    for (const f of again) t.diagnostic(`tried again: ${f.text}`);
    await work([[{ slots: 1, timeout: 20000, again: true }, again.map((f) => f.next)]]);
  }
  t.diagnostic(`${outcomes.length} of ${all} cases`);
  assert.ok(only || outcomes.length >= 30, `only ${outcomes.length} cases fitted into the time`);
  const text = table(outcomes);
  t.diagnostic(`\n${text}`);
  assert.deepEqual(failures.map((f) => f.text), []);
  if (process.env.EXEDEV_WRITE_DOCS) {
    const doc = join(root, 'docs/faults.md');
    const killed = (await readFile(doc, 'utf8')).split(/^(?=## Killed)/m)[1] ?? ''; // faults_kill.test.mjs writes that
    await writeFile(doc, `${intro}${text}\n\n${killed}`);
  }
});
