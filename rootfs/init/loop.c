/*
 * loop.c: see loop.h.
 */
#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { EVENTS_PER_WAIT = 64 };

static int epoll_fd = -1;
static struct timer *timers; /* by deadline */

static struct dead *graveyard;

int loop_open(void)
{
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return epoll_fd < 0 ? -1 : 0;
}

int watch_start(struct watch *watch, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t))
{
    *watch = (struct watch){.fd = fd, .events = events, .ready = ready};
    if (events == 0)
        return 0;
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0)
        return 0;
    close(fd);
    watch->fd = -1;
    return -1;
}

void watch_events(struct watch *watch, uint32_t events)
{
    if (watch->fd < 0 || watch->events == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = watch};
    int how = events == 0 ? EPOLL_CTL_DEL : watch->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    if (epoll_ctl(epoll_fd, how, watch->fd, &event) == 0)
        watch->events = events;
}

void watch_stop(struct watch *watch)
{
    if (watch->fd < 0)
        return;
    /* Closing is not enough: a forked worker may still hold the same open file, which would keep it in the set. */
    if (watch->events != 0)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    close(watch->fd);
    watch->fd = -1;
    watch->events = 0;
}

void timer_start(struct timer *timer, uint64_t delay_ms, void (*expired)(struct timer *))
{
    timer_stop(timer);
    timer->deadline = monotonic_ms() + delay_ms;
    timer->expired = expired;

    struct timer **link = &timers;
    while (*link != NULL && (*link)->deadline <= timer->deadline)
        link = &(*link)->next;
    timer->next = *link;
    timer->link = link;
    if (timer->next != NULL)
        timer->next->link = &timer->next;
    *link = timer;
}

void timer_stop(struct timer *timer)
{
    if (timer->link == NULL)
        return;
    *timer->link = timer->next;
    if (timer->next != NULL)
        timer->next->link = timer->link;
    timer->link = NULL;
}

void loop_free_later(struct dead *dead)
{
    dead->next = graveyard;
    graveyard = dead;
}

static void bury(void)
{
    while (graveyard != NULL) {
        struct dead *next = graveyard->next;
        free(graveyard);
        graveyard = next;
    }
}

static void run_timers(void)
{
    uint64_t now = monotonic_ms();
    while (timers != NULL && timers->deadline <= now) {
        struct timer *timer = timers;
        timer_stop(timer);
        timer->expired(timer);
    }
}

static int milliseconds_to_wait(void)
{
    if (timers == NULL)
        return -1;
    uint64_t now = monotonic_ms();
    if (timers->deadline <= now)
        return 0;
    uint64_t wait = timers->deadline - now;
    return wait > 60000 ? 60000 : (int)wait;
}

_Noreturn void loop_run(void)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS_PER_WAIT, milliseconds_to_wait());
        for (int i = 0; i < count; i++) {
            struct watch *watch = events[i].data.ptr;
            /* An earlier event of this batch may have stopped it, or paused it. */
            if (watch->fd >= 0 && watch->events != 0)
                watch->ready(watch, events[i].events);
        }
        run_timers();
        bury();
    }
}
