/* A file that takes its place whole: it is written under a name of its own beside it and then renamed over whatever was there, so that a
 * reader sees the old content or the new, also after a power cut. Knows nothing of what is written. Owned by one thread. */
#ifndef WEIR_BASE_NEW_FILE_H
#define WEIR_BASE_NEW_FILE_H

#include "weir/weir_error.h"

typedef struct new_file {
    int fd; /* for writing; -1 once it is in place */
    char *path, *temporary;
} new_file;

/* Creates it, with the permissions `mode` less the umask. WEIR_E_IO (also where `path` is no regular file), WEIR_E_NOMEM; the place
 * is the path. */
int new_file_open(new_file *f, const char *path, unsigned mode, weir_error *err);
/* Puts it in place once all of it is on the disk. WEIR_E_IO. new_file_close must follow in either case. */
int new_file_commit(new_file *f, weir_error *err);
/* Frees f, and removes the file if it was not put in place. Accepts one that is all zeros or failed to open. */
void new_file_close(new_file *f);

#endif
