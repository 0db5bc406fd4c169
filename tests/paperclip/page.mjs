// The browser: Debian's Chromium through playwright-core, and Paperclip's settings form.
import { createRequire } from "node:module";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { cache, report } from "./parts.mjs";

const { chromium } = createRequire(join(cache, "package.json"))("playwright-core");

export class Browser {
    async start(url) {
        this.url = url;
        const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
        // Its own sandbox needs what containers often forbid; it only ever sees pages of this machine.
        this.browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
        this.page = await this.browser.newPage({ viewport: { width: 1280, height: 1100 } });
        this.page.setDefaultTimeout(120000);
    }

    stop() {
        return this.browser?.close();
    }

    goto(path) {
        return this.page.goto(this.url + path);
    }

    shot(name) {
        return this.page.screenshot({ path: join(report, `${name}.png`), fullPage: true });
    }

    // The smallest box that holds both the label and something to fill.
    field(title) {
        const text = title.replaceAll("'", "’");
        return this.page.locator(
            `xpath=//main//*[self::label or self::span][normalize-space()='${text}']/ancestor::div[.//input or .//select or .//textarea or .//button[@role='checkbox']][1]`,
        ).first();
    }

    async fill(title, value) {
        const field = this.field(title);
        await field.waitFor();
        const raw = field.getByRole("button", { name: "Or paste a raw value" });
        if (await raw.count()) await raw.click();
        if (typeof value === "boolean") {
            const box = field.locator("[role=checkbox], input[type=checkbox]").first();
            if ((await box.isChecked()) !== value) await box.click();
            return;
        }
        const box = field.locator("input:not([type=checkbox]), textarea").last();
        await box.waitFor();
        // A masked box of several lines takes nothing while it is masked.
        const masked = (await box.getAttribute("readonly")) !== null;
        if (masked) await field.getByRole("button", { name: "Show secret" }).click();
        await box.fill(String(value));
        if (masked) await field.getByRole("button", { name: "Hide secret" }).click();
    }
}
