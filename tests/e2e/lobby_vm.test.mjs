// exedev-lobby's VMs: what a person who logs in finds, and what is left when the lobby is gone.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { access, chmod, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeFolder, makeKey, processesOf, program, run, startLobby, until } from './lobby_lib.mjs';

let lobby;
before(async () => { lobby = await startLobby(); });
after(async () => { await lobby?.stop(); });

test('the login user, a home, a host name, its own processes', async () => {
  const vm = await lobby.exec('new --name=plain');
  const out = await lobby.on(vm, 'id -un; id -u; pwd; hostname; echo $SHELL; getent passwd exedev; ls -A');
  assert.match(out, /^exedev\n1000\n\/home\/exedev\nplain\n\/bin\/bash\nexedev:x:1000:1000::\/home\/exedev:\/bin\/bash\n/);
  assert.match(out, /\.profile/);
  const marker = spawn('sleep', ['4321']);
  const ps = await lobby.on(vm, 'ps -eo args');
  marker.kill();
  assert.ok(!ps.includes('4321'), 'no process of the machine is seen');
  assert.match(ps, /\/run\/exe\/bin\/init/);
  assert.equal(await lobby.on(vm, 'ls /home; ls / | grep -vxE "s?bin|dev|etc|home|lib[0-9x]*|media|mnt|opt|proc|root|run|srv|sys|tmp|usr|var"; true'), 'exedev\n', 'no folder of the machine but its system');
  const outside = join(tmpdir(), `exedev-outside-${process.pid}`);
  await writeFile(outside, 'x');
  assert.notEqual((await lobby.ssh(vm, `cat ${outside}`)).code, 0);
  await lobby.ssh(vm, 'kill -9 1; kill -9 -1');
  await until(async () => (await lobby.ssh(vm, 'echo still up')).stdout === 'still up\n', 'sshd is back');
  assert.equal((await lobby.exec('stat plain')).boots, 1);
  await run('rm', [outside]);
  await lobby.exec('rm plain');
});

test('environment, setup script, command', async () => {
  const vm = await lobby.exec(`new --name=fitted '--env=A=x "y" $HOME \\ # '\\''z'\\''' --env=B= --setup-script='echo "$A" > ~/setup\\nid -un >> ~/setup\\nsudo -n touch /usr/bin/made-by-setup\\nexit 3' --command='sleep 1000'`);
  assert.equal(await lobby.on(vm, 'printf "%s|%s|" "$A" "${B-unset}"'), `x "y" $HOME \\ # 'z'||`);
  await until(async () => (await lobby.exec('stat fitted')).setup === 3, 'the end of the setup script');
  assert.equal(await lobby.on(vm, 'cat setup; ls /usr/bin/made-by-setup'), `x "y" $HOME \\ # 'z'\nexedev\n/usr/bin/made-by-setup\n`);
  const stat = await lobby.exec('stat fitted');
  assert.ok(stat.process_list.some((p) => p.args === 'sleep 1000'), JSON.stringify(stat.process_list));
  assert.ok(lobby.events.some((e) => e.event === 'vm-setup' && e.vm === 'fitted' && e.status === 3));
  await lobby.on(vm, 'rm setup');
  await lobby.exec('restart fitted');
  assert.equal((await lobby.ssh(vm, 'cat setup')).code, 1, 'the setup script runs at the first boot only');
  assert.ok((await lobby.exec('stat fitted')).process_list.some((p) => p.args === 'sleep 1000'), 'the command at each');
  await lobby.exec('rm fitted');
});

