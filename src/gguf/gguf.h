/* GGUF v2/v3 files: parsing a byte range into a checked directory of metadata and tensors, and mapping files.
 * gguf_parse is a pure function over (bytes, n_bytes) with a bounds-checked cursor: every count, length, offset and size is
 * checked against the range before it is used, so nothing in a file can make it read outside, allocate absurdly, loop or crash.
 * Knows nothing of architectures, tokenisers or what keys mean (except `general.alignment`, `general.file_type` and `split.*`).
 * Immutable after opening; any thread. */
#ifndef WEIR_GGUF_H
#define WEIR_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant/quant.h"
#include "weir/weir_error.h"

enum { GGUF_MAX_DIMS = 4, GGUF_MAX_NAME = 128 };

typedef enum gguf_value_type {
    GGUF_UINT8 = 0,
    GGUF_INT8 = 1,
    GGUF_UINT16 = 2,
    GGUF_INT16 = 3,
    GGUF_UINT32 = 4,
    GGUF_INT32 = 5,
    GGUF_FLOAT32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_UINT64 = 10,
    GGUF_INT64 = 11,
    GGUF_FLOAT64 = 12,
} gguf_value_type;

/* The numbers of general.file_type, as llama.cpp's tools write them. */
typedef enum gguf_file_type {
    GGUF_FILE_F32 = 0,
    GGUF_FILE_F16 = 1,
    GGUF_FILE_Q4_0 = 2,
    GGUF_FILE_Q4_1 = 3,
    GGUF_FILE_Q8_0 = 7,
    GGUF_FILE_Q5_0 = 8,
    GGUF_FILE_Q5_1 = 9,
    GGUF_FILE_Q2_K = 10,
    GGUF_FILE_Q3_K_S = 11,
    GGUF_FILE_Q3_K_M = 12,
    GGUF_FILE_Q3_K_L = 13,
    GGUF_FILE_Q4_K_S = 14,
    GGUF_FILE_Q4_K_M = 15,
    GGUF_FILE_Q5_K_S = 16,
    GGUF_FILE_Q5_K_M = 17,
    GGUF_FILE_Q6_K = 18,
    GGUF_FILE_IQ2_XXS = 19,
    GGUF_FILE_IQ2_XS = 20,
    GGUF_FILE_Q2_K_S = 21,
    GGUF_FILE_IQ3_XS = 22,
    GGUF_FILE_IQ3_XXS = 23,
    GGUF_FILE_IQ1_S = 24,
    GGUF_FILE_IQ4_NL = 25,
    GGUF_FILE_IQ3_S = 26,
    GGUF_FILE_IQ3_M = 27,
    GGUF_FILE_IQ2_S = 28,
    GGUF_FILE_IQ2_M = 29,
    GGUF_FILE_IQ4_XS = 30,
    GGUF_FILE_IQ1_M = 31,
    GGUF_FILE_BF16 = 32,
    GGUF_FILE_TQ1_0 = 36,
    GGUF_FILE_TQ2_0 = 37,
    GGUF_FILE_MXFP4_MOE = 38,
    GGUF_FILE_NVFP4 = 39,
    GGUF_FILE_Q1_0 = 40,
    GGUF_FILE_Q2_0 = 41,
} gguf_file_type;

typedef struct gguf_string {
    const char *text; /* inside the mapping; not NUL-terminated; any bytes */
    size_t n_bytes;
} gguf_string;

typedef struct gguf_key_value {
    gguf_string key;
    gguf_value_type type;
    gguf_value_type item_type;  /* arrays: never GGUF_ARRAY, nested arrays are refused */
    uint64_t n_items;           /* arrays: the count; else 1 */
    const unsigned char *data;  /* first value, unaligned, inside the mapping */
    const gguf_string *strings; /* string and array of strings: [n_items]; else NULL */
} gguf_key_value;

typedef struct gguf_tensor {
    gguf_string name;
    uint32_t n_dims;
    uint64_t dims[GGUF_MAX_DIMS]; /* dims[0] is the fastest: the row length K; unused ones are 1 */
    const quant_format *format;   /* never NULL. Of a type that the table of formats lacks: blocks of one value and 0 bytes with the
                                     file's number for it, a name, and no functions, in the directory's memory */
    uint64_t n_values, n_bytes;   /* n_bytes is 0 for a type that the table lacks: nothing of its data may be read */
    uint64_t room_bytes;          /* from the data to those of the next tensor, or to the end of the file; 0 in objects that were built */
    uint64_t file_offset;      /* of the data in its file, for messages */
    const unsigned char *data; /* inside the mapping; n_bytes are readable; aligned to 8 from the start of the file */
    uint16_t part;             /* which file of a split model */
    uint32_t rope_head;        /* not 0: rows of a head, of which RoPE turns neighbours; the data have the first ones of all pairs,
                                  then the second ones. gguf_tensor_row finds a row */
} gguf_tensor;

