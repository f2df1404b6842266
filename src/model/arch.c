/* The architecture table and the reading of configurations from metadata. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "model/model.h"

static int configure_gemma2(model_config *c, const gguf *g, weir_error *err);
static int configure_minicpm(model_config *c, const gguf *g, weir_error *err);
static int configure_exaone4(model_config *c, const gguf *g, weir_error *err);
static int configure_gptneox(model_config *c, const gguf *g, weir_error *err);
static int configure_deepseek2(model_config *c, const gguf *g, weir_error *err);
static int configure_granite(model_config *c, const gguf *g, weir_error *err);
static int configure_lfm2(model_config *c, const gguf *g, weir_error *err);
static int configure_stablelm(model_config *c, const gguf *g, weir_error *err);

static const model_arch table[] = {
    {.name = "llama", .has_experts = true, .expert_weights_norm = true},
    {.name = "mistral3"},
    {.name = "internlm2"},
    {.name = "ernie4_5"},
    {.name = "ernie4_5-moe", .has_experts = true, .expert_weights_norm = true},
    {.name = "deepseek", .has_experts = true},
    {.name = "deepseek2", .latent = true, .has_experts = true, .configure = configure_deepseek2},
    {.name = "arcee", .plain_ffn = true, .activation = KERN_RELU_SQUARED},
    {.name = "smollm3", .no_rope_pattern = 4},
    {.name = "granite", .divides_logits = true, .configure = configure_granite},
    {.name = "granitemoe", .divides_logits = true, .has_experts = true, .expert_weights_norm = true, .configure = configure_granite},
    {.name = "granitehybrid",
     .recurrent = RECURRENT_MAMBA2,
     .divides_logits = true,
     .has_experts = true,
     .expert_weights_norm = true,
     .configure = configure_granite},
    {.name = "mamba", .rope = ROPE_NONE, .positions = POSITIONS_NONE, .recurrent = RECURRENT_MAMBA},
    {.name = "mamba2", .rope = ROPE_NONE, .positions = POSITIONS_NONE, .recurrent = RECURRENT_MAMBA2},
    {.name = "jamba",
     .rope = ROPE_NONE,
     .positions = POSITIONS_NONE,
     .recurrent = RECURRENT_MAMBA,
     .has_experts = true,
     .experts_where_routed = true},
    {.name = "falcon-h1", .rope = ROPE_HALVES, .recurrent = RECURRENT_MAMBA2, .recurrent_beside_attention = true},
    {.name = "nemotron_h",
     .rope = ROPE_NONE,
     .positions = POSITIONS_NONE,
     .recurrent = RECURRENT_MAMBA2,
     .single_blocks = true,
     .plain_ffn = true,
     .activation = KERN_RELU_SQUARED},
    {.name = "nemotron_h_moe",
     .rope = ROPE_NONE,
     .positions = POSITIONS_NONE,
     .recurrent = RECURRENT_MAMBA2,
     .single_blocks = true,
     .plain_ffn = true,
     .activation = KERN_RELU_SQUARED,
     .has_experts = true,
     .expert_gating = GATING_SIGMOID},
    {.name = "lfm2",
     .rope = ROPE_HALVES,
     .qk_norm = QK_NORM_HEAD,
     .recurrent = RECURRENT_SHORT_CONV,
     .output_norm = "token_embd_norm",
     .configure = configure_lfm2},
    {.name = "lfm2moe",
     .rope = ROPE_HALVES,
     .qk_norm = QK_NORM_HEAD,
     .recurrent = RECURRENT_SHORT_CONV,
     .output_norm = "token_embd_norm",
     .has_experts = true,
     .expert_gating = GATING_SIGMOID,
     .expert_weights_norm = true,
     .configure = configure_lfm2},
    {.name = "minicpm", .divides_logits = true, .configure = configure_minicpm},
    {.name = "olmo", .norm = NORM_LAYER, .unweighted_norms = true},
    {.name = "command-r", .norm = NORM_LAYER, .parallel = true},
    {.name = "cohere2", .norm = NORM_LAYER, .parallel = true, .window_pattern = 4, .rope_in_windows_only = true},
    {.name = "glm4", .post_norms = true},
    {.name = "qwen2", .rope = ROPE_HALVES},
    {.name = "qwen3", .rope = ROPE_HALVES, .qk_norm = QK_NORM_HEAD},
    {.name = "qwen2moe", .rope = ROPE_HALVES, .has_experts = true},
    {.name = "qwen3moe", .rope = ROPE_HALVES, .qk_norm = QK_NORM_HEAD, .has_experts = true, .expert_weights_norm = true},
    {.name = "olmoe", .rope = ROPE_HALVES, .qk_norm = QK_NORM_ROW, .has_experts = true},
    {.name = "glm4moe",
     .rope = ROPE_HALVES,
     .ffn_norm_after_attention = true,
     .optional_qk_norm = true,
     .qk_norm = QK_NORM_HEAD,
     .has_experts = true,
     .expert_gating = GATING_SIGMOID,
     .expert_weights_norm = true},
    {.name = "gpt-oss",
     .rope = ROPE_HALVES,
     .ffn_norm_after_attention = true,
     .window_pattern = 2,
     .activation = KERN_SWIGLU_CLAMPED,
     .has_experts = true,
     .expert_gating = GATING_SOFTMAX_CHOSEN},
    {.name = "phi3", .rope = ROPE_HALVES},
    {.name = "seed_oss", .rope = ROPE_HALVES, .ffn_norm_after_attention = true},
    {.name = "olmo2",
     .rope = ROPE_HALVES,
     .qk_norm = QK_NORM_ROW,
     .no_pre_norms = true,
     .post_norms = true,
     .window_pattern = 4,
     .window_rope_unscaled = true},
    {.name = "exaone4",
     .rope = ROPE_HALVES,
     .qk_norm = QK_NORM_HEAD,
     .no_pre_norms = true,
     .post_norms = true,
     .configure = configure_exaone4},
    {.name = "gemma", .rope = ROPE_HALVES, .embedding_sqrt = true, .activation = KERN_GELU},
    {.name = "gemma2",
     .rope = ROPE_HALVES,
     .post_norms = true,
     .embedding_sqrt = true,
     .activation = KERN_GELU,
     .window = 4096,
     .window_pattern = 2,
     .configure = configure_gemma2},
    {.name = "gemma3",
     .rope = ROPE_HALVES,
     .qk_norm = QK_NORM_HEAD,
     .post_norms = true,
     .embedding_sqrt = true,
     .activation = KERN_GELU,
     .window_pattern = 6,
     .window_rope_base = 10000.0f,
     .window_rope_unscaled = true,
     .configure = configure_gemma2},
    {.name = "phi2", .norm = NORM_LAYER, .rope = ROPE_HALVES, .parallel = true, .plain_ffn = true, .activation = KERN_GELU},
    {.name = "stablelm", .norm = NORM_LAYER, .rope = ROPE_HALVES, .configure = configure_stablelm},
    {.name = "starcoder2", .norm = NORM_LAYER, .rope = ROPE_HALVES, .plain_ffn = true, .activation = KERN_GELU},
    {.name = "nemotron", .norm = NORM_LAYER, .rope = ROPE_HALVES, .plain_ffn = true, .activation = KERN_RELU_SQUARED},
    {.name = "gptneox",
     .norm = NORM_LAYER,
     .rope = ROPE_HALVES,
     .plain_ffn = true,
     .activation = KERN_GELU,
     .configure = configure_gptneox},
    {.name = "falcon",
     .norm = NORM_LAYER,
     .rope = ROPE_HALVES,
     .parallel = true,
     .second_attn_norm = true,
     .plain_ffn = true,
     .activation = KERN_GELU},
    {.name = "gpt2", .norm = NORM_LAYER, .rope = ROPE_NONE, .positions = POSITIONS_LEARNED, .plain_ffn = true, .activation = KERN_GELU},
    {.name = "bloom",
     .norm = NORM_LAYER,
     .rope = ROPE_NONE,
     .positions = POSITIONS_ALIBI,
     .embedding_norm = true,
     .alibi_max_bias = 8.0f,
     .plain_ffn = true,
     .activation = KERN_GELU},
    {.name = "bert",
     .norm = NORM_LAYER,
     .rope = ROPE_NONE,
     .positions = POSITIONS_LEARNED,
     .encoder = true,
     .no_pre_norms = true,
     .sum_norms = true,
     .embedding_norm = true,
     .plain_ffn = true,
     .activation = KERN_GELU},
    {.name = "nomic-bert",
     .norm = NORM_LAYER,
     .rope = ROPE_HALVES,
     .encoder = true,
     .no_pre_norms = true,
     .sum_norms = true,
     .embedding_norm = true},
    {.name = "nomic-bert-moe",
     .norm = NORM_LAYER,
     .rope = ROPE_HALVES,
     .encoder = true,
     .no_pre_norms = true,
     .sum_norms = true,
     .embedding_norm = true,
     .plain_ffn = true,
     .activation = KERN_GELU,
     .has_experts = true,
     .experts_where_routed = true},
    {.name = "jina-bert-v2",
     .norm = NORM_LAYER,
     .rope = ROPE_NONE,
     .positions = POSITIONS_ALIBI,
     .alibi_max_bias = 8.0f,
     .qk_norm = QK_NORM_ROW,
     .optional_qk_norm = true,
     .encoder = true,
     .no_pre_norms = true,
     .sum_norms = true,
     .embedding_norm = true,
     .optional_gate = true,
     .activation = KERN_GELU},
    {.name = "jina-bert-v3",
     .norm = NORM_LAYER,
     .rope = ROPE_HALVES,
     .encoder = true,
     .no_pre_norms = true,
     .sum_norms = true,
     .embedding_norm = true,
     .plain_ffn = true,
     .activation = KERN_GELU},
    {.name = "mpt", .norm = NORM_LAYER, .rope = ROPE_NONE, .positions = POSITIONS_ALIBI, .plain_ffn = true, .activation = KERN_GELU},
};

const model_arch *model_arch_table(size_t *n_rows) {
    *n_rows = sizeof table / sizeof table[0];
    return table;
}

const model_arch *model_arch_named(const char *name, size_t n_bytes) {
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strlen(table[i].name) == n_bytes && memcmp(table[i].name, name, n_bytes) == 0) return &table[i];
    return NULL;
}

/* Shapes beyond these are no model that could run, and keep all later arithmetic far from overflow. */
enum { MAX_D_MODEL = 1 << 17, MAX_LAYERS = MODEL_MAX_LAYERS, MAX_HEADS = 1024, MAX_D_HEAD = 1024, MAX_D_FF = 1 << 20, MAX_EXPERTS = 1024 };

