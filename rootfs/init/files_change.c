/*
 * files_change.c: operations on names and attributes: MKDIR, SYMLINK, RENAME, CHMOD, CHOWN.
 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

/* ---- making ------------------------------------------------------------------------------------------------ */

int file_mkdir(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct owner owner;
    unsigned made;
    mode_t mode = has(request, TAG_MODE) ? (mode_t)request->number[TAG_MODE] & 07777 : 0755;
    if (get_path(worker, request, TAG_PATH, path, failure) < 0 || get_owner(request, &owner, failure) < 0)
        return -1;
    /* Without PARENTS all above it has to be there, and it not. */
    struct stat status;
    const char *name;
    if (!has_flag(request, FLAG_PARENTS)) {
        int parent = open_parent(path, &name, failure);
        if (parent < 0)
            return -1;
        if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) == 0)
            return fail(failure, EEXIST, "file", "cannot make directory \"%.300s\"", path);
        close(parent);
    }
    if (make_directories(path, mode, &owner, &made, failure) < 0)
        return -1;
    return worker_ok_with(worker, TAG_COUNT, made);
}

int file_symlink(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1], destination[MAX_PATH + 1];
    if (get_path(worker, request, TAG_PATH, path, failure) < 0)
        return -1;
    if (bytes_to_string(request->bytes[TAG_TARGET], destination, sizeof destination) < 0)
        return refuse(failure, EINVAL, "path", "cannot use this target: it is too long or holds a NUL byte");
    if (symlink(destination, path) < 0)
        return fail(failure, errno, "file", "cannot make symbolic link \"%.300s\"", path);
    return worker_ok(worker);
}

int file_rename(struct worker *worker, const struct request *request, struct failure *failure)
{
    char from[MAX_PATH + 1], to[MAX_PATH + 1];
    const struct owner nobody = {(uid_t)-1, (gid_t)-1};
    if (get_path(worker, request, TAG_PATH, from, failure) < 0 ||
        get_path(worker, request, TAG_TARGET, to, failure) < 0)
        return -1;
    if (has_flag(request, FLAG_PARENTS) && make_parents(to, &nobody, failure) < 0)
        return -1;
    long result = has_flag(request, FLAG_NO_REPLACE)
                      ? syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE)
                      : rename(from, to);
    if (result < 0)
        return fail(failure, errno, "file", "cannot rename \"%.200s\" to \"%.200s\"", from, to);
    return worker_ok(worker);
}

/* ---- modes and owners -------------------------------------------------------------------------------------- */

/* A change of everything in a tree.  Links are not followed: whoever may write there could have us, as root, change
 * any file of the sandbox. */
struct adjustment {
    int (*apply)(const struct adjustment *, int at, const char *name);
    mode_t mode;
    struct owner owner;
    struct worker *worker; /* NULL: to be done though the client is gone */
    struct place place;
    unsigned count;
};

static int apply_mode(const struct adjustment *change, int at, const char *name)
{
    char link[32];
    struct stat status;
    int fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return -1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int result = S_ISLNK(status.st_mode) ? 0 : chmod(link, change->mode);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

static int apply_owner(const struct adjustment *change, int at, const char *name)
{
    return fchownat(at, name, change->owner.uid, change->owner.gid, AT_SYMLINK_NOFOLLOW);
}

static int adjust_tree(struct adjustment *, int at, const char *name, unsigned depth);

static int adjust_entries(struct adjustment *change, int directory, unsigned depth)
{
    struct names names;
    size_t length = change->place.length;
    int result = names_read(directory, &names);
    for (size_t i = 0; i < names.count && result == 0; i++) {
        result = place_enter(&change->place, names.items[i]);
        if (result == 0)
            result = adjust_tree(change, directory, names.items[i], depth + 1);
        if (result == 0)
            place_leave(&change->place, length);
    }
    int error = errno;
    names_free(&names);
    errno = error;
    return result;
}

/* Change what a name stands for and all in it; -1 with errno set, at the place where it happened. */
static int adjust_tree(struct adjustment *change, int at, const char *name, unsigned depth)
{
    struct stat status;
    if (change->worker != NULL)
        worker_check(change->worker);
    if (fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT && depth > 0 ? 0 : -1; /* removed in the meantime */
    change->count++;
    if (!S_ISDIR(status.st_mode))
        return change->apply(change, at, name);
    if (depth >= MAX_NESTING) {
        errno = ELOOP;
        return -1;
    }
    /* A directory is opened first, since we may not be able to afterwards; or changed first, if we cannot now. */
    int directory = open_directory(at, name, O_NOFOLLOW);
    if (directory < 0 && (change->apply(change, at, name) < 0 || (directory = open_directory(at, name, O_NOFOLLOW)) < 0))
        return -1;
    int result = adjust_entries(change, directory, depth) < 0 ? -1 : change->apply(change, at, name);
    int error = errno;
    close(directory);
    errno = error;
    return result;
}

void make_removable(int at, const char *name)
{
    static struct adjustment change;
    change = (struct adjustment){.apply = apply_mode, .mode = 0700};
    adjust_tree(&change, at, name, 0);
}

static int adjust_all(struct adjustment *change, const char *path, const char *what, struct failure *failure)
{
    place_enter(&change->place, path);
    if (adjust_tree(change, AT_FDCWD, path, 0) < 0)
        return fail(failure, errno, "file", "cannot change the %s of \"%.300s\"", what,
                    change->place.path);
    return worker_ok_with(change->worker, TAG_COUNT, change->count);
}

int file_chmod(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    mode_t mode = (mode_t)request->number[TAG_MODE] & 07777;
    if (get_path(worker, request, TAG_PATH, path, failure) < 0)
        return -1;
    if (has_flag(request, FLAG_RECURSIVE)) {
        struct adjustment change = {.apply = apply_mode, .mode = mode, .worker = worker};
        return adjust_all(&change, path, "mode", failure);
    }
    if (chmod(path, mode) < 0)
        return fail(failure, errno, "file", "cannot change the mode of \"%.300s\"", path);
    return worker_ok_with(worker, TAG_COUNT, 1);
}

int file_chown(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct owner owner;
    if (get_path(worker, request, TAG_PATH, path, failure) < 0 || get_owner(request, &owner, failure) < 0)
        return -1;
    if (has_flag(request, FLAG_RECURSIVE)) {
        struct adjustment change = {.apply = apply_owner, .owner = owner, .worker = worker};
        return adjust_all(&change, path, "owner", failure);
    }
    int flags = has_flag(request, FLAG_FOLLOW) ? 0 : AT_SYMLINK_NOFOLLOW;
    if (fchownat(AT_FDCWD, path, owner.uid, owner.gid, flags) < 0)
        return fail(failure, errno, "file", "cannot change the owner of \"%.300s\"", path);
    return worker_ok_with(worker, TAG_COUNT, 1);
}
