/*
 * users.h: who a command or a file operation runs as, from the sandbox's own /etc/passwd and /etc/group.
 *
 * Those files belong to the sandbox and may be anything.  They are read in forked children only, never in pid 1.
 */
#ifndef USERS_H
#define USERS_H

#include "base.h"

enum { MAX_GROUPS = 64, MAX_NAME = 256, MAX_HOME = 1024 };

struct user {
    uid_t uid;
    gid_t gid;
    gid_t groups[MAX_GROUPS];
    size_t group_count;
    char name[MAX_NAME];
    char home[MAX_HOME];
    char shell[MAX_HOME];
};

/* `spec` is a name, "uid", "uid:gid", or empty for root.  Works without /etc/passwd for root and numbers; a number
 * that is not in it gets a group of the same number, and no more. */
int user_lookup(const char *spec, struct user *, struct failure *);

/* Become the user, for good: groups, ids, and for anyone but root no capability in any set. */
int user_become(const struct user *, struct failure *);

/* Root, and the members of group "sudo". */
bool user_may_sudo(uid_t);

/* A user's or group's number from its name or from digits.  -1 with the failure filled in. */
int uid_from_text(const char *text, uid_t *, struct failure *);
int gid_from_text(const char *text, gid_t *, struct failure *);

/* The name of a number, or "" when it has none. */
void uid_to_name(uid_t, char name[static MAX_NAME]);
void gid_to_name(gid_t, char name[static MAX_NAME]);

/* What the launcher left in the other sets goes, so that no command has more in any set than init has in the permitted
 * one: bwrap as root leaves the bounding set full and passes capabilities on by the ambient and inheritable sets. */
void trim_capabilities(void);

#endif
