/*
 * attachments.c: see attachments.h.
 *
 * Bytes wait in three places only: in the ring (output), in the client's socket, and in the connection's own input
 * (one STDIN frame that the command has not taken).  Whoever is slow waits or, reading lossily, is told of the gap.
 */
#include "attachments.h"
#include "commands.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static const uint8_t stream_numbers[2] = {STREAM_STDOUT, STREAM_STDERR};

static struct connection *connection_of(struct attachment *attachment)
{
    return container_of(attachment, struct connection, attachment);
}

/* ---- output ------------------------------------------------------------------------------------------------ */

uint64_t attachments_slowest(const struct command *command, int stream)
{
    uint64_t slowest = UINT64_MAX;
    for (const struct attachment *attachment = command->attachments; attachment; attachment = attachment->next) {
        if (attachment->lossless && attachment->wants_output && attachment->cursor[stream] < slowest)
            slowest = attachment->cursor[stream];
    }
    return slowest;
}

static void put_gap(struct attachment *attachment, int stream, uint64_t to)
{
    struct frame_writer writer = frame_begin(&connection_of(attachment)->out, OP_GAP);
    put_number(&writer, TAG_STREAM, stream_numbers[stream]);
    put_number(&writer, TAG_FROM, attachment->cursor[stream]);
    put_number(&writer, TAG_TO, to);
    if (frame_end(&writer) == 0)
        attachment->cursor[stream] = to;
}

static void put_output(struct attachment *attachment, int stream, const struct ring *ring)
{
    struct buffer *out = &connection_of(attachment)->out;
    uint64_t offset = attachment->cursor[stream], length = ring->end - offset;
    if (length > MAX_DATA)
        length = MAX_DATA;
    uint8_t place[9] = {stream_numbers[stream]};
    for (int i = 0; i < 8; i++)
        place[1 + i] = (uint8_t)(offset >> (8 * i));

    struct frame_writer writer = frame_begin(out, OP_OUTPUT);
    put_raw(&writer, place, sizeof place);
    if (!writer.failed && buffer_reserve(out, length) == 0) {
        ring_copy(ring, offset, out->data + out->end, length);
        out->end += length;
    } else {
        writer.failed = true;
    }
    if (frame_end(&writer) == 0)
        attachment->cursor[stream] += length;
}

static void produce_output(struct attachment *attachment)
{
    for (int i = 0; i < 2; i++) {
        const struct ring *ring = &attachment->command->streams[i].ring;
        if (attachment->cursor[i] < ring->start)
            put_gap(attachment, i, ring->start);
        if (attachment->cursor[i] >= ring->start && attachment->cursor[i] < ring->end)
            put_output(attachment, i, ring);
    }
}

static bool all_sent(const struct attachment *attachment)
{
    const struct stream *streams = attachment->command->streams;
    return !attachment->wants_output ||
           (attachment->cursor[0] >= streams[0].ring.end && attachment->cursor[1] >= streams[1].ring.end);
}

static void produce_stdin_answers(struct attachment *attachment)
{
    struct buffer *out = &connection_of(attachment)->out;
    if (attachment->stdin_acknowledged != attachment->stdin_taken) {
        struct frame_writer writer = frame_begin(out, OP_STDIN_ACK);
        put_number(&writer, TAG_BYTES, attachment->stdin_taken);
        if (frame_end(&writer) == 0)
            attachment->stdin_acknowledged = attachment->stdin_taken;
    }
    if (attachment->stdin_state == STDIN_REFUSED && put_empty(out, OP_STDIN_CLOSED) == 0)
        attachment->stdin_state = STDIN_REFUSAL_SENT;
}

/* Queue the next portion of what is due.  False when nothing was queued. */
static bool produce(struct attachment *attachment)
{
    struct connection *connection = connection_of(attachment);
    size_t before = buffer_length(&connection->out);
    produce_stdin_answers(attachment);
    if (attachment->wants_output)
        produce_output(attachment);
    if (attachment->wants_exit && attachment->command->state == STATE_ENDED && all_sent(attachment)) {
        /* What has come for this command must not be taken for the next operation. */
        if (buffer_length(&connection->in) > 0)
            connection->keep = false;
        if (command_put_exit(attachment->command, connection->keep ? FLAG_KEEP : 0, &connection->out) == 0)
            connection->closing = true;
    }
    return buffer_length(&connection->out) > before;
}

void attachment_pump(struct connection *connection)
{
    struct attachment *attachment = &connection->attachment;
    while (connection_flush(connection) && attachment->command != NULL && produce(attachment))
        continue;
    if (attachment->command != NULL && attachment->lossless)
        command_resume_output(attachment->command);
}

/* ---- input ------------------------------------------------------------------------------------------------- */

static enum received stop_waiting(struct attachment *attachment)
{
    struct command *command = attachment->command;
    attachment->stdin_written = 0;
    if (command->writer == attachment)
        command->writer = NULL;
    return FRAME_TAKEN;
}

static enum received wait_for_input(struct attachment *attachment)
{
    attachment->stdin_waiting = true;
    watch_events(&attachment->command->input, EPOLLOUT);
    return FRAME_WAITS;
}

