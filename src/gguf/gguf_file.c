/* Mapping model files and putting the parts of a split one together. See gguf.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "gguf/gguf_internal.h"

int gguf_map_file(const char *path, void **mapping, size_t *n_bytes, int64_t *modified_ns, weir_error *err) {
    *mapping = NULL;
    *n_bytes = 0;
    char place[GGUF_PLACE_BYTES];
    gguf_place(place, sizeof place, path, NULL, (gguf_string){0}, -1);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* non-blocking: a named pipe must not hold us up */
    if (fd < 0) FAIL(err, WEIR_E_IO, place, "cannot open the file: %s", strerror(errno));
    struct stat st;
    int rc = 0;
    if (fstat(fd, &st) != 0) {
        rc = error_set(err, WEIR_E_IO, place, "cannot read the size of the file: %s", strerror(errno));
    } else if (S_ISDIR(st.st_mode)) {
        rc = error_set(err, WEIR_E_IO, place, "is a directory; expected a model file");
    } else if (!S_ISREG(st.st_mode)) {
        rc = error_set(err, WEIR_E_IO, place, "is not a regular file, which could be mapped");
    } else if (st.st_size > 0) {
        void *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED) {
            rc = error_set(err, errno == ENOMEM ? WEIR_E_NOMEM : WEIR_E_IO, place, "cannot map the file (%lld bytes): %s",
                           (long long)st.st_size, strerror(errno));
        } else {
            *mapping = bytes;
            *n_bytes = (size_t)st.st_size;
            *modified_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
        }
    }
    close(fd);
    return rc;
}

void gguf_unmap_file(void *mapping, size_t n_bytes) {
    if (mapping) munmap(mapping, n_bytes);
}

/* Maps and parses one file; the object owns the mapping. */
static int open_one(gguf **out, const char *path, weir_error *err) {
    *out = NULL;
    void *mapping;
    size_t n_bytes;
    int64_t modified_ns = 0;
    TRY(gguf_map_file(path, &mapping, &n_bytes, &modified_ns, err));
    int rc = gguf_parse(out, mapping, n_bytes, path, err);
    if (rc < 0) {
        if (mapping) munmap(mapping, n_bytes);
        return rc;
    }
    (*out)->mapping = mapping;
    (*out)->modified_ns = modified_ns;
    return 0;
}

/* Fails with a key of the file as the place. */
#define FAIL_KEY(err, code, path_, key_, ...)                                                                                  \
    do {                                                                                                                       \
        char place_[GGUF_PLACE_BYTES];                                                                                         \
        gguf_place(place_, sizeof place_, (path_), "key", (gguf_string){(key_), strlen(key_)}, -1);                            \
        FAIL((err), (code), place_, __VA_ARGS__);                                                                              \
    } while (0)

/* Number and count of the parts that `g` says it belongs to; a file that says nothing is part 0 of 1. */
static int split_of(const gguf *g, uint32_t *number, uint32_t *count, weir_error *err) {
    *number = 0;
    *count = 1;
    TRY(gguf_get_u32(g, "split.no", number, err));
    TRY(gguf_get_u32(g, "split.count", count, err));
    if (*count == 0) *count = 1; /* written by tools for a file that was not split after all */
    if (*count > UINT16_MAX) FAIL_KEY(err, WEIR_E_FORMAT, g->path, "split.count", "%u parts; the limit is 65535", *count);
    if (*number >= *count) {
        FAIL_KEY(err, WEIR_E_FORMAT, g->path, "split.no", "part number %u (from 0) of a model in %u parts", *number, *count);
    }
    return 0;
}

/* The suffix that names the first of `count` parts. */
static void split_suffix(char *suffix, size_t capacity, uint32_t number, uint32_t count) {
    snprintf(suffix, capacity, "-%05u-of-%05u.gguf", number + 1, count);
}

/* Opens parts 1.. of a split model into g->parts. On failure those opened so far stay there, for gguf_close. */
static int open_parts(gguf *g, uint32_t count, weir_error *err) {
    char suffix[40];
    split_suffix(suffix, sizeof suffix, 0, count);
    size_t path_bytes = strlen(g->path), suffix_bytes = strlen(suffix);
    if (path_bytes < suffix_bytes || strcmp(g->path + path_bytes - suffix_bytes, suffix) != 0) {
        FAIL_KEY(err, WEIR_E_FORMAT, g->path, "split.count",
                 "the first of %u parts must have a name that ends in %s, to find the others", count, suffix);
    }
    g->parts = arena_array(&g->memory, count, sizeof *g->parts);
    char *path = arena_alloc(&g->memory, path_bytes + sizeof suffix);
    if (g->parts == NULL || path == NULL) FAIL(err, WEIR_E_NOMEM, g->path, "no memory for %u parts", count);
    g->parts[0] = g;
    for (uint32_t i = 1; i < count; i++) {
        memcpy(path, g->path, path_bytes - suffix_bytes);
        split_suffix(path + path_bytes - suffix_bytes, sizeof suffix, i, count);
        TRY(open_one(&g->parts[i], path, err));
        g->n_parts = i + 1;
        uint32_t number, part_count;
        TRY(split_of(g->parts[i], &number, &part_count, err));
        if (number != i || part_count != count) {
            FAIL_KEY(err, WEIR_E_FORMAT, path, "split.no",
                     "says part %u of %u; its name and the first part say %u of %u (from 0)", number, part_count, i, count);
        }
    }
    return 0;
}

