/* A tokenizer.json as the vocabulary keys of a GGUF file, which only know kinds of tokenisers by name. Which name fits is found
 * by trying: the vocabulary is opened as each candidate, and taken when it gives the ids of the tokenizer.json on a set of
 * texts that tell the candidates apart. A tokenizer.json that no candidate equals is refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "hf/hf_internal.h"
#include "tok/tok_json.h"

#define SPACE "\xe2\x96\x81"

typedef struct candidate {
    const char *model, *pre;
    bool space_prefix;
} candidate;

/* In order of preference: names that mean the same come after the better known. */
static const candidate candidates[] = {
    {"gpt2", "llama-bpe", false},   {"gpt2", "qwen2", false},
    {"gpt2", "smollm", false},      {"gpt2", "tekken", false},
    {"gpt2", "gpt-2", false},       {"gpt2", "gpt-4o", false},
    {"gpt2", "dbrx", false},        {"gpt2", "deepseek-llm", false},
    {"gpt2", "deepseek-v3", false}, {"gpt2", "deepseek-coder", false},
    {"gpt2", "falcon", false},      {"gpt2", "default", false},
    {"gpt2", "bloom", false},       {"gpt2", "seed-coder", false},
    {"gpt2", "bailingmoe", false},  {"gpt2", "superbpe", false},
    {"gpt2", "kimi-k2", false},     {"gpt2", "exaone-moe", false},
    {"gpt2", "qwen35", false},      {"gpt2", "youtu", false},
    {"llama", NULL, true},          {"llama", NULL, false},
};

static const char *const probes[] = {
    "The quick brown fox jumps over 12 lazy dogs, 345 cats; 6789 mice & 1234567 ants!",
    "I'm sure we'll say it's what they've got; you'd better not don't'VE I'LL It'S",
    "  two  spaces   three\tand\ttabs \n\n\nlines\r\n   end   ",
    "camelCase PascalCase snake_case HTTPServer x1y22z333 (a)[b]{c} <d> e=f; g->h //i #j @k $l %m ^n *o +p ~q `r` |s| \\t",
    "Der Fluß, l'été, el niño, Ωμέγα, Привет мир, שלום, مرحبا, नमस्ते, สวัสดี",
    "敏捷的棕色狐狸，跳过懒狗。１２３ すばやい茶色の狐、カタカナ 빠른 여우",
    "emoji 😀👍🏽👩‍👩‍👧 e\xcc\x81 n\xcc\x83 \xe2\x80\x8b\xc2\xa0\xe3\x80\x80x ½ Ⅷ ² ٣٤٥",
    "def f(x):\n    if x > 10:\n        return [y for y in range(x)]  # comment\n\n\nprint(f(3.14e-10))\n",
    "...!!!??? ---- ==== ''' \"\"\" a.b,c a . b , c",
    " leading",
    "trailing ",
    "",
    " ",
    "\n",
    "a",
    "0",
    "AAA aaa AaA 000 ...",
    "\t\tx",
    "x\n \ny",
    SPACE "x",
};

typedef struct converter {
    hf_model *m;
    arena memory;
    tok *reference; /* the tokenizer.json */
    gguf_string *tokens;
    int32_t *types;
    float *scores;
    gguf_string *merges;
    size_t n_tokens, n_merges;
    bool has_bytes, has_alphabet; /* tokens for single bytes; the mark of GPT-2's alphabet */
} converter;

static int refuse(const converter *c, const char *what) {
    FAIL(c->m->err, WEIR_E_UNSUPPORTED, "tokenizer.json",
         "%s, which the vocabulary keys of GGUF files cannot say; the folder itself can be loaded (-m FOLDER), quantised with --quant TYPE",
         what);
}

/* Models other than BPE. Unigram and WordPiece have kinds in GGUF files, t5 and bert, but with normalizers, continuation marks and
 * unknown tokens of their own, which no folder of the architectures that are read here has asked for. */
