/*
 * frames.c: the framing of protocol.h over byte buffers.
 */
#include "frames.h"

#include <stdlib.h>
#include <string.h>

enum { BUFFER_MINIMUM = 512, BUFFER_KEEP = 8 * 1024 };

/* The width of each tag's value in bytes; 0 is a byte string. */
static const uint8_t tag_width[TAG_END] = {
    [TAG_COMMAND] = 8,      [TAG_PID] = 4,           [TAG_VERSION] = 4,        [TAG_UPTIME_MS] = 8,
    [TAG_COUNT] = 4,        [TAG_STDIN_MODE] = 1,    [TAG_COLS] = 2,           [TAG_ROWS] = 2,
    [TAG_RING_SIZE] = 4,    [TAG_FLAGS] = 4,         [TAG_LINGER_MS] = 4,      [TAG_STREAM] = 1,
    [TAG_FROM] = 8,         [TAG_TO] = 8,            [TAG_STDOUT_FROM] = 8,    [TAG_STDERR_FROM] = 8,
    [TAG_EXIT_CODE] = 4,    [TAG_EXIT_SIGNAL] = 4,   [TAG_STARTED_AT_MS] = 8,  [TAG_ENDED_AT_MS] = 8,
    [TAG_STDOUT_TOTAL] = 8, [TAG_STDERR_TOTAL] = 8,  [TAG_USER_TIME_US] = 8,   [TAG_SYSTEM_TIME_US] = 8,
    [TAG_MAX_RSS_KB] = 8,   [TAG_ERRNO] = 4,         [TAG_SIGNO] = 4,          [TAG_SCOPE] = 1,
    [TAG_STATE] = 1,        [TAG_STDOUT_OLDEST] = 8, [TAG_STDERR_OLDEST] = 8,  [TAG_BYTES] = 8,
    [TAG_MODE] = 4,         [TAG_DEPTH] = 4,         [TAG_LIMIT] = 4,          [TAG_OFFSET] = 8,
    [TAG_LENGTH] = 8,       [TAG_SIZE] = 8,          [TAG_FILE_TYPE] = 1,      [TAG_UID] = 4,
    [TAG_GID] = 4,          [TAG_MTIME_NS] = 8,      [TAG_PORT] = 2,           [TAG_GRACE_MS] = 4,
    [TAG_CTIME_NS] = 8,
};

static const uint64_t repeatable = 1ull << TAG_ARG | 1ull << TAG_ENV | 1ull << TAG_RLIMIT;

uint64_t number_at(const uint8_t *bytes, size_t width)
{
    uint64_t value = 0;
    for (size_t i = width; i-- > 0;)
        value = value << 8 | bytes[i];
    return value;
}

static void store(uint8_t *bytes, size_t width, uint64_t value)
{
    for (size_t i = 0; i < width; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
}

size_t buffer_length(const struct buffer *buffer)
{
    return buffer->end - buffer->start;
}

int buffer_reserve(struct buffer *buffer, size_t extra)
{
    if (buffer->size - buffer->end >= extra)
        return 0;
    size_t length = buffer_length(buffer);
    if (buffer->start > 0 && buffer->size - length >= extra) {
        memmove(buffer->data, buffer->data + buffer->start, length);
    } else {
        size_t size = buffer->size < BUFFER_MINIMUM ? BUFFER_MINIMUM : buffer->size;
        while (size - length < extra)
            size *= 2;
        uint8_t *data = malloc(size);
        if (data == NULL)
            return -1;
        if (length > 0)
            memcpy(data, buffer->data + buffer->start, length);
        free(buffer->data);
        buffer->data = data;
        buffer->size = size;
    }
    buffer->start = 0;
    buffer->end = length;
    return 0;
}

void buffer_consume(struct buffer *buffer, size_t count)
{
    buffer->start += count;
    if (buffer->start < buffer->end)
        return;
    if (buffer->size > BUFFER_KEEP)
        buffer_free(buffer);
    buffer->start = buffer->end = 0;
}

void buffer_free(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){0};
}

static uint32_t largest_payload(uint8_t type)
{
    return type == OP_STDIN || type == OP_DATA ? MAX_DATA : MAX_PAYLOAD;
}

int frame_peek(const struct buffer *buffer, struct frame *frame, size_t *missing)
{
    size_t length = buffer_length(buffer);
    if (length < HEADER_SIZE) {
        *missing = HEADER_SIZE - length;
        return 0;
    }
    const uint8_t *header = buffer->data + buffer->start;
    *frame = (struct frame){header[4], (uint32_t)number_at(header, 4), header + HEADER_SIZE};
    if (frame->length > largest_payload(frame->type))
        return -1;
    if (length - HEADER_SIZE < frame->length) {
        *missing = HEADER_SIZE + frame->length - length;
        return 0;
    }
    return 1;
}

