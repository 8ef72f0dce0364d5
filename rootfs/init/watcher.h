/*
 * watcher.h: WATCH, what happens to the files below a directory, as inotify tells it.
 */
#ifndef WATCHER_H
#define WATCHER_H

#include "workers.h"

int watch_run(struct worker *, const struct request *, struct failure *);

#endif
