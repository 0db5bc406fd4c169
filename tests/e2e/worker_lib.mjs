// What the worker's tests share: a lobby of their own, and the npm folder's worker driven as the host does it, with
// the SDK's own message helpers.
import { spawn, fork } from 'node:child_process';
import { createInterface } from 'node:readline';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeFolder, makeKey, root, sleep, until } from './lobby_lib.mjs';
import { createRequest, parseMessage, serializeMessage, isJsonRpcErrorResponse, isJsonRpcNotification, isJsonRpcResponse }
  from '@paperclipai/plugin-sdk/protocol';

export { root, sleep, until };
export const build = process.env.EXEDEV_BUILD || join(root, 'build');
export const token = 'test-token-0123456789';

// An SSH key that nobody has registered: its private and its public text.
export async function newKey() {
  const { dir, remove } = await makeFolder();
  const path = await makeKey(dir, 'k');
  const [text, pub] = await Promise.all([path, `${path}.pub`].map(async (file) => (await readFile(file, 'utf8')).trim()));
  await remove();
  return { text, pub };
}

function spawnLobby(args) {
  const child = spawn(join(build, 'exedev-lobby'), ['--json', '--token', token, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  const events = [];
  const said = [];
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stderr }).on('line', (line) => {
      said.push(line);
      let event;
      try { event = JSON.parse(line); } catch { return; }
      events.push(event);
      if (event.event === 'listening') resolve({ child, events, told: event });
    });
    child.on('close', (code) => reject(new Error(`exedev-lobby ended with ${code}: ${said.slice(-5).join(' / ')}`)));
  });
}

export async function startLobby(args = []) {
  const { child, events, told } = await spawnLobby(args);
  const privateKey = (await readFile(told.keyFile, 'utf8')).trim(); // as the host hands it on
  const post = async (url, body) => {
    const answer = await fetch(url, { method: 'POST', body, headers: { authorization: `Bearer ${token}`, 'content-type': 'text/plain' } });
    return { status: answer.status, json: await answer.json() };
  };
  const lobby = {
    ...told, events, child, privateKey,
    exec: (line) => post(told.url, line),
    faults: (...specs) => post(`${told.control}/faults`, ['clear', ...specs].join('\n')),
    vms: async () => (await post(told.url, 'ls')).json.vms.map((vm) => vm.vm_name),
    count: (command) => events.filter((e) => e.event === 'exec' && e.command === command).length,
    config: (more = {}) => ({ apiKey: token, apiUrl: told.url, sshPrivateKey: privateKey, sshPort: told.sshPort, timeoutMs: 60000,
      setupScript: 'none', connectionsPerTenSeconds: 100, ...more }),
    close: () => new Promise((resolve) => {
      child.on('exit', resolve);
      if (child.exitCode !== null || child.signalCode !== null) resolve();
      child.kill('SIGTERM');
    }),
  };
  return lobby;
}

export class RpcError extends Error {
  constructor(error) { super(error.message); this.code = error.code; }
}

// What the host gives its workers: no HOME, no agent.
const scrubbed = (state) => ({ PATH: process.env.PATH, NODE_PATH: '', NODE_ENV: 'test', TZ: 'UTC', PAPERCLIP_PLUGIN_ID: 'p', EXEDEV_STATE_DIR: state });

// under: a program and its options to run the binary under, such as valgrind.
export async function startWorker({ state, binary = false, under = [], env = {} } = {}) {
  const own = state ? null : await mkdtemp(join(tmpdir(), 'exedev-state-'));
  const environment = { ...scrubbed(state || own), ...env };
  const [program, ...words] = [...under, join(build, 'exedev'), 'worker'];
  const child = binary || under.length
    ? spawn(program, words, { stdio: ['pipe', 'pipe', 'pipe'], env: environment })
    : fork(join(build, 'npm/paperclip-plugin-exe-dev/dist/worker.js'), [], { stdio: ['pipe', 'pipe', 'pipe', 'ipc'], execArgv: [], env: environment });
  const pending = new Map();
  const worker = { child, notes: [], stderr: '', lines: 0, state: state || own };
  let next = 1;
  worker.ended = new Promise((resolve) => child.on('exit', (code, signal) => {
    for (const p of pending.values()) p.reject(new Error(`the worker ended (${code ?? signal})`));
    pending.clear();
    resolve({ code, signal });
  }));
  child.stdin.on('error', () => {});
  child.stderr.on('data', (d) => { worker.stderr += d; });
  createInterface({ input: child.stdout }).on('line', (line) => {
    worker.lines++;
    const message = parseMessage(line);
    if (isJsonRpcNotification(message)) {
      worker.notes.push(message);
      worker.onNote?.(message);
    } else if (isJsonRpcResponse(message)) {
      const p = pending.get(message.id);
      pending.delete(message.id);
      if (!p) throw new Error(`an answer nobody asked for: ${line.slice(0, 200)}`);
      if (isJsonRpcErrorResponse(message)) p.reject(new RpcError(message.error));
      else p.resolve(message.result);
    } else throw new Error(`no message of the protocol: ${line.slice(0, 200)}`);
  });
  // The promise has the request's id, under which its notifications come.
  worker.call = (method, params = {}) => {
    const id = next++;
    const promise = new Promise((resolve, reject) => pending.set(id, { resolve, reject }));
    child.stdin.write(serializeMessage({ ...createRequest(method, params, id), paperclipInvocation: { id: `inv-${id}`, scope: { companyId: 'co' } } }));
    promise.id = id;
    promise.log = (stream) => worker.notes.filter((n) => n.method === 'execute.log' && n.paperclipInvocationId === `inv-${id}` && n.params.stream === stream)
      .map((n) => n.params.chunk).join('');
    return promise;
  };
  worker.env = (config, environmentId = 'environment-0001') => {
    const base = { driverKey: 'exe-dev', companyId: 'co', environmentId, issueId: null, config };
    return {
      base,
      validate: () => worker.call('environmentValidateConfig', { driverKey: 'exe-dev', config }),
      probe: () => worker.call('environmentProbe', base),
      acquire: (more = {}) => worker.call('environmentAcquireLease', { ...base, runId: 'run-00000001', ...more }),
      resume: (lease, more = {}) => worker.call('environmentResumeLease', { ...base, providerLeaseId: lease.providerLeaseId, leaseMetadata: lease.metadata, ...more }),
      release: (lease, more = {}) => worker.call('environmentReleaseLease', { ...base, providerLeaseId: lease.providerLeaseId, leaseMetadata: lease.metadata, ...more }),
      destroy: (lease, more = {}) => worker.call('environmentDestroyLease', { ...base, providerLeaseId: lease.providerLeaseId, leaseMetadata: lease.metadata, ...more }),
      execute: (lease, command, args = [], more = {}) => worker.call('environmentExecute', { ...base, lease, command, args, bypassSession: true, ...more }),
      sh: (lease, script, more = {}) => worker.call('environmentExecute', { ...base, lease, command: 'sh', args: ['-c', script], ...more }),
    };
  };
  worker.logs = () => worker.notes.filter((n) => n.method === 'log').map((n) => `${n.params.level}: ${n.params.message}`);
  worker.close = async () => {
    if (child.exitCode === null && child.signalCode === null) child.stdin.end();
    const end = await worker.ended;
    if (own) await rm(own, { recursive: true, force: true });
    return end;
  };
  worker.kill = async () => { child.kill('SIGKILL'); return worker.ended; };
  return worker;
}
