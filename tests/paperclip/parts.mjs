// The programs that a run starts: each with a log in the report folder, each stopped by its pid.
import { spawn, spawnSync } from "node:child_process";
import { appendFileSync, createWriteStream, existsSync, readFileSync, readdirSync, readlinkSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const { E2E_WORK: work, E2E_REPORT: report, E2E_CACHE: cache, E2E_PROGRAMS: programs } = process.env;
export const modules = join(cache, "node_modules");
export const began = Number(process.env.E2E_START);

export async function until(what, ms, probe) {
    const end = Date.now() + ms;
    for (;;) {
        const value = await probe();
        if (value) return value;
        if (Date.now() > end) throw new Error(`waited ${ms / 1000} s for ${what}`);
        await sleep(50);
    }
}

export async function freePort() {
    const server = createServer().listen(0, "127.0.0.1");
    await new Promise((done) => server.once("listening", done));
    const { port } = server.address();
    await new Promise((done) => server.close(done));
    return port;
}

export class Part {
    constructor(name, command, args, env = {}, onLine = () => {}) {
        this.name = name;
        const log = createWriteStream(join(report, `${name}.log`), { flags: "a" });
        this.child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"], cwd: work });
        this.ended = new Promise((done) => this.child.once("exit", (code, signal) => done({ code, signal })));
        this.ended.then((how) => (this.how = how));
        // For tools/dev/e2e.sh, which ends what is left when this process is killed.
        appendFileSync(join(work, "pids"), `${this.child.pid}\n`);
        for (const stream of [this.child.stdout, this.child.stderr]) {
            let rest = "";
            stream.on("data", (chunk) => {
                log.write(chunk);
                const parts = (rest + chunk).split("\n");
                rest = parts.pop();
                parts.forEach(onLine);
            });
        }
        this.child.once("error", (error) => log.write(`${error}\n`));
    }

    get pid() {
        return this.child.pid;
    }

    alive() {
        if (this.how) throw new Error(`${this.name} ended (${this.how.signal ?? `status ${this.how.code}`}), see ${this.name}.log`);
        return true;
    }

    async stop(ms = 20000) {
        if (this.how) return this.how;
        this.child.kill("SIGTERM");
        const late = setTimeout(() => this.child.kill("SIGKILL"), ms);
        const how = await this.ended;
        clearTimeout(late);
        return how;
    }
}

export function run(command, args, env = {}) {
    const done = spawnSync(command, args, { env: { ...process.env, ...env }, cwd: work, encoding: "utf8", timeout: 300000 });
    if (done.status !== 0) throw new Error(`${command} ${args.join(" ")}: status ${done.status}\n${done.stdout}${done.stderr}${done.error ?? ""}`);
    return done.stdout;
}

// Processes of this user that belong to a run: by the folder they were started from, or by our programs' names.
export function processes() {
    const found = [];
    for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
        try {
            const status = readFileSync(`/proc/${pid}/status`, "utf8");
            if (Number(/^Uid:\s+(\d+)/m.exec(status)[1]) !== process.getuid() || /^State:\s+Z/m.test(status)) continue;
            const words = readFileSync(`/proc/${pid}/cmdline`, "latin1").replaceAll("\0", " ").trim();
            const exe = existsSync(`/proc/${pid}/exe`) ? readlinkSync(`/proc/${pid}/exe`) : "";
            const ours = exe.startsWith(work) || words.includes(work) || /\b(exedev|exedev-vm|exedev-lobby|bwrap|ssh|sshd)$/.test(exe);
            if (ours && !known.has(pid)) found.push({ pid: Number(pid), words: words.slice(0, 200) });
        } catch {} // gone meanwhile, or not ours to look at
    }
    return found;
}
// Whatever runs before (and this process itself) is somebody else's.
const known = new Set();
processes().forEach(({ pid }) => known.add(String(pid)));
