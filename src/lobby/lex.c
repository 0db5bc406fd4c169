#include "lobby/lex.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"

void words_free(struct words *w)
{
    for (size_t i = 0; i < w->n; i++)
        free(w->v[i]);
    free(w->v);
    *w = (struct words){0};
}

static void add(struct words *w, struct buf *word)
{
    buf_putc(word, 0); /* an empty word too has a string */
    w->v = xreallocarray(w->v, w->n + 2, sizeof *w->v);
    w->v[w->n++] = buf_steal(word);
    w->v[w->n] = NULL;
}

bool lex_words(const char *line, size_t n, struct words *out, struct error *err)
{
    struct words w = {.v = xcalloc(1, sizeof(char *))};
    cleanup_buf struct buf word = {0};
    bool in_word = false;
    char quote = 0;

    if (n && memchr(line, 0, n)) {
        words_free(&w);
        return error_set(err, ERR_INVALID, "the command line holds a NUL byte");
    }
    for (size_t i = 0; i < n; i++) {
        char c = line[i];
        if (quote == '\'') {
            if (c == '\'')
                quote = 0;
            else
                buf_putc(&word, c);
        } else if (c == '\\') {
            if (i + 1 == n) {
                words_free(&w);
                return error_set(err, ERR_INVALID, "the command line ends in a backslash");
            }
            char next = line[++i];
            if (quote && !strchr("$`\"\\\n", next))
                buf_putc(&word, '\\');
            if (next != '\n')
                buf_putc(&word, next);
            in_word = true;
        } else if (quote) {
            if (c == quote)
                quote = 0;
            else
                buf_putc(&word, c);
        } else if (c == '\'' || c == '"') {
            quote = c;
            in_word = true;
        } else if (strchr(" \t\r\n\f\v", c)) {
            if (in_word)
                add(&w, &word);
            in_word = false;
        } else {
            buf_putc(&word, c);
            in_word = true;
        }
    }
    if (quote) {
        words_free(&w);
        return error_set(err, ERR_INVALID, "unbalanced %s quote",
                         quote == '"' ? "double" : "single");
    }
    if (in_word)
        add(&w, &word);
    *out = w;
    return true;
}
