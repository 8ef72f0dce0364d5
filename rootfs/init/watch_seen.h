/*
 * watch_seen.h: the names that a scan has reported, until every event that may report them again has been read.
 */
#ifndef WATCH_SEEN_H
#define WATCH_SEEN_H

#include "base.h"

/* A set of bounded size: when it is full, something may be reported twice. */
void seen_add(int directory, const char *name);
/* Whether it was there; it no longer is. */
bool seen_take(int directory, const char *name);
void seen_clear(void);

#endif