test('sudo: root as far as a sandbox has one', async () => {
  const vm = await lobby.exec('new --name=super --env=KEEP=me');
  const cases = [
    ['sudo id -u', '0\n'],
    ['sudo -n -u exedev id -un', 'exedev\n'],
    ['sudo -u "#1000" -- id -u', '1000\n'],
    ['sudo sh -c \'echo $HOME $USER $SUDO_USER ${KEEP-gone}\'', '/root root exedev gone\n'],
    ['sudo -E sh -c \'echo $KEEP\'', 'me\n'],
    ['sudo --preserve-env=KEEP sh -c \'echo $KEEP\'', 'me\n'],
    ['sudo A=1 -n B="2 3" -- sh -c \'echo $A $B\'', '1 2 3\n'],
    ['sudo -i pwd', '/root\n'],
    ['sudo -s echo "a  b;c"', 'a  b;c\n'],
    ['sudo -D /etc pwd', '/etc\n'],
    ['sudo -v; echo $?', '0\n'],
    ['echo in | sudo -S cat', 'in\n'],
    ['sudo sh -c "exit 7"; echo $?', '7\n'],
    ['sudo sh -c "echo line >> /etc/hosts && rm /usr/bin/env && mkdir -p /usr/local/lib/x /opt/y && ln -s /bin/true /usr/bin/z"; grep -c line /etc/hosts; ls /usr/bin/env 2>&1 | grep -c "No such"', '1\n1\n'],
    ['sudo dpkg-query -W -f="\\${Status}\\n" bash', 'install ok installed\n'],
  ];
  for (const [command, want] of cases) assert.equal((await lobby.ssh(vm, command)).stdout, want, command);
  for (const [command, why] of [['sudo -u nobody id', /exedev and root only/], ['sudo --frob id', /--frob/], ['sudo nonexistent-program', /command not found/], ['sudo', /usage/]]) {
    const r = await lobby.ssh(vm, command);
    assert.equal(r.code, 1, command);
    assert.match(r.stderr, why);
  }
  await access('/usr/bin/env');
  await lobby.exec('rm super');
});

test('terminals, sftp, port forwarding, many sessions on one connection', async () => {
  const vm = await lobby.exec('new --name=full');
  await lobby.on(vm, 'true');
  const tty = await run('ssh', ['-tt', ...lobby.sshArgs(vm), 'tty; test -w $(tty) && echo ok; stty size']);
  assert.match(tty.stdout, /^\/dev\/pts\/\d+\r\nok\r\n\d+ \d+\r\n$/);
  const args = lobby.sshArgs(vm), dest = args.pop(), at = args.indexOf('-p');
  args[at] = '-P';
  const sftp = await run('sftp', ['-q', '-b', '-', ...args, dest], { input: 'put /etc/hostname up\nls -l up\n' });
  assert.equal(sftp.code, 0, sftp.stderr);
  assert.match(sftp.stdout, /up/);
  const echo = createServer((s) => s.end('hello from outside\n')).listen(0, '127.0.0.1');
  await new Promise((r) => echo.on('listening', r));
  const before = (await lobby.exec('stat full')).connections;
  assert.equal((await run('ssh', ['-W', `127.0.0.1:${echo.address().port}`, ...lobby.sshArgs(vm)])).stdout, 'hello from outside\n');
  echo.close();
  const stat = await lobby.exec('stat full');
  assert.equal(stat.connections, before + 1);
  assert.equal(stat.logins, stat.connections);
  assert.equal(lobby.events.filter((e) => e.event === 'ssh-login' && e.vm === 'full').length, stat.logins, 'each login is an event');
  await lobby.exec('rm full');
});

test('a key nobody registered is let in, and told off', async () => {
  const { dir, remove } = await makeFolder();
  const key = await makeKey(dir, 'stranger');
  const vm = await lobby.exec('new --name=strict');
  const r = await lobby.ssh(vm, 'id', { key });
  assert.equal(r.stdout, 'Please complete registration by running: ssh exe.dev\n');
  assert.equal(r.code, 1);
  assert.equal((await run('ssh', ['-W', '127.0.0.1:1', ...lobby.sshArgs(vm, { key })])).stdout, '');
  const other = await lobby.ssh({ ...vm, ssh_dest: `root@${vm.ssh_host}` }, 'id');
  assert.match(other.stderr, /Permission denied/);
  await until(async () => (await lobby.exec('stat strict')).unregistered_logins === 1, 'the count of such logins');
  await lobby.exec('rm strict');
  await remove();
});

