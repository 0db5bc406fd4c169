// The command line on a bad day: options in the wrong place, full disks and quotas, readers and processes that go away.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, openSync, closeSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { once } from 'node:events';
import { join } from 'node:path';
import { environment } from './configure_form.mjs';
import { exedev, startCli } from './cli_lib.mjs';
import { build, until } from './worker_lib.mjs';

const VMS = 4;
let world, lobby, home, cli, env;
before(async () => {
  world = await startCli(['--max-vms', String(VMS)]);
  ({ lobby, home, cli, env } = world);
  await lobby.exec('new --name=day-vm');
});
after(() => world?.close());

const folder = (name) => {
  const path = join(home.home, name);
  rmSync(path, { recursive: true, force: true });
  mkdirSync(path);
  return path;
};

test('options may stand behind the operands, up to -- or a remote command', async () => {
  assert.deepEqual(JSON.parse((await cli(['ls', 'day-*', '--json'])).stdout).map((v) => v.name), ['day-vm']);
  assert.equal((await cli(['exec', 'day-vm', '-e', 'A=b', 'printenv', 'A'])).stdout, 'b\n');
  assert.equal((await cli(['exec', 'day-vm', 'echo', '-e', 'A=b', '--', '-h'])).stdout, 'A=b -- -h\n');
  assert.equal((await cli(['exec', '--', 'day-vm', '--', 'echo', '--', '-n'])).stdout, '-- -n\n');
  assert.equal((await cli(['exec', 'day-vm', '--', 'echo', '-h'])).stdout, '-h\n');
  for (const args of [['rm', 'day-vm', '-h'], ['exec', 'day-vm', '--help'], ['config', 'get', 'cpu', '-h'], ['template', 'ls', '--help']]) {
    const r = await cli(args);
    assert.match(r.stdout, new RegExp(`^usage: exedev ${args[0]} `));
    assert.equal(r.code, 0);
  }
  const late = await cli(['rm', '--', 'day-vm', '--help']);
  assert.equal(late.code, 2);
  assert.ok((await lobby.vms()).includes('day-vm'), 'it is not made by exedev: it stays');
  assert.deepEqual(await cli(['config', 'set', 'comment', '--', '-x']).then((r) => r.code), 0);
  assert.equal((await cli(['config', 'get', 'comment', '--json'])).stdout, '"-x"\n');
  assert.equal((await cli(['config', 'unset', 'comment'])).code, 0);
});

test('what a lobby without options prints is all that it takes', async () => {
  const child = spawn(join(build, 'exedev-lobby'), [], { stdio: ['ignore', 'pipe', 'ignore'] });
  try {
    const [line] = await once(createInterface(child.stdout), 'line');
    const printed = Object.fromEntries(line.split(' ').map((word) => word.split('=')));
    assert.ok(printed.EXEDEV_SSH_KEY_FILE, line);
    const r = spawnSync(exedev, ['probe', '--setup-script', 'none'], { env: { ...environment(home.home), ...printed }, timeout: 60000 });
    assert.equal(r.status, 0, r.stderr.toString());
    const missing = spawnSync(exedev, ['ls'], { env: { ...environment(home.home), ...printed, EXEDEV_API_KEY_FILE: '/nowhere/token' } });
    assert.equal(missing.status, 2);
    assert.match(missing.stderr.toString(), /EXEDEV_API_KEY_FILE: cannot read the token: \/nowhere\/token/);
  } finally {
    child.kill();
    if (child.exitCode === null) await once(child, 'exit');
  }
});

