/*
 * files_data.c: READ_FILE, WRITE_FILE and TRUNCATE.
 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { MAX_LINKS = 40 };

static int not_regular(const char *path, struct failure *failure)
{
    return refuse(failure, EINVAL, "not_regular", "cannot use \"%.300s\" as a file: it is not a regular file", path);
}

int open_regular(const char *path, int flags, mode_t mode, struct stat *status, struct failure *failure)
{
    int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, mode);
    /* What a FIFO without a reader, and a socket, say to open(). */
    if (fd < 0 && errno == ENXIO)
        return not_regular(path, failure);
    if (fd < 0 || fstat(fd, status) < 0)
        return fail(failure, errno, "file", "cannot open \"%.300s\"", path);
    if (S_ISREG(status->st_mode))
        return fd;
    close(fd);
    if (S_ISDIR(status->st_mode))
        return fail(failure, EISDIR, "file", "cannot open \"%.300s\"", path);
    return not_regular(path, failure);
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

/* Queue up to MAX_DATA bytes as one DATA frame; the count, or -1 with errno. */
static ssize_t put_data(struct worker *worker, int fd, uint64_t wanted)
{
    struct buffer *out = &worker->out;
    size_t size = wanted < MAX_DATA ? (size_t)wanted : MAX_DATA;
    if (buffer_reserve(out, HEADER_SIZE + size) < 0)
        return -1;
    ssize_t n = read(fd, out->data + out->end + HEADER_SIZE, size);
    if (n <= 0)
        return n;
    /* The bytes are in place already; the frame goes around them. */
    struct frame_writer writer = frame_begin(out, OP_DATA);
    out->end += (size_t)n;
    return frame_end(&writer) < 0 ? -1 : n;
}