int field_next(const uint8_t **at, const uint8_t *end, struct field *field)
{
    if (*at == end)
        return 0;
    if (end - *at < HEADER_SIZE)
        return -1;
    field->tag = (*at)[0];
    field->length = (uint32_t)number_at(*at + 1, 4);
    field->value = *at + HEADER_SIZE;
    if (field->length > (size_t)(end - field->value))
        return -1;
    *at = field->value + field->length;
    return 1;
}

uint64_t tag_set(const uint8_t *tags)
{
    uint64_t set = 0;
    for (; tags != NULL && *tags != 0; tags++)
        set |= 1ull << *tags;
    return set;
}

int request_parse(const struct frame *frame, uint64_t allowed, uint64_t required, struct request *request)
{
    *request = (struct request){.fields = frame->payload, .end = frame->payload + frame->length};
    const uint8_t *at = request->fields;
    struct field field;
    int more;
    while ((more = field_next(&at, request->end, &field)) == 1) {
        if (field.tag >= TAG_END || !(allowed >> field.tag & 1))
            return -1;
        if (has(request, field.tag) && !(repeatable >> field.tag & 1))
            return -1;
        size_t width = tag_width[field.tag];
        if ((width != 0 && field.length != width) || (field.tag == TAG_RLIMIT && field.length != RLIMIT_SIZE))
            return -1;
        request->present |= 1ull << field.tag;
        request->number[field.tag] = width != 0 ? number_at(field.value, width) : 0;
        request->bytes[field.tag] = (struct bytes){field.value, field.length};
        request->count[field.tag]++;
    }
    return more == 0 && (request->present & required) == required ? 0 : -1;
}

int bytes_to_string(struct bytes bytes, char *text, size_t size)
{
    if (bytes.length >= size || (bytes.length > 0 && memchr(bytes.data, 0, bytes.length) != NULL))
        return -1;
    if (bytes.length > 0)
        memcpy(text, bytes.data, bytes.length);
    text[bytes.length] = 0;
    return 0;
}

struct frame_writer frame_begin(struct buffer *buffer, enum frame_type type)
{
    struct frame_writer writer = {.buffer = buffer, .header = buffer_length(buffer)};
    uint8_t header[HEADER_SIZE] = {0, 0, 0, 0, (uint8_t)type};
    put_raw(&writer, header, sizeof header);
    return writer;
}

void put_raw(struct frame_writer *writer, const void *data, size_t length)
{
    struct buffer *buffer = writer->buffer;
    if (writer->failed || buffer_reserve(buffer, length) < 0) {
        writer->failed = true;
        return;
    }
    if (length > 0)
        memcpy(buffer->data + buffer->end, data, length);
    buffer->end += length;
}

void put_bytes(struct frame_writer *writer, enum tag tag, const void *data, size_t length)
{
    uint8_t header[HEADER_SIZE] = {(uint8_t)tag};
    store(header + 1, 4, length);
    put_raw(writer, header, sizeof header);
    put_raw(writer, data, length);
}

void put_string(struct frame_writer *writer, enum tag tag, const char *text)
{
    put_bytes(writer, tag, text, strlen(text));
}

void put_number(struct frame_writer *writer, enum tag tag, uint64_t value)
{
    uint8_t bytes[8];
    store(bytes, tag_width[tag], value);
    put_bytes(writer, tag, bytes, tag_width[tag]);
}

int frame_end(struct frame_writer *writer)
{
    struct buffer *buffer = writer->buffer;
    size_t start = buffer->start + writer->header;
    if (writer->failed) {
        buffer->end = buffer->data == NULL ? 0 : start;
        return -1;
    }
    store(buffer->data + start, 4, buffer->end - start - HEADER_SIZE);
    return 0;
}

int put_error(struct buffer *buffer, const struct failure *failure)
{
    struct frame_writer writer = frame_begin(buffer, OP_ERROR);
    put_number(&writer, TAG_ERRNO, (uint32_t)failure->error);
    put_string(&writer, TAG_KIND, failure->kind);
    put_string(&writer, TAG_MESSAGE, failure->message);
    if (failure->has_offset)
        put_number(&writer, TAG_OFFSET, failure->offset);
    return frame_end(&writer);
}

int put_empty(struct buffer *buffer, enum frame_type type)
{
    struct frame_writer writer = frame_begin(buffer, type);
    return frame_end(&writer);
}
