// exedev token and exedev validate, and what exedev-lobby (which checks signatures for real) makes of the tokens.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { readFile, stat, writeFile, chmod } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { dirname, join } from 'node:path';
import { exedev, newHome, runExedev } from './configure_form.mjs';

let home, key, lobby, url;
const run = (args, more) => runExedev(home.home, args, more);

before(async () => {
  home = await newHome();
  key = join(home.home, 'key');
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key]);
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(home.home, 'stranger')]);
  lobby = spawn(join(dirname(exedev), 'exedev-lobby'), ['--json', '--authorized-key', `${key}.pub`],
    { stdio: ['ignore', 'ignore', 'pipe'], env: { PATH: process.env.PATH, HOME: home.home } });
  url = await new Promise((resolve, reject) => {
    createInterface({ input: lobby.stderr }).on('line', (line) => {
      const event = JSON.parse(line);
      if (event.event === 'listening') resolve(event.url ?? event.api);
    });
    lobby.on('exit', (code) => reject(new Error(`exedev-lobby ended with ${code}`)));
  });
});
after(async () => {
  lobby.removeAllListeners('exit');
  lobby.kill();
  await home.close();
});

const mint = async (...args) => {
  const r = await run(['token', 'mint', '--key', key, ...args]);
  assert.equal(r.code, 0, r.stderr);
  assert.match(r.stdout, /^exe0\.[\w-]+\.[\w-]+\n$/);
  return r.stdout.trim();
};
const ls = (token) => run(['ls', '--json', `--api-url=${url}`], { env: { EXE_API_KEY: token } });

test('a minted token opens the lobby', async () => {
  const r = await ls(await mint());
  assert.equal(r.code, 0, r.stderr);
  assert.deepEqual(JSON.parse(r.stdout), []);
});

test('a token without the command is told which to grant', async () => {
  const r = await ls(await mint('--cmds', 'whoami'));
  assert.notEqual(r.code, 0);
  assert.match(r.stderr, /may not run `ls`/);
});

test("a stranger's signature is refused, in words that help", async () => {
  const r = await run(['token', 'mint', '--key', join(home.home, 'stranger')]);
  const a = await ls(r.stdout.trim());
  assert.notEqual(a.code, 0);
  assert.match(a.stderr, /401/);
  assert.match(a.stderr, /exedev token inspect/);
  assert.doesNotMatch(a.stderr, /exe0\./);
});

test('a token that is valid later is refused now', async () => {
  const token = await mint('--nbf', '1h', '--exp', '1h');
  assert.match((await ls(token)).stderr, /401/);
  const seen = await run(['token', 'inspect', '-'], { input: `${token}\n` });
  assert.equal(seen.code, 1);
  assert.match(seen.stdout, /valid from: .*in 59 min|valid from: .*in 1 h 0 min/);
});

test('inspect explains, from a file, from stdin and from the settings', async () => {
  const token = await mint('--cmds', 'new,ls,rm', '--exp', '30d');
  const fingerprint = execFileSync('ssh-keygen', ['-lf', `${key}.pub`], { encoding: 'utf8' }).split(' ')[1];
  const file = join(home.home, 'token');
  await writeFile(file, token);
  const shown = [await run(['token', 'inspect', file]), await run(['token', 'inspect', '-'], { input: token }),
    await run(['token', 'inspect'], { env: { EXE_API_KEY: token } })];
  for (const r of shown) {
    assert.equal(r.code, 0, r.stderr);
    assert.ok(r.stdout.includes(fingerprint));
    assert.match(r.stdout, /commands: +new, ls, rm/);
    assert.match(r.stdout, /lacks: +cp/);
    assert.ok(!r.stdout.includes(token));
  }
  const json = JSON.parse((await run(['token', 'inspect', '--json', file])).stdout);
  assert.deepEqual(json.cmds, ['new', 'ls', 'rm']);
  assert.equal(json.fingerprint, fingerprint);
  assert.deepEqual(json.lacks, ['cp', 'restart', 'tag', 'comment']);
});

test('inspect says what is wrong with a damaged one', async () => {
  const r = await run(['token', 'inspect', '-'], { input: 'exe0.e30.AAAA' });
  assert.equal(r.code, 1);
  assert.match(r.stderr, /no SSH signature/);
  assert.equal((await run(['token', 'inspect', '-'], { input: '' })).code, 1);
  assert.equal((await run(['token', 'inspect', '/nonexistent'])).code, 2);
});