/* "ARCH.suffix" in a caller's buffer. */
static const char *key_of(char buffer[128], const model_arch *arch, const char *suffix) {
    snprintf(buffer, 128, "%s.%s", arch->name, suffix);
    return buffer;
}

/* An integer in [low, high]; `fallback` when absent, unless that is negative: then the key is required. */
static int read_int(const gguf *g, const model_arch *arch, const char *suffix, int64_t low, int64_t high, int64_t fallback,
                    int32_t *out, weir_error *err) {
    char key[128];
    uint32_t value;
    int found = gguf_get_u32(g, key_of(key, arch, suffix), &value, err);
    TRY(found);
    if (!found) {
        FAIL_IF(fallback < 0, err, WEIR_E_FORMAT, key, "the key is missing");
        *out = (int32_t)fallback;
        return 0;
    }
    FAIL_IF(value < low || value > high, err, WEIR_E_FORMAT, key, "%u is out of range; expected %lld to %lld", value, (long long)low,
            (long long)high);
    *out = (int32_t)value;
    return 0;
}

/* A number for each layer: one for all, or an array with one each. Stored at out, out + stride, ... `fallback` as in read_int. */
static int read_layer_ints(const model_config *c, const gguf *g, const model_arch *arch, const char *suffix, int64_t low, int64_t high,
                           int64_t fallback, int32_t *out, size_t stride, weir_error *err) {
    char key[128];
    const gguf_key_value *kv = gguf_find(g, key_of(key, arch, suffix));
    if (kv == NULL || kv->type != GGUF_ARRAY) {
        TRY(read_int(g, arch, suffix, low, high, fallback, out, err));
        for (int32_t i = 1; i < c->n_layer; i++) out[(size_t)i * stride] = out[0];
        return 0;
    }
    FAIL_IF(kv->n_items < (uint64_t)c->n_layer, err, WEIR_E_FORMAT, key, "%llu numbers for %d layers", (unsigned long long)kv->n_items,
            c->n_layer);
    for (int32_t i = 0; i < c->n_layer; i++) {
        int64_t value;
        FAIL_IF(gguf_item_i64(kv, (uint64_t)i, &value) != 1, err, WEIR_E_FORMAT, key, "entry %d is no integer", i);
        FAIL_IF(value < low || value > high, err, WEIR_E_FORMAT, key, "%lld of layer %d is out of range; expected %lld to %lld",
                (long long)value, i, (long long)low, (long long)high);
        out[(size_t)i * stride] = (int32_t)value;
    }
    return 0;
}

