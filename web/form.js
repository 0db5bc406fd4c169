// <json-schema-form>: draws a form for any JSON Schema object and gives back what was filled in.
//
//   form.load(schema, value, stored)   stored: JSON pointers of secrets that are kept elsewhere
//   form.value                         without what is empty, and without stored secrets left alone
//   form.cleared                       pointers of stored secrets to forget
//   form.reportValidity()              checks, shows, focuses the first problem
//   form.errors / .warnings / .notes = {pointer: text}   shown beside the fields; showProblems(true) focuses
//   "change" bubbles after every edit; form.dirty says whether there was one since load.

const words = (key) => key.replace(/([a-z0-9])([A-Z])/g, '$1 $2').replace(/[_-]+/g, ' ')
  .replace(/^./, (c) => c.toUpperCase()).replace(/ [A-Z](?=[a-z])/g, (c) => c.toLowerCase());
const escaped = (key) => String(key).replace(/~/g, '~0').replace(/\//g, '~1');
const isObject = (v) => typeof v === 'object' && v !== null && !Array.isArray(v);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const chars = (s) => [...s].length;
const plural = (n, one) => `${n} ${one}${n === 1 ? '' : 's'}`;
let serial = 0;

function h(tag, props, ...children) {
  const el = document.createElement(tag);
  for (const [k, v] of Object.entries(props || {})) {
    if (k.startsWith('on')) el.addEventListener(k.slice(2), v);
    else if (v === true) el.setAttribute(k, '');
    else if (v !== false && v != null) el.setAttribute(k, v);
  }
  el.append(...children.filter((c) => c != null && c !== false));
  return el;
}

const button = (text, label, onclick) =>
  h('button', { type: 'button', class: 'jsf-button', 'aria-label': label !== text && label, onclick }, text);

// Local references and allOf are put in place; no object (true) allows anything.
function resolve(schema, root, depth = 0) {
  if (!isObject(schema)) return {};
  if (depth > 16) return { description: schema.description };
  if (typeof schema.$ref === 'string' && schema.$ref.startsWith('#')) {
    const target = schema.$ref.slice(1).split('/').slice(1).reduce(
      (at, part) => at?.[decodeURIComponent(part).replace(/~1/g, '/').replace(/~0/g, '~')], root);
    const { $ref, ...rest } = schema;
    return resolve({ ...target, ...rest }, root, depth + 1);
  }
  if (Array.isArray(schema.allOf)) {
    const { allOf, ...rest } = schema;
    return [...allOf, rest].map((s) => resolve(s, root, depth + 1)).reduce((all, s) => ({
      ...all, ...s,
      ...(all.properties || s.properties) && { properties: { ...all.properties, ...s.properties } },
      ...(all.required || s.required) && { required: [...all.required || [], ...s.required || []] },
    }), {});
  }
  return schema;
}

function choices(schema) {
  if (Array.isArray(schema.enum)) return schema.enum.map((value) => ({ value, title: String(value ?? 'none') }));
  const list = schema.oneOf || schema.anyOf;
  return Array.isArray(list) && list.length && list.every((s) => isObject(s) && 'const' in s) &&
    list.map((s) => ({ value: s.const, title: s.title || String(s.const) }));
}

function typeOf(schema) {
  const t = Array.isArray(schema.type) ? schema.type.filter((x) => x !== 'null') : [schema.type];
  if (t.length !== 1) return undefined;
  return t[0] || (schema.properties || schema.additionalProperties ? 'object' : schema.items ? 'array' :
    schema.format === 'secret-ref' ? 'string' : undefined);
}

// One value of the form. `key` is its place in the parent: a name or an index.
class Field {
  constructor(form, schema, parent, key, required, label) {
    Object.assign(this, { form, schema, parent, key, required, touched: false, error: '', warning: '' });
    this.id = `jsf${++serial}`;
    this.label = label || schema.title || words(String(key ?? ''));
    this.children = [];
  }
  get pointer() { return this.parent ? `${this.parent.pointer}/${escaped(this.key)}` : ''; }
  get empty() { return this.value === undefined; }

  // What a single control stands in: label, description, control, messages.
  frame(control, extra, { group = false, before } = {}) {
    const id = this.id;
    this.control = control;
    this.errorEl = h('p', { class: 'jsf-error', id: `${id}e`, hidden: true });
    this.warnEl = h('p', { class: 'jsf-warning', id: `${id}w`, hidden: true });
    this.noteEl = h('p', { class: 'jsf-note', id: `${id}n`, hidden: true });
    const mark = this.required && !group && h('span', { class: 'jsf-required' }, 'required');
    const about = this.schema.description &&
      h('p', { class: 'jsf-description', id: `${id}d` }, this.schema.description);
    if (group) {
      const box = control.querySelector(':scope > .jsf-body');
      this.el = control;
      if (this.label) control.prepend(h('legend', {}, this.label));
      box.before(...[about, this.errorEl, this.warnEl, this.noteEl].filter(Boolean));
      control.id = id;
      control.tabIndex = -1;
    } else {
      control.id = id;
      const title = this.label && h('label', { for: id }, this.label, mark && ' ', mark);
      this.el = h('div', { class: 'jsf-field' }, !before && title, !before && about,
        before ? h('div', { class: 'jsf-check' }, control, title) : control, before && about,
        extra, this.errorEl, this.warnEl, this.noteEl);
      if (this.required) control.setAttribute('aria-required', 'true');
    }
    this.describe();
    return this.el;
  }
  describe() {
    const ids = [this.schema.description && `${this.id}d`, this.error && `${this.id}e`, this.warning && `${this.id}w`,
      this.noteEl.textContent && `${this.id}n`];
    const by = ids.filter(Boolean).join(' ');
    if (by) this.control.setAttribute('aria-describedby', by);
    else this.control.removeAttribute('aria-describedby');
  }
  show(error, warning = this.warning) {
    this.error = error || '';
    this.warning = warning || '';
    for (const [el, text] of [[this.errorEl, this.error], [this.warnEl, this.warning]]) {
      el.textContent = text;
      el.hidden = !text;
    }
    this.el.classList.toggle('jsf-invalid', !!this.error);
    if (this.control.matches('input, textarea, select')) {
      if (this.error) this.control.setAttribute('aria-invalid', 'true');
      else this.control.removeAttribute('aria-invalid');
    }
    this.describe();
  }
  // An emptied required field is told on leaving it, everything else while typing.
  edited(leaving) {
    if (!leaving) this.form.changed();
    if (!this.empty || this.touched || leaving && this.form.dirty) this.show(this.problem(), '');
    if (leaving) this.touched = true;
    for (let up = this.parent; up; up = up.parent) if (up.error) up.show(up.problem());
  }
  listen(control) {
    control.addEventListener('input', () => this.edited(false));
    control.addEventListener('blur', () => this.edited(true));
    return control;
  }
  focus() {
    const el = this.control.matches('fieldset') ? this.control : this.focusOn || this.control;
    el.focus();
    el.scrollIntoView({ block: 'center' });
  }
  problem() {
    if (this.empty) return this.required && !('default' in this.schema) ? this.missing() : '';
    return this.check(this.value);
  }
  missing() { return `Fill in “${this.label}”: it is required.`; }
  check() { return ''; }
  prune() { this.children.forEach((c) => c.prune()); }
  *all() {
    yield this;
    for (const c of this.children) yield* c.all();
  }
}

class Text extends Field {
  build(value) {
    const s = this.schema;
    const many = s.format === 'textarea' || s.maxLength > 200 && !s.enum;
    const list = Array.isArray(s.examples) && s.examples.length && !many &&
      h('datalist', { id: `${this.id}l` }, ...s.examples.map((x) => h('option', { value: String(x) })));
    const props = { class: 'jsf-input', autocomplete: 'off', spellcheck: 'false',
      placeholder: 'default' in s && s.default !== '' ? `default: ${s.default}` :
        s.examples?.length ? `for example ${String(s.examples[0]).split('\n')[0]}` : null };
    this.input = this.listen(many ? h('textarea', { ...props, rows: 4 }) :
      h('input', { ...props, type: 'text', list: list && list.id, inputmode: this.inputmode }));
    this.input.value = value ?? s.default ?? '';
    return this.frame(this.input, list);
  }
  get text() { return this.input.value; }
  get value() { return this.text === '' ? this.schema.default : this.text; }
  check(v) {
    const s = this.schema, n = chars(v);
    if (n > s.maxLength) {
      return `Too long: ${plural(n, 'character')}, at most ${s.maxLength} are allowed. Nothing was cut: shorten it.`;
    }
    if (n < s.minLength) return `Too short: ${plural(n, 'character')}, at least ${s.minLength} are needed.`;
    if (s.pattern && !matches(s.pattern, v)) {
      return `Not in the expected form: ${s.examples?.length ? `write it like “${s.examples[0]}”.` :
        `it must match ${s.pattern}`}`;
    }
    if ((s.format === 'uri' || s.format === 'url') && !URL.canParse(v)) {
      return `“${v}” is no complete address: write it like https://example.com/.`;
    }
    return '';
  }
}

function matches(pattern, text) {
  for (const flags of ['u', '']) {
    try { return new RegExp(pattern, flags).test(text); } catch { /* not in this dialect */ }
  }
  return true;
}

class Num extends Text {
  get inputmode() { return typeOf(this.schema) === 'integer' ? 'numeric' : 'decimal'; }
  get value() {
    const t = this.text.trim();
    if (t === '') return this.schema.default;
    return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(t) && Number.isFinite(+t) ? +t : t;
  }
  check(v) {
    const s = this.schema;
    if (typeof v !== 'number') return `“${v}” is no number: write digits, such as ${s.minimum ?? 4}.`;
    if (typeOf(s) === 'integer' && !Number.isInteger(v)) return `${v} is no whole number: leave out the fraction.`;
    if (Number.isInteger(v) && !Number.isSafeInteger(v)) return `${v} is too large to be kept exactly: use a smaller number.`;
    if (v < s.minimum) return `Too small: it must be ${s.minimum} or more.`;
    if (v <= s.exclusiveMinimum) return `Too small: it must be more than ${s.exclusiveMinimum}.`;
    if (v > s.maximum) return `Too large: it must be ${s.maximum} or less.`;
    if (v >= s.exclusiveMaximum) return `Too large: it must be less than ${s.exclusiveMaximum}.`;
    if (s.multipleOf > 0) {
      const steps = v / s.multipleOf;
      if (Math.abs(steps - Math.round(steps)) > 1e-9 * Math.max(1, Math.abs(steps))) {
        return `It must be a multiple of ${s.multipleOf}, such as ${Number((Math.floor(steps) * s.multipleOf).toPrecision(12))} or ${
          Number((Math.ceil(steps) * s.multipleOf).toPrecision(12))}.`;
      }
    }
    return '';
  }
}

// Masked, never cut; one that is stored elsewhere is only known to be there.
class Secret extends Text {
  build(value) {
    const s = this.schema, many = s.maxLength > 200;
    this.stored = this.form.isStored(this.pointer) && value === undefined;
    this.state = this.stored ? 'stored' : 'edit';
    const props = { class: `jsf-input jsf-secret${many ? ' jsf-mono jsf-masked' : ''}`, autocomplete: 'off', spellcheck: 'false',
      autocapitalize: 'off' };
    this.input = this.listen(many ? h('textarea', { ...props, rows: 5, wrap: 'off',
      placeholder: 'Paste the text, or drop the file here' }) : h('input', { ...props, type: 'password' }));
    this.input.value = value ?? '';
    this.eye = button('Show', `Show ${this.label}`, () => this.reveal(!this.shown));
    this.eye.setAttribute('aria-pressed', 'false');
    this.eye.setAttribute('aria-controls', this.id);
    const tools = h('div', { class: 'jsf-tools' }, this.eye);
    if (many) {
      const file = h('input', { type: 'file', class: 'jsf-file', tabindex: '-1', 'aria-hidden': 'true',
        onchange: () => { this.take(file.files[0]); file.value = ''; } });
      tools.append(button('Choose file…', `Choose file… for ${this.label}`, () => file.click()), file);
      this.input.addEventListener('dragover', (e) => e.preventDefault());
      for (const what of ['drop', 'paste']) {
        this.input.addEventListener(what, (e) => {
          const dropped = (e.dataTransfer || e.clipboardData).files[0];
          if (!dropped) return;
          e.preventDefault();
          this.take(dropped);
        });
      }
    }
    this.keep = this.stored && button('Keep the stored one', `Keep the stored one: ${this.label}`, () => this.enter('stored'));
    if (this.keep) tools.append(this.keep);
    this.editBox = h('div', { class: `jsf-edit${many ? '' : ' jsf-line'}` }, this.input, tools);
    this.storedText = h('span', { class: 'jsf-stored-text' });
    this.replaceButton = button('Replace', `Replace the stored ${this.label}`, () => this.enter('edit'));
    this.clearButton = button('Clear', `Clear the stored ${this.label}`, () => this.enter('cleared'));
    this.undoButton = button('Undo', `Undo clearing ${this.label}`, () => this.enter('stored'));
    this.storedBox = h('div', { class: 'jsf-stored', role: 'group', 'aria-label': this.label },
      this.storedText, this.replaceButton, this.clearButton, this.undoButton);
    const el = this.frame(this.input);
    this.input.replaceWith(...this.stored ? [this.storedBox] : [], this.editBox);
    this.editBox.prepend(this.input);
    this.enter(this.state, true);
    return el;
  }
  enter(state, quiet) {
    const cleared = state === 'cleared';
    this.state = state;
    this.storedBox.hidden = state === 'edit';
    this.editBox.hidden = state !== 'edit';
    this.replaceButton.hidden = this.clearButton.hidden = cleared;
    this.undoButton.hidden = !cleared;
    this.storedText.textContent = cleared ? 'Will be removed when you save' : 'Stored';
    this.storedBox.classList.toggle('jsf-cleared', cleared);
    if (quiet) return;
    if (state !== 'edit') this.input.value = '';
    this.reveal(false);
    this.form.changed();
    this.show(state === 'edit' ? '' : this.problem(), '');
    (state === 'edit' ? this.input : cleared ? this.undoButton : this.replaceButton).focus();
  }
  get focusOn() { return this.state === 'edit' ? this.input : this.state === 'cleared' ? this.undoButton : this.replaceButton; }
  get empty() { return this.state === 'stored' ? false : this.value === undefined; }
  get value() { return this.state === 'edit' && this.text !== '' ? this.text : undefined; }
  problem() { return this.state === 'stored' ? '' : super.problem(); }
  reveal(on) {
    this.shown = on;
    if (this.input.matches('textarea')) this.input.classList.toggle('jsf-masked', !on);
    else this.input.type = on ? 'text' : 'password';
    this.eye.textContent = on ? 'Hide' : 'Show';
    this.eye.setAttribute('aria-label', `${on ? 'Hide' : 'Show'} ${this.label}`);
    this.eye.setAttribute('aria-pressed', String(on));
  }
  async take(file) {
    if (!file) return;
    if (file.size > 1 << 20) {
      this.show(`“${file.name}” has ${file.size} bytes, which is no key: choose the key file.`);
      return;
    }
    const text = await file.text();
    if (/[\0\uFFFD]/.test(text)) {
      this.show(`“${file.name}” is no text file: choose the key in its text form (-----BEGIN …).`);
      return;
    }
    this.input.value = text;
    this.edited(false);
    this.touched = true;
  }
}

class Flag extends Field {
  build(value) {
    this.set = value !== undefined || 'default' in this.schema;
    this.input = h('input', { type: 'checkbox', class: 'jsf-checkbox' });
    this.input.checked = value ?? this.schema.default ?? false;
    this.input.addEventListener('change', () => { this.set = true; this.edited(false); });
    return this.frame(this.input, null, { before: true });
  }
  get value() { return this.set || this.required ? this.input.checked : undefined; }
}

class Choice extends Field {
  build(value) {
    const s = this.schema;
    this.options = choices(s);
    value ??= s.default;
    if (value !== undefined && !this.options.some((o) => same(o.value, value))) {
      this.options = [...this.options, { value, title: `${typeof value === 'object' ? JSON.stringify(value) : value} (not allowed)`, bad: true }];
    }
    const blank = 'default' in s ? `(default: ${s.default})` : this.required ? 'Choose…' : '';
    const rows = this.options.map((o, i) => h('option', { value: i, selected: same(o.value, value) && value !== undefined }, o.title));
    if (!this.required || value === undefined) rows.unshift(h('option', { value: '', label: blank || ' ' }, blank));
    this.input = this.listen(h('select', { class: 'jsf-input' }, ...rows));
    return this.frame(this.input);
  }
  get chosen() { return this.input.value === '' ? undefined : this.options[+this.input.value]; }
  get value() { return this.chosen ? this.chosen.value : this.schema.default; }
  missing() { return `Choose one for “${this.label}”: it is required.`; }
  check(v) { return this.chosen?.bad ? `“${v}” is not one of the allowed values: choose another.` : ''; }
}

class Fixed extends Field {
  build(value) {
    const text = String(this.schema.title ? this.schema.const : JSON.stringify(this.schema.const));
    if (this.required || 'default' in this.schema) return this.frame(h('output', { class: 'jsf-output' }, text));
    this.input = h('input', { type: 'checkbox', class: 'jsf-checkbox', onchange: () => this.edited(false) });
    this.input.checked = same(value, this.schema.const);
    this.label = `${this.label}: ${text}`;
    return this.frame(this.input, null, { before: true });
  }
  get value() { return !this.input || this.input.checked ? this.schema.const : undefined; }
}

// For what no other field can show without losing something.
class Json extends Field {
  build(value) {
    this.input = this.listen(h('textarea', { class: 'jsf-input jsf-mono', rows: 4, spellcheck: 'false',
      placeholder: '"text", 12, true, [1, 2] or {"a": 1}' }));
    value ??= this.schema.default;
    this.input.value = value === undefined ? '' : JSON.stringify(value, null, 2);
    return this.frame(this.input);
  }
  get value() {
    if (this.input.value.trim() === '') return this.schema.default;
    try { return JSON.parse(this.input.value); } catch { return this.input.value; }
  }
  check(v) {
    try { if (this.input.value.trim() !== '') JSON.parse(this.input.value); } catch (e) {
      return `Not valid JSON (${e.message}): write "text" in quotes, 12, true, [1, 2] or {"a": 1}.`;
    }
    const types = [].concat(this.schema.type ?? []);
    const is = v === null ? 'null' : Array.isArray(v) ? 'array' : typeof v;
    if (types.length && !types.includes(is) && !(types.includes('integer') && Number.isInteger(v))) {
      return `This is of type ${is}, it must be ${types.join(' or ')}: correct it or empty the field.`;
    }
    return '';
  }
}

function countProblem(n, min, max, noun, verb) {
  if (n < min) return `At least ${min} ${min === 1 ? 'is' : 'are'} needed, there ${n === 1 ? 'is' : 'are'} ${n}: ${verb} ${min - n} more.`;
  if (n > max) return `At most ${max} ${max === 1 ? 'is' : 'are'} allowed, there are ${n}: remove ${n - max}.`;
  return '';
}

// Rows that can be added and removed: the items of a list, the members of a map.
class Rows extends Field {
  build(value) {
    this.body = h('div', { class: 'jsf-body jsf-rows' });
    this.given = value !== undefined || 'default' in this.schema;
    this.adder = button(`Add ${this.noun}`, `Add ${this.noun} to ${this.label}`, () => {
      const row = this.add();
      this.given = true;
      this.edited(false);
      (row.name || row.field).focus();
    });
    this.frame(h('fieldset', { class: 'jsf-group' }, this.body, this.adder), null, { group: true });
    for (const [key, item] of Object.entries(value ?? this.schema.default ?? {})) this.add(key, item);
    return this.el;
  }
  get noun() { return 'item'; }
  add(key, item) {
    const schema = this.itemSchema;
    const row = { field: make(this.form, schema, this, this.children.length, false, item, this.rowLabel(schema, this.children.length)) };
    const remove = button('Remove', '', () => this.remove(row));
    row.el = h('div', { class: 'jsf-row' }, ...this.named(row, key), row.field.el, remove);
    row.button = remove;
    (this.rows ||= []).push(row);
    this.children.push(row.field);
    this.body.append(row.el);
    this.relabel();
    return row;
  }
  named() { return []; }
  rowLabel(schema, i) { return `${schema.title || (this.noun === 'item' ? this.label : 'Value')} ${i + 1}`; }
  remove(row, quiet) {
    const i = this.rows.indexOf(row);
    this.rows.splice(i, 1);
    this.children.splice(i, 1);
    row.el.remove();
    this.given = true;
    this.relabel();
    if (quiet) return;
    this.touched = true;
    this.edited(false);
    (this.rows[Math.min(i, this.rows.length - 1)]?.button || this.adder).focus();
  }
  relabel() {
    this.rows.forEach((row, i) => {
      row.button.setAttribute('aria-label', `Remove ${this.noun} ${i + 1} of ${this.label}`);
      row.field.key = row.name ? row.name.value : i;
      row.field.label = this.rowLabel(row.field.schema, i);
      const title = row.field.el.querySelector(':scope > label, :scope > legend, :scope > .jsf-check > label');
      if (title) title.textContent = row.field.label;
    });
  }
  prune() {
    for (const row of [...this.rows || []]) if (row.field.empty && !row.name?.value && row.field.prunable !== false) this.remove(row, true);
    super.prune();
  }
  get filled() { return (this.rows || []).filter((r) => !r.field.empty || r.name?.value); }
}

class List extends Rows {
  get itemSchema() { return resolve(this.schema.items, this.form.root); }
  get value() {
    const list = this.filled.map((r) => r.field.value);
    return list.length || this.given && this.schema.minItems > 0 || this.required || this.given && this.schema.default?.length ? list : undefined;
  }
  check(v) {
    const again = this.schema.uniqueItems && v.findIndex((x, i) => v.findIndex((y) => same(x, y)) < i);
    if (again > 0) return `Item ${again + 1} is there twice: remove one.`;
    return countProblem(v.length, this.schema.minItems, this.schema.maxItems, 'item', 'add');
  }
  missing() { return `Add at least one to “${this.label}”: it is required.`; }
}

class Free extends Rows {
  get noun() { return 'entry'; }
  get itemSchema() {
    const s = this.schema.additionalProperties;
    return isObject(s) ? resolve(s, this.form.root) : { };
  }
  named(row, key) {
    const id = `${row.field.id}k`;
    row.name = h('input', { class: 'jsf-input', id, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off',
      'aria-describedby': `${id}e`, oninput: () => { row.field.key = row.name.value; this.edited(false); this.nameProblem(row, true); } });
    row.name.value = key ?? '';
    row.nameError = h('p', { class: 'jsf-error', id: `${id}e`, hidden: true });
    row.nameBox = h('div', { class: 'jsf-field' }, h('label', { for: id }, 'Name'), row.name, row.nameError);
    return [row.nameBox];
  }
  nameProblem(row, show) {
    const name = row.name.value, s = this.schema.propertyNames;
    const text = name === '' ? row.field.empty ? '' : 'Give this entry a name, or remove it.' :
      this.rows.some((r) => r !== row && r.name.value === name) ? `“${name}” is there twice: rename or remove one.` :
      s?.pattern && !matches(s.pattern, name) ? `“${name}” is no valid name here: it must match ${s.pattern}` :
      chars(name) > s?.maxLength ? `Too long: at most ${s.maxLength} characters.` : '';
    if (show) {
      row.nameError.textContent = text;
      row.nameError.hidden = !text;
      row.nameBox.classList.toggle('jsf-invalid', !!text);
      if (text) row.name.setAttribute('aria-invalid', 'true');
      else row.name.removeAttribute('aria-invalid');
    }
    return text;
  }
  get value() {
    const rows = this.filled.filter((r) => r.name.value !== '' && !r.field.empty);
    return rows.length || this.required ? Object.fromEntries(rows.map((r) => [r.name.value, r.field.value])) : undefined;
  }
  problem() {
    const bad = (this.rows || []).map((r) => this.nameProblem(r, true)).find(Boolean);
    this.badRow = bad && this.rows.find((r) => this.nameProblem(r));
    if (bad) return bad;
    const nameless = (this.rows || []).find((r) => r.name.value !== '' && r.field.empty && r.field.schema.type !== undefined);
    if (nameless) return `“${nameless.name.value}” has no value: fill it in or remove the entry.`;
    return super.problem();
  }
  focus() { if (this.badRow) this.badRow.name.focus(); else super.focus(); }
  check(v) { return countProblem(Object.keys(v).length, this.schema.minProperties, this.schema.maxProperties, 'entry', 'add'); }
}

class Group extends Field {
  build(value) {
    const s = this.schema, root = this.form.root, data = value ?? s.default ?? {};
    const props = Object.entries(s.properties || {}).map(([key, p]) => [key, resolve(p, root)]);
    const known = new Set(props.map(([key]) => key));
    const body = h('div', { class: 'jsf-body' });
    this.kept = Object.fromEntries(Object.entries(data).filter(([key]) => !known.has(key)));
    const add = (key, schema, into) => {
      const field = make(this.form, schema, this, key, !!s.required?.includes(key), data[key]);
      this.children.push(field);
      into.append(field.el);
    };
    const advanced = props.filter(([, p]) => p['x-paperclip-advanced'] === true);
    props.filter((p) => !advanced.includes(p)).forEach(([key, p]) => add(key, p, body));
    if (isObject(s.additionalProperties) || !this.parent && !props.length) {
      this.free = new Free(this.form, { additionalProperties: s.additionalProperties, propertyNames: s.propertyNames }, this.parent, this.key,
        false, props.length ? 'More entries' : this.label);
      this.free.build(Object.keys(this.kept).length ? this.kept : undefined);
      this.kept = {};
      this.children.push(this.free);
      body.append(this.free.el);
    }
    if (advanced.length) body.append(this.advanced(advanced, add));
    if (Object.keys(this.kept).length) body.append(this.unknown());
    if (this.parent) return this.frame(h('fieldset', { class: 'jsf-group' }, body), null, { group: true });
    this.el = h('div', { class: 'jsf-root' }, body);
    this.control = this.el;
    this.errorEl = h('p', { class: 'jsf-error', hidden: true });
    this.warnEl = h('p', { class: 'jsf-warning', hidden: true });
    this.el.prepend(this.errorEl, this.warnEl);
    return this.el;
  }
  describe() { if (this.parent) super.describe(); }
  advanced(list, add) {
    const box = h('details', { class: 'jsf-advanced' }, h('summary', {}, 'Advanced options'));
    const groups = new Map();
    for (const [key, p] of list) {
      const name = p['x-paperclip-group'] || '';
      if (!groups.has(name)) {
        const id = `jsf${++serial}`;
        groups.set(name, h('section', name ? { class: 'jsf-section', 'aria-labelledby': id } : { class: 'jsf-section' },
          name && h('h3', { id }, name)));
        box.append(groups.get(name));
      }
      add(key, p, groups.get(name));
    }
    return box;
  }
  // Settings the schema does not know are told and kept, not dropped.
  unknown() {
    const box = h('div', { class: 'jsf-unknown', role: 'group', 'aria-label': 'Unknown settings' },
      h('p', {}, 'Unknown here, kept as they are:'));
    for (const key of Object.keys(this.kept)) {
      const row = h('div', { class: 'jsf-kept' }, h('code', {}, key), button('Remove', `Remove the unknown setting ${key}`, () => {
        delete this.kept[key];
        row.remove();
        if (!Object.keys(this.kept).length) box.remove();
        this.form.changed();
      }));
      box.append(row);
    }
    return box;
  }
  get value() {
    const out = { ...this.kept, ...this.free?.value };
    for (const c of this.children) {
      if (c === this.free) continue;
      const v = c.value;
      if (v !== undefined) out[c.key] = v;
    }
    return Object.keys(out).length || this.required || !this.parent ? out : undefined;
  }
  get empty() { return this.value === undefined; }
  problem() { return ''; }
}

function make(form, raw, parent, key, required, value, label) {
  let schema = resolve(raw, form.root), depth = 0;
  if (value === null) value = undefined;
  for (let up = parent; up; up = up.parent) depth++;
  const type = typeOf(schema);
  const fits = { string: (v) => typeof v === 'string' || typeof v === 'number', number: (v) => typeof v === 'number' || typeof v === 'string',
    boolean: (v) => typeof v === 'boolean', array: Array.isArray, object: isObject };
  fits.integer = fits.number;
  const kind = 'const' in schema ? Fixed : choices(schema) ? Choice : !fits[type] || depth > 8 ? Json :
    value !== undefined && !fits[type](value) ? Json : type === 'string' ? schema.format === 'secret-ref' ? Secret : Text :
    type === 'boolean' ? Flag :
    type === 'object' ? parent && !schema.properties && schema.additionalProperties !== false ? Free : Group : type !== 'array' ? Num :
    isObject(schema.items) && !schema.prefixItems ? List : Json;
  const field = new kind(form, schema, parent, key, required, label);
  field.build(value);
  return field;
}

class JsonSchemaForm extends HTMLElement {
  load(schema, value = {}, stored = []) {
    this.root = schema;
    this.storedPointers = new Set(stored);
    this.dirty = false;
    this.field = make(this, { type: 'object', ...schema }, null, null, true, value);
    this.summary = h('div', { class: 'jsf-summary', tabindex: '-1', hidden: true });
    this.replaceChildren(this.summary, this.field.el);
  }
  isStored(pointer) { return this.storedPointers.has(pointer); }
  changed() {
    this.dirty = true;
    this.dispatchEvent(new Event('change', { bubbles: true }));
  }
  get value() { return this.field.value; }
  get cleared() {
    return [...this.field.all()].filter((f) => f.state === 'cleared').map((f) => f.pointer);
  }
  // {pointer: text} of everything that is wrong now, without showing it.
  get problems() {
    const out = {};
    for (const f of this.field.all()) {
      const text = f.problem();
      let up = f.parent; // an optional group that is left empty as a whole owes nothing
      while (up && (up.required || !up.empty)) up = up.parent;
      if (text && !up) out[f.pointer] ??= text;
    }
    return out;
  }
  at(pointer) { return [...this.field.all()].find((f) => f.pointer === pointer); }
  set errors(map) { this.put(map, 'error'); }
  set warnings(map) { this.put(map, 'warning'); }
  // Facts that are neither: they stay while the field is edited.
  set notes(map) {
    for (const [pointer, text] of Object.entries(map)) {
      const f = this.at(pointer);
      if (!f?.noteEl) continue;
      f.noteEl.textContent = text;
      f.noteEl.hidden = !text;
      f.describe();
    }
  }
  put(map, what) {
    const left = { ...map };
    for (const f of this.field.all()) {
      const text = left[f.pointer] ?? '';
      delete left[f.pointer];
      if (what === 'error') f.show(text);
      else f.show(f.error, text);
    }
    // A place without a field of its own: shown at the nearest one above.
    for (const [pointer, text] of Object.entries(left)) {
      let up = pointer;
      let f;
      while (!(f = this.at(up)) && up) up = up.slice(0, up.lastIndexOf('/'));
      const all = [f[what], text].filter(Boolean).join(' ');
      if (what === 'error') f.show(all);
      else f.show(f.error, all);
    }
  }
  showProblems(focus) {
    const bad = [...this.field.all()].filter((f) => f.error);
    for (const f of this.field.all()) {
      if (!f.error && !f.warning) continue;
      for (let d = f.el.closest('details'); d; d = d.parentElement.closest('details')) d.open = true;
    }
    this.summary.hidden = bad.length < 2;
    this.summary.replaceChildren(h('p', {}, `${plural(bad.length, 'field')} to correct:`),
      h('ul', {}, ...bad.map((f) => h('li', {}, h('a', { href: `#${f.id}`, onclick: (e) => { e.preventDefault(); f.focus(); } },
        f.label || 'The whole form')))));
    if (focus) bad[0]?.focus();
    return !bad.length;
  }
  reportValidity() {
    this.field.prune();
    for (const f of this.field.all()) f.touched = true;
    this.errors = this.problems;
    return this.showProblems(true);
  }
}

customElements.define('json-schema-form', JsonSchemaForm);
