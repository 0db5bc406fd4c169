// The custom element by itself, in a real browser: web/form.js and web/form.css, any schema.
import { test, before, after, beforeEach } from 'node:test';
import assert from 'node:assert/strict';
import { readFile, stat } from 'node:fs/promises';
import { assertAccessible, openBrowser, root, serveForm, shot } from './web_browser.mjs';

const schema = JSON.parse(await readFile(new URL('fixtures/form.schema.json', import.meta.url), 'utf8'));
let browser, server, page;

before(async () => {
  browser = await openBrowser();
  server = await serveForm();
  page = await browser.context.newPage();
});
after(async () => {
  await browser?.close();
  await server?.close();
});
beforeEach(async () => {
  await page.setViewportSize({ width: 1100, height: 900 });
  await page.goto(server.url);
});

const load = (s = schema, value, stored) => page.evaluate(([sc, v, st]) => {
  document.querySelector('json-schema-form').load(sc, v, st);
}, [s, value, stored]);
const value = () => page.evaluate(() => document.querySelector('json-schema-form').value);
const problems = () => page.evaluate(() => document.querySelector('json-schema-form').problems);
const report = () => page.evaluate(() => document.querySelector('json-schema-form').reportValidity());
const one = (property, more) => ({ type: 'object', properties: { x: property }, ...more });
const errorOf = (label) => page.getByLabel(label, { exact: true }).first().evaluate((el) =>
  (el.getAttribute('aria-describedby') || '').split(' ').map((id) => document.getElementById(id)).filter((e) => e?.matches('.jsf-error'))
    .map((e) => e.textContent).join(''));
const focused = () => page.evaluate(() => document.activeElement.labels?.[0]?.textContent || document.activeElement.textContent);

test('the form weighs less than 40 kB with everything in web/', async () => {
  const sizes = await Promise.all(['form.js', 'form.css', 'index.html'].map(async (f) => (await stat(`${root}web/${f}`)).size));
  assert.ok(sizes.reduce((a, b) => a + b) < 40000, `${sizes}`);
});

test('what is empty is left out, defaults stay, constants are there', async () => {
  await load();
  assert.deepEqual(await value(), { policy: 'accept-new', kind: 'sandbox', noisy: true, cpu: 4, memory: '4GB' });
});

test('a field with a default keeps it when emptied, one without is left out again', async () => {
  await load();
  await page.getByText('Advanced options').click();
  await page.getByLabel('CPUs').fill('');
  await page.getByLabel('Nick name').fill('abc');
  await page.getByLabel('Nick name').fill('');
  await page.getByLabel('Ratio').fill('0.5');
  assert.equal((await value()).ratio, 0.5);
  await page.getByLabel('Ratio').fill('');
  const v = await value();
  assert.equal(v.cpu, 4);
  assert.ok(!('nickName' in v) && !('ratio' in v));
});

test('every type gives back its own type', async () => {
  await load();
  await page.getByLabel('Level').selectOption('2');
  await page.getByLabel('Colour').selectOption('green');
  await page.getByLabel('Ratio').fill('0.75');
  await page.getByLabel('Nick name').fill('bloggy');
  await page.getByLabel('Keep the machine').check();
  await page.getByLabel('Noisy').uncheck();
  await page.getByRole('button', { name: 'Add item to Days' }).click();
  await page.getByLabel('Days 1').selectOption('Tue');
  await page.getByLabel('Anything').fill('{"a": [1, null]}');
  await page.getByLabel('Link').fill('https://example.com/a');
  const v = await value();
  assert.deepEqual([v.level, v.colour, v.ratio, v.nickName, v.reuse, v.noisy, v.days, v.anything, v.link],
    [2, 'green', 0.75, 'bloggy', true, false, ['Tue'], { a: [1, null] }, 'https://example.com/a']);
});

