// The command line by hand: exec, shell, ls, rm, doctor, completion, help; against a lobby.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { exedev, startCli } from './cli_lib.mjs';
import { build, until } from './worker_lib.mjs';

let world, lobby, home, cli, env;

before(async () => {
  world = await startCli();
  ({ lobby, home, cli, env } = world);
  await lobby.exec('new --name=cli-vm');
});
after(() => world?.close());

test('exec: the status, both outputs, arguments as they are', async () => {
  const r = await cli(['exec', 'cli-vm', '--', 'sh', '-c', 'printf "%s|" "$@"; echo e >&2; exit 3', 'x', 'a b', '$HOME', "it's", '', '*']);
  assert.equal(r.code, 3, r.stderr);
  assert.equal(r.stdout, "a b|$HOME|it's||*|");
  assert.equal(r.stderr, 'e\n');
});

test('exec: eight megabytes of any bytes there and back', async () => {
  const input = randomBytes(8 << 20);
  const r = await cli(['exec', 'cli-vm', 'cat'], { input });
  assert.equal(r.code, 0, r.stderr);
  assert.ok(r.bytes.equals(input));
});

test('exec: stdin that is not read holds up nothing', async () => {
  const r = await cli(['exec', 'cli-vm', '--', 'sh', '-c', 'exit 7'], { input: Buffer.alloc(50 << 20) });
  assert.equal(r.code, 7, r.stderr);
});

test("exec: files are made with the login's own umask, whether the helper was there or not", async () => {
  await lobby.exec('new --name=cli-fresh');
  for (const when of ['uploaded', 'found'])
    assert.equal((await cli(['exec', 'cli-fresh', 'sh', '-c', 'umask'])).stdout, '0022\n', when);
  await lobby.exec('rm cli-fresh');
});

test('run: the folder goes there, what changed comes back, the VM goes, the status is the command\'s', async () => {
  const folder = join(home.home, 'project');
  mkdirSync(join(folder, 'sub'), { recursive: true });
  writeFileSync(join(folder, 'in.txt'), 'text\n');
  writeFileSync(join(folder, 'sub/left.out'), 'x');
  const r = await cli(['run', '-x', '*.out', '-e', 'WORD=up', '--', 'sh', '-c', 'test ! -e sub/left.out && tr a-z A-Z <in.txt >sub/$WORD.txt && exit 6'], { cwd: folder });
  assert.equal(r.code, 6, r.stderr);
  assert.equal(readFileSync(join(folder, 'sub/up.txt'), 'utf8'), 'TEXT\n');
  assert.equal(readFileSync(join(folder, 'sub/left.out'), 'utf8'), 'x');
  assert.match(r.stderr, /create/);
  assert.deepEqual((await lobby.vms()).filter((v) => v.includes('-run-')), []);
});

test('run: a failed start, a cut connection, Ctrl-C: no VM is left', async () => {
  const folder = join(home.home, 'small');
  mkdirSync(folder, { recursive: true });
  const left = async () => (await lobby.vms()).filter((v) => v.includes('-run-'));
  assert.equal((await cli(['run', 'no-such-program'], { cwd: folder })).code, 127);
  assert.deepEqual(await left(), []);
  const cut = cli(['run', '--', 'sh', '-c', 'echo ready; sleep 100'], { cwd: folder, stdin: 'ignore' });
  await until(() => cut.text().includes('ready'), 'ready');
  const ssh = spawnSync('pgrep', ['-P', String(cut.child.pid), '-x', 'ssh']).stdout.toString().trim();
  assert.ok(ssh);
  process.kill(Number(ssh), 'SIGKILL');
  const end = await cut;
  assert.equal(end.code, 255, end.stderr);
  assert.deepEqual(await left(), []);
  const stopped = cli(['run', '--', 'sh', '-c', 'echo ready; sleep 100'], { cwd: folder, stdin: 'ignore' });
  await until(() => stopped.text().includes('ready'), 'ready');
  stopped.child.kill('SIGINT');
  assert.equal((await stopped).code, 130);
  assert.deepEqual(await left(), []);
});

test('run: a home folder or a file system is not copied by mistake', async () => {
  const r = await cli(['run', 'true'], { cwd: home.home });
  assert.equal(r.code, 2);
  assert.match(r.stderr, /--no-push/);
  assert.equal((await cli(['run', '--no-push', '--no-pull', '--', 'echo', 'fine'], { cwd: home.home })).stdout, 'fine\n');
});

test('exec: --env and --cwd', async () => {
  const r = await cli(['exec', '-C', '/usr', '-e', 'GREETING=two words', 'cli-vm', '--', 'sh', '-c', 'pwd; echo "$GREETING"']);
  assert.equal(r.stdout, '/usr\ntwo words\n', r.stderr);
});

