/*
 * files_copy.c: COPY, of a file or of a tree, inside the sandbox.
 *
 * The copy grows under a hidden name beside its place and is renamed into it when complete, so that nobody sees half
 * of it and a failure leaves nothing.  Links are copied as links.  Modes and times are kept; owners where we are root.
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

enum { PIECE = 8 * 1024 * 1024, BUFFER = 64 * 1024 };

struct copying {
    struct worker *worker;
    struct failure *failure;
    struct place place; /* what is being copied */
    dev_t device;       /* what the copy began with: a tree is not copied into its own copy */
    ino_t inode;
    uint64_t bytes;
    unsigned count;
};

/* What to remove if we cannot finish. */
static struct {
    int parent;
    char name[TEMPORARY_NAME];
} unfinished;

static void remove_unfinished(void)
{
    unsigned removed = 0;
    if (unlinkat(unfinished.parent, unfinished.name, 0) == 0 || errno == ENOENT)
        return;
    make_removable(unfinished.parent, unfinished.name);
    remove_tree(unfinished.parent, unfinished.name, &removed);
}

static int cannot_copy(struct copying *copying, int error)
{
    return fail(copying->failure, error, "file", "cannot copy \"%.300s\"", copying->place.path);
}

/* ---- attributes -------------------------------------------------------------------------------------------- */

/* Modes come after owners, whose change takes the setuid bit away; only root passes that on. */
static int copy_attributes(int fd, const struct stat *status)
{
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    bool root = geteuid() == 0;
    if (root && fchown(fd, status->st_uid, status->st_gid) < 0)
        return -1;
    return fchmod(fd, status->st_mode & (root ? 07777 : 01777)) < 0 ? -1 : futimens(fd, times);
}

