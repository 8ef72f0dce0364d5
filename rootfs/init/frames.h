/*
 * frames.h: reading and writing frames.  No I/O on sockets here: bytes come from and go to buffers.
 */
#ifndef FRAMES_H
#define FRAMES_H

#include "base.h"
#include "protocol.h"

/* A growing queue of bytes: data[start, end). */
struct buffer {
    uint8_t *data;
    size_t start, end, size;
};

size_t buffer_length(const struct buffer *);
/* Room for `extra` more bytes at data + end; -1 when memory is short. */
int buffer_reserve(struct buffer *, size_t extra);
/* Drop `count` bytes from the front; an emptied buffer gives large memory back. */
void buffer_consume(struct buffer *, size_t count);
void buffer_free(struct buffer *);

struct frame {
    uint8_t type;
    uint32_t length;
    const uint8_t *payload;
};

/* The first frame in the buffer, left in place (buffer_consume HEADER_SIZE + length when done with it).
 * 1: *frame is filled in; 0: not there yet, *missing says how many bytes to make room for; -1: protocol error. */
int frame_peek(const struct buffer *, struct frame *, size_t *missing);

struct field {
    uint8_t tag;
    uint32_t length;
    const uint8_t *value;
};

/* Step through the fields of a payload: 1, 0 at the end, -1 when malformed. */
int field_next(const uint8_t **at, const uint8_t *end, struct field *);

struct bytes {
    const uint8_t *data;
    uint32_t length;
};

/* A little-endian number of `width` bytes. */
uint64_t number_at(const uint8_t *bytes, size_t width);

#define TAGS(...) tag_set((const uint8_t[]){__VA_ARGS__, 0})
uint64_t tag_set(const uint8_t *tags);

/* A parsed payload.  Values of absent tags are 0 or empty. */
struct request {
    uint64_t present; /* set of tags */
    const uint8_t *fields, *end;
    uint64_t number[TAG_END];
    struct bytes bytes[TAG_END];
    uint32_t count[TAG_END]; /* of the tags that may repeat */
};

static inline bool has(const struct request *request, enum tag tag)
{
    return request->present >> tag & 1;
}

static inline bool has_flag(const struct request *request, enum flag flag)
{
    return request->number[TAG_FLAGS] & flag;
}

/* -1 when malformed, when a tag outside `allowed` occurs, or when one of `required` is missing. */
int request_parse(const struct frame *, uint64_t allowed, uint64_t required, struct request *);

/* Copy a bytes field as a C string into `text`; -1 when it holds a NUL or does not fit. */
int bytes_to_string(struct bytes, char *text, size_t size);

/* Writing: frame_begin, put_…, frame_end.  Every step returns -1 when memory is short; the frame is then dropped
 * by frame_end, so only that result needs a look. */
struct frame_writer {
    struct buffer *buffer;
    size_t header; /* offset of the frame from buffer->start */
    bool failed;
};

struct frame_writer frame_begin(struct buffer *, enum frame_type);
void put_bytes(struct frame_writer *, enum tag, const void *, size_t length);
void put_string(struct frame_writer *, enum tag, const char *);
void put_number(struct frame_writer *, enum tag, uint64_t); /* in the tag's own width */
void put_raw(struct frame_writer *, const void *, size_t length);
int frame_end(struct frame_writer *);

int put_error(struct buffer *, const struct failure *);
int put_empty(struct buffer *, enum frame_type);

#endif