test('exec: a command that is not there, a folder that is not there, a signal, a time limit', async () => {
  assert.equal((await cli(['exec', 'cli-vm', 'no-such-program'])).code, 127);
  const nowhere = await cli(['exec', '-C', '/no/such', 'cli-vm', 'true']);
  assert.equal(nowhere.code === 0, false);
  assert.match(nowhere.stderr, /\/no\/such/);
  assert.equal((await cli(['exec', 'cli-vm', '--', 'sh', '-c', 'kill -9 $$'])).code, 137);
  assert.equal((await cli(['exec', '--timeout', '1', 'cli-vm', 'sleep', '60'])).code, 124);
});

test('exec: SIGINT goes to the command, which may handle it', async () => {
  const r = cli(['exec', 'cli-vm', '--', 'sh', '-c', 'trap "echo caught; exit 5" INT; echo ready; while :; do sleep 0.05; done'], { stdin: 'ignore' });
  await until(() => r.text().includes('ready'), 'ready');
  r.child.kill('SIGINT');
  const end = await r;
  assert.equal(end.code, 5, end.stderr);
  assert.match(end.stdout, /caught/);
});

test('exec: SIGTERM ends the tree on the VM', async () => {
  const r = cli(['exec', 'cli-vm', '--', 'sh', '-c', 'setsid sleep 4711 & echo ready; wait'], { stdin: 'ignore' });
  await until(() => r.text().includes('ready'), 'ready');
  assert.equal((await cli(['exec', 'cli-vm', 'pgrep', '-f', 'sleep 4711'])).code, 0);
  r.child.kill('SIGTERM');
  assert.notEqual((await r).code, 0);
  assert.equal((await cli(['exec', 'cli-vm', '--', 'pgrep', '-x', 'sleep'])).code, 1);
});

test('exec: a reader that goes away ends the command', async () => {
  const sh = spawnSync('sh', ['-c', `"$0" exec cli-vm yes </dev/null | head -n 2`, exedev], { env: env, timeout: 30000 });
  assert.equal(sh.stdout.toString(), 'y\ny\n');
  await until(async () => (await cli(['exec', 'cli-vm', 'pgrep', '-x', 'yes'])).code === 1, 'yes has ended on the VM');
});

test('exec: names that could be options, and VMs that are not there', async () => {
  const bad = await cli(['exec', '--', '-oProxyCommand=x', 'true']);
  assert.equal(bad.code, 2);
  assert.match(bad.stderr, /no VM name/);
  const gone = await cli(['exec', 'never-made', 'true']);
  assert.notEqual(gone.code, 0);
  assert.match(gone.stderr, /never-made/);
});

test('exec: a key that is not registered is told how to register', async () => {
  const dir = join(home.home, 'other');
  spawnSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', dir]);
  const r = await cli(['exec', 'cli-vm', 'true'], { env: { EXEDEV_SSH_PRIVATE_KEY: readFileSync(dir, 'utf8') } });
  assert.equal(r.code, 255, r.stderr);
  assert.match(r.stderr, /ssh exe\.dev/);
});

test('secrets are refused on the command line, with the ways out', async () => {
  const r = await cli(['ls', '--api-key', 'exe0.secret']);
  assert.equal(r.code, 2);
  assert.match(r.stderr, /--api-key-file/);
  assert.doesNotMatch(r.stderr, /exe0\.secret/);
});

test('shell: a real terminal of the right size, put back afterwards', () => {
  const script = `
import os, pty, sys, fcntl, struct, termios, select, time
fd, terminal = pty.openpty()
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
before = termios.tcgetattr(terminal)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for i in range(3): os.dup2(terminal, i)
    os.execv(sys.argv[1], [sys.argv[1], "shell", "cli-vm"])
out = b""
def expect(what):
    global out
    end = time.time() + 30
    while what not in out:
        if time.time() > end: raise SystemExit("no %r in %r" % (what, out))
        if select.select([fd], [], [], 0.1)[0]: out += os.read(fd, 65536)
expect(b"$ ")
raw = termios.tcgetattr(terminal)
os.write(fd, b"stty size; test -t 0 && echo is-a-tty\\n")
expect(b"33 101"); expect(b"is-a-tty\\r\\n")
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
time.sleep(0.5)
out = b""; os.write(fd, b"stty size\\n"); expect(b"20 50")
out = b""; os.write(fd, b'sh -c "echo be""fore; exec sleep 100"\\n'); expect(b"before\\r\\n")
os.write(fd, b"\\x03echo st''ill-here\\n"); expect(b"still-here")
os.write(fd, b"exit 9\\n")
_, status = os.waitpid(pid, 0)
after = termios.tcgetattr(terminal)
print(os.waitstatus_to_exitcode(status), "raw" if raw[3] & termios.ECHO == 0 else "cooked", "as before" if after == before else "changed")
`;
  const r = spawnSync('python3', ['-c', script, exedev], { env: { ...env, TERM: 'xterm' }, timeout: 90000 });
  assert.equal(r.stdout.toString().trim(), '9 raw as before', r.stderr.toString());
});

