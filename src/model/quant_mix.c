/* See quant_mix.h. The rules are those of llama.cpp's llama-quantize, so that a file of a type holds what users expect of it.
 */
#include "model/quant_mix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* ---- types ------------------------------------------------------------------------------------------------------------ */

enum { COPY = -1 };

struct quant_mix {
    int32_t file_type; /* a gguf_file_type, or COPY */
    quant_type type;   /* of most matrices */
    const char *alias;
};

static const quant_mix mixes[] = {
    {GGUF_FILE_F32, QUANT_F32},
    {GGUF_FILE_F16, QUANT_F16},
    {GGUF_FILE_Q4_0, QUANT_Q4_0},
    {GGUF_FILE_Q4_1, QUANT_Q4_1},
    {GGUF_FILE_Q8_0, QUANT_Q8_0},
    {GGUF_FILE_Q5_0, QUANT_Q5_0},
    {GGUF_FILE_Q5_1, QUANT_Q5_1},
    {GGUF_FILE_Q2_K, QUANT_Q2_K},
    {GGUF_FILE_Q3_K_S, QUANT_Q3_K},
    {GGUF_FILE_Q3_K_M, QUANT_Q3_K, "Q3_K"},
    {GGUF_FILE_Q3_K_L, QUANT_Q3_K},
    {GGUF_FILE_Q4_K_S, QUANT_Q4_K},
    {GGUF_FILE_Q4_K_M, QUANT_Q4_K, "Q4_K"},
    {GGUF_FILE_Q5_K_S, QUANT_Q5_K},
    {GGUF_FILE_Q5_K_M, QUANT_Q5_K, "Q5_K"},
    {GGUF_FILE_Q6_K, QUANT_Q6_K},
    {GGUF_FILE_IQ2_XXS, QUANT_IQ2_XXS},
    {GGUF_FILE_IQ2_XS, QUANT_IQ2_XS},
    {GGUF_FILE_Q2_K_S, QUANT_Q2_K},
    {GGUF_FILE_IQ3_XS, QUANT_IQ3_S},
    {GGUF_FILE_IQ3_XXS, QUANT_IQ3_XXS},
    {GGUF_FILE_IQ1_S, QUANT_IQ1_S},
    {GGUF_FILE_IQ4_NL, QUANT_IQ4_NL},
    {GGUF_FILE_IQ3_S, QUANT_IQ3_S},
    {GGUF_FILE_IQ3_M, QUANT_IQ3_S},
    {GGUF_FILE_IQ2_S, QUANT_IQ2_XS},
    {GGUF_FILE_IQ2_M, QUANT_IQ2_S},
    {GGUF_FILE_IQ4_XS, QUANT_IQ4_XS},
    {GGUF_FILE_IQ1_M, QUANT_IQ1_M},
    {GGUF_FILE_BF16, QUANT_BF16},
    {GGUF_FILE_TQ1_0, QUANT_TQ1_0},
    {GGUF_FILE_TQ2_0, QUANT_TQ2_0},
    {GGUF_FILE_MXFP4_MOE, QUANT_MXFP4},
    {GGUF_FILE_NVFP4, QUANT_NVFP4},
    {GGUF_FILE_Q1_0, QUANT_Q1_0},
    {GGUF_FILE_Q2_0, QUANT_Q2_0},
    {COPY, QUANT_F32, "COPY"},
};

enum { N_MIXES = sizeof mixes / sizeof mixes[0] };

const quant_mix *quant_mix_at(size_t i) {
    return i < N_MIXES ? &mixes[i] : NULL;
}

const char *quant_mix_name(const quant_mix *m) {
    return m->file_type == COPY ? m->alias : gguf_file_type_text((uint32_t)m->file_type);
}

int32_t quant_mix_file_type(const quant_mix *m) {
    return m->file_type;
}

const quant_format *quant_mix_format(const quant_mix *m) {
    return m->file_type == COPY ? NULL : quant_format_of((uint32_t)m->type);
}

const quant_mix *quant_mix_named(const char *name) {
    for (size_t i = 0; i < N_MIXES; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", mixes[i].file_type);
        if (strcasecmp(name, quant_mix_name(&mixes[i])) == 0) return &mixes[i];
        if (mixes[i].file_type != COPY && strcmp(name, number) == 0) return &mixes[i];
        if (mixes[i].alias && strcasecmp(name, mixes[i].alias) == 0) return &mixes[i];
    }
    return NULL;
}

