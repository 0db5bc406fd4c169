#!/usr/bin/env python3
"""One manual page: the prose of man/NAME.md, with synopsis, options and examples as the program
itself prints them, so that page and --help cannot differ.

usage: gen_man.py EXEDEV man/NAME.md VERSION DATE GO-MD2MAN OUTPUT
"""
import contextlib
import io
import re
import subprocess
import sys


def escape(text):
    """Markdown's own characters in plain text."""
    return re.sub(r"([*_<>`\\|\[\]])", r"\\\1", text)


def sections(exedev, name):
    text = subprocess.run([exedev, name, "--help"], check=True, capture_output=True, text=True).stdout
    head, _, rest = text.partition("\nOptions:\n")
    usage, _, about = head.partition("\n\n")
    options, _, rest = rest.partition("\nExamples:\n")
    options, _, settings = options.partition("\nSettings (all of them: exedev help settings):\n")
    examples = rest.partition("\n\nMore: ")[0]
    return usage.removeprefix("usage: "), about.strip(), options, settings, examples


def option_list(text):
    out = []
    for line in text.splitlines():
        m = re.match(r"^ {2,6}((?:-\w, )?--\S.*?)(?:  +(.*)| *)$", line)
        if m:
            out.append(["**%s**" % m[1], m[2] or ""])
        elif line.strip() and out:
            out[-1][1] += " " + line.strip()
    return "".join("%s\n:   %s\n\n" % (o, escape(h)) for o, h in out)


def write_page(exedev, source, page, version, date):
    with open(source, encoding="utf-8") as f:
        first, _, prose = f.read().partition("\n")
    summary = first.removeprefix("% ")
    print('%% "%s" "1" "%s" "exedev %s" "exedev manual"' % (page.upper(), date, version))
    print("\n# NAME\n\n%s - %s\n" % (page, summary))
    if page == "exedev":
        print(prose)
        return
    usage, about, options, settings, examples = sections(exedev, page.removeprefix("exedev-"))
    print("# SYNOPSIS\n\n**%s**\n" % escape(usage))
    print("# DESCRIPTION\n\n%s\n" % escape(about))
    description, mark, more = prose.partition("\n# ")
    print(description.strip() + "\n")
    print("# OPTIONS\n\n" + option_list(options))
    if settings:
        print("Connection settings:\n\n" + option_list(settings))
        print("Every other setting is an option as well; **exedev help settings** lists them.\n")
    if examples:
        print("# EXAMPLES\n\n```\n%s\n```\n" % examples)
    if mark:
        print("# " + more)
    print("# SEE ALSO\n\n**exedev**(1)")


def main():
    exedev, source, version, date, md2man, output = sys.argv[1:]
    page = source.rsplit("/", 1)[1].removesuffix(".md")
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        write_page(exedev, source, page, version, date)
    roff = subprocess.run([md2man], input=text.getvalue(), check=True, capture_output=True, text=True).stdout
    # md2man starts a paragraph after every heading, which mandoc's lint calls useless.
    roff = re.sub(r"(?m)^(\.SH .*)\n\.PP$", r"\1", roff)
    with open(output, "w", encoding="utf-8") as f:
        f.write(roff)


main()
