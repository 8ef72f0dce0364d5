/*
 * command_start.c: from a SPAWN or SUDO request to a keeper that is on its way.  What came of it is told by the
 * keeper's first report (commands.c).
 */
#include "command_start.h"
#include "attachments.h"
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    MAX_DESCRIPTION = 4 * 1024, /* of the arguments kept for LIST */
    INTERNAL_RING = 64 * 1024,
};

static int open_pipe(int *child_end, int *own_end, bool child_reads)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    *child_end = ends[child_reads ? 0 : 1];
    *own_end = ends[child_reads ? 1 : 0];
    set_nonblocking(*own_end, true);
    return 0;
}

/* Our ends: stdin, stdout, stderr; -1 where there is none. */
static int open_streams(struct spawn *spawn, const struct request *request, int own[3])
{
    if (spawn->terminal) {
        spawn->master = terminal_open((uint16_t)request->number[TAG_COLS], (uint16_t)request->number[TAG_ROWS]);
        own[1] = spawn->master;
        own[0] = spawn->master < 0 ? -1 : fcntl(spawn->master, F_DUPFD_CLOEXEC, 3);
        return own[0] < 0 ? -1 : 0;
    }
    if (request->number[TAG_STDIN_MODE] == STDIN_PIPE && open_pipe(&spawn->stdio[0], &own[0], true) < 0)
        return -1;
    return open_pipe(&spawn->stdio[1], &own[1], false) < 0 || open_pipe(&spawn->stdio[2], &own[2], false) < 0 ? -1 : 0;
}

static void close_all(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
}

static void describe(struct command *command, const struct request *request)
{
    struct frame_writer writer = {.buffer = &command->description};
    const uint8_t *at = request->fields;
    struct field field;
    while (field_next(&at, request->end, &field) == 1) {
        if (field.tag == TAG_ARG && buffer_length(writer.buffer) + field.length <= MAX_DESCRIPTION)
            put_bytes(&writer, TAG_ARG, field.value, field.length);
    }
    put_bytes(&writer, TAG_USER, request->bytes[TAG_USER].data, request->bytes[TAG_USER].length);
    put_bytes(&writer, TAG_LABEL, request->bytes[TAG_LABEL].data, request->bytes[TAG_LABEL].length);
}

static int launch(struct command *command, struct spawn *spawn, const struct request *request, struct failure *failure)
{
    int own[3] = {-1, -1, -1}, status = -1;
    bool opened = spawn->stdio[1] >= 0 || open_streams(spawn, request, own) == 0;
    pid_t keeper = opened ? spawn_keeper(spawn, &status) : -1;
    int error = errno;
    close_all(spawn->stdio, ARRAY_SIZE(spawn->stdio));
    if (keeper < 0) {
        close_all(own, ARRAY_SIZE(own));
        return fail(failure, error, "resource", "cannot start a command");
    }
    uint64_t ring = has(request, TAG_RING_SIZE) ? request->number[TAG_RING_SIZE] : DEFAULT_RING;
    for (int i = 0; i < 2; i++)
        ring_open(&command->streams[i].ring, command->internal ? INTERNAL_RING : (size_t)ring);
    command->linger_ms = has(request, TAG_LINGER_MS) ? (uint32_t)request->number[TAG_LINGER_MS] : DEFAULT_LINGER_MS;
    command->terminal = spawn->terminal;
    command->labelled = request->bytes[TAG_LABEL].length > 0;
    describe(command, request);
    command_adopt(command, keeper, own, status);
    return 0;
}

