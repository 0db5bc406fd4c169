/* What runs inside a VM of the lobby: one static program, called by several names. libc only. */
#ifndef LOBBY_GUEST_H
#define LOBBY_GUEST_H

/* Where the lobby's own files are seen from inside. */
#define GUEST_DIR "/run/exe"
#define GUEST_EVENTS GUEST_DIR "/events"

int guest_init(int argc, char **argv);
int guest_sudo(int argc, char **argv);
/* poweroff, halt, reboot, shutdown. */
int guest_power(const char *name, int argc, char **argv);
/* sshd's AuthorizedKeysCommand: TYPE KEY. */
int guest_keys(int argc, char **argv);
int guest_unregistered(void);

/* One line for the lobby, "exe: " in front. */
void guest_event(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
