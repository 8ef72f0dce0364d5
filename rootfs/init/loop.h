/*
 * loop.h: one epoll loop.  A watch belongs to the object it is embedded in; so does a timer.
 */
#ifndef LOOP_H
#define LOOP_H

#include "base.h"

#include <sys/epoll.h>

struct watch {
    int fd; /* -1 when stopped */
    uint32_t events;
    void (*ready)(struct watch *, uint32_t events);
};

struct timer {
    uint64_t deadline;
    void (*expired)(struct timer *);
    struct timer *next, **link; /* link is NULL when the timer is not armed */
};

int loop_open(void);
_Noreturn void loop_run(void);

/* Take ownership of `fd` and wait for `events`.  -1: the descriptor could not be watched and was closed. */
int watch_start(struct watch *, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t));
/* 0 takes the descriptor out of the set altogether: epoll reports hang-ups for as long as it is in, whatever was
 * asked for, and a hang-up nobody acts on would spin.  EPOLLHUP alone waits for just that. */
void watch_events(struct watch *, uint32_t events);
/* Close the descriptor.  Safe to call twice. */
void watch_stop(struct watch *);
static inline bool watch_is_open(const struct watch *watch)
{
    return watch->fd >= 0;
}

void timer_start(struct timer *, uint64_t delay_ms, void (*expired)(struct timer *));
void timer_stop(struct timer *);

/* First member of every object that holds watches and is freed while events are handled. */
struct dead {
    struct dead *next;
};

/* free() the object once no event of the current batch can point into it any more. */
void loop_free_later(struct dead *);

#endif