/* ---- what a tensor is for --------------------------------------------------------------------------------------------- */

typedef enum role { ANY, HEAD, EMBEDDING, VALUE, KEY, QUERY, ATTENTION_OUT, UP, GATE, DOWN, OTHER } role;

/* The first text that occurs in the name decides. VALUE: also what holds the values beside others. */
static const struct {
    const char *text;
    role role;
} roles[] = {
    {"per_layer_token_embd.weight", EMBEDDING},
    {"attn_qkv.weight", VALUE},
    {"attn_kv_b.weight", VALUE},
    {"attn_v.weight", VALUE},
    {"attn_k.weight", KEY},
    {"attn_q.weight", QUERY},
    {"attn_output.weight", ATTENTION_OUT},
    {"ffn_up", UP},
    {"ffn_gate", GATE},
    {"ffn_down", DOWN},
};

static role role_of(const char *name) {
    if (strcmp(name, "output.weight") == 0) return HEAD;
    if (strcmp(name, "token_embd.weight") == 0) return EMBEDDING;
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        if (strstr(name, roles[i].text)) return roles[i].role;
    }
    return OTHER;
}

/* Matrices that stay as they are: small ones, and ones where an error goes far. */
static const char *const kept[] = {
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "time_mix_first",
    "time_mix_w0",
    "time_mix_w1",
    "time_mix_w2",
    "time_mix_v0",
    "time_mix_v1",
    "time_mix_v2",
    "time_mix_a0",
    "time_mix_a1",
    "time_mix_a2",
    "time_mix_g1",
    "time_mix_g2",
    "time_mix_decay_w1",
    "time_mix_decay_w2",
    "time_mix_lerp_fused",
    "attn_rel_b",
    "position_embd",
    "token_types",
    "indexer.k_proj",
    "indexer.q_proj",
    ".patch_embd",
    ".patch_merger",
};

static bool is_kept(const gguf_tensor *t, const char *name, const quant_mix_options *options) {
    static const char weight[] = "weight";
    size_t n = strlen(name);
    bool is_matrix = t->dims[1] > 1 || t->dims[2] > 1 || t->dims[3] > 1;
    if (!is_matrix || n < sizeof weight - 1 || strcmp(name + n - (sizeof weight - 1), weight) != 0) return true;
    if (options->leave_output && strcmp(name, "output.weight") == 0) return true;
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        if (strstr(name, kept[i])) return true;
    }
    return false;
}

/* ---- rules ------------------------------------------------------------------------------------------------------------ */

/* What a rule may ask for; all of its conditions must hold. */
enum {
    MORE_BITS = 1 << 0, /* the first and last eighth of the layers, and each third between */
    EIGHTH = 1 << 1,    /* the first eighth */
    SIXTEENTH = 1 << 2, /* the first sixteenth */
    FIRST_2 = 1 << 3,   /* layers */
    FIRST_4 = 1 << 4,   /* layers */
    MIDDLE = 1 << 5,    /* neither the first nor the last eighth */
    GROUPED = 1 << 6,   /* at least 4 query heads share a KV head */
    EXPERTS_8 = 1 << 7, /* exactly 8 */
    EXPERTS_4 = 1 << 8, /* at least 4 */
    FALCON = 1 << 9,
    NOT_FALCON = 1 << 10,
    IMATRIX = 1 << 11,
    NO_IMATRIX = 1 << 12,
    WIDE_80 = 1 << 13, /* 80 layers with grouped KV heads: the values are a small part of the model */
    STACKED = 1 << 14, /* the matrices of several experts */
};

#define T(name) (1ull << GGUF_FILE_##name)
#define IQ2_IQ1 (T(IQ2_XXS) | T(IQ2_XS) | T(IQ2_S) | T(IQ2_M) | T(IQ1_S) | T(IQ1_M))
#define TYPES_8_EXPERTS                                                                                                        \
    (T(Q2_K) | T(IQ3_XS) | T(IQ3_XXS) | T(Q3_K_S) | T(Q3_K_M) | T(IQ4_NL) | T(Q4_K_S) | T(Q4_K_M) | T(IQ3_S) | T(IQ3_M) |      \
     T(IQ4_XS))
#define ALL_TYPES UINT64_MAX

