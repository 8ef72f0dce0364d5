/*
 * commands.c: the life of a command.
 *
 *     STARTING --STARTED--> RUNNING --leader exits--> DRAINING --output complete--> ENDED
 *         \--FAILED--> gone
 *
 * An exit is announced only when the output is complete: when every writer of stdout and stderr is gone, or, because
 * a survivor may hold them for ever, after `linger_ms` of silence and at the latest LINGER_LIMIT times that.  What a
 * survivor writes later still goes to the ring.
 *
 * The writer of a stream never waits for a reader, except while a lossless attachment has not been sent what the
 * ring holds.
 */
#include "commands.h"
#include "attachments.h"
#include "terminal.h"
#include "workers.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    MAX_COMMANDS = 1024,
    MAX_ENDED_MEMORY = 64 * 1024 * 1024, /* rings of ended commands */
    MAX_DESCRIPTION = 4 * 1024,          /* of the arguments kept for LIST */
    INTERNAL_RING = 64 * 1024,
    LINGER_LIMIT = 10,
    READS_AT_EXIT = 64, /* then other connections get their turn */
};

static struct command *commands; /* newest first */
static unsigned command_count;
static uint64_t last_id;
static uint8_t scratch[MAX_DATA];

/* ---- looking and forgetting -------------------------------------------------------------------------------- */

struct command *command_find(uint64_t id)
{
    for (struct command *command = commands; command != NULL; command = command->next) {
        if (command->id == id && !command->released && !command->internal && command->state != STATE_STARTING)
            return command;
    }
    return NULL;
}

unsigned commands_running(void)
{
    unsigned count = 0;
    for (const struct command *command = commands; command != NULL; command = command->next)
        count += !command->internal && command->state < STATE_ENDED;
    return count;
}

static bool output_is_open(const struct command *command)
{
    return watch_is_open(&command->streams[0].watch) || watch_is_open(&command->streams[1].watch);
}

static void free_rings(struct command *command)
{
    ring_free(&command->streams[0].ring);
    ring_free(&command->streams[1].ring);
}

/* Free what nobody can ask for and nothing can report on any more. */
static void collect(struct command *command)
{
    bool done = command->link == NULL;
    if (done || !command->released || command->keeper != 0 || command->attachments != NULL || output_is_open(command))
        return;
    watch_stop(&command->status);
    watch_stop(&command->input);
    timer_stop(&command->linger);
    free_rings(command);
    buffer_free(&command->description);
    *command->link = command->next;
    if (command->next != NULL)
        command->next->link = command->link;
    command->link = NULL;
    command_count--;
    loop_free_later(&command->dead);
}

static void pump_attachments(struct command *command)
{
    for (struct attachment *next, *attachment = command->attachments; attachment != NULL; attachment = next) {
        next = attachment->next;
        attachment_pump(container_of(attachment, struct connection, attachment));
    }
}

static void forget(struct command *command)
{
    command->released = true;
    free_rings(command);
    pump_attachments(command);
    collect(command);
}

int command_release(struct command *command, struct failure *failure)
{
    if (command->state != STATE_ENDED)
        return refuse(failure, EBUSY, "running", "cannot release command %llu: it is running",
                    (unsigned long long)command->id);
    forget(command);
    return 0;
}

/* Keep the ended commands within bounds: the oldest that nobody is attached to goes first. */
static void trim_ended(void)
{
    for (;;) {
        unsigned count = 0;
        size_t memory = 0;
        struct command *oldest = NULL;
        for (struct command *command = commands; command != NULL; command = command->next) {
            if (command->state != STATE_ENDED || command->released)
                continue;
            count++;
            memory += command->streams[0].ring.size + command->streams[1].ring.size;
            if (command->attachments == NULL && (oldest == NULL || command->ended_at <= oldest->ended_at))
                oldest = command;
        }
        if (oldest == NULL || (count <= MAX_ENDED_COMMANDS && memory <= MAX_ENDED_MEMORY))
            return;
        forget(oldest);
    }
}

/* ---- output ------------------------------------------------------------------------------------------------ */

