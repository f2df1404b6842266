/* The writer. See gguf_write.h. Format: GGUF specification of the ggml project, version 3, little-endian. */
#include "gguf/gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/new_file.h"
#include "gguf/gguf_internal.h"

enum { VERSION = 3, DEFAULT_ALIGNMENT = 32, MAX_KEY = 65535 };

/* Both begin with their name, for gguf_index_names. */
typedef struct writer_key {
    gguf_string key;
    const unsigned char *value; /* from its type on, as it stands in the file */
    size_t n_bytes;
} writer_key;

typedef struct writer_tensor {
    gguf_string name;
    uint32_t n_dims;
    uint64_t dims[GGUF_MAX_DIMS];
    const quant_format *format;
    size_t n_bytes, offset; /* offset: from the start of the data */
} writer_tensor;

struct gguf_writer {
    arena memory; /* names and values */
    char *path;
    new_file file;
    writer_key *keys;
    writer_tensor *tensors;
    size_t n_keys, n_tensors, keys_capacity, tensors_capacity;
    size_t alignment, file_bytes; /* from gguf_writer_begin on */
    size_t current, written;      /* the tensor whose data comes next, and how much of it is written */
    bool begun;
    weir_error failure; /* the first of collecting */
};

static int fail_at(const gguf_writer *w, int code, weir_error *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int fail_at(const gguf_writer *w, int code, weir_error *err, const char *format, ...) {
    char place[GGUF_PLACE_BYTES];
    gguf_place(place, sizeof place, w->path, NULL, (gguf_string){0}, -1);
    va_list args;
    va_start(args, format);
    error_setv(err, code, place, format, args);
    va_end(args);
    return code;
}

/* ---- collecting ------------------------------------------------------------------------------------------------------- */

static void keep_failure(gguf_writer *w, int code, const char *subject, gguf_string name, const char *message) {
    if (w->failure.code) return;
    char place[GGUF_PLACE_BYTES];
    gguf_place(place, sizeof place, w->path, subject, name, -1);
    error_set(&w->failure, code, place, "%s", message);
}

/* Room for one more item of `size` bytes; false when there is no memory. */
static bool grow(void **items, size_t *capacity, size_t n, size_t size) {
    if (n < *capacity) return true;
    size_t wanted = *capacity ? *capacity * 2 : 64, n_bytes;
    void *larger = checked_mul(wanted, size, &n_bytes) ? realloc(*items, n_bytes) : NULL;
    if (larger == NULL) return false;
    *items = larger;
    *capacity = wanted;
    return true;
}

static unsigned char *copy_bytes(gguf_writer *w, const void *bytes, size_t n_bytes) {
    unsigned char *copy = arena_alloc(&w->memory, n_bytes);
    if (copy && n_bytes) memcpy(copy, bytes, n_bytes);
    return copy;
}

/* Adds the value, which is `head` (its type, and item type and count of an array) followed by `body`. */
static void add_key(gguf_writer *w, gguf_string key, const void *head, size_t head_bytes, const void *body, size_t body_bytes) {
    if (w->failure.code) return;
    if (key.n_bytes == 0 || key.n_bytes > MAX_KEY) {
        keep_failure(w, WEIR_E_INVALID, "key", key, "the key must have 1 to 65535 bytes");
        return;
    }
    size_t n_bytes;
    unsigned char *name = copy_bytes(w, key.text, key.n_bytes);
    unsigned char *value = checked_add(head_bytes, body_bytes, &n_bytes) ? arena_alloc(&w->memory, n_bytes) : NULL;
    if (name == NULL || value == NULL || !grow((void **)&w->keys, &w->keys_capacity, w->n_keys, sizeof *w->keys)) {
        keep_failure(w, WEIR_E_NOMEM, "key", key, "no memory for its value");
        return;
    }
    memcpy(value, head, head_bytes);
    if (body_bytes) memcpy(value + head_bytes, body, body_bytes);
    w->keys[w->n_keys++] = (writer_key){{(const char *)name, key.n_bytes}, value, n_bytes};
}

static void put_number(unsigned char *out, uint64_t value, size_t width) {
    for (size_t i = 0; i < width; i++) out[i] = (unsigned char)(value >> (8 * i));
}

static gguf_string text_of(const char *text) {
    return (gguf_string){text, strlen(text)};
}

static void add_scalar(gguf_writer *w, const char *key, gguf_value_type type, uint64_t bits, size_t width) {
    unsigned char head[4], body[8];
    put_number(head, type, 4);
    put_number(body, bits, width);
    add_key(w, text_of(key), head, sizeof head, body, width);
}

void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value) {
    add_scalar(w, key, GGUF_UINT32, value, 4);
}
void gguf_writer_u64(gguf_writer *w, const char *key, uint64_t value) {
    add_scalar(w, key, GGUF_UINT64, value, 8);
}
void gguf_writer_i32(gguf_writer *w, const char *key, int32_t value) {
    add_scalar(w, key, GGUF_INT32, (uint32_t)value, 4);
}
void gguf_writer_f32(gguf_writer *w, const char *key, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    add_scalar(w, key, GGUF_FLOAT32, bits, 4);
}
void gguf_writer_bool(gguf_writer *w, const char *key, bool value) {
    add_scalar(w, key, GGUF_BOOL, value, 1);
}