/* The first rule that fits gives the format; without one it is the type's own. */
static const struct {
    uint64_t types;
    role role;
    int conditions;
    quant_type type;
} rules[] = {
    {T(MXFP4_MOE), HEAD, 0, QUANT_Q8_0},
    {T(Q8_0), HEAD, 0, QUANT_Q8_0},
    {ALL_TYPES, HEAD, FALCON, QUANT_Q8_0},
    {IQ2_IQ1 | T(IQ3_XXS), HEAD, 0, QUANT_Q5_K},
    {ALL_TYPES, HEAD, 0, QUANT_Q6_K},
    {T(MXFP4_MOE), ANY, STACKED, QUANT_MXFP4},
    {T(MXFP4_MOE), ANY, 0, QUANT_Q8_0},

    {T(IQ2_XXS) | T(IQ2_XS) | T(IQ1_S) | T(IQ1_M), EMBEDDING, 0, QUANT_Q2_K},
    {T(IQ2_S) | T(IQ2_M) | T(IQ3_XXS), EMBEDDING, 0, QUANT_IQ3_S},
    {T(TQ1_0) | T(TQ2_0) | T(Q2_0), EMBEDDING, 0, QUANT_Q4_K},

    {IQ2_IQ1, VALUE, GROUPED, QUANT_Q4_K},
    {IQ2_IQ1, VALUE, EXPERTS_4, QUANT_Q4_K},
    {T(IQ2_S) | T(IQ2_M), VALUE, 0, QUANT_IQ3_S},
    {IQ2_IQ1, VALUE, 0, QUANT_Q2_K},
    {ALL_TYPES, VALUE, EXPERTS_8, QUANT_Q8_0},
    {T(Q2_K) | T(Q2_K_S) | T(Q3_K_S) | T(Q3_K_M) | T(Q4_K_S) | T(IQ3_XXS) | T(IQ3_XS) | T(IQ3_S) | T(IQ3_M), VALUE, WIDE_80,
     QUANT_Q5_K},
    {T(Q2_K), VALUE, GROUPED, QUANT_Q4_K},
    {T(Q2_K), VALUE, 0, QUANT_Q3_K},
    {T(Q2_K_S), VALUE, GROUPED, QUANT_Q4_K},
    {T(IQ3_XXS) | T(IQ3_XS) | T(IQ3_S), VALUE, GROUPED, QUANT_Q4_K},
    {T(IQ3_XXS), VALUE, NO_IMATRIX, QUANT_IQ3_S},
    {T(IQ3_M), VALUE, 0, QUANT_Q4_K},
    {T(Q3_K_M), VALUE, FIRST_2, QUANT_Q5_K},
    {T(Q3_K_M), VALUE, 0, QUANT_Q4_K},
    {T(Q3_K_L), VALUE, 0, QUANT_Q5_K},
    {T(IQ4_NL) | T(IQ4_XS), VALUE, GROUPED, QUANT_Q5_K},
    {T(Q4_K_M) | T(Q5_K_M), VALUE, MORE_BITS, QUANT_Q6_K},
    {T(Q4_K_M), VALUE, WIDE_80, QUANT_Q5_K},
    {T(Q4_K_S), VALUE, FIRST_4, QUANT_Q5_K},

    {IQ2_IQ1, KEY, EXPERTS_8, QUANT_Q4_K},
    {ALL_TYPES, KEY, EXPERTS_8, QUANT_Q8_0},
    {T(IQ3_XS), KEY, 0, QUANT_IQ3_XXS},
    {T(IQ3_XXS), KEY, 0, QUANT_IQ2_S},
    {T(IQ3_XS), QUERY, 0, QUANT_IQ3_XXS},
    {T(IQ3_XXS), QUERY, 0, QUANT_IQ2_S},

    {T(IQ2_S) | T(IQ2_M), DOWN, EIGHTH, QUANT_IQ3_S},
    {IQ2_IQ1, DOWN, EIGHTH, QUANT_Q2_K},
    {T(Q2_K), DOWN, 0, QUANT_Q3_K},
    {T(Q2_K_S), DOWN, EIGHTH, QUANT_Q4_K},
    {T(IQ3_XXS), DOWN, NO_IMATRIX | EIGHTH, QUANT_Q4_K},
    {T(IQ3_XXS), DOWN, NO_IMATRIX, QUANT_Q3_K},
    {T(Q3_K_M), DOWN, SIXTEENTH, QUANT_Q5_K},
    {T(Q3_K_M), DOWN, NOT_FALCON, QUANT_Q4_K},
    {T(Q3_K_M), DOWN, MORE_BITS, QUANT_Q4_K},
    {T(IQ3_M), DOWN, EIGHTH, QUANT_Q4_K},
    {T(IQ3_M), DOWN, EXPERTS_8 | MORE_BITS, QUANT_Q4_K},
    {T(Q3_K_L), DOWN, FALCON, QUANT_Q4_K},
    {T(Q3_K_L), DOWN, 0, QUANT_Q5_K},
    {T(Q4_K_M), DOWN, FALCON | SIXTEENTH, QUANT_Q6_K},
    {T(Q4_K_M), DOWN, FALCON | MORE_BITS, QUANT_Q5_K},
    {T(Q4_K_M), DOWN, NOT_FALCON | MORE_BITS, QUANT_Q6_K},
    {T(IQ4_NL) | T(IQ4_XS), DOWN, EIGHTH | NO_IMATRIX, QUANT_Q5_K},
    {T(Q5_K_M), DOWN, MORE_BITS, QUANT_Q6_K},
    {T(Q4_K_S), DOWN, EIGHTH | NOT_FALCON, QUANT_Q5_K},
    {T(Q4_0), DOWN, EIGHTH | IMATRIX, QUANT_Q4_1},
    {T(Q5_0), DOWN, EIGHTH | IMATRIX, QUANT_Q5_1},

    {IQ2_IQ1, ATTENTION_OUT, EXPERTS_8, QUANT_Q5_K},
    {T(IQ1_S) | T(IQ1_M), ATTENTION_OUT, 0, QUANT_IQ2_XXS},
    {T(IQ2_S) | T(IQ2_M), ATTENTION_OUT, 0, QUANT_IQ3_S},
    {TYPES_8_EXPERTS, ATTENTION_OUT, NOT_FALCON | EXPERTS_8, QUANT_Q5_K},
    {T(Q2_K), ATTENTION_OUT, NOT_FALCON, QUANT_Q3_K},
    {T(IQ3_XXS), ATTENTION_OUT, NOT_FALCON, QUANT_IQ3_S},
    {T(Q3_K_M) | T(IQ3_M), ATTENTION_OUT, NOT_FALCON, QUANT_Q4_K},
    {T(Q3_K_L), ATTENTION_OUT, NOT_FALCON, QUANT_Q5_K},
    {T(Q3_K_L), ATTENTION_OUT, FALCON, QUANT_Q4_K},

    {T(IQ3_XS), GATE, MIDDLE, QUANT_IQ3_XXS},
    {T(IQ3_XS), UP, MIDDLE, QUANT_IQ3_XXS},
};

