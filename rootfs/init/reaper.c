/*
 * reaper.c: see reaper.h.  Children are keepers, workers, and every orphan of the sandbox that no keeper catches.
 */
#include "reaper.h"
#include "commands.h"
#include "connections.h"
#include "shutdown.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static struct watch child_signals;

void reap_children(void)
{
    for (;;) {
        int status;
        struct rusage usage;
        pid_t pid = wait4(-1, &status, WNOHANG, &usage);
        if (pid < 0 && errno == ECHILD)
            shutdown_childless();
        if (pid <= 0)
            return;
        if (!commands_reap(pid, status, &usage))
            connections_reap(pid);
    }
}

static void signal_ready(struct watch *watch, uint32_t events)
{
    struct signalfd_siginfo ignored;
    (void)events;
    while (read(watch->fd, &ignored, sizeof ignored) > 0)
        continue;
    reap_children();
}

int reaper_open(void)
{
    sigset_t all, child;
    /* A launcher written in Python leaves SIGPIPE ignored, and that would be inherited by every command. */
    for (int signo = 1; signo < NSIG; signo++)
        signal(signo, SIG_DFL);
    /* Blocked rather than ignored: keepers and workers inherit this too, and leaders undo it by one call. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    int fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    return fd < 0 ? -1 : watch_start(&child_signals, fd, EPOLLIN, signal_ready);
}
