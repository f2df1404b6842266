/* See safetensors.h. */
#include "hf/safetensors.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"

enum { LENGTH_BYTES = 8, MAX_TENSORS = 1 << 20, MAX_NAME = 1024 };

static const struct {
    const char *name;
    uint32_t n_bits;
    int type; /* quant_type, or -1 */
} dtypes[] = {
    {"F32", 32, QUANT_F32}, {"F16", 16, QUANT_F16}, {"BF16", 16, QUANT_BF16}, {"F64", 64, -1},
    {"I64", 64, -1},        {"I32", 32, -1},        {"I16", 16, -1},          {"I8", 8, -1},
    {"U64", 64, -1},        {"U32", 32, -1},        {"U16", 16, -1},          {"U8", 8, -1},
    {"BOOL", 8, -1},        {"F8_E4M3", 8, -1},     {"F8_E5M2", 8, -1},       {"F8_E8M0", 8, -1},
    {"F4", 4, -1},          {"F6_E2M3", 6, -1},     {"F6_E3M2", 6, -1},       {"C64", 64, -1},
};

typedef struct parser {
    safetensors *out;
    const char *path;
    uint64_t data_at, data_bytes;
    weir_error *err;
} parser;

static int fail(const parser *p, int code, const char *tensor, const char *format, ...) __attribute__((format(printf, 4, 5)));
static int fail(const parser *p, int code, const char *tensor, const char *format, ...) {
    char place[400];
    va_list args;
    snprintf(place, sizeof place, "%.200s%s%.120s%s", p->path, tensor ? ": tensor '" : "", tensor ? tensor : "",
             tensor ? "'" : "");
    va_start(args, format);
    error_setv(p->err, code, place, format, args);
    va_end(args);
    return code;
}

/* A count or offset: a non-negative integer. */
static bool read_u64(const json_t *value, uint64_t *out) {
    const json_int_t n = json_integer_value(value);
    if (!json_is_integer(value) || n < 0) return false;
    *out = (uint64_t)n;
    return true;
}

static int read_shape(const parser *p, const json_t *shape, safetensor *t) {
    const size_t n = json_array_size(shape);
    if (!json_is_array(shape)) return fail(p, WEIR_E_FORMAT, t->name, "shape is no array of dimensions");
    if (n > SAFETENSORS_MAX_DIMS)
        return fail(p, WEIR_E_FORMAT, t->name, "%zu dimensions; the limit is %d", n, SAFETENSORS_MAX_DIMS);
    t->n_dims = (uint32_t)n;
    t->n_values = 1;
    for (size_t d = 0; d < n; d++) {
        if (!read_u64(json_array_get(shape, d), &t->dims[d]))
            return fail(p, WEIR_E_FORMAT, t->name, "dimension %zu is no count", d);
        if (__builtin_mul_overflow(t->n_values, t->dims[d], &t->n_values) || t->n_values > INT64_MAX / 64)
            return fail(p, WEIR_E_FORMAT, t->name, "dimension %zu is %llu: too many values to count", d,
                        (unsigned long long)t->dims[d]);
    }
    return 0;
}

static int read_dtype(const parser *p, const json_t *dtype, safetensor *t, uint32_t *n_bits) {
    const char *name = json_string_value(dtype);
    if (name == NULL) return fail(p, WEIR_E_FORMAT, t->name, "dtype is missing");
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtypes[i].name, name) != 0) continue;
        t->dtype = dtypes[i].name;
        t->format = dtypes[i].type < 0 ? NULL : quant_format_of((uint32_t)dtypes[i].type);
        *n_bits = dtypes[i].n_bits;
        return 0;
    }
    return fail(p, WEIR_E_UNSUPPORTED, t->name, "the dtype '%.30s' is not known", name);
}

static int read_tensor(parser *p, const char *name, size_t name_bytes, const json_t *entry) {
    safetensor *t = &p->out->tensors[p->out->n];
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t begin, end;
    uint32_t n_bits = 0;
    t->name = arena_strndup(&p->out->memory, name, name_bytes);
    if (t->name == NULL) return fail(p, WEIR_E_NOMEM, NULL, "no memory for its names");
    if (name_bytes == 0 || name_bytes > MAX_NAME || strlen(name) != name_bytes)
        return fail(p, WEIR_E_FORMAT, t->name, "a name of %zu bytes; it must have 1 to %d, none of them NUL", name_bytes,
                    MAX_NAME);
    if (!json_is_object(entry)) return fail(p, WEIR_E_FORMAT, t->name, "is no object with dtype, shape and data_offsets");
    TRY(read_dtype(p, json_object_get(entry, "dtype"), t, &n_bits));
    TRY(read_shape(p, json_object_get(entry, "shape"), t));
    if (json_array_size(offsets) != 2 || !read_u64(json_array_get(offsets, 0), &begin) ||
        !read_u64(json_array_get(offsets, 1), &end))
        return fail(p, WEIR_E_FORMAT, t->name, "data_offsets are not two offsets");
    if (begin > end || end > p->data_bytes)
        return fail(p, WEIR_E_FORMAT, t->name, "data_offsets [%llu, %llu] do not lie in the file's %llu bytes of data",
                    (unsigned long long)begin, (unsigned long long)end, (unsigned long long)p->data_bytes);
    t->n_bytes = end - begin;
    const uint64_t n_wanted = t->n_values * n_bits; /* no overflow: see read_shape */
    if (n_wanted % 8 != 0 || t->n_bytes != n_wanted / 8)
        return fail(p, WEIR_E_FORMAT, t->name, "has %llu bytes of data; %llu values of type %s have %llu",
                    (unsigned long long)t->n_bytes, (unsigned long long)t->n_values, t->dtype,
                    (unsigned long long)(n_wanted / 8));
    t->offset = p->data_at + begin;
    p->out->n++;
    return 0;
}

