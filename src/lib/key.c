#include "lib/key.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/spawn.h"
#include "base/text.h"
#include "lib/config.h"
#include "lib/key_internal.h"
#include "lib/secret.h"

#define KEY_MAX 65536

struct key {
    int fd;
    char *path;
    bool pkcs8_ed25519;
};

/* What the text is made of, found in one walk over its lines. */
struct pem {
    char *label;      /* between BEGIN and PRIVATE KEY, trimmed: "RSA", "OPENSSH", "" */
    struct buf clean; /* the block with healed line ends; secret */
    struct buf b64;   /* its body; secret */
    bool begin, end, broken_line, one_line, encrypted_header, public_block;
    bool label_differs;
    char *end_label;
};

static void pem_clear(struct pem *p)
{
    free(p->label);
    free(p->end_label);
    buf_wipe(&p->clean);
    buf_wipe(&p->b64);
}

/* "-----BEGIN RSA PRIVATE KEY-----" -> "RSA" (owned); NULL: another line. */
static char *private_label(const char *line, const char *verb)
{
    cleanup_free char *head = xasprintf("-----%s ", verb);

    if (!text_starts(line, head) || !text_ends(line, "PRIVATE KEY-----"))
        return NULL;
    size_t from = strlen(head), to = strlen(line) - strlen("PRIVATE KEY-----");
    if (to < from || memmem(line + from, to - from, "---", 3))
        return NULL;
    cleanup_free char *label = xstrndup(line + from, to - from);
    return text_trim(label);
}

static bool is_base64(const char *s)
{
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("+/=", *s))
            return false;
    return true;
}

static bool is_header(const char *s)
{
    size_t n = 0;

    while (isalnum((unsigned char)s[n]) || s[n] == '-')
        n++;
    return n && s[n] == ':';
}

static void pem_line(struct pem *p, const char *line, bool *headers)
{
    if (!p->begin) {
        if ((p->label = private_label(line, "BEGIN"))) {
            p->begin = true;
            buf_printf(&p->clean, "%s\n", line);
        } else if (text_starts(line, "-----BEGIN ") && strstr(line, "PRIVATE KEY-----")) {
            p->one_line = true;
        } else if (strstr(line, "PUBLIC KEY")) {
            p->public_block = true;
        }
        return;
    }
    if (p->end)
        return;
    if ((p->end_label = private_label(line, "END"))) {
        p->end = true;
        p->label_differs = strcmp(p->label, p->end_label) != 0;
        buf_printf(&p->clean, "%s\n", line);
    } else if (!*line) {
        if (*headers)
            buf_putc(&p->clean, '\n');
        *headers = false;
    } else if (is_base64(line)) {
        buf_puts(&p->b64, line);
        buf_printf(&p->clean, "%s\n", line);
    } else if (is_header(line)) {
        *headers = true;
        if (text_starts(line, "Proc-Type:") && strstr(line, "ENCRYPTED"))
            p->encrypted_header = true;
        buf_printf(&p->clean, "%s\n", line);
    } else {
        p->broken_line = true;
    }
}

static void pem_read(const char *text, struct pem *p)
{
    bool headers = false;

    for (const char *s = text; *s;) {
        size_t n = strcspn(s, "\r\n");
        cleanup_secret char *raw = secret_dupn(s, n);
        char *line = raw + strspn(raw, " \t");
        size_t len = strlen(line);
        while (len && strchr(" \t", line[len - 1]))
            line[--len] = '\0';
        pem_line(p, line, &headers);
        s += n;
        s += s[0] == '\r' && s[1] == '\n' ? 2 : *s != '\0';
    }
}

static bool has_line_starting(const char *text, const char *what)
{
    for (const char *s = text; s; s = strpbrk(s, "\r\n")) {
        s += strspn(s, " \t\r\n");
        if (text_starts(s, what))
            return true;
    }
    return false;
}

static bool is_public_key(const char *text)
{
    static const char *const types[] = {"ssh-rsa",     "ssh-dss", "ssh-ed25519",
                                        "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"};

    text += strspn(text, " \t\r\n");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (text_starts(text, types[i]))
            return true;
    return false;
}