void gguf_writer_string(gguf_writer *w, const char *key, const char *value) {
    unsigned char head[12];
    size_t n_bytes = strlen(value);
    put_number(head, GGUF_STRING, 4);
    put_number(head + 4, n_bytes, 8);
    add_key(w, text_of(key), head, sizeof head, value, n_bytes);
}

static void put_array_head(unsigned char head[16], gguf_value_type item_type, size_t n) {
    put_number(head, GGUF_ARRAY, 4);
    put_number(head + 4, item_type, 4);
    put_number(head + 8, n, 8);
}

void gguf_writer_strings(gguf_writer *w, const char *key, const gguf_string *values, size_t n) {
    unsigned char head[16], length[8];
    put_array_head(head, GGUF_STRING, n);
    buf body = BUF_INIT;
    for (size_t i = 0; i < n; i++) {
        put_number(length, values[i].n_bytes, sizeof length);
        buf_append(&body, length, sizeof length);
        buf_append(&body, values[i].text, values[i].n_bytes);
    }
    if (body.failed) {
        keep_failure(w, WEIR_E_NOMEM, "key", text_of(key), "no memory for its strings");
    } else {
        add_key(w, text_of(key), head, sizeof head, body.data, body.n_bytes);
    }
    buf_free(&body);
}

void gguf_writer_array(gguf_writer *w, const char *key, gguf_value_type item_type, const void *items, size_t n) {
    unsigned char head[16];
    size_t item_bytes = gguf_value_type_bytes(item_type), n_bytes;
    if (item_bytes == 0 || !checked_mul(n, item_bytes, &n_bytes)) {
        keep_failure(w, WEIR_E_INVALID, "key", text_of(key), "not an array of numbers that memory can hold");
        return;
    }
    put_array_head(head, item_type, n);
    add_key(w, text_of(key), head, sizeof head, items, n_bytes);
}

void gguf_writer_copy(gguf_writer *w, const gguf_key_value *kv) {
    unsigned char head[16];
    size_t n = (size_t)kv->n_items, n_bytes = n * gguf_value_type_bytes(kv->item_type);
    if (kv->item_type == GGUF_STRING) { /* from the length of the first to the end of the last */
        n_bytes = n ? (size_t)((const unsigned char *)kv->strings[n - 1].text - kv->data) + kv->strings[n - 1].n_bytes : 0;
    }
    if (kv->type == GGUF_ARRAY) {
        put_array_head(head, kv->item_type, n);
        add_key(w, kv->key, head, sizeof head, kv->data, n_bytes);
    } else {
        put_number(head, kv->type, 4);
        add_key(w, kv->key, head, 4, kv->data, n_bytes);
    }
}

