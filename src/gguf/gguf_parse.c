/* The parser: a byte range becomes a directory of metadata and tensors. See gguf.h.
 * Format: GGUF specification of the ggml project, versions 2 and 3, little-endian. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/gguf_internal.h"

enum {
    MAX_KEY = 65535, /* bytes; the specification's limit */
    DEFAULT_ALIGNMENT = 32,
    MIN_ALIGNMENT = 8,
    MAX_ALIGNMENT = 1 << 20,
    MAX_ENTRIES = 1 << 20, /* keys, and tensors: a hundred times what the largest models have */
    MIN_STRING_BYTES = 8,  /* its length */
    MIN_KEY_VALUE_BYTES = 8 + 1 + 4 + 1,
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8,
};

/* Reads forward through the range. The first read that does not fit sets `failed`, which stays: later reads give zeros and
 * leave `at` where the failed field begins, so that a group of reads needs one check. */
typedef struct cursor {
    const unsigned char *bytes;
    size_t n_bytes, at;
    uint64_t wanted; /* bytes that the failed read asked for */
    bool failed;
} cursor;

typedef struct parser {
    gguf *g;
    cursor in;
    weir_error *err;
    const char *subject; /* what is being read, for messages: "key", "tensor" or NULL */
    gguf_string subject_name;
} parser;

static size_t remaining(const cursor *c) {
    return c->n_bytes - c->at;
}

static const unsigned char *take(cursor *c, uint64_t n) {
    if (c->failed) return NULL;
    if (n > remaining(c)) {
        c->failed = true;
        c->wanted = n;
        return NULL;
    }
    const unsigned char *p = c->bytes + c->at;
    c->at += (size_t)n;
    return p;
}

