/*
 * operations.c: the table of operations, and those of them that need only a few lines.
 */
#include "operations.h"
#include "attachments.h"
#include "command_start.h"
#include "files.h"
#include "ports.h"
#include "relay.h"
#include "shutdown.h"
#include "watcher.h"
#include "workers.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static uint8_t boot_token[16];
static uint64_t boot_ms;

int operations_open(void)
{
    boot_ms = monotonic_ms();
    return getrandom(boot_token, sizeof boot_token, 0) == sizeof boot_token ? 0 : -1;
}

static void ok(struct connection *connection)
{
    put_empty(&connection->out, OP_OK);
    connection_finish(connection);
}

static void answer(struct connection *connection, int result, const struct failure *failure)
{
    if (result < 0)
        connection_fail(connection, failure);
    else
        ok(connection);
}

/* The command a request names; answers the request when there is none. */
static struct command *find_or_fail(struct connection *connection, const struct request *request)
{
    struct failure failure;
    struct command *command = command_find(request->number[TAG_COMMAND]);
    if (command == NULL) {
        refuse(&failure, ESRCH, "unknown", "cannot find command %llu: it never was, or has been forgotten",
             (unsigned long long)request->number[TAG_COMMAND]);
        connection_fail(connection, &failure);
    }
    return command;
}

static void hello(struct connection *connection, const struct request *request)
{
    connection->keep = has_flag(request, FLAG_KEEP);
    struct frame_writer writer = frame_begin(&connection->out, OP_WELCOME);
    put_number(&writer, TAG_VERSION, PROTOCOL_VERSION);
    put_number(&writer, TAG_PID, (uint64_t)getpid());
    put_number(&writer, TAG_UPTIME_MS, monotonic_ms() - boot_ms);
    put_number(&writer, TAG_COUNT, commands_running());
    put_bytes(&writer, TAG_TOKEN, boot_token, sizeof boot_token);
    if (connection->keep)
        put_number(&writer, TAG_FLAGS, FLAG_KEEP);
    frame_end(&writer);
    connection_conclude(connection);
}

static void list(struct connection *connection, const struct request *request)
{
    (void)request;
    if (commands_list(&connection->out) < 0 || put_empty(&connection->out, OP_END) < 0)
        connection_close(connection); /* better no list than half of one */
    else
        connection_finish(connection);
}

/* As connection_charge; answers the request when there is no more of that. */
static bool charge_or_fail(struct connection *connection, enum budget budget)
{
    struct failure failure;
    if (connection_charge(connection, budget, &failure) == 0)
        return true;
    connection_fail(connection, &failure);
    return false;
}

static void attach(struct connection *connection, const struct request *request)
{
    struct command *command = find_or_fail(connection, request);
    if (command == NULL || !charge_or_fail(connection, BUDGET_ATTACHED))
        return;
    struct attachment *attachment = attachment_new(connection);
    if (attachment == NULL) {
        connection_close(connection);
        return;
    }
    attachment->wants_exit = true;
    attachment->wants_output = !has_flag(request, FLAG_NO_OUTPUT);
    attachment->lossless = has_flag(request, FLAG_LOSSLESS);
    attachment->cursor[0] = request->number[TAG_STDOUT_FROM];
    attachment->cursor[1] = request->number[TAG_STDERR_FROM];
    attachment_begin(attachment, command);
}

static void write_stdin(struct connection *connection, const struct request *request)
{
    struct command *command = find_or_fail(connection, request);
    if (command == NULL || !charge_or_fail(connection, BUDGET_FOLLOWERS))
        return;
    struct attachment *attachment = attachment_new(connection);
    if (attachment == NULL)
        connection_close(connection);
    else
        attachment_begin_stdin(attachment, command);
}

static void end_stdin(struct connection *connection, const struct request *request)
{
    struct failure failure;
    struct command *command = find_or_fail(connection, request);
    if (command == NULL)
        return;
    int result = command_end_input(command);
    if (result < 0)
        fail(&failure, errno, "terminal", "cannot end the input of the terminal: it takes no more for now");
    answer(connection, result, &failure);
}

