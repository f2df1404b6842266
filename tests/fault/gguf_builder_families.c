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
    const char *feeds;          /* "011": layers with a feed-forward of width 96, or NULL */
    bool encoder;
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

/* ---- recurrent layers ------------------------------------------------------------------------------------------------- */

#define MAMBA_NUMBERS {"ssm.conv_kernel", 4}, {"ssm.inner_size", 96}, {"ssm.state_size", 8}, {"ssm.time_step_rank", 5}
#define MAMBA_PARTS(layers)                                                                                                      \
    {"ssm_in.weight", layers, MATRIX, {64, 192}, QUANT_Q8_0}, {"ssm_conv1d.weight", layers, MATRIX, {4, 96}},                   \
        {"ssm_conv1d.bias", layers, BIAS, {96}}, {"ssm_x.weight", layers, MATRIX, {96, 21}, QUANT_Q4_0},                         \
        {"ssm_dt.weight", layers, MATRIX, {5, 96}}, {"ssm_dt.bias", layers, BIAS, {96}}, {"ssm_a", layers, NEGATIVE, {8, 96}},   \
        {"ssm_d", layers, NORM, {96}}, {"ssm_out.weight", layers, MATRIX, {96, 64}, QUANT_Q5_0}

/* Ten heads of eight channels in two groups: blocks of 16 channels end in the middle of them. */
#define MAMBA2_NUMBERS                                                                                                           \
    {"ssm.conv_kernel", 3}, {"ssm.inner_size", 80}, {"ssm.state_size", 6}, {"ssm.time_step_rank", 10}, {"ssm.group_count", 2}
#define MAMBA2_PARTS(layers)                                                                                                     \
    {"ssm_in.weight", layers, MATRIX, {64, 194}, QUANT_Q4_0}, {"ssm_conv1d.weight", layers, MATRIX, {3, 104}},                  \
        {"ssm_conv1d.bias", layers, BIAS, {104}}, {"ssm_dt.bias", layers, BIAS, {10}}, {"ssm_a", layers, NEGATIVE, {1, 10}},     \
        {"ssm_d", layers, NORM, {1, 10}}, {"ssm_out.weight", layers, MATRIX, {80, 64}, QUANT_F16}

#define ATTENTION_PARTS(layers)                                                                                                  \
    {"attn_q.weight", layers, MATRIX, {64, 64}}, {"attn_k.weight", layers, MATRIX, {64, 32}, QUANT_Q8_0},                       \
        {"attn_v.weight", layers, MATRIX, {64, 32}}, {"attn_output.weight", layers, MATRIX, {64, 64}, QUANT_Q4_0}
#define DENSE_PARTS(layers)                                                                                                      \
    {"ffn_gate.weight", layers, MATRIX, {64, 96}}, {"ffn_up.weight", layers, MATRIX, {64, 96}, QUANT_Q5_1},                     \
        {"ffn_down.weight", layers, MATRIX, {96, 64}}
#define ROUTED_PARTS(layers)                                                                                                     \
    {"ffn_gate_inp.weight", layers, MATRIX, {64, 4}}, {"ffn_gate_exps.weight", layers, MATRIX, {64, 96, 4}},                    \
        {"ffn_up_exps.weight", layers, MATRIX, {64, 96, 4}}, {"ffn_down_exps.weight", layers, MATRIX, {96, 64, 4}}
#define FFN_NORM {"ffn_norm.weight", ALL, NORM, {64}}
#define ATTN_NORM {"attn_norm.weight", ALL, NORM, {64}}
#define HEADS {"attention.head_count", 4}
#define WIDTH {"feed_forward_length", 96}
#define EXPERTS {"expert_count", 4}, {"expert_used_count", 2}

static const number mamba_numbers[] = {MAMBA_NUMBERS, {"feed_forward_length", 0}, {"attention.head_count", 0}};
static const part mamba_parts[] = {MAMBA_PARTS(ALL), ATTN_NORM};

static const number mamba2_numbers[] = {MAMBA2_NUMBERS, {"feed_forward_length", 0}};
static const part mamba2_parts[] = {MAMBA2_PARTS(ALL), ATTN_NORM, {"ssm_norm.weight", ALL, NORM, {40, 2}}};

static const number jamba_numbers[] = {MAMBA_NUMBERS, HEADS, WIDTH, EXPERTS};
static const part jamba_parts[] = {MAMBA_PARTS(11), ATTENTION_PARTS(4), DENSE_PARTS(5), ROUTED_PARTS(10), ATTN_NORM, FFN_NORM,
                                   {"ssm_dt_norm.weight", 11, NORM, {5}},
                                   {"ssm_b_norm.weight", 11, NORM, {8}},
                                   {"ssm_c_norm.weight", 11, NORM, {8}}};