/* What a row whose length is no multiple of 256 (or of 64, for Q2_0) is given instead; F16 where that does not fit either. */
static const struct {
    quant_type from, to;
} fallbacks[] = {
    {QUANT_IQ1_S, QUANT_IQ4_NL}, {QUANT_IQ1_M, QUANT_IQ4_NL},   {QUANT_IQ2_XXS, QUANT_IQ4_NL}, {QUANT_IQ2_XS, QUANT_IQ4_NL},
    {QUANT_IQ2_S, QUANT_IQ4_NL}, {QUANT_IQ3_XXS, QUANT_IQ4_NL}, {QUANT_IQ3_S, QUANT_IQ4_NL},   {QUANT_IQ4_XS, QUANT_IQ4_NL},
    {QUANT_Q2_0, QUANT_Q4_0},    {QUANT_Q1_0, QUANT_Q4_0},      {QUANT_Q2_K, QUANT_Q4_0},      {QUANT_Q3_K, QUANT_Q4_0},
    {QUANT_TQ1_0, QUANT_Q4_0},   {QUANT_TQ2_0, QUANT_Q4_0},     {QUANT_NVFP4, QUANT_MXFP4},    {QUANT_Q4_K, QUANT_Q5_0},
    {QUANT_Q5_K, QUANT_Q5_1},    {QUANT_Q6_K, QUANT_Q8_0},
};

static bool fits(const quant_format *f, const gguf_tensor *t) {
    return t->dims[0] % (uint64_t)f->block_size == 0;
}

static const quant_format *fallback_of(const quant_format *f, const gguf_tensor *t) {
    for (size_t i = 0; i < sizeof fallbacks / sizeof fallbacks[0]; i++) {
        if (fallbacks[i].from != f->type) continue;
        const quant_format *other = quant_format_of((uint32_t)fallbacks[i].to);
        if (fits(other, t)) return other;
    }
    return quant_format_of(QUANT_F16);
}

/* ---- the model -------------------------------------------------------------------------------------------------------- */