static int by_offset(const void *a, const void *b) {
    const safetensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->n_bytes != y->n_bytes) return x->n_bytes < y->n_bytes ? -1 : 1; /* empty ones before what begins there */
    return strcmp(x->name, y->name);
}

/* The tensors in order cover the data exactly. */
static int check_cover(const parser *p) {
    uint64_t at = p->data_at;
    for (size_t i = 0; i < p->out->n; i++) {
        const safetensor *t = &p->out->tensors[i];
        if (t->offset < at)
            return fail(p, WEIR_E_FORMAT, t->name, "its data overlap those of tensor '%.100s' (byte %llu)",
                        p->out->tensors[i - 1].name, (unsigned long long)t->offset);
        if (t->offset > at)
            return fail(p, WEIR_E_FORMAT, t->name, "%llu bytes before its data belong to no tensor (byte %llu)",
                        (unsigned long long)(t->offset - at), (unsigned long long)at);
        at = t->offset + t->n_bytes;
    }
    if (at != p->data_at + p->data_bytes)
        return fail(p, WEIR_E_FORMAT, NULL, "the last %llu bytes belong to no tensor",
                    (unsigned long long)(p->data_at + p->data_bytes - at));
    return 0;
}

static int read_header(parser *p, json_t *root) {
    const size_t n = json_object_size(root);
    if (!json_is_object(root)) return fail(p, WEIR_E_FORMAT, NULL, "the header is no JSON object");
    if (n > MAX_TENSORS) return fail(p, WEIR_E_FORMAT, NULL, "%zu tensors; the limit is %d", n, MAX_TENSORS);
    p->out->tensors = arena_array(&p->out->memory, n + 1, sizeof *p->out->tensors);
    if (p->out->tensors == NULL) return fail(p, WEIR_E_NOMEM, NULL, "no memory for %zu tensors", n);
    for (void *i = json_object_iter(root); i; i = json_object_iter_next(root, i)) {
        const char *key = json_object_iter_key(i);
        if (strcmp(key, "__metadata__") == 0) continue; /* remarks */
        TRY(read_tensor(p, key, json_object_iter_key_len(i), json_object_iter_value(i)));
    }
    qsort(p->out->tensors, p->out->n, sizeof *p->out->tensors, by_offset);
    return check_cover(p);
}

int safetensors_parse(safetensors *out, const unsigned char *bytes, size_t n_bytes, const char *path, weir_error *err) {
    parser p = {.out = out, .path = path, .err = err};
    uint64_t header_bytes = 0;
    *out = (safetensors){0};
    if (n_bytes < LENGTH_BYTES)
        return fail(&p, WEIR_E_FORMAT, NULL, "%zu bytes; a safetensors file begins with the length of its header, 8 bytes",
                    n_bytes);
    for (int i = 0; i < LENGTH_BYTES; i++) header_bytes |= (uint64_t)bytes[i] << 8 * i;
    if (header_bytes > SAFETENSORS_MAX_HEADER)
        return fail(&p, WEIR_E_FORMAT, NULL, "a header of %llu bytes; the limit is %d. Is this a safetensors file?",
                    (unsigned long long)header_bytes, SAFETENSORS_MAX_HEADER);
    if (header_bytes > n_bytes - LENGTH_BYTES)
        return fail(&p, WEIR_E_FORMAT, NULL, "the header has %llu bytes, the file has %zu after its length: it is cut off",
                    (unsigned long long)header_bytes, n_bytes - LENGTH_BYTES);
    if (header_bytes == 0 || bytes[LENGTH_BYTES] != '{')
        return fail(&p, WEIR_E_FORMAT, NULL, "the header (byte 8) does not begin with {");
    p.data_at = LENGTH_BYTES + header_bytes;
    p.data_bytes = n_bytes - p.data_at;
    json_error_t problem;
    json_t *root =
        json_loadb((const char *)bytes + LENGTH_BYTES, (size_t)header_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    if (root == NULL)
        return fail(&p, WEIR_E_FORMAT, NULL, "the header is no JSON: byte %d: %s", LENGTH_BYTES + problem.position,
                    problem.text);
    const int rc = read_header(&p, root);
    json_decref(root);
    if (rc < 0) safetensors_free(out);
    return rc;
}

void safetensors_free(safetensors *s) {
    arena_free(&s->memory);
    *s = (safetensors){0};
}
