// Commands: latency near and far, many at once, output and input, memory and CPU; beside a new ssh per command and
// beside ssh -S and a bare session of its protocol, taking turns in one run. ./dev bench latency [--quick] [--write: docs/bench.md and docs/bench.svg]
import { spawn, spawnSync } from "node:child_process";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { once } from "node:events";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { build, median, ms, openRoad, root, startLobby, table } from "./common.mjs";
import { chart } from "./chart.mjs";

const quick = process.argv.includes("--quick");
const rounds = quick ? 5 : 30;
const f = (v, digits = 2) => (v === undefined ? "" : v.toFixed(digits));

const lobby = await startLobby("--max-vms", "50");
const created = await lobby.exec("new --name=bench-vm");
const { vms: [vm] } = await lobby.exec("ls bench-vm");
if (!vm) throw new Error(`no VM: ${JSON.stringify(created)}`);

// A line-by-line conversation with a program of ours.
function talk(program, args) {
  const child = spawn(join(build, "bench", program), args,
    { stdio: ["pipe", "pipe", "inherit"], env: { ...process.env, EXEDEV_STATE_DIR: join(lobby.dir, "state") } });
  lobby.children.push(child);
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`${program} has ended`);
    return value;
  };
  return {
    child, next,
    async ask(order) {
      child.stdin.write(`${order}\n`);
      return JSON.parse(await next());
    },
    async stop() {
      child.stdin.end();
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    },
  };
}

// One road to the VM, and an exedev link and a bare session on it.
async function road(rtt) {
  const way = await openRoad(lobby, vm, rtt);
  const link = talk("bench-link", [way.host, String(way.port), vm.ssh_user ?? "exedev", lobby.key]);
  await link.next();
  const bare = talk("bench-mux", [way.control]);
  const run = (how, ...command) => {
    const start = ms();
    const r = spawnSync("ssh", [...way.args(...how), ...command], { stdio: ["ignore", "ignore", "ignore"] });
    if (r.status !== 0) throw new Error(`ssh ${how.join(" ")} ended with ${r.status}`);
    return ms() - start;
  };
  return {
    rtt, link, bare, args: way.args, control: way.control,
    fresh: (...command) => run([], ...command),
    mux: (...command) => run(["-S", way.control], ...command),
    async close() {
      await link.stop();
      await bare.stop();
      await way.close();
    },
  };
}

async function latency(r) {
  const ours = [], bare = [], mux = [], fresh = [];
  await r.link.ask("run 20");
  for (let i = 0; i < rounds; i++) {
    ours.push(...(await r.link.ask(`run ${r.rtt ? 5 : 20}`)).map((us) => us / 1000));
    bare.push(...(await r.bare.ask("run 3")).map((us) => us / 1000));
    mux.push(r.mux("true"));
    if (!r.rtt || i % 3 === 0) fresh.push(r.fresh("true"));
  }
  ours.sort((a, b) => a - b);
  return { rtt: r.rtt, ours: median(ours), p95: ours[Math.floor(ours.length * 0.95)], bare: median(bare), mux: median(mux), fresh: median(fresh) };
}

async function atOnce(command, n) {
  const start = ms();
  const ends = Array.from({ length: n }, () => once(spawn("ssh", command, { stdio: "ignore" }), "exit"));
  const codes = (await Promise.all(ends)).map(([code]) => code);
  const failed = codes.filter((code) => code !== 0).length;
  return failed ? `${failed} of ${n} failed` : f((ms() - start), 0);
}

async function many(r) {
  const rows = [];
  for (const n of quick ? [1, 10, 60] : [1, 10, 60, 200]) {
    const ours = [];
    for (let i = 0; i < (quick ? 3 : 7); i++) ours.push(await r.link.ask(`many ${n}`) / 1000);
    rows.push([n, f(median(ours), 1), await atOnce([...r.args("-S", r.control), "true"], n), await atOnce([...r.args(), "true"], n)]);
  }
  return rows;
}

async function throughput(r) {
  const megabytes = quick ? 50 : 300, out = [[], []], into = [[], []];
  const rate = (time) => megabytes / (time / 1000);
  for (let i = 0; i < (quick ? 2 : 5); i++) {
    out[0].push(rate(await r.link.ask(`out ${megabytes}000000`) / 1000));
    out[1].push(rate(r.fresh(`head -c ${megabytes}000000 /dev/zero`)));
    into[0].push(rate(await r.link.ask(`in ${megabytes}000000`) / 1000));
    const start = ms();
    spawnSync("sh", ["-c", `head -c ${megabytes}000000 /dev/zero | "$@"`, "sh", "ssh", ...r.args(), "cat >/dev/null"]);
    into[1].push(rate(ms() - start));
  }
  return [["output, MB/s", f(median(out[0]), 0), "", f(median(out[1]), 0)], ["input, MB/s", f(median(into[0]), 0), "", f(median(into[1]), 0)]];
}