test('poweroff stops a VM, restart brings it back with its disk, reboot does both', async () => {
  const vm = await lobby.exec('new --name=phoenix');
  await lobby.on(vm, 'echo kept > file; sudo sh -c "echo kept > /etc/motd"');
  await lobby.ssh(vm, 'sudo poweroff');
  const status = async () => (await lobby.exec('ls phoenix')).vms[0].status;
  await until(async () => await status() === 'stopped', 'the VM stops');
  assert.notEqual((await lobby.ssh(vm, 'true')).code, 0);
  assert.equal((await lobby.exec('stat phoenix')).processes, 0);
  assert.equal((await lobby.exec('restart phoenix')).status, 'running');
  assert.equal(await lobby.on(vm, 'cat file /etc/motd'), 'kept\nkept\n');
  await lobby.ssh(vm, 'sudo reboot');
  await until(async () => (await lobby.exec('stat phoenix')).boots === 3 && await status() === 'running', 'the VM reboots');
  assert.equal(await lobby.on(vm, 'cat file'), 'kept\n');
  await lobby.on(vm, 'sudo shutdown -h +1; sudo shutdown -c');
  assert.equal((await lobby.ssh(vm, 'sudo shutdown sometime')).code, 1);
  await lobby.ssh(vm, 'sudo shutdown -h now');
  await until(async () => await status() === 'stopped', 'the VM stops again');
  await lobby.exec('rm phoenix');
});

test('cp copies the disk, and the two go their own ways', async () => {
  const vm = await lobby.exec('new --name=orig --env=E=1 --setup-script="echo once >> ~/setup"');
  await until(async () => (await lobby.exec('stat orig')).setup === 0, 'the setup script');
  await lobby.on(vm, 'sudo rm /usr/bin/vi /usr/bin/wc; sudo sh -c "echo a > /etc/motd"; mkdir -p d; chmod 700 d; echo 1 > d/f; ln -s f d/l');
  const copy = await lobby.exec('cp orig twin --cpu=1');
  assert.equal(await lobby.on(copy, 'hostname; cat /etc/motd d/l setup; stat -c %a d; ls /usr/bin/wc 2>&1 | grep -c "No such"; echo $E; nproc'), 'twin\na\n1\nonce\n700\n1\n1\n1\n');
  await lobby.on(copy, 'echo 2 > d/f');
  assert.equal(await lobby.on(vm, 'cat d/f'), '1\n');
  await lobby.exec('rm orig');
  assert.equal(await lobby.on(copy, 'cat d/f'), '2\n');
  await lobby.exec('rm twin');
});

test('when the lobby ends nothing is left, even when it is killed', async () => {
  for (const signal of ['SIGTERM', 'SIGKILL']) {
    const own = await startLobby();
    const vm = await own.exec('new --name=gone'), dir = own.told.dir;
    await own.on(vm, 'setsid sh -c "trap : TERM HUP; sleep 3001 & sleep 3002" >/dev/null 2>&1 & mkdir -p deep/er; chmod 0 deep');
    assert.ok((await processesOf(dir)).length > 0);
    const how = await own.stop(signal);
    assert.equal(how.code, signal === 'SIGTERM' ? 0 : null);
    await until(async () => (await processesOf(dir)).length === 0, `no process after ${signal}`);
    await until(async () => !(await run('ps', ['-eo', 'args'])).stdout.match(/sleep 300[12]/), `the VM's processes end after ${signal}`);
    assert.ok(!(await readFile('/proc/mounts', 'utf8')).includes(dir));
    if (signal === 'SIGKILL') {
      await access(dir);
      await (await startLobby()).stop(); // the next one cleans up
    }
    await assert.rejects(access(dir), /ENOENT/);
  }
});

