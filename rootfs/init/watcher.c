/*
 * watcher.c: see watcher.h.
 *
 * inotify watches one directory at a time, so a new one has a history before it is watched.  It is watched first and
 * scanned then, and what the scan finds is reported as created; the events that say so again, which lie behind the
 * scan in the queue, are dropped (watch_seen.c).  Nothing is lost in between, and nothing comes twice.
 *
 * No descriptor of the watched directory is kept: it would hold the directory in the kernel after its removal, and
 * inotify tells of an end only then.  The same may be done by any process that works in it, so its parent is watched
 * for its name, too.
 *
 * Symbolic links are not followed below the watched directory, and other file systems not entered.
 */
#include "watcher.h"
#include "files.h"
#include "watch_report.h"
#include "watch_seen.h"
#include "watch_tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    SETTLE_MS = 100, /* after an overflow, before everything is watched anew */
    EVENT_BUFFER = 16 * 1024,
    MASK = IN_CREATE | IN_DELETE | IN_MODIFY | IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF |
           IN_ONLYDIR | IN_EXCL_UNLINK,
};

static struct watcher {
    struct report report;
    int fd, above; /* inotify's; the watch on the parent of the watched directory, or -1 */
    bool recursive, started, ended;
    int trouble; /* why some directory is not watched, or 0 */
    char root[PATH_MAX];
    dev_t device;
    struct directory *top;
    size_t pattern_count;
    char *patterns[MAX_PATTERNS];
    uint64_t read, seen_until; /* bytes of events: read so far, and by when nothing seen can come again */
} watcher;

/* ---- names ------------------------------------------------------------------------------------------------- */

static const char *name_of_root(void)
{
    return strrchr(watcher.root, '/') + 1;
}

/* The path as the system sees it.  -1 with errno. */
static int full_path(const struct directory *parent, const char *name, char path[static PATH_MAX])
{
    char buffer[MAX_PATH + 1];
    const char *relative = parent == NULL ? "." : tree_path(parent, name, buffer);
    const char *root = watcher.root[1] == 0 ? "" : watcher.root;
    errno = ENAMETOOLONG;
    if (relative == NULL)
        return -1;
    int length = strcmp(relative, ".") == 0 ? snprintf(path, PATH_MAX, "%s", watcher.root)
                                            : snprintf(path, PATH_MAX, "%s/%s", root, relative);
    return length < PATH_MAX ? 0 : -1;
}

/* A pattern with a slash is for whole paths, one without for any name. */
static bool is_ignored(const struct directory *parent, const char *name)
{
    char buffer[MAX_PATH + 1];
    const char *path = NULL;
    for (size_t i = 0; i < watcher.pattern_count; i++) {
        const char *pattern = watcher.patterns[i];
        if (strchr(pattern, '/') == NULL) {
            if (fnmatch(pattern, name, 0) == 0)
                return true;
            continue;
        }
        if (path == NULL && (path = tree_path(parent, name, buffer)) == NULL)
            return false;
        if (fnmatch(pattern, path, FNM_PATHNAME) == 0)
            return true;
    }
    return false;
}

static int take_patterns(const struct request *request, struct failure *failure)
{
    const uint8_t *at = request->fields;
    struct field field;
    while (field_next(&at, request->end, &field) == 1) {
        if (field.tag != TAG_ARG)
            continue;
        struct bytes bytes = {field.value, field.length};
        char *pattern = field.length <= MAX_PATTERN ? calloc(1, field.length + 1) : NULL;
        if (pattern == NULL || watcher.pattern_count == MAX_PATTERNS ||
            bytes_to_string(bytes, pattern, field.length + 1) < 0)
            return refuse(failure, EINVAL, "pattern", "cannot ignore more than %d patterns, or one of more than %d "
                                                      "bytes or with a NUL", MAX_PATTERNS, MAX_PATTERN);
        watcher.patterns[watcher.pattern_count++] = pattern;
    }
    return 0;
}

static void put(enum change change, bool is_directory, uint32_t cookie, const struct directory *parent,
                const char *name)
{
    char buffer[MAX_PATH + 1];
    const char *path = tree_path(parent, name, buffer);
    if (path == NULL)
        report_put(&watcher.report, CHANGE_UNWATCHED, true, 0, ".");
    else
        report_put(&watcher.report, change, is_directory, cookie, path);
}

/* ---- watching ---------------------------------------------------------------------------------------------- */

static void unwatch(int descriptor)
{
    inotify_rm_watch(watcher.fd, descriptor);
}

static void keep(int descriptor)
{
    (void)descriptor;
}

