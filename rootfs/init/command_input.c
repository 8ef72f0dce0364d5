/*
 * command_input.c: a command's stdin, and whose turn it is to write to it: the frames of two connections never mix.
 */
#include "commands.h"
#include "terminal.h"

#include <errno.h>

static void resume_waiting(struct command *command)
{
    for (struct attachment *next, *attachment = command->attachments; attachment != NULL; attachment = next) {
        next = attachment->next;
        bool turn = command->writer == NULL || command->writer == attachment;
        if (!attachment->stdin_waiting || !turn)
            continue;
        connection_resume(attachment->connection);
        connection_pump(attachment->connection);
    }
}

void command_resume_input(struct command *command)
{
    uint32_t events = 0;
    for (const struct attachment *attachment = command->attachments; attachment; attachment = attachment->next)
        events |= attachment->stdin_waiting ? EPOLLOUT : 0u;
    watch_events(&command->input, events);
}

void command_input_ready(struct watch *watch, uint32_t events)
{
    struct command *command = container_of(watch, struct command, input);
    (void)events;
    resume_waiting(command);
    command_resume_input(command);
}

void command_await_input(struct attachment *attachment)
{
    attachment->stdin_waiting = true;
    watch_events(&attachment->command->input, EPOLLOUT);
}

void command_leave_input(struct attachment *attachment)
{
    attachment->stdin_written = 0;
    if (attachment->command->writer == attachment)
        attachment->command->writer = NULL;
}

void command_close_input(struct command *command)
{
    watch_stop(&command->input);
    command->writer = NULL;
    resume_waiting(command);
}

int command_end_input(struct command *command)
{
    if (!watch_is_open(&command->input))
        return 0;
    if (command->terminal)
        return terminal_type_eof(command->input.fd);
    command_close_input(command);
    return 0;
}

int command_resize(struct command *command, uint16_t cols, uint16_t rows, struct failure *failure)
{
    if (!command->terminal)
        return refuse(failure, ENOTTY, "terminal", "cannot resize command %llu: it has no terminal",
                    (unsigned long long)command->id);
    if (watch_is_open(&command->input) && terminal_resize(command->input.fd, cols, rows) < 0)
        return fail(failure, errno, "terminal", "cannot resize the terminal");
    return 0;
}
