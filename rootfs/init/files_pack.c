/*
 * files_pack.c: PACK, a directory and all in it as one stream.
 *
 * Everything is opened by name in its directory, without following links, so the stream never leaves the tree however
 * others move it about.  The size of a file is told before its content: what grows is cut, what shrinks is filled up
 * with zeros, as tar does.
 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { FIRST_LINKS = 64 };

/* Of <linux/magic.h>, which not every C library comes with. */
enum { PROC_MAGIC = 0x9fa0, SYSFS_MAGIC = 0x62656572, CGROUP2_MAGIC = 0x63677270 };

/* Files with several names, by what they are; an open-addressed table, at most half full. */
struct link {
    dev_t device;
    ino_t inode;
    char *path; /* NULL: a free place */
};

struct packing {
    struct worker *worker;
    struct failure *failure;
    struct place place; /* relative to the directory that is packed */
    bool hardlinks;
    dev_t device; /* of the directory that is packed */
    struct link *links;
    size_t link_count, link_capacity;
};

static int cannot_pack(struct packing *packing, int error)
{
    return fail(packing->failure, error, "file", "cannot pack \"%.300s\"",
                packing->place.length == 0 ? "." : packing->place.path);
}

/* ---- files with several names ------------------------------------------------------------------------------ */

static struct link *find_link(struct link *links, size_t capacity, dev_t device, ino_t inode)
{
    size_t at = ((size_t)inode * 2654435761u ^ (size_t)device) & (capacity - 1);
    while (links[at].path != NULL && (links[at].device != device || links[at].inode != inode))
        at = (at + 1) & (capacity - 1);
    return &links[at];
}

static int grow_links(struct packing *packing)
{
    size_t capacity = packing->link_capacity == 0 ? FIRST_LINKS : packing->link_capacity * 2;
    struct link *links = calloc(capacity, sizeof *links);
    if (links == NULL)
        return -1;
    for (size_t i = 0; i < packing->link_capacity; i++) {
        const struct link *old = &packing->links[i];
        if (old->path != NULL)
            *find_link(links, capacity, old->device, old->inode) = *old;
    }
    free(packing->links);
    packing->links = links;
    packing->link_capacity = capacity;
    return 0;
}

/* The first name of a file that was met before, or NULL; short of memory it is packed once more. */
static const char *met_before(struct packing *packing, const struct stat *status)
{
    if (!packing->hardlinks || status->st_nlink < 2)
        return NULL;
    if (2 * (packing->link_count + 1) > packing->link_capacity && grow_links(packing) < 0)
        return NULL;
    struct link *link = find_link(packing->links, packing->link_capacity, status->st_dev, status->st_ino);
    if (link->path != NULL)
        return link->path;
    char *path = strdup(packing->place.path);
    if (path != NULL) {
        *link = (struct link){status->st_dev, status->st_ino, path};
        packing->link_count++;
    }
    return NULL;
}

/* ---- one thing --------------------------------------------------------------------------------------------- */

/* Queue up to MAX_DATA bytes of a file as one DATA frame, with zeros behind its end; the count, or -1. */
static ssize_t put_content(struct worker *worker, int fd, uint64_t wanted)
{
    struct buffer *out = &worker->out;
    size_t size = wanted < MAX_DATA ? (size_t)wanted : MAX_DATA;
    if (buffer_reserve(out, HEADER_SIZE + size) < 0)
        return -1;
    uint8_t *data = out->data + out->end + HEADER_SIZE;
    ssize_t n = read(fd, data, size);
    if (n < 0)
        return -1;
    if (n == 0)
        memset(data, 0, size);
    struct frame_writer writer = frame_begin(out, OP_DATA);
    out->end += n == 0 ? size : (size_t)n;
    return frame_end(&writer) < 0 ? -1 : n == 0 ? (ssize_t)size : n;
}

static int pack_content(struct packing *packing, int fd, uint64_t size)
{
    for (uint64_t left = size; left > 0;) {
        ssize_t n = put_content(packing->worker, fd, left);
        if (n < 0)
            return -1;
        left -= (uint64_t)n;
        worker_send(packing->worker);
    }
    return 0;
}

static int pack_file(struct packing *packing, int at, const char *name)
{
    struct stat status;
    int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0; /* removed in the meantime */
    if (fd < 0 || fstat(fd, &status) < 0)
        return cannot_pack(packing, errno);
    if (!S_ISREG(status.st_mode)) { /* something else has taken its place */
        close(fd);
        return 0;
    }
    struct entry_extra extra = {.hardlink_to = met_before(packing, &status)};
    put_entry(packing->worker, at, name, packing->place.path, &status, &extra);
    int result = extra.hardlink_to != NULL ? 0 : pack_content(packing, fd, (uint64_t)status.st_size);
    if (result < 0)
        cannot_pack(packing, errno);
    close(fd);
    return result;
}

static int pack_entry(struct packing *, int at, const char *name, unsigned depth);

/* Whether a directory is one of the kernel's: what is in /proc and /sys belongs to no archive of what lies around it. */
static bool is_of_the_kernel(int at, const char *name)
{
    struct statfs status;
    int fd = openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    bool found = fd >= 0 && fstatfs(fd, &status) == 0 &&
                 (status.f_type == PROC_MAGIC || status.f_type == SYSFS_MAGIC || status.f_type == CGROUP2_MAGIC);
    if (fd >= 0)
        close(fd);
    return found;
}

static int pack_directory(struct packing *packing, int directory, unsigned depth)
{
    struct names names;
    size_t length = packing->place.length;
    if (names_read(directory, &names) < 0)
        return cannot_pack(packing, errno);
    int result = 0;
    for (size_t i = 0; i < names.count && result == 0; i++) {
        if (place_enter(&packing->place, names.items[i]) < 0)
            result = cannot_pack(packing, errno);
        else
            result = pack_entry(packing, directory, names.items[i], depth);
        place_leave(&packing->place, length);
    }
    names_free(&names);
    return result;
}

static int pack_entry(struct packing *packing, int at, const char *name, unsigned depth)
{
    struct stat status;
    if (fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : cannot_pack(packing, errno); /* removed in the meantime */
    if (S_ISREG(status.st_mode))
        return pack_file(packing, at, name);
    put_entry(packing->worker, at, name, packing->place.path, &status, NULL);
    worker_send(packing->worker);
    if (!S_ISDIR(status.st_mode) || (status.st_dev != packing->device && is_of_the_kernel(at, name)))
        return 0;
    if (depth >= MAX_NESTING)
        return cannot_pack(packing, ELOOP);
    int directory = open_directory(at, name, O_NOFOLLOW);
    if (directory < 0)
        return cannot_pack(packing, errno);
    int result = pack_directory(packing, directory, depth + 1);
    close(directory);
    return result;
}

int file_pack(struct worker *worker, const struct request *request, struct failure *failure)
{
    static struct packing packing;
    struct stat status;
    char path[MAX_PATH + 1];
    packing = (struct packing){.worker = worker, .failure = failure, .hardlinks = has_flag(request, FLAG_HARDLINKS)};
    if (get_path(worker, request, TAG_PATH, path, failure) < 0)
        return -1;
    int directory = open_directory(AT_FDCWD, path, 0);
    if (directory < 0 || fstat(directory, &status) < 0)
        return fail(failure, errno, "file", "cannot pack directory \"%.300s\"", path);
    packing.device = status.st_dev;
    /* The directory itself comes first, as ".". */
    put_entry(worker, directory, ".", ".", &status, NULL);
    if (pack_directory(&packing, directory, 0) < 0)
        return -1;
    return put_empty(&worker->out, OP_END);
}
