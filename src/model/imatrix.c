/* See imatrix.h. */
#include "model/imatrix.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/checked.h"
#include "base/error.h"
#include "gguf/gguf.h"

enum { MAX_ENTRIES = 1 << 20, MAX_NAME = 1024 };

struct imatrix {
    arena memory;
    imatrix_entry *entries; /* sorted by name */
    size_t n_entries, capacity;
    uint32_t n_chunks;
    const char *dataset;
};

/* ---- entries ---------------------------------------------------------------------------------------------------------- */

/* Adds an entry with room for its values; the caller fills them. NULL without memory. */
static imatrix_entry *add_entry(imatrix *im, const char *name, size_t name_bytes, size_t n_values) {
    if (im->n_entries == im->capacity) {
        size_t capacity = im->capacity ? im->capacity * 2 : 256;
        imatrix_entry *larger = realloc(im->entries, capacity * sizeof *larger);
        if (larger == NULL) return NULL;
        im->entries = larger;
        im->capacity = capacity;
    }
    imatrix_entry e = {.name = arena_strndup(&im->memory, name, name_bytes),
                       .n_values = n_values,
                       .means = arena_array(&im->memory, n_values, sizeof *e.means)};
    if (e.name == NULL || e.means == NULL) return NULL;
    im->entries[im->n_entries] = e;
    return &im->entries[im->n_entries++];
}

static int check_values(const imatrix_entry *e, const char *path, weir_error *err) {
    for (size_t i = 0; i < e->n_values; i++) {
        FAIL_IF(!isfinite(e->means[i]) || e->means[i] < 0, err, WEIR_E_FORMAT, path,
                "value %zu of %s is %g; a mean of squares is finite and not negative", i, e->name, (double)e->means[i]);
    }
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const imatrix_entry *)a)->name, ((const imatrix_entry *)b)->name);
}

static int sort_entries(imatrix *im, const char *path, weir_error *err) {
    if (im->n_entries) qsort(im->entries, im->n_entries, sizeof *im->entries, by_name);
    for (size_t i = 1; i < im->n_entries; i++) {
        FAIL_IF(by_name(&im->entries[i - 1], &im->entries[i]) == 0, err, WEIR_E_FORMAT, path, "%s occurs more than once",
                im->entries[i].name);
    }
    return 0;
}

const imatrix_entry *imatrix_find(const imatrix *im, const char *name) {
    imatrix_entry wanted = {.name = name};
    return im->n_entries ? bsearch(&wanted, im->entries, im->n_entries, sizeof wanted, by_name) : NULL;
}

size_t imatrix_n_entries(const imatrix *im) {
    return im->n_entries;
}
const imatrix_entry *imatrix_at(const imatrix *im, size_t i) {
    return i < im->n_entries ? &im->entries[i] : NULL;
}
uint32_t imatrix_n_chunks(const imatrix *im) {
    return im->n_chunks;
}
const char *imatrix_dataset(const imatrix *im) {
    return im->dataset ? im->dataset : "";
}

/* ---- the binary form -------------------------------------------------------------------------------------------------- */

/* int32 n_entries; per entry: int32 name_bytes, name, int32 n_calls, int32 n_values, float sums[n_values]; then, if the file
 * goes on, int32 n_chunks, int32 dataset_bytes, dataset. A sum is n_calls times the mean. */
typedef struct cursor {
    const unsigned char *bytes;
    size_t n_bytes, at;
    const char *path;
    weir_error *err;
} cursor;

static int fail_at(const cursor *c, const char *what) {
    char place[160];
    size_t n = strlen(c->path);
    snprintf(place, sizeof place, "%s: byte %zu", n > 120 ? c->path + n - 120 : c->path, c->at);
    FAIL(c->err, WEIR_E_FORMAT, place, "%s; not an importance matrix file, or a damaged one", what);
}

