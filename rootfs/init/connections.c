/*
 * connections.c: accepting, reading, writing and closing.  What a frame means is decided by those that receive it.
 */
#include "connections.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    MAX_OUTSIDE = 1344,
    MAX_INSIDE = 32,
    MAX_INSIDE_REQUEST = 256 * 1024,
    ACCEPTS_PER_EVENT = 16,
    ACCEPT_BACKOFF_MS = 100,   /* after running out of descriptors or memory */
    INSIDE_REQUEST_MS = 5000,  /* a process of the sandbox must have asked by then */
    READ_SIZE = 4096,
};

struct listener {
    struct watch watch;
    struct timer backoff;
    bool inside;
    size_t count, limit;
    enum received (*first)(struct connection *, const struct frame *);
};

static struct listener outside_listener = {.watch.fd = -1, .limit = MAX_OUTSIDE};
static struct listener inside_listener = {.watch.fd = -1, .limit = MAX_INSIDE, .inside = true};
static struct connection *connections;

/* ---- closing ----------------------------------------------------------------------------------------------- */

static struct listener *listener_of(const struct connection *connection)
{
    return connection->inside ? &inside_listener : &outside_listener;
}

void connection_become(struct connection *connection, const struct role *role, void *subject)
{
    connection->role = role;
    connection->subject = subject;
}

/* No role any more; who had it lets go. */
static void leave_role(struct connection *connection)
{
    const struct role *role = connection->role;
    if (role != NULL && role->closed != NULL)
        role->closed(connection);
    connection_become(connection, NULL, NULL);
}

void connection_close(struct connection *connection)
{
    if (!connection_is_open(connection))
        return;
    watch_stop(&connection->watch);
    timer_stop(&connection->timer);
    child_forget(&connection->worker);
    leave_role(connection);
    for (size_t i = 0; i < connection->passed_count; i++)
        close(connection->passed[i]);
    buffer_free(&connection->in);
    buffer_free(&connection->out);

    *connection->link = connection->next;
    if (connection->next != NULL)
        connection->next->link = connection->link;
    struct listener *listener = listener_of(connection);
    listener->count--;
    if (listener->backoff.link == NULL)
        watch_events(&listener->watch, EPOLLIN);
    loop_free_later(&connection->dead);
}

static void request_overdue(struct timer *timer)
{
    connection_close(container_of(timer, struct connection, timer));
}

/* ---- budgets ----------------------------------------------------------------------------------------------- */

static const struct {
    unsigned limit;
    const char *what;
} budgets[BUDGET_END] = {
    [BUDGET_FOLLOWERS] = {MAX_FOLLOWERS, "commands, writers to stdin and connections to ports"},
    [BUDGET_ATTACHED] = {MAX_ATTACHED, "attachments to running commands"},
    [BUDGET_WORKERS] = {MAX_WORKERS, "file operations"},
    [BUDGET_WATCHES] = {MAX_WATCHES, "watches"},
    [BUDGET_SIGNALS] = {MAX_SIGNALS, "signals"},
};

_Static_assert(MAX_FOLLOWERS + MAX_ATTACHED + MAX_WORKERS + MAX_WATCHES + MAX_SIGNALS + 128 <= MAX_OUTSIDE,
               "connections are left for what is answered at once");

int connection_charge(struct connection *connection, enum budget budget, struct failure *failure)
{
    unsigned count = 0;
    /* What comes from inside has connections of its own. */
    if (budget == BUDGET_NONE || connection->inside)
        return 0;
    for (const struct connection *other = connections; other != NULL; other = other->next)
        count += other->budget == budget;
    if (count >= budgets[budget].limit)
        return refuse(failure, EAGAIN, "too_many", "cannot have more than %u %s at once", budgets[budget].limit,
                      budgets[budget].what);
    connection->budget = budget;
    return 0;
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

static void update_interest(struct connection *connection)
{
    bool reading = connection->receive != NULL && !connection->waiting && !connection->closing;
    bool writing = buffer_length(&connection->out) > 0;
    /* A hang-up must be noticed even while a frame waits. */
    watch_events(&connection->watch, (reading ? EPOLLIN : 0) | (writing ? EPOLLOUT : 0) | EPOLLRDHUP);
}

static void start_over(struct connection *connection)
{
    leave_role(connection);
    connection->budget = BUDGET_NONE;
    connection->closing = connection->keep = false;
    connection_expect(connection, listener_of(connection)->first);
}

bool connection_flush(struct connection *connection)
{
    if (!connection_is_open(connection))
        return true;
    struct buffer *out = &connection->out;
    while (buffer_length(out) > 0) {
        ssize_t n = send(connection->watch.fd, out->data + out->start, buffer_length(out), MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            update_interest(connection);
            return false;
        }
        if (n < 0) {
            connection_close(connection);
            return true;
        }
        buffer_consume(out, (size_t)n);
    }
    if (connection->closing && connection->keep)
        start_over(connection);
    else if (connection->closing)
        connection_close(connection);
    else
        update_interest(connection);
    return true;
}

void connection_pump(struct connection *connection)
{
    if (connection->role != NULL && connection->role->pump != NULL)
        connection->role->pump(connection);
    else
        connection_flush(connection);
}

void connection_conclude(struct connection *connection)
{
    connection->closing = true;
    connection_flush(connection);
}

void connection_finish(struct connection *connection)
{
    connection->keep = false;
    connection_conclude(connection);
}

void connection_fail(struct connection *connection, const struct failure *failure)
{
    put_error(&connection->out, failure);
    connection_finish(connection);
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

void connection_expect(struct connection *connection,
                       enum received (*receive)(struct connection *, const struct frame *))
{
    connection->receive = receive;
    update_interest(connection);
}

/* Hand over complete frames while somebody wants them. */
static void process(struct connection *connection, size_t *missing)
{
    *missing = 0;
    while (connection_is_open(connection) && connection->receive != NULL && !connection->closing) {
        struct frame frame;
        int found = frame_peek(&connection->in, &frame, missing);
        if (found == 0)
            return;
        enum received received = found < 0 ? FRAME_REFUSED : connection->receive(connection, &frame);
        if (received == FRAME_REFUSED) {
            connection_close(connection);
            return;
        }
        connection->waiting = received == FRAME_WAITS;
        if (connection->waiting || !connection_is_open(connection))
            break;
        buffer_consume(&connection->in, HEADER_SIZE + frame.length);
    }
    if (connection_is_open(connection) && (connection->role == NULL || !connection->role->takes_socket))
        update_interest(connection);
}

void connection_resume(struct connection *connection)
{
    size_t missing;
    connection->waiting = false;
    process(connection, &missing);
}

/* musl's CMSG_NXTHDR does not survive -Wsign-conversion. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"

/* Keep what came by SCM_RIGHTS if it is what an honest sudo sends: up to three descriptors, once. */
static bool take_descriptors(struct connection *connection, struct msghdr *message)
{
    bool honest = !(message->msg_flags & MSG_CTRUNC);
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
            if (connection->passed_count < ARRAY_SIZE(connection->passed)) {
                connection->passed[connection->passed_count++] = fd;
            } else {
                close(fd);
                honest = false;
            }
        }
    }
    return honest;
}

