/* terminal.h: pseudo-terminals, seen from the master. */
#ifndef TERMINAL_H
#define TERMINAL_H

#include "base.h"

/* A new master, non-blocking; -1 with errno. */
int terminal_open(uint16_t cols, uint16_t rows);
/* Its other end, not yet anybody's controlling terminal. */
int terminal_open_slave(int master);
int terminal_resize(int master, uint16_t cols, uint16_t rows);
/* Type the terminal's end-of-file character (^D unless changed). */
int terminal_type_eof(int master);

#endif