/* The first bytes of the body, decoded: enough to tell the formats apart. */
static size_t body_head(const struct pem *p, unsigned char *out, size_t max)
{
    cleanup_secret_buf struct buf part = {0};
    size_t n = (max / 3) * 4;

    n = p->b64.len < n ? p->b64.len / 4 * 4 : n;
    if (!n)
        return 0;
    buf_put(&part, p->b64.data, n);
    int got = EVP_DecodeBlock(out, (unsigned char *)part.data, (int)n);
    return got > 0 ? (size_t)got : 0;
}

static bool is_encrypted(const struct pem *p)
{
    unsigned char head[48];
    /* PROTOCOL.key: the magic, then the cipher's name as a string. */
    static const char magic[] = "openssh-key-v1";
    size_t n = body_head(p, head, sizeof head);
    bool encrypted = p->encrypted_header || !strcmp(p->label, "ENCRYPTED");

    if (n > sizeof magic + 8 && !memcmp(head, magic, sizeof magic))
        encrypted = memcmp(head + sizeof magic, "\0\0\0\4none", 8) != 0;
    explicit_bzero(head, sizeof head);
    return encrypted;
}

static bool is_pkcs8_ed25519(const struct pem *p)
{
    unsigned char head[48];
    static const unsigned char oid[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
    size_t n = body_head(p, head, sizeof head);
    bool found = p->label && !*p->label && memmem(head, n, oid, sizeof oid);

    explicit_bzero(head, sizeof head);
    return found;
}

static bool pem_check(const char *text, struct pem *p, struct error *err)
{
    if (strlen(text) > KEY_MAX)
        return error_set(err, ERR_INVALID,
                         "the SSH private key is longer than any key (over 64 KiB)");
    if (has_line_starting(text, "PuTTY-User-Key-File-"))
        return error_set(
            err, ERR_INVALID,
            "the SSH private key is a PuTTY key (.ppk), which OpenSSH cannot read: convert it "
            "with `puttygen KEY.ppk -O private-openssh -o KEY`, or in PuTTYgen with "
            "Conversions, Export OpenSSH key");
    pem_read(text, p);
    if (!p->begin && (is_public_key(text) || p->public_block))
        return error_set(
            err, ERR_INVALID,
            "this is a public SSH key, not a private one: paste the file without `.pub` at the "
            "end of its name");
    if (p->one_line)
        return error_set(
            err, ERR_INVALID,
            "the SSH private key has lost its line breaks: paste the file as it is, the BEGIN "
            "line, the lines below it and the END line");
    if (!p->begin)
        return error_set(
            err, ERR_INVALID,
            "the SSH private key has no `-----BEGIN ... PRIVATE KEY-----` line: paste the whole "
            "private key file");
    if (!p->end)
        return error_set(
            err, ERR_INVALID,
            "the SSH private key is cut off: its `-----END ... PRIVATE KEY-----` line is "
            "missing; paste the whole file");
    if (p->label_differs)
        return error_set(
            err, ERR_INVALID,
            "the SSH private key begins as one kind and ends as another (BEGIN and END lines "
            "differ): paste one whole file");
    if (p->broken_line)
        return error_set(
            err, ERR_INVALID,
            "the SSH private key is damaged: a line between BEGIN and END is neither base64 nor "
            "a `Name: value` header; paste the file again");
    if (!p->b64.len)
        return error_set(
            err, ERR_INVALID,
            "the SSH private key is empty: there is nothing between its BEGIN and END lines");
    if (is_encrypted(p))
        return error_set(
            err, ERR_INVALID,
            "the SSH private key is protected by a passphrase, which nobody is there to type: "
            "make a copy without one (`cp KEY COPY; ssh-keygen -p -N '' -f COPY`), or use an "
            "agent (sshAgentSocket)");
    return true;
}

static bool is_blank(const char *text)
{
    return !text || !text[strspn(text, " \t\r\n")];
}

bool key_check(const char *text, struct error *err)
{
    struct pem p = {0};

    if (is_blank(text) || config_is_secret_id(text))
        return true;
    bool ok = pem_check(text, &p, err);
    pem_clear(&p);
    return ok;
}

int key_memfd(const char *name, const void *p, size_t n, struct error *err)
{
    cleanup_fd int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || fchmod(fd, 0600)) {
        error_sys(err, errno, "make a file in memory for an SSH key");
        return -1;
    }
    if (!io_write_all(fd, p, n, DEADLINE_NEVER, err))
        return -1;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) {
        error_sys(err, errno, "seal the file in memory that holds an SSH key");
        return -1;
    }
    return steal_fd(&fd);
}

