/*
 * command_report.c: commands as LISTED and EXITED frames.
 */
#include "commands.h"

#include <sys/wait.h>

static void put_exit_fields(const struct command *command, struct frame_writer *writer)
{
    int status = command->status_code;
    if (WIFSIGNALED(status))
        put_number(writer, TAG_EXIT_SIGNAL, (uint64_t)WTERMSIG(status));
    else
        put_number(writer, TAG_EXIT_CODE, (uint64_t)WEXITSTATUS(status));
    put_number(writer, TAG_ENDED_AT_MS, command->ended_at);
    const struct timeval *user = &command->usage.ru_utime, *system = &command->usage.ru_stime;
    put_number(writer, TAG_USER_TIME_US, (uint64_t)user->tv_sec * 1000000 + (uint64_t)user->tv_usec);
    put_number(writer, TAG_SYSTEM_TIME_US, (uint64_t)system->tv_sec * 1000000 + (uint64_t)system->tv_usec);
    put_number(writer, TAG_MAX_RSS_KB, (uint64_t)command->usage.ru_maxrss);
}

static uint32_t flags_of(const struct command *command)
{
    bool exited = command->state >= STATE_DRAINING;
    return (command->terminal ? FLAG_TERMINAL : 0u) | (watch_is_open(&command->input) ? FLAG_STDIN_OPEN : 0u) |
           (exited && command_output_is_open(command) ? FLAG_OUTPUT_INCOMPLETE : 0u) |
           (command->survivors && command->keeper.pid != 0 ? FLAG_SURVIVORS : 0u) |
           (command->status_lost ? FLAG_STATUS_LOST : 0u) |
           (exited && WIFSIGNALED(command->status_code) && WCOREDUMP(command->status_code) ? FLAG_CORE_DUMPED : 0u);
}

static void put_common_fields(const struct command *command, uint32_t flags, struct frame_writer *writer)
{
    put_number(writer, TAG_STARTED_AT_MS, command->started_at);
    put_number(writer, TAG_STDOUT_TOTAL, command->streams[0].ring.end);
    put_number(writer, TAG_STDERR_TOTAL, command->streams[1].ring.end);
    put_number(writer, TAG_FLAGS, flags_of(command) | flags);
}

int command_put_exit(const struct command *command, uint32_t flags, struct buffer *buffer)
{
    struct frame_writer writer = frame_begin(buffer, OP_EXITED);
    put_common_fields(command, flags, &writer);
    put_exit_fields(command, &writer);
    return frame_end(&writer);
}

static int put_listed(const struct command *command, struct buffer *buffer)
{
    struct frame_writer writer = frame_begin(buffer, OP_LISTED);
    put_number(&writer, TAG_COMMAND, command->id);
    put_number(&writer, TAG_PID, (uint64_t)command->leader);
    put_number(&writer, TAG_STATE, command->state);
    put_raw(&writer, command->description.data, buffer_length(&command->description));
    put_number(&writer, TAG_STDOUT_OLDEST, command->streams[0].ring.start);
    put_number(&writer, TAG_STDERR_OLDEST, command->streams[1].ring.start);
    put_common_fields(command, 0, &writer);
    if (command->state >= STATE_DRAINING)
        put_exit_fields(command, &writer);
    return frame_end(&writer);
}

int commands_list(struct buffer *buffer)
{
    for (const struct command *command = commands_first(); command != NULL; command = command->next) {
        if (command->internal || command->released || command->state == STATE_STARTING)
            continue;
        if (put_listed(command, buffer) < 0)
            return -1;
    }
    return 0;
}
