/*
 * relay.c: see relay.h.
 *
 * Each direction has one buffer; reading waits until it has been written out, so that a slow reader slows the
 * writer.  An end of file is passed on as a half-close.
 */
#include "relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { RELAY_BUFFER = 32 * 1024 };

struct direction {
    struct buffer buffer;
    bool ended;  /* the source has */
    bool closed; /* and the target was told */
};

struct relay {
    struct dead dead;
    struct connection *connection;
    struct watch upstream;
    struct direction up, down; /* to the sandbox, to the client */
    uint16_t port; /* 0: a socket path */
    bool tried_ipv6, connected;
};

static void relay_free(struct relay *relay)
{
    watch_stop(&relay->upstream);
    buffer_free(&relay->up.buffer);
    buffer_free(&relay->down.buffer);
    loop_free_later(&relay->dead);
}

/* Move what can be moved now.  -1: the relay is broken. */
static int move(struct direction *direction, int from, int to)
{
    struct buffer *buffer = &direction->buffer;
    for (;;) {
        while (buffer_length(buffer) > 0) {
            ssize_t n = send(to, buffer->data + buffer->start, buffer_length(buffer), MSG_NOSIGNAL);
            if (n < 0 && errno == EAGAIN)
                return 0;
            if (n < 0 && errno != EINTR)
                return -1;
            if (n > 0)
                buffer_consume(buffer, (size_t)n);
        }
        if (direction->ended) {
            if (!direction->closed)
                shutdown(to, SHUT_WR);
            direction->closed = true;
            return 0;
        }
        if (buffer_reserve(buffer, RELAY_BUFFER) < 0)
            return -1;
        ssize_t n = recv(from, buffer->data + buffer->end, buffer->size - buffer->end, 0);
        if (n < 0 && errno == EAGAIN) {
            buffer_free(buffer); /* idle connections should cost little */
            return 0;
        }
        if (n < 0 && errno != EINTR)
            return -1;
        direction->ended = n == 0;
        if (n > 0)
            buffer->end += (size_t)n;
    }
}

static uint32_t interest(const struct direction *from_here, const struct direction *to_here)
{
    bool reads = !from_here->ended && buffer_length(&from_here->buffer) == 0;
    bool writes = buffer_length(&to_here->buffer) > 0;
    return (reads ? EPOLLIN : 0) | (writes ? EPOLLOUT : 0);
}

static void relay_move(struct relay *relay)
{
    int client = relay->connection->watch.fd, upstream = relay->upstream.fd;
    if (!relay->up.closed && move(&relay->up, client, upstream) < 0) {
        /* A server that refuses an upload answers and closes, unread bytes or not: its answer still waits here. */
        buffer_free(&relay->up.buffer);
        relay->up.ended = relay->up.closed = true;
    }
    bool broken = move(&relay->down, upstream, client) < 0;
    /* A program that writes its answer in two pieces, and most do, has the second held back (Nagle) until the first is
     * acknowledged, which the kernel would put off by 40 ms.  The option does not last. */
    if (relay->port != 0)
        setsockopt(upstream, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
    if (broken || (relay->up.closed && relay->down.closed)) {
        connection_close(relay->connection);
        return;
    }
    /* The client is always watched for going away altogether; upstream not, since its last bytes may still wait. */
    watch_events(&relay->connection->watch, interest(&relay->up, &relay->down) | EPOLLHUP);
    watch_events(&relay->upstream, interest(&relay->down, &relay->up));
}

static void client_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = container_of(watch, struct connection, watch);
    struct relay *relay = connection->subject;
    bool gone = events & EPOLLERR || (events & EPOLLHUP && !(events & EPOLLIN));
    if (gone || !relay->connected)
        connection_close(connection);
    else
        relay_move(relay);
}

static void upstream_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    relay_move(container_of(watch, struct relay, upstream));
}