static uint32_t take_u32(cursor *c) {
    const unsigned char *p = take(c, 4);
    return p ? (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24 : 0;
}

static uint64_t take_u64(cursor *c) {
    const unsigned char *p = take(c, 8);
    uint64_t value = 0;
    for (int i = 7; p && i >= 0; i--) value = value << 8 | p[i];
    return value;
}

static gguf_string take_string(cursor *c) {
    uint64_t n_bytes = take_u64(c);
    const unsigned char *p = take(c, n_bytes);
    return p ? (gguf_string){(const char *)p, (size_t)n_bytes} : (gguf_string){0};
}

/* Fails with the file, the subject and the byte offset as the place. */
static int fail_at(const parser *p, int code, size_t offset, const char *format, ...) __attribute__((format(printf, 4, 5)));

static int fail_at(const parser *p, int code, size_t offset, const char *format, ...) {
    char place[GGUF_PLACE_BYTES];
    gguf_place(place, sizeof place, p->g->path, p->subject, p->subject_name, (int64_t)offset);
    va_list args;
    va_start(args, format);
    error_setv(p->err, code, place, format, args);
    va_end(args);
    return code;
}

static int fail_nomem(const parser *p, const char *what) {
    return fail_at(p, WEIR_E_NOMEM, p->in.at, "no memory for %s", what);
}

/* After a group of reads: fails if one of them did not fit. */
static int check_read(const parser *p, const char *what) {
    if (!p->in.failed) return 0;
    return fail_at(p, WEIR_E_FORMAT, p->in.at, "the file ends inside %s: %llu bytes needed, %zu left", what,
                   (unsigned long long)p->in.wanted, remaining(&p->in));
}

/* ---- header ----------------------------------------------------------------------------------------------------------- */

/* What people hand over instead of a GGUF file, by its first bytes. */
static const struct {
    const char *bytes;
    size_t n_bytes;
    const char *what;
} lookalikes[] = {
    {"FUGG", 4, "a byte-swapped GGUF file"},
    {"lmgg", 4, "a GGML file from before GGUF; convert it"},
    {"fmgg", 4, "a GGMF file from before GGUF; convert it"},
    {"tjgg", 4, "a GGJT file from before GGUF; convert it"},
    {"version https://git-lfs", 23, "a Git LFS pointer; fetch the file that it stands for"},
    {"PK\003\004", 4, "a ZIP archive or PyTorch checkpoint; convert it"},
    {"\x1f\x8b", 2, "compressed with gzip; decompress it"},
    {"\x28\xb5\x2f\xfd", 4, "compressed with Zstandard; decompress it"},
    {"<!", 2, "a web page"},
    {"<html", 5, "a web page"},
};

static int check_magic(parser *p) {
    const cursor *in = &p->in;
    if (in->n_bytes == 0) return fail_at(p, WEIR_E_FORMAT, 0, "the file is empty");
    if (in->n_bytes >= 4 && memcmp(in->bytes, "GGUF", 4) == 0) return 0;
    for (size_t i = 0; i < sizeof lookalikes / sizeof lookalikes[0]; i++) {
        if (in->n_bytes >= lookalikes[i].n_bytes && memcmp(in->bytes, lookalikes[i].bytes, lookalikes[i].n_bytes) == 0) {
            return fail_at(p, WEIR_E_FORMAT, 0, "not a GGUF file: looks like %s", lookalikes[i].what);
        }
    }
    if (in->n_bytes > 9 && in->bytes[8] == '{' && in->bytes[9] == '"') {
        return fail_at(p, WEIR_E_FORMAT, 0, "not a GGUF file: looks like a safetensors file; convert it");
    }
    char start[48];
    gguf_printable((gguf_string){(const char *)in->bytes, in->n_bytes < 4 ? in->n_bytes : 4}, start, sizeof start);
    return fail_at(p, WEIR_E_FORMAT, 0, "not a GGUF file: starts with \"%s\" instead of \"GGUF\"", start);
}

static int parse_header(parser *p, uint64_t *n_tensors, uint64_t *n_key_values) {
    TRY(check_magic(p));
    take(&p->in, 4);
    size_t version_at = p->in.at;
    uint32_t version = take_u32(&p->in);
    TRY(check_read(p, "the version"));
    if (version != 0 && (version & 0xffff) == 0) {
        return fail_at(p, WEIR_E_UNSUPPORTED, version_at,
                       "a big-endian GGUF file (version field 0x%08x); make a little-endian one", version);
    }
    if (version == 1)
        return fail_at(p, WEIR_E_UNSUPPORTED, version_at, "GGUF version 1; versions 2 and 3 are read: convert it again");
    if (version < 2 || version > 3) {
        return fail_at(p, WEIR_E_UNSUPPORTED, version_at, "GGUF version %u; versions 2 and 3 are read", version);
    }
    p->g->version = version;
    *n_tensors = take_u64(&p->in);
    *n_key_values = take_u64(&p->in);
    return check_read(p, "the header");
}

/* Refuses a count of things, each of which takes at least `min_bytes`, that cannot fit in what is left of the file. */
static int check_count(const parser *p, size_t at, uint64_t count, size_t min_bytes, const char *what) {
    if (count <= remaining(&p->in) / min_bytes) return 0;
    return fail_at(p, WEIR_E_FORMAT, at, "%llu %s do not fit in the %zu bytes left (at least %zu bytes each)",
                   (unsigned long long)count, what, remaining(&p->in), min_bytes);
}

/* As check_count for keys and tensors, which have a limit too: a sparse file of terabytes must not buy a table as large. */
static int check_entries(const parser *p, size_t at, uint64_t count, size_t min_bytes, const char *what) {
    TRY(check_count(p, at, count, min_bytes, what));
    if (count <= MAX_ENTRIES) return 0;
    return fail_at(p, WEIR_E_FORMAT, at, "%llu %s; the limit is %d", (unsigned long long)count, what, MAX_ENTRIES);
}

/* ---- metadata --------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t n_bytes; /* 0: not of fixed size */
} value_types[] = {
    [GGUF_UINT8] = {"uint8", 1},     [GGUF_INT8] = {"int8", 1},   [GGUF_UINT16] = {"uint16", 2},   [GGUF_INT16] = {"int16", 2},
    [GGUF_UINT32] = {"uint32", 4},   [GGUF_INT32] = {"int32", 4}, [GGUF_FLOAT32] = {"float32", 4}, [GGUF_BOOL] = {"bool", 1},
    [GGUF_STRING] = {"string", 0},   [GGUF_ARRAY] = {"array", 0}, [GGUF_UINT64] = {"uint64", 8},   [GGUF_INT64] = {"int64", 8},
    [GGUF_FLOAT64] = {"float64", 8},
};

