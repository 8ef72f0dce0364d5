/* shutdown.h: the orderly end of everything in the sandbox. */
#ifndef SHUTDOWN_H
#define SHUTDOWN_H

#include "connections.h"

/* SIGTERM to every process, SIGKILL after GRACE_MS; answer when all are dead, and exit. */
void shutdown_start(struct connection *, const struct request *);

#endif