static int refuse_model(const converter *c, const json_t *model) {
    const char *type = json_string_value(json_object_get(model, "type"));
    char what[160];
    snprintf(what, sizeof what, "its model is %.32s, and only BPE is written: GGUF files have WordPiece and Unigram as BERT and T5 use them",
             type ? type : "no BPE");
    return refuse(c, what);
}

static int no_memory(const converter *c) {
    return error_set(c->m->err, WEIR_E_NOMEM, "tokenizer.json", "no memory for the vocabulary");
}

/* ---- tokens
 * ------------------------------------------------------------------------------------------------------------------------ */

static int set_token(converter *c, const json_t *id, const char *text, size_t n_bytes, int32_t type) {
    const json_int_t i = json_integer_value(id);
    if (!json_is_integer(id) || i < 0 || (size_t)i >= c->n_tokens)
        FAIL(c->m->err, WEIR_E_FORMAT, "tokenizer.json", "the id of '%.60s' is not in 0..%zu (vocab_size of config.json)", text,
             c->n_tokens - 1);
    c->tokens[i] = (gguf_string){text, n_bytes};
    c->types[i] = type;
    return 0;
}

static bool is_byte(const char *text) {
    return strncmp(text, "<0x", 3) == 0 && strlen(text) == 6 && text[5] == '>';
}

static int read_tokens(converter *c, const json_t *root) {
    json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab"),
           *added = json_object_get(root, "added_tokens"), *item;
    const char *unknown = json_string_value(json_object_get(model, "unk_token")), *key;
    size_t i;
    c->n_tokens = (size_t)c->m->n_vocab;
    c->tokens = arena_array(&c->memory, c->n_tokens, sizeof *c->tokens);
    c->types = arena_array(&c->memory, c->n_tokens, sizeof *c->types);
    c->scores = arena_array(&c->memory, c->n_tokens, sizeof *c->scores);
    if (c->tokens == NULL || c->types == NULL || c->scores == NULL) return no_memory(c);
    json_object_foreach(vocab, key, item) {
        const bool byte = is_byte(key);
        c->has_bytes |= byte;
        c->has_alphabet |= strcmp(key, "\xc4\xa0") == 0; /* what stands for a space */
        TRY(set_token(c, item, key, strlen(key),
                      unknown && strcmp(unknown, key) == 0 ? TOK_UNKNOWN
                      : byte                               ? TOK_BYTE
                                                           : TOK_NORMAL));
    }
    json_array_foreach(added, i, item) {
        const json_t *content = json_object_get(item, "content"), *id = json_object_get(item, "id");
        const bool special = json_is_true(json_object_get(item, "special"));
        const json_int_t at = json_integer_value(id);
        const bool is_unknown = at >= 0 && (size_t)at < c->n_tokens && c->types[at] == TOK_UNKNOWN;
        if (json_string_value(content) == NULL) continue;
        TRY(set_token(c, id, json_string_value(content), json_string_length(content),
                      is_unknown ? TOK_UNKNOWN
                      : special  ? TOK_CONTROL
                                 : TOK_USER_DEFINED));
    }
    for (size_t id = 0; id < c->n_tokens; id++) { /* rows of the embedding that no token has */
        char name[32];
        if (c->tokens[id].text) continue;
        const int n = snprintf(name, sizeof name, "[PAD%zu]", id);
        c->tokens[id] = (gguf_string){arena_strndup(&c->memory, name, (size_t)n), (size_t)n};
        c->types[id] = TOK_UNUSED;
        if (c->tokens[id].text == NULL) return no_memory(c);
    }
    return 0;
}