void gguf_writer_copy_all(gguf_writer *w, const gguf *g) {
    static const char split[] = "split.";
    for (size_t i = 0; i < gguf_n_key_values(g); i++) {
        const gguf_key_value *kv = gguf_key_value_at(g, i);
        bool of_parts = kv->key.n_bytes > sizeof split - 1 && memcmp(kv->key.text, split, sizeof split - 1) == 0;
        if (!of_parts) gguf_writer_copy(w, kv);
    }
}

void gguf_writer_tensor(gguf_writer *w, const char *name, size_t name_bytes, uint32_t n_dims, const uint64_t *dims,
                        const quant_format *format) {
    if (w->failure.code) return;
    gguf_string given = {name, name_bytes};
    if (name_bytes == 0 || name_bytes >= GGUF_MAX_NAME || n_dims > GGUF_MAX_DIMS) {
        keep_failure(w, WEIR_E_INVALID, "tensor", given,
                     "a tensor must have a name of 1 to 127 bytes and at most 4 dimensions");
        return;
    }
    writer_tensor t = {.n_dims = n_dims, .format = format};
    size_t n_rows = 1, row_bytes = quant_row_bytes(format, n_dims ? dims[0] : 1);
    bool fits = row_bytes > 0;
    for (uint32_t d = 0; d < n_dims; d++) {
        t.dims[d] = dims[d];
        fits = fits && dims[d] > 0 && (d == 0 || checked_mul(n_rows, dims[d], &n_rows));
    }
    if (!fits || !checked_mul(n_rows, row_bytes, &t.n_bytes)) {
        keep_failure(w, WEIR_E_INVALID, "tensor", given,
                     "its shape is empty, no multiple of the format's blocks, or too large");
        return;
    }
    t.name = (gguf_string){(const char *)copy_bytes(w, name, name_bytes), name_bytes};
    if (t.name.text == NULL || !grow((void **)&w->tensors, &w->tensors_capacity, w->n_tensors, sizeof *w->tensors)) {
        keep_failure(w, WEIR_E_NOMEM, "tensor", given, "no memory for its description");
        return;
    }
    w->tensors[w->n_tensors++] = t;
}

/* ---- laying out ------------------------------------------------------------------------------------------------------- */

/* Of keys that were set more than once the first keeps its place and gets the last value; the others go. */
static int merge_keys(gguf_writer *w, weir_error *err) {
    name_index index;
    const gguf_string *duplicate = NULL;
    int rc = gguf_index_names(&w->memory, &index, w->keys, w->n_keys, sizeof *w->keys, &duplicate);
    if (rc < 0) return fail_at(w, WEIR_E_NOMEM, err, "no memory for an index of keys");
    if (rc == 0) return 0;
    writer_key *first = NULL;
    for (size_t i = 0; i < index.n; i++) {
        writer_key *k = &w->keys[(const writer_key *)(const void *)index.sorted[i] - w->keys];
        if (first == NULL || first->key.n_bytes != k->key.n_bytes ||
            memcmp(first->key.text, k->key.text, k->key.n_bytes) != 0) {
            first = k;
            continue;
        }
        first->value = k->value;
        first->n_bytes = k->n_bytes;
        k->value = NULL;
    }
    size_t n = 0;
    for (size_t i = 0; i < w->n_keys; i++) {
        if (w->keys[i].value) w->keys[n++] = w->keys[i];
    }
    w->n_keys = n;
    return 0;
}

/* What the key general.alignment says. */
static int find_alignment(gguf_writer *w, weir_error *err) {
    static const char key[] = "general.alignment";
    w->alignment = DEFAULT_ALIGNMENT;
    for (size_t i = 0; i < w->n_keys; i++) {
        const writer_key *k = &w->keys[i];
        if (k->key.n_bytes != sizeof key - 1 || memcmp(k->key.text, key, sizeof key - 1) != 0) continue;
        uint64_t value = 0;
        for (size_t b = k->n_bytes; b > 4; b--) value = value << 8 | k->value[b - 1];
        bool sound = k->n_bytes <= 12 && value >= 8 && value <= 1 << 20 && (value & (value - 1)) == 0;
        if (!sound) return fail_at(w, WEIR_E_INVALID, err, "general.alignment must be a power of two from 8 to 1048576");
        w->alignment = (size_t)value;
    }
    return 0;
}