/* inotify knows a directory by its inode in the kernel; its number may change when an overlay copies it up. */
static bool root_is_there(void)
{
    int descriptor = inotify_add_watch(watcher.fd, watcher.root, MASK | IN_DONT_FOLLOW);
    if (descriptor >= 0 && descriptor != watcher.top->descriptor && tree_find(descriptor) == NULL)
        unwatch(descriptor);
    return descriptor == watcher.top->descriptor;
}

static void end(enum change change)
{
    if (watcher.ended)
        return;
    watcher.ended = true;
    report_put(&watcher.report, change, true, 0, ".");
    report_put(&watcher.report, CHANGE_ENDED, true, 0, ".");
}

/* A directory that inotify already knows was moved here, and the event that says so is still to come. */
static int forget_alias(int descriptor, const struct directory *parent)
{
    struct directory *known = tree_find(descriptor);
    errno = ELOOP;
    if (known != NULL && tree_is_within(parent, known))
        return -1;
    if (known != NULL)
        tree_remove(known, keep);
    return 0;
}

static int watch_directory(struct directory *parent, const char *name)
{
    char path[PATH_MAX];
    struct stat status;
    if (full_path(parent, name, path) < 0 || lstat(path, &status) < 0)
        return -1;
    if (status.st_dev != watcher.device)
        return 0;
    errno = ENOSPC;
    if (tree_size() >= MAX_WATCHED)
        return -1;
    int descriptor = inotify_add_watch(watcher.fd, path, MASK | IN_DONT_FOLLOW);
    if (descriptor < 0 || forget_alias(descriptor, parent) < 0)
        return -1;
    struct directory *directory = tree_add(parent, name, descriptor);
    if (directory == NULL)
        unwatch(descriptor);
    else if (parent == NULL)
        watcher.top = directory;
    return directory == NULL ? -1 : 0;
}

/* What cannot be watched is said, unless it is gone, no directory (any more), or closed to the user: the ways in which
 * a directory may be none of ours. */
static void try_to_watch(struct directory *parent, const char *name)
{
    if (watch_directory(parent, name) == 0)
        return;
    if (errno == ENOENT && !root_is_there())
        end(CHANGE_RENAME);
    if (errno != ENOSPC && errno != ENOMEM && errno != ENAMETOOLONG)
        return;
    watcher.trouble = errno;
    if (watcher.started)
        put(CHANGE_UNWATCHED, true, 0, parent, name);
}

static bool is_hopeless(void)
{
    return watcher.ended || (!watcher.started && watcher.trouble == ENOSPC);
}

static bool is_directory(const struct directory *parent, const struct dirent *entry)
{
    char path[PATH_MAX];
    struct stat status;
    if (entry->d_type != DT_UNKNOWN)
        return entry->d_type == DT_DIR;
    return full_path(parent, entry->d_name, path) == 0 && lstat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

static void scan_entry(struct directory *parent, const struct dirent *entry, bool tell)
{
    const char *name = entry->d_name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || is_ignored(parent, name))
        return;
    bool directory = is_directory(parent, entry);
    if (tell) {
        put(CHANGE_CREATE, directory, 0, parent, name);
        seen_add(parent->descriptor, name);
    }
    if (directory)
        try_to_watch(parent, name);
}

static void scan_directory(struct directory *directory, bool tell)
{
    char path[PATH_MAX];
    if (full_path(directory, "", path) < 0)
        return;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    if (stream == NULL) {
        if (fd >= 0)
            close(fd);
        return;
    }
    const struct dirent *entry;
    while (!is_hopeless() && (entry = readdir(stream)) != NULL)
        scan_entry(directory, entry, tell);
    closedir(stream);
}

/* Everything that waits for it, and what is found on the way.  `rest`: bytes of events read but not yet handled. */
static void scan(bool tell, size_t rest)
{
    struct directory *directory;
    while (!is_hopeless() && (directory = tree_next_to_scan()) != NULL)
        scan_directory(directory, tell);
    int queued = 0;
    ioctl(watcher.fd, FIONREAD, &queued);
    watcher.seen_until = watcher.read + rest + (unsigned)queued;
}

/* A directory has appeared, or become readable. */
static void enter(struct directory *parent, const char *name, size_t rest)
{
    if (!watcher.recursive)
        return;
    struct directory *stale = tree_child(parent, name);
    if (stale != NULL)
        tree_remove(stale, unwatch);
    try_to_watch(parent, name);
    scan(true, rest);
}

static void leave(const struct directory *parent, const char *name)
{
    struct directory *child = tree_child(parent, name);
    if (child != NULL)
        tree_remove(child, unwatch);
}

/* ---- events ------------------------------------------------------------------------------------------------ */

