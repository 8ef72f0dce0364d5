/*
 * workers.c: see workers.h.
 */
#include "workers.h"
#include "tree.h"
#include "users.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SEND_AT = 32 * 1024,
    RECEIVE_SIZE = 64 * 1024,
    GRACE_MS = 2000, /* for a worker whose client has gone, to clean up */
};

void (*worker_on_hangup)(void);

_Noreturn static void hang_up(void)
{
    if (worker_on_hangup != NULL)
        worker_on_hangup();
    _exit(0);
}

void worker_flush(struct worker *worker)
{
    struct buffer *out = &worker->out;
    while (buffer_length(out) > 0) {
        ssize_t n = send(worker->fd, out->data + out->start, buffer_length(out), MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            hang_up();
        if (n > 0)
            buffer_consume(out, (size_t)n);
    }
}

void worker_send(struct worker *worker)
{
    if (buffer_length(&worker->out) >= SEND_AT)
        worker_flush(worker);
}

void worker_receive(struct worker *worker, struct frame *frame, uint8_t also)
{
    struct buffer *in = &worker->in;
    size_t missing;
    int found;
    while ((found = frame_peek(in, frame, &missing)) == 0) {
        /* Many small frames come with one system call. */
        if (buffer_reserve(in, missing < RECEIVE_SIZE ? RECEIVE_SIZE : missing) < 0)
            hang_up();
        ssize_t n = recv(worker->fd, in->data + in->end, in->size - in->end, 0);
        if (n == 0 || (n < 0 && errno != EINTR))
            hang_up();
        if (n > 0)
            in->end += (size_t)n;
    }
    if (found < 0 || (frame->type != OP_DATA && frame->type != OP_END && (also == 0 || frame->type != also)))
        hang_up();
    /* The bytes stay where they are until the next call makes room. */
    in->start += HEADER_SIZE + frame->length;
}

void worker_check(struct worker *worker)
{
    uint8_t byte;
    if (recv(worker->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
        hang_up();
}

int worker_ok(struct worker *worker)
{
    return put_empty(&worker->out, OP_OK);
}

int worker_ok_with(struct worker *worker, enum tag tag, uint64_t value)
{
    struct frame_writer writer = frame_begin(&worker->out, OP_OK);
    put_number(&writer, tag, value);
    return frame_end(&writer);
}

static int change_user(struct worker *worker, const struct request *request, struct failure *failure)
{
    char name[MAX_NAME];
    struct user user;
    umask(022);
    if (!has(request, TAG_USER))
        return 0;
    if (bytes_to_string(request->bytes[TAG_USER], name, sizeof name) < 0)
        return refuse(failure, EINVAL, "user", "cannot use this user: the name is too long or holds a NUL byte");
    if (user_lookup(name, &user, failure) < 0)
        return -1;
    snprintf(worker->directory, sizeof worker->directory, "%s", user.home);
    return user_become(&user, failure);
}

static int choose_directory(struct worker *worker, const struct request *request, struct failure *failure)
{
    if (!has(request, TAG_CWD) || request->bytes[TAG_CWD].length == 0)
        return 0;
    if (bytes_to_string(request->bytes[TAG_CWD], worker->directory, sizeof worker->directory) < 0 ||
        worker->directory[0] != '/')
        return refuse(failure, EINVAL, "cwd", "cannot use this working directory: it must be absolute, without NUL, "
                                              "and of at most %d bytes", MAX_PATH);
    return 0;
}

/* One that stays has no end of its own: a shutdown's SIGTERM is one, or its grace would always be waited out. */
static void end_with_the_rest(void)
{
    sigset_t asked;
    sigemptyset(&asked);
    sigaddset(&asked, SIGTERM);
    sigprocmask(SIG_UNBLOCK, &asked, NULL);
}

_Noreturn static void run_worker(struct connection *connection, const struct request *request, enum budget budget,
                                 int (*run)(struct worker *, const struct request *, struct failure *))
{
    /* The request's bytes lie in the connection's input, which this process has a copy of. */
    struct worker worker = {.fd = connection->watch.fd, .in = connection->in, .out = connection->out};
    worker.in.start += HEADER_SIZE + (size_t)(request->end - request->fields);
    close_all_but(&worker.fd, 1);
    prctl(PR_SET_NAME, "worker", 0, 0, 0);
    set_nonblocking(worker.fd, false);
    if (budget == BUDGET_WATCHES)
        end_with_the_rest();

    struct failure failure = {0};
    if (change_user(&worker, request, &failure) < 0 || choose_directory(&worker, request, &failure) < 0 ||
        run(&worker, request, &failure) < 0)
        put_error(&worker.out, &failure);
    worker_flush(&worker);
    _exit(0);
}

/* ---- pid 1's side ------------------------------------------------------------------------------------------ */

static const struct role working = {.takes_socket = true};

static void worker_overdue(struct timer *timer)
{
    kill(container_of(timer, struct connection, timer)->worker.pid, SIGKILL);
}

static void client_gone(struct watch *watch, uint32_t events)
{
    struct connection *connection = container_of(watch, struct connection, watch);
    (void)events;
    watch_events(watch, 0);
    timer_start(&connection->timer, GRACE_MS, worker_overdue);
}

static void worker_ended(struct child *child, int status, const struct rusage *usage)
{
    (void)status;
    (void)usage;
    connection_close(container_of(child, struct connection, worker));
}

void worker_start(struct connection *connection, const struct request *request, enum budget budget,
                  int (*run)(struct worker *, const struct request *, struct failure *))
{
    struct failure failure;
    if (connection_charge(connection, budget, &failure) < 0) {
        connection_fail(connection, &failure);
        return;
    }
    pid_t pid = fork();
    if (pid == 0)
        run_worker(connection, request, budget, run);
    if (pid < 0) {
        fail(&failure, errno, "resource", "cannot start a process for the operation");
        connection_fail(connection, &failure);
        return;
    }
    connection_become(connection, &working, NULL);
    child_expect(&connection->worker, pid, worker_ended);
    connection->watch.ready = client_gone;
    connection_expect(connection, NULL);
}

void worker_signal_trees(const pid_t *roots, size_t count, int signo)
{
    if (count == 0 || fork() != 0)
        return;
    unsigned signalled;
    struct failure ignored;
    close_all_but(NULL, 0);
    tree_signal(roots, count, signo, &signalled, &ignored);
    _exit(0);
}
