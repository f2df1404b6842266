/* config.json to metadata, for the model types of a table. Keys and their meaning: the configuration classes of `transformers`;
 * what a GGUF file calls them: the GGUF specification. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "hf/hf_internal.h"

static const hf_family families[] = {
    {.model_type = "llama", .arch = "llama", .activation = "silu", .pairs = true, .norm_eps = 1e-6f},
    {.model_type = "mistral", .arch = "llama", .activation = "silu", .pairs = true, .norm_eps = 1e-6f},
    {.model_type = "phi3", .arch = "phi3", .activation = "silu", .norm_eps = 1e-5f},
    {.model_type = "qwen2", .arch = "qwen2", .activation = "silu", .norm_eps = 1e-6f},
    {.model_type = "qwen3", .arch = "qwen3", .activation = "silu", .d_head = 128, .norm_eps = 1e-6f},
    {.model_type = "gemma3_text",
     .arch = "gemma3",
     .activation = "gelu_pytorch_tanh",
     .norm_plus_one = true,
     .four_norms = true,
     .windows = true,
     .d_head = 256,
     .norm_eps = 1e-6f,
     .tied = true},
};

/* ---- values
 * ------------------------------------------------------------------------------------------------------------------------ */

static int bad_value(const hf_model *m, int code, const char *key, const char *what) {
    char place[160];
    snprintf(place, sizeof place, "%s: %s", m->config_path, key);
    FAIL(m->err, code, place, "%s", what);
}

