// exedev configure --cli in a pseudo-terminal, and exedev config.
import { test, beforeEach, afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { spawn, execFileSync } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { environment, exedev, newHome, runExedev, startLobby } from './configure_form.mjs';

let home, terminal, lobby;
beforeEach(async () => { home = await newHome(); });
afterEach(async () => {
  await terminal?.close();
  await lobby?.close();
  terminal = lobby = undefined;
  await home.close();
});

// A real pseudo-terminal around the program; what it shows, and keys for it.
function openTerminal(args, env) {
  const child = spawn('python3', ['-c', 'import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])) % 256)', exedev, ...args],
    { env: environment(home.home, env) });
  const t = { shown: '', at: 0 };
  const waiting = [];
  const look = () => {
    for (const w of [...waiting]) {
      const found = t.shown.slice(t.at).match(w.pattern);
      if (!found) continue;
      t.at += found.index + found[0].length;
      waiting.splice(waiting.indexOf(w), 1);
      clearTimeout(w.timer);
      w.resolve(found);
    }
  };
  child.stdout.on('data', (d) => { t.shown += d; look(); });
  child.stderr.on('data', (d) => { t.shown += d; look(); });
  t.ended = new Promise((resolve) => child.on('close', resolve));
  t.see = (pattern, ms = 60000) => new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`never saw ${pattern} in: ${t.shown}`)), ms);
    waiting.push({ pattern, resolve, timer });
    look();
  });
  t.type = (text) => child.stdin.write(text);
  t.answer = async (pattern, text) => { await t.see(pattern); t.type(`${text}\r`); };
  t.close = async () => { child.kill('SIGKILL'); await t.ended; };
  return t;
}

const newKey = (name = 'id') => {
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(home.home, name)]);
  return join(home.home, name);
};

test('the two essentials: a token typed without echo, a key from a file, saved apart', async () => {
  const key = newKey();
  const file = await readFile(key, 'utf8');
  terminal = openTerminal(['configure', '--cli']);
  await terminal.answer(/A name.*\[main\]: /, 'work');
  await terminal.answer(/Token .*: /, 'exe1.typed-in-the-dark');
  await terminal.see(/22 characters read/);
  await terminal.see(/nothing can be read from it/);
  await terminal.answer(/Key file.*: /, '~/nothing-here');
  await terminal.see(/That does not work: .*nothing-here/);
  await terminal.answer(/Key file.*: /, '~/id');
  await terminal.answer(/other settings\? \[y\/N\] /, '');
  await terminal.see(/Checking[^]*Valid\./);
  await terminal.answer(/Save\? \[Y\/n\] /, '');
  await terminal.see(/Saved to .*config\.json, secrets in .*secrets\.json/);
  await terminal.answer(/Test the connection now.*\[y\/N\] /, 'n');
  assert.equal(await terminal.ended, 0);
  assert.ok(!terminal.shown.includes('typed-in-the-dark'), 'no echo');
  assert.ok(!terminal.shown.includes(file.split('\n')[1]), 'the key is not shown');
  assert.deepEqual(await home.secrets(), { work: { apiKey: 'exe1.typed-in-the-dark', sshPrivateKey: file } });
  assert.equal(await home.mode('secrets.json'), 0o600);
  assert.deepEqual((await home.config()).environments, { work: {} });
});

test('a key can be pasted: no echo, whole, and the rest of the paste answers no question', async () => {
  const text = await readFile(newKey(), 'utf8');
  terminal = openTerminal(['configure', '--cli', '--environment', 'work']);
  await terminal.answer(/Token .*: /, '');
  await terminal.answer(/Key file.*: /, 'paste');
  await terminal.see(/Paste the key.*: /);
  terminal.type(`${text.replaceAll('\n', '\r')}\r\r`);
  await terminal.see(/\d+ characters read/);
  await terminal.answer(/other settings\? \[y\/N\] /, 'n');
  await terminal.answer(/Save(?: all the same)?\? \[[yY]\/[nN]\] /, 'y');
  await terminal.see(/Saved to/);
  await terminal.close();
  assert.ok(!terminal.shown.includes(text.split('\n')[1]));
  assert.equal((await home.secrets()).work.sshPrivateKey.trim(), text.trim());
});

