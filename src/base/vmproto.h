/* The numbers of PROTOCOL.vm, shared by its two ends. Nothing here that is not in that file. */
#ifndef BASE_VMPROTO_H
#define BASE_VMPROTO_H

#include <stdint.h>

/* "EXEDEV\0\1": the last byte is the version. Written as an array's size in use: VM_MAGIC_LEN
 * bytes. */
#define VM_MAGIC "EXEDEV\0\1"
#define VM_MAGIC_LEN 8

#define VM_HEADER 12 /* u32 length, u8 type, u8 channel, u16 0, u32 stream */

#define VM_MAX_PAYLOAD 65536u
#define VM_MAX_STREAMS 4096u
#define VM_MAX_CREDIT (64u << 20)
#define VM_STDIN_CREDIT 65536u
#define VM_BUILTIN_STDIN_CREDIT (2u << 20)
#define VM_OUT_LOW (128u << 10)
#define VM_MAX_REQUEST (2u << 20)
#define VM_MAX_STRING 131071u
#define VM_MAX_ARGS (1u << 20)
#define VM_MAX_MESSAGE 4096u /* FAIL, LOG */
#define VM_MAX_SPOOL (256u << 20)
#define VM_MAX_CHATTER 65536u /* kept of what comes before HELLO */
#define VM_LINGER_MS 100
#define VM_MAX_KEY 64       /* of a durable session */
#define VM_EXIT_PROTOCOL 76 /* EX_PROTOCOL of sysexits.h */

enum vm_type {
    VM_HELLO = 1,
    VM_PING = 2,
    VM_PONG = 3,
    VM_OPEN = 4,
    VM_STARTED = 5,
    VM_DATA = 6,
    VM_EOF = 7,
    VM_CREDIT = 8,
    VM_EXIT = 9,
    VM_FAIL = 10,
    VM_KILL = 11,
    VM_WINCH = 12,
    VM_CLOSE_IN = 13,
    VM_ENDALL = 14,
    VM_ENDED = 15,
    VM_BYE = 16,
    VM_RESUME = 17,
    VM_RESUMED = 18,
    VM_LOG = 19,
};

enum vm_channel { VM_STDIN = 0, VM_STDOUT = 1, VM_STDERR = 2, VM_CHANNELS = 3 };

enum vm_kind { VM_KIND_COMMAND = 0, VM_KIND_PTY = 1, VM_KIND_BUILTIN = 2 };

/* What stdin of a stream begins with, in bytes. A built-in that is sent something is sent files: it
 * begins with as much as OpenSSH's own channel lets through, for growing to it would cost five
 * round trips. */
static inline uint32_t vm_stdin_credit(int kind)
{
    return kind == VM_KIND_BUILTIN ? VM_BUILTIN_STDIN_CREDIT : VM_STDIN_CREDIT;
}

/* HELLO from the client. */
enum { VM_HELLO_DURABLE = 1 << 0 };
/* HELLO from the helper. */
enum { VM_HELLO_BASH = 1 << 0, VM_HELLO_FOUND = 1 << 1, VM_HELLO_ROOT = 1 << 2 };

/* OPEN's flags. */
enum {
    VM_OPEN_LOGIN = 1 << 0,    /* login environment below env */
    VM_OPEN_DURABLE = 1 << 1,  /* goes on when the link breaks */
    VM_OPEN_NO_STDIN = 1 << 2, /* stdin is at its end from the start */
    VM_OPEN_MERGE = 1 << 3,    /* stderr into stdout */
    VM_OPEN_KILL_BG = 1 << 4,  /* background children end with the command */
    VM_OPEN_NVM = 1 << 5, /* the login environment with nvm.sh sourced too; needs VM_OPEN_LOGIN */
    VM_OPEN_FLAGS = (1 << 6) - 1,
};

/* OPEN's channel byte. */
enum { VM_OPEN_LAST = 0, VM_OPEN_MORE = 1 };

/* EXIT's flags. */
enum { VM_EXIT_KILLED = 1 << 0, VM_EXIT_CONFIRMED = 1 << 1, VM_EXIT_TIMEOUT = 1 << 2 };

/* FAIL's code: an errno, and this bit where the cwd is what could not be entered. */
enum { VM_FAIL_CWD = 1 << 16 };

/* KILL's scope. */
enum { VM_KILL_TREE = 0, VM_KILL_FOREGROUND = 1, VM_KILL_NOW = 2 };

/* ENDALL's scope. */
enum { VM_ENDALL_MARKER = 0 };

#endif
