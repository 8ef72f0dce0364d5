/*
 * tree.h: a command's processes: everything below its keeper.
 */
#ifndef TREE_H
#define TREE_H

#include "base.h"

/* The nearest keeper above `pid`.  0 in *keeper when there is none (a process that init itself started).
 * -1 with the failure filled in when `pid` is gone. */
int tree_find_keeper(pid_t pid, pid_t *keeper, struct failure *);

/* Send a signal to every process below `roots` (not to the roots).  SIGKILL first stops the tree, pass by pass, so
 * that a fork bomb cannot outrun it, and then waits until all are dead.  *count is how many were signalled.
 * For forked workers: it may sleep. */
int tree_signal(const pid_t *roots, size_t root_count, int signo, unsigned *count, struct failure *);

#endif
