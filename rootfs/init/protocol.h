/*
 * protocol.h: what the daemon and sandbox-init say to each other.
 *
 * The daemon's half is sandboxd/isolation/init/wire.py; a test compares every constant below with it.
 *
 * Theory of operation
 * -------------------
 * One connection carries one operation.  The client's first frame names the operation; init answers with one frame
 * or with a stream of frames and then closes the connection.  HELLO and SPAWN may ask for FLAG_KEEP: when their last
 * frame, WELCOME or EXITED, has it too, the connection stays open and the client's next frame names another operation.
 *
 *     frame   = length u32, type u8, payload[length]        length counts the payload only
 *     payload = field*                                       except the raw frames below
 *     field   = tag u8, length u32, value[length]
 *
 * All integers are little-endian.  A tag has one meaning and one width everywhere (frames.c has the table); a tag
 * that an operation does not know, a wrong width, a missing or a repeated field (ARG, ENV and RLIMIT may repeat)
 * are protocol errors, which close the connection and nothing else.
 *
 * Raw frames, for bulk bytes:
 *     STDIN, DATA   bytes, at most MAX_DATA
 *     OUTPUT        stream u8, offset u64, bytes (at most MAX_DATA)
 *     CHANGES       (change u8, is_directory u8, cookie u32, length u16, path[length])*, at most MAX_CHANGES in all
 *
 * Conversations (C: client, I: init):
 *     SPAWN                    I: STARTED | ERROR; with FLAG_ATTACH it goes on like ATTACH
 *     ATTACH                   I: (OUTPUT | GAP | STDIN_ACK | STDIN_CLOSED)* EXITED
 *                              C: (STDIN | STDIN_EOF | RESIZE | SIGNAL)*, never answered one by one
 *     WRITE_STDIN              C: STDIN* STDIN_EOF?   I: (STDIN_ACK | STDIN_CLOSED)*   the client hangs up
 *     STDIN_EOF RESIZE SIGNAL RELEASE SHUTDOWN       I: OK | ERROR
 *     HELLO                    I: WELCOME
 *     LIST                     I: LISTED* END               at most MAX_COMMANDS
 *     LIST_PORTS               I: PORT* END | ERROR         at most MAX_PORTS; END has TRUNCATED when there are more
 *     STAT                     I: ENTRY | ERROR
 *     LIST_DIR                 I: ENTRY* END | ERROR
 *     READ_FILE                I: FILE DATA* END | ERROR    an ERROR may also end the DATA
 *     WRITE_FILE               C: DATA* END   I: OK | ERROR  an ERROR may come before END
 *     MKDIR … COPY             I: OK | ERROR
 *     PACK                     I: (ENTRY DATA*)* END | ERROR  an ERROR may come in between; after the ENTRY of a
 *                              regular file come DATA of exactly SIZE bytes
 *     UNPACK                   C: (PUT DATA*)* END   I: OK | ERROR  an ERROR may come before END
 *     WATCH                    I: ERROR | OK (CHANGES | SYNCED)* (END | ERROR)   until the client hangs up
 *                              C: SYNC*
 *     CONNECT                  I: OK | ERROR; after OK the connection is the relayed byte stream
 *     SUDO                     like SPAWN with FLAG_ATTACH; on the socket inside the sandbox only, see sudo.c
 *
 * WATCH tells what happens below a directory; OK says that all of it is watched.  Paths are relative to it, "." being
 * itself.  SYNC is answered by SYNCED when all that happened before has been told.  ARG is a pattern of names to ignore.  A cookie other than 0 joins the RENAME of the old name and the CREATE of
 * the new one.
 *
 * Operations that last are bounded in number (the MAX_ of followers, attachments, workers, watches and signals): one more is
 * answered by an ERROR of kind "too_many", at once, and those that end them are always answered.
 *
 * Flow control: a client may have at most STDIN_WINDOW bytes of STDIN unacknowledged.  STDIN_ACK carries the total
 * number of bytes of this connection that the command's stdin has taken.
 */
#ifndef PROTOCOL_H
#define PROTOCOL_H

