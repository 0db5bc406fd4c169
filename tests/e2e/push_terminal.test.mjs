// exedev push and pull as a person sees them: the bar on a real pseudo-terminal, narrow ones too, none elsewhere; Ctrl-C.
import test from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { open, mkdir, mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build, startLobby, startWorker, token } from './worker_lib.mjs';

const MIB = 1 << 20, BIG = 128;
let lobby, worker, lease, vm, dir, big;

test.before(async () => {
  lobby = await startLobby();
  worker = await startWorker();
  lease = await worker.call('environmentAcquireLease', { ...base(), runId: 'run-terminal' });
  vm = lease.providerLeaseId;
  dir = await mkdtemp(join(tmpdir(), 'exedev-terminal-'));
  big = join(dir, 'big');
  const file = await open(big, 'w'), block = randomBytes(MIB);
  for (let i = 0; i < BIG; i++) { block.writeUInt32LE(i); await file.write(block); }
  await file.close();
});
test.after(async () => {
  await worker?.close();
  await lobby?.close();
  if (dir) await rm(dir, { recursive: true, force: true });
});

const base = () => ({ driverKey: 'exe-dev', companyId: 'c', environmentId: 'env-terminal', config: lobby.config() });
const sh = async (script) => (await worker.call('environmentExecute', { ...base(), lease, command: 'sh', args: ['-c', script] })).stdout;

// Runs on a terminal of that many columns; where `press` shows, Ctrl-C is typed.
const PTY = `
import fcntl, os, pty, re, struct, sys, termios
columns, press, argv = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3:]
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.execv(argv[0], argv)
seen = b""
while True:
    try:
        part = os.read(fd, 65536)
    except OSError:
        break
    if not part:
        break
    os.write(1, part)
    seen += part
    if press and re.search(press, seen):
        press = b""
        os.write(fd, b"\\x03")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256)
`;

