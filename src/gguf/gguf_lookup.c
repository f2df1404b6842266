/* Finding keys and tensors, reading values, and making names printable. See gguf.h. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"
#include "base/utf8.h"
#include "gguf/gguf_internal.h"

/* ---- names ------------------------------------------------------------------------------------------------------------ */

static int compare_strings(const gguf_string *a, const gguf_string *b) {
    size_t shorter = a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes;
    int order = shorter ? memcmp(a->text, b->text, shorter) : 0;
    return order ? order : (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes);
}

/* Equal names stay in the order of the file, that is of their addresses. */
static int compare_entries(const void *a, const void *b) {
    const gguf_string *x = *(const gguf_string *const *)a, *y = *(const gguf_string *const *)b;
    int order = compare_strings(x, y);
    return order ? order : (x > y) - (x < y);
}

int gguf_index_names(arena *memory, name_index *index, const void *first, size_t n, size_t stride,
                     const gguf_string **duplicate) {
    index->n = 0;
    index->sorted = arena_array(memory, n, sizeof *index->sorted);
    if (index->sorted == NULL) return WEIR_E_NOMEM;
    for (size_t i = 0; i < n; i++) index->sorted[i] = (const gguf_string *)(const void *)((const char *)first + i * stride);
    qsort(index->sorted, n, sizeof *index->sorted, compare_entries);
    index->n = n;
    for (size_t i = 1; i < n; i++) {
        if (compare_strings(index->sorted[i - 1], index->sorted[i]) == 0) {
            *duplicate = index->sorted[i];
            return 1;
        }
    }
    return 0;
}

static const void *find_name(const name_index *index, const char *name) {
    gguf_string wanted = {name, strlen(name)};
    size_t low = 0, high = index->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_strings(&wanted, index->sorted[middle]);
        if (order == 0) return index->sorted[middle];
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

const gguf_key_value *gguf_find(const gguf *g, const char *key) {
    return find_name(&g->keys, key);
}
const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name) {
    return find_name(&g->names, name);
}

uint32_t gguf_version(const gguf *g) {
    return g->version;
}
uint32_t gguf_n_parts(const gguf *g) {
    return g->n_parts;
}
const char *gguf_path(const gguf *g) {
    return g->path;
}
size_t gguf_n_key_values(const gguf *g) {
    return g->n_key_values;
}
const gguf_key_value *gguf_key_value_at(const gguf *g, size_t i) {
    return i < g->n_key_values ? &g->key_values[i] : NULL;
}
size_t gguf_n_tensors(const gguf *g) {
    return g->n_tensors;
}
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i) {
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}

/* ---- values ----------------------------------------------------------------------------------------------------------- */

/* A number of any type: exactly one of the members is meant. */
typedef struct any_number {
    enum { NUMBER_NONE, NUMBER_SIGNED, NUMBER_UNSIGNED, NUMBER_FLOAT } kind;
    int64_t i;
    uint64_t u;
    double f;
} any_number;

/* Element i; i must be in range. */
static any_number item_at(const gguf_key_value *kv, uint64_t i) {
#define READ(ctype, name, kind_, member)                                                                                       \
    case name: {                                                                                                               \
        ctype value;                                                                                                           \
        memcpy(&value, kv->data + i * sizeof value, sizeof value);                                                             \
        return (any_number){.kind = (kind_), .member = value};                                                                 \
    }
    switch (kv->item_type) {
        READ(uint8_t, GGUF_BOOL, NUMBER_SIGNED, i)
        READ(uint8_t, GGUF_UINT8, NUMBER_SIGNED, i)
        READ(int8_t, GGUF_INT8, NUMBER_SIGNED, i)
        READ(uint16_t, GGUF_UINT16, NUMBER_SIGNED, i)
        READ(int16_t, GGUF_INT16, NUMBER_SIGNED, i)
        READ(uint32_t, GGUF_UINT32, NUMBER_SIGNED, i)
        READ(int32_t, GGUF_INT32, NUMBER_SIGNED, i)
        READ(uint64_t, GGUF_UINT64, NUMBER_UNSIGNED, u)
        READ(int64_t, GGUF_INT64, NUMBER_SIGNED, i)
        READ(float, GGUF_FLOAT32, NUMBER_FLOAT, f)
        READ(double, GGUF_FLOAT64, NUMBER_FLOAT, f)
    case GGUF_STRING:
    case GGUF_ARRAY:
        break;
    }
#undef READ
    return (any_number){.kind = NUMBER_NONE};
}

