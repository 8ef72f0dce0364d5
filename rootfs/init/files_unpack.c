/*
 * files_unpack.c: UNPACK, a stream of things to make below one directory.
 *
 * What the stream says is a stranger's.  Every name is looked up component by component from the directory that is
 * filled, without following links, so neither the order of entries nor another process's renames lead out of it
 * (openat2's RESOLVE_BENEATH would do, but gVisor lacks it).  What exists and is no directory is replaced; nothing but
 * files, directories, links and hard links is made.
 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What a directory gets when all that is in it has come: it may be read-only. */
struct made {
    char *path;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec mtime;
};

struct unpacking {
    struct worker *worker;
    struct failure *failure;
    int root;
    /* The directory that was written to last: archives go directory by directory. */
    int parent;
    char parent_path[MAX_PATH + 1];
    /* The file that DATA go to, or -1. */
    int file;
    struct made current;
    struct made *made;
    size_t made_count, made_capacity;
    bool owners;
    unsigned count;
    uint64_t bytes;
};

static int cannot_unpack(struct unpacking *unpacking, const char *path)
{
    return fail(unpacking->failure, errno, "file", "cannot unpack \"%.300s\"", path);
}

static int refuse_entry(struct unpacking *unpacking, const char *path, const char *why)
{
    return refuse(unpacking->failure, EINVAL, "archive", "cannot unpack \"%.300s\": %s", path, why);
}

/* ---- finding the place ------------------------------------------------------------------------------------- */

