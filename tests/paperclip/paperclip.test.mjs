// The real Paperclip with our package installed, as an operator uses it. One step after another: each needs the ones before.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, readdirSync, readlinkSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { userInfo } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { calls, entries, leaseOf } from "./calls.mjs";
import { Host, home } from "./host.mjs";
import { Lobby } from "./lobby.mjs";
import { Browser } from "./page.mjs";
import { processes, programs, report, until, work } from "./parts.mjs";

const host = new Host();
const lobby = new Lobby();
const browser = new Browser();
const folder = join(programs, "paperclip-plugin-exe-dev");
const repository = join(work, "repository");
const key = "exedev.sandbox-provider";
const figures = [];
let manifest, company, environment, agent, project, broken;

// Temporary files of this user by their names: ours, and those that Paperclip makes for a transfer.
function temporary() {
    return readdirSync("/tmp").filter((name) => {
        try {
            return /^(exedev|paperclip-sandbox)/.test(name) && statSync(join("/tmp", name)).uid === process.getuid();
        } catch {
            return false; // gone meanwhile
        }
    });
}
const before = temporary();

const settings = "/company/settings/instance/environments";
const title = (field) => manifest.environmentDrivers[0].configSchema.properties[field].title;

function step(name, body) {
    test(name, { timeout: 900000 }, async (t) => {
        if (broken) return t.skip("an earlier step failed");
        try {
            await body(t);
        } catch (error) {
            broken = true;
            await browser.page?.screenshot({ path: join(report, "failed.png") }).catch(() => {});
            throw error;
        }
    });
}

after(async () => {
    await browser.stop();
    await host.stop();
    await lobby.stop();
    if (figures.length) {
        writeFileSync(join(report, "figures.txt"), figures.join("\n") + "\n");
        console.log("\n" + figures.join("\n"));
    }
});

async function success(id) {
    const run = await host.run(id);
    assert.equal(run.status, "succeeded", `${run.error}\n${await host.log(id).catch(() => "")}`);
    return run;
}

const wake = async () => (await host.api("POST", `/agents/${agent.id}/wakeup`, { source: "on_demand", reason: "e2e", forceFreshSession: true })).id;

// An issue of the project, and the run that its assignment starts.
async function assign(name, order) {
    const issue = await host.api("POST", `/companies/${company.id}/issues`, {
        title: name, description: `ORDER: ${order}`, projectId: project.id, assigneeAgentId: agent.id, status: "todo",
    });
    const runs = await until(`a run of '${name}'`, 120000, async () => {
        const list = await host.api("GET", `/issues/${issue.id}/runs`);
        return list.length ? list : null;
    });
    return { issue, run: runs[0].runId };
}

// The release comes after the run's end; a closed issue's lease is destroyed.
const released = (lease, since = 0) =>
    until("the lease's release", 120000, () => calls({ lease, since }).find((c) => /environment(Release|Destroy)Lease/.test(c.method)));

async function figure(what, id, lease = null, since = 0) {
    const run = await success(id);
    lease ??= leaseOf(id);
    await released(lease, since);
    const made = calls({ lease, since });
    const seconds = (new Date(run.finishedAt) - new Date(run.startedAt)) / 1000;
    const acquire = made.find((c) => c.method === "environmentAcquireLease");
    figures.push(
        `${what.padEnd(46)} ${seconds.toFixed(1)} s   ${String(made.length).padStart(3)} calls   ${lobby.count("ssh-login", since, lease)} SSH connection(s)` +
            (acquire ? `   (of it ${(acquire.ms / 1000).toFixed(1)} s to create the VM and run its setup script)` : ""),
    );
    return made;
}

step("the server starts and its own command line installs the package", async () => {
    mkdirSync(home, { recursive: true });
    manifest = createRequire(import.meta.url)(join(folder, "dist", "manifest.js"));
    manifest = manifest.default ?? manifest;
    await lobby.start();
    await host.start();
    const said = host.cli("plugin", "install", folder);
    assert.match(said, new RegExp(`Installed ${key} .*\\(ready\\)`));
    await host.api("PATCH", "/instance/settings/experimental", { enableEnvironments: true, enableIsolatedWorkspaces: true });
    company = await host.api("POST", "/companies", { name: "Exedev" });
    const ready = entries().find((e) => e.event === "ready");
    assert.equal(readlinkSync(`/proc/${ready.worker}/exe`), join(folder, "dist", "exedev"), "no Node stays behind the worker");
    figures.push(`worker ready after its fork                    ${ready.ms} ms`);
});