int file_read(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct stat status;
    if (get_path(request, TAG_PATH, path, failure) < 0)
        return -1;
    int fd = open_regular(path, O_RDONLY, 0, &status, failure);
    if (fd < 0)
        return -1;
    if (request->number[TAG_OFFSET] > 0 && lseek(fd, (off_t)request->number[TAG_OFFSET], SEEK_SET) < 0)
        return fail(failure, errno, "file", "cannot read \"%.300s\" from this offset", path);

    struct frame_writer writer = frame_begin(&worker->out, OP_FILE);
    put_number(&writer, TAG_SIZE, (uint64_t)status.st_size);
    put_number(&writer, TAG_MODE, status.st_mode & 07777);
    frame_end(&writer);

    /* To the end of the file rather than to st_size, which is 0 in /proc and may change. */
    uint64_t left = has(request, TAG_LENGTH) ? request->number[TAG_LENGTH] : UINT64_MAX;
    while (left > 0) {
        ssize_t n = put_data(worker, fd, left);
        if (n < 0)
            return fail(failure, errno, "file", "cannot read \"%.300s\"", path);
        if (n == 0)
            break;
        left -= (uint64_t)n;
        worker_flush(worker);
    }
    return put_empty(&worker->out, OP_END);
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

struct target {
    char path[MAX_PATH + 1];
    char temporary[MAX_PATH + 1]; /* empty unless the write is atomic */
    int fd;
    bool existed;
    struct stat before;
};

/* Only one file is written per process. */
static struct target target;

static void remove_temporary(void)
{
    if (target.temporary[0] != 0)
        unlink(target.temporary);
}

/* The place that a chain of symbolic links ends in, so that an atomic write replaces the file and not a link to it.
 * Only the last component needs this. */
static int follow_links(char path[static MAX_PATH + 1], struct failure *failure)
{
    char next[MAX_PATH + 1];
    for (int links = 0; links < MAX_LINKS; links++) {
        ssize_t length = readlink(path, next, sizeof next);
        if (length < 0)
            return 0; /* not a link, or nothing there yet */
        const char *slash = strrchr(path, '/');
        size_t kept = next[0] == '/' ? 0 : (size_t)(slash - path) + 1;
        if (kept + (size_t)length > MAX_PATH)
            return fail(failure, ENAMETOOLONG, "file", "cannot follow the links of \"%.300s\"", path);
        memcpy(path + kept, next, (size_t)length);
        path[kept + (size_t)length] = 0;
    }
    return fail(failure, ELOOP, "file", "cannot follow the links of \"%.300s\"", path);
}

static int open_temporary(struct failure *failure)
{
    if (follow_links(target.path, failure) < 0)
        return -1;
    target.existed = lstat(target.path, &target.before) == 0;
    if (target.existed && S_ISDIR(target.before.st_mode))
        return fail(failure, EISDIR, "file", "cannot write \"%.300s\"", target.path);
    if (target.existed && !S_ISREG(target.before.st_mode))
        return not_regular(target.path, failure);
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return fail(failure, errno, "resource", "cannot name a temporary file");
    int parent = (int)(strrchr(target.path, '/') - target.path) + 1;
    int length = snprintf(target.temporary, sizeof target.temporary, "%.*s.sandboxd-%016llx", parent, target.path,
                          (unsigned long long)random);
    if (length < 0 || (size_t)length >= sizeof target.temporary) {
        target.temporary[0] = 0;
        return fail(failure, ENAMETOOLONG, "file", "cannot write \"%.300s\"", target.path);
    }
    int fd = open(target.temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        target.temporary[0] = 0;
        return fail(failure, errno, "file", "cannot write \"%.300s\"", target.path);
    }
    worker_on_hangup = remove_temporary;
    return fd;
}

static int open_in_place(const struct request *request, struct failure *failure)
{
    int flags = O_WRONLY | O_CREAT;
    if (has_flag(request, FLAG_EXCLUSIVE))
        flags |= O_EXCL;
    if (has_flag(request, FLAG_APPEND))
        flags |= O_APPEND;
    target.existed = stat(target.path, &target.before) == 0;
    struct stat status;
    int fd = open_regular(target.path, flags, 0644, &status, failure);
    if (fd < 0)
        return -1;
    /* Not by O_TRUNC, which would act before the look at what was opened. */
    bool keeps = has_flag(request, FLAG_APPEND) || has(request, TAG_OFFSET);
    if ((!keeps && ftruncate(fd, 0) < 0) ||
        (has(request, TAG_OFFSET) && lseek(fd, (off_t)request->number[TAG_OFFSET], SEEK_SET) < 0)) {
        fail(failure, errno, "file", "cannot write \"%.300s\"", target.path);
        close(fd);
        return -1;
    }
    return fd;
}

static int receive_content(struct worker *worker, uint64_t *total, struct failure *failure)
{
    struct frame frame;
    *total = 0;
    for (worker_receive(worker, &frame); frame.type == OP_DATA; worker_receive(worker, &frame)) {
        if (write_fully(target.fd, frame.payload, frame.length) < 0)
            return fail(failure, errno, "file", "cannot write \"%.300s\"", target.path);
        *total += frame.length;
    }
    return 0;
}

/* A new file gets the mode and owner asked for; an existing one keeps its own unless others are asked for. */
static int set_attributes(const struct request *request, const struct owner *owner, struct failure *failure)
{
    bool atomic = target.temporary[0] != 0;
    struct owner wanted = *owner;
    mode_t mode = has(request, TAG_MODE) ? (mode_t)request->number[TAG_MODE] & 07777
                  : target.existed       ? target.before.st_mode & 07777
                                         : 0644;
    if (atomic && target.existed) {
        /* Best effort: an ordinary user cannot give a file away. */
        if (fchown(target.fd, target.before.st_uid, target.before.st_gid) < 0)
            errno = 0;
    }
    if ((wanted.uid != (uid_t)-1 || wanted.gid != (gid_t)-1) && fchown(target.fd, wanted.uid, wanted.gid) < 0)
        return fail(failure, errno, "owner", "cannot change the owner of \"%.300s\"", target.path);
    if ((atomic || has(request, TAG_MODE)) && fchmod(target.fd, mode) < 0)
        return fail(failure, errno, "file", "cannot change the mode of \"%.300s\"", target.path);
    return 0;
}

static int move_into_place(const struct request *request, struct failure *failure)
{
    if (target.temporary[0] == 0)
        return 0;
    /* link() fails where rename() would replace. */
    int result = has_flag(request, FLAG_EXCLUSIVE) ? link(target.temporary, target.path)
                                                   : rename(target.temporary, target.path);
    if (result < 0)
        return fail(failure, errno, "file", "cannot write \"%.300s\"", target.path);
    if (has_flag(request, FLAG_EXCLUSIVE))
        unlink(target.temporary);
    target.temporary[0] = 0;
    return 0;
}

static int make_parents(const struct owner *owner, struct failure *failure)
{
    char parent[MAX_PATH + 1];
    unsigned made;
    memcpy(parent, target.path, sizeof parent);
    char *slash = strrchr(parent, '/');
    if (slash == parent)
        return 0;
    *slash = 0;
    return make_directories(parent, 0755, owner, &made, failure);
}

int file_write(struct worker *worker, const struct request *request, struct failure *failure)
{
    struct owner owner;
    uint64_t total;
    bool atomic = has_flag(request, FLAG_ATOMIC);
    if (get_path(request, TAG_PATH, target.path, failure) < 0 || get_owner(request, &owner, failure) < 0)
        return -1;
    if (atomic && (has_flag(request, FLAG_APPEND) || has(request, TAG_OFFSET)))
        return refuse(failure, EINVAL, "request", "cannot write a part of a file atomically");
    if (has_flag(request, FLAG_PARENTS) && make_parents(&owner, failure) < 0)
        return -1;
    target.fd = atomic ? open_temporary(failure) : open_in_place(request, failure);
    if (target.fd < 0)
        return -1;
    if (receive_content(worker, &total, failure) < 0 || set_attributes(request, &owner, failure) < 0 ||
        move_into_place(request, failure) < 0) {
        remove_temporary();
        return -1;
    }
    return worker_ok_with(worker, TAG_BYTES, total);
}

int file_truncate(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct stat status;
    if (get_path(request, TAG_PATH, path, failure) < 0)
        return -1;
    int fd = open_regular(path, O_WRONLY, 0, &status, failure);
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)request->number[TAG_SIZE]) < 0)
        return fail(failure, errno, "file", "cannot truncate \"%.300s\"", path);
    return worker_ok(worker);
}