enum { N_VALUE_TYPES = sizeof value_types / sizeof value_types[0] };

const char *gguf_value_type_name(gguf_value_type type) {
    return (unsigned)type < N_VALUE_TYPES ? value_types[type].name : "unknown";
}

size_t gguf_value_type_bytes(gguf_value_type type) {
    return (unsigned)type < N_VALUE_TYPES ? value_types[type].n_bytes : 0;
}

/* Reads the strings of a string or an array of strings; kv->n_items is set. */
static int parse_strings(parser *p, gguf_key_value *kv) {
    cursor *in = &p->in;
    size_t at = in->at;
    TRY(check_count(p, at, kv->n_items, MIN_STRING_BYTES, "strings"));
    gguf_string *strings = arena_array(&p->g->memory, (size_t)kv->n_items, sizeof *strings);
    if (strings == NULL) return fail_nomem(p, "its strings");
    for (uint64_t i = 0; i < kv->n_items; i++) {
        strings[i] = take_string(in);
        if (in->failed) {
            return fail_at(p, WEIR_E_FORMAT, in->at, "the file ends inside string %llu of %llu: %llu bytes needed, %zu left",
                           (unsigned long long)i, (unsigned long long)kv->n_items, (unsigned long long)in->wanted,
                           remaining(in));
        }
    }
    kv->data = in->bytes + at;
    kv->strings = strings;
    return 0;
}

/* Checks the value(s) of fixed size; kv->n_items is set. */
static int parse_fixed(parser *p, gguf_key_value *kv, gguf_value_type item_type) {
    cursor *in = &p->in;
    size_t at = in->at, item_bytes = value_types[item_type].n_bytes;
    TRY(check_count(p, at, kv->n_items, item_bytes, "values"));
    kv->data = take(in, kv->n_items * item_bytes);
    if (item_type != GGUF_BOOL) return 0;
    for (uint64_t i = 0; i < kv->n_items; i++) {
        if (kv->data[i] > 1) {
            return fail_at(p, WEIR_E_FORMAT, at + (size_t)i, "a bool is %u; it must be 0 or 1", kv->data[i]);
        }
    }
    return 0;
}

static int parse_key_value(parser *p, gguf_key_value *kv) {
    cursor *in = &p->in;
    size_t at = in->at;
    kv->key = take_string(in);
    TRY(check_read(p, "a key"));
    if (kv->key.n_bytes == 0) return fail_at(p, WEIR_E_FORMAT, at, "a key is empty");
    p->subject = "key";
    p->subject_name = kv->key;
    if (kv->key.n_bytes > MAX_KEY) {
        return fail_at(p, WEIR_E_FORMAT, at, "the key has %zu bytes; the limit is %d", kv->key.n_bytes, MAX_KEY);
    }
    at = in->at;
    uint32_t type = take_u32(in), item_type = type;
    kv->n_items = 1;
    TRY(check_read(p, "the type of a value"));
    if (type == GGUF_ARRAY) {
        at = in->at;
        item_type = take_u32(in);
        kv->n_items = take_u64(in);
        TRY(check_read(p, "the head of an array"));
        if (item_type == GGUF_ARRAY) return fail_at(p, WEIR_E_UNSUPPORTED, at, "an array of arrays; only flat arrays are read");
    }
    if (item_type >= N_VALUE_TYPES) {
        return fail_at(p, WEIR_E_FORMAT, at, "value type %u does not exist; types are 0 to %d", item_type, N_VALUE_TYPES - 1);
    }
    kv->type = (gguf_value_type)type;
    kv->item_type = (gguf_value_type)item_type;
    return item_type == GGUF_STRING ? parse_strings(p, kv) : parse_fixed(p, kv, (gguf_value_type)item_type);
}

