/* Opening a tokeniser, look-ups, and the road of a text: special tokens first, then each fragment between them through the
 * algorithm of the vocabulary's kind. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "tok/tok_internal.h"

enum { MAX_TEXT_BYTES = 1 << 30 };

/* ---- opening ------------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *model;
    tok_kind kind;
    const char *pre;            /* the pre-tokeniser it implies, or NULL */
    int32_t bos, eos, unk, sep; /* where the file does not say */
    bool add_bos, add_eos, add_space_prefix;
} models[] = {
    {"llama", TOK_SPM, NULL, 1, 2, 0, -1, true, false, true},
    {"gpt2", TOK_BPE, NULL, -1, -1, -1, -1, false, false, false},
    {"gemma4", TOK_BPE, "gemma4", -1, -1, -1, -1, false, false, false},
    {"whitespace", TOK_BPE, "whitespace", -1, -1, -1, -1, false, false, false},
    {"bert", TOK_WORDPIECE, NULL, 101, -1, 100, 102, true, false, false},
    {"t5", TOK_UNIGRAM, NULL, -1, 1, 2, -1, false, true, false},
};

static int no_memory(weir_error *err) { return error_set(err, WEIR_E_NOMEM, "tokenizer.ggml", "out of memory"); }

int tok_copy_tokens(tok *t, const tok_vocab *vocab, weir_error *err) {
    static const uint16_t attribute_of_type[] = {
        0, TOK_IS_NORMAL, TOK_IS_UNKNOWN, TOK_IS_CONTROL, TOK_IS_USER_DEFINED, TOK_IS_UNUSED, TOK_IS_BYTE};
    const size_t n = vocab->n_tokens;
    FAIL_IF(n == 0, err, WEIR_E_FORMAT, "tokenizer.ggml.tokens", "no tokens; a vocabulary needs at least one");
    FAIL_IF(n > INT32_MAX / 2, err, WEIR_E_FORMAT, "tokenizer.ggml.tokens", "%zu tokens are too many", n);
    t->n_vocab = (int32_t)n;
    t->texts = arena_array(&t->memory, n, sizeof *t->texts);
    t->pieces = arena_array(&t->memory, n, sizeof *t->pieces);
    t->attributes = arena_array(&t->memory, n, sizeof *t->attributes);
    t->scores = arena_array(&t->memory, n, sizeof *t->scores);
    if (t->texts == NULL || t->pieces == NULL || t->attributes == NULL || t->scores == NULL) return no_memory(err);
    if (!tok_strings_reserve(&t->by_text, t->texts, n)) return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        const int32_t type = vocab->types ? vocab->types[i] : TOK_NORMAL;
        const tok_string s = vocab->tokens[i];
        const char *copy = arena_strndup(&t->memory, s.text, s.n_bytes);
        if (copy == NULL) return no_memory(err);
        t->texts[i] = (tok_string){copy, s.n_bytes};
        t->attributes[i] = type > 0 && type <= TOK_BYTE ? attribute_of_type[type] : 0;
        t->scores[i] = vocab->scores ? vocab->scores[i] : 0.0f;
        if (s.n_bytes > t->longest) t->longest = s.n_bytes;
        tok_strings_add(&t->by_text, t->texts, (int32_t)i);
    }
    return 0;
}

/* An id that the file gives must be of a token; the default for one that it does not give counts only if it is. */
static int take_id(const tok *t, int32_t given, int32_t fallback, const char *key, int32_t *out, weir_error *err) {
    FAIL_IF(given < -1 || given >= t->n_vocab, err, WEIR_E_FORMAT, key, "token id %d is not in 0..%d", given, t->n_vocab - 1);
    *out = given >= 0 ? given : fallback < t->n_vocab ? fallback : -1;
    return 0;
}

static int take_ids(tok *t, const tok_vocab *vocab, size_t model, weir_error *err) {
    int32_t ignored;
    TRY(take_id(t, vocab->bos, models[model].bos, "tokenizer.ggml.bos_token_id", &t->bos, err));
    TRY(take_id(t, vocab->eos, models[model].eos, "tokenizer.ggml.eos_token_id", &t->eos, err));
    TRY(take_id(t, vocab->unk, models[model].unk, "tokenizer.ggml.unknown_token_id", &t->unk, err));
    TRY(take_id(t, vocab->sep, models[model].sep, "tokenizer.ggml.seperator_token_id", &t->sep, err));
    TRY(take_id(t, vocab->eot, -1, "tokenizer.ggml.eot_token_id", &ignored, err));
    TRY(take_id(t, vocab->eom, -1, "tokenizer.ggml.eom_token_id", &ignored, err));
    for (size_t i = 0; vocab->fim && i < TOK_N_FIM; i++)
        TRY(take_id(t, vocab->fim[i], -1, "tokenizer.ggml.fim_*_token_id", &ignored, err));
    return 0;
}

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

