/* relay.h: a connection to a port or socket inside the sandbox, relayed byte by byte. */
#ifndef RELAY_H
#define RELAY_H

#include "connections.h"

/* Connect as a CONNECT request says, answer, and relay until both directions have ended. */
void relay_start(struct connection *, const struct request *);

#endif