const ticks = Number(spawnSync("getconf", ["CLK_TCK"], { encoding: "utf8" }).stdout);
function processes() {
  const all = [];
  for (const pid of readdirSync("/proc").filter((p) => /^\d+$/.test(p))) {
    try {
      const s = readFileSync(`/proc/${pid}/stat`, "utf8");
      const field = s.slice(s.lastIndexOf(")") + 2).split(" ");
      all.push({ pid, parent: Number(field[1]), cpuMs: (Number(field[11]) + Number(field[12])) * 1000 / ticks });
    } catch { /* it has ended */ }
  }
  return all;
}

async function cost(r) {
  const rows = [], n = quick ? 200 : 2000, me = r.link.child.pid;
  const cpu = () => processes().filter((p) => Number(p.pid) === me || p.parent === me).reduce((sum, p) => sum + p.cpuMs, 0);
  const before = await r.link.ask("stat"), cpuBefore = cpu();
  await r.link.ask(`run ${n}`);
  const ours = (cpu() - cpuBefore) / n;
  const after = await r.link.ask("stat");
  const k = 20;
  const spent = (fn) => {
    // spawnSync's children are waited for: their time is in the totals of /proc/self/stat.
    const read = () => {
      const s = readFileSync("/proc/self/stat", "utf8");
      const field = s.slice(s.lastIndexOf(")") + 2).split(" ");
      return (Number(field[13]) + Number(field[14])) * 1000 / ticks;
    };
    const start = read();
    for (let i = 0; i < k; i++) fn();
    return (read() - start) / k;
  };
  rows.push(["CPU on this side per command, ms", f(ours), f(spent(() => r.mux("true"))), f(spent(() => r.fresh("true")))]);
  rows.push(["connections per 100 commands", f((after.connections - before.connections) * 100 / n, 0), "0", "100"]);
  const leases = quick ? 5 : 20, memory = await r.link.ask("stat");
  await r.link.ask(`leases ${leases}`);
  const with20 = await r.link.ask("stat");
  rows.push([`memory of exedev per further lease, KiB (${leases} opened)`, f((with20.privateKiB - memory.privateKiB) / leases, 0), "", ""]);
  return rows;
}

const roads = [];
try {
  const latencies = [], more = [];
  for (const rtt of [0, 10, 40]) {
    const r = await road(rtt);
    roads.push(r);
    latencies.push(await latency(r));
    if (!rtt) {
      more.push(...(await throughput(r)), ...(await cost(r)));
      more.crowd = await many(r);
    }
    await r.close();
    roads.pop();
  }
  const tables = [
    table(["`true`, median ms at round trip", "exedev", "(95th of 100)", "bare mux session", "ssh -S", "ssh"],
      latencies.map((l) => [`${l.rtt} ms`, f(l.ours), f(l.p95), f(l.bare), f(l.mux, 1), f(l.fresh, 0)])),
    table(["that many `true` at once, ms for all", "exedev", "ssh -S", "ssh"], more.crowd),
    table(["", "exedev", "ssh -S", "ssh"], more),
  ].join("\n\n");
  console.log(tables);
  if (process.argv.includes("--write")) {
    const ssh = spawnSync("ssh", ["-V"], { encoding: "utf8" }).stderr.trim().split(",")[0];
    writeFileSync(join(root, "docs/bench.svg"), chart(latencies));
    writeFileSync(join(root, "docs/bench.md"), `# Commands, measured

Written by \`./dev bench latency --write\`. A lobby VM on the same machine (${cpus().length} x ${cpus()[0].model}, ${ssh}), reached over
loopback, or through a relay that delays every byte. One ssh connection per command, \`ssh -S\` on a standing master, and
exedev take turns in the same run; medians. "Bare mux session" asks the standing master in its own protocol, without
starting an ssh for it: the least a command can cost over OpenSSH's connection sharing. The machine's load average
over the last five minutes was ${loadavg()[1].toFixed(1)}; this run alone makes about 1.

![Latency of a command](bench.svg)

${tables}
`);
  }
} finally {
  for (const r of roads) await r.close().catch(() => {});
  await lobby.stop();
}
