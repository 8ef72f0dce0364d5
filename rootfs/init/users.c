/*
 * users.c: see users.h.  libc's getpwnam and friends are not used: they block on a FIFO, read without bound, and
 * would pull name services into a static program.
 */
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_DATABASE = 1024 * 1024, MAX_LINE = 8 * 1024, MAX_COLUMNS = 7 };

static const char passwd_path[] = "/etc/passwd";
static const char group_path[] = "/etc/group";

/* A colon-separated file, line by line; lines longer than the buffer are skipped. */
struct database {
    int fd;
    size_t start, end, total;
    char buffer[MAX_LINE];
    char *columns[MAX_COLUMNS];
};

static bool database_open(struct database *database, const char *path)
{
    database->start = database->end = database->total = 0;
    database->fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (database->fd < 0)
        return false;
    struct stat status;
    if (fstat(database->fd, &status) == 0 && S_ISREG(status.st_mode))
        return true;
    close(database->fd);
    return false;
}

static void database_close(struct database *database)
{
    close(database->fd);
}

/* Read more behind what is there.  False at the end of the file or of our patience. */
static bool database_fill(struct database *database)
{
    if (database->start > 0) {
        memmove(database->buffer, database->buffer + database->start, database->end - database->start);
        database->end -= database->start;
        database->start = 0;
    }
    size_t room = sizeof database->buffer - 1 - database->end;
    if (room == 0 || database->total >= MAX_DATABASE)
        return false;
    ssize_t n = read(database->fd, database->buffer + database->end, room);
    if (n <= 0)
        return false;
    database->end += (size_t)n;
    database->total += (size_t)n;
    return true;
}

static char *database_line(struct database *database)
{
    bool skipping = false;
    for (;;) {
        char *start = database->buffer + database->start;
        char *newline = memchr(start, '\n', database->end - database->start);
        if (newline != NULL) {
            *newline = 0;
            database->start = (size_t)(newline + 1 - database->buffer);
            if (!skipping)
                return start;
            skipping = false;
        } else if (!database_fill(database)) {
            bool full = database->end == sizeof database->buffer - 1;
            bool last = !full && database->end > database->start && !skipping;
            database->buffer[database->end] = 0;
            start = database->buffer + database->start;
            database->start = database->end;
            if (last)
                return start;
            if (!full || database->total >= MAX_DATABASE)
                return NULL;
            skipping = true;
        }
    }
}

/* The next line with at least `wanted` columns, split in place. */
static bool database_row(struct database *database, size_t wanted)
{
    char *line;
    while ((line = database_line(database)) != NULL) {
        size_t count = 0;
        for (char *at = line; at != NULL && count < MAX_COLUMNS; count++) {
            database->columns[count] = at;
            at = strchr(at, ':');
            if (at != NULL)
                *at++ = 0;
        }
        if (count >= wanted)
            return true;
    }
    return false;
}

static bool parse_id(const char *text, unsigned *id)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (*end != 0 || errno != 0 || value >= UINT_MAX)
        return false;
    *id = (unsigned)value;
    return true;
}

static void copy_text(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

enum { PASSWD_NAME, PASSWD_PASSWORD, PASSWD_UID, PASSWD_GID, PASSWD_GECOS, PASSWD_HOME, PASSWD_SHELL, PASSWD_COLUMNS };

/* Find a row by name, or by uid when name is NULL. */
static bool find_user(const char *name, uid_t uid, struct user *user)
{
    struct database database;
    if (!database_open(&database, passwd_path))
        return false;
    bool found = false;
    while (!found && database_row(&database, PASSWD_COLUMNS)) {
        unsigned row_uid, row_gid;
        if (!parse_id(database.columns[PASSWD_UID], &row_uid) || !parse_id(database.columns[PASSWD_GID], &row_gid))
            continue;
        found = name != NULL ? strcmp(database.columns[PASSWD_NAME], name) == 0 : row_uid == uid;
        if (!found)
            continue;
        user->uid = row_uid;
        user->gid = row_gid;
        copy_text(user->name, sizeof user->name, database.columns[PASSWD_NAME]);
        copy_text(user->home, sizeof user->home, database.columns[PASSWD_HOME]);
        copy_text(user->shell, sizeof user->shell, database.columns[PASSWD_SHELL]);
    }
    database_close(&database);
    return found;
}

enum { GROUP_NAME, GROUP_PASSWORD, GROUP_GID, GROUP_MEMBERS, GROUP_COLUMNS };

static bool is_listed(const char *members, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = members; *at != 0; at += strcspn(at, ","), at += *at == ',') {
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == 0))
            return true;
    }
    return false;
}

static void add_group(struct user *user, gid_t gid)
{
    for (size_t i = 0; i < user->group_count; i++) {
        if (user->groups[i] == gid)
            return;
    }
    if (user->group_count < MAX_GROUPS)
        user->groups[user->group_count++] = gid;
}

static void find_groups(struct user *user)
{
    add_group(user, user->gid);
    struct database database;
    if (user->name[0] == 0 || !database_open(&database, group_path))
        return;
    while (database_row(&database, GROUP_COLUMNS)) {
        unsigned gid;
        if (parse_id(database.columns[GROUP_GID], &gid) && is_listed(database.columns[GROUP_MEMBERS], user->name))
            add_group(user, gid);
    }
    database_close(&database);
}

static void user_defaults(struct user *user)
{
    if (user->name[0] == 0)
        snprintf(user->name, sizeof user->name, user->uid == 0 ? "root" : "%u", user->uid);
    if (user->home[0] != '/')
        copy_text(user->home, sizeof user->home, user->uid == 0 ? "/root" : "/");
    if (user->shell[0] != '/')
        copy_text(user->shell, sizeof user->shell, "/bin/sh");
}

