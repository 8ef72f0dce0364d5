/*
 * ports.c: see ports.h.
 *
 * The kernel's tables in /proc/net name sockets by inode; whose they are is found by looking through the descriptors
 * of every process.  A sandbox can have any number of both, so each look is bounded, and what lies beyond the bound is
 * left out: the end then says TRUNCATED, and a socket comes without its process.
 */
#include "ports.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_PROCESSES_SEEN = 4096,
    MAX_DESCRIPTORS_SEEN = 64 * 1024, /* of all processes together */
    ADDRESS_WORDS = 4,
    TASK_NAME = 16, /* with its NUL: TASK_COMM_LEN */
};

struct listening {
    uint16_t port;
    uint8_t address[4 * ADDRESS_WORDS];
    size_t address_length;
    uid_t uid;
    unsigned long inode;
    pid_t pid; /* 0: not found */
    char program[TASK_NAME];
};

struct table {
    struct listening sockets[MAX_PORTS];
    size_t count, without_process;
    bool truncated;
};

/* ---- the kernel's tables ----------------------------------------------------------------------------------- */

/* Each 32 bits of a network-order address are printed as one number of the machine's order. */
static bool parse_address(const char *text, struct listening *found)
{
    size_t length = strcspn(text, ":");
    if (length != 8 && length != 8 * ADDRESS_WORDS)
        return false;
    for (size_t i = 0; i < length / 8; i++) {
        char digits[9] = {0};
        memcpy(digits, text + 8 * i, 8);
        uint32_t word = (uint32_t)strtoul(digits, NULL, 16);
        memcpy(found->address + 4 * i, &word, sizeof word);
    }
    found->address_length = length / 2;
    found->port = (uint16_t)strtoul(text + length + 1, NULL, 16);
    return true;
}

/* "sl local_address rem_address st queues timer retransmits uid timeout inode …".  False when it does not listen. */
static bool parse_line(char *line, struct listening *found)
{
    enum { LOCAL = 1, STATE = 3, UID = 7, INODE = 9, COLUMNS };
    char *columns[COLUMNS], *rest = NULL;
    for (size_t i = 0; i < COLUMNS; i++) {
        columns[i] = strtok_r(i == 0 ? line : NULL, " \n", &rest);
        if (columns[i] == NULL)
            return false;
    }
    *found = (struct listening){.uid = (uid_t)strtoul(columns[UID], NULL, 10),
                                .inode = strtoul(columns[INODE], NULL, 10)};
    return strcmp(columns[STATE], "0A") == 0 && parse_address(columns[LOCAL], found);
}

/* Listening sockets come first (tcp_get_idx in the kernel), so that the rest need not be read at all. */
static int read_table(const char *path, struct table *table, struct failure *failure)
{
    char line[512];
    FILE *file = fopen(path, "re");
    if (file == NULL && errno == ENOENT) /* no IPv6 */
        return 0;
    if (file == NULL)
        return fail(failure, errno, "ports", "cannot read %s", path);
    struct listening found;
    bool header = fgets(line, sizeof line, file) != NULL;
    while (header && fgets(line, sizeof line, file) != NULL && parse_line(line, &found)) {
        if (table->count == MAX_PORTS) {
            table->truncated = true;
            break;
        }
        table->sockets[table->count++] = found;
    }
    fclose(file);
    return 0;
}

/* ---- whose they are ---------------------------------------------------------------------------------------- */

static void read_name(int process, char name[static TASK_NAME])
{
    int fd = openat(process, "comm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, name, TASK_NAME - 1);
    name[n > 0 ? n : 0] = 0;
    name[strcspn(name, "\n")] = 0;
    if (fd >= 0)
        close(fd);
}

static int by_inode(const void *left, const void *right)
{
    const struct listening *a = left, *b = right;
    return (a->inode > b->inode) - (a->inode < b->inode);
}

/* What a link in /proc/PID/fd says: "socket:[INODE]", or something else. */
static void claim(struct table *table, const char *target, pid_t pid, int process)
{
    static const char prefix[] = "socket:[";
    if (strncmp(target, prefix, sizeof prefix - 1) != 0)
        return;
    struct listening key = {.inode = strtoul(target + sizeof prefix - 1, NULL, 10)};
    struct listening *socket = bsearch(&key, table->sockets, table->count, sizeof key, by_inode);
    if (socket == NULL || socket->pid != 0)
        return;
    socket->pid = pid;
    read_name(process, socket->program);
    table->without_process--;
}

/* The kernel shows descriptors to their owner alone, even to root, unless that may trace: so look as the owner does. */
static DIR *open_descriptors(int process)
{
    struct stat owner;
    if (fstat(process, &owner) < 0)
        return NULL;
    setfsgid(owner.st_gid);
    setfsuid(owner.st_uid);
    int fd = openat(process, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? NULL : fdopendir(fd);
}

static void look_at_process(struct table *table, int proc, const char *pid, size_t *looks)
{
    int process = openat(proc, pid, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *descriptors = process < 0 ? NULL : open_descriptors(process);
    struct dirent *entry;
    while (descriptors != NULL && *looks > 0 && table->without_process > 0 && (entry = readdir(descriptors)) != NULL) {
        char target[64];
        --*looks;
        ssize_t n = readlinkat(dirfd(descriptors), entry->d_name, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        claim(table, target, atoi(pid), process);
    }
    setfsuid(geteuid());
    setfsgid(getegid());
    if (descriptors != NULL)
        closedir(descriptors);
    if (process >= 0)
        close(process);
}

static void find_processes(struct worker *worker, struct table *table)
{
    DIR *proc = opendir("/proc");
    size_t looks = MAX_DESCRIPTORS_SEEN, seen = 0;
    struct dirent *entry;
    while (proc != NULL && table->without_process > 0 && seen < MAX_PROCESSES_SEEN && (entry = readdir(proc)) != NULL) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        worker_check(worker);
        look_at_process(table, dirfd(proc), entry->d_name, &looks);
        seen++;
    }
    if (proc != NULL)
        closedir(proc);
}

/* ---- the answer -------------------------------------------------------------------------------------------- */

static void put_port(struct worker *worker, const struct listening *socket)
{
    struct frame_writer writer = frame_begin(&worker->out, OP_PORT);
    put_number(&writer, TAG_PORT, socket->port);
    put_bytes(&writer, TAG_ADDRESS, socket->address, socket->address_length);
    put_number(&writer, TAG_UID, socket->uid);
    if (socket->pid != 0) {
        put_number(&writer, TAG_PID, (uint64_t)socket->pid);
        put_string(&writer, TAG_PROGRAM, socket->program);
    }
    frame_end(&writer);
    worker_send(worker);
}

int ports_list(struct worker *worker, const struct request *request, struct failure *failure)
{
    static struct table table;
    (void)request;
    if (read_table("/proc/net/tcp", &table, failure) < 0 || read_table("/proc/net/tcp6", &table, failure) < 0)
        return -1;
    table.without_process = table.count;
    qsort(table.sockets, table.count, sizeof *table.sockets, by_inode);
    find_processes(worker, &table);
    for (size_t i = 0; i < table.count; i++)
        put_port(worker, &table.sockets[i]);
    struct frame_writer writer = frame_begin(&worker->out, OP_END);
    if (table.truncated)
        put_number(&writer, TAG_FLAGS, FLAG_TRUNCATED);
    return frame_end(&writer);
}