static void append_number(buf *out, uint64_t value, size_t width) {
    unsigned char bytes[8];
    put_number(bytes, value, width);
    buf_append(out, bytes, width);
}

static void append_string(buf *out, gguf_string s) {
    append_number(out, s.n_bytes, 8);
    buf_append(out, s.text, s.n_bytes);
}

/* All that precedes the data, padded to the alignment. */
static void append_directory(const gguf_writer *w, buf *out) {
    buf_append(out, "GGUF", 4);
    append_number(out, VERSION, 4);
    append_number(out, w->n_tensors, 8);
    append_number(out, w->n_keys, 8);
    for (size_t i = 0; i < w->n_keys; i++) {
        append_string(out, w->keys[i].key);
        buf_append(out, w->keys[i].value, w->keys[i].n_bytes);
    }
    for (size_t i = 0; i < w->n_tensors; i++) {
        const writer_tensor *t = &w->tensors[i];
        append_string(out, t->name);
        append_number(out, t->n_dims, 4);
        for (uint32_t d = 0; d < t->n_dims; d++) append_number(out, t->dims[d], 8);
        append_number(out, (uint32_t)t->format->type, 4);
        append_number(out, t->offset, 8);
    }
    while (!out->failed && w->n_tensors && out->n_bytes % w->alignment) buf_putc(out, 0);
}

static int place_tensors(gguf_writer *w, size_t *data_bytes, weir_error *err) {
    *data_bytes = 0;
    for (size_t i = 0; i < w->n_tensors; i++) {
        writer_tensor *t = &w->tensors[i];
        if (!checked_round_up(*data_bytes, w->alignment, &t->offset) || !checked_add(t->offset, t->n_bytes, data_bytes)) {
            return fail_at(w, WEIR_E_INVALID, err, "the tensors together are too large for a file");
        }
    }
    /* Readers round the end of the last tensor up too. */
    if (checked_round_up(*data_bytes, w->alignment, data_bytes)) return 0;
    return fail_at(w, WEIR_E_INVALID, err, "the tensors together are too large for a file");
}

