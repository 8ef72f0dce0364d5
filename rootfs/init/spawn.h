/*
 * spawn.h: starting one command: init → keeper → leader.
 *
 * The keeper is a fork of init that makes itself a child subreaper and starts the command's first process, the
 * leader.  Every descendant therefore stays below the keeper, even one that forks twice and calls setsid: signals
 * reach the whole tree, and "which command does this process belong to" always has an answer.  The keeper reports
 * the leader's exit the moment it reaps it, goes on reaping until it has no children left, and exits.
 */
#ifndef SPAWN_H
#define SPAWN_H

#include "base.h"
#include "frames.h"

#include <sys/resource.h>

/* A command to start.  One block of memory holds all the strings. */
struct spawn {
    char **argv; /* NULL-terminated, as is env */
    char **env;
    const char *cwd, *user;
    const char *group; /* instead of the user's own; "" is that */
    struct bytes rlimits; /* RLIMIT_SIZE each */
    bool program_lookup;
    bool terminal;

    /* The command's ends; -1 is /dev/null.  With a terminal, `master` is opened instead. */
    int stdio[3];
    int master;

    /* A sudo request: the process asking, and who it is. */
    pid_t requester;
    uid_t requester_uid;

    void *block;
};

/* Take the strings out of a SPAWN or SUDO request.  -1 with the failure filled in. */
int spawn_prepare(const struct request *, struct spawn *, struct failure *);
void spawn_free(struct spawn *);

/* What the keeper writes to its status pipe: one STARTED or FAILED, then one EXITED. */
enum report_type { REPORT_FAILED = 1, REPORT_STARTED = 2, REPORT_EXITED = 3 };

struct report {
    enum report_type type;
    pid_t leader;
    pid_t requester_keeper; /* sudo: the keeper above the process that asked, 0 if none */
    struct failure failure;
    int status;
    bool survivors; /* descendants are left */
    struct rusage usage;
    uint64_t at_ms;
};

/* Fork the keeper; its reports come out of *status.  -1 with errno set. */
pid_t spawn_keeper(const struct spawn *, int *status);

/* The limits that init itself was started with, to be given back to commands. */
extern struct rlimit original_nofile;

#endif
