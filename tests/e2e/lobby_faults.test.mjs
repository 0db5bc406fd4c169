// exedev-lobby's faults: each does what docs/lobby.md says, to the call it is meant for and no other.
import { test, before, after, afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { connect } from 'node:net';
import { createHash } from 'node:crypto';
import { request } from 'node:http';
import { http, startLobby, until } from './lobby_lib.mjs';

let lobby;
before(async () => { lobby = await startLobby(['--relay']); });
after(async () => { await lobby?.stop(); });
afterEach(async () => {
  await lobby.faults();
  const names = await lobby.names();
  if (names.length) await lobby.exec(`rm ${names.join(' ')}`);
});

const reset = (answer) => assert.match(String(answer.error?.code), /ECONNRESET|EPIPE/, answer.text);

test('status: nothing is done; body, Retry-After, times, skip', async () => {
  for (const code of [400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504]) {
    await lobby.faults(`new:status=${code},times=1`);
    assert.equal((await lobby.call('new --name=a')).status, code);
  }
  assert.deepEqual(await lobby.names(), []);
  await lobby.faults('ls:status=429,skip=1,times=2,retry-after=7,body={"error": "slow, down"}');
  const answers = [];
  for (let i = 0; i < 4; i++) answers.push(await lobby.call('ls'));
  assert.deepEqual(answers.map((a) => a.status), [200, 429, 429, 200]);
  assert.equal(answers[1].headers['retry-after'], '7');
  assert.equal(answers[1].text, '{"error": "slow, down"}');
});

test('cut and lost: a reset before the work, and after it', async () => {
  await lobby.faults('new:cut');
  reset(await lobby.call('new --name=a'));
  assert.deepEqual(await lobby.names(), []);
  await lobby.faults('new:lost', 'rm:lost=504');
  reset(await lobby.call('new --name=a'));
  assert.deepEqual(await lobby.names(), ['a']);
  assert.equal((await lobby.call('rm a')).status, 504);
  assert.deepEqual(await lobby.names(), []);
});

test('hang, delay, drip', async () => {
  await lobby.faults('new:hang');
  const hung = http(lobby.told.url, { body: 'new --name=a', headers: { authorization: 'Bearer plain-token' }, signal: AbortSignal.timeout(700) });
  assert.equal((await lobby.call('ls')).status, 200, 'others go on');
  assert.equal((await hung).error?.name, 'AbortError');
  assert.deepEqual(await lobby.names(), []);
  await lobby.faults('whoami:hang=100');
  reset(await lobby.call('whoami'));
  await lobby.faults('*:delay=200', 'ls:status=500');
  const before = Date.now();
  assert.equal((await lobby.call('ls')).status, 500);
  assert.ok(Date.now() - before >= 200, 'a delay is at least as long as it says');
  await lobby.faults('ls:drip=20');
  const parts = await new Promise((resolve, reject) => {
    let n = 0, text = '';
    request(lobby.told.url, { method: 'POST', headers: { authorization: 'Bearer plain-token' } }, (res) =>
      res.on('data', (d) => { n++; text += d; }).on('end', () => resolve({ n, text }))).on('error', reject).end('ls');
  });
  assert.equal(parts.text, '{"vms":[]}\n');
  assert.ok(parts.n >= 5, `came in ${parts.n} parts`);
});

test('bad answers: garbage, truncated, short, huge, a redirect', async () => {
  await lobby.faults('new:garbage');
  const garbage = await lobby.call('new --name=a');
  assert.equal(garbage.status, 200);
  assert.throws(() => JSON.parse(garbage.text));
  await lobby.faults('ls:truncate');
  const half = await lobby.call('ls');
  assert.equal(half.status, 200);
  assert.match(half.text, /^\{"vms":/);
  assert.throws(() => JSON.parse(half.text));
  await lobby.faults('ls:short');
  const short = await lobby.call('ls');
  assert.ok(short.error && short.status === 200 && short.text.length > 0);
  await lobby.faults('ls:redirect=307,body=http://127.0.0.1:1/x');
  const redirect = await lobby.call('ls');
  assert.deepEqual([redirect.status, redirect.headers.location], [307, 'http://127.0.0.1:1/x']);
  await lobby.faults('ls:huge=300000000');
  const size = await new Promise((resolve, reject) => {
    let n = 0;
    const hash = createHash('sha1');
    request(lobby.told.url, { method: 'POST', headers: { authorization: 'Bearer plain-token' } }, (res) =>
      res.on('data', (d) => { n += d.length; hash.update(d.subarray(0, 1)); }).on('end', () => resolve(n))).on('error', reject).end('ls');
  });
  assert.equal(size, 300000000);
  assert.ok(garbage.text && (await lobby.faults(), (await lobby.names()).includes('a')), 'the work was done');
});

test('listen:refuse: nobody there, and back', async () => {
  await lobby.faults('listen:refuse');
  assert.equal((await lobby.call('ls')).error?.code, 'ECONNREFUSED');
  await lobby.faults();
  assert.equal((await lobby.call('ls')).status, 200);
  await lobby.faults('listen:refuse=300');
  assert.equal((await lobby.call('ls')).error?.code, 'ECONNREFUSED');
  await until(async () => (await lobby.call('ls')).status === 200, 'it listens again by itself');
});

test('boot and setup', async () => {
  await lobby.faults('boot:delay=1500,times=1', 'setup:fail=9,times=1');
  const vm = await lobby.exec('new --name=slow --setup-script="touch ran"');
  assert.equal(vm.status, 'starting');
  assert.notEqual((await lobby.ssh(vm, 'true')).code, 0);
  await until(async () => (await lobby.ssh(vm, 'true')).code === 0, 'sshd comes');
  await until(async () => (await lobby.exec('stat slow')).setup === 9, 'the setup script fails');
  assert.equal((await lobby.ssh(vm, 'ls ran')).code, 2);
  await lobby.faults('setup:hang');
  const stuck = await lobby.exec('new --name=stuck --setup-script="touch ran"');
  assert.equal((await lobby.ssh(stuck, 'ls ran')).code, 2);
  assert.equal((await lobby.exec('stat stuck')).setup, 'running');
});

test('ssh:sessions caps what one connection carries', async () => {
  await lobby.faults('ssh:sessions=1');
  const vm = await lobby.exec('new --name=one');
  await lobby.on(vm, 'true');
  const path = `${lobby.dir}/c`;
  const master = spawn('ssh', ['-M', '-S', path, ...lobby.sshArgs(vm), 'echo up; sleep 60'], { stdio: ['ignore', 'pipe', 'ignore'] });
  await new Promise((resolve) => master.stdout.once('data', resolve));
  const second = spawn('ssh', ['-S', path, '-o', 'ControlMaster=no', ...lobby.sshArgs(vm, { options: ['ProxyCommand=false'] }), 'echo no'], { stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  second.stderr.on('data', (d) => { said += d; });
  await new Promise((resolve) => second.on('exit', resolve));
  master.kill();
  assert.match(said, /Session open refused by peer|session request failed/);
});

test('ssh:burst: silence after too many connections; ssh:freeze: a link that stands still', async () => {
  const vm = await lobby.exec('new --name=edge');
  await lobby.faults('ssh:burst=3,retry-after=2');
  const greeted = async (n, want) => {
    let got = 0;
    const sockets = Array.from({ length: n }, () => connect(vm.ssh_port, vm.ssh_host).on('error', () => {}).once('data', () => { got++; }));
    await until(() => got >= want, `${want} of ${n} connections are greeted`);
    await new Promise((r) => setTimeout(r, 300));
    sockets.forEach((s) => s.destroy());
    return got;
  };
  assert.equal(await greeted(6, 3), 3);
  assert.ok(lobby.events.some((e) => e.event === 'ssh-burst' && e.vm === 'edge'));
  await lobby.faults();
  assert.equal(await greeted(5, 5), 5);

  const ssh = spawn('ssh', [...lobby.sshArgs(vm), 'cat'], { stdio: ['pipe', 'pipe', 'ignore'] });
  const line = () => new Promise((resolve, reject) => {
    ssh.stdout.once('data', (d) => resolve(String(d)));
    ssh.once('exit', (code) => reject(new Error(`ssh ended with ${code}`)));
  });
  let next = line();
  ssh.stdin.write('one\n');
  assert.equal(await next, 'one\n');
  await lobby.faults('ssh:freeze');
  next = line();
  ssh.stdin.write('two\n');
  assert.equal(await Promise.race([next, new Promise((r) => setTimeout(r, 600, 'nothing'))]), 'nothing');
  await lobby.faults();
  assert.equal(await next, 'two\n', 'what was held up arrives');
  ssh.removeAllListeners('exit');
  ssh.kill();
});

test('the control side needs the token, and names a bad spec', async () => {
  const url = `${lobby.told.control}/faults`, bearer = { authorization: 'Bearer plain-token' };
  assert.equal((await http(url, { body: 'clear' })).status, 401);
  const bad = await http(url, { body: 'ls:cut\nls:nope', headers: bearer });
  assert.equal(bad.status, 400);
  assert.match(bad.text, /ls:nope/);
  const list = JSON.parse((await http(url, { method: 'GET', headers: bearer })).text).faults;
  assert.deepEqual(list.map((f) => f.spec), ['ls:cut']);
  assert.equal((await http(`${lobby.told.control}/exec`, { body: 'ls', headers: bearer })).status, 404);
});