test('--env wants a name; a folder does not take the place of a file unless told to', async () => {
  for (const bad of ['=x', 'x', '']) assert.equal((await cli(['exec', 'day-vm', '-e', bad, 'true'])).code, 2);
  const here = folder('place');
  mkdirSync(join(here, 'd'));
  writeFileSync(join(here, 'd/new'), 'n');
  writeFileSync(join(here, 'file'), 'mine');
  await cli(['exec', 'day-vm', 'sh', '-c', 'mkdir -p rd; echo 1 >rd/1; echo theirs >file']);
  for (const more of [[], ['--dry-run']]) {
    const push = await cli(['push', 'd', 'day-vm:file', ...more], { cwd: here });
    assert.equal(push.code, 1);
    assert.match(push.stderr, /no folder/);
    assert.equal((await cli(['pull', 'day-vm:rd', 'file', ...more], { cwd: here })).code, 1);
  }
  assert.equal(readFileSync(join(here, 'file'), 'utf8'), 'mine');
  assert.equal((await cli(['exec', 'day-vm', 'cat', 'file'])).stdout, 'theirs\n');
  assert.equal((await cli(['pull', '--replace', 'day-vm:rd', 'file'], { cwd: here })).code, 0);
  assert.ok(statSync(join(here, 'file')).isDirectory());
  writeFileSync(join(here, 'result'), 'a file');
  const run = await cli(['run', '-q', '--pull', 'result', 'sh', '-c', 'rm result; mkdir result; echo in >result/in'], { cwd: here });
  assert.equal(run.code, 0, run.stderr);
  assert.equal(readFileSync(join(here, 'result/in'), 'utf8'), 'in\n', 'the results of a run always come back');
});

test('output that cannot be written is a failure, a reader that leaves is none, and closed streams are no files', async () => {
  const full = openSync('/dev/full', 'w');
  for (const args of [['ls'], ['ls', '--json'], ['help'], ['exec', 'day-vm', 'echo', 'x']]) {
    const r = await cli(args, { stdout: full });
    assert.equal(r.code, 1, args.join(' '));
    assert.match(r.stderr, /^exedev \w+: .*No space left|could not be written/);
  }
  closeSync(full);
  const sh = (script) => spawnSync('bash', ['-c', script, exedev], { env, timeout: 60000 });
  const left = sh('"$0" help settings | head -n 1; echo "${PIPESTATUS[0]}"; sleep 0.2; "$0" ls | true');
  assert.match(left.stdout.toString(), /^Every setting.*\n0\n$/);
  assert.equal(left.stderr.toString(), '');
  const closed = sh('cd "$HOME"; "$0" ls <&- >&- 2>&-; "$0" exec day-vm -- echo hi <&-; "$0" exec day-vm -- echo hi >&-');
  assert.equal(closed.stdout.toString(), 'hi\n');
  assert.equal(closed.status, 0, closed.stderr.toString());
});

test('gc: what a killed process left is listed, and removed where there is nobody to ask', async () => {
  const run = cli(['run', '-q', '--no-pull', 'sleep', '60'], { cwd: folder('gc') });
  const names = async () => (await lobby.vms()).filter((v) => v.includes('-run-'));
  await until(async () => (await names()).length, 'the VM is made');
  run.child.kill('SIGKILL');
  await run;
  const left = (await names())[0];
  const dry = await cli(['gc', '--dry-run']);
  assert.equal(dry.code, 0);
  assert.match(dry.stdout, new RegExp(`^remove +${left} `, 'm'));
  assert.deepEqual(await names(), [left]);
  const real = await cli(['gc']);
  assert.equal(real.code, 0, real.stderr + real.stdout);
  assert.match(real.stdout, /^1 of 1 removed$/m);
  assert.deepEqual(await names(), []);
});

test('probe and template start, interrupted: the VM goes', async () => {
  for (const args of [['probe'], ['template', 'start']]) {
    for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]]) {
      await lobby.faults('boot:delay=20000');
      const before = await lobby.vms();
      const child = cli(args);
      await until(async () => (await lobby.vms()).length > before.length, 'the VM is made');
      child.child.kill(signal);
      const r = await child;
      assert.equal(r.code, code, r.stderr);
      assert.match(r.stderr, /cancelled/);
      assert.deepEqual(await lobby.vms(), before, `${args.join(' ')}, ${signal}`);
    }
  }
  await lobby.faults();
});

