# Writes files as C arrays: embed.py OUT NAME FILE [NAME FILE...]
import sys

with open(sys.argv[1], 'w') as out:
    for name, path in zip(sys.argv[2::2], sys.argv[3::2]):
        data = open(path, 'rb').read()
        out.write('static const unsigned char %s[%d] = {\n' % (name, len(data)))
        for i in range(0, len(data), 32):
            out.write(','.join(map(str, data[i:i + 32])) + ',\n')
        out.write('};\n')