static int write_all(gguf_writer *w, const void *bytes, size_t n_bytes, weir_error *err) {
    enum { LARGEST = 1 << 30 };
    const char *at = bytes;
    while (n_bytes > 0) {
        ssize_t n = write(w->file.fd, at, n_bytes < LARGEST ? n_bytes : LARGEST);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return fail_at(w, WEIR_E_IO, err, "cannot write the file: %s", strerror(n < 0 ? errno : ENOSPC));
        at += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

/* A full disk is better noticed now than after an hour. File systems that cannot reserve are not asked again. */
static int reserve(gguf_writer *w, weir_error *err) {
    if (w->file_bytes > INT64_MAX) return fail_at(w, WEIR_E_INVALID, err, "the file would be too large");
    if (w->file_bytes == 0 || fallocate(w->file.fd, 0, 0, (off_t)w->file_bytes) == 0) return 0;
    if (errno != ENOSPC && errno != EFBIG && errno != EDQUOT) return 0;
    return fail_at(w, WEIR_E_IO, err, "no room for a file of %zu bytes: %s", w->file_bytes, strerror(errno));
}

int gguf_writer_begin(gguf_writer *w, weir_error *err) {
    if (w->failure.code) {
        if (err) *err = w->failure;
        return w->failure.code;
    }
    if (w->begun) return fail_at(w, WEIR_E_INVALID, err, "the file is begun already");
    size_t data_bytes;
    TRY(merge_keys(w, err));
    TRY(find_alignment(w, err));
    TRY(place_tensors(w, &data_bytes, err));
    name_index index;
    const gguf_string *duplicate = NULL;
    int rc = gguf_index_names(&w->memory, &index, w->tensors, w->n_tensors, sizeof *w->tensors, &duplicate);
    if (rc < 0) return fail_at(w, WEIR_E_NOMEM, err, "no memory for an index of tensors");
    if (rc == 1) {
        char place[GGUF_PLACE_BYTES];
        gguf_place(place, sizeof place, w->path, "tensor", *duplicate, -1);
        FAIL(err, WEIR_E_INVALID, place, "the name occurs more than once");
    }
    buf directory = BUF_INIT;
    append_directory(w, &directory);
    if (directory.failed || !checked_add(directory.n_bytes, data_bytes, &w->file_bytes)) {
        rc = fail_at(w, WEIR_E_NOMEM, err, "no memory for the metadata");
    } else {
        rc = reserve(w, err);
        if (rc == 0) rc = write_all(w, directory.data, directory.n_bytes, err);
    }
    buf_free(&directory);
    w->begun = rc == 0;
    return rc;
}

uint64_t gguf_writer_file_bytes(const gguf_writer *w) {
    return w->file_bytes;
}

/* ---- data ------------------------------------------------------------------------------------------------------------- */

/* Zeros after the current tensor. */
static int pad(gguf_writer *w, weir_error *err) {
    static const char zeros[4096];
    const writer_tensor *t = &w->tensors[w->current];
    size_t end = t->offset + t->n_bytes, next = end;
    if (!checked_round_up(end, w->alignment, &next)) return 0; /* place_tensors has done it before */
    for (size_t left = next - end; left > 0;) {
        size_t n = left < sizeof zeros ? left : sizeof zeros;
        TRY(write_all(w, zeros, n, err));
        left -= n;
    }
    return 0;
}

int gguf_writer_data(gguf_writer *w, const void *bytes, size_t n_bytes, weir_error *err) {
    if (!w->begun || w->current == w->n_tensors) return fail_at(w, WEIR_E_INVALID, err, "no tensor lacks data");
    const writer_tensor *t = &w->tensors[w->current];
    if (n_bytes > t->n_bytes - w->written) {
        char place[GGUF_PLACE_BYTES];
        gguf_place(place, sizeof place, w->path, "tensor", t->name, -1);
        FAIL(err, WEIR_E_INVALID, place, "%zu bytes given where %zu of its %zu are missing", n_bytes, t->n_bytes - w->written,
             t->n_bytes);
    }
    TRY(write_all(w, bytes, n_bytes, err));
    w->written += n_bytes;
    if (w->written < t->n_bytes) return 0;
    TRY(pad(w, err));
    w->current++;
    w->written = 0;
    return 0;
}

/* ---- the file --------------------------------------------------------------------------------------------------------- */

/* An error of the file has the place that the others have. */
static int fail_as(const gguf_writer *w, const weir_error *cause, weir_error *err) { return fail_at(w, cause->code, err, "%s", cause->message); }

int gguf_writer_finish(gguf_writer *w, weir_error *err) {
    if (!w->begun || w->current < w->n_tensors) {
        return fail_at(w, WEIR_E_INVALID, err, "data of %zu tensors is missing", w->n_tensors - w->current);
    }
    weir_error cause = {0};
    return new_file_commit(&w->file, &cause) < 0 ? fail_as(w, &cause, err) : 0;
}

int gguf_writer_open(gguf_writer **out, const char *path, weir_error *err) {
    *out = NULL;
    gguf_writer *w = calloc(1, sizeof *w);
    FAIL_IF(w == NULL, err, WEIR_E_NOMEM, path, "no memory for a writer");
    weir_error cause = {0};
    w->path = arena_strndup(&w->memory, path, strlen(path));
    int rc = w->path ? new_file_open(&w->file, path, 0666, &cause) : error_set(err, WEIR_E_NOMEM, path, "no memory for a writer");
    if (cause.code < 0) rc = fail_as(w, &cause, err);
    if (rc < 0) {
        gguf_writer_close(&w);
        return rc;
    }
    *out = w;
    return 0;
}

void gguf_writer_close(gguf_writer **wp) {
    gguf_writer *w = wp ? *wp : NULL;
    if (w == NULL) return;
    new_file_close(&w->file);
    free(w->keys);
    free(w->tensors);
    arena_free(&w->memory);
    free(w);
    *wp = NULL;
}
