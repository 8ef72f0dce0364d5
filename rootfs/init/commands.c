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

#include <errno.h>
#include <signal.h>
#include <unistd.h>

enum {
    MAX_ENDED_MEMORY = 64 * 1024 * 1024, /* rings of ended commands */
    LINGER_LIMIT = 10,
    TERMINAL_WINDOW = 64 * 1024, /* of output that a lossless reader has not been sent */
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

const struct command *commands_first(void)
{
    return commands;
}

unsigned commands_count(void)
{
    return command_count;
}

unsigned commands_running(void)
{
    unsigned count = 0;
    for (const struct command *command = commands; command != NULL; command = command->next)
        count += !command->internal && command->state < STATE_ENDED;
    return count;
}

bool command_output_is_open(const struct command *command)
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
    if (done || !command->released || command->keeper.pid != 0 || command->attachments != NULL || command_output_is_open(command))
        return;
    child_forget(&command->orphan);
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
        connection_pump(attachment->connection);
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

static size_t rings_size(const struct command *command)
{
    return command->streams[0].ring.size + command->streams[1].ring.size;
}

/* Keep the ended commands within bounds: the oldest that nobody is attached to goes first.  A labelled one loses its
 * output only: whoever labelled it may have been away while it ended, and asks for its exit when it is back. */
static void trim_ended(void)
{
    for (;;) {
        unsigned count = 0;
        size_t memory = 0;
        struct command *oldest = NULL;
        for (struct command *command = commands; command != NULL; command = command->next) {
            if (command->state != STATE_ENDED || command->released)
                continue;
            if (command->labelled && rings_size(command) == 0)
                continue;
            count++;
            memory += rings_size(command);
            if (command->attachments == NULL && (oldest == NULL || command->ended_at <= oldest->ended_at))
                oldest = command;
        }
        if (oldest == NULL || (count <= MAX_ENDED_COMMANDS && memory <= MAX_ENDED_MEMORY))
            return;
        if (oldest->labelled)
            free_rings(oldest);
        else
            forget(oldest);
    }
}

/* ---- output ------------------------------------------------------------------------------------------------ */

/* The end of what the connection that lags most among the lossless ones has been sent; UINT64_MAX if there is none. */
static uint64_t slowest_of(const struct command *command, int stream)
{
    uint64_t slowest = UINT64_MAX;
    for (const struct attachment *attachment = command->attachments; attachment; attachment = attachment->next) {
        if (attachment->lossless && attachment->wants_output && attachment->cursor[stream] < slowest)
            slowest = attachment->cursor[stream];
    }
    return slowest;
}

/* How much may be read now: all there is, or what a lossless reader leaves free. */
static size_t room(const struct command *command, int number)
{
    const struct ring *ring = &command->streams[number].ring;
    uint64_t slowest = slowest_of(command, number);
    if (slowest == UINT64_MAX)
        return sizeof scratch;
    /* A terminal is ahead of its reader by little, or what its user sees is long past. */
    uint64_t limit = command->terminal && ring->limit > TERMINAL_WINDOW ? TERMINAL_WINDOW : ring->limit;
    uint64_t unsent = ring->end - (slowest > ring->start ? slowest : ring->start);
    uint64_t free_space = unsent < limit ? limit - unsent : 0;
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
    if (command_output_is_open(command))
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
    child_forget(&command->orphan);
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
    if (!command_output_is_open(command)) {
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

static void decide(struct command *command, const struct failure *failure)
{
    void (*decided)(struct command *, const struct failure *) = command->decided;
    command->decided = NULL;
    decided(command, failure);
}

static void start_failed(struct command *command, const struct failure *failure)
{
    command->released = true;
    watch_stop(&command->streams[0].watch);
    watch_stop(&command->streams[1].watch);
    if (command->decided != NULL)
        decide(command, failure);
    collect(command);
}

static uint64_t owner_of(pid_t keeper)
{
    for (const struct command *command = commands; command != NULL; command = command->next) {
        if (keeper != 0 && command->keeper.pid == keeper)
            return command->id;
    }
    return 0;
}

static bool is_to_be_killed(const struct command *command)
{
    const struct command *other = commands;
    while (other != NULL && other->id != command->owner)
        other = other->next;
    return command->killed || (other != NULL && is_to_be_killed(other));
}

static void orphan_ended(struct child *child, int status, const struct rusage *usage);

static void started(struct command *command, const struct report *report)
{
    command->state = STATE_RUNNING;
    command->leader = report->leader;
    child_expect(&command->orphan, report->leader, orphan_ended);
    command->owner = owner_of(report->requester_keeper);
    for (int i = 0; i < 2; i++)
        watch_events(&command->streams[i].watch, EPOLLIN);
    if (command->decided == NULL) {
        command->released = true;
        command_kill_tree(command);
        return;
    }
    if (is_to_be_killed(command))
        command_kill_tree(command); /* which was not to be seen when its owner's was killed */
    decide(command, NULL);
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

static void keeper_ended(struct child *child, int status, const struct rusage *usage)
{
    struct command *command = container_of(child, struct command, keeper);
    (void)status;
    (void)usage;
    read_reports(command);
    watch_stop(&command->status);
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

static void orphan_ended(struct child *child, int status, const struct rusage *usage)
{
    struct command *command = container_of(child, struct command, orphan);
    read_reports(command);
    if (command->state == STATE_RUNNING)
        leader_exited(command, status, usage, wall_clock_ms());
}

/* ---- beginning and leaving --------------------------------------------------------------------------------- */

void command_adopt(struct command *command, pid_t keeper, const int own[3], int status)
{
    bool watched = watch_start(&command->status, status, EPOLLIN, status_ready) == 0;
    child_expect(&command->keeper, keeper, keeper_ended);
    command->id = ++last_id;
    command->started_at = wall_clock_ms();
    watch_start(&command->input, own[0], 0, command_input_ready);
    watch_start(&command->streams[0].watch, own[1], 0, stdout_ready);
    watch_start(&command->streams[1].watch, own[2], 0, stderr_ready);
    command->link = &commands;
    command->next = commands;
    if (commands != NULL)
        commands->link = &command->next;
    commands = command;
    command_count++;
    if (!watched)
        command_kill_tree(command); /* its end is noticed when the keeper is reaped */
}

void command_attach(struct command *command, struct attachment *attachment)
{
    attachment->command = command;
    attachment->link = &command->attachments;
    attachment->next = command->attachments;
    if (attachment->next != NULL)
        attachment->next->link = &attachment->next;
    command->attachments = attachment;
}

void command_detach(struct attachment *attachment)
{
    struct command *command = attachment->command;
    *attachment->link = attachment->next;
    if (attachment->next != NULL)
        attachment->next->link = attachment->link;
    attachment->command = NULL;
    attachment->stdin_waiting = false;
    if (command->writer == attachment) {
        command->writer = NULL;
        command_resume_input(command);
    }
    command_resume_output(command);
    if (command->internal && command->state < STATE_ENDED) {
        command->released = true;
        command_kill_tree(command);
    }
    collect(command);
    trim_ended();
}
