/* terminal.c: see terminal.h. */
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

int terminal_resize(int master, uint16_t cols, uint16_t rows)
{
    struct winsize size = {.ws_col = cols, .ws_row = rows};
    return ioctl(master, TIOCSWINSZ, &size);
}

/* Erasing a character takes all of its bytes, as in every terminal emulator of today. */
static int expect_utf8(int master)
{
    struct termios settings;
    if (tcgetattr(master, &settings) < 0)
        return -1;
    settings.c_iflag |= IUTF8;
    return tcsetattr(master, TCSANOW, &settings);
}

int terminal_open(uint16_t cols, uint16_t rows)
{
    /* O_NONBLOCK also for the case that the sandbox has put a FIFO in this place. */
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    int unlocked = 0;
    if (master < 0)
        return -1;
    if (ioctl(master, TIOCSPTLCK, &unlocked) == 0 && terminal_resize(master, cols, rows) == 0 &&
        expect_utf8(master) == 0)
        return master;
    int error = errno;
    close(master);
    errno = error;
    return -1;
}

/* ioctl()'s second argument is an int in musl and an unsigned long in glibc; these two have the top bit set. */
static int ioctl_pointer(int fd, unsigned long request, void *argument)
{
    return (int)syscall(SYS_ioctl, fd, request, argument);
}

static int ioctl_number(int fd, unsigned long request, unsigned long argument)
{
    return (int)syscall(SYS_ioctl, fd, request, argument);
}

int terminal_open_slave(int master)
{
    /* By the master, so that nothing the sandbox did to /dev/pts matters; by name where that is not known (gVisor). */
    int slave = ioctl_number(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    unsigned number;
    if (slave >= 0 || ioctl_pointer(master, TIOCGPTN, &number) < 0)
        return slave;
    char path[32];
    snprintf(path, sizeof path, "/dev/pts/%u", number);
    return open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

int terminal_type_eof(int master)
{
    struct termios settings;
    if (tcgetattr(master, &settings) < 0)
        return -1;
    return write(master, &settings.c_cc[VEOF], 1) == 1 ? 0 : -1;
}
