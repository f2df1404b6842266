/* See new_file.h. */
#include "base/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

enum { MAX_TEMPORARIES = 100 };

/* The directory entry of a new file survives a power cut only when the folder is synced too; where that is impossible the file
 * is none the worse. */
static void sync_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(folder);
}

int new_file_open(new_file *f, const char *path, unsigned mode, weir_error *err) {
    struct stat st;
    *f = (new_file){.fd = -1};
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        FAIL(err, WEIR_E_IO, path, "is %s; expected a name for a file", S_ISDIR(st.st_mode) ? "a directory" : "not a regular file");
    const size_t capacity = strlen(path) + 48;
    char *name = malloc(capacity);
    f->path = strdup(path);
    if (name == NULL || f->path == NULL) {
        free(name);
        FAIL(err, WEIR_E_NOMEM, path, "no memory for a name");
    }
    for (int i = 0; i < MAX_TEMPORARIES; i++) {
        snprintf(name, capacity, "%s.part-%ld-%d", path, (long)getpid(), i);
        f->fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (f->fd >= 0) {
            f->temporary = name;
            return 0;
        }
        if (errno != EEXIST) break;
    }
    const int reason = errno;
    free(name);
    FAIL(err, WEIR_E_IO, path, "cannot create the file: %s", strerror(reason));
}

int new_file_commit(new_file *f, weir_error *err) {
    FAIL_IF(fsync(f->fd) != 0, err, WEIR_E_IO, f->path, "cannot write the file: %s", strerror(errno));
    const int fd = f->fd;
    f->fd = -1;
    FAIL_IF(close(fd) != 0, err, WEIR_E_IO, f->path, "cannot write the file: %s", strerror(errno));
    FAIL_IF(rename(f->temporary, f->path) != 0, err, WEIR_E_IO, f->path, "cannot rename %s to it: %s", f->temporary, strerror(errno));
    free(f->temporary);
    f->temporary = NULL;
    sync_folder(f->path);
    return 0;
}

void new_file_close(new_file *f) {
    if (f->temporary) {
        if (f->fd >= 0) close(f->fd);
        (void)unlink(f->temporary);
    }
    free(f->temporary);
    free(f->path);
    *f = (new_file){.fd = -1};
}
