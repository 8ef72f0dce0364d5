/*
 * files_info.c: STAT and LIST_DIR.
 */
#include "files.h"
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { NAMES_CACHED = 16, DEFAULT_ENTRIES = 100 * 1000 };

/* ---- names of owners --------------------------------------------------------------------------------------- */

/* A directory's entries mostly have the same few owners. */
struct name_cache {
    size_t count;
    unsigned ids[NAMES_CACHED];
    char names[NAMES_CACHED][MAX_NAME];
};

static const char *cached_name(struct name_cache *cache, unsigned id, void (*look_up)(unsigned, char[static MAX_NAME]))
{
    for (size_t i = 0; i < cache->count && i < NAMES_CACHED; i++) {
        if (cache->ids[i] == id)
            return cache->names[i];
    }
    size_t slot = cache->count++ % NAMES_CACHED;
    cache->ids[slot] = id;
    look_up(id, cache->names[slot]);
    return cache->names[slot];
}

static const char *owner_name(uid_t uid)
{
    static struct name_cache users;
    return cached_name(&users, uid, uid_to_name);
}

static const char *group_name(gid_t gid)
{
    static struct name_cache groups;
    return cached_name(&groups, gid, gid_to_name);
}

/* ---- entries ----------------------------------------------------------------------------------------------- */

static enum file_type type_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG: return TYPE_REGULAR;
    case S_IFDIR: return TYPE_DIRECTORY;
    case S_IFLNK: return TYPE_SYMLINK;
    case S_IFIFO: return TYPE_FIFO;
    case S_IFSOCK: return TYPE_SOCKET;
    case S_IFCHR: return TYPE_CHARACTER;
    case S_IFBLK: return TYPE_BLOCK;
    default: return TYPE_UNKNOWN;
    }
}

static uint64_t nanoseconds(const struct timespec *time)
{
    return (uint64_t)time->tv_sec * 1000000000u + (uint64_t)time->tv_nsec;
}

void put_times(struct frame_writer *writer, const struct stat *status)
{
    put_number(writer, TAG_MTIME_NS, nanoseconds(&status->st_mtim));
    put_number(writer, TAG_CTIME_NS, nanoseconds(&status->st_ctim));
}

static void put_target(struct frame_writer *writer, int at, const char *name)
{
    char target[MAX_PATH + 1];
    ssize_t length = readlinkat(at, name, target, sizeof target);
    if (length >= 0)
        put_bytes(writer, TAG_TARGET, target, (size_t)length);
}

int put_entry(struct worker *worker, int at, const char *name, const char *path, const struct stat *status,
              const struct entry_extra *extra)
{
    bool hardlink = extra != NULL && extra->hardlink_to != NULL;
    struct frame_writer writer = frame_begin(&worker->out, OP_ENTRY);
    put_string(&writer, TAG_PATH, path);
    put_number(&writer, TAG_FILE_TYPE, hardlink ? TYPE_HARDLINK : type_of(status->st_mode));
    put_number(&writer, TAG_SIZE, (uint64_t)status->st_size);
    put_number(&writer, TAG_MODE, status->st_mode & 07777);
    put_number(&writer, TAG_UID, status->st_uid);
    put_number(&writer, TAG_GID, status->st_gid);
    put_string(&writer, TAG_OWNER, owner_name(status->st_uid));
    put_string(&writer, TAG_GROUP, group_name(status->st_gid));
    put_times(&writer, status);
    if (hardlink)
        put_string(&writer, TAG_TARGET, extra->hardlink_to);
    else if (S_ISLNK(status->st_mode))
        put_target(&writer, at, name);
    if (extra != NULL && extra->real_path != NULL)
        put_string(&writer, TAG_REAL_PATH, extra->real_path);
    return frame_end(&writer);
}

/* Where a path leads, links resolved; empty when that cannot be told. */
static void find_real_path(const char *path, char real[static MAX_PATH + 1])
{
    char link[32];
    real[0] = 0;
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, real, MAX_PATH);
    real[length < 0 ? 0 : length] = 0;
    close(fd);
}

