/* base.c: see base.h. */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void describe(struct failure *failure, int error, const char *kind, const char *format, va_list arguments)
{
    failure->error = error;
    failure->has_offset = false;
    snprintf(failure->kind, sizeof failure->kind, "%s", kind);
    vsnprintf(failure->message, sizeof failure->message, format, arguments);
}

int fail(struct failure *failure, int error, const char *kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    describe(failure, error, kind, format, arguments);
    va_end(arguments);
    size_t end = strlen(failure->message);
    snprintf(failure->message + end, sizeof failure->message - end, ": %s", strerror(error));
    return -1;
}

int refuse(struct failure *failure, int error, const char *kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    describe(failure, error, kind, format, arguments);
    va_end(arguments);
    return -1;
}

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

uint64_t monotonic_ms(void)
{
    return clock_ms(CLOCK_MONOTONIC);
}

uint64_t wall_clock_ms(void)
{
    return clock_ms(CLOCK_REALTIME);
}

static int compare_ints(const void *left, const void *right)
{
    int a = *(const int *)left, b = *(const int *)right;
    return (a > b) - (a < b);
}

static void close_from_to(unsigned first, unsigned last)
{
    if (first > last || syscall(SYS_close_range, first, last, 0) == 0)
        return;
    /* Kernels before 5.9 and some seccomp profiles lack close_range: nothing of ours is above the limit. */
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur <= last)
        last = (unsigned)limit.rlim_cur;
    for (unsigned fd = first; fd <= last && fd < (1u << 20); fd++)
        close((int)fd);
}

void close_all_but(const int *keep, size_t count)
{
    int sorted[8];
    if (count > ARRAY_SIZE(sorted))
        abort();
    for (size_t i = 0; i < count; i++)
        sorted[i] = keep[i];
    qsort(sorted, count, sizeof *sorted, compare_ints);

    unsigned first = 3;
    for (size_t i = 0; i < count; i++) {
        if (sorted[i] < (int)first)
            continue;
        close_from_to(first, (unsigned)sorted[i] - 1);
        first = (unsigned)sorted[i] + 1;
    }
    close_from_to(first, UINT_MAX);
}

void set_nonblocking(int fd, bool nonblocking)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        fcntl(fd, F_SETFL, nonblocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

int read_fully(int fd, void *data, size_t length)
{
    uint8_t *at = data;
    while (length > 0) {
        ssize_t n = read(fd, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n == 0 ? 0 : errno;
            return -1;
        }
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

int write_fully(int fd, const void *data, size_t length)
{
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t n = write(fd, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        at += n;
        length -= (size_t)n;
    }
    return 0;
}