static void handle_created(struct directory *parent, const struct inotify_event *event, size_t rest)
{
    bool directory = event->mask & IN_ISDIR;
    if (seen_take(parent->descriptor, event->name))
        return;
    put(CHANGE_CREATE, directory, event->cookie, parent, event->name);
    if (directory)
        enter(parent, event->name, rest);
}

static void handle_gone(struct directory *parent, const struct inotify_event *event)
{
    bool directory = event->mask & IN_ISDIR;
    seen_take(parent->descriptor, event->name);
    put(event->mask & IN_DELETE ? CHANGE_REMOVE : CHANGE_RENAME, directory, event->cookie, parent, event->name);
    if (directory)
        leave(parent, event->name);
}

static void handle_attributes(struct directory *parent, const struct inotify_event *event, size_t rest)
{
    bool directory = event->mask & IN_ISDIR;
    put(CHANGE_ATTRIBUTES, directory, 0, parent, event->name);
    if (directory && watcher.recursive && tree_child(parent, event->name) == NULL)
        enter(parent, event->name, rest);
}

static void handle_named(struct directory *parent, const struct inotify_event *event, size_t rest)
{
    if (is_ignored(parent, event->name))
        return;
    if (event->mask & (IN_CREATE | IN_MOVED_TO))
        handle_created(parent, event, rest);
    else if (event->mask & (IN_DELETE | IN_MOVED_FROM))
        handle_gone(parent, event);
    else if (event->mask & IN_MODIFY)
        put(CHANGE_WRITE, false, 0, parent, event->name);
    else if (event->mask & IN_ATTRIB)
        handle_attributes(parent, event, rest);
}

/* Of the watched directory itself; the others' own events come by name from their parents as well. */
static void handle_root(const struct inotify_event *event)
{
    if (event->mask & IN_MOVE_SELF)
        end(CHANGE_RENAME);
    else if (event->mask & (IN_DELETE_SELF | IN_UNMOUNT | IN_IGNORED))
        end(CHANGE_REMOVE);
    else if (event->mask & IN_ATTRIB)
        report_put(&watcher.report, CHANGE_ATTRIBUTES, true, 0, ".");
}

static void handle_above(const struct inotify_event *event)
{
    if (event->len == 0 || strcmp(event->name, name_of_root()) != 0 || root_is_there())
        return;
    end(event->mask & IN_DELETE ? CHANGE_REMOVE : CHANGE_RENAME);
}

static void handle(const struct inotify_event *event, size_t rest)
{
    struct directory *directory = tree_find(event->wd);
    if (event->wd == watcher.above && directory == NULL)
        handle_above(event);
    else if (directory == NULL)
        return; /* of a directory that has left the tree */
    else if (event->len > 0)
        handle_named(directory, event, rest);
    else if (directory->parent == NULL)
        handle_root(event);
    else if (event->mask & IN_IGNORED)
        tree_remove(directory, keep);
}

/* ---- the life of a watch ----------------------------------------------------------------------------------- */

static void watch_parent(void)
{
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", watcher.root);
    watcher.above = -1;
    if (watcher.root[1] == 0)
        return;
    parent[name_of_root() - watcher.root] = 0;
    watcher.above = inotify_add_watch(watcher.fd, parent, IN_DELETE | IN_MOVED_FROM | IN_ONLYDIR);
}

static int begin(struct failure *failure)
{
    watcher.fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watcher.fd < 0)
        return fail(failure, errno, "watches", "cannot watch: raise the host's fs.inotify.max_user_instances");
    watch_parent();
    if (watch_directory(NULL, "") < 0)
        return fail(failure, errno, "file", "cannot watch \"%.300s\"", watcher.root);
    if (watcher.recursive)
        scan(false, 0);
    else
        tree_next_to_scan();
    return 0;
}

/* Events are lost.  All is watched anew before that is said, so that a client who then looks for itself misses
 * nothing that comes after. */
static int begin_again(struct failure *failure)
{
    struct pollfd settle = {.fd = watcher.report.worker->fd, .events = POLLRDHUP};
    report_flush(&watcher.report);
    poll(&settle, 1, SETTLE_MS);
    if (!root_is_there()) {
        end(CHANGE_REMOVE);
        return 0;
    }
    tree_remove(watcher.top, keep);
    seen_clear();
    close(watcher.fd);
    if (begin(failure) < 0)
        return -1;
    report_put(&watcher.report, CHANGE_OVERFLOW, true, 0, ".");
    return 0;
}

static int handle_batch(const char *batch, size_t length, struct failure *failure)
{
    for (size_t at = 0; at < length && !watcher.ended;) {
        const struct inotify_event *event = (const void *)(batch + at);
        size_t size = sizeof *event + event->len;
        at += size;
        watcher.read += size;
        if (event->mask & IN_Q_OVERFLOW)
            return begin_again(failure);
        handle(event, length - at);
        if (watcher.read >= watcher.seen_until)
            seen_clear();
    }
    return 0;
}