step("the settings page: a bad key is refused in our words", async () => {
    await browser.start(host.url);
    await browser.goto(`/${company.issuePrefix}${settings}/new`);
    const { page } = browser;
    await page.getByText("Driver", { exact: true }).waitFor();
    await page.locator("main select").first().selectOption("sandbox");
    await browser.field(title("apiKey")).waitFor();
    await page.locator("main input[type=text]").first().fill("exe.dev from the page");
    await browser.fill(title("apiKey"), lobby.token);
    await browser.fill(title("sshPrivateKey"), lobby.publicKey);
    await page.getByText("Advanced options").click();
    await browser.fill(title("apiUrl"), lobby.apiUrl);
    await browser.fill(title("sshPort"), lobby.sshPort);
    await browser.fill(title("setupScript"), lobby.setupScript);
    await browser.fill(title("waitForSetup"), true);
    await browser.fill(title("reuseLease"), true);
    await browser.shot("1-form");
    await page.getByRole("button", { name: "Create environment" }).click();
    await page.getByText(/sshPrivateKey.*public SSH key/).first().waitFor();
    await browser.shot("2-bad-key");
    assert.deepEqual((await host.api("GET", `/companies/${company.id}/environments`)).filter((e) => e.driver === "sandbox"), []);
});

step("with a good key it is saved, the secrets as secrets", async () => {
    const { page } = browser;
    await browser.fill(title("sshPrivateKey"), lobby.privateKey);
    await page.getByRole("button", { name: "Create environment" }).click();
    await page.getByText("Test provider").first().waitFor();
    const [saved] = (await host.api("GET", `/companies/${company.id}/environments`)).filter((e) => e.driver === "sandbox");
    environment = saved;
    const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-/;
    assert.match(saved.config.apiKey, uuid);
    assert.match(saved.config.sshPrivateKey, uuid);
    assert.equal(saved.config.apiUrl, lobby.apiUrl);
    assert.equal(saved.config.reuseLease, true);
});

step("the connection test creates a VM and deletes it", async () => {
    await browser.page.getByText("Test provider").first().click();
    await browser.page.getByText(/[Pp]robe (passed|failed)/).first().waitFor({ timeout: 120000 });
    await browser.shot("3-test-provider");
    assert.equal(await browser.page.getByText("probe passed").count(), 1, await browser.page.locator("main").innerText());
    assert.equal(lobby.count("vm-created"), 1);
    assert.deepEqual(await lobby.vms(), []);
});

step("runs of an agent that does nothing", async () => {
    const create = (name, more, config) =>
        host.api("POST", `/companies/${company.id}/agents`, {
            name, role: "engineer", adapterType: "codex_local", ...more,
            adapterConfig: { engine: "cli", env: { OPENAI_API_KEY: "sk-stand-in" }, ...config },
            runtimeConfig: { heartbeat: { enabled: false } },
        });
    agent = await create("Alone", {}, { command: join(import.meta.dirname, "agent.mjs") });
    const alone = await success(await wake());
    figures.push(`${"the host alone, no sandbox".padEnd(46)} ${((new Date(alone.finishedAt) - new Date(alone.startedAt)) / 1000).toFixed(1)} s`);
    agent = await create("Standin", { defaultEnvironmentId: environment.id }, {});
    const first = await figure("do-nothing run, Paperclip's default settings", await wake());
    await host.api("PATCH", "/instance/settings/experimental", { enableSandboxDuplexBridge: true });
    const second = await figure("do-nothing run, with duplex channels", await wake());
    assert.ok(second.some((c) => c.method === "duplexChannelOpen"));
    // No project, so nothing to reuse the VM for.
    assert.deepEqual(await lobby.vms(), []);
    assert.equal(lobby.count("ssh-login", 0, first[0].lease), 1, "one SSH connection for a whole run");
    assert.equal(lobby.count("ssh-login", 0, second[0].lease), 1);
});

let worked;

