/*
 * main.c: sandbox-init, the first process of every sandbox.
 *
 *     sandbox-init --listen-fd N [--mark TEXT]
 *
 * N is a listening AF_UNIX stream socket, inherited; protocol.h says what is spoken on it.  TEXT means nothing here: it
 * stands in the arguments for those who look at them from outside.  Invoked as `sudo`, the same program is the client
 * of the sudo service (sudo_applet.c).
 *
 *     main → sudo → operations → shutdown ──────┐
 *                              → command_start → attachments → commands → spawn (keeper, leader)
 *                              → relay                                  → workers → tree
 *                              → files, ports, watcher ─────────────────┘
 *     below all of them: connections (what a role makes of one), reaper (who hears of a child's end), frames, loop, base
 *
 * Process 1 never blocks and never dies: one epoll loop, non-blocking descriptors, and anything that may wait (file
 * systems, walks through /proc, reading /etc/passwd) in a forked process.
 *
 * It also works as an ordinary process and without privileges, for tests; it is then the subreaper of its commands
 * and can run them as itself only.
 */
#include "base.h"
#include "connections.h"
#include "loop.h"
#include "operations.h"
#include "reaper.h"
#include "spawn.h"
#include "sudo.h"
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "sandbox-init: cannot %s: %s\n", what, strerror(errno));
    exit(1);
}

static int parse_arguments(int argc, char **argv)
{
    char *end = NULL;
    bool known = argc == 3 || (argc == 5 && strcmp(argv[3], "--mark") == 0);
    long fd = known && strcmp(argv[1], "--listen-fd") == 0 ? strtol(argv[2], &end, 10) : -1;
    if (fd < 3 || fd > 1 << 20 || *end != 0) {
        fprintf(stderr, "usage: sandbox-init --listen-fd N [--mark TEXT]\n");
        exit(2);
    }
    return (int)fd;
}

/* Against the sandbox's own root, which shares our uid: without CAP_SYS_PTRACE nobody may trace a process that is not
 * dumpable, nor look at its memory and descriptors.  Keepers and workers inherit it; an exec ends it. */
static void hide(void)
{
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    prctl(PR_SET_NAME, "sandbox-init", 0, 0, 0);
}

/* Standard input and output lead nowhere, and commands without a pipe inherit that. */
static void open_null(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        die("open /dev/null");
    for (int fd = 0; fd < 3; fd++) {
        if (dup2(null, fd) < 0)
            die("redirect the standard streams");
    }
    if (null > 2)
        close(null);
}

/* As many descriptors as we may have; commands get the original limit back. */
static void raise_descriptor_limit(void)
{
    getrlimit(RLIMIT_NOFILE, &original_nofile);
    struct rlimit raised = {.rlim_cur = original_nofile.rlim_max, .rlim_max = original_nofile.rlim_max};
    setrlimit(RLIMIT_NOFILE, &raised);
}

/* Whoever started the launcher may have had signals ignored, which an exec passes on; glibc's posix_spawn does it to 32
 * and 33.  By the bare call: musl keeps those for itself.  All zero is SIG_DFL, in the kernel's own structure. */
static void reset_signals(void)
{
    static const uint64_t defaults[4];
    for (int signo = 1; signo <= 64; signo++)
        syscall(SYS_rt_sigaction, signo, defaults, NULL, (size_t)8);
}

/* Most launchers did this; where we may not, they had to. */
static void raise_loopback(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "lo"};
    if (fd < 0)
        return;
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0 && !(request.ifr_flags & IFF_UP)) {
        request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
        ioctl(fd, SIOCSIFFLAGS, &request);
    }
    close(fd);
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    if (strcmp(slash != NULL ? slash + 1 : argv[0], "sudo") == 0)
        return sudo_applet(argc, argv);

    int listener = parse_arguments(argc, argv);
    hide();
    trim_capabilities();
    reset_signals();
    close_all_but(&listener, 1);
    fcntl(listener, F_SETFD, FD_CLOEXEC);
    raise_descriptor_limit();
    raise_loopback();
    if (getpid() != 1)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    if (loop_open() < 0 || reaper_open() < 0)
        die("set up the event loop");
    if (operations_open() < 0)
        die("get random bytes");
    if (connections_listen(listener, false, operation_start) < 0)
        die("listen");
    sudo_listen();
    /* The last thing that can fail needs stderr. */
    open_null();
    loop_run();
}
