// What a VM may do to a transfer, through the real worker and program: a helper that lies, bombs, names that differ only by
// case; and full disks on either side.
import test from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { lstat, mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build, startLobby, startWorker, token } from './worker_lib.mjs';

let lobby, worker, dir;
test.before(async () => {
  lobby = await startLobby();
  worker = await startWorker();
  dir = await mkdtemp(join(tmpdir(), 'exedev-hostile-'));
});
test.after(async () => {
  await worker?.close();
  await lobby?.close();
  if (dir) await rm(dir, { recursive: true, force: true });
});

const base = (name) => ({ driverKey: 'exe-dev', companyId: 'c', environmentId: `env-${name}`, config: lobby.config() });

// A VM and what calls need; `by` may be another worker than the one that made it.
async function makeVm(name) {
  const lease = await worker.call('environmentAcquireLease', { ...base(name), runId: `run-${name}` });
  const calls = (by) => ({
    sh: async (script, stdin) => {
      const r = await by.call('environmentExecute', { ...base(name), lease, command: 'sh', args: ['-c', script], stdin });
      assert.equal(r.exitCode, 0, `${script}: ${r.stderr}`);
      return r.stdout;
    },
    sync: (method, ...files) => by.call(method, { ...base(name), lease, operations: [{ operationId: 'o', files }] }),
  });
  return { name: lease.providerLeaseId, lease, calls };
}

function exedev(...args) {
  const env = { ...process.env, EXE_API_KEY: token, EXEDEV_STATE_DIR: join(dir, 'state'), HOME: dir, EXEDEV_API_URL: lobby.url,
    EXEDEV_SSH_IDENTITY_FILE: lobby.keyFile, EXEDEV_SSH_PORT: String(lobby.sshPort) };
  return new Promise((resolve) => {
    execFile(join(build, 'exedev'), args, { env, timeout: 120000 }, (error, stdout, stderr) => resolve({ code: error ? error.code : 0, stdout, stderr }));
  });
}

// ---- a helper that lies: speaks PROTOCOL.vm, and for files-out says what the file `lie` holds ----

const FAKE = String.raw`#!/usr/bin/env python3
import os, struct, sys
build = os.path.basename(sys.argv[0]).rsplit("-", 1)[1]
if sys.argv[1] == "--build":
    print(build)
    sys.exit(0)
text = lambda s: struct.pack(">I", len(s)) + s
def say(kind, channel, stream, payload=b""):
    os.write(1, struct.pack(">IBBHI", len(payload), kind, channel, 0, stream) + payload)
def take(n):
    got = b""
    while len(got) < n:
        part = os.read(0, n - len(got))
        if not part:
            sys.exit(0)
        got += part
    return got
home = os.path.expanduser("~")
say(1, 0, 0, b"EXEDEV\0\1" + text(build.encode()) + struct.pack(">I", os.getpid()) + text(home.encode()) + text(b"exedev") + text(b"/tmp") + struct.pack(">I", 1))
requests = {}
while True:
    n, kind, channel, _, stream = struct.unpack(">IBBHI", take(12))
    payload = take(n)
    if kind == 2:
        say(3, 0, 0, payload)
    elif kind == 14:
        say(15, 0, 0, struct.pack(">II", 0, 0))
    elif kind == 16:
        say(16, 0, 0)
        sys.exit(0)
    elif kind == 4:
        requests[stream] = requests.get(stream, b"") + payload
        if channel:
            continue
        say(5, 0, stream, struct.pack(">I", os.getpid()))
        for way in (b"files-out", b"files-in"):
            if way in requests[stream]:
                lie = open(home + "/lie", "rb").read()
                for at in range(0, len(lie), 65536):
                    say(6, 1, stream, lie[at:at + 65536])
        say(7, 1, stream)
        say(7, 2, stream)
        say(9, 0, stream, struct.pack(">IIIQQQ", 0, 0, 0, 0, 0, 0))
`;

const u32 = (n) => { const b = Buffer.alloc(4); b.writeUInt32BE(n); return b; };
const u64 = (n) => { const b = Buffer.alloc(8); b.writeBigUInt64BE(BigInt(n)); return b; };
const string = (s) => Buffer.concat([u32(Buffer.byteLength(s)), Buffer.from(s)]);
const record = (type, ...parts) => { const p = Buffer.concat(parts); return Buffer.concat([Buffer.from(type), u32(p.length), p]); };
const meta = (mode = 0o755) => Buffer.concat([u32(mode), u64(1e9), u32(0)]);
const begin = [record('V', Buffer.from('EXDTREE\x01'), u32(0)), record('G', u32(0)), record('D', meta(), string(''))];
const folder = (name) => record('D', meta(), string(name));
const file = (name, mode = 0o644) => record('F', meta(mode), u64(4), u32(0), string(name));
const data = record('B', Buffer.from('evil'));
const link = (name, target) => record('L', meta(0o777), string(name), string(target));
const EMPTY = 0xEF46DB3751D8E999n; // XXH64 of nothing
const fileEnd = (length = 0, hash = EMPTY) => record('K', u64(length), u64(hash));
const leave = record('E');
const end = (entries, bytes) => record('X', u64(entries), u64(bytes), u64(0), u64(0), u64(0), u64(0));