static int read_float(const gguf *g, const model_arch *arch, const char *suffix, float fallback, float *out, weir_error *err) {
    char key[128];
    *out = fallback;
    TRY(gguf_get_f32(g, key_of(key, arch, suffix), out, err));
    FAIL_IF(!isfinite(*out), err, WEIR_E_FORMAT, key, "the value is not finite");
    return 0;
}

static int read_rope_scaling(model_rope *r, const model_arch *arch, const gguf *g, weir_error *err) {
    static const struct {
        const char *name;
        model_rope_scaling scaling;
    } known[] = {{"none", ROPE_SCALING_NONE}, {"linear", ROPE_SCALING_LINEAR}, {"yarn", ROPE_SCALING_YARN}, {"longrope", ROPE_SCALING_LONG}};
    char key[128];
    gguf_string name = {0};
    int found = gguf_get_string(g, key_of(key, arch, "rope.scaling.type"), &name, err);
    if (found <= 0) return found;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strlen(known[i].name) != name.n_bytes || memcmp(known[i].name, name.text, name.n_bytes) != 0) continue;
        r->scaling = known[i].scaling;
        if (r->scaling == ROPE_SCALING_NONE) r->frequency_scale = 1.0f;
        return 0;
    }
    FAIL(err, WEIR_E_UNSUPPORTED, key, "RoPE scaling '%.*s' is not supported; known: none, linear, yarn, longrope",
         (int)(name.n_bytes < 40 ? name.n_bytes : 40), name.text);
}

