#include "tree/hash.h"

#include <endian.h>
#include <string.h>

static const uint64_t P1 = 0x9E3779B185EBCA87u, P2 = 0xC2B2AE3D27D4EB4Fu, P3 = 0x165667B19E3779F9u,
                      P4 = 0x85EBCA77C2B2AE63u, P5 = 0x27D4EB2F165667C5u;

static uint64_t rotate(uint64_t v, int bits)
{
    return v << bits | v >> (64 - bits);
}

static uint64_t load64(const unsigned char *p)
{
    uint64_t v;

    memcpy(&v, p, 8);
    return le64toh(v);
}

static uint64_t mix(uint64_t lane, uint64_t word)
{
    return rotate(lane + word * P2, 31) * P1;
}

void hash64_start(struct hash64 *h, uint64_t seed)
{
    *h = (struct hash64){.lane = {seed + P1 + P2, seed + P2, seed, seed - P1}, .seed = seed};
}

static const unsigned char *stripes(struct hash64 *h, const unsigned char *p, size_t n)
{
    uint64_t a = h->lane[0], b = h->lane[1], c = h->lane[2], d = h->lane[3];

    for (; n >= 32; n -= 32, p += 32) {
        a = mix(a, load64(p));
        b = mix(b, load64(p + 8));
        c = mix(c, load64(p + 16));
        d = mix(d, load64(p + 24));
    }
    h->lane[0] = a;
    h->lane[1] = b;
    h->lane[2] = c;
    h->lane[3] = d;
    return p;
}

void hash64_add(struct hash64 *h, const void *data, size_t n)
{
    const unsigned char *p = data;

    h->total += n;
    if (h->have) {
        size_t take = n < 32 - h->have ? n : 32 - h->have;
        memcpy(h->part + h->have, p, take);
        h->have += take;
        p += take;
        n -= take;
        if (h->have < 32)
            return;
        stripes(h, h->part, 32);
        h->have = 0;
    }
    const unsigned char *rest = stripes(h, p, n);
    h->have = n - (size_t)(rest - p);
    if (h->have)
        memcpy(h->part, rest, h->have);
}

uint64_t hash64_end(const struct hash64 *h)
{
    uint64_t v = h->seed + P5;

    if (h->total >= 32) {
        v = rotate(h->lane[0], 1) + rotate(h->lane[1], 7) + rotate(h->lane[2], 12) +
            rotate(h->lane[3], 18);
        for (int i = 0; i < 4; i++)
            v = (v ^ mix(0, h->lane[i])) * P1 + P4;
    }
    v += h->total;
    const unsigned char *p = h->part;
    size_t n = h->have;
    for (; n >= 8; n -= 8, p += 8)
        v = rotate(v ^ mix(0, load64(p)), 27) * P1 + P4;
    if (n >= 4) {
        uint32_t word;
        memcpy(&word, p, 4);
        v = rotate(v ^ le32toh(word) * P1, 23) * P2 + P3;
        p += 4;
        n -= 4;
    }
    for (; n; n--, p++)
        v = rotate(v ^ *p * P5, 11) * P1;
    v = (v ^ v >> 33) * P2;
    v = (v ^ v >> 29) * P3;
    return v ^ v >> 32;
}