static int check_request(const struct request *request, struct failure *failure)
{
    uint64_t ring = request->number[TAG_RING_SIZE];
    if (has(request, TAG_RING_SIZE) && (ring < MIN_RING || ring > MAX_RING))
        return refuse(failure, EINVAL, "request", "cannot keep %llu bytes of output: use %d to %d",
                    (unsigned long long)ring, MIN_RING, MAX_RING);
    if (request->number[TAG_LINGER_MS] > MAX_LINGER_MS || request->bytes[TAG_LABEL].length > MAX_LABEL)
        return refuse(failure, EINVAL, "request", "cannot use a linger of more than %d ms or a label of more than %d bytes",
                    MAX_LINGER_MS, MAX_LABEL);
    if (has(request, TAG_COLS) != has(request, TAG_ROWS) || request->number[TAG_STDIN_MODE] > STDIN_PIPE)
        return refuse(failure, EINVAL, "request", "cannot use a terminal without both sizes, or an unknown stdin mode");
    if (commands_count() >= MAX_COMMANDS)
        return refuse(failure, EAGAIN, "too_many", "cannot run more than %d commands at once", MAX_COMMANDS);
    return 0;
}

/* A sudo command without a terminal of its own gets the caller's descriptors. */
static void use_requester(struct spawn *spawn, struct connection *connection)
{
    spawn->requester = connection->peer_pid;
    spawn->requester_uid = connection->peer_uid;
    for (size_t i = 0; i < connection->passed_count; i++)
        spawn->stdio[i] = connection->passed[i];
    connection->passed_count = 0;
}

/* ---- waiting for the outcome ------------------------------------------------------------------------------- */

/* Nobody waits any more; the command goes when it has started. */
static void abandoned(struct connection *connection)
{
    struct attachment *attachment = connection->subject;
    attachment->command->decided = NULL;
    attachment_free(attachment);
}

static const struct role starting = {.closed = abandoned};

static void decided(struct command *command, const struct failure *failure)
{
    struct connection *starter = command->starter;
    struct attachment *attachment = starter->subject;
    connection_become(starter, NULL, NULL);
    if (failure != NULL) {
        attachment_free(attachment);
        connection_fail(starter, failure);
        return;
    }
    struct frame_writer writer = frame_begin(&starter->out, OP_STARTED);
    put_number(&writer, TAG_COMMAND, command->id);
    put_number(&writer, TAG_PID, (uint64_t)command->leader);
    frame_end(&writer);
    if (attachment->wants_exit) {
        attachment_begin(attachment, command);
    } else {
        attachment_free(attachment);
        connection_finish(starter);
    }
    connection_resume(starter); /* frames that came ahead of their time */
}

static void await_outcome(struct attachment *attachment, struct command *command, const struct request *request)
{
    struct connection *connection = attachment->connection;
    attachment->command = command;
    attachment->wants_exit = connection->inside || has_flag(request, FLAG_ATTACH);
    attachment->wants_output = true;
    attachment->lossless = connection->inside || has_flag(request, FLAG_LOSSLESS);
    command->starter = connection;
    command->decided = decided;
    connection->keep = !connection->inside && has_flag(request, FLAG_KEEP);
    connection_become(connection, &starting, attachment);
    connection_expect(connection, NULL);
}

void command_start(struct connection *connection, const struct request *request)
{
    struct failure failure;
    struct spawn spawn = {0};
    struct command *command = NULL;
    struct attachment *attachment = NULL;
    int result = check_request(request, &failure);
    if (result == 0 && has_flag(request, FLAG_ATTACH))
        result = connection_charge(connection, BUDGET_FOLLOWERS, &failure);
    if (result == 0)
        result = spawn_prepare(request, &spawn, &failure);
    if (result == 0 && ((command = calloc(1, sizeof *command)) == NULL ||
                        (attachment = attachment_new(connection)) == NULL))
        result = fail(&failure, ENOMEM, "resource", "cannot start a command");
    if (result == 0) {
        command->internal = connection->inside;
        if (command->internal)
            use_requester(&spawn, connection);
        result = launch(command, &spawn, request, &failure);
    }
    spawn_free(&spawn);
    if (result == 0) {
        await_outcome(attachment, command, request);
        return;
    }
    free(attachment);
    free(command);
    connection_fail(connection, &failure);
}
