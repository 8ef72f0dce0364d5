/*
 * files_write.c: WRITE_FILE and TRUNCATE.
 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

struct target {
    char path[MAX_PATH + 1];
    int fd;
    bool existed;
    struct stat before;
    /* Of a write that replaces the file once it is complete: */
    int parent;
    const char *name;
    char temporary[NAME_MAX + 1]; /* empty: there is nothing to be moved into place, or removed */
    bool kept;                    /* an upload that may go on later */
};

/* Only one file is written per process. */
static struct target target;

static void remove_temporary(void)
{
    if (target.temporary[0] != 0 && !target.kept)
        unlinkat(target.parent, target.temporary, 0);
}

/* Find what is to be replaced, and the directory it is in: names are looked up there from here on. */
static int look_at_target(struct failure *failure)
{
    if (follow_links(target.path, failure) < 0)
        return -1;
    target.parent = open_parent(target.path, &target.name, failure);
    if (target.parent < 0)
        return -1;
    target.existed = fstatat(target.parent, target.name, &target.before, AT_SYMLINK_NOFOLLOW) == 0;
    if (target.existed && S_ISDIR(target.before.st_mode))
        return fail(failure, EISDIR, "file", "cannot write \"%.300s\"", target.path);
    if (target.existed && !S_ISREG(target.before.st_mode))
        return not_regular(target.path, failure);
    return 0;
}

static int open_temporary(struct failure *failure)
{
    char name[TEMPORARY_NAME];
    if (look_at_target(failure) < 0 || temporary_name(name, failure) < 0)
        return -1;
    int fd = openat(target.parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return fail(failure, errno, "file", "cannot write \"%.300s\"", target.path);
    memcpy(target.temporary, name, sizeof name);
    worker_on_hangup = remove_temporary;
    return fd;
}

static int wrong_offset(uint64_t offset, uint64_t size, struct failure *failure)
{
    refuse(failure, EINVAL, "offset", "cannot go on with the upload of \"%.300s\" at %llu: %llu bytes of it have come",
           target.path, (unsigned long long)offset, (unsigned long long)size);
    failure->has_offset = true;
    failure->offset = size;
    return -1;
}

/* Open the file that collects an upload, to go on where it ends.  What has come stays when the client leaves. */
static int open_part(uint64_t offset, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct stat status;
    if (look_at_target(failure) < 0)
        return -1;
    snprintf(path, sizeof path, "%s", target.path);
    if (part_path(path, failure) < 0)
        return -1;
    const char *name = strrchr(path, '/') + 1;
    int flags = O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (offset == 0 ? O_CREAT : 0);
    int fd = openat(target.parent, name, flags, 0600);
    if (fd < 0 && errno == ENOENT && offset > 0)
        return wrong_offset(offset, 0, failure);
    if (fd < 0 && errno == ENXIO) /* a FIFO */
        return not_regular(path, failure);
    if (fd < 0)
        return fail(failure, errno, "file", "cannot write \"%.300s\"", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return refuse(failure, EBUSY, "busy", "cannot go on with the upload of \"%.300s\": it is being written to",
                      target.path);
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return not_regular(path, failure);
    if ((uint64_t)status.st_size != offset)
        return wrong_offset(offset, (uint64_t)status.st_size, failure);
    if (lseek(fd, 0, SEEK_END) < 0)
        return fail(failure, errno, "file", "cannot write \"%.300s\"", path);
    snprintf(target.temporary, sizeof target.temporary, "%s", name);
    target.kept = true;
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
    for (worker_receive(worker, &frame, 0); frame.type == OP_DATA; worker_receive(worker, &frame, 0)) {
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
    int result = has_flag(request, FLAG_EXCLUSIVE)
                     ? linkat(target.parent, target.temporary, target.parent, target.name, 0)
                     : renameat(target.parent, target.temporary, target.parent, target.name);
    if (result < 0)
        return fail(failure, errno, "file", "cannot write \"%.300s\"", target.path);
    if (has_flag(request, FLAG_EXCLUSIVE))
        unlinkat(target.parent, target.temporary, 0);
    target.temporary[0] = 0;
    return 0;
}

static int open_target(const struct request *request, struct failure *failure)
{
    if (has_flag(request, FLAG_RESUME))
        return open_part(request->number[TAG_OFFSET], failure);
    return has_flag(request, FLAG_ATOMIC) ? open_temporary(failure) : open_in_place(request, failure);
}

static int finish(const struct request *request, const struct owner *owner, struct failure *failure)
{
    if (has_flag(request, FLAG_RESUME) && !has_flag(request, FLAG_ATOMIC))
        return 0; /* more is to come */
    return set_attributes(request, owner, failure) < 0 ? -1 : move_into_place(request, failure);
}

int file_write(struct worker *worker, const struct request *request, struct failure *failure)
{
    struct owner owner;
    uint64_t total;
    bool part = has_flag(request, FLAG_APPEND) || (has(request, TAG_OFFSET) && !has_flag(request, FLAG_RESUME));
    if (get_path(worker, request, TAG_PATH, target.path, failure) < 0 || get_owner(request, &owner, failure) < 0)
        return -1;
    if (has_flag(request, FLAG_ATOMIC) && part)
        return refuse(failure, EINVAL, "request", "cannot write a part of a file atomically");
    if (has_flag(request, FLAG_PARENTS) && make_parents(target.path, &owner, failure) < 0)
        return -1;
    target.fd = open_target(request, failure);
    if (target.fd < 0)
        return -1;
    if (receive_content(worker, &total, failure) < 0 || finish(request, &owner, failure) < 0) {
        remove_temporary();
        return -1;
    }
    return worker_ok_with(worker, TAG_BYTES, total);
}

int file_truncate(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct stat status;
    if (get_path(worker, request, TAG_PATH, path, failure) < 0)
        return -1;
    int fd = open_regular(path, O_WRONLY, 0, &status, failure);
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)request->number[TAG_SIZE]) < 0)
        return fail(failure, errno, "file", "cannot truncate \"%.300s\"", path);
    return worker_ok(worker);
}