static int read_rope(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    char key[128];
    model_rope *r = &c->rope[0];
    float factor, linear;
    *r = (model_rope){.frequency_scale = 1.0f};
    TRY(read_float(g, arch, "rope.freq_base", 10000.0f, &r->base, err));
    FAIL_IF(!(r->base > 1.0f), err, WEIR_E_FORMAT, key_of(key, arch, "rope.freq_base"), "%g is not above 1", (double)r->base);
    TRY(read_float(g, arch, "rope.scale_linear", 0.0f, &linear, err));
    TRY(read_float(g, arch, "rope.scaling.factor", linear, &factor, err));
    TRY(read_float(g, arch, "rope.scaling.attn_factor", 1.0f, &r->attention_factor, err));
    TRY(read_float(g, arch, "rope.scaling.yarn_beta_fast", 32.0f, &r->beta_fast, err));
    TRY(read_float(g, arch, "rope.scaling.yarn_beta_slow", 1.0f, &r->beta_slow, err));
    TRY(read_float(g, arch, "rope.scaling.yarn_log_multiplier", 0.0f, &r->log_multiplier, err));
    TRY(read_int(g, arch, "rope.scaling.original_context_length", 1, INT32_MAX, c->n_ctx_train, &r->n_ctx_original, err));
    if (factor > 0.0f) {
        r->frequency_scale = 1.0f / factor;
        r->scaling = ROPE_SCALING_LINEAR;
    }
    TRY(read_rope_scaling(r, arch, g, err));
    c->rope[1] = *r;
    if (c->window_pattern == 0) return 0;
    if (arch->window_rope_unscaled)
        c->rope[1] = (model_rope){.frequency_scale = 1.0f, .attention_factor = 1.0f, .n_ctx_original = r->n_ctx_original};
    TRY(read_float(g, arch, "rope.freq_base_swa", arch->window_rope_base > 0.0f ? arch->window_rope_base : r->base, &c->rope[1].base, err));
    FAIL_IF(!(c->rope[1].base > 1.0f), err, WEIR_E_FORMAT, key_of(key, arch, "rope.freq_base_swa"), "%g is not above 1",
            (double)c->rope[1].base);
    return 0;
}

/* Sliding windows: their size and which layers have them. */
static int read_windows(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    char key[128];
    c->window_pattern = arch->window_pattern;
    const gguf_key_value *pattern = gguf_find(g, key_of(key, arch, "attention.sliding_window_pattern"));
    /* A window alone says nothing: files of families without windows name one that their layers do not have. */
    if (c->window_pattern == 0 && pattern == NULL) return 0;
    TRY(read_int(g, arch, "attention.sliding_window", 0, INT32_MAX, arch->window, &c->window, err));
    if (pattern && pattern->type != GGUF_ARRAY)
        TRY(read_int(g, arch, "attention.sliding_window_pattern", 0, MAX_LAYERS, arch->window_pattern, &c->window_pattern, err));
    if (c->window == 0) c->window_pattern = 0;
    return 0;
}

/* Routed experts: how many, how wide, where, and how they are chosen. */
static int read_experts(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    int32_t gating, n_shared;
    bool norm = arch->expert_weights_norm;
    char key[128];
    if (!arch->has_experts) return 0;
    TRY(read_int(g, arch, "expert_count", 0, MAX_EXPERTS, 0, &c->n_expert, err));
    if (c->n_expert == 0) return 0;
    TRY(read_int(g, arch, "expert_used_count", 1, c->n_expert, -1, &c->n_expert_used, err));
    TRY(read_int(g, arch, "expert_feed_forward_length", 1, MAX_D_FF, c->d_ff, &c->d_ff_expert, err));
    TRY(read_int(g, arch, "expert_shared_count", 0, 1024, 0, &n_shared, err));
    FAIL_IF((int64_t)n_shared * c->d_ff_expert > MAX_D_FF, err, WEIR_E_FORMAT, key_of(key, arch, "expert_shared_count"), "%d is too many", n_shared);
    TRY(read_int(g, arch, "expert_shared_feed_forward_length", 0, MAX_D_FF, n_shared * c->d_ff_expert, &c->d_ff_shared, err));
    TRY(read_int(g, arch, "leading_dense_block_count", 0, c->n_layer, 0, &c->n_layer_dense, err));
    TRY(read_int(g, arch, "interleave_moe_layer_step", 1, MAX_LAYERS, 1, &c->expert_step, err));
    TRY(read_int(g, arch, "expert_group_count", 0, c->n_expert, 0, &c->n_expert_groups, err));
    TRY(read_int(g, arch, "expert_group_used_count", 0, c->n_expert, c->n_expert_groups, &c->n_expert_groups_used, err));
    FAIL_IF(c->n_expert_groups > 1 && (c->n_expert % c->n_expert_groups != 0 || c->n_expert_groups_used < 1 ||
                                       c->n_expert / c->n_expert_groups * c->n_expert_groups_used < c->n_expert_used),
            err, WEIR_E_FORMAT, key_of(key, arch, "expert_group_count"), "%d experts in %d groups, %d used, do not give %d experts",
            c->n_expert, c->n_expert_groups, c->n_expert_groups_used, c->n_expert_used);
    TRY(read_int(g, arch, "expert_gating_func", 0, 3, 0, &gating, err));
    c->expert_gating = gating ? (model_gating)gating : arch->expert_gating ? arch->expert_gating : GATING_SOFTMAX;
    TRY(gguf_get_bool(g, key_of(key, arch, "expert_weights_norm"), &norm, err));
    c->expert_weights_norm = norm;
    TRY(read_float(g, arch, "expert_weights_scale", 1.0f, &c->expert_weights_scale, err));
    if (c->expert_weights_scale == 0.0f) c->expert_weights_scale = 1.0f;
    return 0;
}