test('a helper that lies: told as what it is, nothing outside, the target as it was', async () => {
  const vm = await makeVm('liar'), real = vm.calls(worker);
  await real.sh(`cat >~/fake; cd ~/.cache/exedev && f=$(ls) && mv "$f" ~/real && cp ~/fake "$f" && chmod 700 "$f"`, FAKE);
  const liar = await startWorker({ binary: true });
  try {
    const { sync } = vm.calls(liar), here = join(dir, 'liar'), victim = join(dir, 'victim'), target = join(here, 't');
    await mkdir(target, { recursive: true });
    await mkdir(victim);
    await writeFile(join(target, 'old'), 'old');
    const lies = {
      'a name that leads up': [[...begin, file('../evil'), data], /the name `\.\.\/evil`, which is no name of a file/],
      'an absolute name': [[...begin, file('/tmp/evil'), data], /no name of a file/],
      '..': [[...begin, folder('..'), file('evil')], /no name of a file/],
      'an endless name': [[...begin, folder('a'.repeat(256))], /longer than allowed/],
      'a link, then a file through it': [[...begin, link('x', victim), folder('x'), file('evil'), data], /`\.\/x` came twice/],
      'a link, then a file over it': [[...begin, link('x', join(victim, 'evil')), file('x'), data], /`\.\/x` came twice/],
      'fewer bytes than said': [[...begin, file('f'), fileEnd(4)], /arrived damaged/],
      'other bytes than hashed': [[...begin, file('f'), data, fileEnd(4)], /arrived damaged/],
      'a file where a folder was asked for': [[begin[0], begin[1], file(''), data], /a file where a folder was asked for/],
      'a hole of 2 TiB': [[...begin, file('f'), record('Z', u64(2 ** 41))], /more than 1099511627776 bytes altogether, the limit/],
      'a device': [[...begin, file('f', 0o020644)], /malformed/],
      'deeper than any': [[...begin, ...Array(300).fill(folder('d'))], /deeper than 256 folders, the limit/],
      'a hard link to what was not sent': [[...begin, record('H', u32(7), Buffer.from([0]), string('h'))], /a file that was not sent/],
      'other sums than it sent': [[...begin, leave, end(5, 5)], /announced 5 entries/],
      'an end in the middle': [[...begin, file('f'), data], /cut off/],
      'no stream at all': [[Buffer.from('GIF89a, and so on and so forth')], /record of|does not send a stream|malformed/],
      'nothing': [[], /cut off|exited|ended/],
      'a reason that is none': [[...begin, record('Q', u32(0), u32(0), string(''))], /did not say properly/],
      'terminal controls in a reason': [[...begin, record('Q', u32(2), u32(0), string('\x1b[2Jevil'))], /on the VM: [^\x1b]*evil/],
    };
    for (const [what, [parts, says]] of Object.entries(lies)) {
      await real.sh('cat >~/lie.b64 && base64 -d ~/lie.b64 >~/lie', Buffer.concat(parts).toString('base64'));
      await assert.rejects(sync('environmentSyncOut', { sourcePath: '/home/exedev/x', targetPath: target, kind: 'directory' }),
        (e) => says.test(e.message) || assert.fail(`${what}: ${e.message}`));
      assert.deepEqual(await readdir(here, { recursive: true }), ['t', 't/old'], what);
      assert.deepEqual(await readdir(victim), [], what);
    }
    // What is no lie arrives, but for its setuid bit.
    await real.sh('cat >~/lie.b64 && base64 -d ~/lie.b64 >~/lie', Buffer.concat([...begin, file('s', 0o4755), fileEnd(), leave, end(2, 0)]).toString('base64'));
    await sync('environmentSyncOut', { sourcePath: '/home/exedev/x', targetPath: target, kind: 'directory' });
    assert.equal((await lstat(join(target, 's'))).mode & 0o7777, 0o755);
    // The way in: success is claimed before anything was sent, and answers to questions nobody asked.
    const src = join(here, 'big');
    await writeFile(src, randomBytes(9 << 20));
    for (const lie of [record('A', Buffer.from('====')), record('V'), record('R', u32(99), u32(0), string('x'), u64(0), u64(0))]) {
      await real.sh('cat >~/lie.b64 && base64 -d ~/lie.b64 >~/lie', lie.toString('base64'));
      await assert.rejects(sync('environmentSyncIn', { sourcePath: src, targetPath: '/home/exedev/y', kind: 'file' }));
    }
    const peak = +/VmHWM:\s+(\d+)/.exec(await readFile(`/proc/${liar.child.pid}/status`, 'utf8'))[1];
    assert.ok(peak < 64 << 10, `${peak} KiB`);
  } finally {
    await liar.close();
  }
});