enum {
    PROTOCOL_VERSION = 1,
    HEADER_SIZE = 5,
    MAX_PAYLOAD = 1024 * 1024,
    MAX_DATA = 64 * 1024,
    STDIN_WINDOW = 256 * 1024,
    MAX_PATH = 4095,
    MAX_LABEL = 256,
    MIN_RING = 4 * 1024,
    DEFAULT_RING = 1024 * 1024,
    MAX_RING = 16 * 1024 * 1024,
    DEFAULT_LINGER_MS = 100,
    MAX_LINGER_MS = 60 * 1000,
    MAX_ENDED_COMMANDS = 64,
    MAX_DEPTH = 64,
    MAX_CHANGES = 8 * 1024,
    RECORD_HEADER_SIZE = 8,
    MAX_WATCHED = 32 * 1024, /* directories of one watch */
    MAX_PATTERNS = 64,
    MAX_PATTERN = 256,
    MAX_NESTING = 256,
    MAX_COMMANDS = 1024, /* running ones and those kept */
    MAX_FOLLOWERS = 448,
    MAX_ATTACHED = 512,
    MAX_WORKERS = 64,
    MAX_WATCHES = 128,
    MAX_SIGNALS = 64,
    MAX_PORTS = 4096,
    MAX_PROGRAM = 15,
    RLIMIT_SIZE = 20, /* resource u32, soft u64, hard u64 */
};

enum frame_type {
    OP_HELLO = 0x01,
    OP_SPAWN = 0x02,
    OP_ATTACH = 0x03,
    OP_WRITE_STDIN = 0x04,
    OP_LIST = 0x05,
    OP_RELEASE = 0x06,
    OP_CONNECT = 0x07,
    OP_SHUTDOWN = 0x08,
    OP_SUDO = 0x09,
    OP_LIST_PORTS = 0x0a,

    /* With COMMAND an operation of its own, without it a message on an attached connection. */
    OP_STDIN_EOF = 0x10,
    OP_RESIZE = 0x11,
    OP_SIGNAL = 0x12,
    OP_STDIN = 0x13,

    OP_STAT = 0x20,
    OP_LIST_DIR = 0x21,
    OP_READ_FILE = 0x22,
    OP_WRITE_FILE = 0x23,
    OP_MKDIR = 0x24,
    OP_REMOVE = 0x25,
    OP_RENAME = 0x26,
    OP_SYMLINK = 0x27,
    OP_CHMOD = 0x28,
    OP_CHOWN = 0x29,
    OP_TRUNCATE = 0x2a,
    OP_COPY = 0x2b,
    OP_PACK = 0x2c,
    OP_UNPACK = 0x2d,

    OP_WATCH = 0x30,
    OP_SYNC = 0x31,

    OP_DATA = 0x40,
    OP_END = 0x41,
    OP_PUT = 0x42,

    OP_OK = 0x80,
    OP_ERROR = 0x81,
    OP_WELCOME = 0x82,
    OP_STARTED = 0x83,
    OP_OUTPUT = 0x84,
    OP_GAP = 0x85,
    OP_EXITED = 0x86,
    OP_STDIN_ACK = 0x87,
    OP_STDIN_CLOSED = 0x88,
    OP_LISTED = 0x89,
    OP_ENTRY = 0x8a,
    OP_FILE = 0x8b,
    OP_PORT = 0x8c,
    OP_CHANGES = 0x90,
    OP_SYNCED = 0x91,
};

