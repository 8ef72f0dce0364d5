/*
 * workers.h: whatever may block or must run as another user happens in a forked process, which takes over the
 * connection, answers on it in blocking mode, and exits.
 */
#ifndef WORKERS_H
#define WORKERS_H

#include "connections.h"

/* The worker's side of a connection. */
struct worker {
    int fd;
    char directory[MAX_PATH + 1]; /* what relative paths begin at: the CWD of the request, or its USER's home */
    struct buffer in; /* what had arrived with the request */
    struct buffer out;
};

/* Fork a worker that calls `run`, whose result decides between nothing more to say (0) and an ERROR (-1).
 * The request is valid in `run`; the connection is closed when the worker ends.  Watches stay until their client leaves,
 * and end with a shutdown's SIGTERM. */
void worker_start(struct connection *, const struct request *, enum budget,
                  int (*run)(struct worker *, const struct request *, struct failure *));

/* Send what has been queued in `out` once there is much of it (or always, with worker_flush).  A worker whose client
 * is gone ends there and then, after calling the function in worker_on_hangup. */
void worker_send(struct worker *);
void worker_flush(struct worker *);
extern void (*worker_on_hangup)(void);
/* Receive one frame; it is valid until the next call.  Only DATA, END and `also` (or 0) can come. */
void worker_receive(struct worker *, struct frame *, uint8_t also);
/* End here if the client is gone, for what neither sends nor receives for long. */
void worker_check(struct worker *);
/* Queue OK with an optional number; 0. */
int worker_ok(struct worker *);
int worker_ok_with(struct worker *, enum tag, uint64_t);

/* Signal everything below these processes; nobody is told. */
void worker_signal_trees(const pid_t *roots, size_t count, int signo);

#endif