test('bombs and names that differ only by case are refused by the limits, in words', async () => {
  const vm = await makeVm('bomb'), { sh, sync } = vm.calls(worker), target = join(dir, 'bomb');
  await sh('mkdir ~/b ~/c ~/n && truncate -s 1025G ~/b/sparse && touch ~/c/README ~/c/Readme && cd ~/n && seq 2000 | xargs touch');
  await assert.rejects(sync('environmentSyncOut', { sourcePath: '/home/exedev/b', targetPath: target, kind: 'directory' }), /sparse`: more than 1099511627776 bytes altogether, the limit/);
  await assert.rejects(sync('environmentSyncOut', { sourcePath: '/home/exedev/b/sparse', targetPath: target, kind: 'file' }), /1099511627776 bytes altogether, the limit/);
  let r = await exedev('pull', '--max-bytes', '1000000', `${vm.name}:b`, target);
  assert.equal(r.code, 1);
  assert.match(r.stderr, /more than 1000000 bytes altogether, the limit/);
  r = await exedev('pull', '--max-entries', '1000', `${vm.name}:n`, target);
  assert.equal(r.code, 1);
  assert.match(r.stderr, /more than 1000 entries, the limit/);
  r = await exedev('pull', '--refuse-case', `${vm.name}:c`, target);
  assert.equal(r.code, 1);
  assert.match(r.stderr, /README|Readme/);
  assert.match(r.stderr, /differs from it only by case/);
  await assert.rejects(lstat(target), { code: 'ENOENT' });
  assert.deepEqual((await readdir(dir)).filter((n) => n.startsWith('.exedev')), []);
});

// ---- full disks: a small file system of one's own ----

const SMALL = 'mount -t tmpfs -o size=2m small "$0" && exec "$@"';
const unshare = (...more) => ['unshare', process.getuid() === 0 ? '-m' : '-rm', ...more];

test('a full disk here: told as that, nothing half left', async () => {
  const vm = await makeVm('full'), { sh } = vm.calls(worker), small = join(dir, 'small');
  await mkdir(small);
  await sh('mkdir ~/t && head -c 3000000 /dev/urandom >~/t/big && echo small >~/t/a && head -c 100 /dev/urandom >~/one');
  const own = await startWorker({ under: [...unshare('sh', '-c', SMALL), small] });
  try {
    const { sync } = vm.calls(own), inside = () => readdir(`/proc/${own.child.pid}/root${small}`, { recursive: true });
    await sync('environmentSyncOut', { sourcePath: '/home/exedev/one', targetPath: join(small, 'f'), kind: 'file' });
    for (const [sourcePath, targetPath, kind] of [['t/big', 'f', 'file'], ['t', 't', 'directory'], ['t', 'f', 'directory']]) {
      await assert.rejects(sync('environmentSyncOut', { sourcePath: `/home/exedev/${sourcePath}`, targetPath: join(small, targetPath), kind }),
        (e) => /No space left on device/.test(e.message) && !/on the VM/.test(e.message) || assert.fail(e.message));
      assert.deepEqual(await inside(), ['f']);
    }
    assert.equal((await lstat(`/proc/${own.child.pid}/root${small}/f`)).size, 100);
    await sync('environmentSyncOut', { sourcePath: '/home/exedev/t/a', targetPath: join(small, 'f'), kind: 'file' });
  } finally {
    await own.close();
  }
});

test('a full disk on the VM: told as that, nothing half left', async () => {
  const vm = await makeVm('fullvm'), first = vm.calls(worker);
  // The helper itself is started on a small disk.
  await first.sh(`mkdir ~/small; cat >~/wrap; cd ~/.cache/exedev && f=$(ls) && mv "$f" ~/real && cp ~/wrap "$f" && chmod 700 "$f"`,
    `#!/bin/sh\n[ "$1" = serve ] || exec ~/real "$@"\nexec unshare -rm sh -c '${SMALL}' ~/small ~/real "$@"\n`);
  const own = await startWorker({ binary: true });
  try {
    const { sh, sync } = vm.calls(own), src = join(dir, 'full');
    await mkdir(join(src, 't'), { recursive: true });
    await writeFile(join(src, 'f'), 'first');
    await writeFile(join(src, 't/a'), 'a');
    await writeFile(join(src, 't/big'), randomBytes(3000000));
    const there = '/home/exedev/small';
    await sync('environmentSyncIn', { sourcePath: join(src, 'f'), targetPath: `${there}/f`, kind: 'file' });
    assert.equal((await sh('df --output=size ~/small')).trim().split('\n')[1].trim(), '2048');
    for (const [sourcePath, targetPath, kind] of [['t/big', 'f', 'file'], ['t', 't', 'directory'], ['t', 'f', 'directory']]) {
      await assert.rejects(sync('environmentSyncIn', { sourcePath: join(src, sourcePath), targetPath: `${there}/${targetPath}`, kind }),
        (e) => /on the VM: .*No space left on device/.test(e.message) || assert.fail(e.message));
      assert.equal(await sh('ls -A ~/small; cat ~/small/f'), 'f\nfirst');
    }
    await sync('environmentSyncIn', { sourcePath: join(src, 't/a'), targetPath: `${there}/f`, kind: 'file' });
    assert.equal(await sh('cat ~/small/f'), 'a');
  } finally {
    await own.close();
  }
});
