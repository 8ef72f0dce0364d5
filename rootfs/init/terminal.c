/* terminal.c: see terminal.h. */
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

int terminal_resize(int master, uint16_t cols, uint16_t rows)
{
    struct winsize size = {.ws_col = cols, .ws_row = rows};
    return ioctl(master, TIOCSWINSZ, &size);
}

int terminal_open(uint16_t cols, uint16_t rows)
{
    /* O_NONBLOCK also for the case that the sandbox has put a FIFO in this place. */
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    int unlocked = 0;
    if (master < 0)
        return -1;
    if (ioctl(master, TIOCSPTLCK, &unlocked) == 0 && terminal_resize(master, cols, rows) == 0)
        return master;
    int error = errno;
    close(master);
    errno = error;
    return -1;
}

int terminal_type_eof(int master)
{
    struct termios settings;
    if (tcgetattr(master, &settings) < 0)
        return -1;
    return write(master, &settings.c_cc[VEOF], 1) == 1 ? 0 : -1;
}
