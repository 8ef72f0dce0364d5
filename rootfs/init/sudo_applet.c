/*
 * sudo_applet.c: the `sudo` of a sandbox, a client of init; see sudo.h.
 *
 * It understands what scripts and people use (usage() has it all).  There are no passwords, so that what is about them
 * does nothing; what it cannot do it refuses by name.
 */
#include "sudo.h"
#include "frames.h"
#include "users.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

enum { MAX_TYPED_AHEAD = 32 * 1024, TYPED_SIZE = 4 * 1024, EXIT_FAILED = 1, EXIT_BY_SIGNAL = 128 };

extern char **environ;

struct options {
    const char *user, *group; /* group NULL: the user's own */
    const char *preserved;    /* names, separated by commas */
    bool preserve, login, shell, nothing;
};

struct applet {
    int connection, signals;
    bool terminal; /* the command has one of its own, and we relay */
    struct termios settings;
    struct buffer in;
    uint64_t sent, taken;
    bool input_ended;
};

static struct applet applet = {.connection = -1, .signals = -1};

static void restore_terminal(void)
{
    if (applet.terminal)
        tcsetattr(STDIN_FILENO, TCSAFLUSH, &applet.settings);
}

_Noreturn static void leave(int status)
{
    restore_terminal();
    exit(status);
}

_Noreturn static void die(const char *message)
{
    restore_terminal();
    fprintf(stderr, "sudo: %s\n", message);
    exit(EXIT_FAILED);
}

static void put_usage(FILE *file)
{
    fprintf(file, "usage: sudo [-EHknS] [--preserve-env=names] [-p prompt] [-u user] [-g group] [-i | -s] [--]\n"
                  "            [VAR=value ...] [command [argument ...]]\n"
                  "       sudo -v | -k | -K | -V | -h\n"
                  "Members of group sudo may run any command as any user of this sandbox; there are no passwords.\n");
}

_Noreturn static void usage(void)
{
    put_usage(stderr);
    exit(EXIT_FAILED);
}

_Noreturn static void refuse_option(char **argv, int option)
{
    /* Of a long one that is not known, getopt tells nothing but that it has stepped over it. */
    if (option == 0)
        fprintf(stderr, "sudo: cannot use %s in a sandbox\n", argv[optind - 1]);
    else
        fprintf(stderr, "sudo: cannot use -%c in a sandbox\n", option);
    usage();
}

/* Ids may be written "#1000", as sudo has them. */
static const char *without_mark(const char *id)
{
    return id[0] == '#' ? id + 1 : id;
}

/* ---- the request ------------------------------------------------------------------------------------------- */

static void parse_options(int argc, char **argv, struct options *options)
{
    static const struct option long_options[] = {
        {"user", required_argument, NULL, 'u'},      {"preserve-env", optional_argument, NULL, 'E'},
        {"group", required_argument, NULL, 'g'},     {"prompt", required_argument, NULL, 'p'},
        {"version", no_argument, NULL, 'V'},         {"help", no_argument, NULL, 'h'},
        {"login", no_argument, NULL, 'i'},           {"shell", no_argument, NULL, 's'},
        {"non-interactive", no_argument, NULL, 'n'}, {"stdin", no_argument, NULL, 'S'},
        {"set-home", no_argument, NULL, 'H'},        {"validate", no_argument, NULL, 'v'},
        {"reset-timestamp", no_argument, NULL, 'k'}, {"remove-timestamp", no_argument, NULL, 'K'},
        {0},
    };
    static char own_uid[16];
    *options = (struct options){0};
    bool forgets = false;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "+u:g:p:EisnSHvkKVh", long_options, NULL)) != -1;) {
        switch (option) {
        case 'u': options->user = without_mark(optarg); break;
        case 'g': options->group = without_mark(optarg); break;
        case 'E':
            if (optarg != NULL)
                options->preserved = optarg;
            else
                options->preserve = true;
            break;
        case 'i': options->login = true; break;
        case 's': options->shell = true; break;
        case 'v': case 'K': options->nothing = true; break;
        case 'k': forgets = true; break;
        case 'n': case 'S': case 'H': case 'p': break;
        case 'V': case 'h':
            put_usage(stdout);
            exit(0);
        default: refuse_option(argv, optopt);
        }
    }
    if (options->login && options->shell)
        usage();
    options->nothing = options->nothing || (forgets && optind == argc && !options->login && !options->shell);
    /* With a group alone it is the caller who gets it. */
    snprintf(own_uid, sizeof own_uid, "%u", getuid());
    if (options->user == NULL)
        options->user = options->group != NULL ? own_uid : "root";
}