step("a run checks out a workspace, changes files, streams its log to the page, brings the files back", async () => {
    const git = (...args) => execFileSync("git", ["-C", repository, "-c", "user.name=e2e", "-c", "user.email=e2e@example.org", ...args]);
    mkdirSync(join(repository, "src"), { recursive: true });
    writeFileSync(join(repository, "src", "hello.txt"), "hello from the host\n");
    git("init", "-q", "-b", "main");
    git("add", ".");
    git("commit", "-q", "-m", "What the host wrote");
    project = await host.api("POST", `/companies/${company.id}/projects`, {
        name: "Main job",
        workspace: { name: "main", sourceType: "local_path", cwd: repository, isPrimary: true },
        executionWorkspacePolicy: { enabled: true, defaultMode: "isolated_workspace", workspaceStrategy: { type: "git_worktree", baseRef: "main" } },
    });
    const { issue, run } = await assign("Change the greeting", "work");
    worked = { issue, run };
    await browser.goto(`/${company.issuePrefix}/agents/${agent.urlKey}/runs/${run}`);
    await browser.page.getByText("step 2 of 10").first().waitFor({ timeout: 240000 });
    const { status } = await host.api("GET", `/heartbeat-runs/${run}`);
    assert.equal(status, "running", "the page shows the log while the run goes on");
    await browser.shot("4-live-log");
    await success(run);
    await browser.page.getByText("order 'work' done").first().waitFor();
    await browser.shot("5-run");
    const trees = git("worktree", "list", "--porcelain").toString().match(/^worktree .*$/gm).map((line) => line.slice(9));
    const tree = trees.find((path) => path !== repository);
    assert.equal(readFileSync(join(tree, "src", "hello.txt"), "utf8"), "hello from the host\nand from the VM\n");
    assert.deepEqual([...readFileSync(join(tree, "made on the VM ü.bin"))], Array.from({ length: 256 }, (_, i) => i));
    assert.equal(statSync(join(tree, "run.sh")).mode & 0o777, 0o755);
    assert.equal(execFileSync(join(tree, "run.sh")).toString(), "made on the VM\n");
    assert.equal(readlinkSync(join(tree, "link")), "src/hello.txt");
    assert.equal(readFileSync(join(repository, "src", "hello.txt"), "utf8"), "hello from the host\n");
    assert.equal((await host.api("GET", `/issues/${issue.id}`)).status, "done", "the agent reached Paperclip through the bridge");
    await released(leaseOf(run));
    for (const method of ["environmentSyncIn", "environmentSyncOut"])
        assert.ok(calls({ lease: leaseOf(run), method }).length > 0, `${method} carries the files`);
    assert.deepEqual(await lobby.vms(), [leaseOf(run)], "kept for the next run");
});

step("the second run in that workspace reuses the lease", async () => {
    const lease = leaseOf(worked.run);
    const since = Date.now();
    await host.api("POST", `/issues/${worked.issue.id}/comments`, { body: "Once more. ORDER: nothing", reopen: true });
    const run = await until("a second run", 120000, async () => {
        const list = await host.api("GET", `/issues/${worked.issue.id}/runs`);
        return list.find((r) => r.runId !== worked.run)?.runId;
    });
    await figure("do-nothing run on a kept VM, with a checkout", run, lease, since);
    assert.equal(calls({ since, method: "environmentResumeLease" })[0]?.lease, lease);
    assert.equal(calls({ since, method: "environmentAcquireLease" }).length, 0);
    assert.deepEqual(await lobby.vms(), [lease]);
    assert.equal(lobby.count("ssh-login", 0, lease), 1, "the connection was kept, too");
});

async function slowRun(name) {
    const { issue, run } = await assign(name, "slow");
    await until("the slow agent to begin", 240000, async () => (await host.log(run).catch(() => "")).includes("slow work begins"));
    await sleep(500);
    return { issue, run };
}

step("a run cancelled half way", async () => {
    const { issue, run } = await slowRun("Cancelled");
    await host.api("POST", `/heartbeat-runs/${run}/cancel`, {});
    assert.equal((await host.run(run)).status, "cancelled");
    await host.api("PATCH", `/issues/${issue.id}`, { status: "cancelled" });
    // This host tells no provider of the cancel: it destroys the lease when the issue is closed, or releases it at the agent's end.
    const lease = leaseOf(run);
    assert.equal((await released(lease)).error, undefined);
    assert.ok(!(await lobby.vms()).includes(lease) || calls({ lease, method: "environmentReleaseLease" }).length);
});

