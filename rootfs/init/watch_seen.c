/*
 * watch_seen.c: see watch_seen.h.  Open addressing over 64-bit hashes: a name that collides is the sandbox's own loss.
 */
#include "watch_seen.h"

#include <string.h>

enum { SLOTS = 16 * 1024, MAX_SEEN = SLOTS / 2 };

static const uint64_t empty = 0, taken = 1;
static uint64_t slots[SLOTS];
static size_t used; /* slots that are not empty */

/* FNV-1a. */
static uint64_t hash_of(int directory, const char *name)
{
    uint64_t hash = 14695981039346656037u ^ (unsigned)directory;
    for (hash *= 1099511628211u; *name != 0; name++)
        hash = (hash ^ (uint8_t)*name) * 1099511628211u;
    return hash > taken ? hash : hash + 2;
}

static uint64_t *slot_of(uint64_t hash)
{
    size_t at = (size_t)(hash ^ hash >> 32) % SLOTS;
    while (slots[at] != empty && slots[at] != hash)
        at = (at + 1) % SLOTS;
    return &slots[at];
}

void seen_add(int directory, const char *name)
{
    uint64_t hash = hash_of(directory, name), *slot = slot_of(hash);
    if (*slot == hash || used >= MAX_SEEN)
        return;
    *slot = hash;
    used++;
}

bool seen_take(int directory, const char *name)
{
    if (used == 0)
        return false;
    uint64_t hash = hash_of(directory, name), *slot = slot_of(hash);
    if (*slot != hash)
        return false;
    *slot = taken;
    return true;
}

void seen_clear(void)
{
    if (used > 0)
        memset(slots, 0, sizeof slots);
    used = 0;
}
