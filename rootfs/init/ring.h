/*
 * ring.h: the recent output of one stream.  Every byte has an offset from the start of the stream; the ring holds
 * [start, end) and forgets from the front.
 */
#ifndef RING_H
#define RING_H

#include "base.h"

struct ring {
    uint8_t *memory;
    size_t size;  /* of the memory now, a power of two; 0 until the first byte */
    size_t limit; /* that it may grow to */
    uint64_t start, end;
};

/* `limit` is rounded up to a power of two. */
void ring_open(struct ring *, size_t limit);
void ring_append(struct ring *, const uint8_t *data, size_t length);
/* Copy bytes that the ring holds: [offset, offset + length) lies within [start, end). */
void ring_copy(const struct ring *, uint64_t offset, uint8_t *data, size_t length);
void ring_free(struct ring *);

#endif
