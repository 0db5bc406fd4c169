// exedev-lobby's API: limits, status codes, tokens, commands.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { http, makeFolder, makeKey, mint, program, run, startLobby } from './lobby_lib.mjs';

let lobby;
before(async () => { lobby = await startLobby(['--max-vms', '3']); });
after(async () => { await lobby?.stop(); });

const refused = async (line, status, pattern) => {
  const answer = await lobby.call(line);
  assert.equal(answer.status, status, `${line}: ${answer.text}`);
  assert.match(JSON.parse(answer.text).error, pattern);
};

test('only POST /exec, with a token', async () => {
  for (const method of ['GET', 'PUT', 'DELETE', 'PATCH']) {
    const { status, headers } = await lobby.call('', 'plain-token', { method });
    assert.equal(status, 405, method);
    assert.equal(headers.allow, 'POST');
  }
  assert.equal((await http(lobby.told.url.replace('/exec', '/other'), { headers: { authorization: 'Bearer plain-token' }, body: 'ls' })).status, 404);
  assert.equal((await lobby.call('ls', '')).status, 401);
  assert.equal((await lobby.call('ls', 'plain-tokem')).status, 401);
  assert.equal((await http(lobby.told.url, { headers: { authorization: 'Basic cGxhaW4tdG9rZW4=' }, body: 'ls' })).status, 401);
  assert.equal((await lobby.call('ls')).status, 200);
});

test('400 for what the lexer cannot read, 404 for no command, 413 over 64 KiB', async () => {
  await refused('', 400, /empty/);
  await refused('  \n', 400, /empty/);
  await refused("ls 'a", 400, /unbalanced single quote/);
  await refused('ls "a', 400, /unbalanced double quote/);
  await refused('ls \\', 400, /backslash/);
  await refused('frobnicate', 404, /no such command/);
  await refused('ssh-key', 404, /no such command/);
  assert.equal((await lobby.call(`ls ${'#'.repeat(65536 - 3)}`)).status, 200);
  await refused(`ls ${'#'.repeat(65536 - 2)}`, 413, /64 KiB/);
  const chunked = await lobby.call('ls '.repeat(40000), 'plain-token', { headers: { authorization: 'Bearer plain-token', 'transfer-encoding': 'chunked' } });
  assert.equal(chunked.status, 413);
});

test('exe0 tokens: key, name space, times, commands, format', async () => {
  const { dir, remove } = await makeFolder();
  const stranger = await makeKey(dir, 'stranger');
  const status = async (token, line = 'ls') => (await lobby.call(line, token)).status;
  const soon = Math.floor(Date.now() / 1000) + 3600;
  assert.equal(await status(await mint(lobby.key, {})), 200);
  assert.equal(await status(await mint(lobby.key, { exp: soon, nbf: soon - 7200, ctx: { a: 1 } })), 200);
  assert.equal(await status(await mint(lobby.key, { exp: soon - 7200 })), 401);
  assert.equal(await status(await mint(lobby.key, { nbf: soon })), 401);
  assert.equal(await status(await mint(stranger, {})), 401);
  assert.equal(await status(await mint(lobby.key, {}, 'v0@vm.exe.xyz')), 401);
  assert.equal(await status(await mint(lobby.key, '{"cmds":["ls"],"cmds":["rm"]}')), 401);
  assert.equal(await status(await mint(lobby.key, '{"commands":["ls"]}')), 401);
  assert.equal(await status(await mint(lobby.key, '{} ')), 401);
  const plain = await mint(lobby.key, {}), narrow = await mint(lobby.key, { cmds: ['rm', 'ssh-key list'] });
  for (const line of ['rm x', 'cp a b', 'restart x', 'rename a b', 'tag a b']) assert.equal(await status(plain, line), 403, line);
  for (const line of ['help', 'whoami', 'ssh-key list']) assert.equal(await status(plain, line), 200, line);
  assert.equal(await status(narrow, 'rm x'), 422);
  assert.equal(await status(narrow, 'ssh-key list'), 200);
  assert.equal(await status(narrow, 'ls'), 403);
  assert.equal(await status(`${plain}x`), 401);
  assert.equal(await status('exe0.e30.AAAA'), 401);
  assert.equal(await status(`exe0.${'A'.repeat(9000)}.AAAA`), 401);
  const short = JSON.parse((await lobby.call('exe0-to-exe1', plain)).text).token;
  assert.match(short, /^exe1\./);
  assert.equal(await status(short), 200);
  assert.equal(await status(short, 'rm x'), 403);
  await remove();
});

