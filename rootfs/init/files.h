/*
 * files.h: the file operations.  They run in workers, as the requested user, inside the sandbox: symbolic links,
 * permissions and races mean what they mean to any process there.  Nothing here blocks on a FIFO or a device.
 */
#ifndef FILES_H
#define FILES_H

#include "workers.h"

#include <limits.h>
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

int file_copy(struct worker *, const struct request *, struct failure *);
int file_pack(struct worker *, const struct request *, struct failure *);
int file_unpack(struct worker *, const struct request *, struct failure *);

/* ---- paths (files_paths.c) --------------------------------------------------------------------------------- */

/* The path under a tag; a relative one is put behind the worker's directory. */
int get_path(const struct worker *, const struct request *, enum tag, char path[static MAX_PATH + 1],
             struct failure *);

/* Open the directory that a path lies in; *name is its last component.  Trailing slashes are cut off the path. */
int open_parent(char *path, const char **name, struct failure *);

/* The place that a chain of symbolic links ends in, so that an atomic write replaces the file and not a link to it.
 * Only the last component needs this. */
int follow_links(char path[static MAX_PATH + 1], struct failure *);

/* Replace a file's path by that of the file its upload is collected in, piece by piece. */
int part_path(char path[static MAX_PATH + 1], struct failure *);

/* Random names for what is not complete yet, hidden beside it. */
enum { TEMPORARY_NAME = 32 };
int temporary_name(char name[static TEMPORARY_NAME], struct failure *);

/* Who shall own what is made; (uid_t)-1 and (gid_t)-1 where the request does not say. */
struct owner {
    uid_t uid;
    gid_t gid;
};
int get_owner(const struct request *, struct owner *, struct failure *);

/* Make `path` and the directories above it that are missing, counting those made. */
int make_directories(const char *path, mode_t mode, const struct owner *, unsigned *made, struct failure *);
/* Make the directories above `path` that are missing. */
int make_parents(const char *path, const struct owner *, struct failure *);

/* Open a regular file; anything else fails with EISDIR or kind "not_regular", at once. */
int open_regular(const char *path, int flags, mode_t mode, struct stat *, struct failure *);
int not_regular(const char *path, struct failure *);

/* ---- trees ------------------------------------------------------------------------------------------------- */

/* The names in a directory, in the order of their bytes. */
struct names {
    char **items;
    size_t count;
    char *bytes;
};
/* -1 with errno set.  The directory stays open, whatever happens. */
int names_read(int directory, struct names *);
void names_free(struct names *);

/* Never follows a link in the last component when flags say O_NOFOLLOW. */
int open_directory(int at, const char *name, int flags);

/* Where a walk through a tree is, for messages and answers: append a component, and cut it off again.  -1 when it
 * does not fit, with errno set. */
struct place {
    char path[MAX_PATH + 1];
    size_t length;
};
int place_enter(struct place *, const char *name);
void place_leave(struct place *, size_t length);

/* Let us into directories of our own that their modes keep us out of. */
void make_removable(int at, const char *name);
/* Remove a directory and all in it; -1 with errno set. */
int remove_tree(int at, const char *name, unsigned *removed);

/* One ENTRY frame: `name` is looked up in directory `at`; `path` is what the entry is called in the answer. */
struct entry_extra {
    const char *real_path;   /* or NULL */
    const char *hardlink_to; /* or NULL: it is another name of this one */
};
int put_entry(struct worker *, int at, const char *name, const char *path, const struct stat *,
              const struct entry_extra *);

/* Both times of a file, as fields. */
void put_times(struct frame_writer *, const struct stat *);

#endif
