/* operations.h: what the first frame of a connection asks for. */
#ifndef OPERATIONS_H
#define OPERATIONS_H

#include "connections.h"

enum received operation_start(struct connection *, const struct frame *);

/* Make the token that tells this boot of the sandbox from any other, and start the clock. */
int operations_open(void);

#endif