static bool has_name(const char *variable, const char *name)
{
    size_t length = strlen(name);
    return strncmp(variable, name, length) == 0 && (variable[length] == '=' || name[length - 1] == '_');
}

/* Whether the variable's name stands in a list with commas. */
static bool is_listed(const char *variable, const char *names)
{
    size_t length = strcspn(variable, "=");
    for (const char *name = names; name != NULL; name = strchr(name, ','), name = name != NULL ? name + 1 : NULL) {
        if (strcspn(name, ",") == length && strncmp(name, variable, length) == 0)
            return true;
    }
    return false;
}

/* As sudo's env_reset: what concerns the terminal and the language. */
static bool is_kept(const char *variable, const struct options *options)
{
    bool preserve = options->preserve;
    static const char *const kept[] = {"TERM", "COLORTERM", "LANG", "LANGUAGE", "LC_", "TZ", "DISPLAY"};
    static const char *const dropped[] = {"PATH", "USER", "LOGNAME", "SUDO_"};
    for (size_t i = 0; preserve && i < ARRAY_SIZE(dropped); i++) {
        if (has_name(variable, dropped[i]))
            return false;
    }
    for (size_t i = 0; !preserve && i < ARRAY_SIZE(kept); i++) {
        if (has_name(variable, kept[i]))
            return true;
    }
    return preserve || is_listed(variable, options->preserved);
}

static bool is_assignment(const char *argument)
{
    const char *equals = strchr(argument, '=');
    return equals != NULL && equals != argument && memchr(argument, '/', (size_t)(equals - argument)) == NULL;
}

static bool is_overridden(const char *variable, char **assignments, size_t count)
{
    size_t length = strcspn(variable, "=") + 1;
    for (size_t i = 0; i < count; i++) {
        if (strncmp(variable, assignments[i], length) == 0)
            return true;
    }
    return false;
}

static void put_formatted(struct frame_writer *writer, const char *name, unsigned value)
{
    char text[48];
    snprintf(text, sizeof text, "%s=%u", name, value);
    put_string(writer, TAG_ENV, text);
}

static void put_environment(struct frame_writer *writer, const struct options *options, char **assignments, size_t count)
{
    for (char **variable = environ; *variable != NULL; variable++) {
        if (is_assignment(*variable) && is_kept(*variable, options) &&
            !is_overridden(*variable, assignments, count))
            put_string(writer, TAG_ENV, *variable);
    }
    for (size_t i = 0; i < count; i++)
        put_string(writer, TAG_ENV, assignments[i]);
    char name[MAX_NAME], text[MAX_NAME + 16];
    uid_to_name(getuid(), name);
    snprintf(text, sizeof text, "SUDO_USER=%s", name);
    put_string(writer, TAG_ENV, text);
    put_formatted(writer, "SUDO_UID", getuid());
    put_formatted(writer, "SUDO_GID", getgid());
}

/* The command as one string for a shell, which takes each argument as it is. */
static char *quote_command(char **argv)
{
    size_t size = 1;
    for (char **argument = argv; *argument != NULL; argument++)
        size += 4 * strlen(*argument) + 3;
    char *text = malloc(size), *at = text;
    if (text == NULL)
        die("cannot run a command: out of memory");
    for (char **argument = argv; *argument != NULL; argument++) {
        *at++ = '\'';
        for (const char *from = *argument; *from != 0; from++) {
            if (*from == '\'')
                at = stpcpy(at, "'\\''");
            else
                *at++ = *from;
        }
        *at++ = '\'';
        *at++ = ' ';
    }
    *at = 0;
    return text;
}

static void put_command(struct frame_writer *writer, const struct options *options, char **argv)
{
    if (!options->login && !options->shell) {
        for (; *argv != NULL; argv++)
            put_string(writer, TAG_ARG, *argv);
        return;
    }
    struct user user;
    struct failure failure;
    const char *shell = options->shell ? getenv("SHELL") : NULL;
    if (user_lookup(options->user, &user, &failure) < 0)
        die(failure.message);
    put_string(writer, TAG_ARG, shell != NULL && *shell != 0 ? shell : user.shell);
    if (options->login)
        put_string(writer, TAG_ARG, "-l");
    if (*argv == NULL)
        return;
    char *command = quote_command(argv);
    put_string(writer, TAG_ARG, "-c");
    put_string(writer, TAG_ARG, command);
    free(command);
}