/* The byte that a token "<0xAB>" names; -1 if it is not of that form. */
static int named_byte(tok_string s) {
    if (s.n_bytes != 6 || memcmp(s.text, "<0x", 3) != 0 || s.text[5] != '>') return -1;
    const int high = hex_digit(s.text[3]), low = hex_digit(s.text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static void find_byte_tokens(tok *t) {
    static const char hex[] = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; byte++) {
        const char name[] = {'<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>'}, plain = (char)byte;
        t->byte_ids[byte] = tok_find(t, name, sizeof name);
        if (t->byte_ids[byte] < 0) t->byte_ids[byte] = tok_find(t, &plain, 1);
    }
}

static bool escapes_spaces(const tok *t) { return t->kind != TOK_BPE || t->traits.escape_spaces; }

/* What token `id` looks like in text. */
static bool make_piece(tok *t, int32_t id) {
    const tok_string s = t->texts[id];
    const uint16_t is = t->attributes[id];
    const int byte = is & TOK_IS_BYTE ? named_byte(s) : -1;
    t->pieces[id] = s;
    if (is & (TOK_IS_CONTROL | TOK_IS_UNKNOWN | TOK_IS_USER_DEFINED)) return true;
    if (!(is & (TOK_IS_NORMAL | TOK_IS_BYTE))) {
        t->pieces[id].n_bytes = 0; /* unused, or of a type that does not exist */
        return true;
    }
    if (byte < 0 && !escapes_spaces(t)) {
        if (t->symbols[id].n_bytes) t->pieces[id] = t->symbols[id];
        return true; /* text that is not in the alphabet of bytes stands for itself */
    }
    char *out = arena_alloc(&t->memory, s.n_bytes ? s.n_bytes : 1);
    if (out == NULL) return false;
    size_t n = 0;
    if (byte >= 0) out[n++] = (char)byte;
    for (size_t i = 0; byte < 0 && i < s.n_bytes; n++) {
        const bool space = s.n_bytes - i >= 3 && memcmp(s.text + i, TOK_SPACE, 3) == 0;
        out[n] = space ? ' ' : s.text[i];
        i += space ? 3 : 1;
    }
    t->pieces[id] = (tok_string){out, n};
    return true;
}

static int open_kind(tok *t, const tok_vocab *vocab, weir_error *err) {
    switch (t->kind) {
    case TOK_SPM: return tok_spm_open(t, err);
    case TOK_BPE: return tok_bpe_open(t, vocab, err);
    case TOK_WORDPIECE: return tok_wordpiece_open(t, vocab, err);
    default: return tok_unigram_open(t, vocab, err);
    }
}

static int open_vocab(tok *t, const tok_vocab *vocab, size_t model, weir_error *err) {
    const char *pre = models[model].pre;
    t->kind = models[model].kind;
    TRY(tok_copy_tokens(t, vocab, err));
    TRY(take_ids(t, vocab, model, err));
    if (t->kind == TOK_BPE) TRY(tok_pre_open(&t->pre, pre ? (tok_string){pre, strlen(pre)} : vocab->pre, &t->traits, err));
    t->add_bos = (vocab->has_add_bos ? vocab->add_bos : models[model].add_bos || t->traits.add_bos) || t->traits.force_bos;
    t->add_eos = vocab->has_add_eos ? vocab->add_eos : models[model].add_eos;
    t->add_space_prefix = vocab->has_add_space_prefix ? vocab->add_space_prefix : models[model].add_space_prefix;
    t->remove_extra_whitespaces = vocab->remove_extra_whitespaces;
    find_byte_tokens(t);
    TRY(tok_special_open(t, vocab, err));
    TRY(open_kind(t, vocab, err));
    for (int32_t id = 0; id < t->n_vocab; id++)
        if (!make_piece(t, id)) return no_memory(err);
    return 0;
}

const char *tok_model_name(size_t index) { return index < sizeof models / sizeof models[0] ? models[index].model : NULL; }

int tok_open(tok **out, const tok_vocab *vocab, weir_error *err) {
    *out = NULL;
    size_t model = 0;
    const size_t n_models = sizeof models / sizeof models[0];
    while (model < n_models && (strlen(models[model].model) != vocab->model.n_bytes ||
                                memcmp(models[model].model, vocab->model.text, vocab->model.n_bytes) != 0))
        model++;
    FAIL_IF(model == n_models, err, WEIR_E_UNSUPPORTED, "tokenizer.ggml.model",
            "tokeniser '%.*s' is not supported; supported are llama (SPM), gpt2 (byte-level BPE), gemma4, whitespace, "
            "bert (WordPiece) and t5 (Unigram)",
            (int)(vocab->model.n_bytes < 40 ? vocab->model.n_bytes : 40), vocab->model.text ? vocab->model.text : "");
    tok *t = calloc(1, sizeof *t);
    if (t == NULL) return no_memory(err);
    int rc = open_vocab(t, vocab, model, err);
    if (rc == 0) *out = t;
    else tok_close(&t);
    return rc;
}

void tok_close(tok **handle) {
    tok *t = *handle;
    if (t == NULL) return;
    tok_json_free(t->json);
    tok_pre_close(&t->pre);
    tok_strings_free(&t->by_text);
    tok_strings_free(&t->by_symbol);
    tok_pairs_free(&t->pairs);
    tok_trie_free(&t->special[false]);
    tok_trie_free(&t->special[true]);
    tok_trie_free(&t->words);
    free(t->symbols);
    arena_free(&t->memory);
    free(t);
    *handle = NULL;
}

/* ---- look-ups ----------------------------------------------------------------------------------------------------------- */

static bool has(const tok *t, int32_t id, uint16_t attributes) {
    return id >= 0 && id < t->n_vocab && (t->attributes[id] & attributes);
}

int32_t tok_n_vocab(const tok *t) { return t->n_vocab; }
int32_t tok_bos(const tok *t) { return t->bos; }
int32_t tok_eos(const tok *t) { return t->eos; }
bool tok_is_eog(const tok *t, int32_t id) { return has(t, id, TOK_IS_EOG); }
bool tok_is_control(const tok *t, int32_t id) { return has(t, id, TOK_IS_CONTROL); }
bool tok_adds_bos(const tok *t) { return t->add_bos && t->bos >= 0; }
bool tok_adds_eos(const tok *t) { return t->add_eos && t->eos >= 0; }

int32_t tok_find(const tok *t, const char *text, size_t n_bytes) {
    return tok_strings_find(&t->by_text, t->texts, text, n_bytes);
}

/* ---- encoding ----------------------------------------------------------------------------------------------------------- */

bool tok_work_grow(tok_work *w, void **array, size_t *capacity, size_t n, size_t size) {
    if (n <= *capacity) return true;
    size_t grown = *capacity + *capacity / 2;
    if (grown < n) grown = n;
    if (grown < 64) grown = 64;
    void *memory = grown <= SIZE_MAX / size ? realloc(*array, grown * size) : NULL;
    if (memory == NULL) {
        w->failed = true;
        return false;
    }
    *array = memory;
    *capacity = grown;
    return true;
}

static void encode_fragment(const tok *t, tok_work *w, const char *text, size_t n_bytes, bool first) {
    if (n_bytes == 0) return;
    switch (t->kind) {
    case TOK_SPM: tok_spm_encode(t, w, text, n_bytes, first); break;
    case TOK_BPE: tok_bpe_encode(t, w, text, n_bytes); break;
    case TOK_WORDPIECE: tok_wordpiece_encode(t, w, text, n_bytes); break;
    case TOK_UNIGRAM: tok_unigram_encode(t, w, text, n_bytes); break;
    }
}

static bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Cuts out special tokens, leftmost first and of those the longest, and encodes what is between them. */
static void encode_text(const tok *t, tok_work *w, const char *text, size_t n_bytes, bool parse_special) {
    const tok_trie *special = &t->special[parse_special];
    size_t begin = 0, length = 0;
    bool first = true;
    for (size_t at = 0; at < n_bytes && !w->failed;) {
        if (!special->starts[(unsigned char)text[at]]) {
            at++;
            continue;
        }
        const int32_t id = tok_trie_longest(special, text + at, n_bytes - at, &length);
        if (id < 0) {
            at++;
            continue;
        }
        size_t end = at;
        while ((t->attributes[id] & TOK_HAS_LSTRIP) && end > begin && is_ascii_space(text[end - 1])) end--;
        encode_fragment(t, w, text + begin, end - begin, first);
        tok_emit(w, id);
        at += length;
        while ((t->attributes[id] & TOK_HAS_RSTRIP) && at < n_bytes && is_ascii_space(text[at])) at++;
        begin = at;
        first = true;
    }
    if (!w->failed) encode_fragment(t, w, text + begin, n_bytes - begin, first);
}

static void encode_vocab(const tok *t, tok_work *w, const char *text, size_t n_bytes, bool add_special, bool parse_special) {
    if (add_special && tok_adds_bos(t)) tok_emit(w, t->bos);
    encode_text(t, w, text, n_bytes, parse_special);
    if (add_special && t->kind == TOK_WORDPIECE) tok_emit(w, t->sep);
    else if (add_special && tok_adds_eos(t)) tok_emit(w, t->eos);
}

int64_t tok_encode(const tok *t, const char *text, size_t n_bytes, bool add_special, bool parse_special, int32_t *ids,
                   size_t capacity) {
    if (n_bytes > MAX_TEXT_BYTES) return WEIR_E_LIMIT;
    tok_work w = {.ids = ids, .capacity = capacity};
    if (t->json) tok_json_encode(t, &w, text, n_bytes, add_special, parse_special);
    else encode_vocab(t, &w, text, n_bytes, add_special, parse_special);
    free(w.symbols);
    free(w.pairs);
    free(w.group);
    tok_pre_work_free(&w);
    buf_free(&w.text);
    return w.failed ? WEIR_E_NOMEM : w.n_ids;
}

/* ---- decoding ----------------------------------------------------------------------------------------------------------- */

const char *tok_piece(const tok *t, int32_t id, bool special, size_t *n_bytes) {
    *n_bytes = 0;
    if (id < 0 || id >= t->n_vocab) return NULL;
    if (!special && (t->json ? tok_json_hides(t, id) : has(t, id, TOK_IS_CONTROL | TOK_IS_UNKNOWN))) return "";
    *n_bytes = t->pieces[id].n_bytes;
    return t->pieces[id].text;
}

/* Which of the spaces that WordPiece put between words go away: before . , ! ? and in contractions such as "it 's". */
static bool is_glued(const char *text, size_t n_bytes) {
    static const char *const tails[] = {".", ",", "!", "?", "'s", "'m", "'re", "'ve", "n't", "' "};
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++)
        if (n_bytes >= strlen(tails[i]) && memcmp(text, tails[i], strlen(tails[i])) == 0) return true;
    return false;
}

