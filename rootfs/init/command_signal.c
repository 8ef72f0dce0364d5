/*
 * command_signal.c: signals to a command: its leader, the leader's group, or everything it has started.
 */
#include "commands.h"
#include "tree.h"
#include "workers.h"

#include <errno.h>
#include <signal.h>

int command_signal(const struct command *command, int signo, enum signal_scope scope, struct failure *failure)
{
    if (command->state != STATE_RUNNING)
        return refuse(failure, ESRCH, "ended", "cannot signal command %llu: it has ended",
                    (unsigned long long)command->id);
    if (kill(scope == SCOPE_GROUP ? -command->leader : command->leader, signo) < 0)
        return fail(failure, errno, "signal", "cannot send signal %d", signo);
    return 0;
}

void command_note_signal(struct command *command, int signo)
{
    command->killed = command->killed || signo == SIGKILL;
}

int command_signal_any(struct command *command, int signo, enum signal_scope scope, struct failure *failure)
{
    if (scope != SCOPE_TREE)
        return command_signal(command, signo, scope, failure);
    command_note_signal(command, signo);
    pid_t roots[MAX_ROOTS];
    worker_signal_trees(roots, command_roots(command, roots), signo);
    return 0;
}

size_t command_roots(const struct command *command, pid_t roots[static MAX_ROOTS])
{
    uint64_t ids[MAX_ROOTS] = {command->id};
    size_t id_count = 1, root_count = 0;
    if (command->keeper.pid != 0)
        roots[root_count++] = command->keeper.pid;
    for (size_t i = 0; i < id_count; i++) {
        for (const struct command *other = commands_first(); other != NULL; other = other->next) {
            if (other->owner != ids[i] || other->keeper.pid == 0 || id_count == MAX_ROOTS || root_count == MAX_ROOTS)
                continue;
            ids[id_count++] = other->id;
            roots[root_count++] = other->keeper.pid;
        }
    }
    return root_count;
}

void command_kill_tree(struct command *command)
{
    struct failure ignored;
    command_signal_any(command, SIGKILL, SCOPE_TREE, &ignored);
}

static int signal_tree(struct worker *worker, const struct request *request, struct failure *failure)
{
    pid_t roots[MAX_ROOTS];
    size_t count = command_roots(command_find(request->number[TAG_COMMAND]), roots);
    unsigned signalled;
    if (tree_signal(roots, count, (int)request->number[TAG_SIGNO], &signalled, failure) < 0)
        return -1;
    return worker_ok_with(worker, TAG_COUNT, signalled);
}

void command_signal_tree(struct connection *connection, const struct request *request)
{
    worker_start(connection, request, BUDGET_SIGNALS, signal_tree);
}