static void relay_connected(struct relay *relay)
{
    struct connection *connection = relay->connection;
    relay->connected = true;
    /* Bytes the client sent ahead go first, and so does the OK. */
    relay->up.buffer = connection->in;
    relay->down.buffer = connection->out;
    connection->in = connection->out = (struct buffer){0};
    relay->upstream.ready = upstream_ready;
    if (put_empty(&relay->down.buffer, OP_OK) < 0)
        connection_close(connection);
    else
        relay_move(relay);
}

static void try_next(struct relay *relay, int error);

static void connect_ready(struct watch *watch, uint32_t events)
{
    struct relay *relay = container_of(watch, struct relay, upstream);
    int error = 0;
    socklen_t length = sizeof error;
    (void)events;
    if (getsockopt(watch->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
        error = errno;
    if (error == 0)
        relay_connected(relay);
    else
        try_next(relay, error);
}

/* Begin to connect; 0, or the error. */
static int begin_connect(struct relay *relay, const struct sockaddr *address, socklen_t length)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    if (address->sa_family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(fd, address, length) < 0 && errno != EINPROGRESS) {
        int error = errno;
        close(fd);
        return error;
    }
    /* Writable when connected, whether that was at once or not. */
    return watch_start(&relay->upstream, fd, EPOLLOUT, connect_ready) < 0 ? ENOMEM : 0;
}

static int connect_ipv4(struct relay *relay)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(relay->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return begin_connect(relay, (const struct sockaddr *)(const void *)&address, sizeof address);
}

static int connect_ipv6(struct relay *relay)
{
    struct sockaddr_in6 address = {
        .sin6_family = AF_INET6, .sin6_port = htons(relay->port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    relay->tried_ipv6 = true;
    return begin_connect(relay, (const struct sockaddr *)(const void *)&address, sizeof address);
}

static void give_up(struct relay *relay, int error, const char *what)
{
    struct failure failure;
    struct connection *connection = relay->connection;
    fail(&failure, error, "connect", "cannot connect to %s", what);
    connection_become(connection, NULL, NULL);
    relay_free(relay);
    connection_fail(connection, &failure);
}

static void try_next(struct relay *relay, int error)
{
    watch_stop(&relay->upstream);
    if (relay->port != 0 && !relay->tried_ipv6 && connect_ipv6(relay) == 0)
        return;
    /* What the first address said is the better reason: often there is no IPv6 at all. */
    char what[16];
    snprintf(what, sizeof what, "port %u", relay->port);
    give_up(relay, error, relay->port != 0 ? what : "the socket");
}

static void connect_path(struct relay *relay, struct bytes path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int error = EINVAL;
    if (path.length > 0 && path.data[0] == '/' && bytes_to_string(path, address.sun_path, sizeof address.sun_path) == 0)
        error = begin_connect(relay, (const struct sockaddr *)(const void *)&address, sizeof address);
    if (error != 0)
        give_up(relay, error, "the socket: its path must be absolute, shorter than 108 bytes, and be listened on");
}

static void relay_closed(struct connection *connection)
{
    relay_free(connection->subject);
}

static const struct role relaying = {.closed = relay_closed, .takes_socket = true};

void relay_start(struct connection *connection, const struct request *request)
{
    struct failure failure;
    if (connection_charge(connection, BUDGET_FOLLOWERS, &failure) < 0) {
        connection_fail(connection, &failure);
        return;
    }
    struct relay *relay = calloc(1, sizeof *relay);
    if (relay == NULL) {
        connection_close(connection);
        return;
    }
    relay->connection = connection;
    relay->upstream.fd = -1;
    relay->port = (uint16_t)request->number[TAG_PORT];
    connection_become(connection, &relaying, relay);
    connection->watch.ready = client_ready;
    connection_expect(connection, NULL);
    if (!has(request, TAG_PORT)) {
        connect_path(relay, request->bytes[TAG_PATH]);
        return;
    }
    int error = connect_ipv4(relay);
    if (error != 0)
        try_next(relay, error);
}