static void resize(struct connection *connection, const struct request *request)
{
    struct failure failure;
    struct command *command = find_or_fail(connection, request);
    if (command != NULL) {
        int result = command_resize(command, (uint16_t)request->number[TAG_COLS], (uint16_t)request->number[TAG_ROWS],
                                    &failure);
        answer(connection, result, &failure);
    }
}

static void signal_command(struct connection *connection, const struct request *request)
{
    struct failure failure;
    struct command *command = find_or_fail(connection, request);
    if (command == NULL)
        return;
    uint64_t signo = request->number[TAG_SIGNO], scope = request->number[TAG_SCOPE];
    if (signo > 64 || scope > SCOPE_TREE) {
        refuse(&failure, EINVAL, "request", "cannot send signal %llu: use 0 to 64, to the leader, group or tree",
             (unsigned long long)signo);
        connection_fail(connection, &failure);
    } else if (scope == SCOPE_TREE) {
        command_note_signal(command, (int)signo);
        command_signal_tree(connection, request);
    } else {
        answer(connection, command_signal(command, (int)signo, (enum signal_scope)scope, &failure), &failure);
    }
}

static void release(struct connection *connection, const struct request *request)
{
    struct failure failure;
    struct command *command = find_or_fail(connection, request);
    if (command != NULL)
        answer(connection, command_release(command, &failure), &failure);
}

static void sudo(struct connection *connection, const struct request *request)
{
    size_t passed = connection->passed_count;
    timer_stop(&connection->timer);
    if (passed != (has(request, TAG_COLS) ? 0 : 3))
        connection_close(connection);
    else
        command_start(connection, request);
}

#define SPAWN_TAGS TAG_ARG, TAG_ENV, TAG_CWD, TAG_USER, TAG_STDIN_MODE, TAG_COLS, TAG_ROWS, TAG_RLIMIT, TAG_RING_SIZE, \
                   TAG_FLAGS, TAG_LINGER_MS, TAG_LABEL
#define ATTACH_TAGS TAG_COMMAND, TAG_STDOUT_FROM, TAG_STDERR_FROM, TAG_FLAGS
#define FILE_TAGS TAG_USER, TAG_CWD
#define WORKS .budget = BUDGET_WORKERS
#define NEEDS(...) .required = (const uint8_t[]){__VA_ARGS__, 0}
#define TAKES(...) .optional = (const uint8_t[]){__VA_ARGS__, 0}