test('a VM: its record, its name, the quota, and what is done to it', async () => {
  const vm = await lobby.exec("new --json --no-email --name=alpha --tag=a,b --tag=c --comment='two  words' --cpu=1 --memory=2GB --disk=16G");
  assert.equal(vm.vm_name, 'alpha');
  assert.match(vm.ssh_host, /^127\.\d+\.\d+\.\d+$/);
  assert.equal(vm.ssh_user, 'exedev');
  assert.equal(vm.ssh_dest, `exedev@${vm.ssh_host}`);
  assert.equal(vm.status, 'running');
  assert.deepEqual([vm.tags, vm.comment], [['a', 'b', 'c'], 'two  words']);
  assert.ok(vm.https_url && vm.region && vm.region_display);
  await refused('new --name=alpha', 422, /already taken/);
  for (const name of ['test-123', 'UPPER', 'a_b', '-a', 'a-', 'x'.repeat(64)]) await refused(`new '--name=${name}'`, 422, /invalid VM name/);
  for (const [line, why] of [["new '--env=1A=b'", /KEY=VALUE/], ['new --cpu=0', /CPUs/], ['new --memory=big', /size/], ['new --nope=1', /unknown flag/],
    [`new --comment=${'c'.repeat(201)}`, /200/], [`new --setup-script=${'s'.repeat(10241)}`, /10240/], ['new --image=x --prompt=y', /default image/],
    ['new --registry-auth=nopass', /USER:PASS/], ['new stray', /no arguments/], ['cp nix b', /not found/], ['restart nix', /not found/], ['stat nix', /not found/],
    ['cp alpha b --env=A=b', /unknown flag/], ['rename alpha UP', /invalid/], ['share port alpha 0', /65535/], ['rm', /usage/], ['ls a b', /usage/]])
    await refused(line, 422, why);
  assert.deepEqual(await lobby.names(), ['alpha']);

  const beta = await lobby.exec('new --name beta');
  assert.notEqual(beta.ssh_host, vm.ssh_host);
  assert.equal(beta.ssh_port, vm.ssh_port, 'one common port');
  await lobby.exec('cp alpha al-copy');
  await refused('new --name=delta', 422, /limit/);
  await refused('cp alpha delta', 422, /limit/);
  assert.deepEqual((await lobby.exec("ls 'al*'")).vms.map((v) => v.vm_name), ['al-copy', 'alpha']);
  assert.deepEqual((await lobby.exec('ls --json alpha')).vms.map((v) => v.vm_name), ['alpha']);
  assert.deepEqual((await lobby.exec('ls nix')).vms, []);
  assert.deepEqual((await lobby.exec('ls al-copy')).vms[0].tags, ['a', 'b', 'c'], 'cp copies tags');

  assert.equal((await lobby.exec('rename beta gamma')).vm_name, 'gamma');
  assert.deepEqual((await lobby.exec('tag --json gamma x y')).tags, ['x', 'y']);
  assert.deepEqual((await lobby.exec('tag -d gamma x')).tags, ['y']);
  assert.equal((await lobby.exec("comment gamma '-- it'\\''s'")).comment, "-- it's");
  assert.equal((await lobby.exec('share port gamma 3000')).vm_name, 'gamma');
  assert.equal((await lobby.exec('share show gamma')).port, 3000);
  await lobby.exec('resize gamma --cpu=2 --disk=50');
  const stat = await lobby.exec('stat gamma');
  assert.deepEqual([stat.cpu, stat.disk, stat.port, stat.processes], [2, '50', 3000, 0]);
  assert.deepEqual(await lobby.exec('rm gamma --json al-copy'), { deleted: ['gamma', 'al-copy'] });
  const partly = await lobby.call('rm alpha nix');
  assert.equal(partly.status, 422);
  assert.match(JSON.parse(partly.text).error, /"nix" not found/);
  assert.deepEqual(await lobby.names(), [], 'what was there is gone all the same');
  const made = await lobby.exec('new');
  assert.match(made.vm_name, /^[a-z0-9-]+$/);
  await lobby.exec(`rm ${made.vm_name}`);
});

