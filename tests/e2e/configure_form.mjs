// Starts `exedev configure` with a home folder of its own, and talks to it.
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, stat, writeFile, mkdir } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root } from './web_browser.mjs';

export const exedev = process.env.EXEDEV || join(root, 'build/exedev');

export async function newHome() {
  const home = await mkdtemp(join(tmpdir(), 'exedev-home-'));
  const folder = join(home, '.config/exedev');
  await mkdir(folder, { recursive: true, mode: 0o700 });
  return {
    home, folder,
    config: async () => JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')),
    secrets: async () => JSON.parse(await readFile(join(folder, 'secrets.json'), 'utf8')),
    put: (name, data, mode = 0o600) => writeFile(join(folder, name), typeof data === 'string' ? data : JSON.stringify(data), { mode }),
    mode: async (name) => (await stat(join(folder, name))).mode & 0o777,
    close: () => rm(home, { recursive: true, force: true }),
  };
}

// The environment a person without a desktop has; nothing of this machine's own settings.
export const environment = (home, more) => ({ PATH: process.env.PATH, HOME: home, USER: 'somebody', TERM: 'xterm', EXEDEV_KEYRING: 'off',
  EXEDEV_STATE_DIR: join(home, 'state'), ...more });

export function runExedev(home, args, { input = '', env, as = [], program = exedev } = {}) {
  return new Promise((resolve) => {
    const [first, ...rest] = [...as, program, ...args];
    const child = spawn(first, rest, { env: environment(home, env) });
    let stdout = '', stderr = '';
    child.stdout.on('data', (d) => { stdout += d; });
    child.stderr.on('data', (d) => { stderr += d; });
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
    child.stdin.on('error', () => {});
    child.stdin.end(input);
  });
}

export async function startForm(home, { args = ['--no-browser'], env } = {}) {
  const child = spawn(exedev, ['configure', ...args], { env: environment(home, env), stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = new Promise((resolve) => child.on('close', (code, signal) => resolve({ code, signal })));
  const form = { child, ended, output: '', errors: '' };
  child.stderr.on('data', (d) => { form.errors += d; });
  await new Promise((resolve, reject) => {
    child.stdout.on('data', (d) => {
      form.output += d;
      if (/It ends with/.test(form.output)) resolve();
    });
    child.on('close', () => reject(new Error(`ended early: ${form.output}${form.errors}`)));
  });
  form.url = form.output.match(/http:\/\/127\.0\.0\.1:\d+\/\?t=[0-9a-f]+/)[0];
  form.origin = new URL(form.url).origin;
  form.port = +new URL(form.url).port;
  form.close = async () => {
    if (child.exitCode === null) child.kill('SIGTERM');
    return ended;
  };
  return form;
}

// exe.dev on this machine, with the token form-token and one registered key.
export async function startLobby(publicKey, ...args) {
  const child = spawn(process.env.EXEDEV_LOBBY || join(root, 'build/exedev-lobby'),
    ['--json', '--token', 'form-token', '--authorized-key', publicKey, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  const ended = new Promise((resolve) => child.on('close', resolve));
  const where = await new Promise((resolve, reject) => {
    const log = [];
    createInterface({ input: child.stderr }).on('line', (line) => {
      log.push(line);
      try { const e = JSON.parse(line); if (e.event === 'listening') resolve(e); } catch { /* chatter */ }
    });
    child.on('close', () => reject(new Error(`the lobby ended: ${log.join('\n')}`)));
  });
  return { ...where, exec: (line) => fetch(where.url, { method: 'POST', headers: { authorization: 'Bearer form-token' }, body: line }).then((r) => r.json()),
    close: async () => { child.kill('SIGTERM'); await ended; } };
}