static const number granitehybrid_numbers[] = {MAMBA2_NUMBERS, HEADS, WIDTH, EXPERTS, {"expert_shared_feed_forward_length", 32}};
static const part granitehybrid_parts[] = {MAMBA2_PARTS(1), ATTENTION_PARTS(2), ROUTED_PARTS(ALL), ATTN_NORM, FFN_NORM,
                                           {"ssm_norm.weight", 1, NORM, {40, 2}},
                                           {"ffn_gate_shexp.weight", ALL, MATRIX, {64, 32}},
                                           {"ffn_up_shexp.weight", ALL, MATRIX, {64, 32}},
                                           {"ffn_down_shexp.weight", ALL, MATRIX, {32, 64}}};

static const number falcon_h1_numbers[] = {MAMBA2_NUMBERS, HEADS, WIDTH, {"attention.head_count_kv", 2}};
static const part falcon_h1_parts[] = {MAMBA2_PARTS(ALL), ATTENTION_PARTS(ALL), DENSE_PARTS(ALL), ATTN_NORM,
                                       {"ffn_norm", ALL, NORM, {64}}};

static const number nemotron_h_numbers[] = {MAMBA2_NUMBERS, HEADS};
static const part nemotron_h_parts[] = {MAMBA2_PARTS(1), ATTENTION_PARTS(4), ATTN_NORM,
                                        {"ssm_norm.weight", 1, NORM, {40, 2}},
                                        {"ffn_up.weight", 2, MATRIX, {64, 96}, QUANT_Q8_0},
                                        {"ffn_down.weight", 2, MATRIX, {96, 64}}};

static const number lfm2_numbers[] = {HEADS, WIDTH, {"shortconv.l_cache", 3}};
static const part lfm2_parts[] = {ATTENTION_PARTS(2), DENSE_PARTS(ALL), ATTN_NORM, FFN_NORM,
                                  {"attn_q_norm.weight", 2, NORM, {16}},
                                  {"attn_k_norm.weight", 2, NORM, {16}},
                                  {"shortconv.in_proj.weight", 5, MATRIX, {64, 192}, QUANT_Q8_0},
                                  {"shortconv.conv.weight", 5, MATRIX, {3, 64}},
                                  {"shortconv.out_proj.weight", 5, MATRIX, {64, 64}, QUANT_Q4_1}};

/* ---- encoders --------------------------------------------------------------------------------------------------------- */

#define SUM_NORMS                                                                                                                \
    {"attn_output_norm.weight", ALL, NORM, {64}}, {"attn_output_norm.bias", ALL, BIAS, {64}},                                   \
        {"layer_output_norm.weight", ALL, NORM, {64}}, {"layer_output_norm.bias", ALL, BIAS, {64}}

static const number bert_numbers[] = {HEADS, WIDTH, {"pooling_type", 4}};
static const part bert_parts[] = {SUM_NORMS,
                                  {"attn_q.weight", ALL, MATRIX, {64, 64}},
                                  {"attn_q.bias", ALL, BIAS, {64}},
                                  {"attn_k.weight", ALL, MATRIX, {64, 64}, QUANT_Q8_0},
                                  {"attn_k.bias", ALL, BIAS, {64}},
                                  {"attn_v.weight", ALL, MATRIX, {64, 64}},
                                  {"attn_v.bias", ALL, BIAS, {64}},
                                  {"attn_output.weight", ALL, MATRIX, {64, 64}},
                                  {"attn_output.bias", ALL, BIAS, {64}},
                                  {"ffn_up.weight", ALL, MATRIX, {64, 96}, QUANT_Q4_0},
                                  {"ffn_up.bias", ALL, BIAS, {96}},
                                  {"ffn_down.weight", ALL, MATRIX, {96, 64}},
                                  {"ffn_down.bias", ALL, BIAS, {64}}};

static const number nomic_bert_moe_numbers[] = {HEADS, WIDTH, EXPERTS, {"pooling_type", 1}};
static const part nomic_bert_moe_parts[] = {SUM_NORMS,
                                            {"attn_qkv.weight", ALL, MATRIX, {64, 192}},
                                            {"attn_output.weight", ALL, MATRIX, {64, 64}},
                                            {"ffn_up.weight", 1, MATRIX, {64, 96}},
                                            {"ffn_down.weight", 1, MATRIX, {96, 64}},
                                            {"ffn_gate_inp.weight", 2, MATRIX, {64, 4}},
                                            {"ffn_up_exps.weight", 2, MATRIX, {64, 96, 4}},
                                            {"ffn_down_exps.weight", 2, MATRIX, {96, 64, 4}}};

static const number jina_bert_v2_numbers[] = {HEADS, WIDTH, {"pooling_type", 3}};
static const part jina_bert_v2_parts[] = {SUM_NORMS,
                                          {"attn_q.weight", ALL, MATRIX, {64, 64}},
                                          {"attn_k.weight", ALL, MATRIX, {64, 64}},
                                          {"attn_v.weight", ALL, MATRIX, {64, 64}},
                                          {"attn_q_norm.weight", 1, NORM, {64}},
                                          {"attn_q_norm.bias", 1, BIAS, {64}},
                                          {"attn_k_norm.weight", 1, NORM, {64}},
                                          {"attn_k_norm.bias", 1, BIAS, {64}},
                                          {"attn_output.weight", ALL, MATRIX, {64, 64}},
                                          {"attn_norm_2.weight", 1, NORM, {64}},
                                          {"attn_norm_2.bias", 1, BIAS, {64}},
                                          {"ffn_up.weight", ALL, MATRIX, {64, 192}},
                                          {"ffn_up.bias", ALL, BIAS, {192}},
                                          {"ffn_down.weight", ALL, MATRIX, {96, 64}}};

