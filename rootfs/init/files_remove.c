/*
 * files_remove.c: REMOVE, of one thing or of a whole tree.
 */
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The directories between the top and the one being emptied.  Going back up is by "..", checked against these, so
 * that depth costs no descriptors and a directory moved away meanwhile does not take us along. */
struct ancestors {
    struct identity {
        dev_t device;
        ino_t inode;
    } *items;
    size_t count, capacity;
};

static int descend(struct ancestors *ancestors, int *directory, const char *name)
{
    struct stat status;
    int child = openat(*directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (child < 0)
        return -1;
    if (ancestors->count == ancestors->capacity) {
        size_t capacity = ancestors->capacity == 0 ? 32 : ancestors->capacity * 2;
        void *grown = realloc(ancestors->items, capacity * sizeof *ancestors->items);
        if (grown != NULL) {
            ancestors->items = grown;
            ancestors->capacity = capacity;
        }
    }
    if (ancestors->count == ancestors->capacity || fstat(*directory, &status) < 0) {
        close(child);
        return -1;
    }
    ancestors->items[ancestors->count++] = (struct identity){status.st_dev, status.st_ino};
    close(*directory);
    *directory = child;
    return 0;
}

static int ascend(struct ancestors *ancestors, int *directory)
{
    struct stat status;
    int parent = openat(*directory, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0)
        return -1;
    const struct identity *expected = &ancestors->items[--ancestors->count];
    if (fstat(parent, &status) < 0 || status.st_dev != expected->device || status.st_ino != expected->inode) {
        close(parent);
        errno = ESTALE;
        return -1;
    }
    close(*directory);
    *directory = parent;
    return 0;
}

/* What emptying one directory came to. */
enum emptied { EMPTIED, HAS_SUBDIRECTORY, NOT_EMPTIED };

/* Remove what can be removed from a directory; stops at the first subdirectory that has something in it. */
static enum emptied empty_directory(int fd, char name[static NAME_MAX + 1], unsigned *removed)
{
    int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = copy < 0 ? NULL : fdopendir(copy);
    enum emptied result = EMPTIED;
    struct dirent *entry;
    if (directory == NULL)
        return NOT_EMPTIED;
    while (result == EMPTIED && (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (unlinkat(fd, entry->d_name, 0) == 0 || unlinkat(fd, entry->d_name, AT_REMOVEDIR) == 0) {
            ++*removed;
        } else if (errno == ENOTEMPTY || errno == EEXIST) {
            snprintf(name, NAME_MAX + 1, "%s", entry->d_name);
            result = HAS_SUBDIRECTORY;
        } else if (errno != ENOENT) {
            result = NOT_EMPTIED;
        }
    }
    int error = errno;
    closedir(directory);
    errno = error;
    return result;
}

static int empty_tree(int directory, unsigned *removed)
{
    struct ancestors ancestors = {0};
    char name[NAME_MAX + 1];
    int result = 0;
    for (bool done = false; !done && result == 0;) {
        switch (empty_directory(directory, name, removed)) {
        case HAS_SUBDIRECTORY:
            result = descend(&ancestors, &directory, name);
            break;
        case EMPTIED:
            done = ancestors.count == 0;
            result = done ? 0 : ascend(&ancestors, &directory);
            break;
        case NOT_EMPTIED:
            result = -1;
        }
    }
    int error = errno;
    free(ancestors.items);
    close(directory);
    errno = error;
    return result;
}

int remove_tree(int at, const char *name, unsigned *removed)
{
    int directory = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return directory < 0 || empty_tree(directory, removed) < 0 ? -1 : unlinkat(at, name, AT_REMOVEDIR);
}

int file_remove(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    unsigned removed = 0;
    if (get_path(worker, request, TAG_PATH, path, failure) < 0 ||
        (has_flag(request, FLAG_RESUME) && part_path(path, failure) < 0))
        return -1;
    struct stat status;
    if (lstat(path, &status) < 0)
        return fail(failure, errno, "file", "cannot remove \"%.300s\"", path);
    if (!S_ISDIR(status.st_mode)) {
        if (unlink(path) < 0)
            return fail(failure, errno, "file", "cannot remove \"%.300s\"", path);
    } else if (rmdir(path) < 0) {
        if (!has_flag(request, FLAG_RECURSIVE) || (errno != ENOTEMPTY && errno != EEXIST))
            return fail(failure, errno, "file", "cannot remove directory \"%.300s\"", path);
        if (remove_tree(AT_FDCWD, path, &removed) < 0)
            return fail(failure, errno, "file", "cannot remove \"%.300s\"", path);
    }
    return worker_ok_with(worker, TAG_COUNT, removed + 1);
}