let orphan;

step("the worker killed under a run", async () => {
    const { issue, run } = await slowRun("Worker killed");
    const worker = entries().filter((e) => e.event === "ready").at(-1).worker;
    orphan = leaseOf(run);
    process.kill(worker, "SIGKILL");
    const ended = await host.run(run);
    assert.equal(ended.status, "failed");
    await host.api("PATCH", `/issues/${issue.id}`, { status: "cancelled" });
    await until("the worker to start again", 30000, () => entries().filter((e) => e.event === "ready").at(-1).worker !== worker);
    await until("the dead worker's connections to end", 10000, () => !processes().some((p) => /\bssh\b/.test(p.words) && p.words.includes(orphan)));
});

step("the plugin upgraded", async () => {
    for (const name of ["package.json", "dist/manifest.js"]) {
        const path = join(folder, name);
        writeFileSync(path, readFileSync(path, "utf8").replace(/("?version"?: )"[^"]*"/, '$1"99.0.0"'));
    }
    const before = entries().filter((e) => e.event === "ready").at(-1).worker;
    host.cli("plugin", "upgrade", key);
    await until("the new worker", 30000, () => entries().filter((e) => e.event === "ready").at(-1).worker !== before);
    assert.match(host.cli("plugin", "list"), /status=ready +version=99\.0\.0/);
    const lease = leaseOf(worked.run);
    const since = Date.now();
    await host.api("POST", `/issues/${worked.issue.id}/comments`, { body: "After the upgrade. ORDER: nothing", reopen: true });
    const seen = new Set((await host.api("GET", `/issues/${worked.issue.id}/runs`)).map((r) => r.runId));
    await until("a run after the upgrade", 240000, async () => {
        for (const r of await host.api("GET", `/issues/${worked.issue.id}/runs`))
            if (!seen.has(r.runId) || new Date(r.createdAt) >= since) return success(r.runId);
    });
    assert.ok([...calls({ since, method: "environmentResumeLease" }), ...calls({ since, method: "environmentAcquireLease" })].length);
    assert.ok((await lobby.vms()).includes(lease) || calls({ since, method: "environmentDestroyLease", lease }).length, "kept, or replaced and destroyed");
});

step("the host started anew deletes what the killed worker left", async () => {
    await host.stop();
    await host.start();
    await until("the orphan's end", 120000, async () => !(await lobby.vms()).includes(orphan));
});

step("the environment deleted and the host stopped, nothing is left", async () => {
    await host.api("DELETE", `/environments/${environment.id}?destroyReusableSandboxLeases=true`);
    assert.deepEqual(await lobby.vms(), []);
    await browser.goto(`/${company.issuePrefix}${settings}`);
    await browser.shot("6-end");
    await browser.stop();
    await host.stop();
    const ended = await lobby.stop();
    assert.equal(ended.code, 0, "the lobby ends by itself");
    await until("our processes to end", 10000, () => processes().length === 0).catch(() => assert.deepEqual(processes(), []));
    assert.deepEqual(temporary().filter((name) => !before.includes(name)), []);
    // The worker's own memory of its VMs; it has the user's home from the password database.
    const journal = readFileSync(join(userInfo().homedir, ".local/state/exedev/journal"), "utf8").trim().split("\n").map((line) => JSON.parse(line));
    for (const { vm } of lobby.events.filter((e) => e.event === "vm-created")) {
        const last = journal.filter((entry) => entry.vm === vm).at(-1);
        assert.ok(last === undefined || last.state === "gone", `${vm} is ${last?.state} in the journal`);
    }
});

step("no secret in any log", () => {
    const secrets = [lobby.token, lobby.privateKey.split("\n")[3]];
    for (const name of readdirSync(report).filter((n) => /\.(log|jsonl)$/.test(n))) {
        const text = readFileSync(join(report, name), "latin1");
        for (const secret of secrets) assert.ok(!text.includes(secret), `${name} holds a secret`);
    }
});
