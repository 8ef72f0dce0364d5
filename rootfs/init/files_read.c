/*
 * files_read.c: READ_FILE, and how every operation opens a file.
 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int not_regular(const char *path, struct failure *failure)
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
    if (get_path(worker, request, TAG_PATH, path, failure) < 0)
        return -1;
    int fd = open_regular(path, O_RDONLY, 0, &status, failure);
    if (fd < 0)
        return -1;
    if (request->number[TAG_OFFSET] > 0 && lseek(fd, (off_t)request->number[TAG_OFFSET], SEEK_SET) < 0)
        return fail(failure, errno, "file", "cannot read \"%.300s\" from this offset", path);

    struct frame_writer writer = frame_begin(&worker->out, OP_FILE);
    put_number(&writer, TAG_SIZE, (uint64_t)status.st_size);
    put_number(&writer, TAG_MODE, status.st_mode & 07777);
    put_times(&writer, &status);
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