struct key *key_load(const char *text, struct error *err)
{
    struct pem p = {0};
    struct key *k = NULL;

    if (is_blank(text)) {
        error_set(err, ERR_INVALID, "there is no SSH private key");
        return NULL;
    }
    if (config_is_secret_id(text)) {
        error_set(err, ERR_INVALID,
                  "the SSH private key is only the id of a secret, not its text: the host has not "
                  "resolved it");
        return NULL;
    }
    if (pem_check(text, &p, err)) {
        int fd = key_memfd("ssh-key", p.clean.data, p.clean.len, err);
        if (fd >= 0) {
            k = xcalloc(1, sizeof *k);
            k->fd = fd;
            k->path = xasprintf("/proc/%d/fd/%d", (int)getpid(), fd);
            k->pkcs8_ed25519 = is_pkcs8_ed25519(&p);
        }
    }
    pem_clear(&p);
    return k;
}

void key_free(struct key *k)
{
    if (!k)
        return;
    close(k->fd);
    free(k->path);
    free(k);
}

const char *key_path(const struct key *k)
{
    return k->path;
}

bool key_decode(const struct key *k, char **public_key, struct deadline d, struct error *err)
{
    const char *const argv[] = {"ssh-keygen", "-y", "-P", "", "-f", k->path, NULL};
    cleanup_buf struct buf out = {0}, said = {0};
    cleanup_error struct error why = {0};
    int status;

    if (!spawn_run(argv, NULL, 0, &out, &said, 65536, d, &status, &why)) {
        if (why.sys == ENOENT)
            return error_set(
                err, ERR_UNSUPPORTED,
                "the SSH private key cannot be tried out: there is no ssh-keygen on this "
                "machine; install openssh-client");
        error_move(err, &why);
        return error_prefix(err, "try out the SSH private key");
    }
    if (status == 0 && out.len) {
        if (public_key) {
            char *space = strchr(out.data, ' ');
            space = space ? strchr(space + 1, ' ') : NULL;
            out.data[space ? (size_t)(space - out.data) : strcspn(out.data, "\n")] = '\0';
            *public_key = xstrdup(out.data);
        }
        return true;
    }
    const char *text = said.data ? said.data : "";
    if (strstr(text, "incorrect passphrase"))
        return error_set(
            err, ERR_INVALID,
            "the SSH private key is protected by a passphrase, which nobody is there to type: "
            "make a copy without one (`cp KEY COPY; ssh-keygen -p -N '' -f COPY`)");
    if (k->pkcs8_ed25519)
        return error_set(
            err, ERR_INVALID,
            "the SSH private key is an Ed25519 key in PKCS#8 form, which OpenSSH reads only from "
            "version 9.6 on: convert it there with `ssh-keygen -p -N '' -f KEY`, or with "
            "`puttygen KEY -O private-openssh -o NEW`");
    /* "Load key "/proc/...": error in libcrypto": the path would only confuse. */
    const char *colon = strstr(text, "\": ");
    cleanup_buf struct buf shown = {0};
    const char *reason = colon ? colon + 3 : text;
    text_visible(&shown, reason, strcspn(reason, "\r\n"), 200);
    return error_set(
        err, ERR_INVALID,
        "the SSH private key is damaged, OpenSSH cannot decode it (%s): copy the key file "
        "again, or make a new key with `ssh-keygen -t ed25519`",
        shown.data && shown.len ? shown.data : "no reason given");
}
