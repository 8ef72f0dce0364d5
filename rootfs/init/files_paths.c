/*
 * files_paths.c: what the file operations share: paths, parents, names in order.
 */
#include "files.h"
#include "users.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { MAX_LINKS = 40, MAX_NAMES = 256 * 1024 * 1024, FIRST_NAMES = 4096 };

static const char part_suffix[] = ".sandboxd-part";

/* ---- paths ------------------------------------------------------------------------------------------------- */

int get_path(const struct worker *worker, const struct request *request, enum tag tag,
             char path[static MAX_PATH + 1], struct failure *failure)
{
    char given[MAX_PATH + 1];
    int length = -1;
    if (bytes_to_string(request->bytes[tag], given, sizeof given) == 0) {
        if (given[0] == '/')
            length = snprintf(path, MAX_PATH + 1, "%s", given);
        else if (given[0] != 0 && worker->directory[0] != 0)
            length = snprintf(path, MAX_PATH + 1, "%s/%s", worker->directory, given);
    }
    if (length < 0 || length > MAX_PATH)
        return refuse(failure, EINVAL, "path", "cannot use this path: it must be absolute or begin somewhere, without "
                                               "NUL, and of at most %d bytes", MAX_PATH);
    return 0;
}

static bool is_a_name(const char *name)
{
    return name[0] != 0 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

int open_parent(char *path, const char **name, struct failure *failure)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        path[--length] = 0;
    char *slash = strrchr(path, '/');
    *name = slash + 1;
    if (!is_a_name(*name))
        return refuse(failure, EINVAL, "path", "cannot use \"%.300s\" here: its last component is no name", path);
    *slash = 0;
    int fd = open(slash == path ? "/" : path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    *slash = '/';
    if (fd < 0)
        return fail(failure, errno, "file", "cannot reach \"%.300s\"", path);
    return fd;
}

int follow_links(char path[static MAX_PATH + 1], struct failure *failure)
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

int part_path(char path[static MAX_PATH + 1], struct failure *failure)
{
    if (follow_links(path, failure) < 0)
        return -1;
    char *name = strrchr(path, '/') + 1;
    size_t length = strlen(name);
    if (!is_a_name(name))
        return refuse(failure, EINVAL, "path", "cannot use \"%.300s\" here: its last component is no name", path);
    if ((size_t)(name - path) + 1 + length + sizeof part_suffix > MAX_PATH + 1)
        return fail(failure, ENAMETOOLONG, "file", "cannot collect \"%.300s\"", path);
    memmove(name + 1, name, length);
    name[0] = '.';
    memcpy(name + 1 + length, part_suffix, sizeof part_suffix);
    return 0;
}

int temporary_name(char name[static TEMPORARY_NAME], struct failure *failure)
{
    uint64_t random;
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return fail(failure, errno, "resource", "cannot name a temporary file");
    snprintf(name, TEMPORARY_NAME, ".sandboxd-%016llx", (unsigned long long)random);
    return 0;
}

/* ---- owners ------------------------------------------------------------------------------------------------ */

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

/* ---- directories ------------------------------------------------------------------------------------------- */

int open_directory(int at, const char *name, int flags)
{
    return openat(at, name, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC | flags);
}

/* Open a directory, made if it is missing.  What was made is changed through its descriptor: by its path, root would
 * change what another process of the sandbox put there in the meantime. */
static int enter_directory(int at, const char *name, mode_t mode, const struct owner *owner, unsigned *made)
{
    int fd = openat(at, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    if (mkdirat(at, name, 0755) < 0) /* somebody else may have been faster */
        return errno == EEXIST ? openat(at, name, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    ++*made;
    fd = open_directory(at, name, O_NOFOLLOW);
    if (fd < 0)
        return -1;
    bool owned = owner->uid != (uid_t)-1 || owner->gid != (gid_t)-1;
    if ((owned && fchown(fd, owner->uid, owner->gid) < 0) || (mode != 0755 && fchmod(fd, mode) < 0)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int make_directories(const char *path, mode_t mode, const struct owner *owner, unsigned *made, struct failure *failure)
{
    char prefix[MAX_PATH + 1];
    *made = 0;
    snprintf(prefix, sizeof prefix, "%s", path);
    int directory = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (char *name = prefix + strspn(prefix, "/"); directory >= 0 && *name != 0;) {
        char *end = name + strcspn(name, "/");
        char *next = end + strspn(end, "/");
        *end = 0;
        int below = enter_directory(directory, name, *next == 0 ? mode : 0755, owner, made);
        if (below < 0)
            fail(failure, errno, "file", "cannot make directory \"%.300s\"", prefix);
        close(directory);
        directory = below;
        if (*next != 0)
            *end = '/';
        name = next;
    }
    if (directory < 0)
        return -1;
    close(directory);
    return 0;
}

int make_parents(const char *path, const struct owner *owner, struct failure *failure)
{
    char parent[MAX_PATH + 1];
    unsigned made;
    snprintf(parent, sizeof parent, "%s", path);
    size_t length = strlen(parent);
    while (length > 1 && parent[length - 1] == '/')
        parent[--length] = 0;
    *strrchr(parent, '/') = 0;
    return make_directories(parent, 0755, owner, &made, failure);
}

/* ---- names ------------------------------------------------------------------------------------------------- */

static int compare_names(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

/* All names, one after the other with their final NULs. */
static int collect_names(DIR *directory, struct names *names)
{
    size_t used = 0, size = 0;
    const struct dirent *entry;
    for (errno = 0; (entry = readdir(directory)) != NULL; errno = 0) {
        if (!is_a_name(entry->d_name))
            continue;
        size_t length = strlen(entry->d_name) + 1;
        if (used + length > size) {
            size = size == 0 ? FIRST_NAMES : size * 2;
            char *grown = size > MAX_NAMES ? NULL : realloc(names->bytes, size);
            if (grown == NULL) {
                errno = ENOMEM;
                return -1;
            }
            names->bytes = grown;
        }
        memcpy(names->bytes + used, entry->d_name, length);
        used += length;
        names->count++;
    }
    return errno == 0 ? 0 : -1;
}

int names_read(int fd, struct names *names)
{
    *names = (struct names){0};
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    DIR *directory = copy < 0 ? NULL : fdopendir(copy);
    if (directory == NULL)
        return -1;
    int result = collect_names(directory, names);
    if (result == 0 && names->count > 0 && (names->items = malloc(names->count * sizeof *names->items)) == NULL)
        result = -1;
    int error = errno;
    closedir(directory);
    if (result < 0) {
        names_free(names);
        errno = error;
        return -1;
    }
    char *at = names->bytes;
    for (size_t i = 0; i < names->count; i++, at += strlen(at) + 1)
        names->items[i] = at;
    if (names->count > 0)
        qsort(names->items, names->count, sizeof *names->items, compare_names);
    return 0;
}

void names_free(struct names *names)
{
    free(names->items);
    free(names->bytes);
    *names = (struct names){0};
}

/* ---- places ------------------------------------------------------------------------------------------------ */

int place_enter(struct place *place, const char *name)
{
    size_t length = strlen(name);
    bool separated = place->length > 0 && place->path[place->length - 1] != '/';
    if (place->length + separated + length > MAX_PATH) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (separated)
        place->path[place->length++] = '/';
    memcpy(place->path + place->length, name, length + 1);
    place->length += length;
    return 0;
}

void place_leave(struct place *place, size_t length)
{
    place->length = length;
    place->path[length] = 0;
}
