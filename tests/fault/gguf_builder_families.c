/* Tiny models of families that are built otherwise than llama: what their files hold, as tables. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fault/gguf_builder.h"

enum { ALL = ~0 };

typedef enum part_kind {
    MATRIX,   /* spread by the row length */
    NORM,     /* around 1 */
    BIAS,     /* around 0 */
    NEGATIVE, /* around -1 */
} part_kind;

/* A tensor blk.I.NAME of the layers whose bit is set; dims[0] is the row length, unused dims are 0. */
typedef struct part {
    const char *name;
    int layers;
    part_kind kind;
    uint64_t dims[3];
    quant_type type; /* F32 is 0 */
} part;

typedef struct number {
    const char *key; /* without the architecture */
    uint32_t value;
} number;

typedef struct family {
    const char *name, *architecture;
    uint32_t n_layer;
    const number *numbers;
    size_t n_numbers;
    const part *parts;
    size_t n_parts;
    const char *head_counts_kv; /* "0102": one digit a layer, or NULL */
} family;

/* ---- deepseek2 -------------------------------------------------------------------------------------------------------- */

#define DEEPSEEK2_NUMBERS                                                                                                        \
    {"feed_forward_length", 96}, {"attention.head_count", 4}, {"attention.kv_lora_rank", 32}, {"rope.dimension_count", 8},      \
        {"leading_dense_block_count", 1}, {"expert_count", 4}, {"expert_used_count", 2}, {"expert_feed_forward_length", 32},     \
        {"expert_shared_count", 1}

#define DEEPSEEK2_PARTS                                                                                                          \
    {"attn_norm.weight", ALL, NORM, {64}}, {"attn_kv_a_norm.weight", ALL, NORM, {32}}, {"ffn_norm.weight", ALL, NORM, {64}},    \
        {"attn_kv_a_mqa.weight", ALL, MATRIX, {64, 40}}, {"attn_output.weight", ALL, MATRIX, {96, 64}, QUANT_Q4_1},              \
        {"ffn_gate.weight", 1, MATRIX, {64, 96}}, {"ffn_up.weight", 1, MATRIX, {64, 96}}, {"ffn_down.weight", 1, MATRIX, {96, 64}}, \
        {"ffn_gate_inp.weight", 2, MATRIX, {64, 4}}, {"ffn_down_exps.weight", 2, MATRIX, {32, 64, 4}},                           \
        {"ffn_gate_shexp.weight", 2, MATRIX, {64, 32}}, {"ffn_up_shexp.weight", 2, MATRIX, {64, 32}},                            \
        {"ffn_down_shexp.weight", 2, MATRIX, {32, 64}}

static const number deepseek2_numbers[] = {DEEPSEEK2_NUMBERS,
                                           {"attention.head_count_kv", 1},
                                           {"attention.q_lora_rank", 32},
                                           {"attention.key_length", 40},
                                           {"attention.value_length", 32},
                                           {"attention.key_length_mla", 40},
                                           {"attention.value_length_mla", 24},
                                           {"expert_gating_func", 2}};
static const part deepseek2_parts[] = {DEEPSEEK2_PARTS,
                                       {"attn_q_a.weight", ALL, MATRIX, {64, 32}},
                                       {"attn_q_a_norm.weight", ALL, NORM, {32}},
                                       {"attn_q_b.weight", ALL, MATRIX, {32, 160}, QUANT_Q8_0},
                                       {"attn_k_b.weight", ALL, MATRIX, {32, 32, 4}, QUANT_Q8_0},
                                       {"attn_v_b.weight", ALL, MATRIX, {32, 24, 4}, QUANT_Q4_0},
                                       {"exp_probs_b.bias", 2, BIAS, {4}},
                                       {"ffn_gate_exps.weight", 2, MATRIX, {64, 32, 4}},
                                       {"ffn_up_exps.weight", 2, MATRIX, {64, 32, 4}}};

/* The older form: queries straight from the row, one tensor for keys and values of all heads; experts' gate and up in one. */
static const number deepseek2_old_numbers[] = {
    DEEPSEEK2_NUMBERS, {"attention.head_count_kv", 4}, {"attention.key_length", 40}, {"attention.value_length", 24}};