test('ls and rm: what exedev did not make stays, unless forced', async () => {
  await lobby.exec('new --name=by-hand');
  const list = await cli(['ls', '--json', 'by-*']);
  assert.deepEqual(JSON.parse(list.stdout).map((v) => [v.name, v.ours]), [['by-hand', false]]);
  const refused = await cli(['rm', 'by-hand']);
  assert.notEqual(refused.code, 0);
  assert.ok((await lobby.vms()).includes('by-hand'));
  const forced = await cli(['rm', '--force', 'by-hand']);
  assert.equal(forced.code, 0, forced.stderr);
  assert.ok(!(await lobby.vms()).includes('by-hand'));
});

test('doctor: nothing fails against a good lobby, and each failure has a remedy', async () => {
  const good = await cli(['doctor', '--json']);
  assert.equal(good.code, 0, good.stdout);
  const lines = JSON.parse(good.stdout);
  for (const check of ['openssh', 'settings', 'token', 'key', 'host key', 'state', 'api', 'clock', 'account'])
    assert.ok(lines.some((l) => l.check === check), check);
  const bad = await cli(['doctor', '--json'], { env: { EXE_API_KEY: 'wrong', EXEDEV_SSH_PRIVATE_KEY: 'nonsense' } });
  assert.equal(bad.code, 1);
  const failures = JSON.parse(bad.stdout).filter((l) => l.state === 'failure').map((l) => l.check);
  assert.ok(failures.includes('account') && failures.includes('key'), failures.join());
  const pins = await cli(['doctor', '--json', '--offline'], { env: { EXEDEV_SSH_KNOWN_HOSTS: 'no host key at all' } });
  assert.equal(JSON.parse(pins.stdout).find((l) => l.check === 'host key')?.state, 'failure');
});

test('completion: subcommands, options, VM names; nothing after --', async () => {
  const words = async (...w) => (await cli(['__complete', ...w])).stdout.split('\n').map((l) => l.split('\t')[0]).filter(Boolean);
  assert.ok((await words('ex')).includes('exec'));
  assert.ok((await words('exec', '--')).includes('--timeout='));
  assert.ok((await words('exec', '')).includes('cli-vm'));
  assert.deepEqual(await words('exec', 'cli-vm', '--', ''), []);
  for (const shell of ['bash', 'zsh', 'fish'])
    assert.match((await cli(['completion', shell])).stdout, /__complete/);
  const bash = spawnSync('bash', ['-c', `eval "$("$0" completion bash)"; PATH=$(dirname "$0"):$PATH; COMP_WORDS=(exedev exec cli); COMP_CWORD=2; _exedev; echo "$COMPREPLY"`, exedev],
    { env: env, timeout: 30000 });
  assert.equal(bash.stdout.toString().trim(), 'cli-vm', bash.stderr.toString());
});

test('help: every subcommand has a short help with two examples at most a page long, and a manual page with all its options', async () => {
  const listed = [...(await cli(['help'])).stdout.matchAll(/^ {2}([a-z]+) {2,}/gm)].map((m) => m[1]);
  assert.ok(listed.length >= 12, listed.join());
  for (const name of listed) {
    const help = (await cli([name, '--help'])).stdout;
    assert.match(help, /^usage: exedev /, name);
    assert.ok(help.split('\n').length < 60, `${name} --help is longer than a page`);
    const page = join(build, 'man', `exedev-${name}.1`);
    assert.ok(existsSync(page), page);
    const roff = readFileSync(page, 'utf8').replaceAll('\\-', '-');
    for (const [, option] of help.matchAll(/^ {2,6}(?:-\w, )?(--[a-z-]+)/gm)) assert.ok(roff.includes(option), `${name} ${option}`);
  }
});

test('unknown words suggest the nearest', async () => {
  assert.match((await cli(['lss'])).stderr, /did you mean 'ls'/);
  const r = await cli(['ls', '--jsn']);
  assert.equal(r.code, 2);
  assert.match(r.stderr, /did you mean --json/);
});
