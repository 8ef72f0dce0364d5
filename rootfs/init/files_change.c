/*
 * files_change.c: operations on names and attributes: MKDIR, REMOVE, RENAME, SYMLINK, CHMOD, CHOWN.
 */
#include "files.h"
#include "users.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

int get_owner(const struct request *request, struct owner *owner, struct failure *failure)
{
    char name[MAX_NAME];
    *owner = (struct owner){(uid_t)-1, (gid_t)-1};
    if (has(request, TAG_OWNER)) {
        if (bytes_to_string(request->bytes[TAG_OWNER], name, sizeof name) < 0)
            return refuse(failure, EINVAL, "user", "cannot use this owner: the name is too long or holds a NUL byte");
        if (uid_from_text(name, &owner->uid, failure) < 0)
            return -1;
    }
    if (has(request, TAG_GROUP)) {
        if (bytes_to_string(request->bytes[TAG_GROUP], name, sizeof name) < 0)
            return refuse(failure, EINVAL, "group", "cannot use this group: the name is too long or holds a NUL byte");
        if (gid_from_text(name, &owner->gid, failure) < 0)
            return -1;
    }
    return 0;
}

/* ---- making ------------------------------------------------------------------------------------------------ */

static int make_directory(const char *path, mode_t mode, const struct owner *owner, struct failure *failure)
{
    if (mkdir(path, 0755) < 0)
        return fail(failure, errno, "file", "cannot make directory \"%.300s\"", path);
    if ((owner->uid != (uid_t)-1 || owner->gid != (gid_t)-1) && lchown(path, owner->uid, owner->gid) < 0)
        return fail(failure, errno, "owner", "cannot change the owner of \"%.300s\"", path);
    if (mode != 0755 && chmod(path, mode) < 0)
        return fail(failure, errno, "file", "cannot change the mode of \"%.300s\"", path);
    return 0;
}

static bool is_directory(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

int make_directories(const char *path, mode_t mode, const struct owner *owner, unsigned *made, struct failure *failure)
{
    char prefix[MAX_PATH + 1];
    *made = 0;
    snprintf(prefix, sizeof prefix, "%s", path);
    for (char *at = prefix + 1;; at++) {
        at += strcspn(at, "/");
        bool last = *at == 0 || at[strspn(at, "/")] == 0;
        *at = 0;
        if (!is_directory(prefix)) {
            int result = make_directory(prefix, last ? mode : 0755, owner, failure);
            /* Somebody else may have been faster. */
            if (result < 0 && !(failure->error == EEXIST && is_directory(prefix)))
                return -1;
            *made += result == 0;
        }
        if (last)
            return 0;
        *at = '/';
    }
}

int file_mkdir(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct owner owner;
    unsigned made = 1;
    mode_t mode = has(request, TAG_MODE) ? (mode_t)request->number[TAG_MODE] & 07777 : 0755;
    if (get_path(request, TAG_PATH, path, failure) < 0 || get_owner(request, &owner, failure) < 0)
        return -1;
    int result = has_flag(request, FLAG_PARENTS) ? make_directories(path, mode, &owner, &made, failure)
                                                 : make_directory(path, mode, &owner, failure);
    return result < 0 ? -1 : worker_ok_with(worker, TAG_COUNT, made);
}

int file_symlink(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1], destination[MAX_PATH + 1];
    if (get_path(request, TAG_PATH, path, failure) < 0)
        return -1;
    if (bytes_to_string(request->bytes[TAG_TARGET], destination, sizeof destination) < 0)
        return refuse(failure, EINVAL, "path", "cannot use this target: it is too long or holds a NUL byte");
    if (symlink(destination, path) < 0)
        return fail(failure, errno, "file", "cannot make symbolic link \"%.300s\"", path);
    return worker_ok(worker);
}

/* ---- removing ---------------------------------------------------------------------------------------------- */

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

static int remove_tree(const char *path, unsigned *removed, struct failure *failure)
{
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0 || empty_tree(directory, removed) < 0 || rmdir(path) < 0)
        return fail(failure, errno, "file", "cannot remove \"%.300s\"", path);
    return 0;
}

int file_remove(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    unsigned removed = 0;
    if (get_path(request, TAG_PATH, path, failure) < 0)
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
        if (remove_tree(path, &removed, failure) < 0)
            return -1;
    }
    return worker_ok_with(worker, TAG_COUNT, removed + 1);
}

/* ---- changing ---------------------------------------------------------------------------------------------- */

int file_rename(struct worker *worker, const struct request *request, struct failure *failure)
{
    char from[MAX_PATH + 1], to[MAX_PATH + 1];
    if (get_path(request, TAG_PATH, from, failure) < 0 || get_path(request, TAG_TARGET, to, failure) < 0)
        return -1;
    long result = has_flag(request, FLAG_NO_REPLACE)
                      ? syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE)
                      : rename(from, to);
    if (result < 0)
        return fail(failure, errno, "file", "cannot rename \"%.200s\" to \"%.200s\"", from, to);
    return worker_ok(worker);
}

int file_chmod(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    if (get_path(request, TAG_PATH, path, failure) < 0)
        return -1;
    if (chmod(path, (mode_t)request->number[TAG_MODE] & 07777) < 0)
        return fail(failure, errno, "file", "cannot change the mode of \"%.300s\"", path);
    return worker_ok(worker);
}

int file_chown(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct owner owner;
    if (get_path(request, TAG_PATH, path, failure) < 0 || get_owner(request, &owner, failure) < 0)
        return -1;
    int flags = has_flag(request, FLAG_FOLLOW) ? 0 : AT_SYMLINK_NOFOLLOW;
    if (fchownat(AT_FDCWD, path, owner.uid, owner.gid, flags) < 0)
        return fail(failure, errno, "owner", "cannot change the owner of \"%.300s\"", path);
    return worker_ok(worker);
}
