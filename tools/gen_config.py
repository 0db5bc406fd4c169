#!/usr/bin/env python3
"""Everything that is made from src/schema/config.json.

  gen_config.py fields SCHEMA                       C initialisers of config_fields[]
  gen_config.py manifest SCHEMA MANIFEST VERSION    the npm package's dist/manifest.js
  gen_config.py table SCHEMA                        the settings table, Markdown
  gen_config.py man SCHEMA VERSION DATE             exedev-settings(7)
  gen_config.py page SCHEMA                         docs/settings.md
"""
import copy
import json
import re
import sys

TYPES = {"string", "integer", "list", "map", "flag"}


def load(path):
    with open(path, encoding="utf-8") as f:
        schema = json.load(f)
    for key, p in schema["properties"].items():
        missing = {"type", "title", "description", "x-exedev"} - p.keys()
        if missing:
            sys.exit(f"{path}: {key} has no {', '.join(sorted(missing))}")
        if p["x-exedev"]["type"] not in TYPES:
            sys.exit(f"{path}: {key} has an unknown x-exedev type")
        if bool(p.get("x-paperclip-advanced")) != ("x-paperclip-group" in p):
            sys.exit(f"{path}: {key} must have both an advanced mark and a group, or neither")
    return schema


def member(key, sep="_"):
    return re.sub(r"[A-Z]", lambda m: sep + m.group().lower(), key)


def c_string(text):
    if text is None:
        return "NULL"
    return json.dumps(text, ensure_ascii=True)


def secret(p):
    return p.get("format") == "secret-ref"


def multiline(p):
    return bool(p["x-exedev"].get("multiline")) or secret(p) and p.get("maxLength", 0) > 200


def fields(schema):
    out = ["/* Made by tools/gen_config.py from src/schema/config.json. */"]
    for key, p in schema["properties"].items():
        x = p["x-exedev"]
        fallback = x.get("fallback")
        out.append(
            "{.key = %s, .flag = %s, .title = %s, .group = %s, .text = %s, .type = FIELD_%s,"
            " .secret = %s, .multiline = %s, .min = %d, .max = %d, .fallback = %s,"
            " .offset = offsetof(struct config, %s)},"
            % (
                c_string(key), c_string(member(key, "-")), c_string(p["title"]),
                c_string(p.get("x-paperclip-group")), c_string(p["description"]),
                x["type"].upper(), str(secret(p)).lower(), str(multiline(p)).lower(),
                p.get("minimum", 0), p.get("maximum", 0),
                c_string(None if fallback is None else str(fallback)), member(key),
            )
        )
    return "\n".join(out) + "\n"


def manifest(schema, base_path, version):
    with open(base_path, encoding="utf-8") as f:
        base = json.load(f)
    form = copy.deepcopy(schema)
    form.pop("$comment", None)
    for p in form["properties"].values():
        del p["x-exedev"]
    out = {}
    for key, value in base.items():
        out[key] = value
        if key == "apiVersion":
            out["version"] = version
    for driver in out["environmentDrivers"]:
        driver["configSchema"] = form
    # CommonJS like the worker beside it, which Node starts sooner than a module. Paperclip imports the manifest
    # again after an upgrade in the same folder: Node must not have kept the old one.
    return "module.exports = " + json.dumps(out, indent=2, ensure_ascii=True) + ";\ndelete require.cache[__filename];\n"


def default_of(p):
    x = p["x-exedev"]
    if "fallback" in x:
        return f"`{x['fallback']}`"
    if x["type"] == "flag":
        return "`false`"
    if "default" in p and p["default"] not in ({}, []):
        return f"none; the form proposes `{p['default']}`"
    return ""


def kind(p):
    x = p["x-exedev"]
    if secret(p):
        return "secret"
    if x["type"] == "integer":
        return f"{p['minimum']} to {p['maximum']}"
    if "enum" in p:
        return ", ".join(f"`{v}`" for v in p["enum"])
    return {"string": "text", "list": "list", "map": "object", "flag": "true or false"}[x["type"]]


def groups(schema):
    found = {}
    for key, p in schema["properties"].items():
        found.setdefault(p.get("x-paperclip-group", "Essential"), []).append((key, p))
    return found.items()


def table(schema):
    out = []
    for group, members in groups(schema):
        out += [f"**{group}**", "", "| setting | value | default | what |", "| --- | --- | --- | --- |"]
        for key, p in members:
            text = p["description"].replace("|", "\\|")
            out.append(f"| `{key}` | {kind(p)} | {default_of(p)} | {text} |")
        out.append("")
    return "\n".join(out)


def man(schema, version, date):
    def roff(text):
        text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
        return "\\&" + text if text[:1] in ".'" else text

    out = [
        f'.TH EXEDEV-SETTINGS 7 "{date}" "exedev {version}" "exedev manual"',
        ".SH NAME",
        "exedev\\-settings \\- the settings of exedev and of its Paperclip plugin",
        ".SH DESCRIPTION",
        "A setting such as sshPort is \\-\\-ssh\\-port on the command line and EXEDEV_SSH_PORT in the environment.",
        "Secrets are read from files (\\-\\-api\\-key\\-file, \\-\\-ssh\\-key\\-file; EXEDEV_API_KEY_FILE, EXEDEV_SSH_KEY_FILE) or variables, never from the command line.",
    ]
    for group, members in groups(schema):
        out.append(f".SS {group}")
        for key, p in members:
            default = default_of(p)
            what = kind(p) + (f"; default {default}" if default else "")
            out += [".TP", f".BR {roff(key)} \" ({roff(what)})\"", roff(p["description"])]
    return "\n".join(out + [".SH SEE ALSO", ".BR exedev (1)"]) + "\n"


def page(schema):
    return (
        "# Settings\n\n"
        "Made by `tools/gen_config.py page` from `src/schema/config.json`. `sshPort` is `--ssh-port` on the command line,\n"
        "`EXEDEV_SSH_PORT` in the environment, and `sshPort` in Paperclip's form and in configuration files. Secrets are\n"
        "read from files (`--api-key-file`, `--ssh-key-file`; `EXEDEV_API_KEY_FILE`, `EXEDEV_SSH_KEY_FILE`) or variables, never from the command line.\n\n" + table(schema)
    )


def main(args):
    if len(args) < 2:
        sys.exit(__doc__)
    verb, schema, rest = args[0], load(args[1]), args[2:]
    if verb == "fields":
        sys.stdout.write(fields(schema))
    elif verb == "manifest" and len(rest) == 2:
        sys.stdout.write(manifest(schema, *rest))
    elif verb == "table":
        sys.stdout.write(table(schema))
    elif verb == "man" and len(rest) == 2:
        sys.stdout.write(man(schema, *rest))
    elif verb == "page":
        sys.stdout.write(page(schema))
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