/* Write one STDIN frame, perhaps in several goes; the frames of two connections never mix. */
static enum received receive_stdin(struct attachment *attachment, const struct frame *frame)
{
    struct command *command = attachment->command;
    attachment->stdin_waiting = false;
    if (command->writer != NULL && command->writer != attachment)
        return wait_for_input(attachment);
    while (attachment->stdin_written < frame->length) {
        if (!watch_is_open(&command->input)) {
            if (attachment->stdin_state == STDIN_USABLE)
                attachment->stdin_state = STDIN_REFUSED;
            return stop_waiting(attachment);
        }
        ssize_t n = write(command->input.fd, frame->payload + attachment->stdin_written,
                          frame->length - attachment->stdin_written);
        if (n < 0 && errno == EAGAIN) {
            command->writer = attachment;
            return wait_for_input(attachment);
        }
        if (n < 0 && errno != EINTR) {
            command_close_input(command);
        } else if (n > 0) {
            attachment->stdin_written += (size_t)n;
            attachment->stdin_taken += (size_t)n;
        }
    }
    return stop_waiting(attachment);
}

static void resume_waiting(struct command *command)
{
    for (struct attachment *next, *attachment = command->attachments; attachment != NULL; attachment = next) {
        next = attachment->next;
        bool turn = command->writer == NULL || command->writer == attachment;
        if (!attachment->stdin_waiting || !turn)
            continue;
        connection_resume(connection_of(attachment));
        attachment_pump(connection_of(attachment));
    }
}

static bool anyone_waits(const struct command *command)
{
    for (const struct attachment *attachment = command->attachments; attachment; attachment = attachment->next) {
        if (attachment->stdin_waiting)
            return true;
    }
    return false;
}

void attachments_input_ready(struct watch *watch, uint32_t events)
{
    struct command *command = container_of(watch, struct command, input);
    (void)events;
    resume_waiting(command);
    if (!anyone_waits(command))
        watch_events(&command->input, 0);
}

void attachments_input_closed(struct command *command)
{
    command->writer = NULL;
    resume_waiting(command);
}

/* ---- messages of an attached connection -------------------------------------------------------------------- */

static enum received receive_resize(struct command *command, const struct frame *frame)
{
    struct request request;
    struct failure ignored;
    uint64_t tags = TAGS(TAG_COLS, TAG_ROWS);
    if (request_parse(frame, tags, tags, &request) < 0)
        return FRAME_REFUSED;
    command_resize(command, (uint16_t)request.number[TAG_COLS], (uint16_t)request.number[TAG_ROWS], &ignored);
    return FRAME_TAKEN;
}

static enum received receive_signal(struct command *command, const struct frame *frame)
{
    struct request request;
    struct failure ignored;
    if (request_parse(frame, TAGS(TAG_SIGNO, TAG_SCOPE), TAGS(TAG_SIGNO), &request) < 0)
        return FRAME_REFUSED;
    if (request.number[TAG_SIGNO] > 64 || request.number[TAG_SCOPE] > SCOPE_TREE)
        return FRAME_REFUSED;
    command_signal_any(command, (int)request.number[TAG_SIGNO], (enum signal_scope)request.number[TAG_SCOPE], &ignored);
    return FRAME_TAKEN;
}

static enum received receive_message(struct connection *connection, const struct frame *frame)
{
    struct command *command = connection->attachment.command;
    switch (frame->type) {
    case OP_STDIN:
        return receive_stdin(&connection->attachment, frame);
    case OP_STDIN_EOF:
        command_end_input(command);
        return FRAME_TAKEN;
    case OP_RESIZE:
        return receive_resize(command, frame);
    case OP_SIGNAL:
        return receive_signal(command, frame);
    default:
        return FRAME_REFUSED;
    }
}

static enum received receive_and_answer(struct connection *connection, const struct frame *frame)
{
    enum received received = receive_message(connection, frame);
    if (received != FRAME_REFUSED)
        attachment_pump(connection);
    return received;
}

/* ---- beginning and end ------------------------------------------------------------------------------------- */

static void attach(struct connection *connection, struct command *command)
{
    struct attachment *attachment = &connection->attachment;
    attachment->command = command;
    attachment->link = &command->attachments;
    attachment->next = command->attachments;
    if (attachment->next != NULL)
        attachment->next->link = &attachment->next;
    command->attachments = attachment;
    connection_expect(connection, receive_and_answer);
}

void attachment_begin(struct connection *connection, struct command *command)
{
    struct attachment *attachment = &connection->attachment;
    for (int i = 0; i < 2; i++) {
        /* "now", and offsets that were never written. */
        if (attachment->cursor[i] > command->streams[i].ring.end)
            attachment->cursor[i] = command->streams[i].ring.end;
    }
    attach(connection, command);
    attachment_pump(connection);
}

void attachment_begin_stdin(struct connection *connection, struct command *command)
{
    attach(connection, command);
}

void attachment_end(struct connection *connection)
{
    struct attachment *attachment = &connection->attachment;
    struct command *command = attachment->command;
    if (command == NULL)
        return;
    *attachment->link = attachment->next;
    if (attachment->next != NULL)
        attachment->next->link = attachment->link;
    attachment->command = NULL;
    attachment->stdin_waiting = false;
    if (command->writer == attachment) {
        command->writer = NULL;
        watch_events(&command->input, anyone_waits(command) ? EPOLLOUT : 0);
    }
    command_resume_output(command);
    command_detached(command);
}
