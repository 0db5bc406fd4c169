// The page of `exedev configure`: environments, and the buttons around <json-schema-form>.
const $ = (id) => document.getElementById(id);
const form = document.querySelector('json-schema-form');
const MINUTE = 60000;

let schema, generation, secretsIn, path;
let environments = []; // {name, from, settings, stored, cleared, problems}
let defaultName = null;
let current = null;
let changed = false; // since the last save, in any environment
let testing = false;

history.replaceState(null, '', '/'); // the one-time token has done its work

function el(tag, props, ...children) {
  const e = Object.assign(document.createElement(tag), props);
  e.append(...children);
  return e;
}

function say(text, kind = '') {
  $('message').textContent = text;
  $('message').className = kind;
  if (kind === 'bad') $('message').scrollIntoView({ block: 'nearest' });
}

// ---- talking to exedev ----

async function post(name, body) {
  let response;
  try {
    response = await fetch(`/api/${name}`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body ?? {}) });
  } catch {
    throw new Error('exedev configure is no longer running (it ends when idle). Nothing on this page is lost yet: Export it, run `exedev configure` again, then Import.');
  }
  if (!response.ok) {
    const text = await response.text();
    let why;
    try { why = JSON.parse(text).error; } catch { why = text; }
    throw Object.assign(new Error(why || `exedev answered ${response.status}`), { status: response.status });
  }
  return response;
}

const ask = async (name, body) => (await post(name, body)).json();

// One button at work: it cannot be pressed twice, and what goes wrong is told.
function work(id, label, job) {
  $(id).addEventListener('click', async () => {
    const button = $(id);
    if (button.getAttribute('aria-disabled')) return;
    button.setAttribute('aria-disabled', 'true');
    if (label) $('state').textContent = label;
    try {
      await job();
    } catch (e) {
      say(e.message, 'bad');
    }
    $('state').textContent = '';
    button.removeAttribute('aria-disabled');
  });
}

// ---- environments ----

function take(state) {
  if (state.schema) schema = state.schema;
  ({ generation, secretsIn, path } = state);
  defaultName = state.default ?? null;
  environments = state.environments.map((e) => ({ ...e, from: e.name, cleared: [], problems: {} }));
  changed = form.dirty = false;
}

// What is in the form belongs to the environment it was loaded from.
function harvest() {
  if (!current) return;
  current.settings = form.value;
  current.cleared = [...new Set([...current.cleared.filter((k) => !(k in current.settings)), ...form.cleared.map((p) => p.slice(1))])];
  current.problems = form.problems;
  changed ||= form.dirty;
}

const request = () => {
  harvest();
  return { from: current.from, settings: current.settings, cleared: current.cleared };
};

function draw() {
  $('environments').replaceChildren(...environments.map((e) => {
    const b = el('button', { type: 'button', className: 'environment', onclick: () => { harvest(); show(e); } }, e.name);
    if (e === current) b.setAttribute('aria-current', 'true');
    if (e.name === defaultName) b.append(' ', el('span', { className: 'badge' }, 'default'));
    return el('li', {}, b);
  }));
  $('name').textContent = current ? current.name : 'No environment yet';
  $('manage').hidden = $('work').hidden = !current;
  $('default').hidden = !current || current.name === defaultName;
}

function show(environment) {
  current = environment;
  $('test-panel').hidden = !testing;
  $('vms').replaceChildren();
  draw();
  if (!current) return say('Make one with “New…”, or import one: an environment is a named set of settings.');
  say('');
  form.load(schema, current.settings, current.stored.filter((k) => !current.cleared.includes(k)).map((k) => `/${k}`));
  explainToken();
}

function nameProblem(name, except) {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) return 'Use letters, digits, . _ or -, 64 at most, beginning with a letter or digit.';
  return environments.some((e) => e !== except && e.name === name) ? `There is an environment “${name}” already: choose another name.` : '';
}

