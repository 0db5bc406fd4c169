// A lobby, and the real clients that knock at it: HTTP by hand, OpenSSH.
import { execFile, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = join(dirname(fileURLToPath(import.meta.url)), '../..');
export const program = join(process.env.EXEDEV_BUILD || join(root, 'build'), 'exedev-lobby');
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Polls until `what` holds; no time is asserted, only that it happens at all.
export async function until(what, text, ms = 30000) {
  const end = Date.now() + ms;
  for (;;) {
    const got = await what();
    if (got) return got;
    if (Date.now() > end) throw new Error(`never happened: ${text}`);
    await sleep(20);
  }
}

// Free, and among those that exe.dev's proxy passes.
export const freePort = () => new Promise((resolve) => {
  const s = createServer().listen(3000 + Math.floor(Math.random() * 6999), '127.0.0.1', () => { const { port } = s.address(); s.close(() => resolve(port)); });
  s.on('error', () => resolve(freePort()));
});

// Runs a program to its end: {code, signal, stdout, stderr}.
export const run = (file, args, { input, ...options } = {}) => new Promise((resolve) => {
  const child = execFile(file, args, { maxBuffer: 1 << 28, timeout: 120000, ...options }, (error, stdout, stderr) =>
    resolve({ code: error ? error.code ?? null : 0, signal: error?.signal ?? null, stdout, stderr }));
  child.stdin.on('error', () => {});
  child.stdin.end(input ?? '');
});

export async function makeFolder() {
  const dir = await mkdtemp(join(tmpdir(), 'exedev-test-'));
  return { dir, remove: () => rm(dir, { recursive: true, force: true }) };
}

export async function makeKey(dir, name, type = 'ed25519') {
  const path = join(dir, name);
  await run('ssh-keygen', ['-q', '-t', type, '-N', '', '-C', name, '-f', path]);
  return path;
}

// An exe0 token as the holder of a key makes it.
export async function mint(key, permissions, namespace = 'v0@exe.dev') {
  const text = typeof permissions === 'string' ? permissions : JSON.stringify(permissions);
  const { dir, remove } = await makeFolder();
  await writeFile(join(dir, 'm'), text);
  await run('ssh-keygen', ['-q', '-Y', 'sign', '-f', key, '-n', namespace, join(dir, 'm')]);
  const armour = await readFile(join(dir, 'm.sig'), 'utf8');
  await remove();
  const blob = Buffer.from(armour.replace(/-----[^\n]*-----/g, ''), 'base64');
  return `exe0.${Buffer.from(text).toString('base64url')}.${blob.toString('base64url')}`;
}

// One HTTP call on a connection of its own: {status, headers, text} or {error, text}.
export const http = (url, { method = 'POST', headers = {}, body = '', signal, ...more } = {}) => new Promise((resolve) => {
  const parts = [];
  const text = () => Buffer.concat(parts).toString();
  const req = request(url, { method, agent: false, headers, signal, ...more }, (res) => {
    res.on('data', (part) => parts.push(part));
    res.on('end', () => resolve({ status: res.statusCode, headers: res.headers, text: text() }));
    res.on('error', (error) => resolve({ status: res.statusCode, error, text: text() }));
  });
  req.on('error', (error) => resolve({ error, text: text() }));
  req.end(body);
});

export async function startLobby(args = [], { token = 'plain-token', command = [program], keys = true, ...options } = {}) {
  const { dir, remove } = await makeFolder();
  const key = await makeKey(dir, 'key');
  const argv = [...command.slice(1), '--json', ...(token ? ['--token', token] : []), ...(keys ? ['--authorized-key', `${key}.pub`] : []), ...args];
  const child = spawn(command[0], argv, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  const events = [], raw = [];
  const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve({ code, signal })));
  createInterface({ input: child.stderr }).on('line', (line) => {
    raw.push(line);
    try { events.push(JSON.parse(line)); } catch { /* words before --json counts */ }
  });
  await Promise.race([ended, until(() => events.length, 'the first event')]);
  const told = events[0];
  if (told?.event !== 'listening') {
    const { code } = await ended;
    await remove();
    throw Object.assign(new Error(raw.join('\n')), { code });
  }
  await writeFile(join(dir, 'known'), `* ${told.hostKey}\n`);
  const call = (url, body, bearer, more = {}) => http(url, { body, headers: bearer ? { authorization: `Bearer ${bearer}` } : {}, ...more });
  const lobby = {
    told, events, raw, child, ended, key, dir,
    call: (body, bearer = token, more) => call(told.url, body, bearer, more),
    // The JSON of a command that must work.
    exec: async (line) => {
      const { status, text, error } = await lobby.call(line);
      if (status !== 200) throw new Error(`${line}: ${status} ${text} ${error ?? ''}`);
      return JSON.parse(text);
    },
    faults: async (...specs) => {
      const { status, text } = await call(`${told.control}/faults`, ['clear', ...specs].join('\n'), token);
      if (status !== 200) throw new Error(text);
    },
    names: async () => (await lobby.exec('ls')).vms.map((vm) => vm.vm_name),
    sshArgs: (vm, { key: own = key, options: more = [] } = {}) => ['-F', 'none', '-i', own, '-o', 'IdentitiesOnly=yes', '-o', 'IdentityAgent=none', '-o', 'BatchMode=yes',
      '-o', 'StrictHostKeyChecking=yes', '-o', `UserKnownHostsFile=${join(dir, 'known')}`, '-o', 'GlobalKnownHostsFile=none', '-o', 'LogLevel=ERROR',
      '-o', 'ConnectTimeout=15', ...more.flatMap((o) => ['-o', o]), '-p', String(vm.ssh_port), vm.ssh_dest],
    ssh: (vm, command, more = {}) => run('ssh', [...lobby.sshArgs(vm, more), command], more),
    // The output of a command that must work.
    on: async (vm, command) => {
      const r = await lobby.ssh(vm, command);
      if (r.code !== 0) throw new Error(`${command}: ${r.code} ${r.stdout}${r.stderr}`);
      return r.stdout;
    },
    stop: async (signal = 'SIGTERM') => {
      child.kill(signal);
      const how = await ended;
      await remove();
      return how;
    },
  };
  return lobby;
}

// Processes of this machine whose command line names the folder of a lobby.
export async function processesOf(dir) {
  const found = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (line.includes(`${dir}/`)) found.push(`${pid} ${line.replaceAll('\0', ' ')}`);
  }
  return found;
}