test('a token longer than a terminal line arrives whole', async () => {
  const long = `exe1.${'k'.repeat(6000)}`;
  terminal = openTerminal(['configure', '--cli', '--environment', 'work']);
  await terminal.answer(/Token .*: /, long);
  await terminal.see(/6005 characters read/);
  await terminal.answer(/Key file.*: /, '');
  await terminal.answer(/other settings/, 'n');
  await terminal.answer(/Save.*\? \[/, 'y');
  await terminal.see(/Saved to/);
  await terminal.close();
  assert.equal((await home.secrets()).work.apiKey, long);
});

test('the rest on demand, group by group; a bad value is told and asked again', async () => {
  await home.put('config.json', { version: 1, environments: { work: { memory: '8GB', novel: 1 } } });
  await writeFile(join(home.home, 'setup.sh'), 'echo one\necho two\n');
  terminal = openTerminal(['configure', '--cli']);
  await terminal.see(/Environment: work/);
  await terminal.see(/does not know, kept as they are: novel/);
  await terminal.answer(/Token .*: /, 'exe1.x');
  await terminal.answer(/Key file.*: /, '');
  await terminal.answer(/other settings\? \[y\/N\] /, 'y');
  await terminal.answer(/SSH access\? \[y\/N\] /, 'n');
  await terminal.answer(/VM resources\? \[y\/N\] /, 'y');
  await terminal.answer(/\(cpu\)[^]*?\[\d*\] /, 'many');
  await terminal.see(/That does not work: cpu must be a whole number/);
  await terminal.answer(/\[\d*\] /, '6');
  await terminal.answer(/\(memory\)[^]*?\[8GB\] /, '-');
  await terminal.answer(/\(disk\)[^]*?\[.*\] /, '');
  await terminal.answer(/VM creation\? \[y\/N\] /, 'y');
  for (;;) {
    const [, key] = await terminal.see(/\((\w+)\)\r?\n/);
    if (key === 'env') continue;
    await terminal.answer(/(\] |: )$/, key === 'setupScript' ? '@~/setup.sh' : key === 'tags' ? 'a, b' : '');
    if (key === 'expiresInMinutes') break;
  }
  await terminal.answer(/API \+ runtime\? \[y\/N\] /, 'n');
  await terminal.answer(/Save.*\? \[/, 'y');
  await terminal.see(/Saved to/);
  assert.deepEqual((await home.config()).environments.work, { novel: 1, cpu: 6, setupScript: 'echo one\necho two\n', tags: ['a', 'b'] });
});

test('errors are shown before saving, and saving has to be asked for', async () => {
  const key = join(home.home, 'putty');
  await writeFile(key, 'ssh-ed25519 AAAA somebody\n');
  terminal = openTerminal(['configure', '--cli', '--environment', 'work']);
  await terminal.answer(/Token .*: /, '');
  await terminal.answer(/Key file.*: /, key);
  await terminal.see(/That does not work: .*public SSH key/);
  await terminal.answer(/Key file.*: /, '');
  await terminal.answer(/other settings/, 'n');
  await terminal.see(/error .*API key|error .*apiKey/);
  await terminal.answer(/Save all the same\? \[y\/N\] /, '');
  await terminal.see(/Nothing was saved/);
  assert.equal(await terminal.ended, 1);
  await assert.rejects(home.config(), { code: 'ENOENT' });
});

test('Ctrl-C at a hidden prompt ends it and leaves the terminal with its echo', async () => {
  terminal = openTerminal(['configure', '--cli', '--environment', 'work']);
  await terminal.see(/Token .*: /);
  terminal.type('\x03');
  assert.notEqual(await terminal.ended, 0);
  // A shell around it shows whether echo came back.
  const around = spawn('python3', ['-c', 'import pty, sys; pty.spawn(sys.argv[1:])', 'sh', '-c',
    `trap : INT; ${exedev} configure --cli --environment work; stty -a`], { env: environment(home.home) });
  let shown = '';
  around.stdout.on('data', (d) => { shown += d; if (/Token .*: $/.test(shown)) around.stdin.write('\x03'); });
  await new Promise((resolve) => around.on('close', resolve));
  assert.match(shown, / echo /);
  assert.match(shown, / icanon /);
});

test('it validates and tests against the real lobby', async () => {
  const key = newKey();
  lobby = await startLobby(`${key}.pub`);
  await home.put('config.json', { version: 1, environments: { local: { apiUrl: lobby.url, sshPort: lobby.sshPort, setupScript: 'none' } } });
  terminal = openTerminal(['configure', '--cli']);
  await terminal.answer(/Token .*: /, 'form-token');
  await terminal.answer(/Key file.*: /, key);
  await terminal.answer(/other settings/, 'n');
  await terminal.answer(/Save.*\? \[/, 'y');
  await terminal.answer(/Test the connection now.*\[y\/N\] /, 'y');
  await terminal.see(/ok +create/);
  await terminal.see(/ok +connect/);
  await terminal.see(/ok +delete/);
  assert.equal(await terminal.ended, 0);
  assert.deepEqual((await lobby.exec('ls')).vms, []);
});

test('Ctrl-C during the test cancels it, and the VM is deleted', async () => {
  const key = newKey();
  lobby = await startLobby(`${key}.pub`, '--fault', 'boot:delay=60000');
  await home.put('config.json', { version: 1, environments: { local: { apiUrl: lobby.url, sshPort: lobby.sshPort, setupScript: 'none' } } });
  terminal = openTerminal(['configure', '--cli']);
  await terminal.answer(/Token .*: /, 'form-token');
  await terminal.answer(/Key file.*: /, key);
  await terminal.answer(/other settings/, 'n');
  await terminal.answer(/Save.*\? \[/, 'y');
  await terminal.answer(/Test the connection now.*\[y\/N\] /, 'y');
  await terminal.see(/ok +create/);
  terminal.type('\x03');
  assert.equal(await terminal.ended, 1);
  assert.deepEqual((await lobby.exec('ls')).vms, []);
});

test('without a terminal it says what to use instead', async () => {
  const a = await runExedev(home.home, ['configure', '--cli']);
  assert.equal(a.code, 2);
  assert.match(a.stderr, /exedev config set/);
});

test('exedev config: set, get, unset, list, path', async () => {
  const config = (...args) => runExedev(home.home, ['config', ...args]);
  assert.match((await config('list')).stderr, /no environment yet/);
  assert.equal((await config('path')).stdout, `${home.folder}/config.json\n`);
  assert.equal((await config('set', 'cpu', '8')).code, 0);
  assert.equal((await config('set', 'reuseLease', 'yes')).code, 0);
  assert.equal((await config('set', 'tags', 'a, b')).code, 0);
  assert.equal((await config('set', 'env.A', 'x=1')).code, 0);
  assert.equal((await config('set', '--', 'comment', '-dash')).code, 0);
  assert.deepEqual((await home.config()).environments.main, { cpu: 8, reuseLease: true, tags: ['a', 'b'], env: { A: 'x=1' }, comment: '-dash' });
  assert.equal((await config('get', 'cpu')).stdout, '8\n');
  assert.equal((await config('get', 'env.A')).stdout, 'x=1\n');
  assert.equal((await config('get', '--json', 'tags')).stdout, '["a","b"]\n');
  assert.equal((await config('unset', 'env.A')).code, 0);
  assert.equal((await config('unset', 'cpu')).code, 0);
  assert.equal((await config('get', 'cpu')).code, 1);
  assert.match((await config('unset', 'cpu')).stderr, /not set/);
  assert.match((await config('list')).stdout, /^reuseLease=true$/m);
  assert.equal((await config('list', '-e', 'nowhere')).code !== 0, true);
  assert.match((await config('set', '-e', 'nowhere', 'cpu', '1')).stderr, /--create makes it/);
  assert.equal((await config('set', '-e', 'team', '--create', 'cpu', '1')).code, 0);
  assert.equal((await home.config()).environments.team.cpu, 1);
});

test('exedev config: secrets are piped, never on the command line, never printed', async () => {
  const config = (args, input) => runExedev(home.home, ['config', ...args], { input });
  const onLine = await config(['set', 'apiKey', 'exe1.on-the-line']);
  assert.equal(onLine.code !== 0, true);
  assert.match(onLine.stderr, /every user of this machine/);
  assert.ok(!onLine.stderr.includes('on-the-line'));
  assert.equal((await config(['set', 'apiKey'], 'exe1.piped-secret\n')).code, 0);
  assert.deepEqual(await home.secrets(), { main: { apiKey: 'exe1.piped-secret' } });
  for (const args of [['get', 'apiKey'], ['list'], ['list', '--json']]) {
    const a = await config(args);
    assert.equal(a.code, 0);
    assert.ok(!`${a.stdout}${a.stderr}`.includes('piped-secret'), args.join(' '));
    assert.match(`${a.stdout}${a.stderr}`, /stored/);
  }
  assert.match((await config(['set', 'sshPrivateKey'], 'ssh-ed25519 AAAA x')).stderr, /public SSH key/);
  assert.equal((await config(['unset', 'apiKey'])).code, 0);
  assert.deepEqual(await home.secrets(), {});
});

test('exedev config: what is wrong is told with the nearest right word', async () => {
  const config = async (...args) => {
    const a = await runExedev(home.home, ['config', ...args]);
    assert.equal(a.code, 2, args.join(' '));
    return a.stderr;
  };
  assert.match(await config('set', 'sshPrt', '22'), /did you mean 'sshPort'/);
  assert.match(await config('gett', 'cpu'), /did you mean 'get'/);
  assert.match(await config('set', 'sshPort', '99999'), /1 to 65535/);
  assert.match(await config('set', 'reuseLease', 'maybe'), /yes or no/);
  assert.match(await config('get'), /takes one key/);
  assert.match(await config('list', 'x'), /takes nothing/);
  await assert.rejects(home.config(), { code: 'ENOENT' });
});

test('two programs that change the settings at once lose nothing', async () => {
  await runExedev(home.home, ['config', 'set', 'cpu', '1']);
  const all = await Promise.all([...'abcdefgh'].map((c) => runExedev(home.home, ['config', 'set', `env.${c}`, c])));
  const saved = (await home.config()).environments.main.env;
  for (const [i, c] of [...'abcdefgh'].entries()) {
    // Saved, or told that somebody else was quicker: never a success that is not there.
    assert.equal(saved[c] === c, all[i].code === 0, `${c}: ${all[i].stderr}`);
    if (all[i].code) assert.match(all[i].stderr, /changed by another program/);
  }
  assert.ok(Object.keys(saved).length >= 1);
});

test('the desktop keyring, where there is one, holds the secrets instead of the file', async () => {
  await mkdir(join(home.home, 'run'), { mode: 0o700 });
  const script = join(home.home, 'session.sh');
  await writeFile(script, `set -e
printf test-password | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1
printf 'exe1.in-the-keyring' | ${exedev} config set apiKey
${exedev} config set cpu 3
echo "file: $(cat $HOME/.config/exedev/secrets.json | tr -d '\\n')"
id=$(sed -n 's/.*"keyring": "\\(.*\\)".*/\\1/p' $HOME/.config/exedev/secrets.json)
echo "found: $(secret-tool lookup service exedev id $id)"
${exedev} config unset apiKey
echo "left: $(secret-tool lookup service exedev id $id || echo nothing)"
`);
  const out = execFileSync('dbus-run-session', ['--', 'sh', script], { env: { ...environment(home.home), EXEDEV_KEYRING: '',
    XDG_RUNTIME_DIR: join(home.home, 'run') }, encoding: 'utf8', timeout: 60000 });
  assert.match(out, /^file: .*"keyring"/m);
  assert.ok(!/^file: .*in-the-keyring/m.test(out), 'not in the file');
  assert.match(out, /^found: exe1\.in-the-keyring$/m);
  assert.match(out, /^left: nothing$/m);
});