test('an optional enum has a blank row, and numbers in it stay numbers', async () => {
  await load(one({ enum: [10, 'ten', null] }));
  assert.deepEqual(await page.getByLabel('X').locator('option').allTextContents(), ['', '10', 'ten', 'none']);
  assert.deepEqual(await value(), {});
  await page.getByLabel('X').selectOption({ label: '10' });
  assert.deepEqual(await value(), { x: 10 });
  await page.getByLabel('X').selectOption({ label: 'none' });
  assert.deepEqual(await value(), { x: null });
  await page.getByLabel('X').selectOption('');
  assert.deepEqual(await value(), {});
  await load(one({ oneOf: [{ const: 1, title: 'One' }, { const: 2, title: 'Two' }] }, { required: ['x'] }), { x: 2 });
  assert.deepEqual(await page.getByLabel('X').locator('option').allTextContents(), ['One', 'Two']);
  assert.deepEqual(await value(), { x: 2 });
});

test('lists: add, remove, nested, blanks dropped, focus follows', async () => {
  await load();
  await page.getByRole('button', { name: 'Add item to Tags' }).click();
  assert.equal(await focused(), 'Tags 1');
  await page.keyboard.type('one');
  await page.getByRole('button', { name: 'Add item to Tags' }).click();
  await page.getByRole('button', { name: 'Add item to Tags' }).click();
  await page.keyboard.type('three');
  assert.deepEqual((await value()).tags, ['one', 'three']);
  await page.getByRole('button', { name: 'Remove item 1 of Tags' }).click();
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Remove item 1 of Tags');
  assert.deepEqual((await value()).tags, ['three']);
  await page.getByRole('button', { name: 'Add item to Mounts' }).click();
  await page.getByLabel('Path').fill('/data');
  await page.getByRole('button', { name: 'Add item to Ports' }).click();
  await page.keyboard.type('80');
  assert.deepEqual((await value()).mounts, [{ path: '/data', ports: [80] }]);
});

test('free keys: names are checked, twins refused, nothing dropped silently', async () => {
  await load(schema, { env: { A: '1', B: '2' } });
  assert.deepEqual((await value()).env, { A: '1', B: '2' });
  const box = page.locator('fieldset', { has: page.getByText('Environment', { exact: true }) });
  await box.getByLabel('Name').nth(1).fill('A');
  assert.match(await box.locator('.jsf-error:visible').first().textContent(), /there twice/);
  assert.match((await problems())['/env'], /there twice/);
  await box.getByLabel('Name').nth(1).fill('2x');
  assert.match((await problems())['/env'], /no valid name/);
  await box.getByLabel('Name').nth(1).fill('');
  assert.match((await problems())['/env'], /Give this entry a name/);
  await box.getByLabel('Name').nth(1).fill('C');
  assert.deepEqual((await value()).env, { A: '1', C: '2' });
});

test('fixed and free keys in one object, at the root and below', async () => {
  const mixed = { type: 'object', properties: { a: { type: 'string' } }, additionalProperties: { type: 'integer' } };
  await load({ ...mixed, properties: { ...mixed.properties, x: mixed } }, { a: 's', n: 1, x: { a: 't', m: 2 } });
  assert.deepEqual(await value(), { a: 's', n: 1, x: { a: 't', m: 2 } });
  await page.getByLabel('Value 1').first().fill('2.5');
  assert.deepEqual(Object.keys(await problems()), ['/x/m']);
});

test('examples are suggestions, a constant is shown or can be chosen', async () => {
  await load(one({ type: 'string', examples: ['one', 'two'] }));
  const list = await page.getByLabel('X').getAttribute('list');
  assert.deepEqual(await page.locator(`#${list} option`).evaluateAll((o) => o.map((e) => e.value)), ['one', 'two']);
  await load(one({ const: 7 }));
  assert.deepEqual(await value(), {});
  await page.getByLabel('X: 7').check();
  assert.deepEqual(await value(), { x: 7 });
  await load(one({ const: 7 }, { required: ['x'] }));
  assert.deepEqual(await value(), { x: 7 });
});

test('a nested group is left out when empty and owes its required fields when not', async () => {
  await load(one({ type: 'object', title: 'Proxy', required: ['host'], properties: { host: { type: 'string' }, port: { type: 'integer' } } }));
  assert.deepEqual(await value(), {});
  assert.deepEqual(await problems(), {});
  await page.getByLabel('Port').fill('80');
  assert.deepEqual(await value(), { x: { port: 80 } });
  assert.match((await problems())['/x/host'], /required/);
});

