/* Where a sidecar is, and writing it: into NAME.part, locked so that one process writes at a time and a later one reuses what a
 * killed one left, then renamed. The page cache is emptied behind the writing, so that it does not count as memory of this
 * process's group. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/error.h"
#include "model/sidecar.h"

enum {
    WRITE_CHUNK = 8 << 20,
    MIN_FREE = 1 << 30, /* bytes that must stay free on the disk */
};

/* ---- places ----------------------------------------------------------------------------------------------------------- */

/* `path` up to its last slash, in a caller's buffer; "." without one. */
static const char *folder_of(const char *path, char out[4096]) {
    const char *slash = strrchr(path, '/');
    snprintf(out, 4096, "%.*s", slash ? (int)(slash - path) + (slash == path) : 1, slash ? path : ".");
    return out;
}

bool sidecar_can_write(const char *path) {
    char folder[4096];
    folder_of(path, folder);
    /* A folder that is not there yet can be made where the one above can be written. */
    while (access(folder, F_OK) != 0 && errno == ENOENT && strchr(folder, '/')) {
        char above[4096];
        memcpy(folder, folder_of(folder, above), strlen(above) + 1);
    }
    return faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS) == 0;
}

int sidecar_paths(const char *model_path, const char *where, char *paths[2], weir_error *err) {
    /* Links to one model file share its sidecar. */
    char *real = realpath(model_path, NULL);
    const char *model = real ? real : model_path, *slash = strrchr(model, '/'), *name = slash ? slash + 1 : model;
    const unsigned long long key = XXH3_64bits(model, strlen(model));
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = 0;
    bool failed = false;
    if (where[0]) {
        failed = asprintf(&paths[n++], "%s/%s.%016llx.weir", where, name, key) < 0;
    } else {
        failed = asprintf(&paths[n++], "%s.weir", model) < 0;
        if (cache && cache[0] == '/')
            failed |= asprintf(&paths[n++], "%s/weir/%s.%016llx.weir", cache, name, key) < 0;
        else if (home && home[0] == '/')
            failed |= asprintf(&paths[n++], "%s/.cache/weir/%s.%016llx.weir", home, name, key) < 0;
    }
    free(real);
    if (failed) paths[n - 1] = NULL; /* whose value is not defined then */
    FAIL_IF(failed, err, WEIR_E_NOMEM, model_path, "no memory for a path");
    return 0;
}

/* Makes the folder of `path` and those above it; a failure shows when the file is opened. */
static void make_folders(const char *path) {
    char folder[4096];
    folder_of(path, folder);
    for (char *at = folder + 1; *at; at++) {
        if (*at != '/') continue;
        *at = '\0';
        (void)mkdir(folder, 0755);
        *at = '/';
    }
    (void)mkdir(folder, 0755);
}

/* ---- the file being written ------------------------------------------------------------------------------------------- */

/* Opens and locks `part`. 1; 0 when another process is writing it. */
static int open_part(const char *part, int *out, weir_error *err) {
    for (int attempt = 0; attempt < 3; attempt++) {
        int fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        FAIL_IF(fd < 0, err, WEIR_E_IO, part, "cannot be written: %s", strerror(errno));
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            const int reason = errno;
            close(fd);
            if (reason == EWOULDBLOCK) return 0;
            FAIL(err, WEIR_E_IO, part, "cannot be locked: %s", strerror(reason));
        }
        /* Whoever held the lock before may have renamed or removed the file: then this is no longer the one to write. */
        struct stat mine, there;
        if (fstat(fd, &mine) == 0 && lstat(part, &there) == 0 && mine.st_ino == there.st_ino && mine.st_dev == there.st_dev) {
            *out = fd;
            if (S_ISREG(mine.st_mode) && mine.st_uid == geteuid() && mine.st_nlink == 1) return 1;
            close(fd);
            FAIL(err, WEIR_E_IO, part, "is there and is no file of this user's own");
        }
        close(fd);
    }
    return 0;
}

/* Whether n_bytes fit, with enough left for others, and takes the room where the file system can. */
static int take_room(int fd, const char *part, uint64_t n_bytes, weir_error *err) {
    struct statvfs disk;
    struct rlimit limit;
    FAIL_IF(getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && n_bytes > limit.rlim_cur, err,
            WEIR_E_LIMIT, part, "%.1f MB exceed the limit for files (ulimit -f)", (double)n_bytes / 1e6);
    if (fstatvfs(fd, &disk) == 0) {
        const uint64_t left = (uint64_t)disk.f_bavail * disk.f_frsize;
        FAIL_IF(left < n_bytes || left - n_bytes < MIN_FREE, err, WEIR_E_LIMIT, part,
                "%.1f MB are needed and %.1f MB free; %.1f MB must stay free", (double)n_bytes / 1e6, (double)left / 1e6,
                MIN_FREE / 1e6);
    }
    if (fallocate(fd, 0, 0, (off_t)n_bytes) == 0 || errno == EOPNOTSUPP || errno == ENOSYS || errno == EINTR) return 0;
    FAIL(err, errno == ENOSPC || errno == EDQUOT ? WEIR_E_LIMIT : WEIR_E_IO, part, "no room for %.1f MB: %s",
         (double)n_bytes / 1e6, strerror(errno));
}

static int write_all(int fd, const char *part, const void *bytes, size_t n, uint64_t at, weir_error *err) {
    for (size_t done = 0; done < n;) {
        ssize_t wrote = pwrite(fd, (const char *)bytes + done, n - done, (off_t)(at + done));
        if (wrote < 0 && errno == EINTR) continue;
        FAIL_IF(wrote <= 0, err, WEIR_E_IO, part, "cannot be written: %s", wrote < 0 ? strerror(errno) : "no progress");
        done += (size_t)wrote;
    }
    return 0;
}

