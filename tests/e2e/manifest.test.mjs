// The package's manifest, as the host judges it.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { pluginManifestV1Schema } from '@paperclipai/shared';

const root = join(dirname(fileURLToPath(import.meta.url)), '../..');
const folder = join(process.env.EXEDEV_BUILD || join(root, 'build'), 'npm/paperclip-plugin-exe-dev');
const manifest = (await import(pathToFileURL(join(folder, 'dist/manifest.js')))).default;
const driver = manifest.environmentDrivers[0];
const fields = driver.configSchema.properties;

test("the host's own validator takes it", () => {
  const judged = pluginManifestV1Schema.safeParse(manifest);
  assert.deepEqual(judged.error?.issues ?? [], []);
});

test('what it would not take is noticed', () => {
  const wrong = structuredClone(manifest);
  wrong.environmentDrivers[0].supportsLoginPTY = true;
  assert.equal(pluginManifestV1Schema.safeParse(wrong).success, false);
});

test('identity, and a name that the host finds', async () => {
  const pkg = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8'));
  assert.equal(manifest.id, 'exedev.sandbox-provider');
  assert.equal(manifest.version, pkg.version);
  assert.match(pkg.name, /^paperclip-plugin-/);
  assert.equal(driver.driverKey, 'exe-dev');
  assert.equal(driver.kind, 'sandbox_provider');
  assert.equal(manifest.instanceConfigSchema, undefined);
});

test('a template is bound to a field that there is', () => {
  assert.ok(fields[driver.templateConfigBinding.field]);
  for (const field of [...driver.templateConfigBinding.unsetFields, ...driver.templateIdentityPaths]) assert.ok(fields[field], field);
});

test('every field has a title and a description, and nothing of ours leaks out', () => {
  for (const [key, p] of Object.entries(fields)) {
    assert.ok(p.title?.length > 2, key);
    assert.ok(p.description?.length > 20, key);
    assert.equal(p['x-exedev'], undefined, key);
  }
});

test('essential fields are always shown, the others are in one of four groups', () => {
  const shown = Object.keys(fields).filter((key) => !fields[key]['x-paperclip-advanced']);
  assert.deepEqual(shown.sort(), ['apiKey', 'sshPrivateKey']);
  const groups = new Set(Object.values(fields).map((p) => p['x-paperclip-group']).filter(Boolean));
  assert.deepEqual([...groups].sort(), ['API + runtime', 'SSH access', 'VM creation', 'VM resources']);
});

test('secrets are secrets, the key has several lines, the token one', () => {
  for (const key of ['apiKey', 'sshPrivateKey', 'registryAuth']) assert.equal(fields[key].format, 'secret-ref', key);
  assert.equal(fields.sshPrivateKey.maxLength, 8192);
  assert.ok(!(fields.apiKey.maxLength > 200));
  // A default of an optional secret would be submitted as a value.
  for (const key of ['apiKey', 'sshPrivateKey', 'registryAuth']) assert.equal('default' in fields[key], false);
});

test('scripts and prompts have room', () => {
  for (const key of ['setupScript', 'prompt', 'envText', 'sshKnownHosts']) {
    assert.ok(fields[key].format === 'textarea' || fields[key].maxLength > 200, key);
  }
});

test("every default is what the field itself takes", () => {
  for (const [key, p] of Object.entries(fields)) {
    if (!('default' in p)) continue;
    const kind = Array.isArray(p.default) ? 'array' : Number.isInteger(p.default) ? 'integer' : typeof p.default;
    assert.equal(kind, p.type, key);
    if (p.type === 'integer') assert.ok(p.default >= p.minimum && p.default <= p.maximum, key);
    if (p.enum) assert.ok(p.enum.includes(p.default), key);
  }
});