function run(args, { columns = 0, press = '' } = {}) {
  const env = { PATH: process.env.PATH, TERM: 'xterm', HOME: dir, EXE_API_KEY: token, EXEDEV_STATE_DIR: join(dir, 'state'), EXEDEV_API_URL: lobby.url,
    EXEDEV_SSH_IDENTITY_FILE: lobby.keyFile, EXEDEV_SSH_PORT: String(lobby.sshPort) };
  const argv = [join(build, 'exedev'), ...args];
  if (columns) argv.unshift('python3', '-c', PTY, String(columns), press);
  return new Promise((resolve) => {
    const child = spawn(argv[0], argv.slice(1), { env, stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '', stderr = '';
    child.stdout.on('data', (d) => { stdout += d; });
    child.stderr.on('data', (d) => { stderr += d; });
    child.on('close', (code) => resolve({ code, stdout, stderr }));
  });
}

// What stood in the terminal's last line at any time: each is taken off by a carriage return and "erase to the end".
const states = (shown) => shown.split(/\r\x1b\[K/);
const temporary = async () => [...(await readdir(dir)), ...(await sh('find ~ -name ".exedev-tmp-*"')).split('\n')].filter((n) => n.includes('.exedev-tmp-'));

for (const [name, args] of [['push', () => ['push', big, `${vm}:copy`]], ['pull', () => ['pull', `${vm}:copy`, join(dir, 'back')]]]) {
  test(`${name}: a bar with percentage, rate and time left`, async () => {
    const r = await run(args(), { columns: 80 });
    assert.equal(r.code, 0, r.stdout);
    const bars = states(r.stdout).filter((s) => /\[#* *\] +\d+%  [\d.]+ \S+  [\d.]+ \S+\/s  \S+.* left$/.test(s));
    assert.ok(bars.length > 0, JSON.stringify(r.stdout.slice(0, 2000)));
    const percents = bars.map((s) => +/(\d+)%/.exec(s)[1]);
    assert.deepEqual(percents, [...percents].sort((a, b) => a - b));
    assert.ok(percents.at(-1) <= 100);
    const last = r.stdout.split('\r\x1b[K').at(-1);
    assert.match(last.replace(/\x1b\[\d*m/g, ''), new RegExp(`^ *[\\d.]+ s ${name} +1 file, .*/s\\r\\n$`), 'the bar makes room for the summary');
  });

  test(`${name}: narrow terminals are not wrapped`, async () => {
    for (const columns of [60, 30, 8]) {
      const r = await run(args(), { columns });
      assert.equal(r.code, 0, r.stdout);
      const running = states(r.stdout).slice(0, -1);
      assert.ok(running.some((s) => /\d+%/.test(s)), `${columns}: ${JSON.stringify(running.slice(0, 5))}`);
      for (const s of running) assert.ok(s.length < columns && !s.includes('\n'), `${columns} columns: ${JSON.stringify(s)}`);
    }
  });

  test(`${name}: no bar where there is no terminal, with --quiet and with --json`, async () => {
    let r = await run(args());
    assert.equal(r.code, 0, r.stderr);
    assert.equal(r.stdout, '');
    assert.match(r.stderr, new RegExp(`^ *[\\d.]+ s ${name} +1 file, [^\\r\\n]*\\n$`));
    r = await run([args()[0], '--quiet', ...args().slice(1)], { columns: 80 });
    assert.deepEqual([r.code, r.stdout], [0, '']);
    r = await run([args()[0], '--json', ...args().slice(1)], { columns: 80 });
    assert.equal(r.code, 0);
    assert.equal(JSON.parse(r.stdout).bytes, BIG * MIB);
  });

  test(`${name}: Ctrl-C in the middle leaves the old file and nothing temporary`, async () => {
    let r = { code: 0 };
    // A transfer that is through before the key arrives proves nothing: once more.
    for (let i = 0; i < 10 && r.code === 0; i++) {
      await sh('printf old >~/old');
      await writeFile(join(dir, 'old'), 'old');
      r = await run(name === 'push' ? ['push', big, `${vm}:old`] : ['pull', `${vm}:copy`, join(dir, 'old')], { columns: 80, press: '[1-9]%' });
    }
    assert.equal(r.code, 130, r.stdout);
    assert.match(states(r.stdout).at(-1), /interrupted: each file is as it was before or whole/);
    assert.equal(name === 'push' ? await sh('cat ~/old') : await readFile(join(dir, 'old'), 'utf8'), 'old');
    assert.deepEqual(await temporary(), []);
  });
}

test('an update counts what is there already; a dry run lists and shows no bar', async () => {
  const tree = join(dir, 'tree');
  await mkdir(tree);
  await writeFile(join(tree, 'a'), 'a');
  await writeFile(join(tree, 'b\x1b[31m'), 'b');
  assert.equal((await run(['push', '-q', `${tree}/`, `${vm}:tree`])).code, 0);
  await writeFile(join(tree, 'a'), 'aa');
  const r = await run(['push', '-n', '-u', `${tree}/`, `${vm}:tree`], { columns: 80 });
  assert.equal(r.code, 0);
  assert.match(r.stdout, /\r\x1b\[Kcopy \.\r\ncopy \.\/a\r\n/, 'the list begins in a line of its own');
  assert.ok(!/copy .*b/.test(r.stdout) && !/%/.test(r.stdout), JSON.stringify(r.stdout));
  assert.equal(await sh('cat ~/tree/a'), 'a');
  // What is there already counts as done: the bar of the rest begins behind it.
  const both = join(dir, 'both');
  await mkdir(both);
  await run(['pull', '-q', `${vm}:copy`, both]);
  assert.equal((await stat(join(both, 'copy'))).size, BIG * MIB);
  await sh('head -c 100000000 ~/copy >~/rest');
  const u = await run(['pull', '-u', `${vm}:copy`, `${vm}:rest`, both], { columns: 100 });
  assert.equal(u.code, 0);
  const percents = [...u.stdout.matchAll(/ (\d+)%/g)].map((m) => +m[1]);
  assert.ok(percents.length && percents.every((n) => n >= 50), JSON.stringify(percents));
});
