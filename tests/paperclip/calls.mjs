// What tap.mjs wrote: every call of the server to the plugin.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { began, report } from "./parts.mjs";

export function entries() {
    const file = join(report, "calls.jsonl");
    if (!existsSync(file)) return [];
    return readFileSync(file, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

export function calls({ since = 0, lease = null, method = null } = {}) {
    return entries().filter(
        (c) => c.method && c.at >= since - began && (lease === null || c.lease === lease) && (method === null || c.method === method),
    );
}

export const leaseOf = (runId) => calls().find((c) => c.method === "environmentAcquireLease" && c.run === runId)?.lease;