// A question in a dialog: the name given, true, or undefined when it was cancelled.
function question(title, text, yes, { name, except, bad } = {}) {
  const wantsName = name !== undefined;
  $('ask-title').textContent = title;
  $('ask-text').textContent = text;
  $('ask-yes').textContent = yes;
  $('ask-yes').className = bad ? 'button bad' : 'button main';
  $('ask-field').hidden = !wantsName;
  $('ask-input').value = name ?? '';
  $('ask-error').hidden = true;
  $('ask').showModal();
  (wantsName ? $('ask-input') : $('ask-no')).focus();
  return new Promise((resolve) => {
    const end = (value) => { $('ask').close(); resolve(value); };
    const accept = () => {
      const problem = wantsName ? nameProblem($('ask-input').value, except) : '';
      $('ask-error').textContent = problem;
      $('ask-error').hidden = !problem;
      if (!problem) end(wantsName ? $('ask-input').value : true);
      else $('ask-input').focus();
    };
    $('ask-yes').onclick = accept;
    $('ask-input').onkeydown = (e) => { if (e.key === 'Enter') accept(); };
    $('ask-no').onclick = () => end();
    $('ask').oncancel = () => resolve();
  });
}

function freeName(base) {
  for (let i = 2; ; i++) if (!nameProblem(`${base}-${i}`)) return `${base}-${i}`;
}

function add(environment) {
  environments.push({ from: null, settings: {}, stored: [], cleared: [], problems: {}, ...environment });
  defaultName ??= environment.name;
  changed = true;
  show(environments.at(-1));
}

work('create', '', async () => {
  const name = await question('New environment', 'A short name for this set of settings, such as the account or the team.', 'Create',
    { name: environments.length ? '' : 'main' });
  if (!name) return;
  harvest();
  add({ name });
});

work('duplicate', '', async () => {
  harvest();
  const name = await question('Duplicate', `A copy of “${current.name}”, its secrets included.`, 'Duplicate', { name: freeName(current.name) });
  if (name) add({ ...structuredClone(current), name });
});

work('rename', '', async () => {
  const name = await question('Rename', `A new name for “${current.name}”.`, 'Rename', { name: current.name, except: current });
  if (!name || name === current.name) return;
  if (defaultName === current.name) defaultName = name;
  current.name = name;
  changed = true;
  draw();
});

work('default', '', async () => {
  defaultName = current.name;
  changed = true;
  draw();
  $('rename').focus();
});

work('remove', '', async () => {
  const sure = await question('Delete', `“${current.name}” and its stored secrets go away at the next save. VMs are not touched.`, 'Delete', { bad: true });
  if (!sure) return;
  environments = environments.filter((e) => e !== current);
  if (defaultName === current.name) defaultName = environments[0]?.name ?? null;
  changed = true;
  current = null;
  show(environments[0] ?? null);
});

// ---- import, export ----

work('export', '', async () => {
  harvest();
  const secrets = Object.keys(schema.properties).filter((k) => schema.properties[k].format === 'secret-ref');
  const out = { version: 1, default: defaultName, environments: {} };
  for (const e of environments) out.environments[e.name] = Object.fromEntries(Object.entries(e.settings).filter(([k]) => !secrets.includes(k)));
  const link = el('a', { download: 'exedev-settings.json', href: URL.createObjectURL(new Blob([`${JSON.stringify(out, null, 2)}\n`], { type: 'application/json' })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), MINUTE);
  say('Exported. Secrets are never part of an export.', 'good');
});

work('import', '', async () => $('file').click());

$('file').addEventListener('change', async () => {
  const file = $('file').files[0];
  $('file').value = '';
  if (!file) return;
  try {
    await importText(file.name, await file.text());
  } catch (e) {
    say(e.message, 'bad');
  }
});

const isObject = (v) => typeof v === 'object' && v !== null && !Array.isArray(v);

async function importText(file, text) {
  let data;
  try { data = JSON.parse(text); } catch (e) { throw new Error(`“${file}” is no JSON (${e.message}): choose a file that Export wrote. Nothing was changed.`); }
  if (!isObject(data)) throw new Error(`“${file}” holds no settings: choose a file that Export wrote. Nothing was changed.`);
  if (isObject(data.environments)) {
    if (data.version !== 1) throw new Error(`“${file}” is of version ${JSON.stringify(data.version)}, this page reads version 1. Nothing was changed.`);
    const bad = Object.entries(data.environments).find(([name, v]) => !isObject(v) || !/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name));
    if (bad) throw new Error(`“${file}”: the environment “${bad[0]}” has no valid name or no settings. Nothing was changed.`);
    harvest();
    const names = Object.entries(data.environments).map(([name, settings]) => {
      const free = nameProblem(name) ? freeName(name) : name;
      add({ name: free, settings });
      return free;
    });
    return say(`Imported ${names.join(', ') || 'nothing: the file has no environment'}. Look it over, then save.`, 'good');
  }
  const name = await question('Import', `“${file}” holds the settings of one environment. What shall it be called?`, 'Import', { name: environments.length ? '' : 'main' });
  if (!name) return;
  harvest();
  add({ name, settings: data });
  say(`Imported ${name}. Look it over, then save.`, 'good');
}

