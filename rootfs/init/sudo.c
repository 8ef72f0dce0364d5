/*
 * sudo.c: the socket of the sudo service.  Requests on it are handled like any other (operations.c, spawn.c).
 */
#include "sudo.h"
#include "operations.h"

#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 16 };

void sudo_listen(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path + 1, SUDO_SOCKET, sizeof SUDO_SOCKET - 1);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + sizeof SUDO_SOCKET - 1;

    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (bind(fd, (const struct sockaddr *)(const void *)&address, length) < 0 || listen(fd, BACKLOG) < 0)
        close(fd);
    else
        connections_listen(fd, true, operation_start);
}
