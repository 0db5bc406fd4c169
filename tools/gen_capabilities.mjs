// Writes docs/capabilities.md: what this provider's manifest declares, beside the others'.
//   node tools/gen_capabilities.mjs [--check] [--from CHECKOUT-OF-PAPERCLIP]
// --check writes nothing and fails when the file is out of date. --from needs a Node that imports TypeScript (22.18 or later).
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const { values: options } = parseArgs({ options: { check: { type: "boolean" }, from: { type: "string" } } });
const root = join(import.meta.dirname, "..");
const list = join(root, "tools", "providers.json");
const page = join(root, "docs", "capabilities.md");

const capabilities = {
    reusableLeases: "a VM is kept and used again by the next run",
    nativeSyncIn: "files go in through the provider, not through commands",
    nativeSyncOut: "files come out through the provider",
    persistentProcessSessions: "a process outlives the command that started it",
    independentControlCommands: "a command can be run beside a running one",
    incrementalSessionOutput: "output arrives while a command runs",
    concurrentSyncOperations: "several transfers at once",
    duplexCommandStream: "a program with stdin and stdout held open",
    runnerWebSocketIngress: "a WebSocket from the host to a port of the VM",
};
const flags = {
    supportsInteractiveSetup: "a person prepares a machine by hand",
    supportsTemplateCapture: "such a machine becomes a template",
    supportsTemplateDelete: "and can be deleted again",
    supportsLoginPty: "a terminal to log an agent's program in",
};
// Without a declaration the host grants a capability when the worker's methods are there; these it then refuses.
const optIn = new Set(["reusableLeases", "incrementalSessionOutput", "concurrentSyncOperations", "duplexCommandStream", "runnerWebSocketIngress"]);

function declared(manifest) {
    const driver = manifest.environmentDrivers.find((d) => d.kind === "sandbox_provider");
    const out = { version: manifest.version };
    if ("supportsReusableLeases" in driver) out.supportsReusableLeases = driver.supportsReusableLeases;
    for (const key of Object.keys(capabilities))
        if (driver.sandboxCapabilities && key in driver.sandboxCapabilities) out[key] = driver.sandboxCapabilities[key];
    for (const key of Object.keys(flags)) if (key in driver) out[key] = driver[key];
    return out;
}

const data = JSON.parse(readFileSync(list, "utf8"));
if (options.from) {
    const folder = join(options.from, "packages/plugins/sandbox-providers");
    data.providers = {};
    for (const name of readdirSync(folder).sort()) {
        const path = join(folder, name, "src/manifest.ts");
        if (!existsSync(path)) continue;
        const { default: manifest } = await import(pathToFileURL(path).href);
        data.providers[name === "exe-dev" ? "exe-dev (TypeScript)" : name] = declared(manifest);
    }
    writeFileSync(list, JSON.stringify(data, null, 2) + "\n");
}

const [, version] = /version: '([^']+)'/.exec(readFileSync(join(root, "meson.build"), "utf8"));
const ours = declared({ version, ...JSON.parse(readFileSync(join(root, "npm", "manifest.json"), "utf8")) });
const columns = [["**exedev**", ours], ...Object.entries(data.providers)];

function cell(provider, key) {
    const value = provider[key] ?? (key === "reusableLeases" ? provider.supportsReusableLeases : undefined);
    if (value !== undefined) return value ? "yes" : "no";
    return optIn.has(key) || key in flags ? "-" : "·";
}

const row = (cells) => `| ${cells.join(" | ")} |`;
const text = `<!-- made by tools/gen_capabilities.mjs -->
# What sandbox providers declare

${row(["", ...columns.map(([name]) => name)])}
${row(["---", ...columns.map(() => "---")])}
${row(["version", ...columns.map(([, p]) => p.version)])}
${[...Object.keys(capabilities), ...Object.keys(flags)].map((key) => row([`\`${key}\``, ...columns.map(([, p]) => cell(p, key))])).join("\n")}

"yes" and "no" are declared. "-": not declared, which refuses it. "·": not declared, which leaves it to the methods that the worker lists when
it starts. The other providers' manifests are those of Paperclip's public source repository, at the versions named.

${[...Object.entries(capabilities), ...Object.entries(flags)].map(([key, what]) => `- \`${key}\`: ${what}`).join("\n")}
`;
if (options.check) {
    if (!existsSync(page) || readFileSync(page, "utf8") !== text) {
        console.error("docs/capabilities.md is out of date: run `node tools/gen_capabilities.mjs`");
        process.exit(1);
    }
} else {
    writeFileSync(page, text);
}
