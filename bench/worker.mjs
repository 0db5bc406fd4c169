// The worker: start, memory, acquire, a command, output; beside plain ssh. ./dev bench worker [--quick] [--write]
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { Worker, base, build, median, ms, openRoad, root, sshArgs, startLobby, table } from "./common.mjs";

const quick = process.argv.includes("--quick");
const rounds = (n) => (quick ? Math.max(3, n / 10) : n);
const lobby = await startLobby("--max-vms", "50");
const rows = [];
const f = (v, digits = 1) => v.toFixed(digits);

async function readiness() {
  // As the host does it: fork a JavaScript file, wait for the answer to initialize.
  const shim = join(build, "npm/paperclip-plugin-exe-dev/dist/worker.js");
  const shimTimes = [], bareTimes = [], nodeTimes = [];
  for (let i = 0; i < rounds(20); i++) {
    for (const [list, argv] of [[shimTimes, [process.execPath, shim]], [bareTimes, undefined]]) {
      const w = new Worker(join(lobby.dir, "state"), argv);
      await w.initialize();
      list.push(ms() - w.started);
      await w.stop();
    }
    const start = ms();
    spawnSync(process.execPath, ["-e", "0"]);
    nodeTimes.push(ms() - start);
  }
  rows.push(["ready, from fork to the answer to initialize, ms", f(median(shimTimes)), `node -e 0: ${f(median(nodeTimes))}`]);
  rows.push(["the same without Node's start, ms", f(median(bareTimes)), ""]);
}

async function idleMemory() {
  const w = new Worker(join(lobby.dir, "state"));
  await w.initialize();
  await new Promise((r) => setTimeout(r, 300));
  const m = w.memory();
  rows.push(["idle, resident MB", f(m.rss / 1e6), ""]);
  rows.push(["idle, of that private MB", f(m.private / 1e6), ""]);
  await w.stop();
}

async function acquire(w) {
  // Copies of a VM that has the helper already; ssh's share and the API's measured in the same round.
  const params = (n) => ({ ...base({ ...lobby.config, sourceVm: "bench-source" }), runId: `r${n}` });
  await lobby.exec("new --name=bench-source");
  const seed = await w.call("environmentAcquireLease", { ...base({ ...lobby.config, sourceVm: undefined }), runId: "seed" });
  const first = await lobby.exec(`ls ${seed.providerLeaseId}`);
  const source = seed.providerLeaseId;
  const ours = [], api = [], handshake = [];
  for (let i = 0; i < rounds(10); i++) {
    let start = ms();
    const lease = await w.call("environmentAcquireLease", { ...params(i), config: { ...lobby.config, sourceVm: source } });
    ours.push(ms() - start);
    start = ms();
    await lobby.exec(`cp ${source} bench-copy`);
    api.push(ms() - start);
    const { vms: [record] } = await lobby.exec("ls bench-copy");
    start = ms();
    spawnSync("ssh", [...sshArgs(lobby, record), "true"]);
    handshake.push(ms() - start);
    await lobby.exec("rm bench-copy");
    await w.call("environmentDestroyLease", { ...base(lobby.config), providerLeaseId: lease.providerLeaseId, leaseMetadata: lease.metadata });
  }
  await lobby.exec("rm bench-source");
  rows.push(["acquire, the helper already there, ms", f(median(ours)),
    `cp over HTTP ${f(median(api))} + ssh VM true ${f(median(handshake))}`]);
  return { lease: seed, record: first.vms[0] };
}

async function commands(w, lease, record) {
  const way = await openRoad(lobby, record);
  const ours = [], mux = [], fresh = [];
  const execute = () => w.call("environmentExecute", { ...base(lobby.config), lease, command: "true", args: [] });
  for (let i = 0; i < 20; i++) await execute();
  for (let round = 0; round < rounds(20); round++) {
    for (let i = 0; i < 25; i++) {
      const start = ms();
      await execute();
      ours.push(ms() - start);
    }
    let start = ms();
    spawnSync("ssh", [...way.args("-S", way.control), "true"]);
    mux.push(ms() - start);
    start = ms();
    spawnSync("ssh", [...sshArgs(lobby, record), "true"]);
    fresh.push(ms() - start);
  }
  await way.close();
  rows.push(["a command on a standing connection, ms", f(median(ours), 2), `ssh -S ${f(median(mux))}, new ssh ${f(median(fresh))}`]);
}

async function output(w, lease, record) {
  const way = await openRoad(lobby, record);
  const megabytes = 60, live = [], whole = [], mux = [];
  const rate = (start, end) => megabytes / ((end - start) / 1000);
  const execute = (script) => w.call("environmentExecute", { ...base(lobby.config), lease, command: "sh", args: ["-c", script] });
  await execute(`head -c ${megabytes}000000 /dev/zero | tr '\\0' x > ~/text`); // so that making it is not what is measured
  for (let i = 0; i < rounds(20); i++) {
    let start = ms();
    const r = await execute("cat ~/text");
    if (r.stdout.length !== megabytes * 1e6) throw new Error(`${r.stdout.length} bytes came`);
    live.push(rate(start, w.notified));
    whole.push(rate(start, ms()));
    start = ms();
    const { stdout } = spawnSync("ssh", [...way.args("-S", way.control), "cat ~/text"], { stdio: ["ignore", "pipe", "inherit"], maxBuffer: 1e9 });
    if (stdout.length !== megabytes * 1e6) throw new Error(`ssh: ${stdout.length} bytes came`);
    mux.push(rate(start, ms()));
  }
  await way.close();
  rows.push([`output of ${megabytes} MB, MB/s, to the last byte as it runs`, f(median(live), 0), `ssh -S: ${f(median(mux), 0)}`]);
  rows.push(["the same, to the end of the result, which holds all of it again", f(median(whole), 0), ""]);
}

try {
  await readiness();
  await idleMemory();
  const w = new Worker(join(lobby.dir, "state"));
  await w.initialize();
  const { lease, record } = await acquire(w);
  await commands(w, lease, record);
  await output(w, lease, record);
  await w.call("environmentDestroyLease", { ...base(lobby.config), providerLeaseId: lease.providerLeaseId, leaseMetadata: lease.metadata });
  await w.stop();
  const text = table(["the worker", "exedev", "beside it, same run"], rows);
  console.log(text);
  if (process.argv.includes("--write")) {
    writeFileSync(join(root, "docs/bench-worker.md"), `# The worker, measured

Written by \`./dev bench worker --write\` on ${cpus().length} x ${cpus()[0].model}; what stands beside was measured in the same run, taking turns. The
load average over the last five minutes was ${loadavg()[1].toFixed(1)}; this run alone makes about 1.

${text}

The last two lines are bound by the processor: the command, sshd, ssh, the worker and the Node that reads share it. The last one
is mostly Node putting together and parsing one line of 60 MB.
`);
  }
} finally {
  await lobby.stop();
}
