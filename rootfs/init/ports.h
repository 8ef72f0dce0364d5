/*
 * ports.h: LIST_PORTS, which TCP ports are listened on in the sandbox's network namespace, and who listens.
 */
#ifndef PORTS_H
#define PORTS_H

#include "workers.h"

int ports_list(struct worker *, const struct request *, struct failure *);

#endif