enum { MAX_LAYERS = 65536 };

/* What the rules ask of a model. */
typedef struct facts {
    int conditions; /* those that hold for all tensors */
    uint32_t n_layer;
    bool tied; /* the token embeddings are the output head too */
    bool has_experts;
    uint32_t *n_values; /* [n_layer + 1] VALUE tensors in the layers before this one */
} facts;

/* The layer in a name such as "blk.7.attn_v.weight"; n_layer for a name without one, or with one that is too large. */
static uint32_t layer_of(const char *name, uint32_t n_layer) {
    unsigned layer;
    return sscanf(name, "blk.%9u.", &layer) == 1 && layer < n_layer ? layer : n_layer;
}

static int get_key(const gguf *g, const char *architecture, const char *name, uint32_t *out, weir_error *err) {
    char key[160];
    snprintf(key, sizeof key, "%s.%s", architecture, name);
    const gguf_key_value *kv = gguf_find(g, key);
    int64_t value = 0;
    if (kv && kv->type == GGUF_ARRAY) { /* a value for each layer: the first one will do */
        if (gguf_item_i64(kv, 0, &value) == 1 && value >= 0 && value <= UINT32_MAX) *out = (uint32_t)value;
        return 0;
    }
    return gguf_get_u32(g, key, out, err);
}

static void name_of(const gguf_tensor *t, char name[GGUF_MAX_NAME]) {
    memcpy(name, t->name.text, t->name.n_bytes);
    name[t->name.n_bytes] = '\0';
}

static int find_facts(const gguf *g, const quant_mix_options *options, facts *f, weir_error *err) {
    char architecture[128] = "", name[GGUF_MAX_NAME];
    gguf_string text;
    if (gguf_get_string(g, "general.architecture", &text, NULL) == 1 && text.n_bytes < sizeof architecture) {
        memcpy(architecture, text.text, text.n_bytes);
    }
    uint32_t n_layer = 0, n_head = 0, n_head_kv = 0, n_expert = 0;
    TRY(get_key(g, architecture, "block_count", &n_layer, err));
    TRY(get_key(g, architecture, "attention.head_count", &n_head, err));
    TRY(get_key(g, architecture, "attention.head_count_kv", &n_head_kv, err));
    TRY(get_key(g, architecture, "expert_count", &n_expert, err));
    bool falcon = strcmp(architecture, "falcon") == 0;
    f->n_layer = n_layer < MAX_LAYERS ? n_layer : MAX_LAYERS;
    f->has_experts = n_expert > 1;
    f->tied = gguf_find_tensor(g, "output.weight") == NULL;
    f->conditions = (falcon ? FALCON : NOT_FALCON) | (options->has_imatrix ? IMATRIX : NO_IMATRIX) |
                    (n_head_kv && n_head / n_head_kv >= 4 ? GROUPED : 0) | (n_expert == 8 ? EXPERTS_8 : 0) |
                    (n_expert >= 4 ? EXPERTS_4 : 0) | (n_layer == 80 && n_head_kv && n_head_kv != n_head ? WIDE_80 : 0);
    f->n_values = calloc((size_t)f->n_layer + 2, sizeof *f->n_values);
    FAIL_IF(f->n_values == NULL, err, WEIR_E_NOMEM, gguf_path(g), "no memory for %u layers", f->n_layer);
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        name_of(gguf_tensor_at(g, i), name);
        if (role_of(name) == VALUE) f->n_values[layer_of(name, f->n_layer) + 1]++;
    }
    for (uint32_t i = 1; i < f->n_layer + 2; i++) f->n_values[i] += f->n_values[i - 1];
    return 0;
}

/* Conditions of layer `i` of `n`. */
static int layer_conditions(uint32_t i, uint32_t n) {
    bool first = i < n / 8, last = i >= 7 * n / 8;
    int conditions = (first || last || (i - n / 8) % 3 == 2 ? MORE_BITS : 0) | (first ? EIGHTH : 0);
    return conditions | (i < n / 16 ? SIXTEENTH : 0) | (i < 2 ? FIRST_2 : 0) | (i < 4 ? FIRST_4 : 0) |
           (first || last ? 0 : MIDDLE);
}