/* Merges as "left right", and scores that put the tokens in the order of the first merge that makes them. */
static int read_merges(converter *c, const json_t *model) {
    const json_t *merges = json_object_get(model, "merges"), *vocab = json_object_get(model, "vocab"), *item;
    size_t i;
    buf text = BUF_INIT;
    c->n_merges = json_array_size(merges);
    c->merges = arena_array(&c->memory, c->n_merges, sizeof *c->merges);
    if (c->merges == NULL) return no_memory(c);
    for (size_t id = 0; id < c->n_tokens; id++) c->scores[id] = c->types[id] == TOK_NORMAL ? -(float)c->n_merges - 1.0f : 0.0f;
    json_array_foreach(merges, i, item) {
        const char *whole = json_string_value(item), *left = json_string_value(json_array_get(item, 0)),
                   *right = json_string_value(json_array_get(item, 1));
        buf_clear(&text);
        if (whole)
            buf_puts(&text, whole);
        else
            buf_printf(&text, "%s %s", left ? left : "", right ? right : "");
        char *copy = text.failed ? NULL : arena_strndup(&c->memory, text.data, text.n_bytes);
        c->merges[i] = (gguf_string){copy, text.n_bytes};
        const size_t n_left = whole ? strcspn(whole, " ") : strlen(left ? left : "");
        if (copy == NULL) break;
        memmove(text.data + n_left, text.data + n_left + 1, text.n_bytes - n_left);
        const json_int_t id = json_integer_value(json_object_get(vocab, text.data));
        if (c->scores[id] == -(float)c->n_merges - 1.0f) c->scores[id] = -(float)i;
    }
    const bool whole = i == c->n_merges;
    buf_free(&text);
    return whole ? 0 : no_memory(c);
}

/* ---- candidates
 * ---------------------------------------------------------------------------------------------------------------------- */

static bool same(const tok *a, const tok *b, const char *text, bool add_special, bool parse_special) {
    enum { MAX_IDS = 4096 };
    int32_t x[MAX_IDS], y[MAX_IDS];
    const int64_t n = tok_encode(a, text, strlen(text), add_special, parse_special, x, MAX_IDS);
    return n >= 0 && n <= MAX_IDS && tok_encode(b, text, strlen(text), add_special, parse_special, y, MAX_IDS) == n &&
           memcmp(x, y, (size_t)n * sizeof *x) == 0;
}

/* Whether both tokenisers give the same ids, on the probes and around each added token. */
static bool agree(const converter *c, const tok *t) {
    for (size_t i = 0; i < sizeof probes / sizeof probes[0]; i++)
        for (int flags = 0; flags < 4; flags++)
            if (!same(c->reference, t, probes[i], flags & 1, flags & 2)) return false;
    size_t n_tried = 0;
    for (size_t id = 0; id < c->n_tokens && n_tried < 64; id++) {
        char text[256];
        if ((c->types[id] != TOK_CONTROL && c->types[id] != TOK_USER_DEFINED) || c->tokens[id].n_bytes > 200) continue;
        n_tried++;
        snprintf(text, sizeof text, "one%.*stwo %.*s three", (int)c->tokens[id].n_bytes, c->tokens[id].text,
                 (int)c->tokens[id].n_bytes, c->tokens[id].text);
        if (!same(c->reference, t, text, true, true)) return false;
    }
    return true;
}

static int open_candidate(const converter *c, const candidate *k, tok **out) {
    tok_string *tokens = calloc(c->n_tokens, sizeof *tokens), *merges = calloc(c->n_merges + 1, sizeof *merges);
    int rc = WEIR_E_NOMEM;
    *out = NULL;
    if (tokens && merges) {
        for (size_t i = 0; i < c->n_tokens; i++) tokens[i] = (tok_string){c->tokens[i].text, c->tokens[i].n_bytes};
        for (size_t i = 0; i < c->n_merges; i++) merges[i] = (tok_string){c->merges[i].text, c->merges[i].n_bytes};
        const char *pre = k->pre ? k->pre : "default";
        int32_t unknown = -1;
        for (size_t i = 0; i < c->n_tokens; i++) unknown = c->types[i] == TOK_UNKNOWN ? (int32_t)i : unknown;
        const tok_vocab v = {.model = {k->model, strlen(k->model)},
                             .pre = {pre, strlen(pre)},
                             .n_tokens = c->n_tokens,
                             .tokens = tokens,
                             .scores = c->scores,
                             .types = c->types,
                             .n_merges = c->n_merges,
                             .merges = merges,
                             .bos = tok_bos(c->reference),
                             .eos = tok_eos(c->reference),
                             .eot = -1,
                             .eom = -1,
                             .unk = unknown,
                             .sep = -1,
                             .pad = -1,
                             .mask = -1,
                             .nl = -1,
                             .add_bos = tok_adds_bos(c->reference),
                             .add_eos = tok_adds_eos(c->reference),
                             .add_space_prefix = k->space_prefix,
                             .has_add_bos = true,
                             .has_add_eos = true,
                             .has_add_space_prefix = true};
        rc = tok_open(out, &v, NULL);
    }
    free(tokens);
    free(merges);
    return rc;
}

