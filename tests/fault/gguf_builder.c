/* See gguf_builder.h. */
#include "fault/gguf_builder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

void gguf_builder_init(gguf_builder *b) {
    *b = (gguf_builder){.version = 3, .alignment = 32};
}

static void key_free(gguf_builder_key *k) {
    free(k->key);
    buf_free(&k->value);
}

static void tensor_free(gguf_builder_tensor *t) {
    free(t->name);
    free(t->data);
}

void gguf_builder_free(gguf_builder *b) {
    for (size_t i = 0; i < b->n_keys; i++) key_free(&b->keys[i]);
    for (size_t i = 0; i < b->n_tensors; i++) tensor_free(&b->tensors[i]);
    free(b->keys);
    free(b->tensors);
    gguf_builder_init(b);
}

static void put_number(buf *out, uint64_t value, size_t width) {
    for (size_t i = 0; i < width; i++) buf_putc(out, (char)(value >> (8 * i) & 0xff));
}

static void put_string(buf *out, const char *text) {
    put_number(out, strlen(text), 8);
    buf_append(out, text, strlen(text));
}

/* ---- keys ------------------------------------------------------------------------------------------------------------- */

gguf_builder_key *gguf_builder_find_key(gguf_builder *b, const char *key) {
    for (size_t i = 0; i < b->n_keys; i++) {
        if (strcmp(b->keys[i].key, key) == 0) return &b->keys[i];
    }
    return NULL;
}

static gguf_builder_key *append_key(gguf_builder *b, const char *key) {
    gguf_builder_key *keys = realloc(b->keys, (b->n_keys + 1) * sizeof *keys);
    if (keys) b->keys = keys;
    char *copy = strdup(key);
    if (keys == NULL || copy == NULL) {
        free(copy);
        b->failed = true;
        return NULL;
    }
    keys[b->n_keys] = (gguf_builder_key){.key = copy};
    return &keys[b->n_keys++];
}

/* The entry of `key`, new or emptied. */
static gguf_builder_key *set_key(gguf_builder *b, const char *key, uint32_t type) {
    gguf_builder_key *k = gguf_builder_find_key(b, key);
    if (k == NULL) k = append_key(b, key);
    if (k == NULL) return NULL;
    k->type = type;
    buf_clear(&k->value);
    return k;
}

void gguf_builder_raw(gguf_builder *b, const char *key, uint32_t type, const void *bytes, size_t n_bytes) {
    gguf_builder_key *k = set_key(b, key, type);
    if (k) buf_append(&k->value, bytes, n_bytes);
}

void gguf_builder_u32(gguf_builder *b, const char *key, uint32_t value) {
    gguf_builder_key *k = set_key(b, key, GGUF_UINT32);
    if (k) put_number(&k->value, value, 4);
}

void gguf_builder_f32(gguf_builder *b, const char *key, float value) {
    gguf_builder_raw(b, key, GGUF_FLOAT32, &value, sizeof value);
}

void gguf_builder_bool(gguf_builder *b, const char *key, bool value) {
    gguf_builder_key *k = set_key(b, key, GGUF_BOOL);
    if (k) buf_putc(&k->value, value);
}

void gguf_builder_string(gguf_builder *b, const char *key, const char *value) {
    gguf_builder_key *k = set_key(b, key, GGUF_STRING);
    if (k) put_string(&k->value, value);
}

void gguf_builder_strings(gguf_builder *b, const char *key, const char *const *values, size_t n) {
    gguf_builder_key *k = set_key(b, key, GGUF_ARRAY);
    if (k == NULL) return;
    put_number(&k->value, GGUF_STRING, 4);
    put_number(&k->value, n, 8);
    for (size_t i = 0; i < n; i++) put_string(&k->value, values[i]);
}

void gguf_builder_array(gguf_builder *b, const char *key, gguf_value_type item_type, const void *bytes, size_t n_items,
                        size_t item_bytes) {
    gguf_builder_key *k = set_key(b, key, GGUF_ARRAY);
    if (k == NULL) return;
    put_number(&k->value, item_type, 4);
    put_number(&k->value, n_items, 8);
    buf_append(&k->value, bytes, n_items * item_bytes);
}

void gguf_builder_repeat_key(gguf_builder *b, const char *key) {
    const gguf_builder_key *old = gguf_builder_find_key(b, key);
    size_t index = old ? (size_t)(old - b->keys) : 0;
    gguf_builder_key *k = old ? append_key(b, key) : NULL;
    if (k == NULL) {
        b->failed = true;
        return;
    }
    k->type = b->keys[index].type;
    buf_append(&k->value, b->keys[index].value.data, b->keys[index].value.n_bytes);
}