/* Multipliers, caps and what the architecture adds. */
static int read_scales(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    float attention_scale, logit_scale;
    c->parallel = arch->parallel;
    c->no_rope_pattern = arch->no_rope_pattern;
    TRY(read_float(g, arch, "attention.scale", 0.0f, &attention_scale, err));
    c->attention_scale = attention_scale != 0.0f || c->d_head == 0 ? attention_scale : 1.0f / sqrtf((float)c->d_head);
    TRY(read_float(g, arch, "embedding_scale", 1.0f, &c->embedding_scale, err));
    if (arch->embedding_sqrt) c->embedding_scale = sqrtf((float)c->d_model);
    TRY(read_float(g, arch, "residual_scale", 1.0f, &c->residual_scale, err));
    TRY(read_float(g, arch, "logit_scale", 0.0f, &logit_scale, err));
    if (logit_scale != 0.0f) c->logit_scale = arch->divides_logits ? 1.0f / logit_scale : logit_scale;
    TRY(read_float(g, arch, "attn_logit_softcapping", 0.0f, &c->attention_softcap, err));
    TRY(read_float(g, arch, "final_logit_softcapping", 0.0f, &c->output_softcap, err));
    TRY(read_float(g, arch, "attention.clamp_kqv", 0.0f, &c->clamp_qkv, err));
    TRY(read_float(g, arch, "attention.temperature_scale", 0.0f, &c->temperature_scale, err));
    TRY(read_int(g, arch, "attention.temperature_length", 0, INT32_MAX, 0, &c->temperature_length, err));
    if (c->temperature_length == 0) c->temperature_length = c->rope[0].n_ctx_original;
    char key[128];
    int32_t pooling;
    c->causal = !arch->encoder;
    TRY(gguf_get_bool(g, key_of(key, arch, "attention.causal"), &c->causal, err));
    /* Texts that are seen whole are kept for one step only. */
    c->kv_f32 = c->kv_f32 || !c->causal;
    FAIL_IF(!c->causal && (arch->recurrent || c->window_pattern), err, WEIR_E_UNSUPPORTED, key,
            "attention to what follows is not supported with recurrent layers or windows");
    TRY(read_int(g, arch, "pooling_type", POOLING_NONE, POOLING_RANK, POOLING_NONE, &pooling, err));
    c->pooling = (model_pooling)pooling;
    if (arch->positions == POSITIONS_ALIBI)
        TRY(read_float(g, arch, "attention.max_alibi_bias", arch->alibi_max_bias, &c->alibi_max_bias, err));
    return arch->configure ? arch->configure(c, g, err) : 0;
}

/* Models without RoPE are marked by a key that is otherwise about its scaling. */
static int configure_granite(model_config *c, const gguf *g, weir_error *err) {
    static const char *const keys[] = {"granite.rope.scaling.finetuned", "granitemoe.rope.scaling.finetuned",
                                       "granitehybrid.rope.scaling.finetuned"};
    bool has_rope = true;
    for (int i = 0; i < 3; i++) TRY(gguf_get_bool(g, keys[i], &has_rope, err));
    if (!has_rope) c->no_rope_pattern = 1;
    return 0;
}

/* A window, where there is one, is that of all layers with attention. */
static int configure_lfm2(model_config *c, const gguf *g, weir_error *err) {
    uint32_t window = 0;
    TRY(gguf_get_u32(g, "lfm2.attention.sliding_window", &window, err));
    FAIL_IF(window > INT32_MAX, err, WEIR_E_FORMAT, "lfm2.attention.sliding_window", "%u is out of range", window);
    c->window = (int32_t)window;
    c->window_pattern = window ? c->n_layer + 1 : 0;
    return 0;
}

