/*
 * attachments.c: see attachments.h.
 *
 * Bytes wait in three places only: in the ring (output), in the client's socket, and in the connection's own input
 * (one STDIN frame that the command has not taken).  Whoever is slow waits or, reading lossily, is told of the gap.
 */
#include "attachments.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static const uint8_t stream_numbers[2] = {STREAM_STDOUT, STREAM_STDERR};

/* ---- output ------------------------------------------------------------------------------------------------ */

static void put_gap(struct attachment *attachment, int stream, uint64_t to)
{
    struct frame_writer writer = frame_begin(&attachment->connection->out, OP_GAP);
    put_number(&writer, TAG_STREAM, stream_numbers[stream]);
    put_number(&writer, TAG_FROM, attachment->cursor[stream]);
    put_number(&writer, TAG_TO, to);
    if (frame_end(&writer) == 0)
        attachment->cursor[stream] = to;
}

static void put_output(struct attachment *attachment, int stream, const struct ring *ring)
{
    struct buffer *out = &attachment->connection->out;
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
    struct buffer *out = &attachment->connection->out;
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
    struct connection *connection = attachment->connection;
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

static void attachment_pump(struct connection *connection)
{
    struct attachment *attachment = connection->subject;
    while (connection_flush(connection) && attachment->command != NULL && produce(attachment))
        continue;
    if (attachment->command != NULL && attachment->lossless)
        command_resume_output(attachment->command);
}

/* ---- input ------------------------------------------------------------------------------------------------- */

static enum received stop_waiting(struct attachment *attachment)
{
    command_leave_input(attachment);
    return FRAME_TAKEN;
}

static enum received wait_for_input(struct attachment *attachment)
{
    command_await_input(attachment);
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
    struct attachment *attachment = connection->subject;
    struct command *command = attachment->command;
    switch (frame->type) {
    case OP_STDIN:
        return receive_stdin(attachment, frame);
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
        connection_pump(connection);
    return received;
}

/* ---- beginning and end ------------------------------------------------------------------------------------- */

static void attachment_end(struct connection *connection)
{
    struct attachment *attachment = connection->subject;
    command_detach(attachment);
    attachment_free(attachment);
}

static const struct role attached = {.closed = attachment_end, .pump = attachment_pump};

struct attachment *attachment_new(struct connection *connection)
{
    struct attachment *attachment = calloc(1, sizeof *attachment);
    if (attachment != NULL)
        attachment->connection = connection;
    return attachment;
}

void attachment_free(struct attachment *attachment)
{
    loop_free_later(&attachment->dead);
}

void attachment_begin_stdin(struct attachment *attachment, struct command *command)
{
    command_attach(command, attachment);
    connection_become(attachment->connection, &attached, attachment);
    connection_expect(attachment->connection, receive_and_answer);
}

void attachment_begin(struct attachment *attachment, struct command *command)
{
    for (int i = 0; i < 2; i++) {
        /* "now", and offsets that were never written. */
        if (attachment->cursor[i] > command->streams[i].ring.end)
            attachment->cursor[i] = command->streams[i].ring.end;
    }
    attachment_begin_stdin(attachment, command);
    connection_pump(attachment->connection);
}
