#!/usr/bin/env node
// A stand-in for the command-line program of Paperclip's codex_local adapter: it speaks that program's event lines
// and does what a line "ORDER: word" of its prompt says, so that a run needs no model and no network.
import { appendFileSync, chmodSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";

const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const message = (text) => say({ type: "item.completed", item: { id: `item_${++said}`, type: "agent_message", text } });
let said = 0;

// Through the bridge that Paperclip opens into the VM.
async function paperclip(method, path, body) {
    const answer = await fetch(`${process.env.PAPERCLIP_API_URL}/api${path}`, {
        method,
        headers: {
            "content-type": "application/json",
            authorization: `Bearer ${process.env.PAPERCLIP_API_KEY}`,
            "x-paperclip-run-id": process.env.PAPERCLIP_RUN_ID,
        },
        body: body && JSON.stringify(body),
    });
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${(await answer.text()).slice(0, 300)}`);
    return answer.json();
}

async function work() {
    message(`at work on ${process.version} in ${process.cwd()}`);
    if (readFileSync("src/hello.txt", "utf8").startsWith("hello from the host\n") === false)
        throw new Error("the workspace is not the one that was checked out");
    message(`checked out: ${execFileSync("git", ["log", "-1", "--format=%s"]).toString().trim()}`);
    for (let i = 1; i <= 10; i++) {
        message(`step ${i} of 10`);
        await sleep(1000);
    }
    appendFileSync("src/hello.txt", "and from the VM\n");
    writeFileSync("made on the VM ü.bin", Buffer.from(Array.from({ length: 256 }, (_, i) => i)));
    writeFileSync("run.sh", "#!/bin/sh\necho made on the VM\n");
    chmodSync("run.sh", 0o755);
    symlinkSync("src/hello.txt", "link");
}

async function slow() {
    message("slow work begins");
    for (let i = 0; i < 80; i++) {
        appendFileSync("progress.txt", `${i}\n`);
        await sleep(250);
    }
}

const prompt = readFileSync(0, "utf8");
const order = [...prompt.matchAll(/ORDER: (\w+)/g)].at(-1)?.[1] ?? "nothing";
say({ type: "thread.started", thread_id: "0199a213-81c0-7800-8aa1-bbab2a035a53" });
say({ type: "turn.started" });
if (order === "work") await work();
if (order === "slow") await slow();
if (process.env.PAPERCLIP_TASK_ID && order !== "slow")
    await paperclip("PATCH", `/issues/${process.env.PAPERCLIP_TASK_ID}`, { status: "done" });
message(`order '${order}' done`);
say({ type: "turn.completed", usage: { input_tokens: 1, cached_input_tokens: 0, output_tokens: 1 } });
