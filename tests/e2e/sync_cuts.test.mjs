// The connection cut at every kilobyte of a transfer, on the real ssh link: a proxy between the worker and the VM's sshd
// counts bytes and breaks the connection. EXEDEV_ALL_CUTS=1 does all cuts, otherwise a random sample that fits 40 s.
import test from 'node:test';
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startLobby, startWorker } from './worker_lib.mjs';

const all = process.env.EXEDEV_ALL_CUTS === '1';
const BUDGET = all ? Infinity : 18000; // ms for each direction; they run side by side
const FILE = 200 << 10, FILES = 20;

let lobby, worker, dir;
test.before(async () => {
  lobby = await startLobby();
  worker = await startWorker();
  dir = await mkdtemp(join(tmpdir(), 'exedev-cuts-'));
});
test.after(async () => {
  await worker?.close();
  await lobby?.close();
  if (dir) await rm(dir, { recursive: true, force: true });
});

// Passes connections on to the VM; `passed` counts the bytes to the VM and from it.
async function startProxy(host, port) {
  const proxy = { passed: { to: 0, from: 0 }, armed: null, open: new Set(), connections: 0 };
  const cut = () => {
    proxy.armed = null;
    for (const socket of proxy.open) socket.resetAndDestroy();
  };
  const pass = (source, target, way) => {
    source.on('data', (data) => {
      proxy.passed[way] += data.length;
      const armed = proxy.armed?.way === way ? proxy.armed : null;
      if (armed && (armed.bytes -= data.length) <= 0) {
        // The bytes up to the cut arrive, whole or in part: the writing ends with the socket.
        target.write(data.subarray(0, data.length + armed.bytes), () => setImmediate(cut));
        source.pause();
        return;
      }
      if (!target.write(data)) { source.pause(); target.once('drain', () => source.resume()); }
    });
    source.on('close', () => { proxy.open.delete(source); target.destroy(); });
    source.on('error', () => {});
  };
  const server = createServer({ noDelay: true }, (near) => {
    proxy.connections++;
    const far = connect({ host, port, noDelay: true });
    proxy.open.add(near).add(far);
    pass(near, far, 'to');
    pass(far, near, 'from');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  proxy.port = server.address().port;
  proxy.close = () => { cut(); server.close(); };
  return proxy;
}

const hash = (data) => createHash('sha256').update(data).digest('hex');
const listed = (entries) => Object.entries(entries).map(([name, data]) => `${hash(data)}  ./${name}`).sort().join('\n');

async function put(base, entries) {
  await rm(base, { recursive: true, force: true });
  for (const [name, data] of Object.entries(entries)) {
    await mkdir(join(base, name, '..'), { recursive: true });
    await writeFile(join(base, name), data);
  }
}

async function listLocal(base) {
  const found = {};
  for (const e of await readdir(base, { recursive: true, withFileTypes: true }))
    if (e.isFile()) found[join(e.parentPath, e.name).slice(base.length + 1)] = await readFile(join(e.parentPath, e.name));
  return listed(found);
}

const LIST = `find . -type f -exec sha256sum {} + | LC_ALL=C sort`;
const temporary = (names) => names.filter((n) => n.includes('.exedev-tmp-'));

async function cutAll(into, t) {
  const acquired = await worker.call('environmentAcquireLease', { driverKey: 'exe-dev', companyId: 'c', environmentId: `env-${into ? 'in' : 'out'}`, runId: `run-cut-${into}`, config: lobby.config() });
  const proxy = await startProxy(acquired.metadata.sshHost, lobby.sshPort);
  t.after(() => proxy.close());
  // The same VM, by another road.
  const lease = { ...acquired, metadata: { ...acquired.metadata, sshHost: '127.0.0.1', sshDest: `${acquired.metadata.sshLogin}@127.0.0.1` } };
  const own = await startWorker({ binary: true });
  t.after(() => own.close());
  const base = { driverKey: 'exe-dev', companyId: 'c', environmentId: 'env-cut', config: lobby.config({ sshPort: proxy.port }), lease };
  const sh = async (script) => {
    const r = await own.call('environmentExecute', { ...base, command: 'sh', args: ['-c', script] });
    assert.equal(r.exitCode, 0, `${script}: ${r.stderr}`);
    return r.stdout.trim();
  };
  const home = await sh('printf %s "$HOME"');
  const here = join(dir, into ? 'in' : 'out'), src = join(here, 'src'), there = `${home}/cuts`;
  const file = { f: randomBytes(FILE) };
  const tree = Object.fromEntries(Array.from({ length: FILES }, (_, i) => [`d${i % 3}/f${i}`, randomBytes(FILE / FILES)]));
  const oldFile = { f: Buffer.from('the old file') }, oldTree = { 'old/a': Buffer.from('a'), 'd0/f0': Buffer.from('b') };
  await put(join(src, 'file'), file);
  await put(join(src, 'tree'), tree);
  const move = (sourcePath, targetPath, kind) => own.call(into ? 'environmentSyncIn' : 'environmentSyncOut',
    { ...base, operations: [{ operationId: 'cut', files: [{ sourcePath, targetPath, kind }] }] });
  if (!into) {
    for (const name of ['file', 'tree'])
      await own.call('environmentSyncIn', { ...base, operations: [{ operationId: 's', files: [{ sourcePath: join(src, name), targetPath: `${home}/src/${name}`, kind: 'directory' }] }] });
  }
  // On the VM: what unfinished things there are gets the time the helper needs to see the end; then the state, then the old one again.
  const onVm = (name, reset) => sh(`
    i=0; while find ~ -name '.exedev-tmp-*' 2>/dev/null | grep -q . && [ $i -lt 400 ]; do sleep 0.05; i=$((i+1)); done
    find ~ -name '.exedev-tmp-*'
    mkdir -p ${there}/${name} && cd ${there}/${name} && ${LIST} && rm -rf ${there}/${name} && mkdir ${there}/${name} && cd ${there}/${name}
    ${reset}`);
  const shapes = {
    file: { news: listed(file), olds: listed(oldFile), kind: 'file', reset: "printf %s 'the old file' >f", old: oldFile,
      run: () => (into ? move(join(src, 'file/f'), `${there}/file/f`, 'file') : move(`${home}/src/file/f`, join(here, 'file/f'), 'file')) },
    folder: { news: listed(tree), olds: listed(oldTree), kind: 'directory', reset: 'mkdir old d0; printf a >old/a; printf b >d0/f0', old: oldTree,
      run: () => (into ? move(join(src, 'tree'), `${there}/folder`, 'directory') : move(`${home}/src/tree`, join(here, 'folder'), 'directory')) },
  };
  // The target's state after a transfer, and the old one back in its place.
  const state = async (name) => {
    const shape = shapes[name], vm = await onVm(name, shape.reset);
    if (into) return vm;
    assert.deepEqual(temporary(vm.split('\n')), []);
    assert.deepEqual(temporary(await readdir(here, { recursive: true })), [], 'nothing temporary on this side');
    const now = await listLocal(join(here, name));
    await put(join(here, name), shape.old);
    return now;
  };

  const cases = [];
  for (const [name, shape] of Object.entries(shapes)) {
    if (!into) await put(join(here, name), shape.old);
    await state(name);
    const before = { ...proxy.passed };
    await shape.run();
    const total = { to: proxy.passed.to - before.to, from: proxy.passed.from - before.from };
    assert.equal(await state(name), shape.news, `${name}: whole without a cut`);
    for (const way of ['to', 'from'])
      // Around the end in smaller steps: there it is placed, and told.
      for (let at = 1; at < total[way]; at += at < total[way] - 1024 ? 1024 : 64) cases.push({ name, shape, way, at });
  }
  if (!all) cases.sort(() => Math.random() - 0.5);
  const end = Date.now() + BUDGET, seen = { old: 0, new: 0, finished: 0 };
  let done = 0;
  for (const { name, shape, way, at } of cases) {
    if (Date.now() > end && done) break;
    const about = `${into ? 'in' : 'out'}, ${name}, cut after ${at} bytes ${way} the VM`;
    const connections = proxy.connections;
    proxy.armed = { way, bytes: at };
    const failure = await shape.run().then(() => null, (error) => error);
    const fired = !proxy.armed;
    proxy.armed = null;
    if (failure) {
      assert.ok(fired, `${about}: failed without a cut: ${failure.message}`);
      assert.match(failure.message, /connection/, about);
      assert.match(failure.message, /network|lost|closed|broke|reset/i, about);
    }
    const now = await state(name);
    const which = now === shape.news ? 'new' : now === shape.olds ? 'old' : null;
    assert.ok(which, `${about}: neither the old nor the new one: ${now}`);
    if (!failure) assert.equal(which, 'new', `${about}: told as done`);
    if (failure) assert.ok(proxy.connections > connections, `${about}: the next call took a new connection`);
    seen[failure ? which : 'finished']++;
    done++;
  }
  t.diagnostic(`${done} of ${cases.length} cuts ${into ? 'in' : 'out'}: ${seen.old} left the old, ${seen.new} the new one, ${seen.finished} came too late`);
  assert.ok(seen.old > 0, 'cuts happened');
  if (all) assert.equal(done, cases.length);
}

test('cuts', { concurrency: 2 }, async (t) => {
  await Promise.all([
    t.test('into the VM: the old or the new one whole, nothing temporary, the next call goes on', (s) => cutAll(true, s)),
    t.test('out of the VM: the same', (s) => cutAll(false, s)),
  ]);
});