/* Starts writing [at, at + n) to the disk, waits for the chunk before it and drops that from the page cache. */
static void flush_chunk(int fd, uint64_t at, size_t n) {
    (void)sync_file_range(fd, (off_t)at, (off_t)n, SYNC_FILE_RANGE_WRITE);
    if (at < WRITE_CHUNK) return;
    const off_t before = (off_t)(at - WRITE_CHUNK);
    (void)sync_file_range(fd, before, WRITE_CHUNK,
                          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    (void)posix_fadvise(fd, before, WRITE_CHUNK, POSIX_FADV_DONTNEED);
}

/* Where the sums have come to while the data is written in one go. */
typedef struct summing {
    XXH3_state_t *state;
    sidecar_start *head;
    uint64_t entry;
} summing;

static void sum_chunk(summing *s, const unsigned char *data, uint64_t at, uint64_t end) {
    while (at < end) {
        sidecar_entry *e = &sidecar_entries(s->head)[s->entry];
        const uint64_t last = e->offset + e->n_bytes, stop = last < end ? last : end;
        XXH3_128bits_update(s->state, data + at, stop - at);
        at = stop;
        if (at < last) return;
        XXH128_canonicalFromHash((XXH128_canonical_t *)e->checksum, XXH3_128bits_digest(s->state));
        XXH3_128bits_reset(s->state);
        s->entry++;
    }
}

/* The data, then the head with its sums. */
static int write_weights(const weir_model *m, int fd, const char *part, sidecar_start *head, weir_progress_fn progress,
                         void *user, weir_error *err) {
    summing s = {.state = XXH3_createState(), .head = head};
    FAIL_IF(s.state == NULL, err, WEIR_E_NOMEM, part, "no memory for a checksum");
    XXH3_128bits_reset(s.state);
    int rc = 0;
    for (uint64_t at = 0; at < head->data_bytes && rc == 0;) {
        const size_t n = head->data_bytes - at < WRITE_CHUNK ? (size_t)(head->data_bytes - at) : WRITE_CHUNK;
        rc = write_all(fd, part, m->weights + at, n, head->data_offset + at, err);
        if (rc < 0) break;
        sum_chunk(&s, m->weights, at, at + n);
        flush_chunk(fd, head->data_offset + at, n);
        at += n;
        if (progress && !progress(user, at, head->data_bytes))
            rc = error_set(err, WEIR_E_CANCELLED, part, "writing was stopped");
    }
    XXH3_freeState(s.state);
    TRY(rc);
    sidecar_seal(head);
    TRY(write_all(fd, part, head, head->head_bytes, 0, err));
    FAIL_IF(fsync(fd) != 0, err, WEIR_E_IO, part, "cannot be written: %s", strerror(errno));
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return 0;
}

/* Readable by whoever can read the model; writable by its owner alone. */
static mode_t mode_for(const char *model_path) {
    struct stat st;
    return stat(model_path, &st) == 0 ? (st.st_mode & 0444) | 0600 : 0600;
}

static int write_part(const weir_model *m, int fd, const char *part, weir_progress_fn progress, void *user, weir_error *err) {
    const struct sidecar *s = m->sidecar;
    const char *model_path = gguf_path(m->file);
    FAIL_IF(ftruncate(fd, 0) != 0 || fchmod(fd, mode_for(model_path)) != 0, err, WEIR_E_IO, part, "cannot be written: %s",
            strerror(errno));
    TRY(sidecar_trust(fd, part, model_path, err)); /* on a file system without modes nobody would use it */
    TRY(take_room(fd, part, s->head->data_offset + s->head->data_bytes, err));
    sidecar_start *head = malloc(s->head->head_bytes);
    FAIL_IF(head == NULL, err, WEIR_E_NOMEM, part, "no memory for the list of tensors");
    memcpy(head, s->head, s->head->head_bytes);
    int rc = write_weights(m, fd, part, head, progress, user, err);
    free(head);
    TRY(rc);
    FAIL_IF(rename(part, s->path) != 0, err, WEIR_E_IO, s->path, "cannot be put in place: %s", strerror(errno));
    char folder[4096];
    int directory = open(folder_of(s->path, folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0) {
        (void)fsync(directory); /* if it is lost, it is written again */
        close(directory);
    }
    return 1;
}

/* A sidecar that another process has written since this one looked. */
static bool is_there(const weir_model *m) {
    const struct sidecar *s = m->sidecar;
    sidecar_start *head = NULL;
    int fd = s->rejected.code ? -1 : open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const bool sound = fd >= 0 && sidecar_check(s, fd, s->path, gguf_path(m->file), &head, NULL) == 0;
    free(head);
    if (fd >= 0) close(fd);
    return sound;
}

int weir_model_save_weights(const weir_model *m, weir_progress_fn progress, void *user, weir_error *err) {
    const struct sidecar *s = m->sidecar;
    if (s == NULL || s->loaded) return 0;
    FAIL_IF(s->path == NULL, err, WEIR_E_IO, s->paths[0], "the folder cannot be written%s%s",
            s->paths[1] ? ", nor that of " : "", s->paths[1] ? s->paths[1] : "");
    if (is_there(m)) return 0;
    make_folders(s->path);
    char *part;
    FAIL_IF(asprintf(&part, "%s.part", s->path) < 0, err, WEIR_E_NOMEM, s->path, "no memory for a path");
    int fd = -1, rc = open_part(part, &fd, err);
    if (rc == 1) {
        rc = write_part(m, fd, part, progress, user, err);
        if (rc < 0) (void)unlink(part); /* before the lock goes with the descriptor */
        close(fd);
    }
    free(part);
    return rc;
}