/* A count from `low` to what fits in the rest of the file with `unit` bytes each. */
static int take_count(cursor *c, int32_t low, size_t unit, const char *what, int32_t *out) {
    if (c->n_bytes - c->at < 4) return fail_at(c, "the file ends early");
    uint32_t bits = 0;
    for (int i = 3; i >= 0; i--) bits = bits << 8 | c->bytes[c->at + (size_t)i];
    if (bits > INT32_MAX || (int32_t)bits < low || (unit && bits > (c->n_bytes - c->at - 4) / unit)) return fail_at(c, what);
    c->at += 4;
    *out = (int32_t)bits;
    return 0;
}

static int parse_entry(cursor *c, imatrix *im) {
    int32_t name_bytes, n_calls, n_values;
    TRY(take_count(c, 1, 1, "a name's length is out of range", &name_bytes));
    if (name_bytes > MAX_NAME || memchr(c->bytes + c->at, 0, (size_t)name_bytes)) return fail_at(c, "a name is not text");
    const char *name = (const char *)c->bytes + c->at;
    c->at += (size_t)name_bytes;
    TRY(take_count(c, 0, 0, "a number of calls is negative", &n_calls));
    TRY(take_count(c, 1, sizeof(float), "a number of values is out of range", &n_values));
    imatrix_entry *e = add_entry(im, name, (size_t)name_bytes, (size_t)n_values);
    FAIL_IF(e == NULL, c->err, WEIR_E_NOMEM, c->path, "no memory for its entries");
    memcpy(e->means, c->bytes + c->at, (size_t)n_values * sizeof *e->means);
    c->at += (size_t)n_values * sizeof *e->means;
    for (int32_t i = 0; i < n_values && n_calls > 0; i++) e->means[i] /= (float)n_calls;
    return check_values(e, c->path, c->err);
}

static int parse_binary(cursor *c, imatrix *im) {
    enum { MIN_ENTRY_BYTES = 4 + 1 + 4 + 4 + 4 };
    int32_t n_entries, n_chunks, dataset_bytes;
    TRY(take_count(c, 1, MIN_ENTRY_BYTES, "a number of entries is out of range", &n_entries));
    for (int32_t i = 0; i < n_entries; i++) TRY(parse_entry(c, im));
    if (c->at == c->n_bytes) return 0;
    TRY(take_count(c, 0, 0, "a number of chunks is negative", &n_chunks));
    im->n_chunks = (uint32_t)n_chunks;
    if (c->at == c->n_bytes) return 0;
    TRY(take_count(c, 0, 1, "the length of a name is out of range", &dataset_bytes));
    im->dataset = arena_strndup(&im->memory, (const char *)c->bytes + c->at, (size_t)dataset_bytes);
    FAIL_IF(im->dataset == NULL, c->err, WEIR_E_NOMEM, c->path, "no memory for its entries");
    return 0;
}

/* ---- the GGUF form ---------------------------------------------------------------------------------------------------- */

static float value_at(const gguf_tensor *t, uint64_t i) {
    float value;
    memcpy(&value, t->data + i * sizeof value, sizeof value);
    return value;
}

/* The entry of a tensor NAME.in_sum2; others are passed over. */
static int add_sums(imatrix *im, const gguf *g, const gguf_tensor *sums, weir_error *err) {
    static const char suffix[] = ".in_sum2";
    size_t n_suffix = sizeof suffix - 1, n = sums->name.n_bytes;
    if (n <= n_suffix || memcmp(sums->name.text + n - n_suffix, suffix, n_suffix) != 0) return 0;
    char name[GGUF_MAX_NAME + 16];
    snprintf(name, sizeof name, "%.*s.counts", (int)(n - n_suffix), sums->name.text);
    const gguf_tensor *counts = gguf_find_tensor(g, name);
    FAIL_IF(counts == NULL, err, WEIR_E_FORMAT, gguf_path(g), "%s is missing", name);
    bool sound = sums->format->type == QUANT_F32 && counts->format->type == QUANT_F32 && sums->n_values % counts->n_values == 0;
    FAIL_IF(!sound, err, WEIR_E_FORMAT, gguf_path(g), "%.*s and %s must be F32, with a whole number of sums for each count",
            (int)n, sums->name.text, name);
    imatrix_entry *e = add_entry(im, sums->name.text, n - n_suffix, (size_t)sums->n_values);
    FAIL_IF(e == NULL, err, WEIR_E_NOMEM, gguf_path(g), "no memory for its entries");
    uint64_t n_columns = sums->n_values / counts->n_values;
    for (uint64_t i = 0; i < sums->n_values; i++) {
        float count = value_at(counts, i / n_columns);
        e->means[i] = count > 0 ? value_at(sums, i) / count : 1; /* an expert that was never chosen */
    }
    return check_values(e, gguf_path(g), err);
}