/* Indexes names and refuses two that are equal. `subject` is "key" or "tensor". */
static int index_names(parser *p, name_index *index, const void *first, size_t n, size_t stride, const char *subject) {
    const gguf_string *duplicate = NULL;
    int rc = gguf_index_names(&p->g->memory, index, first, n, stride, &duplicate);
    if (rc < 0) return fail_nomem(p, "an index of names");
    if (rc == 0) return 0;
    p->subject = subject;
    p->subject_name = *duplicate;
    size_t at = (size_t)((const unsigned char *)duplicate->text - p->in.bytes);
    return fail_at(p, WEIR_E_FORMAT, at, "the name occurs more than once");
}

static int parse_key_values(parser *p, uint64_t count, size_t count_at) {
    gguf *g = p->g;
    TRY(check_entries(p, count_at, count, MIN_KEY_VALUE_BYTES, "key-value pairs"));
    g->key_values = arena_array(&g->memory, (size_t)count, sizeof *g->key_values);
    if (g->key_values == NULL) return fail_nomem(p, "the metadata");
    for (uint64_t i = 0; i < count; i++) {
        p->subject = NULL;
        TRY(parse_key_value(p, &g->key_values[i]));
        g->n_key_values++;
    }
    p->subject = NULL;
    return index_names(p, &g->keys, g->key_values, g->n_key_values, sizeof *g->key_values, "key");
}