static const json_t *value_of(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

/* An integer in [low, high]; `fallback` when it is absent, unless that is negative: then it is required. */
static int read_int(const hf_model *m, const json_t *object, const char *key, int64_t low, int64_t high, int64_t fallback,
                    int32_t *out) {
    const json_t *value = value_of(object, key);
    char what[96];
    if (value == NULL && fallback >= 0) {
        *out = (int32_t)fallback;
        return 0;
    }
    const double number = json_number_value(value);
    if (json_is_number(value) && number >= (double)low && number <= (double)high && number == floor(number)) {
        *out = (int32_t)number;
        return 0;
    }
    snprintf(what, sizeof what, "%s; expected an integer from %lld to %lld",
             value ? "is out of range or no integer" : "is missing", (long long)low, (long long)high);
    return bad_value(m, WEIR_E_FORMAT, key, what);
}

static int read_float(const hf_model *m, const json_t *object, const char *key, double fallback, double *out) {
    const json_t *value = value_of(object, key);
    *out = value ? json_number_value(value) : fallback;
    if (value && (!json_is_number(value) || !isfinite(*out))) return bad_value(m, WEIR_E_FORMAT, key, "is no number");
    return 0;
}

static const char *key_of(char buffer[128], const hf_model *m, const char *suffix) {
    snprintf(buffer, 128, "%s.%s", m->family->arch, suffix);
    return buffer;
}

static void put_u32(const hf_model *m, const char *suffix, int32_t value) {
    char key[128];
    gguf_build_u32(m->builder, key_of(key, m, suffix), (uint32_t)value);
}

static void put_f32(const hf_model *m, const char *suffix, double value) {
    char key[128];
    gguf_build_f32(m->builder, key_of(key, m, suffix), (float)value);
}

static void put_text(const hf_model *m, const char *suffix, const char *value) {
    char key[128];
    gguf_build_string(m->builder, key_of(key, m, suffix), value, strlen(value));
}

/* A tensor of n floats that the folder does not store. */
static float *put_vector(const hf_model *m, const char *name, size_t n) {
    float *values = gguf_build_memory(m->builder, n * sizeof *values);
    const gguf_tensor t = {.name = {name, strlen(name)},
                           .n_dims = 1,
                           .dims = {n},
                           .format = quant_format_of(QUANT_F32),
                           .data = (unsigned char *)values};
    if (values) gguf_build_tensor(m->builder, &t);
    return values;
}

/* ---- RoPE
 * ---------------------------------------------------------------------------------------------------------------------------
 */

/* Llama 3.1's stretching of the low frequencies, as divisors (transformers, _compute_llama3_parameters). */
static int put_llama3(const hf_model *m, const json_t *scaling, double base, int32_t n_rot) {
    double factor, low, high, original;
    TRY(read_float(m, scaling, "factor", 8.0, &factor));
    TRY(read_float(m, scaling, "low_freq_factor", 1.0, &low));
    TRY(read_float(m, scaling, "high_freq_factor", 4.0, &high));
    TRY(read_float(m, scaling, "original_max_position_embeddings", 8192.0, &original));
    if (!(factor >= 1.0 && low > 0.0 && high > low && original >= 1.0))
        return bad_value(m, WEIR_E_FORMAT, "rope_scaling",
                         "needs factor >= 1, 0 < low_freq_factor < high_freq_factor, original_max_position_embeddings >= 1");
    float *factors = put_vector(m, "rope_freqs.weight", (size_t)n_rot / 2);
    for (int32_t i = 0; factors && i < n_rot / 2; i++) {
        const double wavelength = 2.0 * M_PI * pow(base, 2.0 * i / n_rot);
        const double smooth = (original / wavelength - low) / (high - low);
        factors[i] = (float)(wavelength < original / high  ? 1.0
                             : wavelength > original / low ? factor
                                                           : 1.0 / ((1.0 - smooth) / factor + smooth));
    }
    return 0;
}

/* LongRoPE (Ding et al. 2024): two lists of divisors, and a factor on the magnitude. */
static int put_long(const hf_model *m, const json_t *scaling, int32_t n_rot) {
    static const char *const lists[][2] = {{"short_factor", "rope_factors_short.weight"},
                                           {"long_factor", "rope_factors_long.weight"}};
    int32_t original;
    double magnitude;
    const json_t *where = value_of(scaling, "original_max_position_embeddings") ? scaling : m->config;
    TRY(read_int(m, where, "original_max_position_embeddings", 2, INT32_MAX / 2, -1, &original));
    const double stretch = (double)m->n_ctx / original;
    TRY(read_float(m, scaling, "attention_factor", stretch <= 1.0 ? 1.0 : sqrt(1.0 + log(stretch) / log(original)),
                   &magnitude));
    for (size_t k = 0; k < 2; k++) {
        const json_t *list = value_of(scaling, lists[k][0]);
        if (json_array_size(list) != (size_t)n_rot / 2)
            return bad_value(m, WEIR_E_FORMAT, lists[k][0], "must have one factor for each pair of a head");
        float *factors = put_vector(m, lists[k][1], (size_t)n_rot / 2);
        for (size_t i = 0; factors && i < (size_t)n_rot / 2; i++) {
            factors[i] = (float)json_number_value(json_array_get(list, i));
            if (!(factors[i] > 0.0f)) return bad_value(m, WEIR_E_FORMAT, lists[k][0], "has a factor that is not positive");
        }
    }
    put_u32(m, "rope.scaling.original_context_length", original);
    put_f32(m, "rope.scaling.attn_factor", magnitude);
    put_text(m, "rope.scaling.type", "longrope");
    return 0;
}

static int put_yarn(const hf_model *m, const json_t *scaling) {
    double factor, fast, slow, magnitude;
    int32_t original;
    TRY(read_float(m, scaling, "factor", 1.0, &factor));
    if (!(factor >= 1.0)) return bad_value(m, WEIR_E_FORMAT, "factor", "must be at least 1");
    const double own = 0.1 * log(factor) + 1.0;
    TRY(read_float(m, scaling, "beta_fast", 32.0, &fast));
    TRY(read_float(m, scaling, "beta_slow", 1.0, &slow));
    TRY(read_float(m, scaling, "attention_factor", own, &magnitude));
    TRY(read_int(m, scaling, "original_max_position_embeddings", 1, INT32_MAX / 2, m->n_ctx, &original));
    if (value_of(scaling, "mscale") || value_of(scaling, "mscale_all_dim"))
        return bad_value(m, WEIR_E_UNSUPPORTED, "mscale", "is not supported for this model type");
    put_text(m, "rope.scaling.type", "yarn");
    put_f32(m, "rope.scaling.factor", factor);
    put_u32(m, "rope.scaling.original_context_length", original);
    put_f32(m, "rope.scaling.yarn_beta_fast", fast);
    put_f32(m, "rope.scaling.yarn_beta_slow", slow);
    if (magnitude != own) put_f32(m, "rope.scaling.attn_factor", magnitude / own);
    return 0;
}

static int put_scaling(const hf_model *m, const json_t *scaling, double base, int32_t n_rot) {
    const char *type = json_string_value(value_of(scaling, "rope_type"));
    char what[160];
    if (type == NULL) type = json_string_value(value_of(scaling, "type"));
    /* Dynamic scaling changes nothing up to the trained context, which is the longest that runs. */
    if (scaling == NULL || type == NULL || strcmp(type, "default") == 0 || strcmp(type, "dynamic") == 0) return 0;
    if (strcmp(type, "llama3") == 0) return put_llama3(m, scaling, base, n_rot);
    if (strcmp(type, "longrope") == 0 || strcmp(type, "su") == 0) return put_long(m, scaling, n_rot);
    if (strcmp(type, "yarn") == 0) return put_yarn(m, scaling);
    if (strcmp(type, "linear") == 0) {
        double factor;
        TRY(read_float(m, scaling, "factor", 1.0, &factor));
        if (!(factor >= 1.0)) return bad_value(m, WEIR_E_FORMAT, "factor", "must be at least 1");
        put_text(m, "rope.scaling.type", "linear");
        put_f32(m, "rope.scaling.factor", factor);
        return 0;
    }
    snprintf(what, sizeof what, "'%.30s' is not supported; supported are default, linear, dynamic, llama3, yarn and longrope",
             type);
    return bad_value(m, WEIR_E_UNSUPPORTED, "rope_scaling", what);
}

/* RoPE stands in rope_theta and rope_scaling or, in newer files, in rope_parameters, which may be one for each kind of layer.
 */
static int put_rope(const hf_model *m) {
    const json_t *all = value_of(m->config, "rope_parameters"), *scaling = value_of(m->config, "rope_scaling");
    const json_t *full = value_of(all, "full_attention"), *windowed = value_of(all, "sliding_attention");
    double base, local, partial;
    if (full)
        scaling = full;
    else if (all)
        scaling = all;
    const double fallback = m->family->windows ? 1e6 : 1e4;
    TRY(read_float(m, m->config, "rope_theta", fallback, &base));
    TRY(read_float(m, scaling, "rope_theta", base, &base));
    TRY(read_float(m, m->config, "partial_rotary_factor", 1.0, &partial));
    TRY(read_float(m, scaling, "partial_rotary_factor", partial, &partial));
    if (!(base > 1.0 && base <= 1e12)) return bad_value(m, WEIR_E_FORMAT, "rope_theta", "must be above 1");
    const int32_t n_rot = (int32_t)(m->d_head * partial);
    if (!(partial > 0.0 && partial <= 1.0) || n_rot % 2 != 0 || n_rot < 2)
        return bad_value(m, WEIR_E_FORMAT, "partial_rotary_factor", "does not leave an even number of values of a head");
    put_f32(m, "rope.freq_base", base);
    put_u32(m, "rope.dimension_count", n_rot);
    if (m->family->windows) {
        TRY(read_float(m, m->config, "rope_local_base_freq", 1e4, &local));
        TRY(read_float(m, windowed, "rope_theta", local, &local));
        const char *type = json_string_value(value_of(windowed, "rope_type"));
        if (type && strcmp(type, "default") != 0)
            return bad_value(m, WEIR_E_UNSUPPORTED, "rope_parameters", "windowed layers with a scaled RoPE are not supported");
        put_f32(m, "rope.freq_base_swa", local);
    }
    return put_scaling(m, scaling, base, n_rot);
}

/* ---- windows
 * ------------------------------------------------------------------------------------------------------------------------- */

/* Which layers are full: each n-th, or none (then n is above the number of layers). From layer_types, or the pattern's length.
 */
static int window_pattern(const hf_model *m, int32_t *out) {
    const json_t *types = value_of(m->config, "layer_types");
    TRY(read_int(m, m->config, "sliding_window_pattern", 1, 1024, m->family->windows ? 6 : m->n_layer + 1, out));
    if (types == NULL) return 0;
    if (json_array_size(types) != (size_t)m->n_layer)
        return bad_value(m, WEIR_E_FORMAT, "layer_types", "must have one entry for each layer");
    *out = m->n_layer + 1;
    for (int32_t i = m->n_layer; i-- > 0;) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (type == NULL || (strcmp(type, "full_attention") != 0 && strcmp(type, "sliding_attention") != 0))
            return bad_value(m, WEIR_E_UNSUPPORTED, "layer_types", "may hold full_attention and sliding_attention");
        if (strcmp(type, "full_attention") == 0) *out = i + 1;
    }
    for (int32_t i = 0; i < m->n_layer; i++) {
        const bool full = strcmp(json_string_value(json_array_get(types, (size_t)i)), "full_attention") == 0;
        if (full != ((i + 1) % *out == 0))
            return bad_value(m, WEIR_E_UNSUPPORTED, "layer_types", "full layers must come at regular distances");
    }
    return 0;
}

