/*
 * ring.c: see ring.h.
 *
 * The memory is mapped with MADV_DONTFORK.  Keepers and workers are forks of init that live long or change identity:
 * they must neither pin old copies of these pages nor carry other commands' output into another user's process.
 */
#include "ring.h"

#include <string.h>
#include <sys/mman.h>

enum { RING_FIRST_SIZE = 4096 };

void ring_open(struct ring *ring, size_t limit)
{
    size_t rounded = RING_FIRST_SIZE;
    while (rounded < limit)
        rounded *= 2;
    *ring = (struct ring){.limit = rounded};
}

static void copy_in(struct ring *ring, uint64_t offset, const uint8_t *data, size_t length)
{
    size_t at = offset & (ring->size - 1);
    size_t first = length < ring->size - at ? length : ring->size - at;
    memcpy(ring->memory + at, data, first);
    memcpy(ring->memory, data + first, length - first);
}

void ring_copy(const struct ring *ring, uint64_t offset, uint8_t *data, size_t length)
{
    size_t at = offset & (ring->size - 1);
    size_t first = length < ring->size - at ? length : ring->size - at;
    memcpy(data, ring->memory + at, first);
    memcpy(data + first, ring->memory, length - first);
}

/* Make room for `wanted` bytes, or for what can be had: when memory is short the ring stays smaller, and forgets
 * sooner. */
static void ring_grow(struct ring *ring, uint64_t wanted)
{
    size_t size = ring->size == 0 ? RING_FIRST_SIZE : ring->size;
    while (size < wanted && size < ring->limit)
        size *= 2;
    if (size == ring->size)
        return;
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return;
    madvise(memory, size, MADV_DONTFORK);

    struct ring grown = {.memory = memory, .size = size, .limit = ring->limit, .start = ring->start, .end = ring->end};
    if (ring->memory != NULL) {
        size_t at = ring->start & (ring->size - 1);
        size_t length = (size_t)(ring->end - ring->start);
        size_t first = length < ring->size - at ? length : ring->size - at;
        copy_in(&grown, ring->start, ring->memory + at, first);
        copy_in(&grown, ring->start + first, ring->memory, length - first);
        munmap(ring->memory, ring->size);
    }
    *ring = grown;
}

void ring_append(struct ring *ring, const uint8_t *data, size_t length)
{
    ring_grow(ring, ring->end - ring->start + length);
    uint64_t end = ring->end + length;
    size_t kept = length < ring->size ? length : ring->size;
    if (kept > 0)
        copy_in(ring, end - kept, data + (length - kept), kept);
    ring->end = end;
    if (ring->end - ring->start > ring->size)
        ring->start = ring->end - ring->size;
}

void ring_free(struct ring *ring)
{
    if (ring->memory != NULL)
        munmap(ring->memory, ring->size);
    ring->memory = NULL;
    ring->size = 0;
    ring->start = ring->end;
}