test('mint into the token file, which is found and private', async () => {
  const file = join(home.folder, 'token');
  assert.equal((await run(['token', 'mint', '--key', key, '--output', file])).code, 0);
  assert.equal((await stat(file)).mode & 0o777, 0o600);
  assert.equal((await run(['ls', '--json', `--api-url=${url}`])).code, 0);
  await chmod(file, 0o644);
  const r = await run(['ls', '--json', `--api-url=${url}`]);
  assert.notEqual(r.code, 0);
  assert.match(r.stderr, /chmod 600/);
  await chmod(file, 0o600);
  await writeFile(file, '');
});

test('mint with an agent', async () => {
  const socket = join(home.home, 'agent');
  const agent = spawn('ssh-agent', ['-D', '-a', socket], { stdio: 'ignore' });
  try {
    for (let i = 0; ; i++) {
      try { execFileSync('ssh-add', ['-q', key], { env: { ...process.env, SSH_AUTH_SOCK: socket }, stdio: 'ignore' }); break; } catch (e) {
        if (i > 100) throw e;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    const r = await run(['token', 'mint', '--agent', '--public-key', `${key}.pub`], { env: { SSH_AUTH_SOCK: socket } });
    assert.equal(r.code, 0, r.stderr);
    assert.equal((await ls(r.stdout.trim())).code, 0);
  } finally {
    agent.kill();
  }
});

test('mint refuses what makes no sense', async () => {
  const cases = [[['--exp', 'soon'], /--exp/], [['--cmds', ' , '], /no command/], [['--vm', 'x', '--cmds', 'ls'], /--cmds/],
    [['--vm', 'bad name'], /one VM/], [['--agent'], /SSH_AUTH_SOCK/]];
  for (const [args, words] of cases) {
    const r = await run(['token', 'mint', '--key', key, ...args]);
    assert.notEqual(r.code, 0);
    assert.match(r.stderr, words);
    assert.equal(r.stdout, '');
  }
  const none = await run(['token', 'mint']);
  assert.equal(none.code, 2);
  assert.match(none.stderr, /no SSH key to sign with/);
});

test('validate tells every problem, exits by it, and shows no secret', async () => {
  const good = await run(['validate', '--json', `--ssh-key-file=${key}`], { env: { EXE_API_KEY: await mint() } });
  assert.equal(good.code, 0, good.stderr + good.stdout);
  const g = JSON.parse(good.stdout);
  assert.equal(g.ok, true);
  assert.equal(g.normalizedConfig.sshPrivateKey, '[set]');
  assert.doesNotMatch(good.stdout, /PRIVATE KEY|exe0\./);

  const config = join(home.home, 'config.json');
  await writeFile(config, JSON.stringify({ apiKey: await mint('--cmds', 'new,ls'), sshPort: 'x', apiUrl: 'gopher://x', sshPrivateKey: 'ssh-rsa AAAA' }));
  assert.equal((await run(['validate', '-'], { input: '{' })).code, 2);
  const bad = await run(['validate', '--json', config]);
  assert.equal(bad.code, 1);
  const b = JSON.parse(bad.stdout);
  assert.deepEqual(b.errors.map((e) => e.field).sort(), ['apiKey', 'apiUrl', 'sshPort', 'sshPrivateKey']);
  assert.equal(b.normalizedConfig, undefined);
  const words = await run(['validate', config]);
  assert.equal(words.code, 1);
  assert.match(words.stdout, /`rm`/);
});

test('validate decodes the private key for real', async () => {
  const text = (await readFile(key, 'utf8')).split('\n');
  text[2] = `${'A'.repeat(40)}${text[2].slice(40)}`;
  const damaged = join(home.home, 'damaged');
  await writeFile(damaged, text.join('\n'));
  const r = await run(['validate', `--ssh-key-file=${damaged}`], { env: { EXE_API_KEY: await mint() } });
  assert.equal(r.code, 1);
  assert.match(r.stdout, /damaged/);
  // The form alone is right.
  assert.equal((await run(['validate', '--offline', `--ssh-key-file=${damaged}`], { env: { EXE_API_KEY: await mint() } })).code, 0);
});