test('template: start, capture, ls, start from it, rm; options of another verb are refused', async () => {
  const started = await cli(['template', 'start', '--expires', '1h', '--json']);
  assert.equal(started.code, 0, started.stderr);
  const vm = JSON.parse(started.stdout);
  assert.match(vm.command, /^ssh /);
  assert.ok(Date.parse(vm.expiresAt) > Date.now());
  await cli(['exec', vm.name, 'sh', '-c', 'echo kept >~/kept']);
  for (const wrong of [['--label', 'x y'], ['--label', ''], ['--from', 'day-vm']])
    assert.equal((await cli(['template', 'capture', vm.name, ...wrong])).code, 2);
  const captured = await cli(['template', 'capture', vm.name, '--label', 'v1.2', '--json']);
  assert.equal(captured.code, 0, captured.stderr);
  assert.equal(captured.stderr, '', 'the end of the VM it was made from is no news');
  const { template } = JSON.parse(captured.stdout);
  assert.ok(!(await lobby.vms()).includes(vm.name));
  assert.deepEqual(JSON.parse((await cli(['template', 'ls', '--json'])).stdout), [{ name: template, label: 'v1.2' }]);
  assert.match((await cli(['template', 'ls'])).stdout, new RegExp(`^${template} .* v1.2$`, 'm'));
  const again = JSON.parse((await cli(['template', 'start', '--from', template, '--json'])).stdout);
  assert.equal((await cli(['exec', again.name, 'cat', 'kept'])).stdout, 'kept\n');
  assert.equal((await cli(['template', 'rm', again.name])).code, 1, 'it is no template');
  assert.equal((await cli(['run', '-q', '--source-vm', template, 'cat', '../kept'], { cwd: folder('from') })).stdout, 'kept\n');
  const kept = await cli(['template', 'capture', again.name, '--keep']);
  assert.match(kept.stdout, /is the template\. Use it with --source-vm/);
  const full = await cli(['template', 'start']);
  assert.equal(full.code, 1);
  assert.match(full.stderr, /plan is used up/);
  const other = /^(\S+) is the template/.exec(kept.stdout)[1];
  for (const args of [['ls', '--label', 'x'], ['start', '--keep'], ['rm', 'x', '--json'], ['rm'], ['capture'], ['ls', 'x'], ['lss']])
    assert.equal((await cli(['template', ...args])).code, 2, args.join(' '));
  const removed = await cli(['template', 'rm', template, other, template]);
  assert.equal(removed.stdout, `${template} is deleted\n${other} is deleted\n${template} was gone already\n`);
  assert.equal((await cli(['rm', '-q', again.name])).code, 0);
  assert.deepEqual(await lobby.vms(), ['day-vm']);
});

test('probe by hand: steps as text and as JSON, and the reason when it fails', async () => {
  const good = await cli(['probe']);
  assert.equal(good.code, 0, good.stderr);
  assert.deepEqual([...good.stdout.matchAll(/^ok +(\w+) /gm)].map((m) => m[1]), ['create', 'connect', 'command', 'setup', 'delete']);
  const json = JSON.parse((await cli(['probe', '--json'])).stdout);
  assert.equal(json.ok, true);
  assert.ok(json.diagnostics.every((d) => d.severity === 'info'));
  for (let i = 0; i < VMS; i++) await lobby.exec(`new --name=fill-${'abcdef'[i]}`);
  const full = await cli(['probe']);
  assert.equal(full.code, 1);
  assert.match(full.stdout, /^FAIL create .*plan is used up/m);
  const failed = await cli(['probe', '--json']);
  assert.equal(failed.code, 1);
  assert.equal(JSON.parse(failed.stdout).ok, false);
  const run = await cli(['run', '--no-push', '-n', 'true']);
  assert.equal(run.code, 1);
  assert.match(run.stderr, /create +failed: /);
  const removed = await cli(['rm', '--force', ...(await lobby.vms()).filter((v) => v.startsWith('fill-'))]);
  assert.equal(removed.code, 0, removed.stderr);
});