int gguf_item_i64(const gguf_key_value *kv, uint64_t i, int64_t *out) {
    if (i >= kv->n_items) return 0;
    any_number n = item_at(kv, i);
    if (n.kind == NUMBER_UNSIGNED && n.u <= INT64_MAX) {
        *out = (int64_t)n.u;
        return 1;
    }
    if (n.kind != NUMBER_SIGNED) return WEIR_E_FORMAT;
    *out = n.i;
    return 1;
}

int gguf_item_f64(const gguf_key_value *kv, uint64_t i, double *out) {
    if (i >= kv->n_items) return 0;
    any_number n = item_at(kv, i);
    if (n.kind == NUMBER_NONE) return WEIR_E_FORMAT;
    *out = n.kind == NUMBER_FLOAT ? n.f : n.kind == NUMBER_SIGNED ? (double)n.i : (double)n.u;
    return 1;
}

static int fail_type(const gguf *g, const gguf_key_value *kv, const char *expected, weir_error *err) {
    char place[GGUF_PLACE_BYTES];
    gguf_place(place, sizeof place, g->path, "key", kv->key, kv->data - g->bytes);
    FAIL(err, WEIR_E_FORMAT, place, "%s%s where %s is expected", kv->type == GGUF_ARRAY ? "an array of " : "a value of type ",
         gguf_value_type_name(kv->item_type), expected);
}

int gguf_get_u32(const gguf *g, const char *key, uint32_t *out, weir_error *err) {
    const gguf_key_value *kv = gguf_find(g, key);
    if (kv == NULL) return 0;
    int64_t value;
    if (kv->type == GGUF_ARRAY || kv->type == GGUF_BOOL || gguf_item_i64(kv, 0, &value) != 1) {
        return fail_type(g, kv, "an integer", err);
    }
    if (value < 0 || value > UINT32_MAX) {
        char place[GGUF_PLACE_BYTES];
        gguf_place(place, sizeof place, g->path, "key", kv->key, kv->data - g->bytes);
        FAIL(err, WEIR_E_FORMAT, place, "%lld; expected an integer from 0 to 4294967295", (long long)value);
    }
    *out = (uint32_t)value;
    return 1;
}

int gguf_get_f32(const gguf *g, const char *key, float *out, weir_error *err) {
    const gguf_key_value *kv = gguf_find(g, key);
    if (kv == NULL) return 0;
    double value;
    if (kv->type == GGUF_ARRAY || kv->type == GGUF_BOOL || gguf_item_f64(kv, 0, &value) != 1) {
        return fail_type(g, kv, "a number", err);
    }
    if (isfinite(value) && fabs(value) > FLT_MAX) {
        char place[GGUF_PLACE_BYTES];
        gguf_place(place, sizeof place, g->path, "key", kv->key, kv->data - g->bytes);
        FAIL(err, WEIR_E_FORMAT, place, "%g is beyond the range of a float32", value);
    }
    *out = (float)value;
    return 1;
}

int gguf_get_bool(const gguf *g, const char *key, bool *out, weir_error *err) {
    const gguf_key_value *kv = gguf_find(g, key);
    if (kv == NULL) return 0;
    if (kv->type != GGUF_BOOL) return fail_type(g, kv, "a bool", err);
    *out = kv->data[0] != 0;
    return 1;
}

