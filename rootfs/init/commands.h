/*
 * commands.h: the commands: their processes, output, input and exit.
 */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "connections.h"
#include "protocol.h"
#include "reaper.h"
#include "ring.h"
#include "spawn.h"

/* A connection's interest in a command; see attachments.c. */
struct attachment {
    struct dead dead;
    struct connection *connection;
    struct command *command; /* NULL once it has ended */
    struct attachment *next, **link;
    bool wants_output; /* OUTPUT and GAP */
    bool wants_exit;   /* EXITED, after which the connection is closed */
    bool lossless;
    uint64_t cursor[2]; /* offset of the next byte to send, per stream */
    uint64_t stdin_taken, stdin_acknowledged;
    size_t stdin_written; /* of the frame at the front of the connection's input */
    bool stdin_waiting;   /* that frame waits until the command's stdin takes more */
    enum { STDIN_USABLE, STDIN_REFUSED, STDIN_REFUSAL_SENT } stdin_state;
};

struct stream {
    struct watch watch; /* read end of the pipe, or the terminal's master */
    struct ring ring;
    bool paused; /* a lossless reader must catch up first */
};

struct command {
    struct dead dead;
    struct command *next, **link;
    uint64_t id;
    enum command_state state;
    struct child keeper;
    pid_t leader;
    struct child orphan; /* the leader again: a child of init once somebody has killed its keeper */
    struct watch status;  /* the keeper's reports */
    struct stream streams[2];
    struct watch input;          /* write end of stdin, or the terminal's master again */
    struct attachment *writer;   /* in the middle of a STDIN frame */
    struct attachment *attachments;
    /* Called once, when it has started (NULL) or failed to; cleared when nobody waits for that any more. */
    void (*decided)(struct command *, const struct failure *);
    struct connection *starter; /* who waits */
    bool terminal;
    bool released; /* nobody will ask again: output is read and dropped until the last process is gone */
    bool labelled; /* somebody will ask for its exit: it is kept until released, only its output may be forgotten */
    bool internal; /* of sudo: invisible to the daemon, ends with its connection */
    uint64_t owner; /* of sudo: id of the command it was called from, or 0 */
    bool killed;    /* its tree has been; what it was just starting through sudo is to follow */
    uint32_t linger_ms;
    struct timer linger;
    uint64_t linger_limit, last_output;
    uint64_t started_at, ended_at; /* wall clock, ms */
    int status_code;               /* as from wait() */
    bool status_lost, survivors;
    struct rusage usage;
    struct buffer description; /* the ARG, USER and LABEL fields for LIST */
};

/* Add an attachment, or take it off; it lets the command end if that was waiting for it. */
void command_attach(struct command *, struct attachment *);
void command_detach(struct attachment *);

/* Take over a command whose `keeper` runs, with our ends of stdin, stdout and stderr (-1: none) and the keeper's
 * reports. */
void command_adopt(struct command *, pid_t keeper, const int own[3], int status);

struct command *command_find(uint64_t id);
const struct command *commands_first(void); /* all of them, newest first */
unsigned commands_count(void);
unsigned commands_running(void);

/* Queue LISTED frames for all commands; -1 when memory is short. */
int commands_list(struct buffer *);
/* Queue the exit of an ended command. */
int command_put_exit(const struct command *, uint32_t flags, struct buffer *);

/* A stream may still grow. */
bool command_output_is_open(const struct command *);

/* Forget an ended command. */
int command_release(struct command *, struct failure *);

/* Read on after lossless readers have caught up. */
void command_resume_output(struct command *);

/* ---- input (command_input.c) -------------------------------------------------------------------------------- */

void command_input_ready(struct watch *, uint32_t events);
/* Have a connection's STDIN frame wait until stdin takes more. */
void command_await_input(struct attachment *);
/* Its frame is written or dropped: others may have their turn. */
void command_leave_input(struct attachment *);
void command_close_input(struct command *);
/* Who waits for stdin is told when it takes more. */
void command_resume_input(struct command *);
/* End of input: close the pipe, or type the terminal's end-of-file character. -1 with errno. */
int command_end_input(struct command *);
int command_resize(struct command *, uint16_t cols, uint16_t rows, struct failure *);

/* ---- signals (command_signal.c) ----------------------------------------------------------------------------- */

/* Signal the leader or its group, while the leader lives. */
int command_signal(const struct command *, int signo, enum signal_scope, struct failure *);
/* The same, or the tree, without waiting for the outcome. */
int command_signal_any(struct command *, int signo, enum signal_scope, struct failure *);
/* The keepers of a command and of what it started through sudo; returns how many. */
enum { MAX_ROOTS = 256 };
size_t command_roots(const struct command *, pid_t roots[static MAX_ROOTS]);
/* Signal the whole tree of a command that exists, in a worker, and answer. */
void command_signal_tree(struct connection *, const struct request *);
/* Kill everything, without telling anybody. */
void command_kill_tree(struct command *);
/* Its tree is about to be sent this signal. */
void command_note_signal(struct command *, int signo);

#endif
