#include "lib/keyring.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/spawn.h"

/* A locked keyring asks the person at the screen: long enough to type a password. */
#define KEYRING_MS 60000
#define KEYRING_MAX 65536

static bool run(const char *const *argv, const char *in, struct buf *out, int *code,
                struct error *err)
{
    cleanup_buf struct buf complaint = {0};
    int status = 0;

    *code = -1;
    if (!spawn_run(argv, in ? in : "", in ? strlen(in) : 0, out, &complaint, KEYRING_MAX,
                   deadline_in(KEYRING_MS), &status, err))
        return error_prefix(err, "ask the desktop keyring");
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (*code != 0 && complaint.len)
        return error_set(err, ERR_SYSTEM, "the desktop keyring (secret-tool %s) refused: %.*s",
                         argv[1], (int)strcspn(complaint.data, "\n"), complaint.data);
    return true;
}

bool keyring_store(const char *id, const char *label, const char *text, struct error *err)
{
    cleanup_free char *title = xasprintf("--label=%s", label);
    const char *argv[] = {"secret-tool", "store", title, "service", "exedev", "id", id, NULL};
    cleanup_secret_buf struct buf out = {0};
    int code;

    if (!run(argv, text, &out, &code, err))
        return false;
    return code == 0 ||
           error_set(err, ERR_SYSTEM,
                     "the desktop keyring would not store %s (secret-tool exited with %d)", label,
                     code);
}

char *keyring_lookup(const char *id, struct error *err)
{
    const char *argv[] = {"secret-tool", "lookup", "service", "exedev", "id", id, NULL};
    cleanup_secret_buf struct buf out = {0};
    int code;

    if (!run(argv, NULL, &out, &code, err))
        return NULL;
    if (code != 0 || !out.len) {
        error_set(err, ERR_NOT_FOUND, "the desktop keyring has no entry exedev/%s", id);
        return NULL;
    }
    return buf_steal(&out);
}

bool keyring_clear(const char *id, struct error *err)
{
    const char *argv[] = {"secret-tool", "clear", "service", "exedev", "id", id, NULL};
    cleanup_buf struct buf out = {0};
    int code;

    return run(argv, NULL, &out, &code, err);
}

static bool works;

static void try_out(void)
{
    const char *off = getenv("EXEDEV_KEYRING");
    const char *bus = getenv("DBUS_SESSION_BUS_ADDRESS");
    unsigned char noise[8];
    char id[6 + 2 * sizeof(noise)] = "test-";

    if ((off && strcmp(off, "off") == 0) || !bus || !*bus)
        return;
    io_random(noise, sizeof(noise));
    io_hex(noise, sizeof(noise), id + 5);
    if (!keyring_store(id, "exedev test", "works", NULL))
        return;
    cleanup_free char *back = keyring_lookup(id, NULL);
    works = back && strcmp(back, "works") == 0;
    keyring_clear(id, NULL);
}

bool keyring_works(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, try_out);
    return works;
}
