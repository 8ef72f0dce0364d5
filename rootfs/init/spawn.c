/*
 * spawn.c: see spawn.h.
 */
#include "spawn.h"
#include "terminal.h"
#include "tree.h"
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Commands are to die of memory before init does: by so much more are they to be preferred. */
enum { OOM_SCORE_STEP = 100, OOM_SCORE_MAX = 1000 };

static const char default_path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

enum { DEFAULT_VARIABLES = 6, LEADER_STACK = 32 * 1024 };

struct rlimit original_nofile;

/* ---- the request ------------------------------------------------------------------------------------------ */

static char *append_string(char **at, struct bytes bytes)
{
    char *text = *at;
    if (bytes.length > 0)
        memcpy(text, bytes.data, bytes.length);
    text[bytes.length] = 0;
    *at += bytes.length + 1;
    return text;
}

static int check_strings(const struct request *request, struct failure *failure)
{
    const uint8_t *at = request->fields;
    struct field field;
    while (field_next(&at, request->end, &field) == 1) {
        if (field.tag != TAG_ARG && field.tag != TAG_ENV && field.tag != TAG_CWD && field.tag != TAG_USER &&
            field.tag != TAG_GROUP)
            continue;
        if (memchr(field.value, 0, field.length) != NULL)
            return refuse(failure, EINVAL, "request", "cannot pass a string with a NUL byte to a command");
        const uint8_t *equals = memchr(field.value, '=', field.length);
        if (field.tag == TAG_ENV && (equals == NULL || equals == field.value))
            return refuse(failure, EINVAL, "request", "cannot use environment entry \"%.*s\": it is not NAME=VALUE",
                        field.length < 80 ? (int)field.length : 80, (const char *)field.value);
    }
    return 0;
}

int spawn_prepare(const struct request *request, struct spawn *spawn, struct failure *failure)
{
    *spawn = (struct spawn){.stdio = {-1, -1, -1}, .master = -1};
    if (check_strings(request, failure) < 0)
        return -1;
    size_t arguments = request->count[TAG_ARG], variables = request->count[TAG_ENV];
    size_t pointers = arguments + 1 + variables + DEFAULT_VARIABLES + 1;
    size_t payload = (size_t)(request->end - request->fields);
    /* Each string is shorter than its field, whose header also makes room for the NUL. */
    char *block = malloc(pointers * sizeof(char *) + payload + 3);
    if (block == NULL)
        return fail(failure, ENOMEM, "resource", "cannot start a command");

    spawn->block = block;
    spawn->argv = (char **)(void *)block;
    spawn->env = spawn->argv + arguments + 1;
    char *at = block + pointers * sizeof(char *);
    char **argument = spawn->argv, **variable = spawn->env;
    const uint8_t *from = request->fields;
    struct field field;
    while (field_next(&from, request->end, &field) == 1) {
        if (field.tag == TAG_ARG)
            *argument++ = append_string(&at, (struct bytes){field.value, field.length});
        else if (field.tag == TAG_ENV)
            *variable++ = append_string(&at, (struct bytes){field.value, field.length});
    }
    *argument = *variable = NULL;
    spawn->cwd = append_string(&at, request->bytes[TAG_CWD]);
    spawn->user = append_string(&at, request->bytes[TAG_USER]);
    spawn->group = append_string(&at, request->bytes[TAG_GROUP]);
    spawn->rlimits = (struct bytes){request->fields, (uint32_t)payload};
    spawn->program_lookup = has_flag(request, FLAG_PROGRAM_LOOKUP);
    spawn->terminal = has(request, TAG_COLS);
    return 0;
}

void spawn_free(struct spawn *spawn)
{
    free(spawn->block);
    spawn->block = NULL;
}

/* ---- the leader, between vfork and exec -------------------------------------------------------------------- */

/* Shared with the keeper, which waits while the leader runs in its memory. */
struct launch {
    const struct spawn *spawn;
    const struct user *user;
    struct failure failure;
};