/* The 27B models divide by the size of a head of d_model instead of by their own head size. */
static int configure_gemma2(model_config *c, const gguf *g, weir_error *err) {
    (void)g;
    (void)err;
    if ((c->n_layer == 46 && c->d_model == 4608) || (c->n_layer == 62 && c->d_model == 5376))
        c->attention_scale = 1.0f / sqrtf((float)(c->d_model / c->n_head));
    return 0;
}

/* The files store a tenth of YaRN's multiplier (mscale_all_dim), and it is the softmax that is scaled by it instead of cos and sin
 * (DeepSeek-V2's published code, followed by llama.cpp in what happens when the multiplier is absent). */
static int configure_deepseek2(model_config *c, const gguf *g, weir_error *err) {
    model_rope *r = &c->rope[0];
    uint32_t n_vocab = 0, gating = 0;
    const float octaves = 0.1f * logf(1.0f / r->frequency_scale), multiplier = r->log_multiplier / 0.1f;
    float magnitude = r->attention_factor * (1.0f + multiplier * octaves);
    if (r->scaling == ROPE_SCALING_YARN && multiplier != 0.0f) r->log_multiplier = 1.0f;
    else magnitude *= 1.0f + octaves;
    c->attention_scale = magnitude * magnitude / sqrtf((float)(c->d_nope + c->n_rot));
    /* GLM-4.7-Flash's older files do not say that they gate by sigmoid. */
    TRY(gguf_get_u32(g, "deepseek2.vocab_size", &n_vocab, err));
    TRY(gguf_get_u32(g, "deepseek2.expert_gating_func", &gating, err));
    if (gating == 0 && n_vocab == 154880 && (c->n_layer == 47 || c->n_layer == 48)) c->expert_gating = GATING_SIGMOID;
    return 0;
}

/* Older files lack the multipliers that every MiniCPM has. */
static int configure_minicpm(model_config *c, const gguf *g, weir_error *err) {
    float unused;
    int found = gguf_get_f32(g, "minicpm.embedding_scale", &unused, err);
    TRY(found);
    if (!found) c->embedding_scale = 12.0f;
    found = gguf_get_f32(g, "minicpm.residual_scale", &unused, err);
    TRY(found);
    if (!found) c->residual_scale = 1.4f / sqrtf((float)c->n_layer);
    found = gguf_get_f32(g, "minicpm.logit_scale", &unused, err);
    TRY(found);
    if (!found) c->logit_scale = (float)c->d_model / 256.0f;
    return 0;
}

/* The 32B model (64 layers) alternates windowed layers with RoPE and full ones without; the smaller ones have neither. */
static int configure_exaone4(model_config *c, const gguf *g, weir_error *err) {
    uint32_t window = 4096;
    if (c->n_layer != 64) return 0;
    TRY(gguf_get_u32(g, "exaone4.attention.sliding_window", &window, err));
    FAIL_IF(window < 1 || window > INT32_MAX, err, WEIR_E_FORMAT, "exaone4.attention.sliding_window", "%u is out of range", window);
    c->window = (int32_t)window;
    c->window_pattern = c->no_rope_pattern = 4;
    return 0;
}

static int configure_gptneox(model_config *c, const gguf *g, weir_error *err) {
    c->parallel = true;
    int found = gguf_get_bool(g, "gptneox.use_parallel_residual", &c->parallel, err);
    return found < 0 ? found : 0;
}

/* The 12B model has one norm for both blocks, which are then parallel. */
static int configure_stablelm(model_config *c, const gguf *g, weir_error *err) {
    (void)err;
    c->parallel = gguf_find_tensor(g, "blk.0.ffn_norm.weight") == NULL;
    return 0;
}

/* Heads and feed-forward widths of all layers, and the largest of each. Families with recurrent layers may lack either in some. */
static int read_shapes(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    char key[128];
    const size_t stride = sizeof c->shapes[0] / sizeof(int32_t);
    const int least = arch->recurrent ? 0 : 1;
    model_layer_shape *s = c->shapes;
    TRY(read_layer_ints(c, g, arch, "attention.head_count", least, MAX_HEADS, -least, &s->n_head, stride, err));
    for (int32_t i = 0; i < c->n_layer; i++) s[i].n_head_kv = s[i].n_head;
    if (gguf_find(g, key_of(key, arch, "attention.head_count_kv")))
        TRY(read_layer_ints(c, g, arch, "attention.head_count_kv", least, MAX_HEADS, -1, &s->n_head_kv, stride, err));
    TRY(read_layer_ints(c, g, arch, "feed_forward_length", least, MAX_D_FF, -least, &s->d_ff, stride, err));
    for (int32_t i = 0; i < c->n_layer; i++) {
        FAIL_IF(s[i].n_head_kv && (s[i].n_head == 0 || s[i].n_head % s[i].n_head_kv != 0), err, WEIR_E_FORMAT,
                key_of(key, arch, "attention.head_count_kv"), "%d heads cannot share %d KV heads evenly", s[i].n_head, s[i].n_head_kv);
        if (s[i].n_head > c->n_head) c->n_head = s[i].n_head;
        if (s[i].n_head_kv > c->n_head_kv) c->n_head_kv = s[i].n_head_kv;
        if (s[i].d_ff > c->d_ff) c->d_ff = s[i].d_ff;
        s[i].recurrent = arch->recurrent && (arch->recurrent_beside_attention || s[i].n_head_kv == 0) &&
                         !(arch->single_blocks && s[i].d_ff);
    }
    return 0;
}