/* How much may be read now: all there is, or what a lossless reader leaves free. */
static size_t room(const struct command *command, int number)
{
    const struct ring *ring = &command->streams[number].ring;
    uint64_t slowest = attachments_slowest(command, number);
    if (slowest == UINT64_MAX)
        return sizeof scratch;
    uint64_t unsent = ring->end - (slowest > ring->start ? slowest : ring->start);
    uint64_t free_space = unsent < ring->limit ? ring->limit - unsent : 0;
    return free_space < sizeof scratch ? (size_t)free_space : sizeof scratch;
}

/* One read.  True when there may be more. */
static bool read_output(struct command *command, int number)
{
    struct stream *stream = &command->streams[number];
    size_t size = room(command, number);
    stream->paused = size == 0;
    if (stream->paused) {
        watch_events(&stream->watch, 0);
        return false;
    }
    ssize_t n = read(stream->watch.fd, scratch, size);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n <= 0) {
        watch_stop(&stream->watch); /* for a terminal EIO is the end of file */
        return false;
    }
    if (!command->released)
        ring_append(&stream->ring, scratch, (size_t)n);
    if (command->state == STATE_DRAINING)
        command->last_output = monotonic_ms();
    return true;
}

static void command_ended(struct command *command)
{
    command->state = STATE_ENDED;
    timer_stop(&command->linger);
    if (command->internal)
        command->released = true;
    pump_attachments(command);
    if (command->released)
        collect(command);
    else
        trim_ended();
}

static void output_ready(struct command *command, int number)
{
    read_output(command, number);
    pump_attachments(command);
    if (output_is_open(command))
        return;
    if (command->state == STATE_DRAINING)
        command_ended(command);
    else
        collect(command);
}

static void stdout_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    output_ready(container_of(watch, struct command, streams[0].watch), 0);
}

static void stderr_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    output_ready(container_of(watch, struct command, streams[1].watch), 1);
}

void command_resume_output(struct command *command)
{
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &command->streams[i];
        if (stream->paused && watch_is_open(&stream->watch) && room(command, i) > 0) {
            stream->paused = false;
            watch_events(&stream->watch, EPOLLIN);
        }
    }
}

/* ---- the end ----------------------------------------------------------------------------------------------- */

static void linger_expired(struct timer *timer)
{
    struct command *command = container_of(timer, struct command, linger);
    uint64_t now = monotonic_ms();
    /* Time during which a slow lossless reader held the output up does not count. */
    if (command->streams[0].paused || command->streams[1].paused) {
        command->last_output = now;
        command->linger_limit = now + (uint64_t)command->linger_ms * LINGER_LIMIT;
    }
    uint64_t until = command->last_output + command->linger_ms;
    if (until > command->linger_limit)
        until = command->linger_limit;
    if (now < until)
        timer_start(&command->linger, until - now, linger_expired);
    else
        command_ended(command);
}

static void leader_exited(struct command *command, int status, const struct rusage *usage, uint64_t at_ms)
{
    command->state = STATE_DRAINING;
    command->status_code = status;
    command->usage = *usage;
    command->ended_at = at_ms;
    command->last_output = monotonic_ms();
    command->linger_limit = command->last_output + (uint64_t)command->linger_ms * LINGER_LIMIT;
    for (int i = 0; i < 2; i++) {
        for (int reads = 0; reads < READS_AT_EXIT && watch_is_open(&command->streams[i].watch); reads++) {
            if (!read_output(command, i))
                break;
        }
    }
    if (!output_is_open(command)) {
        command_ended(command);
        return;
    }
    timer_start(&command->linger, command->linger_ms, linger_expired);
    pump_attachments(command);
}

/* The keeper is gone without a word, so the sandbox's root has killed it.  The leader, if alive, is now a child of
 * init and will be reaped there; otherwise its status died with the keeper. */
static void keeper_lost(struct command *command)
{
    if (kill(command->leader, 0) == 0)
        return;
    command->status_lost = true;
    leader_exited(command, SIGKILL, &command->usage, wall_clock_ms());
}

/* ---- reports of the keeper --------------------------------------------------------------------------------- */