/* Cleans out->data from `begin` on. A lone apostrophe loses the spaces on both sides. */
static void clean_up(buf *out, size_t begin) {
    size_t n = begin;
    char before[2] = {0, 0}; /* the two characters before, which may be overwritten already */
    for (size_t at = begin; at < out->n_bytes; at++) {
        const char c = out->data[at];
        const bool after_apostrophe = before[0] == ' ' && before[1] == '\'';
        if (c != ' ' || !(at == begin || after_apostrophe || is_glued(out->data + at + 1, out->n_bytes - at - 1)))
            out->data[n++] = c;
        before[0] = before[1];
        before[1] = c;
    }
    if (out->data) out->data[out->n_bytes = n] = '\0';
}

int tok_decode(const tok *t, const int32_t *ids, size_t n, bool special, buf *out, weir_error *err) {
    const size_t begin = out->n_bytes;
    bool strip = t->add_space_prefix && (t->kind == TOK_SPM || t->kind == TOK_UNIGRAM);
    for (size_t i = 0; i < n; i++)
        FAIL_IF(ids[i] < 0 || ids[i] >= t->n_vocab, err, WEIR_E_INVALID, "tokens", "token %zu: id %d is not in 0..%d", i,
                ids[i], t->n_vocab - 1);
    if (t->json) {
        FAIL_IF(tok_json_decode(t, ids, n, special, out) < 0, err, WEIR_E_NOMEM, "tokens",
                "the text of %zu tokens does not fit in memory", n);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        size_t n_bytes;
        const char *piece = tok_piece(t, ids[i], special, &n_bytes);
        if (n_bytes == 0) continue;
        const bool prefix = strip && piece[0] == ' ' && has(t, ids[i], TOK_IS_NORMAL);
        buf_append(out, piece + prefix, n_bytes - prefix);
        strip = false;
    }
    if (t->kind == TOK_WORDPIECE && !out->failed) clean_up(out, begin);
    FAIL_IF(out->failed, err, WEIR_E_NOMEM, "tokens", "the text of %zu tokens does not fit in memory", n);
    return 0;
}