/* Sizes of recurrent blocks. */
static int read_recurrence(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    char key[128];
    model_recurrence *r = &c->recurrence;
    r->n_group = 1;
    if (arch->recurrent == RECURRENT_NONE) return 0;
    if (arch->recurrent == RECURRENT_SHORT_CONV) {
        TRY(read_int(g, arch, "shortconv.l_cache", 2, MODEL_MAX_CONV, -1, &r->d_conv, err));
        r->d_inner = r->n_conv = c->d_model;
        r->n_in = 3 * c->d_model;
        r->conv_first = 2 * c->d_model;
        return 0;
    }
    const bool by_head = arch->recurrent == RECURRENT_MAMBA2;
    TRY(read_int(g, arch, "ssm.conv_kernel", 1, MODEL_MAX_CONV, -1, &r->d_conv, err));
    TRY(read_int(g, arch, "ssm.inner_size", 1, MAX_D_FF, -1, &r->d_inner, err));
    TRY(read_int(g, arch, "ssm.state_size", 1, 4096, -1, &r->d_state, err));
    TRY(read_int(g, arch, "ssm.time_step_rank", 1, r->d_inner, -1, &r->dt_rank, err));
    if (by_head) TRY(read_int(g, arch, "ssm.group_count", 1, r->dt_rank, -1, &r->n_group, err));
    else TRY(gguf_get_bool(g, key_of(key, arch, "ssm.dt_b_c_rms"), &r->norm_parameters, err));
    FAIL_IF(by_head && r->d_inner % r->dt_rank != 0, err, WEIR_E_FORMAT, key_of(key, arch, "ssm.time_step_rank"),
            "%d channels cannot be split evenly over %d heads", r->d_inner, r->dt_rank);
    FAIL_IF(by_head && r->dt_rank % r->n_group != 0, err, WEIR_E_FORMAT, key_of(key, arch, "ssm.group_count"),
            "%d heads cannot be split evenly into %d groups", r->dt_rank, r->n_group);
    r->n_conv = r->d_inner + (by_head ? 2 * r->n_group * r->d_state : 0);
    r->n_in = by_head ? r->d_inner + r->n_conv + r->dt_rank : 2 * r->d_inner;
    r->conv_first = by_head ? r->d_inner : 0;
    r->gate_first = by_head ? 0 : r->d_inner;
    return 0;
}

/* Sizes of ordinary heads. */
static int read_heads(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    if (c->n_head_kv == 0) return 0;
    TRY(read_int(g, arch, "attention.key_length", 1, MAX_D_HEAD, c->d_model / c->n_head, &c->d_head, err));
    TRY(read_int(g, arch, "attention.value_length", 1, MAX_D_HEAD, c->d_head, &c->d_value, err));
    return read_int(g, arch, "rope.dimension_count", 0, MAX_D_HEAD, c->d_head, &c->n_rot, err);
}

/* Sizes of latent attention. Files of the older form have the head sizes in key_length and value_length, newer ones in keys that
 * end in _mla, and the sizes of the one KV head in the others. */
static int read_latent(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    char key[128];
    int32_t d_key;
    TRY(read_int(g, arch, "attention.kv_lora_rank", 1, MAX_D_HEAD, -1, &c->d_latent, err));
    TRY(read_int(g, arch, "attention.q_lora_rank", 0, MAX_D_MODEL, 0, &c->d_latent_query, err));
    TRY(read_int(g, arch, "rope.dimension_count", 2, MAX_D_HEAD, -1, &c->n_rot, err));
    TRY(read_int(g, arch, "attention.key_length_mla", 0, MAX_D_HEAD, 0, &d_key, err));
    TRY(read_int(g, arch, "attention.value_length_mla", 0, MAX_D_HEAD, 0, &c->d_value_head, err));
    const bool newer = d_key != 0;
    if (!newer) TRY(read_int(g, arch, "attention.key_length", 1, MAX_D_HEAD, c->d_model / c->n_head, &d_key, err));
    if (!newer) TRY(read_int(g, arch, "attention.value_length", 1, MAX_D_HEAD, d_key, &c->d_value_head, err));
    FAIL_IF(d_key <= c->n_rot, err, WEIR_E_FORMAT, key_of(key, arch, newer ? "attention.key_length_mla" : "attention.key_length"),
            "%d leaves nothing beside the %d rotated values", d_key, c->n_rot);
    FAIL_IF(c->d_value_head < 1, err, WEIR_E_FORMAT, key_of(key, arch, "attention.value_length_mla"), "the key is missing");
    /* Each rounding would go into all heads of all later tokens, and there is little of it to keep. */
    c->kv_f32 = true;
    c->d_nope = d_key - c->n_rot;
    c->d_head = c->d_latent + c->n_rot;
    c->d_value = c->d_latent;
    c->n_head_kv = 1;
    for (int32_t i = 0; i < c->n_layer; i++) c->shapes[i].n_head_kv = 1;
    FAIL_IF(c->d_head > MAX_D_HEAD, err, WEIR_E_FORMAT, key_of(key, arch, "attention.kv_lora_rank"),
            "%d and %d rotated values exceed a KV head's %d", c->d_latent, c->n_rot, MAX_D_HEAD);
    return 0;
}