static void start_failed(struct command *command, const struct failure *failure)
{
    struct connection *starter = command->starter;
    command->starter = NULL;
    command->released = true;
    watch_stop(&command->streams[0].watch);
    watch_stop(&command->streams[1].watch);
    if (starter != NULL) {
        starter->starting = NULL;
        connection_fail(starter, failure);
    }
    collect(command);
}

static uint64_t owner_of(pid_t keeper)
{
    for (const struct command *command = commands; command != NULL; command = command->next) {
        if (keeper != 0 && command->keeper == keeper)
            return command->id;
    }
    return 0;
}

static void started(struct command *command, const struct report *report)
{
    struct connection *starter = command->starter;
    command->starter = NULL;
    command->state = STATE_RUNNING;
    command->leader = report->leader;
    command->owner = owner_of(report->requester_keeper);
    for (int i = 0; i < 2; i++)
        watch_events(&command->streams[i].watch, EPOLLIN);
    if (starter == NULL) {
        command->released = true;
        command_kill_tree(command);
        return;
    }
    starter->starting = NULL;
    struct frame_writer writer = frame_begin(&starter->out, OP_STARTED);
    put_number(&writer, TAG_COMMAND, command->id);
    put_number(&writer, TAG_PID, (uint64_t)report->leader);
    frame_end(&writer);
    if (starter->attachment.wants_exit)
        attachment_begin(starter, command);
    else
        connection_finish(starter);
    connection_resume(starter); /* frames that came ahead of their time */
}

/* Handle all reports that are there.  False at the end of the pipe. */
static bool read_reports(struct command *command)
{
    struct report report;
    while (watch_is_open(&command->status)) {
        ssize_t n = read(command->status.fd, &report, sizeof report);
        if (n < 0)
            return true;
        if (n != sizeof report)
            return false;
        if (report.type == REPORT_STARTED)
            started(command, &report);
        else if (report.type == REPORT_FAILED)
            start_failed(command, &report.failure);
        else if (command->state == STATE_RUNNING) {
            command->survivors = report.survivors;
            leader_exited(command, report.status, &report.usage, report.at_ms);
        }
    }
    return true;
}

static void status_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    if (!read_reports(container_of(watch, struct command, status)))
        watch_events(watch, 0); /* the rest is done when the keeper is reaped */
}

static void keeper_ended(struct command *command)
{
    read_reports(command);
    watch_stop(&command->status);
    command->keeper = 0;
    if (command->state == STATE_STARTING && !command->released) {
        struct failure failure;
        refuse(&failure, ECHILD, "resource", "cannot start the command: its keeper was killed");
        start_failed(command, &failure);
        return;
    }
    if (command->state == STATE_RUNNING) {
        keeper_lost(command);
    } else if (command->state != STATE_STARTING) {
        command_close_input(command); /* no descendant is left to read it */
    }
    collect(command);
}

bool commands_reap(pid_t pid, int status, const struct rusage *usage)
{
    for (struct command *command = commands; command != NULL; command = command->next) {
        if (command->keeper == pid) {
            keeper_ended(command);
            return true;
        }
        if (command->leader == pid && command->state == STATE_RUNNING) {
            read_reports(command);
            if (command->state == STATE_RUNNING)
                leader_exited(command, status, usage, wall_clock_ms());
            return true;
        }
    }
    return false;
}

/* ---- starting ---------------------------------------------------------------------------------------------- */

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

static void adopt(struct command *command, const struct request *request, const int own[3], int status)
{
    uint32_t ring = has(request, TAG_RING_SIZE) ? (uint32_t)request->number[TAG_RING_SIZE] : DEFAULT_RING;
    bool failed = watch_start(&command->status, status, EPOLLIN, status_ready) < 0;
    command->id = ++last_id;
    command->started_at = wall_clock_ms();
    command->linger_ms = has(request, TAG_LINGER_MS) ? (uint32_t)request->number[TAG_LINGER_MS] : DEFAULT_LINGER_MS;
    watch_start(&command->input, own[0], 0, attachments_input_ready);
    watch_start(&command->streams[0].watch, own[1], 0, stdout_ready);
    watch_start(&command->streams[1].watch, own[2], 0, stderr_ready);
    for (int i = 0; i < 2; i++)
        ring_open(&command->streams[i].ring, command->internal ? INTERNAL_RING : ring);
    describe(command, request);
    command->link = &commands;
    command->next = commands;
    if (commands != NULL)
        commands->link = &command->next;
    commands = command;
    command_count++;
    if (failed)
        command_kill_tree(command);
}

