/*
 * attachments.h: connections that follow a command's output and feed its stdin.
 */
#ifndef ATTACHMENTS_H
#define ATTACHMENTS_H

#include "connections.h"

/* Follow a command, as the wants_…, lossless and cursor members of connection->attachment say. */
void attachment_begin(struct connection *, struct command *);
/* Only feed its stdin. */
void attachment_begin_stdin(struct connection *, struct command *);
/* Called when the connection is closed; safe when it is not attached. */
void attachment_end(struct connection *);

/* Send whatever is due and fits.  The connection may be closed afterwards. */
void attachment_pump(struct connection *);

/* The end of what the connection that lags most among the lossless ones has been sent; UINT64_MAX if there is none. */
uint64_t attachments_slowest(const struct command *, int stream);

/* The command's stdin takes bytes again, or never will. */
void attachments_input_ready(struct watch *, uint32_t events);
void attachments_input_closed(struct command *);

#endif