int model_config_read(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    char key[128];
    *c = (model_config){.embedding_scale = 1.0f, .residual_scale = 1.0f, .logit_scale = 1.0f};
    TRY(read_int(g, arch, "context_length", 1, INT32_MAX / 2, -1, &c->n_ctx_train, err));
    TRY(read_int(g, arch, "embedding_length", 1, MAX_D_MODEL, -1, &c->d_model, err));
    TRY(read_int(g, arch, "block_count", 1, MAX_LAYERS, -1, &c->n_layer, err));
    TRY(read_shapes(c, arch, g, err));
    if (arch->latent) TRY(read_latent(c, arch, g, err));
    else TRY(read_heads(c, arch, g, err));
    TRY(read_recurrence(c, arch, g, err));
    FAIL_IF(c->n_head_kv && (c->d_head < 1 || c->d_head > MAX_D_HEAD), err, WEIR_E_FORMAT, key_of(key, arch, "attention.head_count"),
            "%d values in %d heads leave no head size between 1 and %d", c->d_model, c->n_head, MAX_D_HEAD);
    FAIL_IF(c->n_rot > c->d_head || c->n_rot % 2 != 0, err, WEIR_E_FORMAT, key_of(key, arch, "rope.dimension_count"),
            "%d is not an even number up to the head size %d", c->n_rot, c->d_head);
    TRY(read_float(g, arch, arch->norm == NORM_RMS ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", 1e-5f,
                   &c->norm_eps, err));
    TRY(read_float(g, arch, arch->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", c->norm_eps,
                   &c->norm_eps, err));
    TRY(read_windows(c, arch, g, err));
    TRY(read_rope(c, arch, g, err));
    TRY(read_experts(c, arch, g, err));
    return read_scales(c, arch, g, err);
}

/* The dimension whose wavelength fits `rotations` times into the original context (YaRN, section 3.2). */
static float yarn_dimension(const model_rope *r, int32_t n_rot, float rotations) {
    return (float)n_rot * logf((float)r->n_ctx_original / (rotations * 2.0f * (float)M_PI)) / (2.0f * logf(r->base));
}

/* YaRN's factor on the magnitude of rotated vectors; with a log multiplier relative to that (DeepSeek-V2's mscale). */
static float yarn_magnitude(const model_rope *r) {
    const float factor = 1.0f / r->frequency_scale;
    if (factor <= 1.0f) return 1.0f;
    const float own = 0.1f * logf(factor) + 1.0f;
    return r->log_multiplier != 0.0f ? own / (0.1f * r->log_multiplier * logf(factor) + 1.0f) : own;
}

void model_rope_angles(const model_rope *r, int32_t n_rot, int32_t pos, int32_t n_ctx, float *cos_out, float *sin_out) {
    const double exponent = -2.0 / n_rot;
    const float *factors = r->long_factors && n_ctx > r->n_ctx_original ? r->long_factors : r->factors;
    float magnitude = r->attention_factor, low = 0.0f, high = 0.0f;
    if (r->scaling == ROPE_SCALING_YARN) {
        low = fmaxf(0.0f, floorf(yarn_dimension(r, n_rot, r->beta_fast)));
        high = fminf((float)(n_rot - 1), ceilf(yarn_dimension(r, n_rot, r->beta_slow)));
        magnitude *= yarn_magnitude(r);
    }
    for (int32_t i = 0; i < n_rot / 2; i++) {
        double angle = (double)pos * pow((double)r->base, exponent * i);
        if (factors) angle /= (double)factors[i];
        if (r->scaling == ROPE_SCALING_LINEAR) angle *= (double)r->frequency_scale;
        if (r->scaling == ROPE_SCALING_YARN) {
            float ramp = ((float)i - low) / fmaxf(0.001f, high - low);
            ramp = 1.0f - fminf(1.0f, fmaxf(0.0f, ramp));
            angle = angle * (double)r->frequency_scale * (1.0 - (double)ramp) + angle * (double)ramp;
        }
        cos_out[i] = (float)(cos(angle) * (double)magnitude);
        sin_out[i] = (float)(sin(angle) * (double)magnitude);
    }
}
