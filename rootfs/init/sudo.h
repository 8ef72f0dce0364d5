/*
 * sudo.h: running a command as another user, for those the sandbox's /etc/group allows.
 *
 * A setuid program cannot do it: sandboxes run under no_new_privs.  So /usr/bin/sudo is a client of init.  It connects
 * to an abstract socket in the sandbox's own network namespace; init takes the caller's uid from SO_PEERCRED, checks
 * it, and starts the command as one of its own, below a keeper like any other.
 *
 * Terminals: when stdin, stdout and stderr are all terminals the command gets a new one, and the applet relays bytes,
 * window size and exit status.  That gives `sudo bash` job control, which a process outside of the caller's session
 * could not have on the caller's terminal.  Otherwise the command gets the caller's three descriptors as they are, and
 * the applet forwards signals.  Either way the command ends with the applet, and a kill of the command that called
 * sudo reaches it.
 */
#ifndef SUDO_H
#define SUDO_H

#define SUDO_SOCKET "sandbox-init-sudo" /* in the abstract name space */

/* Make the socket.  Without it, as when another init has the name, sudo does not work and all else does. */
void sudo_listen(void);

/* The client: the exit status of `sudo`. */
int sudo_applet(int argc, char **argv);

#endif