static const part deepseek2_old_parts[] = {DEEPSEEK2_PARTS,
                                           {"attn_q.weight", ALL, MATRIX, {64, 160}},
                                           {"attn_kv_b.weight", ALL, MATRIX, {32, 224}, QUANT_Q8_0},
                                           {"ffn_gate_up_exps.weight", 2, MATRIX, {64, 64, 4}}};

/* ---- all -------------------------------------------------------------------------------------------------------------- */

#define COUNTED(x) x, sizeof x / sizeof x[0]

static const family families[] = {
    {"deepseek2", "deepseek2", 2, COUNTED(deepseek2_numbers), COUNTED(deepseek2_parts)},
    {"deepseek2-old", "deepseek2", 2, COUNTED(deepseek2_old_numbers), COUNTED(deepseek2_old_parts)},
};

static void add_part(gguf_builder *b, const part *p, uint32_t layer) {
    static const float centre[] = {[MATRIX] = 0.0f, [NORM] = 1.0f, [BIAS] = 0.0f, [NEGATIVE] = -1.0f};
    char name[96];
    snprintf(name, sizeof name, "blk.%u.%s", layer, p->name);
    const uint32_t n_dims = p->dims[2] ? 3 : p->dims[1] ? 2 : 1;
    gguf_builder_tensor *t = gguf_builder_add_tensor(b, name, QUANT_F32, n_dims, p->dims);
    gguf_builder_fill(t, (uint32_t)b->n_tensors, centre[p->kind], p->kind == MATRIX ? 1.7f / sqrtf((float)p->dims[0]) : 0.3f);
    if (p->type != QUANT_F32) gguf_builder_quantise(b, name, p->type);
}

static void add_vector(gguf_builder *b, const char *name, uint64_t n_cols, uint64_t n_rows) {
    gguf_builder_tensor *t = gguf_builder_add_tensor(b, name, QUANT_F32, n_rows > 1 ? 2 : 1, (uint64_t[]){n_cols, n_rows});
    gguf_builder_fill(t, (uint32_t)b->n_tensors, n_rows > 1 ? 0.0f : 1.0f, 0.2f);
}

bool gguf_builder_family(gguf_builder *b, const char *name) {
    const family *f = NULL;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strcmp(families[i].name, name) == 0) f = &families[i];
    if (f == NULL) return false;
    char key[96];
#define KEY(suffix) (snprintf(key, sizeof key, "%s.%s", f->architecture, suffix), key)
    gguf_builder_string(b, "general.architecture", f->architecture);
    gguf_builder_u32(b, KEY("block_count"), f->n_layer);
    gguf_builder_u32(b, KEY("context_length"), 1024);
    gguf_builder_u32(b, KEY("embedding_length"), 64);
    gguf_builder_f32(b, KEY("attention.layer_norm_rms_epsilon"), 1e-5f);
    gguf_builder_f32(b, KEY("attention.layer_norm_epsilon"), 1e-5f);
    for (size_t i = 0; i < f->n_numbers; i++) gguf_builder_u32(b, KEY(f->numbers[i].key), f->numbers[i].value);
    if (f->head_counts_kv) {
        int32_t counts[16];
        for (uint32_t i = 0; i < f->n_layer; i++) counts[i] = f->head_counts_kv[i] - '0';
        gguf_builder_array(b, KEY("attention.head_count_kv"), GGUF_INT32, counts, f->n_layer, sizeof counts[0]);
    }
    gguf_builder_tokenizer(b);
    add_vector(b, "token_embd.weight", 64, GGUF_BUILDER_LLAMA_VOCAB);
    add_vector(b, "output_norm.weight", 64, 1);
    for (uint32_t layer = 0; layer < f->n_layer; layer++)
        for (size_t i = 0; i < f->n_parts; i++)
            if (f->parts[i].layers >> layer & 1) add_part(b, &f->parts[i], layer);
    return true;
#undef KEY
}