static int enter(int at, const char *name)
{
    int fd = openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    if (mkdirat(at, name, 0755) < 0 && errno != EEXIST)
        return -1;
    return openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Open a directory below the root, made with those above it where they are missing; -1 with errno set. */
static int walk(int root, const char *path)
{
    char name[NAME_MAX + 1];
    int directory = fcntl(root, F_DUPFD_CLOEXEC, 3);
    while (directory >= 0 && *path != 0) {
        size_t length = strcspn(path, "/");
        if (length > NAME_MAX) {
            close(directory);
            errno = ENAMETOOLONG;
            return -1;
        }
        memcpy(name, path, length);
        name[length] = 0;
        path += length + (path[length] == '/');
        int below = enter(directory, name);
        int error = errno;
        close(directory);
        errno = error;
        directory = below;
    }
    return directory;
}

/* Plainly inside: components that are names, with single slashes between them. */
static bool is_plain(const char *path)
{
    do {
        size_t length = strcspn(path, "/");
        if (length == 0 || (length == 1 && path[0] == '.') || (length == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        path += length;
    } while (*path++ == '/');
    return true;
}

/* Split a path into the directory, opened, and the name in it.  -1 with the failure filled in. */
static int open_place(struct unpacking *unpacking, const char *path, const char **name)
{
    char parent[MAX_PATH + 1];
    if (!is_plain(path))
        return refuse_entry(unpacking, path, "its name leads out of the directory");
    const char *slash = strrchr(path, '/');
    size_t length = slash == NULL ? 0 : (size_t)(slash - path);
    memcpy(parent, path, length);
    parent[length] = 0;
    *name = slash == NULL ? path : slash + 1;
    if (unpacking->parent >= 0 && strcmp(parent, unpacking->parent_path) == 0)
        return unpacking->parent;
    if (unpacking->parent >= 0)
        close(unpacking->parent);
    unpacking->parent = walk(unpacking->root, parent);
    memcpy(unpacking->parent_path, parent, length + 1);
    return unpacking->parent < 0 ? cannot_unpack(unpacking, path) : unpacking->parent;
}

/* ---- attributes -------------------------------------------------------------------------------------------- */

/* Permissions and the sticky bit: no setuid bit comes out of an archive. */
static int set_attributes(const struct unpacking *unpacking, int fd, const struct made *made)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, made->mtime};
    if (unpacking->owners && fchown(fd, made->uid, made->gid) < 0)
        return -1;
    return fchmod(fd, made->mode & 01777) < 0 ? -1 : futimens(fd, times);
}

static int remember_directory(struct unpacking *unpacking, const struct made *made)
{
    if (unpacking->made_count == unpacking->made_capacity) {
        size_t capacity = unpacking->made_capacity == 0 ? 64 : unpacking->made_capacity * 2;
        struct made *grown = realloc(unpacking->made, capacity * sizeof *grown);
        if (grown == NULL)
            return -1;
        unpacking->made = grown;
        unpacking->made_capacity = capacity;
    }
    struct made *kept = &unpacking->made[unpacking->made_count];
    *kept = *made;
    kept->path = strdup(made->path);
    unpacking->made_count += kept->path != NULL;
    return kept->path == NULL ? -1 : 0;
}

/* The deepest last-made first, since a directory that may not be entered hides those in it. */
static int finish_directories(struct unpacking *unpacking)
{
    while (unpacking->made_count > 0) {
        struct made *made = &unpacking->made[--unpacking->made_count];
        int above = walk(unpacking->root, made->path);
        int fd = above < 0 ? -1 : open_directory(above, ".", 0);
        if (fd < 0 || set_attributes(unpacking, fd, made) < 0)
            return cannot_unpack(unpacking, made->path);
        close(fd);
        close(above);
        free(made->path);
    }
    return 0;
}

/* ---- entries ----------------------------------------------------------------------------------------------- */

static int end_file(struct unpacking *unpacking)
{
    if (unpacking->file < 0)
        return 0;
    int result = set_attributes(unpacking, unpacking->file, &unpacking->current);
    if (result < 0)
        cannot_unpack(unpacking, unpacking->parent_path);
    close(unpacking->file);
    unpacking->file = -1;
    return result;
}

static int make_directory(struct unpacking *unpacking, int at, const char *name, const struct made *made)
{
    if (mkdirat(at, name, 0700) == 0)
        return remember_directory(unpacking, made);
    /* One that exists keeps its mode: an archive of "." says nothing about /tmp. */
    int fd = errno == EEXIST ? openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

static int make_file(struct unpacking *unpacking, int at, const char *name, const struct made *made)
{
    unpacking->current = *made;
    unpacking->file = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    return unpacking->file < 0 ? -1 : 0;
}

static int make_link(struct unpacking *unpacking, int at, const char *name, const struct made *made,
                     const char *target)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, made->mtime};
    if (symlinkat(target, at, name) < 0)
        return -1;
    if (unpacking->owners && fchownat(at, name, made->uid, made->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    return utimensat(at, name, times, AT_SYMLINK_NOFOLLOW);
}

static int make_hardlink(struct unpacking *unpacking, int at, const char *name, const char *target)
{
    char above[MAX_PATH + 1];
    if (!is_plain(target)) {
        errno = EINVAL;
        return -1;
    }
    snprintf(above, sizeof above, "%s", target);
    char *slash = strrchr(above, '/');
    *(slash == NULL ? above : slash) = 0;
    int from = walk(unpacking->root, above);
    if (from < 0)
        return -1;
    int result = linkat(from, slash == NULL ? target : target + (slash - above) + 1, at, name, 0);
    int error = errno;
    close(from);
    errno = error;
    return result;
}

static int make(struct unpacking *unpacking, int at, const char *name, enum file_type type, const struct made *made,
                const char *target)
{
    switch (type) {
    case TYPE_DIRECTORY: return make_directory(unpacking, at, name, made);
    case TYPE_REGULAR: return make_file(unpacking, at, name, made);
    case TYPE_SYMLINK: return make_link(unpacking, at, name, made, target);
    case TYPE_HARDLINK: return make_hardlink(unpacking, at, name, target);
    default: errno = EINVAL; return -1;
    }
}

static struct timespec time_of(uint64_t nanoseconds)
{
    int64_t time = (int64_t)nanoseconds, second = 1000000000;
    int64_t fraction = (time % second + second) % second;
    return (struct timespec){.tv_sec = (time - fraction) / second, .tv_nsec = (long)fraction};
}

static int put(struct unpacking *unpacking, const struct frame *frame)
{
    struct request request;
    char path[MAX_PATH + 1], target[MAX_PATH + 1] = "";
    const char *name = NULL;
    const uint64_t required = TAGS(TAG_PATH, TAG_FILE_TYPE, TAG_MODE, TAG_MTIME_NS);
    if (request_parse(frame, required | TAGS(TAG_TARGET, TAG_UID, TAG_GID), required, &request) < 0 ||
        bytes_to_string(request.bytes[TAG_PATH], path, sizeof path) < 0 ||
        bytes_to_string(request.bytes[TAG_TARGET], target, sizeof target) < 0)
        return refuse(unpacking->failure, EINVAL, "archive", "cannot unpack an entry: its description is malformed");
    if (end_file(unpacking) < 0)
        return -1;
    struct made made = {.path = path,
                        .mode = (mode_t)request.number[TAG_MODE],
                        .uid = (uid_t)request.number[TAG_UID],
                        .gid = (gid_t)request.number[TAG_GID],
                        .mtime = time_of(request.number[TAG_MTIME_NS])};
    enum file_type type = (enum file_type)request.number[TAG_FILE_TYPE];
    int at = open_place(unpacking, path, &name);
    if (at < 0)
        return -1;
    unpacking->count++;
    if (type != TYPE_DIRECTORY && unlinkat(at, name, 0) < 0 && errno != ENOENT)
        return cannot_unpack(unpacking, path);
    return make(unpacking, at, name, type, &made, target) < 0 ? cannot_unpack(unpacking, path) : 0;
}

static int write_data(struct unpacking *unpacking, const struct frame *frame)
{
    if (unpacking->file < 0)
        return refuse(unpacking->failure, EINVAL, "archive", "cannot unpack: there is content that belongs to no file");
    unpacking->bytes += frame->length;
    return write_fully(unpacking->file, frame->payload, frame->length) < 0
               ? cannot_unpack(unpacking, unpacking->parent_path)
               : 0;
}

static int receive_entries(struct unpacking *unpacking)
{
    struct frame frame;
    for (;;) {
        worker_receive(unpacking->worker, &frame, OP_PUT);
        if (frame.type == OP_END)
            return end_file(unpacking) < 0 ? -1 : finish_directories(unpacking);
        if ((frame.type == OP_PUT ? put : write_data)(unpacking, &frame) < 0)
            return -1;
    }
}

int file_unpack(struct worker *worker, const struct request *request, struct failure *failure)
{
    static struct unpacking unpacking;
    char path[MAX_PATH + 1];
    unsigned made;
    const struct owner nobody = {(uid_t)-1, (gid_t)-1};
    unpacking = (struct unpacking){.worker = worker, .failure = failure, .parent = -1, .file = -1,
                                   .owners = has_flag(request, FLAG_OWNERS)};
    if (get_path(worker, request, TAG_PATH, path, failure) < 0)
        return -1;
    if (has_flag(request, FLAG_PARENTS) && make_directories(path, 0755, &nobody, &made, failure) < 0)
        return -1;
    unpacking.root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (unpacking.root < 0)
        return fail(failure, errno, "file", "cannot unpack into \"%.300s\"", path);
    if (receive_entries(&unpacking) < 0)
        return -1;
    struct frame_writer writer = frame_begin(&worker->out, OP_OK);
    put_number(&writer, TAG_COUNT, unpacking.count);
    put_number(&writer, TAG_BYTES, unpacking.bytes);
    return frame_end(&writer);
}
