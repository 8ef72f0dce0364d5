/*
 * files_info.c: STAT and LIST_DIR.
 */
#include "files.h"
#include "users.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { NAMES_CACHED = 16, DEFAULT_ENTRIES = 100 * 1000 };

int get_path(const struct request *request, enum tag tag, char path[static MAX_PATH + 1], struct failure *failure)
{
    if (bytes_to_string(request->bytes[tag], path, MAX_PATH + 1) < 0 || path[0] != '/')
        return refuse(failure, EINVAL, "path", "cannot use this path: it must be absolute, without NUL, and of at most "
                                             "%d bytes", MAX_PATH);
    return 0;
}

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

/* `name` is looked up in directory `at`; `path` is what the entry is called in the answer. */
static int put_entry(struct worker *worker, int at, const char *name, const char *path, const struct stat *status)
{
    struct frame_writer writer = frame_begin(&worker->out, OP_ENTRY);
    put_string(&writer, TAG_PATH, path);
    put_number(&writer, TAG_FILE_TYPE, type_of(status->st_mode));
    put_number(&writer, TAG_SIZE, (uint64_t)status->st_size);
    put_number(&writer, TAG_MODE, status->st_mode & 07777);
    put_number(&writer, TAG_UID, status->st_uid);
    put_number(&writer, TAG_GID, status->st_gid);
    put_string(&writer, TAG_OWNER, owner_name(status->st_uid));
    put_string(&writer, TAG_GROUP, group_name(status->st_gid));
    put_number(&writer, TAG_MTIME_NS,
               (uint64_t)status->st_mtim.tv_sec * 1000000000u + (uint64_t)status->st_mtim.tv_nsec);
    char target[MAX_PATH + 1];
    ssize_t length = S_ISLNK(status->st_mode) ? readlinkat(at, name, target, sizeof target) : -1;
    if (length >= 0)
        put_bytes(&writer, TAG_TARGET, target, (size_t)length);
    return frame_end(&writer);
}

int file_stat(struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct stat status;
    if (get_path(request, TAG_PATH, path, failure) < 0)
        return -1;
    if (fstatat(AT_FDCWD, path, &status, has_flag(request, FLAG_FOLLOW) ? 0 : AT_SYMLINK_NOFOLLOW) < 0)
        return fail(failure, errno, "file", "cannot look at \"%.300s\"", path);
    return put_entry(worker, AT_FDCWD, path, path, &status);
}

/* ---- directories ------------------------------------------------------------------------------------------- */

struct listing {
    struct worker *worker;
    uint64_t depth, left; /* how deep to go, how many entries to give */
    bool truncated;
    char path[MAX_PATH + 1]; /* of the directory being read, relative to the one asked for */
};

static int open_directory(int at, const char *name, int flags)
{
    return openat(at, name, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC | flags);
}

/* Reads the directory and closes it. */
static void list_directory(struct listing *listing, int fd, uint64_t depth)
{
    DIR *directory = fdopendir(fd);
    if (directory == NULL) {
        close(fd);
        return;
    }
    size_t length = strlen(listing->path);
    struct dirent *entry;
    while (!listing->truncated && (entry = readdir(directory)) != NULL) {
        const char *name = entry->d_name;
        struct stat status;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if (fstatat(dirfd(directory), name, &status, AT_SYMLINK_NOFOLLOW) < 0)
            continue; /* removed in the meantime */
        if (listing->left == 0 || length + strlen(name) + 2 > sizeof listing->path) {
            listing->truncated = true;
            break;
        }
        listing->left--;
        snprintf(listing->path + length, sizeof listing->path - length, "%s%s", length > 0 ? "/" : "", name);
        put_entry(listing->worker, dirfd(directory), name, listing->path, &status);
        worker_send(listing->worker);
        if (S_ISDIR(status.st_mode) && depth < listing->depth) {
            int child = open_directory(dirfd(directory), name, O_NOFOLLOW);
            if (child >= 0)
                list_directory(listing, child, depth + 1);
        }
        listing->path[length] = 0;
    }
    closedir(directory);
}

int file_list(struct worker *worker, const struct request *request, struct failure *failure)
{
    struct listing listing = {
        .worker = worker,
        .depth = has(request, TAG_DEPTH) ? request->number[TAG_DEPTH] : 1,
        .left = has(request, TAG_LIMIT) ? request->number[TAG_LIMIT] : DEFAULT_ENTRIES,
    };
    char path[MAX_PATH + 1];
    if (get_path(request, TAG_PATH, path, failure) < 0)
        return -1;
    if (listing.depth < 1 || listing.depth > MAX_DEPTH)
        return refuse(failure, EINVAL, "request", "cannot list to this depth: use 1 to %d", MAX_DEPTH);
    int fd = open_directory(AT_FDCWD, path, 0);
    if (fd < 0)
        return fail(failure, errno, "file", "cannot list directory \"%.300s\"", path);
    list_directory(&listing, fd, 1);

    struct frame_writer writer = frame_begin(&worker->out, OP_END);
    put_number(&writer, TAG_FLAGS, listing.truncated ? FLAG_TRUNCATED : 0);
    return frame_end(&writer);
}