enum tag {
    TAG_COMMAND = 1,
    TAG_PID = 2,
    TAG_VERSION = 3,
    TAG_UPTIME_MS = 4,
    TAG_COUNT = 5,
    TAG_TOKEN = 6,
    TAG_ARG = 7,
    TAG_ENV = 8,
    TAG_CWD = 9,
    TAG_USER = 10,
    TAG_STDIN_MODE = 11,
    TAG_COLS = 12,
    TAG_ROWS = 13,
    TAG_RLIMIT = 14,
    TAG_RING_SIZE = 15,
    TAG_FLAGS = 16,
    TAG_LINGER_MS = 17,
    TAG_LABEL = 18,
    TAG_STREAM = 19,
    TAG_FROM = 20,
    TAG_TO = 21,
    TAG_STDOUT_FROM = 22,
    TAG_STDERR_FROM = 23,
    TAG_EXIT_CODE = 24,
    TAG_EXIT_SIGNAL = 25,
    TAG_STARTED_AT_MS = 26,
    TAG_ENDED_AT_MS = 27,
    TAG_STDOUT_TOTAL = 28,
    TAG_STDERR_TOTAL = 29,
    TAG_USER_TIME_US = 30,
    TAG_SYSTEM_TIME_US = 31,
    TAG_MAX_RSS_KB = 32,
    TAG_ERRNO = 33,
    TAG_KIND = 34,
    TAG_MESSAGE = 35,
    TAG_SIGNO = 36,
    TAG_SCOPE = 37,
    TAG_STATE = 38,
    TAG_STDOUT_OLDEST = 39,
    TAG_STDERR_OLDEST = 40,
    TAG_BYTES = 41,
    TAG_PATH = 42,
    TAG_TARGET = 43,
    TAG_MODE = 44,
    TAG_OWNER = 45,
    TAG_GROUP = 46,
    TAG_DEPTH = 47,
    TAG_LIMIT = 48,
    TAG_OFFSET = 49,
    TAG_LENGTH = 50,
    TAG_SIZE = 51,
    TAG_FILE_TYPE = 52,
    TAG_UID = 53,
    TAG_GID = 54,
    TAG_MTIME_NS = 55,
    TAG_PORT = 56,
    TAG_GRACE_MS = 57,
    TAG_CTIME_NS = 58,
    TAG_AFTER = 59,
    TAG_REAL_PATH = 60,
    TAG_ADDRESS = 61, /* 4 or 16 bytes, in network order */
    TAG_PROGRAM = 62, /* as ps calls a process: at most 15 bytes, which it chooses */
};

enum { TAG_END = 63 }; /* one past the last tag; the tags of a message are kept in a 64-bit set */

enum flag {
    FLAG_ATTACH = 0x1,
    FLAG_LOSSLESS = 0x2,
    FLAG_PROGRAM_LOOKUP = 0x4,
    FLAG_NO_OUTPUT = 0x8,
    FLAG_OUTPUT_INCOMPLETE = 0x10, /* a surviving process still holds stdout or stderr open */
    FLAG_STATUS_LOST = 0x20,       /* someone killed the keeper between the exit and its report */
    FLAG_CORE_DUMPED = 0x40,
    FLAG_TERMINAL = 0x80,
    FLAG_FOLLOW = 0x100,
    FLAG_ATOMIC = 0x200,
    FLAG_APPEND = 0x400,
    FLAG_EXCLUSIVE = 0x800,
    FLAG_PARENTS = 0x1000,
    FLAG_RECURSIVE = 0x2000,
    FLAG_NO_REPLACE = 0x4000,
    FLAG_TRUNCATED = 0x8000,
    FLAG_STDIN_OPEN = 0x10000,
    FLAG_SURVIVORS = 0x20000, /* descendants of an ended command are still alive */
    FLAG_RESUME = 0x40000,    /* the file in which an upload is collected piece by piece */
    FLAG_OWNERS = 0x80000,    /* UID and GID of what is PUT count */
    FLAG_HARDLINKS = 0x100000, /* a file that was packed under another name comes as TYPE_HARDLINK */
    FLAG_KEEP = 0x200000,      /* leave the connection open for another operation */
};

enum stdin_mode { STDIN_NULL = 0, STDIN_PIPE = 1 };
enum stream_number { STREAM_STDOUT = 1, STREAM_STDERR = 2 };
enum signal_scope { SCOPE_LEADER = 0, SCOPE_GROUP = 1, SCOPE_TREE = 2 };
enum command_state { STATE_STARTING = 0, STATE_RUNNING = 1, STATE_DRAINING = 2, STATE_ENDED = 3 };
enum change {
    CHANGE_CREATE = 1,
    CHANGE_WRITE = 2,
    CHANGE_ATTRIBUTES = 3,
    CHANGE_RENAME = 4, /* away from here */
    CHANGE_REMOVE = 5,
    CHANGE_OVERFLOW = 6,  /* changes were lost */
    CHANGE_UNWATCHED = 7, /* what happens in this directory will not be told */
    CHANGE_ENDED = 8,     /* the watched directory itself is gone; the last one */
};
enum file_type {
    TYPE_UNKNOWN = 0,
    TYPE_REGULAR = 1,
    TYPE_DIRECTORY = 2,
    TYPE_SYMLINK = 3,
    TYPE_FIFO = 4,
    TYPE_SOCKET = 5,
    TYPE_CHARACTER = 6,
    TYPE_BLOCK = 7,
    TYPE_HARDLINK = 8, /* in archives: another name of TARGET */
};

#define OFFSET_NOW UINT64_MAX /* STDOUT_FROM, STDERR_FROM: only what is written from here on */

#endif