static int put_windows(const hf_model *m) {
    int32_t window = 0, pattern;
    const json_t *use = value_of(m->config, "use_sliding_window");
    TRY(read_int(m, m->config, "sliding_window", 1, INT32_MAX / 2, m->family->windows ? 4096 : 0, &window));
    if (json_is_false(use) || window == 0 || (window >= m->n_ctx && !m->family->windows)) return 0;
    TRY(window_pattern(m, &pattern));
    if (pattern == 1) return 0; /* all layers are full */
    int32_t first = 0;
    if (json_is_true(use) && value_of(m->config, "layer_types") == NULL)
        TRY(read_int(m, m->config, "max_window_layers", 0, 1024, 0, &first));
    if (first >= m->n_layer) return 0;
    if (first > 0)
        return bad_value(m, WEIR_E_UNSUPPORTED, "max_window_layers", "windows in the last layers only are not supported");
    put_u32(m, "attention.sliding_window", window);
    put_u32(m, "attention.sliding_window_pattern", pattern);
    return 0;
}

/* ---- the file
 * ------------------------------------------------------------------------------------------------------------------------- */

static int find_family(hf_model *m) {
    const char *type = json_string_value(value_of(m->config, "model_type"));
    char what[240] = "";
    if (type == NULL) return bad_value(m, WEIR_E_FORMAT, "model_type", "is missing: this is no model's configuration");
    if (strcmp(type, "gemma3") == 0 && json_is_object(value_of(m->config, "text_config"))) {
        /* A model of text and images: its text model runs. */
        json_t *text = json_incref(json_object_get(m->config, "text_config"));
        json_decref(m->config);
        m->config = text;
        m->config_path = "config.json: text_config";
        type = "gemma3_text";
    }
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (strcmp(families[i].model_type, type) != 0) continue;
        m->family = &families[i];
        return 0;
    }
    snprintf(what, sizeof what,
             "'%.60s' is not supported as a folder; supported are llama, mistral, phi3, qwen2, qwen3, gemma3 and gemma3_text",
             type);
    return bad_value(m, WEIR_E_UNSUPPORTED, "model_type", what);
}

