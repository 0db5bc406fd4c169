#include "lobby/event.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/io.h"
#include "base/text.h"

static bool as_json;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void event_set_json(bool json)
{
    as_json = json;
}

static void put_plain(struct buf *out, const char *key, const json_t *value)
{
    cleanup_buf struct buf text = {0};

    if (json_is_string(value))
        buf_puts(&text, json_string_value(value));
    else
        json_write(&text, value);
    buf_printf(out, " %s=", key);
    text_visible(out, text.data ? text.data : "", text.len, 2000);
}

void event_emit(const char *name, json_t *fields)
{
    cleanup_buf struct buf line = {0};
    const char *key;
    json_t *value;

    if (as_json) {
        cleanup_json json_t *whole = json_pack("{s:s}", "event", name);
        json_object_update(whole, fields);
        json_write(&line, whole);
    } else {
        buf_printf(&line, "exedev-lobby: %s", name);
        json_object_foreach (fields, key, value)
            put_plain(&line, key, value);
    }
    buf_putc(&line, '\n');
    json_decref(fields);
    /* One write, so that lines stay whole; a reader that went away is no reason to stop. */
    pthread_mutex_lock(&lock);
    io_write_all(STDERR_FILENO, line.data, line.len, deadline_in(5000), NULL);
    pthread_mutex_unlock(&lock);
}
