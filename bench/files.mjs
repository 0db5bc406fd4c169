// Files in and out, beside tar over the same ssh, scp, rsync and the host's own base64 fallback, taking turns in one run, on connections
// that are open already: 10,000 small files, one big file, an unchanged tree; on loopback and 40 ms away.
// ./dev bench files [--quick] [--write]
import { spawnSync } from "node:child_process";
import { cpSync, createWriteStream, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { join } from "node:path";
import { cpus, loadavg } from "node:os";
import { Worker, base, median, ms, openRoad, root, startLobby, table } from "./common.mjs";

const quick = process.argv.includes("--quick");
const rounds = quick ? 1 : 3;
const smallFiles = quick ? 2000 : 10000;
const bigBytes = quick ? 64 << 20 : 1 << 30;
const MB = 1e6;
// What takes longer is shown as that: scp needs several round trips for each file.
const limit = quick ? 20 : 120;
const slow = limit / 4; // measured once

const lobby = await startLobby("--max-vms", "4");
await lobby.exec("new --name=bench-vm");
const { vms: [vm] } = await lobby.exec("ls bench-vm");
if (!vm) throw new Error("the lobby made no VM");
const dir = join(lobby.dir, "files");
mkdirSync(dir);

// Sources: this project's npm dependencies, filled up to the number with copies of themselves.
function makeTree(path) {
  const from = join(root, "tests/e2e/node_modules"), found = [];
  const walk = (at) => {
    for (const e of existsSync(at) ? readdirSync(at, { withFileTypes: true }) : []) {
      const p = join(at, e.name);
      if (e.isDirectory()) walk(p);
      else if (e.isFile() && statSync(p).size < 64 * 1024) found.push(p);
    }
  };
  walk(from);
  for (let i = 0; i < smallFiles; i++) {
    const folder = join(path, `d${i / 40 >> 0}`);
    if (i % 40 === 0) mkdirSync(folder, { recursive: true });
    if (found.length) cpSync(found[i % found.length], join(folder, `f${i}`));
    else writeFileSync(join(folder, `f${i}`), randomBytes(200 + (i * 37) % 6000));
  }
}
const small = join(dir, "small"), big = join(dir, "big");
mkdirSync(small);
makeTree(small);
{
  const out = createWriteStream(big);
  const block = randomBytes(1 << 20);
  for (let i = 0; i < bigBytes >> 20; i++) { block.writeUInt32LE(i, 0); if (!out.write(Buffer.from(block))) await once(out, "drain"); }
  out.end();
  await once(out, "finish");
}
const smallBytes = Number(spawnSync("du", ["-sb", "--apparent-size", small]).stdout.toString().split("\t")[0]);

class TooLong extends Error {}

function run(program, args, options = {}) {
  const r = spawnSync(program, args, { stdio: ["ignore", "ignore", "pipe"], timeout: limit * 1000, ...options });
  if (r.error?.code === "ETIMEDOUT") throw new TooLong();
  if (r.status !== 0) throw new Error(`${program} ${args.slice(-3).join(" ")}: ${r.stderr}`);
}

// A road to the VM: an open lease of a worker, and an open ssh control connection, through a relay when it is long.
async function road(rtt) {
  const way = await openRoad(lobby, vm, rtt);
  const { host, port } = way, user = vm.ssh_user ?? "exedev", options = way.args("-S", way.control).slice(0, -3);
  const worker = new Worker(join(lobby.dir, `state${rtt}`));
  lobby.children.push(worker.child);
  await worker.initialize();
  const params = { ...base({ ...lobby.config, sshPort: port }), lease: { providerLeaseId: "bench-vm",
    metadata: { provider: "exe-dev", vmName: "bench-vm", sshHost: host, sshLogin: user, sshDest: `${user}@${host}`, shellCommand: "bash" } } };
  const sh = async (script, stdin) => {
    const r = await worker.call("environmentExecute", { ...params, command: "sh", args: ["-c", script], stdin });
    if (r.exitCode !== 0) throw new Error(`${script}: ${r.stderr}`);
    return r.stdout;
  };
  const home = await sh('printf %s "$HOME"');
  const quote = (s) => `'${s}'`;
  const remoteShell = ["ssh", ...options.map((o) => (/[^\w=./:-]/.test(o) ? quote(o) : o)), "-l", user].join(" ");
  const sync = (method, sourcePath, targetPath, kind, lease = params.lease) =>
    worker.call(method, { ...params, lease, operations: [{ operationId: "b", files: [{ sourcePath, targetPath, kind }] }] });

  // The host's fallback (adapter-utils' command-managed-runtime): a tar, base64 through commands, 3 MiB a piece.
  const PIECE = 3 << 20;
  async function fallbackIn(local, remote, folder) {
    const end = ms() + limit * 1000;
    const archive = folder ? join(dir, "fallback.tar") : local;
    if (folder) run("tar", ["-C", local, "-cf", archive, "."]);
    const bytes = readFileSync(archive), temp = `${remote}.upload`;
    await sh(`: > ${temp}`);
    for (let at = 0; at < bytes.length; at += PIECE) {
      if (ms() > end) throw new TooLong();
      await sh(`base64 -d >> ${temp}`, bytes.subarray(at, at + PIECE).toString("base64"));
    }
    await sh(folder ? `rm -rf ${remote} && mkdir ${remote} && tar -xf ${temp} -C ${remote} && rm ${temp}` : `mv ${temp} ${remote}`);
  }
  async function fallbackOut(remote, local, folder) {
    const end = ms() + limit * 1000;
    const temp = folder ? `${remote}.tar` : remote;
    if (folder) await sh(`tar -C ${remote} -cf ${temp} .`);
    const total = Number(await sh(`wc -c < ${temp}`)), pieces = [];
    for (let i = 0; i * PIECE < total; i++) {
      if (ms() > end) throw new TooLong();
      pieces.push(Buffer.from((await sh(`dd if=${temp} bs=${PIECE} skip=${i} count=1 2>/dev/null | base64`)).replace(/\s+/g, ""), "base64"));
    }
    const archive = join(dir, "fallback.tar");
    writeFileSync(folder ? archive : local, Buffer.concat(pieces));
    if (folder) { mkdirSync(local); run("tar", ["-xf", archive, "-C", local]); }
  }
  const ssh = (script) => run("sh", ["-c", script]);
  const target = `${home}/t`, here = join(dir, "here");
  const open = `${remoteShell} ${host}`;
  const ways = {
    exedev: { in: (l, r, f) => sync("environmentSyncIn", l, r, f ? "directory" : "file"), out: (r, l, f) => sync("environmentSyncOut", r, l, f ? "directory" : "file"),
      again: (l, r) => sync("environmentSyncIn", l, r, "directory", { ...params.lease, metadata: { ...params.lease.metadata, resumedLease: true } }) },
    "tar \\| ssh": { in: (l, r, f) => ssh(f ? `tar -C ${l} -cf - . | ${open} 'mkdir ${r} && tar -C ${r} -xf -'` : `tar -C ${dir} -cf - big | ${open} 'tar -xOf - > ${r}'`),
      out: (r, l, f) => ssh(f ? `mkdir ${l} && ${open} 'tar -C ${r} -cf - .' | tar -C ${l} -xf -` : `${open} 'tar -C ${home} -cf - t' | tar -xOf - > ${l}`) },
    "scp -r": { in: (l, r) => run("scp", ["-q", "-r", ...options.map((o) => (o === "-p" ? "-P" : o)).flatMap((o, i, a) => (o === "-S" ? ["-o"] : a[i - 1] === "-S" ? [`ControlPath=${o}`] : [o])), l, `${user}@${host}:${r}`]),
      out: (r, l) => run("scp", ["-q", "-r", ...options.map((o) => (o === "-p" ? "-P" : o)).flatMap((o, i, a) => (o === "-S" ? ["-o"] : a[i - 1] === "-S" ? [`ControlPath=${o}`] : [o])), `${user}@${host}:${r}`, l]) },
    rsync: { in: (l, r, f) => run("rsync", ["-a", "-e", remoteShell, f ? `${l}/` : l, `${host}:${r}`]), out: (r, l, f) => run("rsync", ["-a", "-e", remoteShell, f ? `${host}:${r}/` : `${host}:${r}`, l]),
      again: (l, r) => run("rsync", ["-a", "-c", "-e", remoteShell, `${l}/`, `${host}:${r}`]) },
    base64: { in: fallbackIn, out: fallbackOut },
  };
  const time = async (label, what) => {
    const start = ms();
    try {
      await what();
    } catch (error) {
      if (!(error instanceof TooLong)) throw error;
      return Infinity;
    }
    const took = (ms() - start) / 1000;
    if (process.stderr.isTTY || process.env.BENCH_VERBOSE) console.error(`  ${label}: ${took.toFixed(2)} s`);
    return took;
  };
  const results = [];
  for (const [label, source, folder, bytes] of [[`${smallFiles} small files`, small, true, smallBytes], [`${bigBytes >> 20} MiB file`, big, false, bigBytes]]) {
    const times = { in: {}, out: {}, again: {} };
    for (let i = 0; i < rounds; i++) {
      for (const [name, way] of Object.entries(ways)) {
        const wanted = (list) => !list?.some((took) => took > slow);
        const clear = () => sh(`rm -rf ${target} ${target}.*`);
        let there = false;
        if (wanted(times.in[name])) {
          await clear();
          (times.in[name] ??= []).push(await time(`${name}, in`, () => way.in(source, target, folder)));
          there = times.in[name].at(-1) < Infinity;
        }
        if (wanted(times.out[name])) {
          if (!there) {
            await clear();
            await ways.exedev.in(source, target, folder);
          }
          rmSync(here, { recursive: true, force: true });
          (times.out[name] ??= []).push(await time(`${name}, out`, () => way.out(target, here, folder)));
          const wrong = times.out[name].at(-1) < Infinity && spawnSync("diff", ["-rq", source, here]).stdout.toString();
          if (wrong) throw new Error(`${name}: ${wrong}`);
        }
        if (folder && way.again) {
          await clear();
          await ways.exedev.in(source, target, true);
          (times.again[name] ??= []).push(await time(`${name}, unchanged`, () => way.again(source, target)));
        }
      }
    }
    for (const direction of ["in", "out", "again"]) {
      if (!Object.keys(times[direction]).length) continue;
      const cells = Object.keys(ways).map((name) => (times[direction][name] ? (times[direction][name].includes(Infinity) ? Infinity : median(times[direction][name])) : undefined));
      results.push([rtt, direction === "again" ? `${label}, unchanged, by content` : `${label}, ${direction}`, ...cells.map((c) => (c === undefined ? "" : c === Infinity ? `> ${limit}` : c.toFixed(2))),
        direction === "again" ? "" : (bytes / MB / cells[0]).toFixed(0)]);
    }
  }
  await sh(`rm -rf ${target} ${target}.tar`);
  const memory = worker.memory();
  await worker.stop();
  await way.close();
  return { results, memory, names: Object.keys(ways) };
}

try {
  const rows = [];
  let names, memory;
  for (const rtt of [0, 40]) {
    const r = await road(rtt);
    rows.push(...r.results);
    ({ names, memory } = r);
  }
  const text = `${table(["rtt, ms", "seconds, median", ...names, "exedev, MB/s"], rows)}

${rounds} round${rounds > 1 ? "s" : ""}, taking turns; what took more than ${slow} s, one. The worker's resident memory after all transfers: ${(memory.rss / MB).toFixed(1)} MB.`;
  console.log(text);
  if (process.argv.includes("--write")) {
    const ssh = spawnSync("ssh", ["-V"], { encoding: "utf8" }).stderr.trim().split(",")[0];
    const [, disk] = spawnSync("df", ["--output=fstype", lobby.dir], { encoding: "utf8" }).stdout.trim().split("\n");
    writeFileSync(join(root, "docs/bench-files.md"), `# Files, measured

Written by \`./dev bench files --write\`. A lobby VM on the same machine (${cpus().length} x ${cpus()[0].model}, ${ssh}), over loopback, or through a
relay that delays every byte; both sides' files on ${disk} (\`TMPDIR\` says where). Each way has a connection that is open already: exedev its lease's,
the others a standing ssh master. "base64" is what the host does with a provider that has no sync of its own (adapter-utils'
command-managed-runtime): a tar through commands, 3 MiB a piece; here these are exedev's commands, a few milliseconds each. The load average
over the last five minutes was ${loadavg()[1].toFixed(1)}; this run alone makes about 2.

${text}

At 40 ms one big file is bound by what OpenSSH lets be under way on a connection, 2 MiB a round trip, whichever way it goes. That base64 is no
slower than it is, is due to exedev's commands: with a new ssh for each piece it would pay a quarter of a second more for every 3 MiB.
`);
  }
} finally {
  await lobby.stop();
}