test('errors name the place by JSON pointer and say what to do', async () => {
  await load(schema, { 'env': { 'A': '1' }, nickName: 'Abc', ratio: 0.3, tags: ['a', 'a'], mounts: [{ ports: [1, 'x'] }], level: 9, link: 'nope' });
  const p = await problems();
  assert.deepEqual(Object.keys(p).sort(), ['/apiKey', '/colour', '/level', '/link', '/mounts/0/path', '/mounts/0/ports/1', '/nickName', '/ratio', '/tags']);
  assert.match(p['/apiKey'], /Fill in “API token”/);
  assert.match(p['/colour'], /Choose one/);
  assert.match(p['/level'], /choose another/);
  assert.match(p['/nickName'], /write it like “bloggy”/);
  assert.match(p['/ratio'], /multiple of 0.25, such as 0.25 or 0.5/);
  assert.match(p['/tags'], /there twice: remove one/);
  assert.match(p['/mounts/0/ports/1'], /no number/);
  assert.match(p['/link'], /https:/);
  await load({ type: 'object', properties: { 'a/b~c': { type: 'string', minLength: 2 } } }, { 'a/b~c': 'x' });
  assert.deepEqual(Object.keys(await problems()), ['/a~1b~0c']);
});

test('number rules', async () => {
  const cases = [
    [{ type: 'integer' }, '2.5', /whole number/], [{ type: 'integer' }, 'abc', /no number/], [{ type: 'integer' }, '9007199254740993', /too large to be kept/],
    [{ type: 'number', minimum: 3 }, '2', /3 or more/], [{ type: 'number', maximum: 3 }, '4', /3 or less/],
    [{ type: 'number', exclusiveMinimum: 3 }, '3', /more than 3/], [{ type: 'number', exclusiveMaximum: 3 }, '3', /less than 3/],
    [{ type: 'integer', multipleOf: 5 }, '12', /10 or 15/], [{ type: 'number' }, '1e3', null], [{ type: 'number', multipleOf: 0.1 }, '0.3', null],
    [{ type: 'number' }, '-.5', null],
  ];
  for (const [property, text, says] of cases) {
    await load(one(property));
    await page.getByLabel('X').fill(text);
    const p = (await problems())['/x'];
    if (says) assert.match(p, says, text);
    else assert.equal(p, undefined, text);
    assert.equal(await errorOf('X'), p ?? '', 'and it is shown while typing');
  }
});

test('counts of lists', async () => {
  await load(one({ type: 'array', items: { type: 'string' }, minItems: 2, maxItems: 3 }), { x: ['a'] });
  assert.match((await problems())['/x'], /At least 2 are needed, there is 1: add 1 more/);
  await load(one({ type: 'array', items: { type: 'string' }, maxItems: 1 }), { x: ['a', 'b'] });
  assert.match((await problems())['/x'], /At most 1 is allowed, there are 2: remove 1/);
});

test('a required field is told on leaving it, and the text goes when it is filled', async () => {
  await load();
  const field = page.getByRole('textbox', { name: 'API token required' });
  await field.fill('x');
  await field.fill('');
  await field.blur();
  assert.match(await errorOf('API token required'), /required/);
  assert.equal(await field.getAttribute('aria-invalid'), 'true');
  await field.fill('exe1.abc');
  assert.equal(await errorOf('API token required'), '');
  assert.equal(await field.getAttribute('aria-invalid'), null);
});

test('a secret is masked and can be shown', async () => {
  await load();
  const field = page.locator('input.jsf-secret').first();
  await field.fill('exe1.abc');
  assert.equal(await field.getAttribute('type'), 'password');
  await page.getByRole('button', { name: 'Show API token' }).click();
  assert.equal(await field.getAttribute('type'), 'text');
  await page.getByRole('button', { name: 'Hide API token' }).click();
  assert.equal(await field.getAttribute('type'), 'password');
});

