/* The architecture table and the reading of configurations from metadata. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "model/model.h"

static const model_arch table[] = {
    {.name = "llama", .activation = ACTIVATION_SILU},
    {.name = "gemma3",
     .rope_neox = true,
     .qk_norm = true,
     .post_norms = true,
     .embedding_sqrt = true,
     .activation = ACTIVATION_GELU,
     .window_pattern = 6,
     .window_rope_base = 10000.0f},
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

static int read_float(const gguf *g, const model_arch *arch, const char *suffix, float fallback, float *out, weir_error *err) {
    char key[128];
    *out = fallback;
    TRY(gguf_get_f32(g, key_of(key, arch, suffix), out, err));
    FAIL_IF(!isfinite(*out), err, WEIR_E_FORMAT, key, "the value is not finite");
    return 0;
}

static int read_rope(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    char key[128];
    model_rope *r = &c->rope[0];
    float factor, linear;
    gguf_string scaling = {0};
    *r = (model_rope){.frequency_scale = 1.0f, .beta_fast = 32.0f, .beta_slow = 1.0f};
    TRY(read_float(g, arch, "rope.freq_base", 10000.0f, &r->base, err));
    FAIL_IF(!(r->base > 0.0f), err, WEIR_E_FORMAT, key_of(key, arch, "rope.freq_base"), "%g is not positive", (double)r->base);
    TRY(read_float(g, arch, "rope.scale_linear", 0.0f, &linear, err));
    TRY(read_float(g, arch, "rope.scaling.factor", linear, &factor, err));
    TRY(read_float(g, arch, "rope.scaling.attn_factor", 1.0f, &r->attention_factor, err));
    TRY(read_int(g, arch, "rope.scaling.original_context_length", 1, INT32_MAX, c->n_ctx_train, &r->n_ctx_original, err));
    int found = gguf_get_string(g, key_of(key, arch, "rope.scaling.type"), &scaling, err);
    TRY(found);
    if (factor > 0.0f) {
        r->frequency_scale = 1.0f / factor;
        r->scaling = ROPE_SCALING_LINEAR;
    }
    if (found) {
#define IS(name) (scaling.n_bytes == strlen(name) && memcmp(scaling.text, name, scaling.n_bytes) == 0)
        if (IS("yarn")) {
            r->scaling = ROPE_SCALING_YARN;
        } else if (IS("none")) {
            r->scaling = ROPE_SCALING_NONE;
            r->frequency_scale = 1.0f;
        } else if (!IS("linear")) {
            FAIL(err, WEIR_E_UNSUPPORTED, key, "RoPE scaling '%.*s' is not supported; known: none, linear, yarn",
                 (int)(scaling.n_bytes < 40 ? scaling.n_bytes : 40), scaling.text);
        }
#undef IS
    }
    c->rope[1] = *r;
    if (arch->window_pattern) {
        /* Windowed layers see near positions only and are not scaled. */
        c->rope[1] = (model_rope){.frequency_scale = 1.0f, .attention_factor = 1.0f, .beta_fast = 32.0f, .beta_slow = 1.0f};
        TRY(read_float(g, arch, "rope.freq_base_swa", arch->window_rope_base > 0.0f ? arch->window_rope_base : r->base,
                       &c->rope[1].base, err));
        FAIL_IF(!(c->rope[1].base > 0.0f), err, WEIR_E_FORMAT, key_of(key, arch, "rope.freq_base_swa"), "the base is not positive");
    }
    return 0;
}

/* Shapes beyond these are no model that could run, and keep all later arithmetic far from overflow. */
enum { MAX_D_MODEL = 1 << 17, MAX_LAYERS = 1024, MAX_HEADS = 1024, MAX_D_HEAD = 1024, MAX_D_FF = 1 << 20 };