static int set_limits(const struct spawn *spawn, struct failure *failure)
{
    setrlimit(RLIMIT_NOFILE, &original_nofile);
    const uint8_t *at = spawn->rlimits.data, *end = at + spawn->rlimits.length;
    struct field field;
    while (field_next(&at, end, &field) == 1) {
        if (field.tag != TAG_RLIMIT)
            continue;
        int resource = (int)number_at(field.value, 4);
        struct rlimit limit = {.rlim_cur = number_at(field.value + 4, 8), .rlim_max = number_at(field.value + 12, 8)};
        if (setrlimit(resource, &limit) < 0)
            return fail(failure, errno, "rlimit", "cannot set resource limit %d to %llu:%llu", resource,
                        (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    }
    return 0;
}

static int open_terminal(int master, struct failure *failure)
{
    int slave = terminal_open_slave(master);
    if (slave < 0 || ioctl(slave, TIOCSCTTY, 0) < 0)
        return fail(failure, errno, "terminal", "cannot open a terminal");
    return slave;
}

static int set_stdio(const struct spawn *spawn, struct failure *failure)
{
    int slave = -1;
    if (spawn->terminal) {
        slave = open_terminal(spawn->master, failure);
        if (slave < 0)
            return -1;
    }
    for (int fd = 0; fd < 3; fd++) {
        int source = spawn->terminal ? slave : spawn->stdio[fd];
        /* 0, 1 and 2 are /dev/null already. */
        if (source >= 0 && dup2(source, fd) < 0)
            return fail(failure, errno, "resource", "cannot connect the standard streams");
    }
    return 0;
}

static int enter_directory(const struct launch *launch, struct failure *failure)
{
    const char *cwd = launch->spawn->cwd;
    if (*cwd != 0) {
        if (chdir(cwd) < 0)
            return fail(failure, errno, "cwd", "cannot change to directory \"%.300s\"", cwd);
    } else if (chdir(launch->user->home) < 0 && chdir("/") < 0) {
        return fail(failure, errno, "cwd", "cannot change to directory /");
    }
    return 0;
}

static void exec_as_shell_script(const char *path, const struct spawn *spawn)
{
    size_t count = 0;
    while (spawn->argv[count] != NULL)
        count++;
    char **argv = malloc((count + 2) * sizeof *argv);
    if (argv == NULL)
        return;
    argv[0] = (char *)(uintptr_t) "/bin/sh";
    argv[1] = (char *)(uintptr_t)path;
    memcpy(argv + 2, spawn->argv + 1, count * sizeof *argv);
    execve(argv[0], argv, spawn->env);
    free(argv);
}

static const char *search_path(char *const *env)
{
    for (; *env != NULL; env++) {
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    }
    return "";
}

/* execvp with the PATH that the command itself will see. */
static int exec_by_lookup(const struct spawn *spawn)
{
    const char *name = spawn->argv[0];
    bool denied = false;
    for (const char *at = search_path(spawn->env);; at++) {
        size_t length = strcspn(at, ":");
        char path[MAX_PATH + 1];
        int n = snprintf(path, sizeof path, "%.*s%s%s", (int)length, at, length > 0 ? "/" : "./", name);
        if (n > 0 && (size_t)n < sizeof path) {
            execve(path, spawn->argv, spawn->env);
            if (errno == ENOEXEC)
                exec_as_shell_script(path, spawn);
            if (errno == EACCES)
                denied = true;
            else if (errno != ENOENT && errno != ENOTDIR)
                return -1;
        }
        at += length;
        if (*at == 0)
            break;
    }
    errno = denied ? EACCES : ENOENT;
    return -1;
}

static int exec_program(const struct spawn *spawn, struct failure *failure)
{
    const char *name = spawn->argv[0];
    if (spawn->program_lookup && strchr(name, '/') == NULL) {
        exec_by_lookup(spawn);
    } else {
        execve(name, spawn->argv, spawn->env);
        if (errno == ENOEXEC && spawn->program_lookup)
            exec_as_shell_script(name, spawn);
    }
    int error = errno;
    struct stat status;
    if (error == ENOENT && strchr(name, '/') != NULL && stat(name, &status) == 0)
        return fail(failure, error, "program", "cannot run \"%.300s\": the interpreter it needs is missing", name);
    return fail(failure, error, "program", "cannot run \"%.300s\"", name);
}

static void raise_oom_score(void)
{
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    char text[16] = "";
    if (read(fd, text, sizeof text - 1) > 0) {
        long score = strtol(text, NULL, 10) + OOM_SCORE_STEP;
        int length = snprintf(text, sizeof text, "%ld", score < OOM_SCORE_MAX ? score : OOM_SCORE_MAX);
        /* Best effort: /proc may be read-only. */
        ssize_t ignored = pwrite(fd, text, (size_t)length, 0);
        (void)ignored;
    }
    close(fd);
}

/* Give the command its pipes and terminal: opening /dev/stderr is an open of the pipe's own inode, which asks for its
 * owner.  Not those that a sudo caller handed over, nor /dev/null. */
static void own_stdio(const struct spawn *spawn, const struct user *user)
{
    if (spawn->requester != 0 || user->uid == 0)
        return;
    for (int fd = 0; fd < 3; fd++) {
        struct stat status;
        if (fstat(fd, &status) == 0 && (S_ISFIFO(status.st_mode) || isatty(fd)) &&
            fchown(fd, user->uid, (gid_t)-1) < 0)
            return; /* without privileges all of them are the only user's already */
    }
}

/* Runs in the keeper's memory, on a stack of its own, which AddressSanitizer would take for a wild one at _exit.
 * Signal dispositions are the defaults since init started. */
__attribute__((no_sanitize("address"))) static int run_leader(void *argument)
{
    struct launch *launch = argument;
    struct failure *failure = &launch->failure;
    const struct spawn *spawn = launch->spawn;
    sigset_t none;
    sigemptyset(&none);

    setsid();
    umask(022);
    /* While still root: the file belongs to root until the exec makes the process dumpable. */
    raise_oom_score();
    if (set_stdio(spawn, failure) < 0 || set_limits(spawn, failure) < 0)
        _exit(127);
    own_stdio(spawn, launch->user);
    if (user_become(launch->user, failure) < 0 || enter_directory(launch, failure) < 0)
        _exit(127);
    close_all_but(NULL, 0);
    sigprocmask(SIG_SETMASK, &none, NULL);
    exec_program(spawn, failure);
    _exit(127);
}

/* ---- the keeper -------------------------------------------------------------------------------------------- */

static bool is_set(char *const *env, const char *assignment)
{
    size_t length = strcspn(assignment, "=") + 1;
    for (; *env != NULL; env++) {
        if (strncmp(*env, assignment, length) == 0)
            return true;
    }
    return false;
}

/* Add what every program expects and the request lacks.  `text` holds the variables made here. */
static void add_default_variables(const struct spawn *spawn, const struct user *user, char (*text)[MAX_HOME + 16])
{
    snprintf(text[0], sizeof *text, "%s", default_path);
    snprintf(text[1], sizeof *text, "HOME=%s", user->home);
    snprintf(text[2], sizeof *text, "USER=%s", user->name);
    snprintf(text[3], sizeof *text, "LOGNAME=%s", user->name);
    snprintf(text[4], sizeof *text, "SHELL=%s", user->shell);
    snprintf(text[5], sizeof *text, "TERM=xterm-256color");

    char **end = spawn->env;
    while (*end != NULL)
        end++;
    size_t wanted = spawn->terminal ? DEFAULT_VARIABLES : DEFAULT_VARIABLES - 1;
    for (size_t i = 0; i < wanted; i++) {
        if (is_set(spawn->env, text[i]))
            continue;
        *end++ = text[i];
        *end = NULL;
    }
}

static void send_report(int status, const struct report *report)
{
    /* Smaller than PIPE_BUF, to a pipe that init empties: whole or, when init is gone, not at all. */
    ssize_t ignored = write(status, report, sizeof *report);
    (void)ignored;
}

/* A sudo request is allowed by who asks; it belongs to the command that asks. */
static int authorize(const struct spawn *spawn, struct report *report)
{
    if (spawn->requester == 0)
        return 0;
    if (!user_may_sudo(spawn->requester_uid))
        return refuse(&report->failure, EPERM, "denied", "cannot use sudo as uid %u: it is not in group sudo",
                    spawn->requester_uid);
    return tree_find_keeper(spawn->requester, &report->requester_keeper, &report->failure);
}

static int find_user(const struct spawn *spawn, struct user *user, struct failure *failure)
{
    if (user_lookup(spawn->user, user, failure) < 0)
        return -1;
    return spawn->group[0] == 0 ? 0 : gid_from_text(spawn->group, &user->gid, failure);
}

static pid_t vfork_leader(struct launch *launch)
{
    /* A vfork costs no copy of page tables, and when it returns the exec has succeeded or failed: no extra pipe. */
    static _Alignas(16) char stack[LEADER_STACK];
    return clone(run_leader, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, launch);
}

/* Returns the leader's pid after reporting it; on failure reports that and returns -1. */
static pid_t start_leader(const struct spawn *spawn, int status)
{
    struct report report = {.type = REPORT_FAILED};
    struct user user;
    char variables[DEFAULT_VARIABLES][MAX_HOME + 16];
    struct launch launch = {.spawn = spawn, .user = &user};
    pid_t leader = -1;

    if (authorize(spawn, &report) == 0 && find_user(spawn, &user, &report.failure) == 0) {
        add_default_variables(spawn, &user, variables);
        leader = vfork_leader(&launch);
        if (leader < 0) {
            fail(&report.failure, errno, "resource", "cannot start a process");
        } else if (launch.failure.kind[0] != 0) {
            waitpid(leader, NULL, 0);
            leader = -1;
            report.failure = launch.failure;
        } else {
            report.type = REPORT_STARTED;
            report.leader = leader;
        }
    }
    send_report(status, &report);
    return leader;
}

static void report_exit(pid_t leader, int wait_status, const struct rusage *usage, int status)
{
    struct report report = {.type = REPORT_EXITED, .leader = leader, .status = wait_status, .usage = *usage};
    pid_t zombie;
    report.at_ms = wall_clock_ms();
    while ((zombie = waitpid(-1, NULL, WNOHANG)) > 0)
        continue;
    report.survivors = zombie == 0;
    send_report(status, &report);
    /* init, just woken and most likely on this CPU, would have to wait until this process is taken apart. */
    sched_yield();
}

_Noreturn static void keep(pid_t leader, int status)
{
    for (;;) {
        struct rusage usage;
        int wait_status;
        pid_t pid = wait4(-1, &wait_status, 0, &usage);
        if (pid == leader)
            report_exit(leader, wait_status, &usage, status);
        else if (pid < 0 && errno == ECHILD)
            _exit(0);
    }
}

_Noreturn static void run_keeper(const struct spawn *spawn, int status)
{
    const int needed[] = {status, spawn->stdio[0], spawn->stdio[1], spawn->stdio[2], spawn->master};
    close_all_but(needed, ARRAY_SIZE(needed));
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    prctl(PR_SET_NAME, "keeper", 0, 0, 0);
    pid_t leader = start_leader(spawn, status);
    if (leader < 0)
        _exit(1);
    /* Not before the leader has them, and at once: a reader sees the end of output when the last writer is gone. */
    close_all_but(&status, 1);
    keep(leader, status);
}

pid_t spawn_keeper(const struct spawn *spawn, int *status)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    set_nonblocking(ends[0], true);
    pid_t keeper = fork();
    if (keeper == 0)
        run_keeper(spawn, ends[1]);
    int error = errno;
    close(ends[1]);
    if (keeper < 0) {
        close(ends[0]);
        errno = error;
        return -1;
    }
    *status = ends[0];
    return keeper;
}
