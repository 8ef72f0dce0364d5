/* shutdown.h: the orderly end of everything in the sandbox, and the reaping of children that leads there. */
#ifndef SHUTDOWN_H
#define SHUTDOWN_H

#include "connections.h"

/* SIGTERM to every process, SIGKILL after GRACE_MS; answer when all are dead, and exit. */
void shutdown_start(struct connection *, const struct request *);

/* The connection is being closed: if it asked for the end, nobody waits for the answer any more. */
void shutdown_unheard(const struct connection *);

/* There is not one child left. */
void shutdown_childless(void);

#endif