static bool lookup_number(const char *spec, struct user *user)
{
    char uid_text[16];
    const char *colon = strchr(spec, ':');
    size_t length = colon != NULL ? (size_t)(colon - spec) : strlen(spec);
    if (length >= sizeof uid_text)
        return false;
    memcpy(uid_text, spec, length);
    uid_text[length] = 0;

    unsigned uid, gid;
    if (!parse_id(uid_text, &uid) || (colon != NULL && !parse_id(colon + 1, &gid)))
        return false;
    if (!find_user(NULL, uid, user)) {
        user->uid = uid;
        user->gid = uid;
    }
    if (colon != NULL)
        user->gid = gid;
    return true;
}

int user_lookup(const char *spec, struct user *user, struct failure *failure)
{
    *user = (struct user){0};
    bool found = *spec == 0 ? lookup_number("0", user) : find_user(spec, 0, user) || lookup_number(spec, user);
    if (!found && strcmp(spec, "root") == 0)
        found = lookup_number("0", user);
    if (!found)
        return refuse(failure, ENOENT, "user", "cannot use user \"%.200s\": no such user in the sandbox's %s", spec,
                    passwd_path);
    find_groups(user);
    user_defaults(user);
    return 0;
}

/* The kernel's layout (linux/capability.h, which musl's headers lack). */
struct capability_header {
    uint32_t version;
    int pid;
};
struct capability_sets {
    uint32_t effective, permitted, inheritable;
};
enum { CAPABILITY_VERSION_3 = 0x20080522 };

/* setuid already emptied permitted and effective; this covers the sets that it leaves alone. */
static void drop_capabilities(void)
{
    struct capability_header header = {.version = CAPABILITY_VERSION_3};
    struct capability_sets none[2] = {{0}};
    syscall(SYS_capset, &header, none);
}

static void drop_inheritable_capabilities(void)
{
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (unsigned long capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
        continue;
}

void trim_capabilities(void)
{
    struct capability_header header = {.version = CAPABILITY_VERSION_3};
    struct capability_sets sets[2] = {{0}};
    if (syscall(SYS_capget, &header, sets) < 0)
        return;
    for (unsigned long capability = 0; capability < 64; capability++) {
        if ((sets[capability / 32].permitted & 1U << capability % 32) == 0)
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    }
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    sets[0].inheritable = sets[1].inheritable = 0;
    syscall(SYS_capset, &header, sets);
}

int user_become(const struct user *user, struct failure *failure)
{
    uid_t uid = geteuid();
    if (setgroups(user->group_count, user->groups) < 0 && (user->uid != uid || user->gid != getegid()))
        return fail(failure, errno, "user", "cannot set the groups of user %s", user->name);
    if (user->uid != 0 && uid == 0)
        drop_inheritable_capabilities();
    if (setresgid(user->gid, user->gid, user->gid) < 0)
        return fail(failure, errno, "user", "cannot become group %u", user->gid);
    if (setresuid(user->uid, user->uid, user->uid) < 0)
        return fail(failure, errno, "user", "cannot become user %s", user->name);
    if (user->uid != 0)
        drop_capabilities();
    return 0;
}

/* The number of group `name`; when `member` is given only if that user is listed in it or `gid` is its own group. */
static bool find_group(const char *name, gid_t *gid, const struct user *member)
{
    struct database database;
    if (!database_open(&database, group_path))
        return false;
    bool found = false;
    while (!found && database_row(&database, GROUP_COLUMNS)) {
        unsigned row_gid;
        if (strcmp(database.columns[GROUP_NAME], name) != 0 || !parse_id(database.columns[GROUP_GID], &row_gid))
            continue;
        found = member == NULL || member->gid == row_gid || is_listed(database.columns[GROUP_MEMBERS], member->name);
        *gid = row_gid;
    }
    database_close(&database);
    return found;
}

bool user_may_sudo(uid_t uid)
{
    struct user user = {0};
    gid_t gid;
    if (uid == 0)
        return true;
    return find_user(NULL, uid, &user) && find_group("sudo", &gid, &user);
}

int uid_from_text(const char *text, uid_t *uid, struct failure *failure)
{
    struct user user = {0};
    if (find_user(text, 0, &user))
        *uid = user.uid;
    else if (!parse_id(text, uid))
        return refuse(failure, ENOENT, "user", "cannot use user \"%.200s\": no such user in the sandbox's %s", text,
                    passwd_path);
    return 0;
}

int gid_from_text(const char *text, gid_t *gid, struct failure *failure)
{
    if (!find_group(text, gid, NULL) && !parse_id(text, gid))
        return refuse(failure, ENOENT, "group", "cannot use group \"%.200s\": no such group in the sandbox's %s", text,
                    group_path);
    return 0;
}

void uid_to_name(uid_t uid, char name[static MAX_NAME])
{
    struct user user = {0};
    find_user(NULL, uid, &user);
    copy_text(name, MAX_NAME, user.name);
}

void gid_to_name(gid_t gid, char name[static MAX_NAME])
{
    name[0] = 0;
    struct database database;
    if (!database_open(&database, group_path))
        return;
    while (name[0] == 0 && database_row(&database, GROUP_COLUMNS)) {
        unsigned row_gid;
        if (parse_id(database.columns[GROUP_GID], &row_gid) && row_gid == gid)
            copy_text(name, MAX_NAME, database.columns[GROUP_NAME]);
    }
    database_close(&database);
}
