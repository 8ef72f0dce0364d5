/* command_start.h: SPAWN and SUDO. */
#ifndef COMMAND_START_H
#define COMMAND_START_H

#include "connections.h"

/* Start a command for a connection, which is answered when the outcome is known. */
void command_start(struct connection *, const struct request *);

#endif