static void put_request(struct buffer *out, const struct options *options, char **argv)
{
    char cwd[MAX_PATH + 1];
    size_t assignments = 0;
    while (argv[assignments] != NULL && is_assignment(argv[assignments]))
        assignments++;
    if (argv[assignments] == NULL && !options->login && !options->shell)
        usage();

    struct frame_writer writer = frame_begin(out, OP_SUDO);
    put_command(&writer, options, argv + assignments);
    put_environment(&writer, options, argv, assignments);
    put_string(&writer, TAG_USER, options->user);
    if (options->group != NULL)
        put_string(&writer, TAG_GROUP, options->group);
    put_number(&writer, TAG_FLAGS, FLAG_PROGRAM_LOOKUP);
    if (!options->login && getcwd(cwd, sizeof cwd) != NULL)
        put_string(&writer, TAG_CWD, cwd);
    struct winsize size;
    if (applet.terminal && ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0) {
        put_number(&writer, TAG_COLS, size.ws_col);
        put_number(&writer, TAG_ROWS, size.ws_row);
    }
    if (frame_end(&writer) < 0)
        die("cannot run a command: out of memory");
}

/* ---- talking to init --------------------------------------------------------------------------------------- */

static void connect_to_init(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path + 1, SUDO_SOCKET, sizeof SUDO_SOCKET - 1);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + sizeof SUDO_SOCKET - 1;
    applet.connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (applet.connection < 0 ||
        connect(applet.connection, (const struct sockaddr *)(const void *)&address, length) < 0)
        die("cannot reach the sandbox's init: sudo works inside of a sandbox only");
}

static void send_all(struct buffer *out)
{
    if (write_fully(applet.connection, out->data + out->start, buffer_length(out)) < 0)
        die("cannot talk to the sandbox's init: it closed the connection");
    buffer_consume(out, buffer_length(out));
}

/* The first byte carries our standard descriptors, unless the command gets a terminal of its own. */
static void send_request(struct buffer *request)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(3 * sizeof(int))}};
    const int fds[3] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO};
    memcpy(CMSG_DATA(&control.header), fds, sizeof fds);

    struct iovec part = {.iov_base = request->data + request->start, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (!applet.terminal) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
    }
    if (sendmsg(applet.connection, &message, MSG_NOSIGNAL) != 1)
        die("cannot talk to the sandbox's init: it closed the connection");
    buffer_consume(request, 1);
    send_all(request);
}

static void send_signal(int signo)
{
    struct buffer out = {0};
    struct frame_writer writer = frame_begin(&out, OP_SIGNAL);
    put_number(&writer, TAG_SIGNO, (uint64_t)signo);
    put_number(&writer, TAG_SCOPE, SCOPE_GROUP);
    if (frame_end(&writer) == 0)
        send_all(&out);
    buffer_free(&out);
}

static void send_size(void)
{
    struct winsize size;
    struct buffer out = {0};
    if (!applet.terminal || ioctl(STDIN_FILENO, TIOCGWINSZ, &size) < 0)
        return;
    struct frame_writer writer = frame_begin(&out, OP_RESIZE);
    put_number(&writer, TAG_COLS, size.ws_col);
    put_number(&writer, TAG_ROWS, size.ws_row);
    if (frame_end(&writer) == 0)
        send_all(&out);
    buffer_free(&out);
}

static void relay_typed(void)
{
    uint8_t typed[TYPED_SIZE];
    struct buffer out = {0};
    ssize_t n = read(STDIN_FILENO, typed, sizeof typed);
    if (n <= 0) {
        applet.input_ended = true; /* the terminal is gone; SIGHUP follows */
        return;
    }
    struct frame_writer writer = frame_begin(&out, OP_STDIN);
    put_raw(&writer, typed, (size_t)n);
    if (frame_end(&writer) == 0)
        send_all(&out);
    applet.sent += (uint64_t)n;
    buffer_free(&out);
}