static int check_supported(const hf_model *m) {
    const json_t *activation = value_of(m->config, "hidden_activation");
    char what[160];
    if (activation == NULL) activation = value_of(m->config, "hidden_act");
    if (json_is_string(activation) && strcmp(json_string_value(activation), m->family->activation) != 0) {
        snprintf(what, sizeof what, "'%.40s' is not supported; %s models have %s", json_string_value(activation),
                 m->family->model_type, m->family->activation);
        return bad_value(m, WEIR_E_UNSUPPORTED, "hidden_act", what);
    }
    if (value_of(m->config, "quantization_config"))
        return bad_value(m, WEIR_E_UNSUPPORTED, "quantization_config",
                         "quantised folders are not read; use the original or a GGUF file");
    if (value_of(m->config, "attn_logit_softcapping"))
        return bad_value(m, WEIR_E_UNSUPPORTED, "attn_logit_softcapping", "is not supported for this model type");
    return 0;
}

static int read_shape(hf_model *m) {
    enum { MAX_WIDTH = 1 << 20, MAX_HEADS = 1024, MAX_LAYERS = 1024 };
    const json_t *c = m->config;
    const bool gemma = m->family->windows; /* whose configurations leave out what is the default */
    TRY(read_int(m, c, "hidden_size", 1, MAX_WIDTH, gemma ? 2304 : -1, &m->d_model));
    TRY(read_int(m, c, "num_hidden_layers", 1, MAX_LAYERS, gemma ? 26 : -1, &m->n_layer));
    TRY(read_int(m, c, "num_attention_heads", 1, MAX_HEADS, gemma ? 8 : -1, &m->n_head));
    TRY(read_int(m, c, "num_key_value_heads", 1, m->n_head, gemma ? 4 : m->n_head, &m->n_head_kv));
    TRY(read_int(m, c, "intermediate_size", 1, MAX_WIDTH, gemma ? 9216 : -1, &m->d_ff));
    TRY(read_int(m, c, "max_position_embeddings", 1, INT32_MAX / 2, gemma ? 131072 : -1, &m->n_ctx));
    TRY(read_int(m, c, "head_dim", 1, 1024, m->family->d_head ? m->family->d_head : m->d_model / m->n_head, &m->d_head));
    TRY(read_int(m, c, "vocab_size", 1, 1 << 25, gemma ? 262208 : -1, &m->n_vocab));
    if (m->n_head % m->n_head_kv != 0)
        return bad_value(m, WEIR_E_FORMAT, "num_key_value_heads", "does not divide num_attention_heads");
    if (m->d_head < 2 || m->d_head % 2 != 0) return bad_value(m, WEIR_E_FORMAT, "head_dim", "must be an even number");
    const json_t *tied = value_of(c, "tie_word_embeddings");
    m->tied = tied ? json_is_true(tied) : m->family->tied;
    return 0;
}

