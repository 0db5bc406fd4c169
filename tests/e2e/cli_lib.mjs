// The command line by hand: a lobby, a home folder, and `exedev` with the settings for them.
import { spawn } from 'node:child_process';
import { environment, exedev, newHome } from './configure_form.mjs';
import { startLobby, token } from './worker_lib.mjs';

export { exedev };

export async function startCli(lobbyArgs = []) {
  const lobby = await startLobby(lobbyArgs);
  const home = await newHome();
  const env = {
    ...environment(home.home), EXE_API_KEY: token, EXEDEV_API_URL: lobby.url, EXEDEV_SSH_PORT: String(lobby.sshPort), EXEDEV_SSH_PRIVATE_KEY: lobby.privateKey,
    EXEDEV_SETUP_SCRIPT: 'none', EXEDEV_CONNECTIONS_PER_TEN_SECONDS: '100',
  };
  // Bytes in, bytes out. Resolves when it ended; `child` is there at once.
  const cli = (args, { input, env: more, cwd, stdin = 'pipe', stdout = 'pipe' } = {}) => {
    const child = spawn(exedev, args, { env: { ...env, ...more }, cwd, stdio: [stdin, stdout, 'pipe'] });
    const out = [], err = [];
    child.stdout?.on('data', (d) => out.push(d));
    child.stderr.on('data', (d) => err.push(d));
    if (stdin === 'pipe') {
      child.stdin.on('error', () => {});
      child.stdin.end(input ?? '');
    }
    const text = (parts) => Buffer.concat(parts).toString();
    const done = new Promise((resolve) => child.on('close', (code, signal) =>
      resolve({ code, signal, bytes: Buffer.concat(out), stdout: text(out), stderr: text(err) })));
    return Object.assign(done, { child, text: () => text(out), errors: () => text(err) });
  };
  const close = async () => {
    await home.close();
    await lobby.close();
  };
  return { lobby, home, env, cli, close };
}