/* ---- all -------------------------------------------------------------------------------------------------------------- */

#define COUNTED(x) x, sizeof x / sizeof x[0]

static const family families[] = {
    {"deepseek2", "deepseek2", 2, COUNTED(deepseek2_numbers), COUNTED(deepseek2_parts)},
    {"deepseek2-old", "deepseek2", 2, COUNTED(deepseek2_old_numbers), COUNTED(deepseek2_old_parts)},
    {"mamba", "mamba", 2, COUNTED(mamba_numbers), COUNTED(mamba_parts)},
    {"mamba2", "mamba2", 2, COUNTED(mamba2_numbers), COUNTED(mamba2_parts)},
    {"jamba", "jamba", 4, COUNTED(jamba_numbers), COUNTED(jamba_parts), "0020"},
    {"granitehybrid", "granitehybrid", 2, COUNTED(granitehybrid_numbers), COUNTED(granitehybrid_parts), "02"},
    {"falcon-h1", "falcon-h1", 2, COUNTED(falcon_h1_numbers), COUNTED(falcon_h1_parts)},
    {"nemotron_h", "nemotron_h", 3, COUNTED(nemotron_h_numbers), COUNTED(nemotron_h_parts), "002", "010"},
    {"lfm2", "lfm2", 3, COUNTED(lfm2_numbers), COUNTED(lfm2_parts), "020"},
    {"bert", "bert", 2, COUNTED(bert_numbers), COUNTED(bert_parts), NULL, NULL, true},
    {"nomic-bert-moe", "nomic-bert-moe", 2, COUNTED(nomic_bert_moe_numbers), COUNTED(nomic_bert_moe_parts), NULL, NULL, true},
    {"jina-bert-v2", "jina-bert-v2", 2, COUNTED(jina_bert_v2_numbers), COUNTED(jina_bert_v2_parts), NULL, NULL, true},
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
    if (strcmp(name, "llama") == 0) gguf_builder_llama(b, NULL);
    if (f == NULL) return strcmp(name, "llama") == 0;
    char key[96];
#define KEY(suffix) (snprintf(key, sizeof key, "%s.%s", f->architecture, suffix), key)
    gguf_builder_string(b, "general.architecture", f->architecture);
    gguf_builder_u32(b, KEY("block_count"), f->n_layer);
    gguf_builder_u32(b, KEY("context_length"), 1024);
    gguf_builder_u32(b, KEY("embedding_length"), 64);
    gguf_builder_f32(b, KEY("attention.layer_norm_rms_epsilon"), 1e-5f);
    gguf_builder_f32(b, KEY("attention.layer_norm_epsilon"), 1e-5f);
    for (size_t i = 0; i < f->n_numbers; i++) gguf_builder_u32(b, KEY(f->numbers[i].key), f->numbers[i].value);
    int32_t counts[16];
    for (uint32_t i = 0; f->head_counts_kv && i < f->n_layer; i++) counts[i] = f->head_counts_kv[i] - '0';
    if (f->head_counts_kv) gguf_builder_array(b, KEY("attention.head_count_kv"), GGUF_INT32, counts, f->n_layer, sizeof counts[0]);
    for (uint32_t i = 0; f->feeds && i < f->n_layer; i++) counts[i] = f->feeds[i] == '0' ? 0 : 96;
    if (f->feeds) gguf_builder_array(b, KEY("feed_forward_length"), GGUF_INT32, counts, f->n_layer, sizeof counts[0]);
    gguf_builder_tokenizer(b);
    add_vector(b, "token_embd.weight", 64, GGUF_BUILDER_LLAMA_VOCAB);
    if (f->encoder) {
        add_vector(b, "token_types.weight", 64, 2);
        add_vector(b, "token_embd_norm.weight", 64, 1);
        add_vector(b, "token_embd_norm.bias", 64, 1);
        add_vector(b, "position_embd.weight", 64, 1024);
        add_vector(b, "cls.weight", 64, 64);
        add_vector(b, "cls.output.weight", 64, 3);
        add_vector(b, "cls.output.bias", 3, 1);
    } else {
        add_vector(b, "output_norm.weight", 64, 1);
    }
    for (uint32_t layer = 0; layer < f->n_layer; layer++)
        for (size_t i = 0; i < f->n_parts; i++)
            if (f->parts[i].layers >> layer & 1) add_part(b, &f->parts[i], layer);
    return true;
#undef KEY
}
