/*
 * watch_report.h: what a watch saw, packed into CHANGES frames (protocol.h describes a record).
 */
#ifndef WATCH_REPORT_H
#define WATCH_REPORT_H

#include "workers.h"

struct report {
    struct worker *worker;
    size_t length;
    uint8_t records[MAX_CHANGES];
};

/* Sends by itself when the frame is full. */
void report_put(struct report *, enum change, bool directory, uint32_t cookie, const char *path);
void report_flush(struct report *);

#endif
