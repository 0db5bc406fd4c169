// Loaded into the Paperclip server with --import: writes a line for each message between the server and the plugin
// worker it forks, and changes none. What could be a secret (config, stdin, environment, metadata) is not written.
import child_process from "node:child_process";
import { appendFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";

const file = process.env.E2E_CALLS;
const start = Number(process.env.E2E_START);
const write = (entry) => appendFileSync(file, JSON.stringify({ at: Date.now() - start, ...entry }) + "\n");

// What tells one call from another: the first words of a command, the paths of a transfer.
function summary(method, p = {}) {
    const out = {};
    if (p.providerLeaseId ?? p.lease?.providerLeaseId) out.lease = p.providerLeaseId ?? p.lease.providerLeaseId;
    if (p.runId) out.run = p.runId;
    if (typeof p.command === "string")
        out.command = [p.command, ...(p.args ?? [])].join(" ").replace(/\s+/g, " ").trim().slice(0, 100);
    if (Array.isArray(p.operations))
        out.files = p.operations.flatMap((o) => o.files.map((f) => `${f.kind} ${f.sourcePath} -> ${f.targetPath}`));
    if (p.hostRouteId) out.route = p.hostRouteId;
    if (p.timeoutMs) out.timeoutMs = p.timeoutMs;
    if (p.cancelActiveWork) out.cancelActiveWork = true;
    return out;
}

function lines(onLine) {
    let rest = "";
    return (chunk) => {
        const parts = (rest + chunk).split("\n");
        rest = parts.pop();
        for (const part of parts) if (part) onLine(part);
    };
}

function watch(worker, began) {
    const open = new Map();
    const request = lines((line) => {
        const m = JSON.parse(line);
        if (m.method) open.set(m.id, { method: m.method, sent: Date.now(), ...summary(m.method, m.params) });
    });
    const reply = lines((line) => {
        let m;
        try {
            m = JSON.parse(line);
        } catch {
            write({ event: "not JSON", worker: worker.pid, text: line.slice(0, 200) });
            return;
        }
        const call = open.get(m.id);
        if (m.method || !call) return;
        open.delete(m.id);
        const { sent, ...rest } = call;
        if (call.method === "initialize") write({ event: "ready", worker: worker.pid, ms: Date.now() - began });
        write({
            at: sent - start, ms: Date.now() - sent, worker: worker.pid, ...rest,
            ...(m.error ? { error: m.error.message?.slice(0, 300) } : {}),
            ...(m.result?.exitCode !== undefined ? { exitCode: m.result.exitCode } : {}),
            ...(m.result?.state ? { state: m.result.state } : {}),
            ...(m.result?.providerLeaseId ? { lease: m.result.providerLeaseId } : {}),
            ...(/ValidateConfig|Probe/.test(call.method) && m.result ? { ok: m.result.ok } : {}),
        });
    });
    const send = worker.stdin.write.bind(worker.stdin);
    worker.stdin.write = (data, ...more) => {
        request(data.toString());
        return send(data, ...more);
    };
    worker.stdout.on("data", (chunk) => reply(chunk.toString("latin1")));
    worker.on("exit", (code, signal) => {
        for (const { sent, ...call } of open.values()) write({ at: sent - start, lost: true, worker: worker.pid, ...call });
        write({ event: "worker ended", worker: worker.pid, code, signal });
    });
}

const fork = child_process.fork;
child_process.fork = (path, ...more) => {
    const began = Date.now();
    const child = fork(path, ...more);
    if (child.pid && child.stdin && child.stdout && String(path).includes("paperclip-plugin-exe-dev")) {
        write({ event: "worker started", worker: child.pid });
        watch(child, began);
    }
    return child;
};
syncBuiltinESMExports();