test('a long secret is a masked monospaced box that takes a dropped key file and never cuts', async () => {
  await load();
  const box = page.getByLabel('SSH private key', { exact: true });
  assert.equal(await box.evaluate((e) => e.tagName), 'TEXTAREA');
  const style = await box.evaluate((e) => getComputedStyle(e).fontFamily);
  assert.match(style, /monospace/);
  const key = `-----BEGIN X-----\n${'a'.repeat(60)}\n-----END X-----\n`;
  await box.evaluate((el, text) => {
    const data = new DataTransfer();
    data.items.add(new File([text], 'id_ed25519'));
    el.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
  }, key);
  await page.waitForFunction(() => document.querySelector('textarea.jsf-secret').value !== '');
  assert.equal((await value()).sshPrivateKey, key);
  await box.fill('');
  await box.evaluate((el, text) => {
    const data = new DataTransfer();
    data.items.add(new File([text], 'id_ed25519'));
    el.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }));
  }, key);
  await page.waitForFunction(() => document.querySelector('textarea.jsf-secret').value !== '');
  assert.equal((await value()).sshPrivateKey, key, 'a pasted file');
  assert.equal(await box.evaluate((e) => getComputedStyle(e).webkitTextSecurity), 'disc');
  await page.getByRole('button', { name: 'Show SSH private key' }).click();
  assert.equal(await box.evaluate((e) => getComputedStyle(e).webkitTextSecurity), 'none');
  const long = 'k'.repeat(9000);
  await box.fill(long);
  assert.equal((await value()).sshPrivateKey, long, 'not cut');
  assert.match(await errorOf('SSH private key'), /9000 characters, at most 8192 .*Nothing was cut/);
});

test('a file that is no text is refused with the reason', async () => {
  await load();
  await page.setInputFiles('input[type=file]', { name: 'key.bin', mimeType: 'application/octet-stream', buffer: Buffer.from([0, 1, 2]) });
  await page.getByText('“key.bin” is no text file').waitFor();
  assert.ok(!('sshPrivateKey' in await value()));
});

test('a stored secret can be kept, replaced and cleared', async () => {
  await load(schema, { colour: 'red' }, ['/apiKey', '/sshPrivateKey']);
  const cleared = () => page.evaluate(() => document.querySelector('json-schema-form').cleared);
  assert.deepEqual(await problems(), {}, 'stored counts as filled in');
  assert.ok(!('apiKey' in await value()));
  await page.getByRole('button', { name: 'Replace the stored API token' }).click();
  await page.keyboard.type('exe1.new');
  assert.equal((await value()).apiKey, 'exe1.new');
  await page.getByRole('button', { name: 'Keep the stored one: API token' }).click();
  assert.ok(!('apiKey' in await value()));
  await page.getByRole('button', { name: 'Clear the stored SSH private key' }).click();
  assert.deepEqual(await cleared(), ['/sshPrivateKey']);
  await page.getByRole('button', { name: 'Undo clearing SSH private key' }).click();
  assert.deepEqual(await cleared(), []);
  await page.getByRole('button', { name: 'Clear the stored API token' }).click();
  assert.match((await problems())['/apiKey'], /required/);
  await shot(page, 'form-stored-secret');
});

test('advanced fields are behind one disclosure, under their groups, which opens for an error', async () => {
  await load(schema, { apiKey: 'x', colour: 'red', memory: 'lots' });
  const box = page.locator('details');
  assert.equal(await box.count(), 1);
  assert.equal(await box.evaluate((d) => d.open), false);
  assert.deepEqual(await box.locator('h3').allTextContents(), ['VM resources', 'SSH access', 'VM creation']);
  assert.equal(await page.getByLabel('Login user').isVisible(), false);
  assert.equal(await report(), false);
  assert.equal(await box.evaluate((d) => d.open), true);
  assert.equal(await focused(), 'Memory');
  assert.match(await errorOf('Memory'), /like “4GB”/);
  await load(one({ type: 'string' }));
  assert.equal(await page.locator('details').count(), 0);
});

test('several errors are listed with links, and the focus goes to the first', async () => {
  await load();
  await page.getByLabel('Ratio').fill('7');
  assert.equal(await report(), false);
  assert.equal(await focused(), 'API token required');
  const links = page.locator('.jsf-summary a');
  assert.deepEqual(await links.allTextContents(), ['API token', 'Colour', 'Ratio']);
  await links.nth(2).click();
  assert.equal(await focused(), 'Ratio');
});

