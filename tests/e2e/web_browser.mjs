// Debian's Chromium with a fresh profile, and a bare server for the form's own files.
import { createServer } from 'node:http';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createRequire } from 'node:module';
import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

export const root = new URL('../../', import.meta.url).pathname;
const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

// Screenshots are kept when SHOTS names a folder.
export const shot = async (page, name) => {
  if (process.env.SHOTS) await page.screenshot({ path: join(process.env.SHOTS, `${name}.png`), fullPage: true });
};

export async function openBrowser(options = {}) {
  const profile = await mkdtemp(join(tmpdir(), 'exedev-chromium-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: '/usr/bin/chromium', headless: true, acceptDownloads: true,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'],
    viewport: { width: 1100, height: 900 }, ...options,
  });
  context.setDefaultTimeout(15000);
  return {
    context,
    close: async () => {
      await context.close();
      await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

export async function serveForm() {
  const page = `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
    <title>form</title><link rel="stylesheet" href="form.css"><script type="module" src="form.js"></script>
    <main style="padding:1rem"><h1>Form</h1><h2>Settings</h2><json-schema-form></json-schema-form></main>`;
  const types = { '.css': 'text/css', '.js': 'text/javascript' };
  const server = createServer(async (req, res) => {
    const name = req.url.slice(1);
    if (!['form.css', 'form.js'].includes(name)) return res.writeHead(200, { 'content-type': 'text/html' }).end(page);
    res.writeHead(200, { 'content-type': types[name.slice(name.lastIndexOf('.'))] }).end(await readFile(join(root, 'web', name)));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => new Promise((r) => { server.closeAllConnections(); server.close(r); }) };
}

// Every rule of WCAG 2.2 A and AA and of good practice that axe-core knows.
export async function assertAccessible(page, what) {
  if (!await page.evaluate(() => 'axe' in window)) await page.evaluate(axe);
  const { violations, passes } = await page.evaluate(() => window.axe.run(document));
  assert.ok(passes.length > 10, `axe-core looked at something (${what})`);
  assert.deepEqual(violations.map((v) => `${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join(' | ')}`), [], what);
}
