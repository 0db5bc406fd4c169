// What the measurements share: a lobby of their own, a worker over JSON-RPC, medians, tables.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { once } from "node:events";

export const root = new URL("..", import.meta.url).pathname;
export const build = join(root, "build");

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const mid = sorted.length >> 1;
  return sorted.length % 2 ? sorted[mid] : (sorted[mid - 1] + sorted[mid]) / 2;
}

export const ms = () => Number(process.hrtime.bigint() / 1000n) / 1000;

// Markdown; the first column left, the others right.
export function table(head, rows) {
  const all = [head, ...rows].map((r) => r.map(String));
  const width = head.map((_, i) => Math.max(...all.map((r) => r[i].length), 3));
  const line = (r) => `| ${r.map((c, i) => (i ? c.padStart(width[i]) : c.padEnd(width[i]))).join(" | ")} |`;
  const rule = `| ${width.map((w, i) => (i ? "-".repeat(w - 1) + ":" : "-".repeat(w))).join(" | ")} |`;
  return [line(all[0]), rule, ...all.slice(1).map(line)].join("\n");
}

// A lobby with one registered key. stop() ends it and what is in `children`, and removes its folder.
export async function startLobby(...options) {
  const dir = mkdtempSync(join(tmpdir(), "exedev-bench-"));
  const key = join(dir, "key");
  spawnSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key]);
  const child = spawn(join(build, "exedev-lobby"),
    ["--json", "--token", "bench", "--authorized-key", `${key}.pub`, ...options],
    { stdio: ["ignore", "ignore", "pipe"] });
  const events = [];
  const listening = new Promise((resolve, reject) => {
    createInterface(child.stderr).on("line", (line) => {
      let event;
      try { event = JSON.parse(line); } catch { return; }
      events.push(event);
      if (event.event === "listening") resolve(event);
    });
    child.once("exit", (code) => reject(new Error(`the lobby ended with ${code}`)));
  });
  const at = await listening;
  return {
    url: at.url, sshPort: at.sshPort, key, dir, children: [],
    config: {
      apiKey: "bench", apiUrl: at.url, sshPort: at.sshPort, sshPrivateKey: readFileSync(key, "utf8"),
      setupScript: "none", timeoutMs: 600000,
    },
    async exec(command) {
      const r = await fetch(at.url, { method: "POST", headers: { Authorization: "Bearer bench" }, body: command });
      return r.json();
    },
    async stop() {
      for (const c of this.children) if (c.exitCode === null && c.signalCode === null) c.kill("SIGKILL");
      child.kill("SIGTERM");
      if (child.exitCode === null) await once(child, "exit");
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

// ssh's own options for a VM of that lobby.
export function sshArgs(lobby, record, ...more) {
  return ["-F", "none", "-i", lobby.key, "-p", String(lobby.sshPort), "-o", "BatchMode=yes",
    "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", ...more,
    "-l", record.ssh_user ?? "exedev", record.ssh_host];
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

// A road to a VM of that lobby: an ssh control connection, with a round trip of rtt ms when that is not 0 (through a
// relay that delays every byte by half of it). args(...) are ssh's arguments for it.
export async function openRoad(lobby, vm, rtt = 0) {
  const port = rtt ? await freePort() : lobby.sshPort, host = rtt ? "127.0.0.1" : vm.ssh_host;
  const control = join(lobby.dir, `control-${rtt}`), own = [];
  const start = (program, args, stdout) => {
    own.push(spawn(program, args, { stdio: ["ignore", stdout, "inherit"] }));
    lobby.children.push(own.at(-1));
    return own.at(-1);
  };
  if (rtt) {
    const relay = start(join(build, "bench/bench-relay"), [port, vm.ssh_host, lobby.sshPort, rtt / 2].map(String), "pipe");
    await once(createInterface(relay.stdout), "line");
  }
  const args = (...more) => sshArgs({ key: lobby.key, sshPort: port }, { ...vm, ssh_host: host }, ...more);
  start("ssh", [...args("-M", "-S", control), "-N"], "ignore");
  for (let i = 0; i < 200 && !existsSync(control); i++) await new Promise((r) => setTimeout(r, 50));
  return {
    host, port, control, args,
    async close() {
      for (const child of own.reverse()) {
        if (child.exitCode !== null || child.signalCode !== null) continue;
        child.kill();
        await once(child, "exit");
      }
    },
  };
}

// `exedev worker`, as the host starts it: no HOME, no agent.
export class Worker {
  #next = 1;
  #waiting = new Map();
  constructor(stateDir, argv = [join(build, "exedev"), "worker"]) {
    this.started = ms();
    this.child = spawn(argv[0], argv.slice(1),
      { stdio: ["pipe", "pipe", "inherit"], env: { PATH: process.env.PATH, EXEDEV_STATE_DIR: stateDir } });
    this.notified = 0; // when the last notification came
    createInterface(this.child.stdout).on("line", (line) => {
      const message = JSON.parse(line);
      const waiting = this.#waiting.get(message.id);
      if (!waiting) { this.notified = ms(); return; }
      this.#waiting.delete(message.id);
      if (message.error) waiting.reject(new Error(message.error.message));
      else waiting.resolve(message.result);
    });
  }
  call(method, params = {}) {
    const id = this.#next++;
    const answer = new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    // With an invocation, as every call of the host has one, output is streamed too.
    this.child.stdin.write(JSON.stringify({ jsonrpc: "2.0", id, method, params, paperclipInvocation: { id: `bench-${id}`, scope: { companyId: "bench" } } }) + "\n");
    return answer;
  }
  initialize() {
    return this.call("initialize", { manifest: {}, config: {}, instanceInfo: {}, apiVersion: 1 });
  }
  memory() {
    const field = (name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(this.rollup)?.[1] ?? 0) * 1024;
    this.rollup = readFileSync(`/proc/${this.child.pid}/smaps_rollup`, "utf8");
    return { rss: field("Rss"), private: field("Private_Clean") + field("Private_Dirty") };
  }
  async stop() {
    this.child.stdin.end();
    if (this.child.exitCode === null) await once(this.child, "exit");
  }
}

export const base = (config) => ({ driverKey: "exe-dev", companyId: "bench", environmentId: "benchenv", config });
