/* Builds GGUF files in memory for tests: sound ones, and ones with a chosen fault. Keys and tensors stay editable until the
 * file is put together; after that their places in the bytes are known, so that a test can overwrite any field.
 *
 *     gguf_builder b;
 *     gguf_builder_init(&b);
 *     gguf_builder_llama(&b, NULL);                                  (a complete tiny model)
 *     gguf_builder_u32(&b, "llama.attention.head_count", 1000000);   (replaces the key)
 *     gguf_builder_drop_tensor(&b, "output_norm.weight");
 *     buf file = BUF_INIT;
 *     assert_true(gguf_builder_finish(&b, &file));
 *
 * Running out of memory sets `failed`, which gguf_builder_finish reports. One thread. */
#ifndef WEIR_TESTS_GGUF_BUILDER_H
#define WEIR_TESTS_GGUF_BUILDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "gguf/gguf.h"

enum { GGUF_BUILDER_MAX_DIMS = 8 };

typedef struct gguf_builder_key {
    char *key;
    uint32_t type;
    buf value;     /* all that follows the type in the file */
    size_t key_at; /* where its length begins in the finished file */
    size_t type_at, value_at;
} gguf_builder_key;

typedef struct gguf_builder_tensor {
    char *name;
    uint32_t type, n_dims;
    uint64_t dims[GGUF_BUILDER_MAX_DIMS];
    unsigned char *data; /* n_bytes, zero at first */
    size_t n_bytes;
    bool offset_given; /* else `offset` is filled in when the file is finished */
    uint64_t offset;   /* from the start of the data */
    size_t name_at;    /* where the length of its name begins in the finished file */
    size_t n_dims_at, dims_at, type_at, offset_at, data_at;
} gguf_builder_tensor;

typedef struct gguf_builder {
    uint32_t version;
    size_t alignment; /* of the layout; the key general.alignment is not written for it */
    gguf_builder_key *keys;
    gguf_builder_tensor *tensors;
    size_t n_keys, n_tensors;
    bool failed;
} gguf_builder;

void gguf_builder_init(gguf_builder *b); /* version 3, alignment 32 */
void gguf_builder_free(gguf_builder *b);

/* Each replaces the key if it is there already. Pointers to keys and tensors are valid until the next one is added or dropped.
 */
void gguf_builder_u32(gguf_builder *b, const char *key, uint32_t value);
void gguf_builder_f32(gguf_builder *b, const char *key, float value);
void gguf_builder_bool(gguf_builder *b, const char *key, bool value);
void gguf_builder_string(gguf_builder *b, const char *key, const char *value);
void gguf_builder_strings(gguf_builder *b, const char *key, const char *const *values, size_t n);
/* A value of any type: `bytes` is all that follows the type. */
void gguf_builder_raw(gguf_builder *b, const char *key, uint32_t type, const void *bytes, size_t n_bytes);
/* An array of items of fixed size, `bytes` being all of them. */
void gguf_builder_array(gguf_builder *b, const char *key, gguf_value_type item_type, const void *bytes, size_t n_items,
                        size_t item_bytes);
/* A second entry of a key that is there already. */
void gguf_builder_repeat_key(gguf_builder *b, const char *key);
gguf_builder_key *gguf_builder_find_key(gguf_builder *b, const char *key); /* NULL if absent */
bool gguf_builder_drop_key(gguf_builder *b, const char *key);              /* false if absent */

/* Adds a tensor with as much zeroed data as its type and shape need (none for a type that quant.h does not know). dims[0] is
 * the row length. The result is NULL when out of memory. */
gguf_builder_tensor *gguf_builder_add_tensor(gguf_builder *b, const char *name, uint32_t type, uint32_t n_dims,
                                             const uint64_t *dims);
gguf_builder_tensor *gguf_builder_find_tensor(gguf_builder *b, const char *name); /* NULL if absent */
bool gguf_builder_drop_tensor(gguf_builder *b, const char *name);                 /* false if absent */
/* Gives a tensor another shape and fresh zeroed data to match. */
bool gguf_builder_reshape(gguf_builder *b, const char *name, uint32_t n_dims, const uint64_t *dims);
/* Fills an F32 tensor with numbers evenly spread over centre - spread .. centre + spread, the same for the same seed. */
void gguf_builder_fill(gguf_builder_tensor *t, uint32_t seed, float centre, float spread);

/* Replaces a tensor by one of the same shape in F16, Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0, with random values. */
void gguf_builder_quantise(gguf_builder *b, const char *name, quant_type type);

/* The shape of a tiny llama model. */
typedef struct gguf_builder_llama_shape {
    uint32_t n_layer, d_model, n_head, n_head_kv, d_ff, n_ctx;
    bool tied; /* no output.weight */
} gguf_builder_llama_shape;

/* Adds everything a llama model has: metadata, a byte-level BPE tokeniser (all 256 bytes, a few merges, <|endoftext|> = 0 and
 * <|im_end|> = 2 as ends, <|im_start|> = 1), a ChatML template, F32 weights that are random but the same on each call.
 * `shape` may be NULL: 2 layers, d_model 64, 4 heads, 2 KV heads, d_ff 128, 256 tokens of context, untied. */
void gguf_builder_llama(gguf_builder *b, const gguf_builder_llama_shape *shape);
enum { GGUF_BUILDER_LLAMA_VOCAB = 3 + 256 + 6 };

/* The tokeniser and template of gguf_builder_llama alone. */
void gguf_builder_tokenizer(gguf_builder *b);

/* Everything a tiny model of another family has, with the same tokeniser; some matrices are quantised. gguf_builder_families.c has
 * the names, beside "llama"; false for any other. */
bool gguf_builder_family(gguf_builder *b, const char *name);

/* Appends the file to `file`. False when memory ran out anywhere. */
bool gguf_builder_finish(gguf_builder *b, buf *file);
/* Finishes into the file `path`; false when that fails. */
bool gguf_builder_write(gguf_builder *b, const char *path);
/* Overwrites `width` bytes (1, 2, 4 or 8) of a finished file with a little-endian number; false if they are not there. */
bool gguf_builder_patch(buf *file, size_t at, size_t width, uint64_t value);

#endif