test('errors from outside are shown at their pointer, or at the nearest place above', async () => {
  await load(schema, { proxy: { host: 'a' } });
  await page.evaluate(() => {
    const form = document.querySelector('json-schema-form');
    form.errors = { '/proxy/login/user': 'No such user.', '/env/NOPE': 'Not allowed.', '/cpu': 'Too many.' };
    form.warnings = { '/reuse': 'This costs.' };
    form.showProblems(true);
  });
  assert.equal(await errorOf('User'), 'No such user.');
  assert.equal(await page.locator('fieldset', { has: page.getByText('Environment', { exact: true }) }).locator('.jsf-error').first().textContent(), 'Not allowed.');
  assert.equal(await page.locator('details').evaluate((d) => d.open), true);
  assert.ok(await page.getByText('This costs.').isVisible());
});

test('what the schema does not know, or another type holds, is kept', async () => {
  const odd = { novel: { deep: [1] }, tags: 'a,b', env: ['x'], reuse: 'yes', policy: 'accept-new', kind: 'sandbox', noisy: true, cpu: 4, memory: '4GB' };
  await load(schema, odd);
  assert.deepEqual(await value(), odd);
  assert.match((await problems())['/tags'], /of type string, it must be array/);
  await page.getByRole('button', { name: 'Remove the unknown setting novel' }).click();
  assert.ok(!('novel' in await value()));
});

test('null, allOf, references and a schema that contains itself', async () => {
  await load({ type: 'object', allOf: [{ properties: { a: { type: ['string', 'null'] } } }, { properties: { b: { $ref: '#/$defs/n' } }, required: ['b'] }],
    $defs: { n: { type: 'integer' }, tree: {} } }, { a: null, b: 3 });
  assert.deepEqual(await value(), { b: 3 });
  await load({ type: 'object', properties: { t: { $ref: '#/$defs/tree' } },
    $defs: { tree: { type: 'object', properties: { name: { type: 'string' }, next: { $ref: '#/$defs/tree' } } } } }, { t: { name: 'a', next: { name: 'b' } } });
  assert.deepEqual(await value(), { t: { name: 'a', next: { name: 'b' } } });
});

test('text is text: nothing of a schema or a value becomes markup', async () => {
  const evil = '<img src=x onerror="window.hit=1">';
  await load({ type: 'object', properties: { [evil]: { type: 'string', title: evil, description: evil, default: evil, examples: [evil] },
    e: { enum: [evil] } } }, { [`${evil}2`]: evil });
  await report();
  assert.equal(await page.locator('json-schema-form img').count(), 0);
  assert.equal(await page.evaluate(() => window.hit), undefined);
});

test('the keyboard reaches everything in reading order', async () => {
  await load(schema, {}, ['/apiKey']);
  await page.getByRole('button', { name: 'Replace the stored API token' }).focus();
  const seen = [];
  for (let i = 0; i < 12; i++) {
    await page.keyboard.press('Tab');
    seen.push(await page.evaluate(() => document.activeElement.getAttribute('aria-label') || document.activeElement.labels?.[0]?.textContent));
  }
  assert.deepEqual(seen.slice(0, 6), ['Clear the stored API token', 'SSH private key', 'Show SSH private key', 'Choose file… for SSH private key',
    'Colour required', 'Level']);
  await page.locator('summary').focus();
  await page.keyboard.press('Enter');
  assert.equal(await page.locator('details').evaluate((d) => d.open), true);
});

for (const scheme of ['light', 'dark']) {
  test(`no accessibility violation, ${scheme}: plain, filled, in error, on a phone`, async () => {
    await page.emulateMedia({ colorScheme: scheme });
    await load();
    await assertAccessible(page, 'plain');
    await shot(page, `form-essential-${scheme}`);
    await load(schema, { apiKey: 'x', tags: ['a', 'b'], env: { A: '1' }, mounts: [{ path: '/', ports: [1] }], novel: 1, nickName: 'NO', ratio: 3, memory: 'x' },
      ['/sshPrivateKey']);
    await page.locator('summary').click();
    await assertAccessible(page, 'filled and open');
    await shot(page, `form-advanced-${scheme}`);
    await report();
    await assertAccessible(page, 'errors');
    await shot(page, `form-errors-${scheme}`);
    await page.setViewportSize({ width: 360, height: 740 });
    await assertAccessible(page, 'phone');
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 360), 'nothing is wider than the phone');
    await shot(page, `form-phone-${scheme}`);
    await page.emulateMedia({ colorScheme: null });
  });
}
