/* reaper.h: the only place that waits for children of init. */
#ifndef REAPER_H
#define REAPER_H

/* Block all signals, for good, and have children reaped from the loop as they end. */
int reaper_open(void);
void reap_children(void);

#endif