static int parse_gguf(imatrix *im, const gguf *g, weir_error *err) {
    for (size_t i = 0; i < gguf_n_tensors(g); i++) TRY(add_sums(im, g, gguf_tensor_at(g, i), err));
    FAIL_IF(im->n_entries == 0, err, WEIR_E_FORMAT, gguf_path(g),
            "a GGUF file without tensors NAME.in_sum2, as an importance matrix has them");
    TRY(gguf_get_u32(g, "imatrix.chunk_count", &im->n_chunks, err));
    const gguf_key_value *datasets = gguf_find(g, "imatrix.datasets");
    if (datasets && datasets->strings && datasets->n_items) {
        im->dataset = arena_strndup(&im->memory, datasets->strings[0].text, datasets->strings[0].n_bytes);
        FAIL_IF(im->dataset == NULL, err, WEIR_E_NOMEM, gguf_path(g), "no memory for its entries");
    }
    return 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------------ */

int imatrix_parse(imatrix **out, const void *bytes, size_t n_bytes, const char *path, weir_error *err) {
    *out = NULL;
    imatrix *im = calloc(1, sizeof *im);
    FAIL_IF(im == NULL, err, WEIR_E_NOMEM, path, "no memory for its entries");
    int rc;
    if (n_bytes >= 4 && memcmp(bytes, "GGUF", 4) == 0) {
        gguf *g;
        rc = gguf_parse(&g, bytes, n_bytes, path, err);
        if (rc == 0) rc = parse_gguf(im, g, err);
        gguf_close(&g);
    } else {
        cursor c = {.bytes = bytes, .n_bytes = n_bytes, .path = path, .err = err};
        rc = parse_binary(&c, im);
    }
    if (rc >= 0) rc = sort_entries(im, path, err);
    if (rc < 0) {
        imatrix_close(&im);
        return rc;
    }
    *out = im;
    return 0;
}

int imatrix_open(imatrix **out, const char *path, weir_error *err) {
    *out = NULL;
    FILE *file = fopen(path, "rb");
    FAIL_IF(file == NULL, err, WEIR_E_IO, path, "cannot open the file: %s", strerror(errno));
    buf bytes = BUF_INIT;
    size_t n = 1;
    while (n > 0 && buf_reserve(&bytes, 1 << 20)) {
        n = fread(bytes.data + bytes.n_bytes, 1, 1 << 20, file);
        bytes.n_bytes += n;
    }
    int rc = 0;
    if (ferror(file)) rc = error_set(err, WEIR_E_IO, path, "cannot read the file: %s", strerror(errno));
    if (bytes.failed) rc = error_set(err, WEIR_E_NOMEM, path, "no memory for the file");
    fclose(file);
    if (rc == 0) rc = imatrix_parse(out, bytes.data, bytes.n_bytes, path, err);
    buf_free(&bytes);
    return rc;
}

void imatrix_close(imatrix **im) {
    if (im == NULL || *im == NULL) return;
    arena_free(&(*im)->memory);
    free((*im)->entries);
    free(*im);
    *im = NULL;
}
