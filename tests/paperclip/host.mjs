// The real Paperclip: server, command line, HTTP API.
import { join } from "node:path";
import { Part, freePort, modules, report, run, until, work } from "./parts.mjs";

const bin = join(modules, ".bin", "paperclipai");
const data = join(work, "data");
export const home = join(work, "home");

export class Host {
    async start() {
        const first = !this.port;
        this.port ??= await freePort();
        this.postgres ??= await freePort();
        this.url = `http://127.0.0.1:${this.port}`;
        this.env = {
            HOME: home,
            PATH: `${join(modules, "node", "bin")}:/usr/local/bin:/usr/bin:/bin`,
            PORT: String(this.port),
            PAPERCLIP_EMBEDDED_POSTGRES_PORT: String(this.postgres),
            PAPERCLIP_TELEMETRY_DISABLED: "1",
            DO_NOT_TRACK: "1",
            PAPERCLIP_UPDATE_CHECK: "0",
            PAPERCLIP_ANNOUNCEMENTS_ENABLED: "false",
            PAPERCLIP_DB_BACKUP_ENABLED: "false",
            PAPERCLIP_NO_BROWSER: "1",
        };
        const args = first ? ["onboard", "--yes", "--no-install-service", "--bind", "loopback"] : ["run"];
        this.server = new Part("server", bin, [...args, "--data-dir", data], {
            ...this.env,
            NODE_OPTIONS: `--import=${join(import.meta.dirname, "tap.mjs")}`,
            E2E_CALLS: join(report, "calls.jsonl"),
        });
        await until("the server to answer", 240000, async () => {
            this.server.alive();
            const health = await fetch(`${this.url}/api/health`).then((r) => r.json(), () => null);
            return health?.status === "ok";
        });
    }

    stop() {
        return this.server?.stop(30000);
    }

    cli(...args) {
        return run(bin, [...args, "--data-dir", data, "--api-base", this.url], this.env);
    }

    async api(method, path, body) {
        const answer = await fetch(`${this.url}/api${path}`, {
            method,
            headers: { "content-type": "application/json" },
            body: body === undefined ? undefined : JSON.stringify(body),
        });
        const text = await answer.text();
        if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text.slice(0, 500)}`);
        return JSON.parse(text);
    }

    async run(id, ms = 300000) {
        return until(`run ${id} to end`, ms, async () => {
            const run = await this.api("GET", `/heartbeat-runs/${id}`);
            return ["queued", "running"].includes(run.status) ? null : run;
        });
    }

    async log(id) {
        const { content } = await this.api("GET", `/heartbeat-runs/${id}/log?limitBytes=1000000`);
        return content.split("\n").filter(Boolean).map((line) => JSON.parse(line).chunk).join("");
    }
}