static int find_candidate(const converter *c, const candidate **out) {
    const char *wanted = c->has_bytes && !c->has_alphabet ? "llama" : "gpt2";
    for (size_t i = 0; i < sizeof candidates / sizeof candidates[0]; i++) {
        tok *t;
        if (strcmp(candidates[i].model, wanted) != 0) continue;
        const int rc = open_candidate(c, &candidates[i], &t);
        if (rc == WEIR_E_NOMEM) return no_memory(c);
        const bool fits = rc == 0 && agree(c, t);
        tok_close(&t);
        if (!fits) continue;
        *out = &candidates[i];
        return 0;
    }
    return refuse(c, wanted[0] == 'g' ? "its pre-tokenizer equals none of the known ones"
                                      : "it does not behave as a SentencePiece vocabulary");
}

static void put_keys(const converter *c, const candidate *k) {
    gguf_build *b = c->m->builder;
    gguf_build_string(b, "tokenizer.ggml.model", k->model, strlen(k->model));
    gguf_build_string(b, "tokenizer.ggml.pre", k->pre ? k->pre : "default", strlen(k->pre ? k->pre : "default"));
    gguf_build_strings(b, "tokenizer.ggml.tokens", c->tokens, c->n_tokens);
    gguf_build_i32s(b, "tokenizer.ggml.token_type", c->types, c->n_tokens);
    if (k->pre)
        gguf_build_strings(b, "tokenizer.ggml.merges", c->merges, c->n_merges);
    else
        gguf_build_f32s(b, "tokenizer.ggml.scores", c->scores, c->n_tokens);
    for (size_t i = 0; i < c->n_tokens; i++)
        if (c->types[i] == TOK_UNKNOWN) gguf_build_u32(b, "tokenizer.ggml.unknown_token_id", (uint32_t)i);
    gguf_build_bool(b, "tokenizer.ggml.add_bos_token", tok_adds_bos(c->reference));
    gguf_build_bool(b, "tokenizer.ggml.add_eos_token", tok_adds_eos(c->reference));
    if (k->pre == NULL) gguf_build_bool(b, "tokenizer.ggml.add_space_prefix", k->space_prefix);
}

static int convert(converter *c, const json_t *root, const char *text, size_t n_bytes, int32_t bos, int32_t eos) {
    const tok_vocab extra = {.bos = bos, .eos = eos, .eot = -1, .eom = -1, .unk = -1, .sep = -1};
    const json_t *model = json_object_get(root, "model");
    const candidate *found = NULL;
    TRY(tok_open_json(&c->reference, text, n_bytes, &extra, c->m->err)); /* what this accepts is well-formed */
    if (json_object_get(model, "merges") == NULL) return refuse_model(c, model);
    TRY(read_tokens(c, root));
    TRY(read_merges(c, model));
    TRY(find_candidate(c, &found));
    put_keys(c, found);
    if (bos < 0 && tok_bos(c->reference) >= 0)
        gguf_build_u32(c->m->builder, "tokenizer.ggml.bos_token_id", (uint32_t)tok_bos(c->reference));
    return 0;
}

int hf_put_ggml_vocab(hf_model *m, const json_t *root, const char *text, size_t n_bytes, int32_t bos, int32_t eos) {
    converter c = {.m = m};
    const int rc = convert(&c, root, text, n_bytes, bos, eos);
    tok_close(&c.reference);
    arena_free(&c.memory);
    return rc;
}