// ---- save, validate ----

work('save', 'Saving…', async () => {
  if (current && !form.reportValidity()) return say('Not saved: correct the marked fields first.', 'bad');
  harvest();
  const other = environments.find((e) => Object.keys(e.problems).length);
  if (other) {
    show(other);
    form.reportValidity();
    return say(`Not saved: “${other.name}” has fields to correct.`, 'bad');
  }
  const name = current?.name;
  try {
    take(await ask('save', { generation, default: defaultName, environments: environments.map(({ name: n, from, settings, cleared }) => ({ name: n, from, settings, cleared })) }));
  } catch (e) {
    if (e.status !== 409) throw e;
    say(e.message, 'bad');
    const again = el('button', { type: 'button', className: 'button', onclick: async () => {
      take(await ask('reload'));
      show(environments.find((x) => x.name === current?.name) ?? environments[0] ?? null);
      say('This is what is saved now.', 'good');
    } }, 'Load what is saved now');
    $('message').append(' ', again);
    return;
  }
  show(environments.find((e) => e.name === name) ?? environments[0] ?? null);
  say(`Saved to ${path}, secrets in ${secretsIn}.`, 'good');
});

work('validate', 'Validating…', async () => {
  if (!form.reportValidity()) return say('Correct the marked fields first.', 'bad');
  const answer = await ask('validate', request());
  form.errors = answer.errors;
  form.warnings = answer.warnings;
  const warned = Object.keys(answer.warnings).length;
  if (!form.showProblems(true)) return say('Not valid: see the marked fields.', 'bad');
  say(warned ? `Valid, with ${warned === 1 ? 'one remark' : `${warned} remarks`} beside the fields.` : 'Valid.', 'good');
});

let tokenTimer;

async function explainToken() {
  if (!schema.properties.apiKey) return;
  const of = current;
  try {
    const { words } = await ask('token', request());
    if (of === current) form.notes = { '/apiKey': words };
  } catch { /* told when something is asked for */ }
}

form.addEventListener('change', () => {
  $('state').textContent = '';
  clearTimeout(tokenTimer);
  tokenTimer = setTimeout(explainToken, 400);
});

// ---- test ----

