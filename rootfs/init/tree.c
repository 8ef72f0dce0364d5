/*
 * tree.c: see tree.h.
 *
 * Processes are addressed by pid.  A pid seen in one scan may die and be given to another process before the signal
 * goes out only if the whole pid range is used up in between; pidfds would close that, and are missing in gVisor.
 */
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_PROCESSES = 65536,
    MAX_STOP_PASSES = 100,     /* before killing what is stopped so far, and starting over */
    MAX_KILL_MS = 5000,        /* then give up: something sleeps uninterruptibly */
    MAX_ANCESTORS = 100000,
};

struct process {
    pid_t pid, parent, group;
    char state;
    bool member, stopped;
};

struct census {
    struct process *processes;
    size_t count, capacity;
};

static bool read_process(int proc, const char *pid_text, struct process *process)
{
    char path[32], text[512];
    snprintf(path, sizeof path, "%.16s/stat", pid_text);
    int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = 0;
    /* "pid (name) state parent group …": the name may hold anything, parentheses too; the last one ends it. */
    const char *rest = strrchr(text, ')');
    if (rest == NULL || strlen(rest) < sizeof ") S 1" - 1)
        return false;
    char *end;
    *process = (struct process){.pid = atoi(pid_text), .state = rest[2], .parent = (pid_t)strtol(rest + 3, &end, 10)};
    process->group = (pid_t)strtol(end, NULL, 10);
    return true;
}

static int take_census(struct census *census)
{
    census->count = 0;
    DIR *directory = opendir("/proc");
    if (directory == NULL)
        return -1;
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        if (census->count == census->capacity) {
            size_t capacity = census->capacity == 0 ? 64 : census->capacity * 2;
            void *grown = realloc(census->processes, capacity * sizeof *census->processes);
            if (grown == NULL || capacity > MAX_PROCESSES) {
                closedir(directory);
                errno = ENOMEM;
                return -1;
            }
            census->processes = grown;
            census->capacity = capacity;
        }
        if (read_process(dirfd(directory), entry->d_name, &census->processes[census->count]))
            census->count++;
    }
    closedir(directory);
    return 0;
}

static int by_pid(const void *left, const void *right)
{
    const struct process *a = left, *b = right;
    return (a->pid > b->pid) - (a->pid < b->pid);
}

static struct process *find_process(const struct census *census, pid_t pid)
{
    struct process key = {.pid = pid};
    if (census->count == 0)
        return NULL;
    return bsearch(&key, census->processes, census->count, sizeof key, by_pid);
}

static bool is_root(pid_t pid, const pid_t *roots, size_t root_count)
{
    for (size_t i = 0; i < root_count; i++) {
        if (roots[i] == pid)
            return true;
    }
    return false;
}

static bool is_alive(const struct process *process)
{
    return process->member && process->state != 'Z' && process->state != 'X' && process->pid != getpid();
}

/* Mark all descendants of the roots; returns how many are alive. */
static size_t mark_members(struct census *census, const pid_t *roots, size_t root_count)
{
    size_t alive = 0;
    qsort(census->processes, census->count, sizeof *census->processes, by_pid);
    /* Parents usually have lower numbers than their children, so that few passes are needed. */
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = 0; i < census->count; i++) {
            struct process *process = &census->processes[i];
            if (process->member || is_root(process->pid, roots, root_count))
                continue;
            struct process *parent = find_process(census, process->parent);
            if (is_root(process->parent, roots, root_count) || (parent != NULL && parent->member)) {
                process->member = changed = true;
                alive += is_alive(process);
            }
        }
    }
    return alive;
}

static unsigned signal_members(const struct census *census, int signo)
{
    unsigned count = 0;
    for (size_t i = 0; i < census->count; i++) {
        if (is_alive(&census->processes[i]) && kill(census->processes[i].pid, signo) == 0)
            count++;
    }
    return count;
}

/* Stop what runs; returns how many did. */
static unsigned stop_members(const struct census *census)
{
    unsigned running = 0;
    for (size_t i = 0; i < census->count; i++) {
        const struct process *process = &census->processes[i];
        if (!is_alive(process) || process->state == 'T' || process->state == 't')
            continue;
        kill(process->pid, SIGSTOP);
        running++;
    }
    return running;
}

static int by_group(const void *left, const void *right)
{
    const struct process *a = left, *b = right;
    return (a->group > b->group) - (a->group < b->group);
}

/* Kill the process groups of the tree.  A signal to a group is atomic against fork (the kernel holds the task list, and
 * a fork with a signal pending starts over), so a fork bomb in one group dies in one go, where stopping its processes
 * one by one would never catch up.
 *
 * One member is enough: every command has a session of its own, and a group lies in one session, so that the others
 * are of the tree as well, even where the scan missed their parents; in a bomb it always misses some. */
static void kill_groups(struct census *census)
{
    qsort(census->processes, census->count, sizeof *census->processes, by_group);
    for (size_t first = 0, next; first < census->count; first = next) {
        pid_t group = census->processes[first].group;
        bool ours = false;
        for (next = first; next < census->count && census->processes[next].group == group; next++)
            ours = ours || is_alive(&census->processes[next]);
        if (ours && group > 1 && group != getpgrp())
            kill(-group, SIGKILL);
    }
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static int kill_members(struct census *census, const pid_t *roots, size_t root_count, unsigned *count,
                        struct failure *failure)
{
    uint64_t deadline = monotonic_ms() + MAX_KILL_MS;
    unsigned passes = 0, most = 0;
    for (;;) {
        if (take_census(census) < 0)
            return fail(failure, errno, "resource", "cannot read /proc");
        size_t alive = mark_members(census, roots, root_count);
        if (alive == 0)
            break;
        if (monotonic_ms() > deadline)
            return refuse(failure, EBUSY, "busy", "cannot kill %zu processes", alive);
        most = alive > most ? (unsigned)alive : most;
        kill_groups(census);
        /* Only when a whole scan finds nothing running can no fork have been missed. */
        if (stop_members(census) > 0 && ++passes % MAX_STOP_PASSES != 0)
            continue;
        signal_members(census, SIGKILL);
        pause_ms(1);
    }
    *count = most;
    return 0;
}

int tree_signal(const pid_t *roots, size_t root_count, int signo, unsigned *count, struct failure *failure)
{
    struct census census = {0};
    int result = 0;
    *count = 0;
    if (signo == SIGKILL) {
        result = kill_members(&census, roots, root_count, count, failure);
    } else if (take_census(&census) < 0) {
        result = fail(failure, errno, "resource", "cannot read /proc");
    } else {
        mark_members(&census, roots, root_count);
        *count = signal_members(&census, signo);
    }
    free(census.processes);
    return result;
}

int tree_find_keeper(pid_t pid, pid_t *keeper, struct failure *failure)
{
    int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    pid_t self = getppid();
    *keeper = 0;
    for (unsigned steps = 0; proc >= 0 && steps < MAX_ANCESTORS; steps++) {
        char text[16];
        struct process process;
        snprintf(text, sizeof text, "%d", pid);
        if (!read_process(proc, text, &process))
            break;
        if (process.parent == self || process.parent == 0) {
            *keeper = pid;
            close(proc);
            return 0;
        }
        pid = process.parent;
    }
    if (proc >= 0)
        close(proc);
    return refuse(failure, ESRCH, "denied", "cannot use sudo for a process that is gone");
}