int file_stat(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1], real[MAX_PATH + 1] = "";
    struct stat status;
    bool follow = has_flag(request, FLAG_FOLLOW);
    if (get_path(worker, request, TAG_PATH, path, failure) < 0 ||
        (has_flag(request, FLAG_RESUME) && part_path(path, failure) < 0))
        return -1;
    if (fstatat(AT_FDCWD, path, &status, follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0)
        return fail(failure, errno, "file", "cannot look at \"%.300s\"", path);
    if (follow)
        find_real_path(path, real);
    return put_entry(worker, AT_FDCWD, path, path, &status, &(struct entry_extra){.real_path = follow ? real : NULL});
}

/* ---- directories ------------------------------------------------------------------------------------------- */

struct listing {
    struct worker *worker;
    uint64_t depth, left; /* how deep to go, how many entries to give */
    bool truncated;
    struct place place; /* of the directory being read, relative to the one asked for */
};

/* A name against the first component of a path. */
static int compare_component(const char *name, const char *path)
{
    size_t length = strcspn(path, "/");
    int order = strncmp(name, path, length);
    return order != 0 ? order : name[length] != 0;
}

static void list_directory(struct listing *, int fd, uint64_t depth, const char *after);

/* `skipped`: an earlier answer had this entry, and what is in it up to `after` if that is given. */
static void list_entry(struct listing *listing, int at, const char *name, uint64_t depth, bool skipped,
                       const char *after)
{
    struct stat status;
    size_t length = listing->place.length;
    if (fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) < 0 || place_enter(&listing->place, name) < 0)
        return; /* removed in the meantime, or too deep for any path */
    if (!skipped) {
        if (listing->left == 0) {
            listing->truncated = true;
            return;
        }
        listing->left--;
        put_entry(listing->worker, at, name, listing->place.path, &status, NULL);
        worker_send(listing->worker);
    }
    int child = S_ISDIR(status.st_mode) && depth < listing->depth ? open_directory(at, name, O_NOFOLLOW) : -1;
    if (child >= 0)
        list_directory(listing, child, depth + 1, after);
    place_leave(&listing->place, length);
}

/* Depth first, in the order of the names' bytes, so that a list can go on behind any entry.  Closes the directory. */
static void list_directory(struct listing *listing, int fd, uint64_t depth, const char *after)
{
    struct names names;
    if (names_read(fd, &names) == 0) {
        for (size_t i = 0; i < names.count && !listing->truncated; i++) {
            int order = after == NULL ? 1 : compare_component(names.items[i], after);
            if (order < 0)
                continue;
            const char *slash = order == 0 ? strchr(after, '/') : NULL;
            list_entry(listing, fd, names.items[i], depth, order == 0, slash == NULL ? NULL : slash + 1);
        }
        names_free(&names);
    }
    close(fd);
}

int file_list(struct worker *worker, const struct request *request, struct failure *failure)
{
    struct listing listing = {
        .worker = worker,
        .depth = has(request, TAG_DEPTH) ? request->number[TAG_DEPTH] : 1,
        .left = has(request, TAG_LIMIT) ? request->number[TAG_LIMIT] : DEFAULT_ENTRIES,
    };
    char path[MAX_PATH + 1], after[MAX_PATH + 1];
    if (get_path(worker, request, TAG_PATH, path, failure) < 0)
        return -1;
    if (listing.depth < 1 || listing.depth > MAX_DEPTH)
        return refuse(failure, EINVAL, "request", "cannot list to this depth: use 1 to %d", MAX_DEPTH);
    if (bytes_to_string(request->bytes[TAG_AFTER], after, sizeof after) < 0)
        return refuse(failure, EINVAL, "request", "cannot list behind this entry: it is too long or holds a NUL byte");
    int fd = open_directory(AT_FDCWD, path, 0);
    if (fd < 0)
        return fail(failure, errno, "file", "cannot list directory \"%.300s\"", path);
    list_directory(&listing, fd, 1, after[0] == 0 ? NULL : after);

    struct frame_writer writer = frame_begin(&worker->out, OP_END);
    put_number(&writer, TAG_FLAGS, listing.truncated ? FLAG_TRUNCATED : 0);
    return frame_end(&writer);
}