/* What inotify has, as far as it fits.  The number of bytes read, or -1 when the watch cannot go on. */
static ssize_t handle_events(struct failure *failure)
{
    static _Alignas(struct inotify_event) char batch[EVENT_BUFFER];
    ssize_t length = read(watcher.fd, batch, sizeof batch);
    int result = length > 0 ? handle_batch(batch, (size_t)length, failure) : 0;
    report_flush(&watcher.report);
    return result < 0 ? -1 : length < 0 ? 0 : length;
}

/* The kernel queues an event before the call that caused it returns: what is queued now is all there was. */
static int sync_with(struct worker *worker, struct failure *failure)
{
    int queued = 0;
    ioctl(watcher.fd, FIONREAD, &queued);
    for (ssize_t left = queued, length = 1; left > 0 && length > 0 && !watcher.ended; left -= length) {
        length = handle_events(failure);
        if (length < 0)
            return -1;
    }
    put_empty(&worker->out, OP_SYNCED);
    worker_flush(worker);
    return 0;
}

/* The client may only ask for that, and leave. */
static int handle_requests(struct worker *worker, struct failure *failure)
{
    struct frame frame;
    size_t missing;
    int found;
    while ((found = frame_peek(&worker->in, &frame, &missing)) == 1) {
        if (frame.type != OP_SYNC || frame.length != 0)
            _exit(0);
        buffer_consume(&worker->in, HEADER_SIZE);
        if (sync_with(worker, failure) < 0)
            return -1;
    }
    if (found < 0 || buffer_reserve(&worker->in, missing) < 0)
        _exit(0);
    return 0;
}

static int hear_client(struct worker *worker, struct failure *failure)
{
    struct buffer *in = &worker->in;
    ssize_t length = recv(worker->fd, in->data + in->end, in->size - in->end, MSG_DONTWAIT);
    if (length == 0 || (length < 0 && errno != EAGAIN && errno != EINTR))
        _exit(0);
    in->end += length > 0 ? (size_t)length : 0;
    return handle_requests(worker, failure);
}

/* Until the watched directory has gone. */
static int follow(struct worker *worker, struct failure *failure)
{
    struct pollfd ready[2] = {{.events = POLLIN}, {.fd = worker->fd, .events = POLLIN}};
    int result = handle_requests(worker, failure);
    while (result == 0 && !watcher.ended) {
        ready[0].fd = watcher.fd; /* another one after an overflow */
        if (poll(ready, 2, -1) < 0)
            continue;
        if (ready[1].revents != 0)
            result = hear_client(worker, failure);
        if (result == 0 && ready[0].revents != 0 && !watcher.ended)
            result = handle_events(failure) < 0 ? -1 : 0;
    }
    return result;
}

static int find_root(const struct worker *worker, const struct request *request, struct failure *failure)
{
    char path[MAX_PATH + 1];
    struct stat status;
    if (get_path(worker, request, TAG_PATH, path, failure) < 0)
        return -1;
    if (realpath(path, watcher.root) == NULL || lstat(watcher.root, &status) < 0)
        return fail(failure, errno, "file", "cannot watch \"%.300s\"", path);
    if (!S_ISDIR(status.st_mode))
        return refuse(failure, ENOTDIR, "not_directory", "cannot watch \"%.300s\": it is no directory; watch the one "
                                                         "it lies in", path);
    watcher.device = status.st_dev;
    return 0;
}

int watch_run(struct worker *worker, const struct request *request, struct failure *failure)
{
    prctl(PR_SET_NAME, "watch", 0, 0, 0);
    watcher.report.worker = worker;
    watcher.recursive = has_flag(request, FLAG_RECURSIVE);
    if (take_patterns(request, failure) < 0 || find_root(worker, request, failure) < 0 || begin(failure) < 0)
        return -1;
    if (watcher.trouble == ENOSPC)
        return refuse(failure, ENOSPC, "watches", "cannot watch \"%.300s\": it holds more than %d directories, or more "
                                                  "than the host's fs.inotify.max_user_watches; watch less of it, or "
                                                  "ignore some", watcher.root, MAX_WATCHED);
    worker_ok(worker);
    worker_flush(worker);
    watcher.started = true;
    if (watcher.trouble != 0)
        put(CHANGE_UNWATCHED, true, 0, watcher.top, "");
    report_flush(&watcher.report);
    return follow(worker, failure) < 0 ? -1 : put_empty(&worker->out, OP_END);
}
