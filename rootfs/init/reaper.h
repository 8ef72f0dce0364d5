/*
 * reaper.h: the only place that waits for children of init, and the register of those that somebody asked for.
 */
#ifndef REAPER_H
#define REAPER_H

#include "base.h"

#include <sys/resource.h>

/* A child process whose end somebody wants to hear of; embedded in whatever it belongs to.  All zero: none. */
struct child {
    pid_t pid; /* 0: none, or it has ended */
    void (*ended)(struct child *, int status, const struct rusage *);
    struct child *next, **link;
};

/* Block all signals, for good, and have children reaped from the loop as they end. */
int reaper_open(void);
void reap_children(void);

/* Call `ended` once, when the process has been reaped; its pid is 0 by then. */
void child_expect(struct child *, pid_t, void (*ended)(struct child *, int status, const struct rusage *));
/* Do not call it any more.  Safe when nothing is expected. */
void child_forget(struct child *);

/* Call `childless` whenever there is not one child left, known or not. */
void reaper_expect_none(void (*childless)(void));

#endif
