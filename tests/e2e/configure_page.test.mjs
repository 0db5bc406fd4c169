// The page of `exedev configure` in a real browser, against the real program.
import { test, before, after, beforeEach, afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { assertAccessible, openBrowser, shot } from './web_browser.mjs';
import { newHome, startForm } from './configure_form.mjs';

// Signed by a real key, as exe.dev's documentation says.
function signedToken(folder, permissions) {
  const run = (args, input) => execFileSync('ssh-keygen', args, { input, stdio: ['pipe', 'pipe', 'ignore'] });
  run(['-q', '-t', 'ed25519', '-N', '', '-f', join(folder, 'key')]);
  const payload = JSON.stringify(permissions);
  const blob = String(run(['-Y', 'sign', '-f', join(folder, 'key'), '-n', 'v0@exe.dev'], payload)).replace(/-----.*-----|\s/g, '');
  return `exe0.${Buffer.from(payload).toString('base64url')}.${Buffer.from(blob, 'base64').toString('base64url')}`;
}

let browser, page, home, form;
const elsewhere = []; // requests that left the form's own address
const complaints = []; // of the browser: CSP violations, script errors

before(async () => { browser = await openBrowser(); });
after(async () => { await browser?.close(); });
beforeEach(async () => {
  home = await newHome();
  page = await browser.context.newPage();
  elsewhere.length = complaints.length = 0;
  page.on('request', (r) => { if (!r.url().startsWith(form.origin) && !/^(data|blob):/.test(r.url())) elsewhere.push(r.url()); });
  page.on('console', (m) => { if (m.type() === 'error') complaints.push(m.text()); });
  page.on('pageerror', (e) => complaints.push(String(e)));
  page.on('dialog', (d) => d.accept());
});
afterEach(async () => {
  await page.close();
  await form?.close();
  await home.close();
});

async function open(files = {}, options) {
  for (const [name, data] of Object.entries(files)) await home.put(name, data);
  form = await startForm(home.home, options);
  await page.goto(form.url);
  await page.waitForFunction(() => document.getElementById('name').textContent !== '');
}
const two = { 'config.json': { version: 1, default: 'work', environments: { work: { cpu: 2, memory: '8GB' }, play: { cpu: 1 } } },
  'secrets.json': { work: { apiKey: 'exe1.stored-token' } } };
const message = () => page.locator('#message').textContent();
const button = (name) => page.getByRole('button', { name, exact: true });
const answer = async (name, yes) => {
  if (name !== null) await page.locator('#ask-input').fill(name);
  await page.locator('#ask').getByRole('button', { name: yes }).click();
};
const said = (pattern) => page.waitForFunction((s) => new RegExp(s).test(document.getElementById('message').textContent), pattern.source);
const token = () => page.getByRole('textbox', { name: 'exe.dev API key', exact: true });
const clean = () => assert.deepEqual([elsewhere, complaints], [[], []]);

test('a first environment: made, filled in, saved, secrets apart, nothing loaded from elsewhere', async () => {
  await open();
  assert.match(await page.locator('#name').textContent(), /No environment yet/);
  await shot(page, 'page-empty');
  await button('New…').click();
  assert.equal(await page.locator('#ask-input').inputValue(), 'main');
  await answer('main', 'Create');
  await token().fill('exe1.brand-new');
  await page.getByText('Advanced options').click();
  await page.getByLabel('CPU').fill('6');
  await button('Save').click();
  await said(/Saved to/);
  const { environments } = await home.config();
  assert.equal(environments.main.cpu, 6);
  assert.ok(!('sshUser' in environments.main), 'what is empty is not written');
  assert.deepEqual(await home.secrets(), { main: { apiKey: 'exe1.brand-new' } });
  assert.ok(await button('Replace the stored exe.dev API key').isVisible());
  assert.equal(page.url(), `${form.origin}/`, 'the token is out of the address bar');
  await page.reload();
  await page.getByRole('heading', { name: 'main', exact: true }).waitFor();
  clean();
});

test('environments side by side: switch, duplicate, rename, default, delete', async () => {
  await open(two);
  assert.equal(await page.locator('#name').textContent(), 'work');
  await page.getByText('Advanced options').click();
  await page.getByLabel('CPU').fill('3');
  await page.getByRole('button', { name: 'play' }).click();
  await page.getByText('Advanced options').click();
  assert.equal(await page.getByLabel('CPU').inputValue(), '1');
  await page.getByRole('button', { name: 'work default' }).click();
  await page.getByText('Advanced options').click();
  assert.equal(await page.getByLabel('CPU').inputValue(), '3', 'what was typed is kept while another is shown');
  await button('Duplicate…').click();
  assert.equal(await page.locator('#ask-input').inputValue(), 'work-2');
  await answer('work', 'Duplicate');
  assert.match(await page.locator('#ask-error').textContent(), /already/);
  await answer('team/eu', 'Duplicate');
  assert.match(await page.locator('#ask-error').textContent(), /letters, digits/);
  await answer('team-eu', 'Duplicate');
  await button('Make default').click();
  await page.getByRole('button', { name: 'play' }).click();
  await button('Rename…').click();
  await answer('games', 'Rename');
  await page.getByRole('button', { name: 'work' }).first().click();
  await button('Delete…').click();
  await answer(null, 'Delete');
  await button('Save').click();
  await said(/Saved to/);
  const config = await home.config();
  assert.deepEqual([Object.keys(config.environments).sort(), config.default], [['games', 'team-eu'], 'team-eu']);
  assert.equal(config.environments['team-eu'].cpu, 3);
  assert.deepEqual(await home.secrets(), { 'team-eu': { apiKey: 'exe1.stored-token' } });
  clean();
});

test('export has no secret; import brings environments back and refuses what is none', async () => {
  await open(two);
  await button('Replace the stored exe.dev API key').click();
  await token().fill('exe1.typed');
  const [download] = await Promise.all([page.waitForEvent('download'), button('Export').click()]);
  const text = await readFile(await download.path(), 'utf8');
  assert.ok(!text.includes('exe1'), 'no secret');
  assert.equal(JSON.parse(text).environments.play.cpu, 1);
  const give = (name, content) => page.setInputFiles('#file', { name, mimeType: 'application/json', buffer: Buffer.from(content) });
  await give('a.json', text);
  await said(/Imported work-2, play-2/);
  assert.equal(await page.locator('#environments li').count(), 4);
  for (const [content, says] of [['{"vers', /is no JSON/], ['[1]', /holds no settings/], ['{"version": 9, "environments": {}}', /version 9/],
    ['{"version": 1, "environments": {"../x": {}}}', /no valid name/]]) {
    await give('bad.json', content);
    await said(says);
  }
  assert.equal(await page.locator('#environments li').count(), 4, 'nothing half-imported');
  await give('one.json', '{"cpu": 5, "apiKey": "exe1.imported"}');
  await answer('single', 'Import');
  await button('Save').click();
  await said(/Saved to/);
  assert.equal((await home.config()).environments.single.cpu, 5);
  assert.equal((await home.secrets()).single.apiKey, 'exe1.imported');
  clean();
});

test('validate puts the C validator\'s words beside each field', async () => {
  await open({ 'config.json': { version: 1, environments: { work: { reuseLease: true } } } });
  await page.getByLabel('SSH private key', { exact: true }).fill('PuTTY-User-Key-File-3: ssh-ed25519\n');
  await token().fill('exe1.x');
  await button('Validate').click();
  await said(/Not valid/);
  const key = page.locator('.jsf-field', { has: page.getByLabel('SSH private key', { exact: true }) });
  assert.match(await key.locator('.jsf-error').textContent(), /PuTTY/i);
  const reuse = page.locator('.jsf-field', { has: page.getByText('keeps', { exact: false }) }).locator('.jsf-warning:visible');
  assert.match((await reuse.allTextContents()).join(' '), /billed|running/);
  await shot(page, 'page-validate-errors');
  await assertAccessible(page, 'errors of the validator');
  await page.getByLabel('SSH private key', { exact: true }).fill('');
  await button('Validate').click();
  await said(/^Valid/);
  clean();
});

test('saving stops at what the form itself can see, and shows it', async () => {
  await open(two);
  await page.getByText('Advanced options').click();
  await page.getByLabel('CPU').fill('many');
  await page.getByText('Advanced options').click();
  await button('Save').click();
  await said(/correct the marked fields/);
  assert.equal(await page.locator('details').evaluate((d) => d.open), true);
  assert.equal((await home.config()).environments.work.cpu, 2);
  await page.getByRole('button', { name: 'play' }).click();
  await button('Save').click();
  await said(/“work” has fields to correct/);
  assert.equal(await page.locator('#name').textContent(), 'work');
  await shot(page, 'page-save-error');
});

test('a token is explained in words under its field', async () => {
  await open(two);
  await button('Replace the stored exe.dev API key').click();
  const shows = (pattern) => page.waitForFunction((p) => new RegExp(p).test(document.querySelector('.jsf-note').textContent), pattern.source);
  await token().fill(signedToken(home.home, { cmds: ['new', 'ls', 'rm'], exp: 2000000000 }));
  await shows(/commands: +new, ls, rm/);
  await shows(/expires: +2033-05-18/);
  await shot(page, 'page-token');
  await token().fill('exe0.bm8.AAAA');
  await shows(/exe0/);
  await token().fill('exe1.opaque');
  await shows(/nothing can be read/);
});

test('a file saved by somebody else meanwhile: told, kept, loaded on demand', async () => {
  await open(two);
  await page.getByText('Advanced options').click();
  await page.getByLabel('CPU').fill('7');
  await home.put('config.json', { version: 1, environments: { theirs: { cpu: 9 } } });
  await button('Save').click();
  await said(/changed by another program/);
  assert.deepEqual(Object.keys((await home.config()).environments), ['theirs']);
  assert.equal(await page.getByLabel('CPU').inputValue(), '7', 'what was typed is still there');
  await shot(page, 'page-conflict');
  await assertAccessible(page, 'conflict');
  await button('Load what is saved now').click();
  await said(/what is saved now/);
  assert.equal(await page.locator('#name').textContent(), 'theirs');
});

test('unknown settings of a newer exedev are told and survive a save', async () => {
  await open({ 'config.json': { version: 1, environments: { work: { novelty: { a: 1 }, cpu: 2 } } } });
  await page.getByText('Unknown here, kept as they are').waitFor();
  await button('Save').click();
  await said(/Saved to/);
  assert.deepEqual((await home.config()).environments.work.novelty, { a: 1 });
});

test('done ends the program, after a warning about what is not saved', async () => {
  await open(two);
  await page.getByText('Advanced options').click();
  await page.getByLabel('CPU').fill('7');
  await button('Done').click();
  await page.locator('#ask').getByRole('button', { name: 'Cancel' }).click();
  assert.equal(form.child.exitCode, null);
  await button('Done').click();
  await answer(null, 'Leave');
  await page.getByText('This page can be closed').waitFor();
  assert.deepEqual(await form.ended, { code: 0, signal: null });
});

test('when the program has ended the page says so and still exports', async () => {
  await open(two);
  await form.close();
  await button('Save').click();
  await said(/no longer running/);
  const [download] = await Promise.all([page.waitForEvent('download'), button('Export').click()]);
  assert.ok(JSON.parse(await readFile(await download.path(), 'utf8')).environments.work);
});

test('a person who types keeps it running; a page that is merely open does not', async () => {
  await open(two, { args: ['--no-browser', '--idle', '3'] });
  await page.getByText('Advanced options').click();
  const until = Date.now() + 6000;
  while (Date.now() < until) {
    await page.getByLabel('Comment', { exact: true }).pressSequentially('x', { delay: 0 });
    await page.waitForTimeout(200);
  }
  assert.equal(form.child.exitCode, null, 'twice the idle time of typing');
  assert.deepEqual(await form.ended, { code: 0, signal: null });
  assert.match(form.output, /nobody used it/);
});

test('dialogs: the keyboard alone, Escape leaves, focus comes back', async () => {
  await open(two);
  await button('New…').focus();
  await page.keyboard.press('Enter');
  await assertAccessible(page, 'dialog');
  await shot(page, 'page-dialog');
  await page.keyboard.press('Escape');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'create');
  await page.keyboard.press('Enter');
  await page.keyboard.type('quick');
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { name: 'quick' }).waitFor();
});

for (const scheme of ['light', 'dark']) {
  for (const [size, width] of [['wide', 1100], ['phone', 360]]) {
    test(`no accessibility violation: ${scheme}, ${size}`, async () => {
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height: 800 });
      await open(two);
      await shot(page, `page-essential-${scheme}-${size}`);
      await assertAccessible(page, 'essential');
      await page.getByText('Advanced options').click();
      await shot(page, `page-advanced-${scheme}-${size}`);
      await assertAccessible(page, 'advanced');
      assert.ok(await page.evaluate((w) => document.documentElement.scrollWidth <= w, width), 'no sideways scrolling');
    });
  }
}