test('--state: VMs stay, and the next lobby finds them', async () => {
  const { dir, remove } = await makeFolder();
  await chmod(dir, 0o711);
  const state = join(dir, 'state');
  const first = await startLobby(['--state', state]);
  const key = first.key;
  const vm = await first.exec('new --name=stay --tag=t --comment=c');
  await first.on(vm, 'echo kept > file; nohup sleep 4001 >/dev/null 2>&1 &');
  await assert.rejects(startLobby(['--state', state]), /in use by another/);
  const copy = { key: await readFile(key, 'utf8'), pub: await readFile(`${key}.pub`, 'utf8') };
  await writeFile(join(dir, 'k'), copy.key, { mode: 0o600 });
  await writeFile(join(dir, 'k.pub'), copy.pub);
  assert.equal((await first.stop()).code, 0);

  const known = ['--state', state, '--authorized-key', join(dir, 'k.pub')];
  const second = await startLobby(known);
  assert.equal(second.told.hostKey, first.told.hostKey, 'the host key stays');
  const found = await second.exec('stat stay');
  assert.deepEqual([found.status, found.tags, found.comment, found.logins, found.ssh_host], ['running', ['t'], 'c', 1, vm.ssh_host]);
  assert.ok(found.process_list.some((p) => p.args === 'sleep 4001'), 'it went on all the time');
  assert.equal((await second.ssh(vm, 'cat file', { key: join(dir, 'k') })).stdout, 'kept\n');
  assert.equal((await second.exec('stat stay')).logins, 2);
  await second.stop('SIGKILL');

  const third = await startLobby(known);
  await third.ssh(vm, 'sudo poweroff', { key: join(dir, 'k') });
  await until(async () => (await third.exec('ls stay')).vms[0].status === 'stopped', 'a found VM stops');
  await third.stop();
  const fourth = await startLobby(known);
  assert.equal((await fourth.exec('ls stay')).vms[0].status, 'stopped');
  await fourth.exec('restart stay');
  assert.equal((await fourth.ssh(vm, 'cat file', { key: join(dir, 'k') })).stdout, 'kept\n');
  await fourth.exec('rm stay');
  assert.deepEqual(await processesOf(state), []);
  assert.deepEqual(await readdir(join(state, 'vm')), []);
  await fourth.stop();
  await remove();
});

test('a plain disk, where overlays cannot be', async () => {
  const own = await startLobby(['--disk', 'plain']);
  assert.equal(own.told.disk, 'plain');
  const vm = await own.exec('new --name=flat');
  assert.equal(await own.on(vm, 'sudo id -u; echo x > f; sudo touch /etc/x /usr/local/bin/x; touch /usr/x 2>&1 | grep -c Read-only; ls /etc/ssl/certs | wc -l | grep -vx 0 >/dev/null && echo certs'), '0\n1\ncerts\n');
  const copy = await own.exec('cp flat level');
  assert.equal(await own.on(copy, 'cat f; ls /etc/x /usr/local/bin/x'), 'x\n/etc/x\n/usr/local/bin/x\n');
  await own.stop();
});

test('rootless as well as root', { skip: process.getuid() !== 0 && 'the other tests run rootless already' }, async () => {
  const { dir, remove } = await makeFolder();
  await mkdir(join(dir, 'tmp'));
  await chmod(dir, 0o755);
  await run('cp', [program, join(dir, 'lobby')]);
  await run('chown', ['65534:65534', join(dir, 'tmp')]);
  const own = await startLobby([], { command: ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', join(dir, 'lobby')], keys: false, env: { PATH: process.env.PATH, TMPDIR: join(dir, 'tmp') } });
  assert.equal(own.told.disk, 'overlay');
  const vm = await own.exec('new --name=small');
  await run('cp', [own.told.keyFile, join(dir, 'k')]);
  await chmod(join(dir, 'k'), 0o600);
  const r = await own.ssh(vm, 'id -un; sudo id -u; sudo touch /usr/bin/x && echo ok', { key: join(dir, 'k') });
  assert.equal(r.stdout, 'exedev\n0\nok\n', r.stderr);
  await own.exec('restart small');
  assert.equal((await own.ssh(vm, 'ls /usr/bin/x', { key: join(dir, 'k') })).code, 0);
  assert.equal((await own.stop()).code, 0);
  assert.deepEqual(await readdir(join(dir, 'tmp')), []);
  await remove();
});

test('where sandboxes are forbidden it says what to do', async () => {
  // a user name space without any further ones: what a hardened machine looks like from inside
  const r = await run('unshare', ['-Ur', 'sh', '-c', `echo 0 > /proc/sys/user/max_user_namespaces && exec ${program} --token t`], { env: { PATH: process.env.PATH, TMPDIR: tmpdir() } });
  assert.equal(r.code, 3, r.stderr);
  assert.match(r.stderr, /user name space.*sysctl user\.max_user_namespaces/);
});
