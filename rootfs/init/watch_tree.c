/*
 * watch_tree.c: see watch_tree.h.
 */
#include "watch_tree.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 4096 }; /* the kernel numbers watches upwards, so they spread evenly */

static struct directory *buckets[BUCKETS];
static struct directory *to_scan;
static size_t count;

size_t tree_size(void)
{
    return count;
}

static struct directory **bucket_of(int descriptor)
{
    return &buckets[(unsigned)descriptor % BUCKETS];
}

static void join_bucket(struct directory *directory)
{
    directory->bucket_link = bucket_of(directory->descriptor);
    directory->bucket_next = *directory->bucket_link;
    if (directory->bucket_next != NULL)
        directory->bucket_next->bucket_link = &directory->bucket_next;
    *directory->bucket_link = directory;
}

static void join_siblings(struct directory *directory, struct directory *parent)
{
    directory->parent = parent;
    if (parent == NULL)
        return;
    directory->link = &parent->children;
    directory->next = parent->children;
    if (directory->next != NULL)
        directory->next->link = &directory->next;
    parent->children = directory;
}

static void wait_for_scan(struct directory *directory)
{
    directory->scan_link = &to_scan;
    directory->scan_next = to_scan;
    if (to_scan != NULL)
        to_scan->scan_link = &directory->scan_next;
    to_scan = directory;
}

struct directory *tree_add(struct directory *parent, const char *name, int descriptor)
{
    size_t length = strlen(name);
    struct directory *directory = calloc(1, sizeof *directory + length + 1);
    if (directory == NULL)
        return NULL;
    directory->descriptor = descriptor;
    directory->name_length = length;
    memcpy(directory->name, name, length + 1);
    join_bucket(directory);
    join_siblings(directory, parent);
    wait_for_scan(directory);
    count++;
    return directory;
}

struct directory *tree_find(int descriptor)
{
    struct directory *directory = *bucket_of(descriptor);
    while (directory != NULL && directory->descriptor != descriptor)
        directory = directory->bucket_next;
    return directory;
}

struct directory *tree_child(const struct directory *parent, const char *name)
{
    size_t length = strlen(name);
    struct directory *child = parent->children;
    while (child != NULL && (child->name_length != length || memcmp(child->name, name, length) != 0))
        child = child->next;
    return child;
}

bool tree_is_within(const struct directory *directory, const struct directory *ancestor)
{
    while (directory != NULL && directory != ancestor)
        directory = directory->parent;
    return directory != NULL;
}

static void leave_scan(struct directory *directory)
{
    if (directory->scan_link == NULL)
        return;
    *directory->scan_link = directory->scan_next;
    if (directory->scan_next != NULL)
        directory->scan_next->scan_link = directory->scan_link;
    directory->scan_link = NULL;
}

struct directory *tree_next_to_scan(void)
{
    struct directory *directory = to_scan;
    if (directory != NULL)
        leave_scan(directory);
    return directory;
}

/* One without children. */
static void remove_leaf(struct directory *leaf, void (*dropped)(int descriptor))
{
    leave_scan(leaf);
    *leaf->bucket_link = leaf->bucket_next;
    if (leaf->bucket_next != NULL)
        leaf->bucket_next->bucket_link = leaf->bucket_link;
    if (leaf->link != NULL) {
        *leaf->link = leaf->next;
        if (leaf->next != NULL)
            leaf->next->link = leaf->link;
    }
    dropped(leaf->descriptor);
    free(leaf);
    count--;
}

/* Without recursion: the sandbox decides how deep a tree is. */
void tree_remove(struct directory *directory, void (*dropped)(int descriptor))
{
    for (struct directory *at = directory;;) {
        while (at->children != NULL)
            at = at->children;
        struct directory *parent = at->parent;
        bool last = at == directory;
        remove_leaf(at, dropped);
        if (last)
            return;
        at = parent;
    }
}

const char *tree_path(const struct directory *directory, const char *name, char path[static MAX_PATH + 1])
{
    size_t length = strlen(name), start = MAX_PATH - length;
    if (length > MAX_PATH)
        return NULL;
    memcpy(path + start, name, length + 1);
    for (; directory->parent != NULL; directory = directory->parent) {
        bool separated = start < MAX_PATH;
        if (start < directory->name_length + separated)
            return NULL;
        if (separated)
            path[--start] = '/';
        start -= directory->name_length;
        memcpy(path + start, directory->name, directory->name_length);
    }
    return start == MAX_PATH ? "." : path + start;
}
