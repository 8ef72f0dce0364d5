/*
 * watch_report.c: see watch_report.h.
 */
#include "watch_report.h"

#include <string.h>

void report_flush(struct report *report)
{
    if (report->length == 0)
        return;
    struct frame_writer writer = frame_begin(&report->worker->out, OP_CHANGES);
    put_raw(&writer, report->records, report->length);
    frame_end(&writer);
    worker_flush(report->worker);
    report->length = 0;
}

void report_put(struct report *report, enum change change, bool directory, uint32_t cookie, const char *path)
{
    size_t length = strlen(path);
    if (report->length + RECORD_HEADER_SIZE + length > sizeof report->records)
        report_flush(report);
    uint8_t *at = report->records + report->length;
    *at++ = (uint8_t)change;
    *at++ = directory;
    for (int i = 0; i < 4; i++)
        *at++ = (uint8_t)(cookie >> (8 * i));
    *at++ = (uint8_t)length;
    *at++ = (uint8_t)(length >> 8);
    memcpy(at, path, length);
    report->length += RECORD_HEADER_SIZE + length;
}
