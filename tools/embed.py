#!/usr/bin/env python3
"""embed.py OUT.c NAME=FILE...: files as C arrays, `const unsigned char NAME[]` and `const size_t NAME_len`."""
import sys

with open(sys.argv[1], "w", encoding="ascii") as out:
    out.write("#include <stddef.h>\n")
    for arg in sys.argv[2:]:
        name, path = arg.split("=", 1)
        with open(path, "rb") as f:
            data = f.read()
        out.write(f"extern const unsigned char {name}[];\nextern const size_t {name}_len;\n")
        out.write(f"const size_t {name}_len = {len(data)};\nconst unsigned char {name}[] = {{\n")
        for i in range(0, len(data), 24):
            out.write("".join(f"{b}," for b in data[i:i + 24]) + "\n")
        out.write("0};\n")