const seconds = (ms) => (ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`);

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n');
    rest = parts.pop();
    for (const line of parts) if (line) yield JSON.parse(line);
  }
}

work('test', '', async () => {
  if (!form.reportValidity()) return say('Correct the marked fields first.', 'bad');
  say('');
  const body = request();
  $('steps').replaceChildren();
  $('verdict').textContent = 'Running: this makes a real VM, connects to it and deletes it.';
  $('verdict').className = '';
  $('test-panel').hidden = $('cancel').hidden = false;
  testing = true;
  let last;
  try {
    for await (const line of lines(await post('test', body))) {
      if (line.done) last = line;
      else {
        $('steps').append(el('li', { className: line.ok ? 'good' : 'bad' }, el('b', {}, `${line.ok ? '✓' : '✗'} ${line.step}`), ` ${line.text} `,
          el('span', { className: 'time' }, seconds(line.ms))));
      }
    }
    if (!last) throw new Error('The test was cut off: exedev configure ended.');
    $('verdict').textContent = last.cancelled ? `Cancelled. ${last.text}` : last.text || (last.ok ? 'It works.' : 'It failed.');
    $('verdict').className = last.ok ? 'good' : 'bad';
  } catch (e) {
    $('verdict').textContent = e.message;
    $('verdict').className = 'bad';
  }
  testing = false;
  $('cancel').hidden = true;
});

work('cancel', '', async () => {
  $('verdict').textContent = 'Cancelling: the VM is being deleted…';
  await ask('cancel');
});

// ---- VMs ----

function age(s) {
  if (s < 0) return 'unknown (made elsewhere)';
  const units = [[86400, 'day'], [3600, 'hour'], [60, 'minute'], [1, 'second']];
  const [size, name] = units.find(([u]) => s >= u) ?? units[3];
  const n = Math.floor(s / size);
  return `${n} ${name}${n === 1 ? '' : 's'}`;
}

async function listVms() {
  const { vms, others } = await ask('vms', request());
  const more = others ? ` ${others} other ${others === 1 ? 'VM does' : 'VMs do'} not and ${others === 1 ? 'is' : 'are'} not shown.` : '';
  if (!vms.length) return $('vms').replaceChildren(el('p', {}, `No VM carries our mark.${more}`));
  const head = el('tr', {}, ...['Name', 'Age', 'State', 'Made for', ''].map((t) => (t ? el('th', { scope: 'col' }, t) : el('td'))));
  const rows = vms.map((vm) => {
    const b = el('button', { type: 'button', className: 'button bad', onclick: async () => {
      if (!await question('Delete the VM', `${vm.name} and everything on its disk are deleted for good.`, 'Delete', { bad: true })) return;
      b.disabled = true;
      try {
        await ask('delete', { ...request(), name: vm.name });
        say(`${vm.name} is deleted.`, 'good');
        await listVms();
        $('list').focus();
      } catch (e) {
        b.disabled = false;
        say(e.message, 'bad');
      }
    } }, 'Delete');
    b.setAttribute('aria-label', `Delete ${vm.name}`);
    const cell = (label, ...content) => { const td = el('td', {}, ...content); td.dataset.label = label; return td; };
    return el('tr', {}, el('th', { scope: 'row' }, vm.name), cell('Age', age(vm.age)), cell('State', vm.status ?? 'not told'),
      cell('Made for', [vm.kind, vm.environment && `environment ${vm.environment}`, vm.run && `run ${vm.run}`].filter(Boolean).join(', ') || `marked by ${vm.mark}`),
      cell('', b));
  });
  $('vms').replaceChildren(el('table', {}, el('thead', {}, head), el('tbody', {}, ...rows)), el('p', {}, more));
}

work('list', '', listVms);

// ---- the page's own life ----

work('done', '', async () => {
  harvest();
  if (changed && !await question('Leave without saving?', 'There are changes that are not saved.', 'Leave', { bad: true })) return;
  await ask('done');
  changed = form.dirty = false;
  document.querySelector('.layout').replaceChildren(el('main', {}, el('p', {}, 'exedev configure has ended. This page can be closed.')));
  $('done').remove();
});

addEventListener('beforeunload', (e) => { if (changed || form.dirty) e.preventDefault(); });

// The server ends when nobody does anything: a page that is merely open is nobody.
let active = false;
for (const what of ['keydown', 'pointerdown', 'input']) addEventListener(what, () => { active = true; }, { passive: true });

try {
  const state = await ask('state');
  setInterval(() => {
    if (active) post('ping').catch((e) => say(e.message, 'bad'));
    active = false;
  }, Math.min(MINUTE, state.idleMs / 3));
  take(state);
  show(environments.find((e) => e.name === defaultName) ?? environments[0] ?? null);
} catch (e) {
  say(e.message, 'bad');
}
