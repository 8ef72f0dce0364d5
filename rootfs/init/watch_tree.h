/*
 * watch_tree.h: the directories that a watch covers, as a tree by name and as a table by inotify's watch descriptor.
 *
 * A directory knows its parent and its own name only: a long path costs no memory, and a renamed one moves nothing.
 */
#ifndef WATCH_TREE_H
#define WATCH_TREE_H

#include "base.h"
#include "protocol.h"

struct directory {
    struct directory *parent, *children, *next, **link;
    struct directory *bucket_next, **bucket_link;
    struct directory *scan_next, **scan_link; /* scan_link is NULL when it does not wait to be scanned */
    int descriptor;
    size_t name_length;
    char name[];
};

/* One tree in a process: a worker serves one watch. */
size_t tree_size(void);

/* A directory that waits to be scanned; NULL when memory is short.  The root has no parent and the name "". */
struct directory *tree_add(struct directory *parent, const char *name, int descriptor);
struct directory *tree_find(int descriptor);
struct directory *tree_child(const struct directory *parent, const char *name);
bool tree_is_within(const struct directory *, const struct directory *ancestor);

/* The next one that waits to be scanned, which it then no longer does. */
struct directory *tree_next_to_scan(void);

/* Drop a directory and all below, calling `dropped` for each. */
void tree_remove(struct directory *, void (*dropped)(int descriptor));

/* The path from the root to `name` in the directory ("." for the root itself with an empty name).  NULL when it is
 * longer than a path may be. */
const char *tree_path(const struct directory *, const char *name, char path[static MAX_PATH + 1]);

#endif
