/*
 * base.h: the few small things every file here needs: why an operation failed, owned-pointer lookups, descriptors
 * and clocks.
 */
#ifndef BASE_H
#define BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

/* Why an operation failed, as it is reported in an ERROR frame.  `kind` names what was at fault for programs
 * ("cwd", "program", "user", "not_regular", …); `message` is one sentence for people. */
struct failure {
    int error;
    char kind[16];
    char message[512];
    bool has_offset; /* where to go on instead */
    uint64_t offset;
};

/* Fill in `failure`; both return -1.  fail() is for system calls and adds ": <text of error>"; refuse() is for what
 * we decide ourselves, where the format says it all. */
int fail(struct failure *failure, int error, const char *kind, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int refuse(struct failure *failure, int error, const char *kind, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

uint64_t monotonic_ms(void);
uint64_t wall_clock_ms(void);

/* Close every descriptor above 2 that is not among `keep`. */
void close_all_but(const int *keep, size_t count);

void set_nonblocking(int fd, bool nonblocking);

/* Read or write everything, for forked workers, which may block.  -1 with errno set, or on end of file errno 0. */
int read_fully(int fd, void *data, size_t length);
int write_fully(int fd, const void *data, size_t length);

#endif