static int copy_link_attributes(int at, const char *name, const struct stat *status)
{
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    if (geteuid() == 0 && fchownat(at, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    return utimensat(at, name, times, AT_SYMLINK_NOFOLLOW);
}

/* ---- one thing --------------------------------------------------------------------------------------------- */

static ssize_t copy_piece(int in, int out, uint64_t wanted)
{
    static uint8_t buffer[BUFFER];
    size_t size = wanted < PIECE ? (size_t)wanted : PIECE;
    ssize_t n = syscall(SYS_copy_file_range, in, NULL, out, NULL, size, 0);
    if (n > 0 || (n < 0 && errno != EINVAL && errno != ENOSYS && errno != EXDEV && errno != EOPNOTSUPP && errno != EPERM))
        return n;
    /* At the end of a file, in a file of /proc, or where the kernel cannot do it by itself. */
    n = read(in, buffer, size < sizeof buffer ? size : sizeof buffer);
    return n <= 0 ? n : write_fully(out, buffer, (size_t)n) < 0 ? -1 : n;
}

static int copy_bytes(struct copying *copying, int in, int out, uint64_t wanted)
{
    while (wanted > 0) {
        ssize_t n = copy_piece(in, out, wanted);
        if (n <= 0)
            return (int)n;
        wanted -= (uint64_t)n;
        copying->bytes += (uint64_t)n;
        worker_check(copying->worker);
    }
    return 0;
}

/* Holes stay holes: a sparse file may announce more than any disk has. */
static int copy_content(struct copying *copying, int in, int out, off_t size)
{
    off_t data = 0, hole = 0;
    while (hole < size && (data = lseek(in, hole, SEEK_DATA)) >= 0) {
        hole = lseek(in, data, SEEK_HOLE);
        if (hole < 0 || lseek(in, data, SEEK_SET) < 0 || lseek(out, data, SEEK_SET) < 0 ||
            copy_bytes(copying, in, out, (uint64_t)(hole - data)) < 0)
            return -1;
    }
    bool told = size > 0 && (data >= 0 || errno == ENXIO); /* ENXIO: nothing but a hole from here on */
    if (!told && lseek(in, 0, SEEK_SET) == 0)
        return copy_bytes(copying, in, out, UINT64_MAX);
    return ftruncate(out, size);
}

static int copy_file(struct copying *copying, int from, const char *name, int to, const char *new_name)
{
    struct stat status;
    int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (in < 0 || fstat(in, &status) < 0)
        return cannot_copy(copying, errno);
    if (!S_ISREG(status.st_mode))
        return not_regular(copying->place.path, copying->failure);
    int out = openat(to, new_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (out < 0 || copy_content(copying, in, out, status.st_size) < 0 || copy_attributes(out, &status) < 0)
        return cannot_copy(copying, errno);
    close(in);
    close(out);
    return 0;
}

static int copy_link(struct copying *copying, int from, const char *name, int to, const char *new_name,
                     const struct stat *status)
{
    char target[MAX_PATH + 1];
    ssize_t length = readlinkat(from, name, target, MAX_PATH);
    if (length < 0)
        return cannot_copy(copying, errno);
    target[length] = 0;
    if (symlinkat(target, to, new_name) < 0 || copy_link_attributes(to, new_name, status) < 0)
        return cannot_copy(copying, errno);
    return 0;
}

static int copy_fifo(struct copying *copying, int to, const char *new_name, const struct stat *status)
{
    if (mkfifoat(to, new_name, status->st_mode & 0777) < 0 || copy_link_attributes(to, new_name, status) < 0)
        return cannot_copy(copying, errno);
    return 0;
}

/* ---- trees ------------------------------------------------------------------------------------------------- */

static int copy_entry(struct copying *, int from, const char *name, int to, const char *new_name, unsigned depth);

static int copy_entries(struct copying *copying, int from, int to, unsigned depth)
{
    struct names names;
    size_t length = copying->place.length;
    if (names_read(from, &names) < 0)
        return cannot_copy(copying, errno);
    int result = 0;
    for (size_t i = 0; i < names.count && result == 0; i++) {
        const char *name = names.items[i];
        if (place_enter(&copying->place, name) < 0)
            result = cannot_copy(copying, errno);
        else
            result = copy_entry(copying, from, name, to, name, depth + 1);
        place_leave(&copying->place, length);
    }
    names_free(&names);
    return result;
}

static int copy_directory(struct copying *copying, int from, const char *name, int to, const char *new_name,
                          unsigned depth)
{
    struct stat status, made;
    if (depth >= MAX_NESTING)
        return cannot_copy(copying, ELOOP);
    int source = open_directory(from, name, O_NOFOLLOW);
    if (source < 0 || fstat(source, &status) < 0)
        return cannot_copy(copying, errno);
    if (depth > 0 && status.st_dev == copying->device && status.st_ino == copying->inode) {
        close(source);
        copying->count--;
        return 0;
    }
    int copy = mkdirat(to, new_name, 0700) < 0 ? -1 : open_directory(to, new_name, O_NOFOLLOW);
    if (copy < 0 || fstat(copy, &made) < 0)
        return cannot_copy(copying, errno);
    if (depth == 0) {
        copying->device = made.st_dev;
        copying->inode = made.st_ino;
    }
    if (copy_entries(copying, source, copy, depth) < 0)
        return -1;
    if (copy_attributes(copy, &status) < 0)
        return cannot_copy(copying, errno);
    close(source);
    close(copy);
    return 0;
}

static int copy_entry(struct copying *copying, int from, const char *name, int to, const char *new_name,
                      unsigned depth)
{
    struct stat status;
    worker_check(copying->worker);
    if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT && depth > 0 ? 0 : cannot_copy(copying, errno); /* removed in the meantime */
    copying->count++;
    switch (status.st_mode & S_IFMT) {
    case S_IFREG: return copy_file(copying, from, name, to, new_name);
    case S_IFDIR: return copy_directory(copying, from, name, to, new_name, depth);
    case S_IFLNK: return copy_link(copying, from, name, to, new_name, &status);
    case S_IFIFO: return copy_fifo(copying, to, new_name, &status);
    default: return not_regular(copying->place.path, copying->failure);
    }
}

static int put_in_place(const struct request *request, const char *name)
{
    if (has_flag(request, FLAG_NO_REPLACE))
        return (int)syscall(SYS_renameat2, unfinished.parent, unfinished.name, unfinished.parent, name,
                            RENAME_NOREPLACE);
    return renameat(unfinished.parent, unfinished.name, unfinished.parent, name);
}

static int check_source(const struct request *request, const char *path, struct failure *failure)
{
    struct stat status;
    if (lstat(path, &status) < 0)
        return fail(failure, errno, "file", "cannot copy \"%.300s\"", path);
    if (S_ISDIR(status.st_mode) && !has_flag(request, FLAG_RECURSIVE))
        return fail(failure, EISDIR, "file", "cannot copy \"%.300s\"", path);
    return 0;
}

int file_copy(struct worker *worker, const struct request *request, struct failure *failure)
{
    static struct copying copying;
    char from[MAX_PATH + 1], to[MAX_PATH + 1];
    const char *name;
    const struct owner nobody = {(uid_t)-1, (gid_t)-1};
    if (get_path(worker, request, TAG_PATH, from, failure) < 0 ||
        get_path(worker, request, TAG_TARGET, to, failure) < 0 || check_source(request, from, failure) < 0)
        return -1;
    if (has_flag(request, FLAG_PARENTS) && make_parents(to, &nobody, failure) < 0)
        return -1;
    copying = (struct copying){.worker = worker, .failure = failure};
    unfinished.parent = open_parent(to, &name, failure);
    if (unfinished.parent < 0 || temporary_name(unfinished.name, failure) < 0)
        return -1;
    worker_on_hangup = remove_unfinished;
    place_enter(&copying.place, from);
    int result = copy_entry(&copying, AT_FDCWD, from, unfinished.parent, unfinished.name, 0);
    if (result == 0 && put_in_place(request, name) < 0)
        result = fail(failure, errno, "file", "cannot put the copy of \"%.200s\" at \"%.200s\"", from, to);
    if (result < 0) {
        remove_unfinished();
        return -1;
    }
    struct frame_writer writer = frame_begin(&worker->out, OP_OK);
    put_number(&writer, TAG_COUNT, copying.count);
    put_number(&writer, TAG_BYTES, copying.bytes);
    return frame_end(&writer);
}
