// What the form's buttons ask of exe.dev: against the real lobby, its sandboxes and their sshd.
import { test, before, after, beforeEach, afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { assertAccessible, openBrowser, shot } from './web_browser.mjs';
import { newHome, startForm, startLobby } from './configure_form.mjs';

let browser, page, home, form, lobby;

before(async () => { browser = await openBrowser(); });
after(async () => { await browser?.close(); });
beforeEach(async () => { home = await newHome(); page = await browser.context.newPage(); page.on('dialog', (d) => d.accept()); });
afterEach(async () => {
  await page.close();
  await form?.close();
  await lobby?.close();
  await home.close();
});

async function open(over, ...lobbyArgs) {
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(home.home, 'id')]);
  lobby = await startLobby(join(home.home, 'id.pub'), ...lobbyArgs);
  await home.put('config.json', { version: 1, environments: { local: { apiUrl: lobby.url, sshPort: lobby.sshPort, setupScript: 'none' } } });
  await home.put('secrets.json', { local: { apiKey: 'form-token', sshPrivateKey: await readFile(join(home.home, 'id'), 'utf8'), ...over } });
  form = await startForm(home.home);
  await page.goto(form.url);
  await page.getByRole('heading', { name: 'local', exact: true }).waitFor();
}
const button = (name) => page.getByRole('button', { name, exact: true });
const verdict = (pattern) => page.waitForFunction((s) => new RegExp(s).test(document.getElementById('verdict').textContent), pattern.source, { timeout: 100000 });
const vms = async () => (await lobby.exec('ls')).vms.map((v) => v.vm_name);

test('test connection: each step appears while it runs, and the VM is gone afterwards', async () => {
  await open({}, '--fault', 'boot:delay=1500');
  await button('Test connection').click();
  await page.locator('#steps li').first().waitFor();
  assert.match(await page.locator('#verdict').textContent(), /Running/, 'steps are live, the end is still to come');
  await page.waitForFunction(() => !/Running/.test(document.getElementById('verdict').textContent), null, { timeout: 100000 });
  const steps = await page.locator('#steps li').allTextContents();
  assert.equal(await page.locator('#verdict').getAttribute('class'), 'good', `${await page.locator('#verdict').textContent()} ${steps}`);
  assert.ok(steps.length >= 3, steps.join(' | '));
  for (const s of steps) assert.match(s, /✓ .* [\d.]+ m?s$/);
  assert.deepEqual(await vms(), []);
  assert.ok(!(await page.content()).includes('form-token'));
  await shot(page, 'lobby-test-ok');
  await assertAccessible(page, 'a test that worked');
});

test('test connection: a refused token fails with the reason', async () => {
  await open({ apiKey: 'exe1.wrong' });
  await button('Test connection').click();
  await verdict(/401|refused|token/);
  assert.equal(await page.locator('#verdict').getAttribute('class'), 'bad');
  await shot(page, 'lobby-test-failed');
  await assertAccessible(page, 'a test that failed');
});

test('test connection can be cancelled, and leaves no VM', async () => {
  await open({}, '--fault', 'boot:delay=60000');
  await button('Test connection').click();
  for (let i = 0; i < 200 && !(await vms()).length; i++) await new Promise((r) => setTimeout(r, 50));
  assert.equal((await vms()).length, 1, 'a VM was there to be cancelled');
  await button('Cancel the test').click();
  await verdict(/^Cancelled/);
  assert.deepEqual(await vms(), []);
  assert.equal(await button('Cancel the test').isVisible(), false);
});

test('a page that is closed during a test cancels it', async () => {
  await open({}, '--fault', 'boot:delay=60000');
  await button('Test connection').click();
  for (let i = 0; i < 200 && !(await vms()).length; i++) await new Promise((r) => setTimeout(r, 50));
  assert.equal((await vms()).length, 1);
  await page.close();
  for (let i = 0; i < 400 && (await vms()).length; i++) await new Promise((r) => setTimeout(r, 50));
  assert.deepEqual(await vms(), []);
  page = await browser.context.newPage();
});

test('the program ends a test it is told to end under, and leaves no VM', async () => {
  await open({}, '--fault', 'boot:delay=60000');
  await button('Test connection').click();
  for (let i = 0; i < 200 && !(await vms()).length; i++) await new Promise((r) => setTimeout(r, 50));
  assert.equal((await vms()).length, 1);
  form.child.kill('SIGTERM');
  assert.deepEqual(await form.ended, { code: 0, signal: null });
  assert.deepEqual(await vms(), []);
});

test('a VM that this machine made is listed with its age', async () => {
  await open({}, '--fault', 'boot:delay=60000');
  await button('Test connection').click();
  await page.locator('#steps li').first().waitFor();
  await button('List them').click();
  const row = page.getByRole('row', { name: /paperclip-probe-/ });
  await row.waitFor();
  assert.match(await row.locator('td').first().textContent(), /^\d+ seconds?$/);
  await button('Cancel the test').click();
  await verdict(/^Cancelled/);
});

test('our VMs are listed with their age and deleted one by one; others are left alone', async () => {
  await open({});
  await lobby.exec("new --name=ours-a --tag=exedev --comment='[exedev lease env=e1 run=r1]' --no-email");
  await lobby.exec('new --name=somebodys --no-email');
  await button('List them').click();
  await page.getByRole('row', { name: /ours-a/ }).waitFor();
  assert.equal(await page.getByText('somebodys').count(), 0);
  assert.match(await page.locator('#vms').textContent(), /1 other VM does not and is not shown/);
  assert.match(await page.getByRole('row', { name: /ours-a/ }).textContent(), /running/);
  await shot(page, 'lobby-vms');
  await assertAccessible(page, 'VM list');
  await button('Delete ours-a').click();
  await page.locator('#ask').getByRole('button', { name: 'Cancel' }).click();
  assert.ok((await vms()).includes('ours-a'), 'asked first');
  await button('Delete ours-a').click();
  await page.locator('#ask').getByRole('button', { name: 'Delete' }).click();
  await page.getByText('No VM carries our mark').waitFor({ timeout: 30000 });
  assert.deepEqual(await vms(), ['somebodys']);
  // What the page does not offer, the server refuses too.
  const answer = await page.evaluate(async () => (await fetch('/api/delete', { method: 'POST', headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ from: 'local', settings: document.querySelector('json-schema-form').value, cleared: [], name: 'somebodys' }) })).json());
  assert.match(answer.error, /does not carry our mark/);
  assert.deepEqual(await vms(), ['somebodys']);
});