/* The command is not in our session: the terminal's ^C and ^Z reach us, and we pass them on. */
static void relay_signal(void)
{
    struct signalfd_siginfo info;
    if (read(applet.signals, &info, sizeof info) != sizeof info)
        return;
    int signo = (int)info.ssi_signo;
    if (signo == SIGWINCH) {
        send_size();
    } else if (signo == SIGTSTP) {
        send_signal(SIGSTOP);
        raise(SIGSTOP);
        send_signal(SIGCONT);
    } else {
        send_signal(signo);
    }
}

_Noreturn static void finish(const struct request *exited)
{
    if (has(exited, TAG_EXIT_SIGNAL))
        leave(EXIT_BY_SIGNAL + (int)exited->number[TAG_EXIT_SIGNAL]);
    leave((int)exited->number[TAG_EXIT_CODE]);
}

_Noreturn static void print_refusal(const struct request *error)
{
    char message[512];
    struct bytes bytes = error->bytes[TAG_MESSAGE];
    if (bytes.length >= sizeof message)
        bytes.length = sizeof message - 1;
    if (bytes_to_string(bytes, message, sizeof message) < 0)
        message[0] = 0;
    die(message);
}

static void handle_frame(const struct frame *frame)
{
    struct request request;
    if (frame->type == OP_OUTPUT && frame->length >= 9) {
        if (write_fully(STDOUT_FILENO, frame->payload + 9, frame->length - 9) < 0)
            leave(EXIT_FAILED);
        return;
    }
    if (request_parse(frame, UINT64_MAX, 0, &request) < 0)
        die("cannot understand the sandbox's init");
    if (frame->type == OP_STDIN_ACK)
        applet.taken = request.number[TAG_BYTES];
    else if (frame->type == OP_EXITED)
        finish(&request);
    else if (frame->type == OP_ERROR)
        print_refusal(&request);
}

static void receive_frames(void)
{
    struct frame frame;
    size_t missing = 0;
    if (buffer_reserve(&applet.in, MAX_DATA) < 0)
        die("cannot go on: out of memory");
    ssize_t n = recv(applet.connection, applet.in.data + applet.in.end, applet.in.size - applet.in.end, 0);
    if (n <= 0)
        die("cannot go on: the sandbox's init closed the connection");
    applet.in.end += (size_t)n;
    while (frame_peek(&applet.in, &frame, &missing) == 1) {
        handle_frame(&frame);
        buffer_consume(&applet.in, HEADER_SIZE + frame.length);
    }
}

_Noreturn static void relay(void)
{
    for (;;) {
        bool typing = applet.terminal && !applet.input_ended && applet.sent - applet.taken < MAX_TYPED_AHEAD;
        struct pollfd waits[] = {
            {.fd = applet.connection, .events = POLLIN},
            {.fd = applet.signals, .events = POLLIN},
            {.fd = typing ? STDIN_FILENO : -1, .events = POLLIN},
        };
        if (poll(waits, ARRAY_SIZE(waits), -1) < 0 && errno != EINTR)
            die("cannot go on: poll failed");
        if (waits[1].revents != 0)
            relay_signal();
        if (waits[2].revents != 0)
            relay_typed();
        if (waits[0].revents != 0)
            receive_frames();
    }
}

/* ---- setting up -------------------------------------------------------------------------------------------- */

static void open_missing_descriptors(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    close(fd);
}

/* All three a terminal, and ours to read: a background job must not touch its mode. */
static bool owns_terminal(void)
{
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && isatty(STDERR_FILENO) &&
           tcgetpgrp(STDIN_FILENO) == getpgrp() && tcgetattr(STDIN_FILENO, &applet.settings) == 0;
}

static void enter_raw_mode(void)
{
    struct termios raw = applet.settings;
    cfmakeraw(&raw);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
}

static void catch_signals(void)
{
    static const int relayed[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGTSTP};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_SIZE(relayed); i++)
        sigaddset(&set, relayed[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    applet.signals = signalfd(-1, &set, SFD_CLOEXEC);
    signal(SIGPIPE, SIG_IGN);
}

int sudo_applet(int argc, char **argv)
{
    struct options options;
    struct buffer request = {0};
    open_missing_descriptors();
    parse_options(argc, argv, &options);
    if (options.nothing)
        return 0;
    applet.terminal = owns_terminal();
    put_request(&request, &options, argv + optind);
    connect_to_init();
    catch_signals();
    send_request(&request);
    buffer_free(&request);
    if (applet.terminal)
        enter_raw_mode();
    relay();
}
