/*
 * files.h: the file operations.  They run in workers, as the requested user, inside the sandbox: symbolic links,
 * permissions and races mean what they mean to any process there.  Nothing here blocks on a FIFO or a device.
 */
#ifndef FILES_H
#define FILES_H

#include "workers.h"

#include <sys/stat.h>

int file_stat(struct worker *, const struct request *, struct failure *);
int file_list(struct worker *, const struct request *, struct failure *);

int file_read(struct worker *, const struct request *, struct failure *);
int file_write(struct worker *, const struct request *, struct failure *);
int file_truncate(struct worker *, const struct request *, struct failure *);

int file_mkdir(struct worker *, const struct request *, struct failure *);
int file_remove(struct worker *, const struct request *, struct failure *);
int file_rename(struct worker *, const struct request *, struct failure *);
int file_symlink(struct worker *, const struct request *, struct failure *);
int file_chmod(struct worker *, const struct request *, struct failure *);
int file_chown(struct worker *, const struct request *, struct failure *);

/* Shared by the above. */

/* The absolute path under a tag. */
int get_path(const struct request *, enum tag, char path[static MAX_PATH + 1], struct failure *);

/* Who shall own what is made; (uid_t)-1 and (gid_t)-1 where the request does not say. */
struct owner {
    uid_t uid;
    gid_t gid;
};
int get_owner(const struct request *, struct owner *, struct failure *);

/* Make `path` and the directories above it that are missing, counting those made. */
int make_directories(const char *path, mode_t mode, const struct owner *, unsigned *made, struct failure *);

/* Open a regular file; anything else fails with EISDIR or kind "not_regular", at once. */
int open_regular(const char *path, int flags, mode_t mode, struct stat *, struct failure *);

#endif