/* The multiple at which tensors begin, from the metadata. */
static int find_alignment(parser *p, size_t *alignment) {
    *alignment = DEFAULT_ALIGNMENT;
    const gguf_key_value *kv = gguf_find(p->g, "general.alignment");
    if (kv == NULL) return 0;
    size_t at = (size_t)(kv->data - p->in.bytes);
    int64_t value = 0;
    p->subject = "key";
    p->subject_name = kv->key;
    if (kv->type == GGUF_ARRAY || kv->type == GGUF_BOOL || gguf_item_i64(kv, 0, &value) != 1) {
        return fail_at(p, WEIR_E_FORMAT, at, "the alignment must be a uint32; its type is %s", gguf_value_type_name(kv->type));
    }
    if (value < MIN_ALIGNMENT || value > MAX_ALIGNMENT || (value & (value - 1)) != 0) {
        return fail_at(p, WEIR_E_FORMAT, at, "alignment %lld; it must be a power of two between %d and %d", (long long)value,
                       MIN_ALIGNMENT, MAX_ALIGNMENT);
    }
    *alignment = (size_t)value;
    p->subject = NULL;
    return 0;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------------- */

/* Name and shape. */
static int parse_tensor_shape(parser *p, gguf_tensor *t) {
    cursor *in = &p->in;
    size_t at = in->at;
    t->name = take_string(in);
    TRY(check_read(p, "a tensor's name"));
    if (t->name.n_bytes == 0) return fail_at(p, WEIR_E_FORMAT, at, "a tensor's name is empty");
    p->subject = "tensor";
    p->subject_name = t->name;
    if (t->name.n_bytes >= GGUF_MAX_NAME) {
        return fail_at(p, WEIR_E_FORMAT, at, "the name has %zu bytes; the limit is %d", t->name.n_bytes, GGUF_MAX_NAME - 1);
    }
    at = in->at;
    t->n_dims = take_u32(in);
    TRY(check_read(p, "the number of dimensions"));
    if (t->n_dims > GGUF_MAX_DIMS) {
        return fail_at(p, WEIR_E_FORMAT, at, "%u dimensions; the limit is %d", t->n_dims, GGUF_MAX_DIMS);
    }
    t->n_values = 1;
    for (uint32_t d = 0; d < GGUF_MAX_DIMS; d++) {
        at = in->at;
        t->dims[d] = d < t->n_dims ? take_u64(in) : 1;
        TRY(check_read(p, "the dimensions"));
        if (t->dims[d] == 0) return fail_at(p, WEIR_E_FORMAT, at, "dimension %u is 0", d);
        if (__builtin_mul_overflow(t->n_values, t->dims[d], &t->n_values) || t->n_values > INT64_MAX) {
            return fail_at(p, WEIR_E_FORMAT, at, "dimension %u is %llu: too many values to count in 63 bits", d,
                           (unsigned long long)t->dims[d]);
        }
    }
    return 0;
}

/* What stands for a type that the table lacks, so that the other tensors can be read and the file can be explained. */
static const quant_format *unknown_format(parser *p, uint32_t type) {
    for (size_t i = p->g->n_tensors; i-- > 0 && p->g->n_tensors - i < 8;) /* most files have one such type, side by side */
        if (p->g->tensors[i].format->type == type) return p->g->tensors[i].format;
    quant_format *format = arena_array(&p->g->memory, 1, sizeof *format);
    char number[24];
    snprintf(number, sizeof number, "type %u", type);
    const char *name = quant_unknown_name(type);
    if (name == NULL) name = arena_strndup(&p->g->memory, number, strlen(number));
    if (format == NULL || name == NULL) return NULL;
    *format = (quant_format){.type = (quant_type)type, .name = name, .block_size = 1};
    return format;
}

/* Name, shape, type, and the offset from the start of the data, left in t->file_offset. */
static int parse_tensor(parser *p, gguf_tensor *t) {
    cursor *in = &p->in;
    p->subject = NULL;
    TRY(parse_tensor_shape(p, t));
    size_t at = in->at;
    uint32_t type = take_u32(in);
    TRY(check_read(p, "the tensor type"));
    t->format = quant_format_of(type);
    if (t->format == NULL) t->format = unknown_format(p, type);
    if (t->format == NULL) return fail_nomem(p, "an unknown type");
    uint64_t block_size = (uint64_t)t->format->block_size;
    if (t->dims[0] % block_size != 0) {
        return fail_at(p, WEIR_E_FORMAT, at, "rows of %llu values of type %s, which comes in blocks of %llu",
                       (unsigned long long)t->dims[0], t->format->name, (unsigned long long)block_size);
    }
    if (__builtin_mul_overflow(t->n_values / block_size, (uint64_t)t->format->block_bytes, &t->n_bytes)) {
        return fail_at(p, WEIR_E_FORMAT, at, "the size in bytes of %llu values of type %s does not fit in 64 bits",
                       (unsigned long long)t->n_values, t->format->name);
    }
    t->file_offset = take_u64(in);
    return check_read(p, "the offset of a tensor");
}

/* Data of unknown size are one byte at least. */
static uint64_t least_bytes(const gguf_tensor *t) {
    return t->n_bytes ? t->n_bytes : 1;
}

/* Turns the offset from the start of the data into one from the start of the file, and checks that the bytes are there. */
static int place_tensor(parser *p, gguf_tensor *t, size_t data_at, size_t alignment) {
    size_t file_bytes = p->in.n_bytes, offset = (size_t)t->file_offset;
    const uint64_t n_bytes = least_bytes(t);
    p->subject = "tensor";
    p->subject_name = t->name;
    if (t->file_offset % alignment != 0) {
        return fail_at(p, WEIR_E_FORMAT, data_at, "its data offset %llu is not a multiple of the alignment %zu",
                       (unsigned long long)t->file_offset, alignment);
    }
    if (t->file_offset > file_bytes - data_at || n_bytes > file_bytes - data_at - offset) {
        return fail_at(p, WEIR_E_FORMAT, data_at,
                       "its %llu bytes at data offset %llu reach beyond the end of the file (%zu bytes of data)",
                       (unsigned long long)n_bytes, (unsigned long long)t->file_offset, file_bytes - data_at);
    }
    t->file_offset = data_at + offset;
    t->data = p->in.bytes + t->file_offset;
    return 0;
}

static int by_offset(const void *a, const void *b) {
    uint64_t x = (*(const gguf_tensor *const *)a)->file_offset, y = (*(const gguf_tensor *const *)b)->file_offset;
    return (x > y) - (x < y);
}

/* Refuses data that overlap, and sets room_bytes. */
static int check_overlap(parser *p) {
    gguf *g = p->g;
    gguf_tensor **sorted = malloc((g->n_tensors ? g->n_tensors : 1) * sizeof *sorted);
    if (sorted == NULL) return fail_nomem(p, "the order of the tensors");
    for (size_t i = 0; i < g->n_tensors; i++) sorted[i] = &g->tensors[i];
    qsort(sorted, g->n_tensors, sizeof *sorted, by_offset);
    int rc = 0;
    for (size_t i = 0; i < g->n_tensors; i++)
        sorted[i]->room_bytes = (i + 1 < g->n_tensors ? sorted[i + 1]->file_offset : p->in.n_bytes) - sorted[i]->file_offset;
    for (size_t i = 1; i < g->n_tensors && rc == 0; i++) {
        const gguf_tensor *before = sorted[i - 1], *t = sorted[i];
        if (before->file_offset + least_bytes(before) <= t->file_offset) continue;
        char other[80];
        gguf_printable(before->name, other, sizeof other);
        p->subject = "tensor";
        p->subject_name = t->name;
        rc = fail_at(p, WEIR_E_FORMAT, (size_t)t->file_offset, "its data overlaps that of tensor '%s' (bytes %llu to %llu)",
                     other, (unsigned long long)before->file_offset,
                     (unsigned long long)(before->file_offset + least_bytes(before)));
    }
    free(sorted);
    return rc;
}

static int parse_tensors(parser *p, uint64_t count, size_t count_at, size_t alignment) {
    gguf *g = p->g;
    TRY(check_entries(p, count_at, count, MIN_TENSOR_BYTES, "tensors"));
    g->tensors = arena_array(&g->memory, (size_t)count, sizeof *g->tensors);
    if (g->tensors == NULL) return fail_nomem(p, "the tensors");
    for (uint64_t i = 0; i < count; i++) {
        TRY(parse_tensor(p, &g->tensors[i]));
        g->n_tensors++;
    }
    p->subject = NULL;
    g->head_bytes = p->in.at;
    if (count == 0) return 0;
    TRY(index_names(p, &g->names, g->tensors, g->n_tensors, sizeof *g->tensors, "tensor"));
    size_t data_at;
    if (!checked_round_up(p->in.at, alignment, &data_at) || data_at > p->in.n_bytes) {
        return fail_at(p, WEIR_E_FORMAT, p->in.at, "the file ends before the data of its %zu tensors", g->n_tensors);
    }
    for (size_t i = 0; i < g->n_tensors; i++) TRY(place_tensor(p, &g->tensors[i], data_at, alignment));
    return check_overlap(p);
}

static int parse_all(parser *p) {
    enum { N_TENSORS_AT = 8, N_KEY_VALUES_AT = 16 };
    uint64_t n_tensors = 0, n_key_values = 0;
    size_t alignment = 0;
    TRY(parse_header(p, &n_tensors, &n_key_values));
    TRY(parse_key_values(p, n_key_values, N_KEY_VALUES_AT));
    TRY(find_alignment(p, &alignment));
    return parse_tensors(p, n_tensors, N_TENSORS_AT, alignment);
}

int gguf_parse(gguf **out, const void *bytes, size_t n_bytes, const char *name, weir_error *err) {
    *out = NULL;
    gguf *g = calloc(1, sizeof *g);
    if (g == NULL) FAIL(err, WEIR_E_NOMEM, name, "no memory for a directory");
    g->bytes = bytes;
    g->n_bytes = n_bytes;
    g->n_parts = 1;
    g->path = arena_strndup(&g->memory, name, strlen(name));
    int rc;
    if (g->path == NULL) {
        rc = error_set(err, WEIR_E_NOMEM, name, "no memory for a directory");
    } else {
        parser p = {.g = g, .in = {.bytes = bytes, .n_bytes = n_bytes}, .err = err};
        rc = parse_all(&p);
    }
    if (rc < 0) {
        gguf_close(&g);
        return rc;
    }
    *out = g;
    return 0;
}