int gguf_get_string(const gguf *g, const char *key, gguf_string *out, weir_error *err) {
    const gguf_key_value *kv = gguf_find(g, key);
    if (kv == NULL) return 0;
    if (kv->type != GGUF_STRING) return fail_type(g, kv, "a string", err);
    *out = kv->strings[0];
    return 1;
}

static const char *const file_types[] = {
    [GGUF_FILE_F32] = "F32",       [GGUF_FILE_F16] = "F16",         [GGUF_FILE_Q4_0] = "Q4_0",
    [GGUF_FILE_Q4_1] = "Q4_1",     [GGUF_FILE_Q8_0] = "Q8_0",       [GGUF_FILE_Q5_0] = "Q5_0",
    [GGUF_FILE_Q5_1] = "Q5_1",     [GGUF_FILE_Q2_K] = "Q2_K",       [GGUF_FILE_Q3_K_S] = "Q3_K_S",
    [GGUF_FILE_Q3_K_M] = "Q3_K_M", [GGUF_FILE_Q3_K_L] = "Q3_K_L",   [GGUF_FILE_Q4_K_S] = "Q4_K_S",
    [GGUF_FILE_Q4_K_M] = "Q4_K_M", [GGUF_FILE_Q5_K_S] = "Q5_K_S",   [GGUF_FILE_Q5_K_M] = "Q5_K_M",
    [GGUF_FILE_Q6_K] = "Q6_K",     [GGUF_FILE_IQ2_XXS] = "IQ2_XXS", [GGUF_FILE_IQ2_XS] = "IQ2_XS",
    [GGUF_FILE_Q2_K_S] = "Q2_K_S", [GGUF_FILE_IQ3_XS] = "IQ3_XS",   [GGUF_FILE_IQ3_XXS] = "IQ3_XXS",
    [GGUF_FILE_IQ1_S] = "IQ1_S",   [GGUF_FILE_IQ4_NL] = "IQ4_NL",   [GGUF_FILE_IQ3_S] = "IQ3_S",
    [GGUF_FILE_IQ3_M] = "IQ3_M",   [GGUF_FILE_IQ2_S] = "IQ2_S",     [GGUF_FILE_IQ2_M] = "IQ2_M",
    [GGUF_FILE_IQ4_XS] = "IQ4_XS", [GGUF_FILE_IQ1_M] = "IQ1_M",     [GGUF_FILE_BF16] = "BF16",
    [GGUF_FILE_TQ1_0] = "TQ1_0",   [GGUF_FILE_TQ2_0] = "TQ2_0",     [GGUF_FILE_MXFP4_MOE] = "MXFP4_MOE",
    [GGUF_FILE_NVFP4] = "NVFP4",   [GGUF_FILE_Q1_0] = "Q1_0",       [GGUF_FILE_Q2_0] = "Q2_0",
};

enum { N_FILE_TYPES = sizeof file_types / sizeof file_types[0] };

const char *gguf_file_type_text(uint32_t number) {
    return number < N_FILE_TYPES ? file_types[number] : NULL;
}

int32_t gguf_file_type_number(const char *name) {
    for (int32_t i = 0; i < N_FILE_TYPES; i++) {
        if (file_types[i] && strcasecmp(file_types[i], name) == 0) return i;
    }
    return -1;
}

const char *gguf_file_type_name(const gguf *g) {
    uint32_t number;
    if (gguf_get_u32(g, "general.file_type", &number, NULL) == 1 && gguf_file_type_text(number)) {
        return gguf_file_type_text(number);
    }
    size_t n_formats;
    const quant_format *formats = quant_format_table(&n_formats), *most = NULL;
    uint64_t most_bytes = 0;
    for (size_t f = 0; f < n_formats; f++) {
        uint64_t n_bytes = 0;
        for (size_t i = 0; i < g->n_tensors; i++) n_bytes += g->tensors[i].format == &formats[f] ? g->tensors[i].n_bytes : 0;
        if (n_bytes > most_bytes) {
            most_bytes = n_bytes;
            most = &formats[f];
        }
    }
    return most ? most->name : "unknown";
}