int hf_read_config(hf_model *m) {
    double eps, scalar, cap;
    m->config_path = "config.json";
    const int found = hf_read_json(m, "config.json", &m->config);
    TRY(found);
    FAIL_IF(found == 0, m->err, WEIR_E_IO, m->dir,
            "the folder has no config.json; expected a model as Hugging Face's libraries save it");
    TRY(find_family(m));
    TRY(check_supported(m));
    TRY(read_shape(m));
    TRY(read_float(m, m->config, "rms_norm_eps", m->family->norm_eps, &eps));
    gguf_build_string(m->builder, "general.architecture", m->family->arch, strlen(m->family->arch));
    gguf_build_string(m->builder, "general.type", "model", 5);
    put_u32(m, "context_length", m->n_ctx);
    put_u32(m, "embedding_length", m->d_model);
    put_u32(m, "block_count", m->n_layer);
    put_u32(m, "feed_forward_length", m->d_ff);
    put_u32(m, "attention.head_count", m->n_head);
    put_u32(m, "attention.head_count_kv", m->n_head_kv);
    put_u32(m, "attention.key_length", m->d_head);
    put_u32(m, "attention.value_length", m->d_head);
    put_f32(m, "attention.layer_norm_rms_epsilon", eps);
    put_u32(m, "vocab_size", m->n_vocab);
    if (m->family->windows) {
        TRY(read_float(m, m->config, "query_pre_attn_scalar", m->d_head, &scalar));
        if (!(scalar > 0.0)) return bad_value(m, WEIR_E_FORMAT, "query_pre_attn_scalar", "must be positive");
        if (scalar != m->d_head) put_f32(m, "attention.scale", 1.0 / sqrt(scalar));
        TRY(read_float(m, m->config, "final_logit_softcapping", 0.0, &cap));
        if (cap != 0.0) put_f32(m, "final_logit_softcapping", cap);
    }
    TRY(put_windows(m));
    return put_rope(m);
}
