/*
 * reaper.c: see reaper.h.  Children are keepers, workers, and every orphan of the sandbox that no keeper catches.
 */
#include "reaper.h"
#include "loop.h"

#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static struct watch child_signals;
static struct child *children;
static void (*childless)(void);

void child_expect(struct child *child, pid_t pid, void (*ended)(struct child *, int, const struct rusage *))
{
    *child = (struct child){.pid = pid, .ended = ended, .next = children, .link = &children};
    if (children != NULL)
        children->link = &child->next;
    children = child;
}

void child_forget(struct child *child)
{
    child->pid = 0;
    if (child->link == NULL)
        return;
    *child->link = child->next;
    if (child->next != NULL)
        child->next->link = child->link;
    child->link = NULL;
}

void reaper_expect_none(void (*function)(void))
{
    childless = function;
}

static void child_ended(pid_t pid, int status, const struct rusage *usage)
{
    struct child *child = children;
    while (child != NULL && child->pid != pid)
        child = child->next;
    if (child == NULL)
        return;
    child_forget(child);
    child->ended(child, status, usage);
}

void reap_children(void)
{
    for (;;) {
        int status;
        struct rusage usage;
        pid_t pid = wait4(-1, &status, WNOHANG, &usage);
        if (pid < 0 && errno == ECHILD && childless != NULL)
            childless();
        if (pid <= 0)
            return;
        child_ended(pid, status, &usage);
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
