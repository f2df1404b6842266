/* The GGUF parser on arbitrary bytes: whatever it accepts is walked through every public accessor and described by `weir
 * inspect`. Beyond what sanitizers see, the promises of gguf.h are checked: data inside the range, no overlap, names found,
 * text printable. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "cli/inspect.h"
#include "gguf/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool promise) {
    if (!promise) abort();
}

/* Reads all bytes, so that a sanitizer sees those that are not there. */
static unsigned touch(const void *bytes, size_t n) {
    const unsigned char *p = bytes;
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++) sum += p[i];
    return sum;
}

static bool inside(const void *p, size_t n, const uint8_t *data, size_t size) {
    const uint8_t *start = p;
    return start >= data && n <= size && (size_t)(start - data) <= size - n;
}

static void check_printable(gguf_string s, size_t capacity) {
    char out[96];
    size_t n = gguf_printable(s, out, capacity);
    require(n < capacity && out[n] == '\0' && utf8_valid(out, n));
    for (size_t i = 0; i < n; i++) require((unsigned char)out[i] >= 0x20 && out[i] != 0x7f);
}

/* Names that hold a NUL cannot be asked for. */
static char *name_copy(gguf_string s) {
    if (memchr(s.text, '\0', s.n_bytes)) return NULL;
    char *copy = malloc(s.n_bytes + 1);
    if (copy == NULL) return NULL;
    memcpy(copy, s.text, s.n_bytes);
    copy[s.n_bytes] = '\0';
    return copy;
}

static unsigned walk_value(const gguf *g, const gguf_key_value *kv, const uint8_t *data, size_t size) {
    unsigned sum = 0;
    uint32_t u32;
    float f32;
    bool flag;
    gguf_string text;
    int64_t i64;
    double f64;
    require(inside(kv->key.text, kv->key.n_bytes, data, size) && kv->item_type != GGUF_ARRAY);
    check_printable(kv->key, 1 + kv->key.n_bytes % 95);
    for (uint64_t i = 0; i < kv->n_items; i++) {
        if (kv->strings) {
            require(inside(kv->strings[i].text, kv->strings[i].n_bytes, data, size));
            sum += touch(kv->strings[i].text, kv->strings[i].n_bytes);
            check_printable(kv->strings[i], 96);
            continue;
        }
        require(gguf_item_f64(kv, i, &f64) == 1);
        require(gguf_item_i64(kv, i, &i64) != 0);
    }
    require(gguf_item_i64(kv, kv->n_items, &i64) == 0 && gguf_item_f64(kv, UINT64_MAX, &f64) == 0);
    char *name = name_copy(kv->key);
    if (name == NULL) return sum;
    weir_error err = {0};
    require(gguf_find(g, name) == kv);
    require(gguf_get_u32(g, name, &u32, &err) != 0 && gguf_get_f32(g, name, &f32, &err) != 0);
    require(gguf_get_bool(g, name, &flag, &err) != 0 && gguf_get_string(g, name, &text, &err) != 0);
    free(name);
    return sum;
}

static unsigned walk_tensor(const gguf *g, const gguf_tensor *t, const uint8_t *data, size_t size) {
    require(inside(t->name.text, t->name.n_bytes, data, size) && t->n_dims <= GGUF_MAX_DIMS && t->format);
    require(inside(t->data, (size_t)t->n_bytes, data, size) && t->data == data + t->file_offset);
    uint64_t n_values = 1;
    for (int d = 0; d < GGUF_MAX_DIMS; d++) n_values *= t->dims[d];
    require(n_values == t->n_values && n_values > 0);
    uint64_t n_rows = n_values / t->dims[0];
    require(quant_row_bytes(t->format, (size_t)t->dims[0]) * n_rows == t->n_bytes);
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *other = gguf_tensor_at(g, i);
        require(other == t || other->data + other->n_bytes <= t->data || t->data + t->n_bytes <= other->data);
    }
    char *name = name_copy(t->name);
    if (name) require(gguf_find_tensor(g, name) == t);
    free(name);
    return touch(t->data, (size_t)t->n_bytes);
}

static void describe(const gguf *g) {
    for (int flags = 0; flags < 8; flags++) {
        inspect_options options = {.json = flags & 1, .tensors = flags & 2, .full = flags & 4};
        buf out = BUF_INIT;
        if (inspect_render(g, &options, &out, NULL) == 0) require(utf8_valid(out.data, out.n_bytes));
        buf_free(&out);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    unsigned sum = 0;
    gguf *g = NULL;
    weir_error err = {0};
    int rc = gguf_parse(&g, data, size, "fuzz.gguf", &err);
    require((rc == 0) == (g != NULL));
    if (rc < 0) {
        require(rc == err.code && err.message[0] && utf8_valid(err.message, strlen(err.message)));
        require(err.place[0] && utf8_valid(err.place, strlen(err.place)));
        return 0;
    }
    for (size_t i = 0; i < gguf_n_key_values(g); i++) sum += walk_value(g, gguf_key_value_at(g, i), data, size);
    for (size_t i = 0; i < gguf_n_tensors(g); i++) sum += walk_tensor(g, gguf_tensor_at(g, i), data, size);
    require(gguf_key_value_at(g, gguf_n_key_values(g)) == NULL && gguf_tensor_at(g, gguf_n_tensors(g)) == NULL);
    require(gguf_file_bytes(g) == size && gguf_n_parts(g) == 1);
    describe(g);
    __asm__ volatile("" : : "r"(sum)); /* keeps the reads */
    gguf_close(&g);
    return 0;
}