const unsigned char *gguf_tensor_row(const gguf_tensor *t, uint64_t row) {
    const uint64_t head = t->rope_head, in_head = head ? row % head : 0;
    const uint64_t stored = head ? row - in_head + in_head % 2 * (head / 2) + in_head / 2 : row;
    return t->data + (size_t)stored * quant_row_bytes(t->format, (size_t)t->dims[0]);
}

/* ---- text for messages ------------------------------------------------------------------------------------------------ */

/* Characters that a terminal acts upon, or that reorder or hide what stands beside them. */
static bool is_unprintable(uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0xad || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2060 && c <= 0x206f) || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb) || (c >= 0xe0000 && c <= 0xe007f);
}

/* Writes one character or its escape to piece[16]; returns the bytes of the input that it stands for. */
static size_t printable_piece(const char *text, size_t n_bytes, char piece[16]) {
    uint32_t c;
    size_t taken = utf8_decode(text, n_bytes, &c);
    bool ill_formed = c == UTF8_REPLACEMENT && !(taken == 3 && memcmp(text, "\xef\xbf\xbd", 3) == 0);
    if (ill_formed) {
        snprintf(piece, 16, "\\x%02x", (unsigned char)text[0]);
        return 1;
    }
    if (c == '\\' || c == '\n' || c == '\t' || c == '\r') {
        snprintf(piece, 16, "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : c == '\r' ? 'r' : '\\');
    } else if (c < 0x80 && is_unprintable(c)) {
        snprintf(piece, 16, "\\x%02x", c);
    } else if (is_unprintable(c)) {
        snprintf(piece, 16, "\\u{%x}", c);
    } else {
        memcpy(piece, text, taken);
        piece[taken] = '\0';
    }
    return taken;
}

size_t gguf_printable(gguf_string s, char *out, size_t capacity) {
    static const char more[] = "...";
    if (capacity == 0) return 0;
    size_t n = 0, cut = 0; /* cut: the longest prefix of the output after which "..." fits */
    for (size_t i = 0; i < s.n_bytes;) {
        char piece[16];
        i += printable_piece(s.text + i, s.n_bytes - i, piece);
        size_t piece_bytes = strlen(piece);
        if (n + piece_bytes >= capacity) {
            size_t room = capacity - 1 - cut;
            size_t dots = room < sizeof more - 1 ? room : sizeof more - 1;
            memcpy(out + cut, more, dots);
            out[cut + dots] = '\0';
            return cut + dots;
        }
        memcpy(out + n, piece, piece_bytes);
        n += piece_bytes;
        if (n + sizeof more <= capacity) cut = n;
    }
    out[n] = '\0';
    return n;
}

void gguf_place(char *place, size_t capacity, const char *path, const char *subject, gguf_string name, int64_t offset) {
    enum { MAX_PATH_SHOWN = 84 };
    char file[MAX_PATH_SHOWN * 4], shown_name[64], byte[32] = "";
    size_t path_bytes = strlen(path);
    const char *start = path;
    if (path_bytes > MAX_PATH_SHOWN) { /* the end of a path says more than its beginning */
        start = path + path_bytes - MAX_PATH_SHOWN;
        while ((*start & 0xc0) == 0x80) start++;
    }
    gguf_printable((gguf_string){start, strlen(start)}, file, sizeof file);
    if (offset >= 0) snprintf(byte, sizeof byte, "%s byte %lld", subject ? "," : ":", (long long)offset);
    const char *dots = start == path ? "" : "...";
    if (subject == NULL) {
        snprintf(place, capacity, "%s%s%s", dots, file, byte);
        return;
    }
    gguf_printable(name, shown_name, sizeof shown_name);
    snprintf(place, capacity, "%s%s: %s '%s'%s", dots, file, subject, shown_name, byte);
}
