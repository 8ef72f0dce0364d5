/*
 * shutdown.c: see shutdown.h.
 */
#include "shutdown.h"
#include "commands.h"
#include "reaper.h"
#include "workers.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

enum { KILLED_WAIT_MS = 5000 }; /* after SIGKILL, for processes in uninterruptible sleep */

static bool ending;
static struct connection *requester; /* NULL once it has hung up, which changes nothing else */
static struct timer deadline;

/* Every process but init: kill(-1) as pid 1 of a pid namespace.  Anywhere else that would be the whole machine. */
static void signal_all(int signo)
{
    if (getpid() == 1) {
        kill(-1, signo);
        return;
    }
    pid_t self = getpid();
    worker_signal_trees(&self, 1, signo);
}

/* An interactive shell ignores SIGTERM.  Its terminal's end is what ends it, and it passes that on to its jobs. */
static void hang_up_terminals(void)
{
    struct failure ended;
    for (const struct command *command = commands_first(); command != NULL; command = command->next)
        if (command->terminal)
            command_signal(command, SIGHUP, SCOPE_LEADER, &ended);
}

static void unheard(struct connection *connection)
{
    (void)connection;
    requester = NULL;
}

static const struct role ending_role = {.closed = unheard};

_Noreturn static void leave(void)
{
    if (requester != NULL) {
        set_nonblocking(requester->watch.fd, false);
        put_empty(&requester->out, OP_OK);
        connection_flush(requester);
    }
    exit(0);
}

static void killed_long_ago(struct timer *timer)
{
    (void)timer;
    leave();
}

static void grace_over(struct timer *timer)
{
    (void)timer;
    signal_all(SIGKILL);
    timer_start(&deadline, KILLED_WAIT_MS, killed_long_ago);
}

void shutdown_start(struct connection *connection, const struct request *request)
{
    if (ending) {
        struct failure failure;
        refuse(&failure, EALREADY, "busy", "cannot shut down twice");
        connection_fail(connection, &failure);
        return;
    }
    ending = true;
    requester = connection;
    connection_become(connection, &ending_role, NULL);
    reaper_expect_none(leave);
    connections_stop_listening();
    connection_expect(connection, NULL);
    uint64_t grace = request->number[TAG_GRACE_MS];
    if (grace > 0) {
        signal_all(SIGTERM);
        hang_up_terminals();
    }
    timer_start(&deadline, grace, grace_over);
    reap_children(); /* there may be none */
}