/* One list of tensors over all parts. */
static int merge_tensors(gguf *g, weir_error *err) {
    size_t total = 0;
    for (uint32_t i = 0; i < g->n_parts; i++) total += g->parts[i]->n_tensors;
    uint32_t expected;
    int known = gguf_get_u32(g, "split.tensors.count", &expected, err);
    TRY(known);
    if (known && expected != total) {
        FAIL_KEY(err, WEIR_E_FORMAT, g->path, "split.tensors.count", "says %u tensors, but the %u parts hold %zu", expected,
                 g->n_parts, total);
    }
    gguf_tensor *tensors = arena_array(&g->memory, total, sizeof *tensors);
    if (tensors == NULL) FAIL(err, WEIR_E_NOMEM, g->path, "no memory for %zu tensors", total);
    size_t n = 0;
    for (uint32_t i = 0; i < g->n_parts; i++) {
        const gguf *part = g->parts[i];
        for (size_t k = 0; k < part->n_tensors; k++, n++) {
            tensors[n] = part->tensors[k];
            tensors[n].part = (uint16_t)i;
        }
    }
    const gguf_string *duplicate = NULL;
    int rc = gguf_index_names(&g->memory, &g->names, tensors, total, sizeof *tensors, &duplicate);
    if (rc < 0) FAIL(err, WEIR_E_NOMEM, g->path, "no memory for an index of names");
    if (rc == 1) {
        uint32_t part = ((const gguf_tensor *)duplicate)->part;
        char place[GGUF_PLACE_BYTES];
        gguf_place(place, sizeof place, g->parts[part]->path, "tensor", *duplicate, -1);
        FAIL(err, WEIR_E_FORMAT, place, "the name occurs in more than one part");
    }
    g->tensors = tensors;
    g->n_tensors = total;
    return 0;
}

int gguf_open(gguf **out, const char *path, weir_error *err) {
    *out = NULL;
    gguf *g;
    TRY(open_one(&g, path, err));
    uint32_t number, count;
    int rc = split_of(g, &number, &count, err);
    if (rc == 0 && number != 0) {
        char place[GGUF_PLACE_BYTES];
        gguf_place(place, sizeof place, path, NULL, (gguf_string){0}, -1);
        rc = error_set(err, WEIR_E_FORMAT, place,
                       "part %u of a model in %u parts; open the first part, which brings in the others", number + 1, count);
    }
    if (rc == 0 && count > 1) rc = open_parts(g, count, err);
    if (rc == 0 && count > 1) rc = merge_tensors(g, err);
    if (rc < 0) {
        gguf_close(&g);
        return rc;
    }
    *out = g;
    return 0;
}

void gguf_close(gguf **g) {
    if (g == NULL || *g == NULL) return;
    for (uint32_t i = 1; i < (*g)->n_parts; i++) gguf_close(&(*g)->parts[i]);
    if ((*g)->mapping) munmap((*g)->mapping, (*g)->n_bytes);
    arena_free(&(*g)->memory);
    free(*g);
    *g = NULL;
}

static const gguf *part_of(const gguf *g, uint32_t i) { return i == 0 ? g : g->parts[i]; }

gguf_part gguf_part_at(const gguf *g, uint32_t i) {
    const gguf *part = part_of(g, i);
    return (gguf_part){part->path, part->bytes, part->head_bytes, part->n_bytes, part->modified_ns};
}

/* Whole pages from the one that `bytes` is in. The page that the range ends in belongs to what follows. A kernel that cannot take
 * the advice changes nothing for us. */
static void advise(const gguf *g, const void *bytes, size_t n_bytes, int advice) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)bytes;
    for (uint32_t i = 0; i < g->n_parts; i++) {
        const gguf *part = part_of(g, i);
        const uintptr_t first = (uintptr_t)part->mapping;
        if (part->mapping == NULL) continue;
        if (bytes == NULL) {
            (void)madvise(part->mapping, part->n_bytes, advice);
        } else if (from >= first && from - first < part->n_bytes && n_bytes <= part->n_bytes - (from - first)) {
            const uintptr_t begin = from / page * page, end = (from + n_bytes) / page * page;
            if (end > begin) (void)madvise((void *)begin, end - begin, advice);
            return;
        }
    }
}

void gguf_will_need(const gguf *g, const void *bytes, size_t n_bytes) { advise(g, bytes, n_bytes, MADV_WILLNEED); }
void gguf_dont_need(const gguf *g, const void *bytes, size_t n_bytes) { advise(g, bytes, n_bytes, MADV_DONTNEED); }

const char *gguf_container(const gguf *g) {
    return g->container ? g->container : "GGUF";
}

uint64_t gguf_file_bytes(const gguf *g) {
    uint64_t total = g->n_bytes;
    for (uint32_t i = 1; i < g->n_parts; i++) total += g->parts[i]->n_bytes;
    return total;
}
