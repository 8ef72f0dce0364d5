/*
 * connections.h: the daemon's connections (and those of sudo): bytes in and out, one operation at a time.
 */
#ifndef CONNECTIONS_H
#define CONNECTIONS_H

#include "frames.h"
#include "loop.h"
#include "reaper.h"

struct connection;

/*
 * What an operation that lasts makes of its connection.  The table of all roles:
 *
 *     role        subject       closed                      pump                      set by
 *     none        none          nothing                     flush                     whatever answers at once
 *     starting    attachment    the command is abandoned    flush                     command_start.c
 *     attached    attachment    it is detached              what is due of output     attachments.c
 *     working     none          nothing                     (the worker's socket)     workers.c
 *     relaying    relay         both ends are closed        (the relay's socket)      relay.c
 *     ending      none          nobody hears of the end     flush                     shutdown.c
 */
struct role {
    /* The connection is being closed, or begins another operation: let the subject go. */
    void (*closed)(struct connection *);
    /* Send what is due and fits.  The connection may be closed afterwards. */
    void (*pump)(struct connection *);
    bool takes_socket; /* reads and writes are its own business */
};

/* What bounds the operations that may last: each connection counts against one of these, and one more than its bound is
 * refused at once.  All bounds together are less than the connections there may be, so that there are always some left
 * for what is answered at once, above all for ending the others. */
enum budget {
    BUDGET_NONE,      /* answered at once */
    BUDGET_FOLLOWERS, /* of what begins here: commands, their stdin, relays */
    BUDGET_ATTACHED,  /* of commands that run already: a new daemon takes all of them up again */
    BUDGET_WORKERS,   /* processes that end by themselves */
    BUDGET_WATCHES,   /* processes that do not */
    BUDGET_SIGNALS,   /* processes that signal a command's tree: never refused because of the others */
    BUDGET_END,
};

enum received {
    FRAME_TAKEN,
    FRAME_WAITS, /* leave it where it is and stop reading until connection_resume */
    FRAME_REFUSED, /* protocol error: close */
};

struct connection {
    struct dead dead;
    struct connection *next, **link;
    struct watch watch;
    struct timer timer;
    struct buffer in, out;
    bool inside;  /* from a process of the sandbox, over the sudo socket */
    bool closing; /* close when `out` has been sent */
    bool keep;    /* then, instead of closing, expect another operation */
    bool waiting; /* the frame at the front of `in` waits */

    /* What to do with the next frame; NULL while none is expected. */
    enum received (*receive)(struct connection *, const struct frame *);

    const struct role *role; /* NULL: none */
    void *subject;           /* what the role is about */
    struct child worker;     /* the forked process that now speaks on this connection */
    enum budget budget; /* what this connection's operation counts against */

    /* sudo: the peer, and the descriptors that came with its first bytes. */
    pid_t peer_pid;
    uid_t peer_uid;
    int passed[3];
    size_t passed_count;
};

/* Take over a listening socket.  `first` gets the first frame of every operation.  `inside`: it is the sudo socket. */
int connections_listen(int fd, bool inside, enum received (*first)(struct connection *, const struct frame *));
/* Stop accepting; connections go on. */
void connections_stop_listening(void);

/* Send what is queued.  True when nothing is left; the connection may have been closed either way. */
bool connection_flush(struct connection *);
/* Send what is queued, then close. */
void connection_finish(struct connection *);
/* Send what is queued, then close or, if `keep` is set, start over. */
void connection_conclude(struct connection *);
/* Queue one ERROR, then close. */
void connection_fail(struct connection *, const struct failure *);
void connection_close(struct connection *);
static inline bool connection_is_open(const struct connection *connection)
{
    return watch_is_open(&connection->watch);
}

/* Say what is due, as the role knows. */
void connection_pump(struct connection *);
/* Give it a role, or (NULL, NULL) none; the role before is not asked. */
void connection_become(struct connection *, const struct role *, void *subject);

/* Handle the frames that have arrived, starting with one that waited. */
void connection_resume(struct connection *);
/* Expect no frames (NULL) or hand them to `receive`. */
void connection_expect(struct connection *, enum received (*receive)(struct connection *, const struct frame *));

/* Count the connection against a budget, for as long as its operation lasts.  -1 with the failure filled in when there
 * is no more of it. */
int connection_charge(struct connection *, enum budget, struct failure *);

#endif