int model_config_read(model_config *c, const model_arch *arch, const gguf *g, weir_error *err) {
    char key[128];
    *c = (model_config){.embedding_scale = 1.0f, .residual_scale = 1.0f, .logit_scale = 1.0f};
    TRY(read_int(g, arch, "context_length", 1, INT32_MAX / 2, -1, &c->n_ctx_train, err));
    TRY(read_int(g, arch, "embedding_length", 1, MAX_D_MODEL, -1, &c->d_model, err));
    TRY(read_int(g, arch, "block_count", 1, MAX_LAYERS, -1, &c->n_layer, err));
    TRY(read_int(g, arch, "attention.head_count", 1, MAX_HEADS, -1, &c->n_head, err));
    TRY(read_int(g, arch, "attention.head_count_kv", 1, MAX_HEADS, c->n_head, &c->n_head_kv, err));
    TRY(read_int(g, arch, "feed_forward_length", 1, MAX_D_FF, -1, &c->d_ff, err));
    TRY(read_int(g, arch, "attention.key_length", 1, MAX_D_HEAD, c->d_model / c->n_head, &c->d_head, err));
    TRY(read_int(g, arch, "attention.value_length", 1, MAX_D_HEAD, c->d_head, &c->d_value, err));
    TRY(read_int(g, arch, "rope.dimension_count", 0, MAX_D_HEAD, c->d_head, &c->n_rot, err));
    FAIL_IF(c->n_head % c->n_head_kv != 0, err, WEIR_E_FORMAT, key_of(key, arch, "attention.head_count_kv"),
            "%d heads cannot share %d KV heads evenly", c->n_head, c->n_head_kv);
    FAIL_IF(c->d_head < 1 || c->d_head > MAX_D_HEAD, err, WEIR_E_FORMAT, key_of(key, arch, "attention.head_count"),
            "%d values in %d heads leave no head size between 1 and %d", c->d_model, c->n_head, MAX_D_HEAD);
    FAIL_IF(c->n_rot > c->d_head || c->n_rot % 2 != 0, err, WEIR_E_FORMAT, key_of(key, arch, "rope.dimension_count"),
            "%d is not an even number up to the head size %d", c->n_rot, c->d_head);
    TRY(read_float(g, arch, "attention.layer_norm_rms_epsilon", 1e-5f, &c->norm_eps, err));
    TRY(read_rope(c, arch, g, err));
    c->rope_neox = arch->rope_neox;
    c->activation = arch->activation;
    c->attention_scale = 1.0f / sqrtf((float)c->d_head);
    if (arch->embedding_sqrt) c->embedding_scale = sqrtf((float)c->d_model);
    if (arch->window_pattern) TRY(read_int(g, arch, "attention.sliding_window", 1, INT32_MAX, -1, &c->window, err));
    return arch->configure ? arch->configure(c, g, err) : 0;
}

/* The dimension whose wavelength fits `rotations` times into the original context (YaRN, section 3.2). */
static float yarn_dimension(const model_rope *r, int32_t n_rot, float rotations) {
    return (float)n_rot * logf((float)r->n_ctx_original / (rotations * 2.0f * (float)M_PI)) / (2.0f * logf(r->base));
}

void model_rope_angles(const model_rope *r, int32_t n_rot, int32_t pos, float *cos_out, float *sin_out) {
    const double exponent = -2.0 / n_rot;
    float magnitude = r->attention_factor, low = 0.0f, high = 0.0f;
    if (r->scaling == ROPE_SCALING_YARN) {
        low = fmaxf(0.0f, floorf(yarn_dimension(r, n_rot, r->beta_fast)));
        high = fminf((float)(n_rot - 1), ceilf(yarn_dimension(r, n_rot, r->beta_slow)));
        magnitude *= 1.0f + 0.1f * logf(1.0f / r->frequency_scale);
    }
    for (int32_t i = 0; i < n_rot / 2; i++) {
        double angle = (double)pos * pow((double)r->base, exponent * i);
        if (r->factors) angle /= (double)r->factors[i];
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
