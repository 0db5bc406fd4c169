"use strict";
// Paperclip forks this file with Node. It becomes the program beside it, so that no Node stays in memory: the
// process keeps its id, its pipes and its parent. Nothing here may touch process.stdin or process.stdout before
// that: Node would leave them non-blocking. CommonJS, because Node starts that some milliseconds sooner.
const fs = require("node:fs");
const path = require("node:path");

const program = path.join(__dirname, "exedev");

function runnable() {
    try {
        fs.accessSync(program, fs.constants.X_OK);
    } catch {
        // Some ways to copy a package lose the mode.
        fs.chmodSync(program, 0o755);
    }
}

// Node before 22.15 cannot replace itself: it stays, as a go-between.
function accompany() {
    const { spawn } = require("node:child_process");
    // stdin passes through us and is not inherited, so that the program sees its end when we are killed.
    const child = spawn(program, ["worker"], { stdio: ["pipe", "inherit", "inherit"] });
    child.stdin.on("error", () => {});
    process.stdin.pipe(child.stdin);
    for (const signal of ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
        process.on(signal, () => child.kill(signal));
    process.on("disconnect", () => child.kill("SIGTERM"));
    child.on("error", (error) => {
        process.stderr.write(`exedev: cannot start ${program}: ${error.message}\n`);
        process.exit(1);
    });
    child.on("exit", (code, signal) => {
        if (signal === null) process.exit(code);
        process.removeAllListeners(signal);
        process.kill(process.pid, signal);
    });
}

try {
    runnable();
} catch (error) {
    fs.writeSync(2, `exedev: ${program} cannot be run (${error.message}): install the package again\n`);
    process.exit(1);
}
if (typeof process.execve === "function") process.execve(program, [program, "worker"], process.env);
else accompany();