typedef struct gguf gguf;

/* Maps `path` and parses it. A first part of a split model (name-00001-of-0000N.gguf, `split.count` > 1) brings in the other
 * parts, which must agree. Errors: WEIR_E_IO (place = path), WEIR_E_FORMAT (place = path and byte offset, key or tensor),
 * WEIR_E_UNSUPPORTED (version, big endian), WEIR_E_NOMEM. On failure *out is NULL. */
int gguf_open(gguf **out, const char *path, weir_error *err);
/* Parses a byte range that the caller keeps alive and unchanged until gguf_close. `name` is used in messages. */
int gguf_parse(gguf **out, const void *bytes, size_t n_bytes, const char *name, weir_error *err);
void gguf_close(gguf **g);

uint32_t gguf_version(const gguf *g); /* 0 for an object that was built */
const char *gguf_container(const gguf *g); /* "GGUF", or what an object was built from; static storage */
uint32_t gguf_n_parts(const gguf *g);
uint64_t gguf_file_bytes(const gguf *g); /* of all parts */
const char *gguf_path(const gguf *g);
size_t gguf_n_key_values(const gguf *g);
const gguf_key_value *gguf_key_value_at(const gguf *g, size_t i);
size_t gguf_n_tensors(const gguf *g);
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i);
const gguf_key_value *gguf_find(const gguf *g, const char *key);      /* NULL if absent */
const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name); /* NULL if absent; binary search */

/* Row `row` of a tensor (quant_row_bytes(format, dims[0]) bytes), counted as GGUF files have the rows, wherever it is stored. */
const unsigned char *gguf_tensor_row(const gguf_tensor *t, uint64_t row);

/* Typed look-ups. 1 = found, *out set; 0 = absent, *out untouched; WEIR_E_FORMAT = present with a type that cannot be read as
 * asked or that does not hold the value (any integer type will do for integers, floats and integers for floats; never an
 * array). Floats may be NaN or infinite: callers check ranges. */
int gguf_get_u32(const gguf *g, const char *key, uint32_t *out, weir_error *err);
int gguf_get_f32(const gguf *g, const char *key, float *out, weir_error *err);
int gguf_get_bool(const gguf *g, const char *key, bool *out, weir_error *err);
int gguf_get_string(const gguf *g, const char *key, gguf_string *out, weir_error *err);
/* Element i of a numeric array (or, for i == 0, of a scalar): 1 = *out set; 0 = i is out of range; WEIR_E_FORMAT = not numbers
 * of that kind (integers and bools for i64, which must hold the value; floats too for f64). *out is untouched unless 1. */
int gguf_item_i64(const gguf_key_value *kv, uint64_t i, int64_t *out);
int gguf_item_f64(const gguf_key_value *kv, uint64_t i, double *out);

/* What the file is called after: the name of `general.file_type` ("Q4_K_M"), or of the tensor type that takes most bytes when
 * the key is absent or its number unknown; "unknown" without tensors. Static storage. */
const char *gguf_file_type_name(const gguf *g);
/* "uint32", "string", ...; "unknown" for a number outside the enum. Static storage. */
const char *gguf_value_type_name(gguf_value_type type);
/* Bytes of a number of that type in a file; 0 for strings, arrays and numbers outside the enum. */
size_t gguf_value_type_bytes(gguf_value_type type);
/* The number that general.file_type has for a name such as "Q4_K_M", in any case; -1 if there is none. */
int32_t gguf_file_type_number(const char *name);
/* The name for such a number; NULL if there is none. */
const char *gguf_file_type_text(uint32_t number);
/* Names and strings of a file may hold anything: this makes one line of printable, well-formed UTF-8 for messages and
 * terminals. Control characters, invisible direction marks and ill-formed bytes become \n, \t, \xNN or \u{NNNN}, a backslash is
 * doubled. Writes at most `capacity` bytes with the NUL, cut between characters and then ending in "...", and returns the bytes
 * before the NUL. */
size_t gguf_printable(gguf_string s, char *out, size_t capacity);

/* One file of a model (split ones have several), as what tells it from another file needs it. */
typedef struct gguf_part {
    const char *path;
    const unsigned char *head; /* [head_bytes]: everything before the tensors' data */
    size_t head_bytes;
    uint64_t file_bytes;
    int64_t modified_ns; /* time of the last modification when it was opened; 0 if it was not a file */
} gguf_part;
/* Part i < gguf_n_parts. */
gguf_part gguf_part_at(const gguf *g, uint32_t i);

/* Tells the kernel what comes: bytes[n_bytes] inside a mapped file (bytes NULL: all of it) will be read soon, or will not for
 * long: its pages then leave this process, and stay readable. Advice only; does nothing for a range that gguf_parse was given. */
void gguf_will_need(const gguf *g, const void *bytes, size_t n_bytes);
void gguf_dont_need(const gguf *g, const void *bytes, size_t n_bytes);

#endif
