/*
 * attachments.h: connections that follow a command's output and feed its stdin.
 */
#ifndef ATTACHMENTS_H
#define ATTACHMENTS_H

#include "commands.h"

/* One that is not attached yet, for its wants_…, lossless and cursor to be set; NULL when memory is short. */
struct attachment *attachment_new(struct connection *);
/* Give back one that was never attached. */
void attachment_free(struct attachment *);

/* Follow a command; the connection owns the attachment from here on. */
void attachment_begin(struct attachment *, struct command *);
/* Only feed its stdin. */
void attachment_begin_stdin(struct attachment *, struct command *);

#endif