static int launch(struct command *command, struct spawn *spawn, const struct request *request, struct failure *failure)
{
    int own[3] = {-1, -1, -1}, status = -1;
    bool opened = spawn->stdio[1] >= 0 || open_streams(spawn, request, own) == 0;
    command->keeper = opened ? spawn_keeper(spawn, &status) : -1;
    int error = errno;
    close_all(spawn->stdio, ARRAY_SIZE(spawn->stdio));
    if (command->keeper < 0) {
        close_all(own, ARRAY_SIZE(own));
        return fail(failure, error, "resource", "cannot start a command");
    }
    command->terminal = spawn->terminal;
    adopt(command, request, own, status);
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
    if (command_count >= MAX_COMMANDS)
        return refuse(failure, EAGAIN, "resource", "cannot run more than %d commands at once", MAX_COMMANDS);
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

void command_start(struct connection *connection, const struct request *request)
{
    struct failure failure;
    struct spawn spawn = {0};
    struct command *command = NULL;
    int result = check_request(request, &failure);
    if (result == 0)
        result = spawn_prepare(request, &spawn, &failure);
    if (result == 0 && (command = calloc(1, sizeof *command)) == NULL)
        result = fail(&failure, ENOMEM, "resource", "cannot start a command");
    if (result == 0) {
        command->internal = connection->inside;
        if (command->internal)
            use_requester(&spawn, connection);
        result = launch(command, &spawn, request, &failure);
    }
    spawn_free(&spawn);
    if (result < 0) {
        free(command);
        connection_fail(connection, &failure);
        return;
    }
    command->starter = connection;
    connection->starting = command;
    connection->attachment.wants_exit = connection->inside || has_flag(request, FLAG_ATTACH);
    connection->attachment.wants_output = true;
    connection->attachment.lossless = connection->inside || has_flag(request, FLAG_LOSSLESS);
    connection_expect(connection, NULL);
}

void command_detached(struct command *command)
{
    if (command->internal && command->state < STATE_ENDED) {
        command->released = true;
        command_kill_tree(command);
    }
    collect(command);
    trim_ended();
}

void command_abandon(struct command *command)
{
    command->starter = NULL;
}

/* ---- input and signals ------------------------------------------------------------------------------------- */

void command_close_input(struct command *command)
{
    watch_stop(&command->input);
    attachments_input_closed(command);
}

int command_end_input(struct command *command)
{
    if (!watch_is_open(&command->input))
        return 0;
    if (command->terminal)
        return terminal_type_eof(command->input.fd);
    command_close_input(command);
    return 0;
}

int command_resize(struct command *command, uint16_t cols, uint16_t rows, struct failure *failure)
{
    if (!command->terminal)
        return refuse(failure, ENOTTY, "terminal", "cannot resize command %llu: it has no terminal",
                    (unsigned long long)command->id);
    if (watch_is_open(&command->input) && terminal_resize(command->input.fd, cols, rows) < 0)
        return fail(failure, errno, "terminal", "cannot resize the terminal");
    return 0;
}

int command_signal(const struct command *command, int signo, enum signal_scope scope, struct failure *failure)
{
    if (command->state != STATE_RUNNING)
        return refuse(failure, ESRCH, "ended", "cannot signal command %llu: it has ended",
                    (unsigned long long)command->id);
    if (kill(scope == SCOPE_GROUP ? -command->leader : command->leader, signo) < 0)
        return fail(failure, errno, "signal", "cannot send signal %d", signo);
    return 0;
}

int command_signal_any(const struct command *command, int signo, enum signal_scope scope, struct failure *failure)
{
    if (scope != SCOPE_TREE)
        return command_signal(command, signo, scope, failure);
    pid_t roots[MAX_ROOTS];
    worker_signal_trees(roots, command_roots(command, roots), signo);
    return 0;
}

size_t command_roots(const struct command *command, pid_t roots[static MAX_ROOTS])
{
    uint64_t ids[MAX_ROOTS] = {command->id};
    size_t id_count = 1, root_count = 0;
    if (command->keeper != 0)
        roots[root_count++] = command->keeper;
    for (size_t i = 0; i < id_count; i++) {
        for (const struct command *other = commands; other != NULL; other = other->next) {
            if (other->owner != ids[i] || other->keeper == 0 || id_count == MAX_ROOTS || root_count == MAX_ROOTS)
                continue;
            ids[id_count++] = other->id;
            roots[root_count++] = other->keeper;
        }
    }
    return root_count;
}

void command_kill_tree(const struct command *command)
{
    struct failure ignored;
    command_signal_any(command, SIGKILL, SCOPE_TREE, &ignored);
}

/* ---- describing -------------------------------------------------------------------------------------------- */

static void put_exit_fields(const struct command *command, struct frame_writer *writer)
{
    int status = command->status_code;
    if (WIFSIGNALED(status))
        put_number(writer, TAG_EXIT_SIGNAL, (uint64_t)WTERMSIG(status));
    else
        put_number(writer, TAG_EXIT_CODE, (uint64_t)WEXITSTATUS(status));
    put_number(writer, TAG_ENDED_AT_MS, command->ended_at);
    const struct timeval *user = &command->usage.ru_utime, *system = &command->usage.ru_stime;
    put_number(writer, TAG_USER_TIME_US, (uint64_t)user->tv_sec * 1000000 + (uint64_t)user->tv_usec);
    put_number(writer, TAG_SYSTEM_TIME_US, (uint64_t)system->tv_sec * 1000000 + (uint64_t)system->tv_usec);
    put_number(writer, TAG_MAX_RSS_KB, (uint64_t)command->usage.ru_maxrss);
}

static uint32_t flags_of(const struct command *command)
{
    bool exited = command->state >= STATE_DRAINING;
    return (command->terminal ? FLAG_TERMINAL : 0u) | (watch_is_open(&command->input) ? FLAG_STDIN_OPEN : 0u) |
           (exited && output_is_open(command) ? FLAG_OUTPUT_INCOMPLETE : 0u) |
           (command->survivors && command->keeper != 0 ? FLAG_SURVIVORS : 0u) |
           (command->status_lost ? FLAG_STATUS_LOST : 0u) |
           (exited && WIFSIGNALED(command->status_code) && WCOREDUMP(command->status_code) ? FLAG_CORE_DUMPED : 0u);
}

static void put_common_fields(const struct command *command, struct frame_writer *writer)
{
    put_number(writer, TAG_STARTED_AT_MS, command->started_at);
    put_number(writer, TAG_STDOUT_TOTAL, command->streams[0].ring.end);
    put_number(writer, TAG_STDERR_TOTAL, command->streams[1].ring.end);
    put_number(writer, TAG_FLAGS, flags_of(command));
}

int command_put_exit(const struct command *command, struct buffer *buffer)
{
    struct frame_writer writer = frame_begin(buffer, OP_EXITED);
    put_common_fields(command, &writer);
    put_exit_fields(command, &writer);
    return frame_end(&writer);
}

static int put_listed(const struct command *command, struct buffer *buffer)
{
    struct frame_writer writer = frame_begin(buffer, OP_LISTED);
    put_number(&writer, TAG_COMMAND, command->id);
    put_number(&writer, TAG_PID, (uint64_t)command->leader);
    put_number(&writer, TAG_STATE, command->state);
    put_raw(&writer, command->description.data, buffer_length(&command->description));
    put_number(&writer, TAG_STDOUT_OLDEST, command->streams[0].ring.start);
    put_number(&writer, TAG_STDERR_OLDEST, command->streams[1].ring.start);
    put_common_fields(command, &writer);
    if (command->state >= STATE_DRAINING)
        put_exit_fields(command, &writer);
    return frame_end(&writer);
}

int commands_list(struct buffer *buffer)
{
    for (const struct command *command = commands; command != NULL; command = command->next) {
        if (command->internal || command->released || command->state == STATE_STARTING)
            continue;
        if (put_listed(command, buffer) < 0)
            return -1;
    }
    return 0;
}
