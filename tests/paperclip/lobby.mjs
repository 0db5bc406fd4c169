// exedev-lobby as a Part, with the account that the runs use, and what a VM needs to be an agent's machine: a file server
// on loopback, from which the setup script takes npm's Node and the stand-in agent.
import { createReadStream, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { Part, freePort, modules, programs, run, until, work } from "./parts.mjs";

export class Lobby {
    events = [];

    async start() {
        const [listen, ssh] = [await freePort(), await freePort()];
        const key = join(work, "id_ed25519");
        run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f", key]);
        this.privateKey = readFileSync(key, "utf8");
        this.publicKey = readFileSync(`${key}.pub`, "utf8");
        this.token = `exe1.e2e${Math.random().toString(36).slice(2).padEnd(12, "x")}`;
        this.apiUrl = `http://127.0.0.1:${listen}/exec`;
        this.sshPort = ssh;
        this.part = new Part(
            "lobby",
            join(programs, "exedev-lobby"),
            ["--listen", `127.0.0.1:${listen}`, "--ssh-port", String(ssh), "--authorized-key", `${key}.pub`, "--token", this.token, "--json"],
            { TMPDIR: work, HOME: join(work, "home") },
            (line) => {
                try {
                    this.events.push({ seen: Date.now(), ...JSON.parse(line) });
                } catch {} // a line for people
            },
        );
        await until("the lobby to answer", 20000, () => this.part.alive() && this.exec("whoami").catch(() => null));
        await this.serveFiles();
    }

    async serveFiles() {
        const files = { "/node": join(modules, "node", "bin", "node"), "/codex": join(import.meta.dirname, "agent.mjs") };
        this.files = createServer((request, response) => {
            if (files[request.url]) createReadStream(files[request.url]).pipe(response);
            else response.writeHead(404).end();
        }).listen(0, "127.0.0.1");
        await new Promise((done) => this.files.once("listening", done));
        const from = `http://127.0.0.1:${this.files.address().port}`;
        this.setupScript = [
            "#!/bin/sh",
            "set -e",
            'mkdir -p "$HOME/.local/bin"',
            'cd "$HOME/.local/bin"',
            `curl -fsS ${from}/node -o node ${from}/codex -o codex`,
            "chmod 755 node codex",
            `echo 'PATH="$HOME/.local/bin:$PATH"; export PATH' >> "$HOME/.profile"`,
            "",
        ].join("\n");
    }

    async exec(command) {
        const answer = await fetch(this.apiUrl, { method: "POST", headers: { authorization: `Bearer ${this.token}` }, body: command });
        const text = await answer.text();
        if (!answer.ok) throw new Error(`lobby: ${command}: ${answer.status} ${text}`);
        return JSON.parse(text);
    }

    async vms() {
        return (await this.exec("ls")).vms.map((vm) => vm.vm_name);
    }

    count(event, since = 0, vm = null) {
        return this.events.filter((e) => e.event === event && e.seen >= since && (vm === null || e.vm === vm)).length;
    }

    async stop() {
        this.files?.closeAllConnections();
        this.files?.close();
        return this.part?.stop();
    }
}