/* The format that the rules give. */
static quant_choice apply_rules(const quant_mix *m, const facts *f, const gguf_tensor *t, const char *name) {
    role r = role_of(name);
    uint32_t layer = layer_of(name, f->n_layer);
    /* Values are counted over the tensors that hold some, the others over all layers. */
    int conditions = f->conditions | (t->dims[2] > 1 ? STACKED : 0);
    if (r == VALUE) {
        conditions |= layer_conditions(f->n_values[layer], f->n_values[f->n_layer + 1]);
    } else if (layer < f->n_layer) {
        conditions |= layer_conditions(layer, f->n_layer);
    }
    if (r == EMBEDDING && f->tied) r = HEAD;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if ((rules[i].types >> m->file_type & 1) == 0 || (rules[i].role != ANY && rules[i].role != r)) continue;
        if ((rules[i].conditions & conditions) != rules[i].conditions) continue;
        return (quant_choice){quant_format_of((uint32_t)rules[i].type), QUANT_REASON_RULE};
    }
    return (quant_choice){quant_mix_format(m), QUANT_REASON_TYPE};
}

/* ---- overrides -------------------------------------------------------------------------------------------------------- */

static int compile(const quant_mix_options *options, pcre2_code **codes, weir_error *err) {
    for (size_t i = 0; i < options->n_overrides; i++) {
        const char *pattern = options->overrides[i].pattern;
        int number;
        PCRE2_SIZE offset;
        codes[i] = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_CASELESS, &number, &offset, NULL);
        if (codes[i]) continue;
        PCRE2_UCHAR message[160] = "";
        pcre2_get_error_message(number, message, sizeof message);
        FAIL(err, WEIR_E_INVALID, pattern, "not a regular expression: %s at offset %zu", (const char *)message, (size_t)offset);
    }
    return 0;
}

/* The format of the first pattern that matches; NULL if none does. */
static const quant_format *overridden(const quant_mix_options *options, pcre2_code **codes, pcre2_match_data *match,
                                      const char *name) {
    for (size_t i = 0; i < options->n_overrides; i++) {
        if (pcre2_match(codes[i], (PCRE2_SPTR)name, strlen(name), 0, 0, match, NULL) >= 0) return options->overrides[i].format;
    }
    return NULL;
}

static quant_choice choose_one(const quant_mix *m, const quant_mix_options *options, const facts *f, const gguf_tensor *t,
                               pcre2_code **codes, pcre2_match_data *match) {
    char name[GGUF_MAX_NAME];
    name_of(t, name);
    if (m->file_type == COPY || is_kept(t, name, options)) return (quant_choice){t->format, QUANT_REASON_KEPT};
    role r = role_of(name);
    const quant_format *given = r == HEAD ? options->output : r == EMBEDDING ? options->embedding : NULL;
    if (given == NULL) given = overridden(options, codes, match, name);
    if (given == NULL && r == EMBEDDING && f->tied && !options->pure) given = options->output;
    quant_choice c = {given, QUANT_REASON_OPTION};
    if (given == NULL) {
        bool plain = options->pure || quant_mix_format(m)->block_size == 1;
        c = plain ? (quant_choice){quant_mix_format(m), QUANT_REASON_TYPE} : apply_rules(m, f, t, name);
    }
    bool is_head = c.reason != QUANT_REASON_OPTION && (r == HEAD || (r == EMBEDDING && f->tied)) && !options->pure;
    if (is_head && !fits(quant_mix_format(m), t) && fits(quant_format_of(QUANT_Q8_0), t)) {
        return (quant_choice){quant_format_of(QUANT_Q8_0), QUANT_REASON_FALLBACK};
    }
    return fits(c.format, t) ? c : (quant_choice){fallback_of(c.format, t), QUANT_REASON_FALLBACK};
}

int quant_mix_choose(const gguf *g, const quant_mix *m, const quant_mix_options *options, quant_choice *choices,
                     weir_error *err) {
    facts f = {0};
    pcre2_code **codes = calloc(options->n_overrides + 1, sizeof *codes);
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    int rc = codes && match ? 0 : error_set(err, WEIR_E_NOMEM, gguf_path(g), "no memory for the patterns");
    if (rc >= 0) rc = compile(options, codes, err);
    if (rc >= 0) rc = find_facts(g, options, &f, err);
    for (size_t i = 0; rc >= 0 && i < gguf_n_tensors(g); i++) {
        choices[i] = choose_one(m, options, &f, gguf_tensor_at(g, i), codes, match);
    }
    for (size_t i = 0; codes && i < options->n_overrides; i++) pcre2_code_free(codes[i]);
    pcre2_match_data_free(match);
    free(codes);
    free(f.n_values);
    return rc < 0 ? rc : 0;
}