test('copies without tags, and 20 callers at once', async () => {
  await lobby.exec('new --name=src --tag=t');
  assert.deepEqual((await lobby.exec('cp src dst --copy-tags=false --memory=1GB')).tags, []);
  await lobby.exec('rm src dst');
  const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => lobby.call(`new --name=many-${'abcdefghijklmnopqrst'[i]}`)));
  assert.equal(answers.filter((a) => a.status === 200).length, 3, 'the quota holds under a race');
  assert.equal(answers.filter((a) => a.status === 422).length, 17);
  const names = await lobby.names();
  assert.equal(names.length, 3);
  await lobby.exec(`rm ${names.join(' ')}`);
});

test('events: one line each, no token in them, in words too', async () => {
  await lobby.call('ls', await mint(lobby.key, {}));
  const exec = lobby.events.filter((e) => e.event === 'exec');
  assert.ok(exec.some((e) => e.command === 'ls' && e.status === 200) && exec.some((e) => e.status === 401));
  assert.ok(!lobby.raw.join('\n').match(/plain-token|exe0\.|exe1\./));
  assert.ok(!(await run('ps', ['-o', 'args=', '-p', String(lobby.child.pid)])).stdout.includes('plain-token'), 'nor in its command line');
});

test('the command line: refusals name what is wrong', async () => {
  for (const [args, why] of [[['--nope'], /nope/], [['stray'], /stray/], [['--ssh-port', '0'], /ssh-port/], [['--max-vms', 'x'], /max-vms/], [['--listen', 'nowhere'], /nowhere/],
    [['--fault', 'new:nope'], /nope/], [['--tls-cert', 'x'], /tls-key/], [['--authorized-key', '/nonexistent'], /nonexistent/], [['--authorized-key', lobby.key], /private key/],
    [['--state', '/tmp/x', '--relay'], /--relay/], [['--disk', 'x'], /overlay or plain/], [['--proxy-port', '4000'], /--proxy/]]) {
    const r = await run(program, args);
    assert.ok(r.code === 2 || (r.code === 1 && args[0] === '--authorized-key'), `${args}: ${r.code}`);
    assert.match(r.stderr, why);
  }
  const help = await run(program, ['--help']);
  assert.equal(help.code, 0);
  for (const option of ['--listen', '--ssh-port', '--state', '--authorized-key', '--token', '--max-vms', '--fault', '--json', '--proxy', '--disk']) assert.ok(help.stdout.includes(option), option);
});

test('without a key and a token it makes its own and says how to use them', async () => {
  const own = await startLobby([], { token: null, keys: false });
  const { readFile, stat } = await import('node:fs/promises');
  const token = await readFile(own.told.tokenFile, 'utf8');
  assert.equal((await stat(own.told.tokenFile)).mode & 0o777, 0o600);
  assert.equal((await own.call('ls', token)).status, 200);
  const vm = JSON.parse((await own.call('new --name=own', token)).text);
  const r = await own.ssh(vm, 'echo in', { key: own.told.keyFile });
  assert.equal(r.stdout, 'in\n', r.stderr);
  assert.equal((await own.stop()).code, 0);
});

test('HTTPS with a given certificate', async () => {
  const { dir, remove } = await makeFolder();
  await run('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', `${dir}/k`, '-out', `${dir}/c`, '-subj', '/CN=localhost',
    '-addext', 'subjectAltName=IP:127.0.0.1', '-days', '2']);
  const tls = await startLobby(['--tls-cert', `${dir}/c`, '--tls-key', `${dir}/k`]);
  assert.match(tls.told.url, /^https:/);
  const r = await run('curl', ['-sS', '--cacert', `${dir}/c`, '-H', 'Authorization: Bearer plain-token', '-d', 'ls', tls.told.url]);
  assert.deepEqual(JSON.parse(r.stdout || r.stderr), { vms: [] });
  await tls.stop();
  await remove();
});

test('a client that says nothing, or half a request, does not hold others up', async () => {
  const { hostname, port } = new URL(lobby.told.url);
  const idle = Array.from({ length: 10 }, () => connect(Number(port), hostname));
  idle.forEach((s) => { s.on('error', () => {}); s.write('POST /exec HTTP/1.1\r\nHost: a\r\nContent-Len'); });
  assert.equal((await lobby.call('ls')).status, 200);
  idle.forEach((s) => s.destroy());
});