#pragma GCC diagnostic pop

static ssize_t receive_bytes(struct connection *connection, void *data, size_t size)
{
    int fd = connection->watch.fd;
    if (!connection->inside)
        return recv(fd, data, size, 0);
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = data, .iov_len = size};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (n >= 0 && !take_descriptors(connection, &message)) {
        errno = EPROTO;
        return -1;
    }
    return n;
}

static void read_input(struct connection *connection)
{
    struct buffer *in = &connection->in;
    for (size_t missing = HEADER_SIZE; missing > 0;) {
        size_t wanted = missing > READ_SIZE ? missing : READ_SIZE;
        /* Memory follows the bytes that have come, not the length that was announced. */
        if (wanted > MAX_DATA + HEADER_SIZE)
            wanted = MAX_DATA + HEADER_SIZE;
        bool too_much = connection->inside && buffer_length(in) > MAX_INSIDE_REQUEST;
        if (too_much || buffer_reserve(in, wanted) < 0) {
            connection_close(connection);
            return;
        }
        ssize_t n = receive_bytes(connection, in->data + in->end, in->size - in->end);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            buffer_consume(in, 0);
            return;
        }
        if (n <= 0) {
            connection_close(connection);
            return;
        }
        in->end += (size_t)n;
        process(connection, &missing);
        if (!connection_is_open(connection) || connection->waiting || connection->receive == NULL)
            return;
    }
}

static void connection_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = container_of(watch, struct connection, watch);
    if (events & EPOLLOUT) {
        connection_pump(connection);
        if (!connection_is_open(connection))
            return;
    }
    if (events & EPOLLIN)
        read_input(connection);
    else if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        connection_close(connection);
}

/* ---- accepting --------------------------------------------------------------------------------------------- */

static void backoff_ended(struct timer *timer)
{
    struct listener *listener = container_of(timer, struct listener, backoff);
    if (listener->count < listener->limit)
        watch_events(&listener->watch, EPOLLIN);
}

static void back_off(struct listener *listener)
{
    watch_events(&listener->watch, 0);
    timer_start(&listener->backoff, ACCEPT_BACKOFF_MS, backoff_ended);
}

/* The peer must be a process that this pid namespace knows: the abstract name would also be reachable from another
 * sandbox if both were given the host's network. */
static bool identify_peer(struct connection *connection, int fd)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0 || peer.pid <= 0)
        return false;
    connection->peer_pid = peer.pid;
    connection->peer_uid = peer.uid;
    return true;
}

static struct connection *open_connection(struct listener *listener, int fd)
{
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL || (listener->inside && !identify_peer(connection, fd))) {
        free(connection);
        close(fd);
        return NULL;
    }
    connection->inside = listener->inside;
    connection->receive = listener->first;
    if (watch_start(&connection->watch, fd, EPOLLIN | EPOLLRDHUP, connection_ready) < 0) {
        free(connection);
        return NULL;
    }
    connection->link = &connections;
    connection->next = connections;
    if (connections != NULL)
        connections->link = &connection->next;
    connections = connection;
    listener->count++;
    if (listener->inside)
        timer_start(&connection->timer, INSIDE_REQUEST_MS, request_overdue);
    return connection;
}

static void listener_ready(struct watch *watch, uint32_t events)
{
    struct listener *listener = container_of(watch, struct listener, watch);
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_EVENT && watch_is_open(watch); i++) {
        if (listener->count >= listener->limit) {
            watch_events(watch, 0);
            return;
        }
        int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                back_off(listener);
            return;
        }
        struct connection *connection = open_connection(listener, fd);
        /* The request is most often there already. */
        if (connection != NULL)
            read_input(connection);
    }
}

int connections_listen(int fd, bool inside, enum received (*first)(struct connection *, const struct frame *))
{
    struct listener *listener = inside ? &inside_listener : &outside_listener;
    listener->first = first;
    set_nonblocking(fd, true);
    return watch_start(&listener->watch, fd, EPOLLIN, listener_ready);
}

void connections_stop_listening(void)
{
    struct listener *listeners[] = {&outside_listener, &inside_listener};
    for (size_t i = 0; i < ARRAY_SIZE(listeners); i++) {
        timer_stop(&listeners[i]->backoff);
        watch_stop(&listeners[i]->watch);
    }
}