static const struct operation {
    enum frame_type type;
    void (*start)(struct connection *, const struct request *);
    const uint8_t *required, *optional;
    /* Instead of start: what a worker does, as the request's USER if it names one. */
    int (*work)(struct worker *, const struct request *, struct failure *);
    enum budget budget; /* of the worker */
} operations[] = {
    {.type = OP_HELLO, .start = hello, TAKES(TAG_FLAGS)},
    {.type = OP_SPAWN, .start = command_start, NEEDS(TAG_ARG), TAKES(SPAWN_TAGS)},
    {.type = OP_ATTACH, .start = attach, NEEDS(TAG_COMMAND), TAKES(ATTACH_TAGS)},
    {.type = OP_WRITE_STDIN, .start = write_stdin, NEEDS(TAG_COMMAND)},
    {.type = OP_STDIN_EOF, .start = end_stdin, NEEDS(TAG_COMMAND)},
    {.type = OP_RESIZE, .start = resize, NEEDS(TAG_COMMAND, TAG_COLS, TAG_ROWS)},
    {.type = OP_SIGNAL, .start = signal_command, NEEDS(TAG_COMMAND, TAG_SIGNO), TAKES(TAG_SCOPE)},
    {.type = OP_LIST, .start = list},
    {.type = OP_LIST_PORTS, .work = ports_list, WORKS},
    {.type = OP_RELEASE, .start = release, NEEDS(TAG_COMMAND)},
    {.type = OP_CONNECT, .start = relay_start, TAKES(TAG_PORT, TAG_PATH)},
    {.type = OP_SHUTDOWN, .start = shutdown_start, TAKES(TAG_GRACE_MS)},
    {.type = OP_STAT, .work = file_stat, WORKS, NEEDS(TAG_PATH), TAKES(FILE_TAGS, TAG_FLAGS)},
    {.type = OP_LIST_DIR, .work = file_list, WORKS, NEEDS(TAG_PATH), TAKES(FILE_TAGS, TAG_DEPTH, TAG_LIMIT, TAG_AFTER)},
    {.type = OP_READ_FILE, .work = file_read, WORKS, NEEDS(TAG_PATH), TAKES(FILE_TAGS, TAG_OFFSET, TAG_LENGTH)},
    {.type = OP_WRITE_FILE, .work = file_write, WORKS, NEEDS(TAG_PATH),
     TAKES(FILE_TAGS, TAG_MODE, TAG_OWNER, TAG_GROUP, TAG_OFFSET, TAG_FLAGS)},
    {.type = OP_MKDIR, .work = file_mkdir, WORKS, NEEDS(TAG_PATH), TAKES(FILE_TAGS, TAG_MODE, TAG_OWNER, TAG_GROUP, TAG_FLAGS)},
    {.type = OP_REMOVE, .work = file_remove, WORKS, NEEDS(TAG_PATH), TAKES(FILE_TAGS, TAG_FLAGS)},
    {.type = OP_RENAME, .work = file_rename, WORKS, NEEDS(TAG_PATH, TAG_TARGET), TAKES(FILE_TAGS, TAG_FLAGS)},
    {.type = OP_SYMLINK, .work = file_symlink, WORKS, NEEDS(TAG_PATH, TAG_TARGET), TAKES(FILE_TAGS)},
    {.type = OP_CHMOD, .work = file_chmod, WORKS, NEEDS(TAG_PATH, TAG_MODE), TAKES(FILE_TAGS, TAG_FLAGS)},
    {.type = OP_CHOWN, .work = file_chown, WORKS, NEEDS(TAG_PATH), TAKES(FILE_TAGS, TAG_OWNER, TAG_GROUP, TAG_FLAGS)},
    {.type = OP_TRUNCATE, .work = file_truncate, WORKS, NEEDS(TAG_PATH, TAG_SIZE), TAKES(FILE_TAGS)},
    {.type = OP_COPY, .work = file_copy, WORKS, NEEDS(TAG_PATH, TAG_TARGET), TAKES(FILE_TAGS, TAG_FLAGS)},
    {.type = OP_PACK, .work = file_pack, WORKS, NEEDS(TAG_PATH), TAKES(FILE_TAGS, TAG_FLAGS)},
    {.type = OP_UNPACK, .work = file_unpack, WORKS, NEEDS(TAG_PATH), TAKES(FILE_TAGS, TAG_FLAGS)},
    {.type = OP_WATCH, .work = watch_run, .budget = BUDGET_WATCHES, NEEDS(TAG_PATH), TAKES(TAG_USER, TAG_FLAGS, TAG_ARG)},
};

/* The only thing that a process of the sandbox may ask for. */
static const struct operation inside_operation = {
    .type = OP_SUDO, .start = sudo, NEEDS(TAG_ARG), TAKES(TAG_ENV, TAG_CWD, TAG_USER, TAG_GROUP, TAG_COLS, TAG_ROWS, TAG_FLAGS)};

static const struct operation *find_operation(const struct connection *connection, uint8_t type)
{
    if (connection->inside)
        return type == OP_SUDO ? &inside_operation : NULL;
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++) {
        if (operations[i].type == type)
            return &operations[i];
    }
    return NULL;
}

enum received operation_start(struct connection *connection, const struct frame *frame)
{
    const struct operation *operation = find_operation(connection, frame->type);
    if (operation == NULL)
        return FRAME_REFUSED;
    struct request request;
    uint64_t required = tag_set(operation->required);
    if (request_parse(frame, required | tag_set(operation->optional), required, &request) < 0)
        return FRAME_REFUSED;
    if (operation->work != NULL)
        worker_start(connection, &request, operation->budget, operation->work);
    else
        operation->start(connection, &request);
    return FRAME_TAKEN;
}
