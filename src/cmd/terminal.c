#include "cmd/terminal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/text.h"

#define SECRET_MAX 65536

static bool end_of_input(struct error *err)
{
    return error_set(err, ERR_CANCELLED, "the input ended: nothing was saved");
}

static void ask(const char *prompt)
{
    fputs(prompt, stdout);
    fflush(stdout);
}

static bool next_byte(char *c, struct error *err)
{
    ssize_t n;

    do
        n = read(0, c, 1);
    while (n < 0 && errno == EINTR);
    return n > 0 || end_of_input(err);
}

char *terminal_line(const char *prompt, struct error *err)
{
    cleanup_buf struct buf line = {0};
    char c;

    ask(prompt);
    while (next_byte(&c, err)) {
        if (c == '\n')
            return text_trim(line.data ? line.data : "");
        buf_putc(&line, c);
    }
    putchar('\n');
    return NULL;
}

bool terminal_yes(const char *question, bool fallback, struct error *err)
{
    cleanup_free char *prompt = xasprintf("%s [%s] ", question, fallback ? "Y/n" : "y/N");

    for (;;) {
        cleanup_free char *line = terminal_line(prompt, err);
        if (!line)
            return false;
        if (!*line)
            return fallback;
        if (strchr("yY", line[0]))
            return true;
        if (strchr("nN", line[0]))
            return false;
        puts("Answer y or n.");
    }
}

static struct termios before;

static void put_back(int sig)
{
    tcsetattr(0, TCSANOW, &before);
    signal(sig, SIG_DFL);
    raise(sig);
}

/* One key press into the text; true when the text is complete. */
static bool took(struct buf *text, unsigned char c, bool many, struct error *err)
{
    if (c == before.c_cc[VEOF])
        return text->len || !end_of_input(err);
    if (c == before.c_cc[VERASE] || c == '\b') {
        if (text->len)
            text->data[--text->len] = 0;
        return false;
    }
    if (c == before.c_cc[VKILL]) {
        buf_wipe(text);
        return false;
    }
    if (c != '\n' || many)
        buf_putc(text, (char)c);
    if (text->len > SECRET_MAX)
        return !error_set(err, ERR_TOO_LARGE, "more than %d characters: that is no key",
                          SECRET_MAX);
    if (c != '\n')
        return false;
    if (!many)
        return true;
    size_t last = text->len - 1;
    while (last && text->data[last - 1] != '\n')
        last--;
    return strncmp(text->data + last, "-----END", 8) == 0;
}

/* What a paste left behind must not answer the next question. */
static void drop_rest_of_paste(void)
{
    struct pollfd pfd = {.fd = 0, .events = POLLIN};
    char c;

    while (poll(&pfd, 1, 50) > 0 && read(0, &c, 1) > 0)
        ;
}

char *terminal_secret(const char *prompt, bool many, struct error *err)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    struct sigaction old[4], ours = {.sa_handler = put_back};
    cleanup_secret_buf struct buf text = {0};
    cleanup_error struct error why = {0};
    char c;

    if (tcgetattr(0, &before) < 0) {
        error_sys(err, errno, "stdin is no terminal, so a secret cannot be asked for");
        return NULL;
    }
    struct termios quiet = before;
    /* Not by lines either: the kernel cuts those at 4095 bytes, and a token may have 8192. */
    quiet.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON);
    quiet.c_cc[VMIN] = 1;
    quiet.c_cc[VTIME] = 0;
    for (int i = 0; i < 4; i++)
        sigaction(signals[i], &ours, &old[i]);
    tcsetattr(0, TCSANOW, &quiet);
    ask(prompt);
    while (next_byte(&c, &why) && !took(&text, (unsigned char)c, many, &why))
        ;
    if (many && why.code == ERR_NONE)
        drop_rest_of_paste();
    tcsetattr(0, TCSANOW, &before);
    for (int i = 0; i < 4; i++)
        sigaction(signals[i], &old[i], NULL);
    putchar('\n');
    c = 0;
    if (why.code) {
        error_move(err, &why);
        return NULL;
    }
    if (text.len)
        printf("(%zu characters read)\n", text.len);
    buf_puts(&text, "");
    return buf_steal(&text);
}