bool gguf_builder_drop_key(gguf_builder *b, const char *key) {
    gguf_builder_key *k = gguf_builder_find_key(b, key);
    if (k == NULL) return false;
    key_free(k);
    size_t after = (size_t)(b->keys + b->n_keys - (k + 1));
    memmove(k, k + 1, after * sizeof *k);
    b->n_keys--;
    return true;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------------- */

gguf_builder_tensor *gguf_builder_find_tensor(gguf_builder *b, const char *name) {
    for (size_t i = 0; i < b->n_tensors; i++) {
        if (strcmp(b->tensors[i].name, name) == 0) return &b->tensors[i];
    }
    return NULL;
}

/* Sets shape and data. */
static bool shape_tensor(gguf_builder *b, gguf_builder_tensor *t, uint32_t n_dims, const uint64_t *dims) {
    const quant_format *format = quant_format_of(t->type);
    size_t n_bytes = format ? (size_t)format->block_bytes : 0;
    t->n_dims = n_dims;
    for (uint32_t d = 0; d < n_dims && d < GGUF_BUILDER_MAX_DIMS; d++) {
        t->dims[d] = dims[d];
        n_bytes *= d == 0 && format ? (size_t)dims[d] / (size_t)format->block_size : (size_t)dims[d];
    }
    unsigned char *data = calloc(n_bytes ? n_bytes : 1, 1);
    if (data == NULL) {
        b->failed = true;
        return false;
    }
    free(t->data);
    t->data = data;
    t->n_bytes = n_bytes;
    return true;
}

gguf_builder_tensor *gguf_builder_add_tensor(gguf_builder *b, const char *name, uint32_t type, uint32_t n_dims,
                                             const uint64_t *dims) {
    gguf_builder_tensor *tensors = realloc(b->tensors, (b->n_tensors + 1) * sizeof *tensors);
    if (tensors) b->tensors = tensors;
    char *copy = strdup(name);
    if (tensors == NULL || copy == NULL) {
        free(copy);
        b->failed = true;
        return NULL;
    }
    gguf_builder_tensor *t = &tensors[b->n_tensors];
    *t = (gguf_builder_tensor){.name = copy, .type = type};
    if (!shape_tensor(b, t, n_dims, dims)) {
        free(copy);
        return NULL;
    }
    b->n_tensors++;
    return t;
}

bool gguf_builder_drop_tensor(gguf_builder *b, const char *name) {
    gguf_builder_tensor *t = gguf_builder_find_tensor(b, name);
    if (t == NULL) return false;
    tensor_free(t);
    size_t after = (size_t)(b->tensors + b->n_tensors - (t + 1));
    memmove(t, t + 1, after * sizeof *t);
    b->n_tensors--;
    return true;
}

bool gguf_builder_reshape(gguf_builder *b, const char *name, uint32_t n_dims, const uint64_t *dims) {
    gguf_builder_tensor *t = gguf_builder_find_tensor(b, name);
    return t && shape_tensor(b, t, n_dims, dims);
}

void gguf_builder_fill(gguf_builder_tensor *t, uint32_t seed, float centre, float spread) {
    if (t == NULL) return;
    uint32_t state = seed * 2654435761u + 12345u;
    for (size_t i = 0; i + 4 <= t->n_bytes; i += 4) {
        state = state * 1664525u + 1013904223u;
        float value = centre + spread * ((float)(state >> 8) / 8388608.0f - 1.0f);
        memcpy(t->data + i, &value, sizeof value);
    }
}

void gguf_builder_quantise(gguf_builder *b, const char *name, quant_type type) {
    gguf_builder_tensor *old = gguf_builder_find_tensor(b, name);
    if (old == NULL) {
        b->failed = true;
        return;
    }
    uint64_t dims[GGUF_BUILDER_MAX_DIMS];
    const uint32_t n_dims = old->n_dims;
    memcpy(dims, old->dims, sizeof dims);
    gguf_builder_drop_tensor(b, name);
    gguf_builder_tensor *t = gguf_builder_add_tensor(b, name, type, n_dims, dims);
    const size_t block_bytes = (size_t)quant_format_of(type)->block_bytes;
    uint32_t seed = (uint32_t)b->n_tensors + (uint32_t)strlen(name);
    for (size_t at = 0; t && at < t->n_bytes; at++) t->data[at] = (unsigned char)((seed = seed * 1664525u + 1013904223u) >> 24);
    for (size_t at = 0; t && at < t->n_bytes; at += block_bytes) {
        const uint16_t scale = quant_f32_to_f16(0.01f), min = quant_f32_to_f16(-0.08f);
        const uint16_t value = quant_f32_to_f16(((float)t->data[at] - 127.0f) / 1000.0f);
        memcpy(t->data + at, type == QUANT_F16 ? &value : &scale, 2);
        if (type == QUANT_Q4_1 || type == QUANT_Q5_1) memcpy(t->data + at + 2, &min, 2);
    }
}

/* ---- a tiny llama ----------------------------------------------------------------------------------------------------- */

/* The character that stands for a byte in byte-level BPE: itself where it is visible, else the next free one from U+0100 on. */
static void byte_token(unsigned byte, char out[8]) {
    static const unsigned ranges[3][2] = {{'!', '~'}, {0xa1, 0xac}, {0xae, 0xff}};
    uint32_t c = 0x100;
    for (unsigned i = 0; i <= byte; i++) {
        bool visible = false;
        for (size_t r = 0; r < 3; r++) visible = visible || (i >= ranges[r][0] && i <= ranges[r][1]);
        if (i == byte && visible) c = byte;
        if (i < byte && !visible) c++;
    }
    out[utf8_encode(c, out)] = '\0';
}

void gguf_builder_tokenizer(gguf_builder *b) {
    static const char *const special[3] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    static const char *const merges[6] = {"h e", "l l", "Ġ t", "he ll", "hell o", "Ġt he"};
    static const char *const merged[6] = {"he", "ll", "Ġt", "hell", "hello", "Ġthe"};
    char bytes[256][8];
    const char *tokens[GGUF_BUILDER_LLAMA_VOCAB];
    int32_t types[GGUF_BUILDER_LLAMA_VOCAB];
    for (size_t i = 0; i < GGUF_BUILDER_LLAMA_VOCAB; i++) {
        if (i >= 3 && i < 3 + 256) byte_token((unsigned)(i - 3), bytes[i - 3]);
        tokens[i] = i < 3 ? special[i] : i < 3 + 256 ? bytes[i - 3] : merged[i - 3 - 256];
        types[i] = i < 3 ? 3 : 1; /* control, normal */
    }
    gguf_builder_string(b, "tokenizer.ggml.model", "gpt2");
    gguf_builder_string(b, "tokenizer.ggml.pre", "smollm");
    gguf_builder_strings(b, "tokenizer.ggml.tokens", tokens, GGUF_BUILDER_LLAMA_VOCAB);
    gguf_builder_array(b, "tokenizer.ggml.token_type", GGUF_INT32, types, GGUF_BUILDER_LLAMA_VOCAB, sizeof types[0]);
    gguf_builder_strings(b, "tokenizer.ggml.merges", merges, 6);
    gguf_builder_u32(b, "tokenizer.ggml.bos_token_id", 1);
    gguf_builder_u32(b, "tokenizer.ggml.eos_token_id", 2);
    gguf_builder_u32(b, "tokenizer.ggml.unknown_token_id", 0);
    gguf_builder_u32(b, "tokenizer.ggml.padding_token_id", 2);
    gguf_builder_bool(b, "tokenizer.ggml.add_bos_token", false);
    gguf_builder_bool(b, "tokenizer.ggml.add_space_prefix", false);
    gguf_builder_string(
        b, "tokenizer.chat_template",
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
        "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}");
}

static void add_matrix(gguf_builder *b, const char *name, uint64_t n_cols, uint64_t n_rows) {
    gguf_builder_tensor *t = gguf_builder_add_tensor(b, name, QUANT_F32, 2, (uint64_t[]){n_cols, n_rows});
    gguf_builder_fill(t, (uint32_t)b->n_tensors, 0.0f, 1.7f / sqrtf((float)n_cols));
}

static void add_norm(gguf_builder *b, const char *name, uint64_t n) {
    gguf_builder_tensor *t = gguf_builder_add_tensor(b, name, QUANT_F32, 1, (uint64_t[]){n});
    gguf_builder_fill(t, (uint32_t)b->n_tensors, 1.0f, 0.2f);
}

void gguf_builder_llama(gguf_builder *b, const gguf_builder_llama_shape *shape) {
    gguf_builder_llama_shape s = {.n_layer = 2, .d_model = 64, .n_head = 4, .n_head_kv = 2, .d_ff = 128, .n_ctx = 256};
    if (shape) s = *shape;
    uint32_t d_head = s.d_model / s.n_head, d_kv = d_head * s.n_head_kv;
    gguf_builder_string(b, "general.architecture", "llama");
    gguf_builder_string(b, "general.name", "tiny");
    gguf_builder_u32(b, "general.file_type", 0);
    gguf_builder_u32(b, "llama.block_count", s.n_layer);
    gguf_builder_u32(b, "llama.context_length", s.n_ctx);
    gguf_builder_u32(b, "llama.embedding_length", s.d_model);
    gguf_builder_u32(b, "llama.feed_forward_length", s.d_ff);
    gguf_builder_u32(b, "llama.attention.head_count", s.n_head);
    gguf_builder_u32(b, "llama.attention.head_count_kv", s.n_head_kv);
    gguf_builder_u32(b, "llama.rope.dimension_count", d_head);
    gguf_builder_f32(b, "llama.rope.freq_base", 10000.0f);
    gguf_builder_f32(b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_builder_u32(b, "llama.vocab_size", GGUF_BUILDER_LLAMA_VOCAB);
    gguf_builder_tokenizer(b);
    add_matrix(b, "token_embd.weight", s.d_model, GGUF_BUILDER_LLAMA_VOCAB);
    for (uint32_t layer = 0; layer < s.n_layer; layer++) {
        const struct {
            const char *suffix;
            uint32_t n_cols, n_rows; /* n_rows 0: a norm */
        } parts[] = {{"attn_norm", s.d_model, 0},     {"attn_q", s.d_model, s.d_model},      {"attn_k", s.d_model, d_kv},
                     {"attn_v", s.d_model, d_kv},     {"attn_output", s.d_model, s.d_model}, {"ffn_norm", s.d_model, 0},
                     {"ffn_gate", s.d_model, s.d_ff}, {"ffn_up", s.d_model, s.d_ff},         {"ffn_down", s.d_ff, s.d_model}};
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%u.%s.weight", layer, parts[i].suffix);
            if (parts[i].n_rows) {
                add_matrix(b, name, parts[i].n_cols, parts[i].n_rows);
            } else {
                add_norm(b, name, parts[i].n_cols);
            }
        }
    }
    add_norm(b, "output_norm.weight", s.d_model);
    if (!s.tied) add_matrix(b, "output.weight", s.d_model, GGUF_BUILDER_LLAMA_VOCAB);
}

/* ---- the file --------------------------------------------------------------------------------------------------------- */

static void pad_to(buf *out, size_t start, size_t alignment) {
    while ((out->n_bytes - start) % alignment != 0 && !out->failed) buf_putc(out, '\0');
}

bool gguf_builder_finish(gguf_builder *b, buf *file) {
    size_t start = file->n_bytes;
    buf_append(file, "GGUF", 4);
    put_number(file, b->version, 4);
    put_number(file, b->n_tensors, 8);
    put_number(file, b->n_keys, 8);
    for (size_t i = 0; i < b->n_keys; i++) {
        gguf_builder_key *k = &b->keys[i];
        k->key_at = file->n_bytes - start;
        put_string(file, k->key);
        k->type_at = file->n_bytes - start;
        put_number(file, k->type, 4);
        k->value_at = file->n_bytes - start;
        buf_append(file, k->value.data, k->value.n_bytes);
        b->failed = b->failed || k->value.failed;
    }
    uint64_t offset = 0;
    for (size_t i = 0; i < b->n_tensors; i++) {
        gguf_builder_tensor *t = &b->tensors[i];
        if (!t->offset_given) t->offset = offset;
        offset += (t->n_bytes + b->alignment - 1) / b->alignment * b->alignment;
        t->name_at = file->n_bytes - start;
        put_string(file, t->name);
        t->n_dims_at = file->n_bytes - start;
        put_number(file, t->n_dims, 4);
        t->dims_at = file->n_bytes - start;
        for (uint32_t d = 0; d < t->n_dims && d < GGUF_BUILDER_MAX_DIMS; d++) put_number(file, t->dims[d], 8);
        t->type_at = file->n_bytes - start;
        put_number(file, t->type, 4);
        t->offset_at = file->n_bytes - start;
        put_number(file, t->offset, 8);
    }
    for (size_t i = 0; i < b->n_tensors; i++) {
        pad_to(file, start, b->alignment);
        b->tensors[i].data_at = file->n_bytes - start;
        buf_append(file, b->tensors[i].data, b->tensors[i].n_bytes);
    }
    return !b->failed && !file->failed;
}

bool gguf_builder_write(gguf_builder *b, const char *path) {
    buf file = BUF_INIT;
    bool ok = gguf_builder_finish(b, &file);
    FILE *f = ok ? fopen(path, "wb") : NULL;
    ok = f && fwrite(file.data, 1, file.n_bytes, f) == file.n_bytes;
    if (f) ok = fclose(f) == 0 && ok;
    buf_free(&file);
    return ok;
}

bool gguf_builder_patch(buf *file, size_t at, size_t width, uint64_t value) {
    if (at > file->n_bytes || width > file->n_bytes - at || width > 8) return false;
    for (size_t i = 0; i < width; i++) file->data[at + i] = (char)(value >> (8 * i) & 0xff);
    return true;
}
