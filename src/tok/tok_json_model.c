/* The models of tokenizer.json (BPE, Unigram, WordPiece, WordLevel) and the added tokens: reading the vocabulary, and turning a
 * piece of text into ids. Merging is tok_merge's. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_json_internal.h"

enum { MAX_ID = 1 << 24 }; /* sixteen times the largest vocabularies; an absurd id must not buy an absurd table */

/* ---- pieces to ids ----------------------------------------------------------------------------------------------------------
 */

static int32_t look_up(const tok *t, const char *text, size_t n_bytes) {
    return n_bytes > t->longest ? -1 : tok_strings_find(&t->json->vocab, t->texts, text, n_bytes);
}

static void push_symbol(tok_work *w, int32_t id, size_t n_bytes) {
    if (!tok_work_grow(w, (void **)&w->symbols, &w->symbols_capacity, w->n_symbols + 1, sizeof *w->symbols)) return;
    tok_symbol *s = &w->symbols[w->n_symbols++];
    *s = (tok_symbol){.n_bytes = (uint32_t)n_bytes, .id = id};
}

/* Whether all bytes have tokens. */
static bool has_bytes(const tok *t, const char *bytes, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if (t->byte_ids[(unsigned char)bytes[i]] < 0) return false;
    return true;
}

/* The token of one character, which may be written with the prefix that marks the inside of a word and the suffix of its end.
 */
static int32_t character_token(const tok *t, tok_work *w, tok_string *c, bool inside, bool last) {
    const tok_json *j = t->json;
    if ((inside && j->prefix.n_bytes) || (last && j->suffix.n_bytes)) {
        buf_clear(&w->text);
        if (inside) buf_append(&w->text, j->prefix.text, j->prefix.n_bytes);
        buf_append(&w->text, c->text, c->n_bytes);
        if (last) buf_append(&w->text, j->suffix.text, j->suffix.n_bytes);
        w->failed |= w->text.failed;
        if (w->failed) return -1;
        *c = (tok_string){w->text.data, w->text.n_bytes};
    }
    return look_up(t, c->text, c->n_bytes);
}

/* Characters to the symbols that merging starts from. As in `tokenizers`, bytes that stand in for a character do not end a run
 * of unknown ones. */
static void make_symbols(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    const tok_json *j = t->json;
    size_t unknown = 0; /* bytes of the unknown characters before this one */
    w->n_symbols = 0;
    for (size_t at = 0, length; at < n_bytes && !w->failed; at += length) {
        uint32_t ignored;
        length = utf8_decode(text + at, n_bytes - at, &ignored);
        tok_string c = {text + at, length};
        const int32_t id = character_token(t, w, &c, at > 0, at + length == n_bytes);
        if (id >= 0) {
            if (unknown) push_symbol(w, j->unk, unknown);
            unknown = 0;
            push_symbol(w, id, length);
        } else if (j->byte_fallback && has_bytes(t, c.text, c.n_bytes)) {
            for (size_t i = 0; i < c.n_bytes; i++) push_symbol(w, t->byte_ids[(unsigned char)c.text[i]], 1);
        } else if (j->unk >= 0) {
            if (unknown && !j->fuse_unk) push_symbol(w, j->unk, unknown);
            unknown = j->fuse_unk ? unknown + length : length;
        }
    }
    if (unknown) push_symbol(w, j->unk, unknown);
}

static void encode_bpe(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    if (t->json->ignore_merges) {
        const int32_t id = look_up(t, text, n_bytes);
        if (id >= 0) {
            tok_emit(w, id);
            return;
        }
    }
    make_symbols(t, w, text, n_bytes);
    if (w->failed) return;
    tok_merge(t, w, text);
    for (size_t i = 0; i < w->n_symbols; i++) tok_emit(w, w->symbols[i].id);
}

static void encode_wordpiece(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    const tok_json *j = t->json;
    const int64_t before = w->n_ids;
    bool covered = utf8_count(text, n_bytes) <= j->max_word;
    uint32_t inside = 0; /* where continuations begin in the trie */
    bool has_inside = true;
    for (size_t i = 0; i < j->prefix.n_bytes && has_inside; i++) {
        inside = tok_trie_step(&t->words, inside, (unsigned char)j->prefix.text[i]);
        has_inside = inside != 0;
    }
    for (size_t at = 0; covered && at < n_bytes;) {
        uint32_t node = at ? inside : 0;
        int32_t id = -1;
        size_t end = at;
        if (at && !has_inside) node = UINT32_MAX;
        for (size_t i = at; i < n_bytes && node != UINT32_MAX; i++) {
            node = tok_trie_step(&t->words, node, (unsigned char)text[i]);
            if (node == 0) break;
            if (t->words.nodes[node].id < 0) continue;
            id = t->words.nodes[node].id;
            end = i + 1;
        }
        covered = id >= 0;
        if (covered) tok_emit(w, id);
        at = end;
    }
    if (covered) return;
    w->n_ids = before;
    tok_emit(w, j->unk);
}

/* Viterbi (Kudo 2018): the best way to cover what ends at each byte. */
typedef struct json_cover {
    double score;
    uint32_t start; /* UINT32_MAX: nothing ends here */
    bool unknown;
} json_cover;

static void improve(json_cover *c, double score, size_t start, bool unknown) {
    if (c->start == UINT32_MAX || score > c->score) *c = (json_cover){score, (uint32_t)start, unknown};
}

static void cover(const tok *t, const char *text, size_t n_bytes, json_cover *best) {
    const tok_json *j = t->json;
    for (size_t at = 0, length; at < n_bytes; at += length) {
        uint32_t node = 0, ignored;
        bool single = false; /* whether a token covers exactly this character */
        length = utf8_decode(text + at, n_bytes - at, &ignored);
        for (size_t end = at; end < n_bytes && (node = tok_trie_step(&t->words, node, (unsigned char)text[end])) != 0; end++) {
            const int32_t id = t->words.nodes[node].id;
            if (id < 0) continue;
            single = single || end + 1 - at == length;
            improve(&best[end + 1], best[at].score + j->scores[id], at, id == j->unk);
        }
        if (!single) improve(&best[at + length], best[at].score + j->unknown_score, at, true);
    }
}

static void emit_covered(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    const int32_t id = look_up(t, text, n_bytes);
    if (id >= 0) {
        tok_emit(w, id);
    } else if (t->json->byte_fallback && has_bytes(t, text, n_bytes)) {
        for (size_t i = 0; i < n_bytes; i++) tok_emit(w, t->byte_ids[(unsigned char)text[i]]);
    } else {
        tok_emit(w, t->json->unk);
    }
}

static void encode_unigram(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    json_cover *best = malloc((n_bytes + 1) * sizeof *best);
    uint32_t *starts = malloc((n_bytes + 1) * sizeof *starts);
    if (best == NULL || starts == NULL) {
        w->failed = true;
    } else {
        best[0] = (json_cover){0, 0, false};
        for (size_t i = 1; i <= n_bytes; i++) best[i].start = UINT32_MAX;
        cover(t, text, n_bytes, best);
        size_t n = 0;
        for (size_t end = n_bytes; end > 0; n++) { /* from the end; neighbouring unknown ones are one */
            size_t start = best[end].start;
            while (best[end].unknown && start > 0 && best[start].unknown) start = best[start].start;
            starts[n] = (uint32_t)start;
            end = start;
        }
        for (size_t i = n; i-- > 0;) {
            const size_t end = i ? starts[i - 1] : n_bytes;
            emit_covered(t, w, text + starts[i], end - starts[i]);
        }
    }
    free(best);
    free(starts);
}

void json_model_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    if (n_bytes == 0 || w->failed) return;
    switch (t->json->model) {
    case JSON_BPE:
        encode_bpe(t, w, text, n_bytes);
        break;
    case JSON_UNIGRAM:
        encode_unigram(t, w, text, n_bytes);
        break;
    case JSON_WORDPIECE:
        encode_wordpiece(t, w, text, n_bytes);
        break;
    case JSON_WORDLEVEL: {
        const int32_t id = look_up(t, text, n_bytes);
        tok_emit(w, id >= 0 ? id : t->json->unk);
    }
    }
}

/* ---- reading the vocabulary
 * -------------------------------------------------------------------------------------------------- */

typedef struct vocabulary {
    tok_string *texts;           /* [n]; text NULL: no such token */
    size_t n, capacity, n_model; /* n_model: ids below belong to the model, as far as they are there */
} vocabulary;

static int set_token(json_reader *r, vocabulary *v, json_int_t id, tok_string text) {
    if (id < 0 || id >= MAX_ID)
        return json_fail(r, WEIR_E_FORMAT, NULL, "id %lld of token '%.40s' is not in 0..%d", (long long)id, text.text,
                         MAX_ID - 1);
    if ((size_t)id >= v->capacity) {
        const size_t capacity = (size_t)id + (size_t)id / 2 + 256;
        tok_string *grown = realloc(v->texts, capacity * sizeof *grown);
        if (grown == NULL) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
        memset(grown + v->capacity, 0, (capacity - v->capacity) * sizeof *grown);
        v->texts = grown;
        v->capacity = capacity;
    }
    tok_string *slot = &v->texts[id];
    if (slot->text && (slot->n_bytes != text.n_bytes || memcmp(slot->text, text.text, text.n_bytes) != 0))
        return json_fail(r, WEIR_E_FORMAT, NULL, "the tokens '%.40s' and '%.40s' both have the id %lld", slot->text, text.text,
                         (long long)id);
    *slot = text;
    if ((size_t)id >= v->n) v->n = (size_t)id + 1;
    return 0;
}

/* {"token": id, ...} */
static int read_object_vocab(json_reader *r, const json_t *model, vocabulary *v) {
    json_t *object = json_object_get(model, "vocab");
    if (!json_is_object(object) || json_object_size(object) == 0)
        return json_fail(r, WEIR_E_FORMAT, "vocab", "is no object of tokens and their ids");
    const size_t before = json_enter(r, "vocab", 0);
    for (void *i = json_object_iter(object); i; i = json_object_iter_next(object, i)) {
        const json_t *id = json_object_iter_value(i);
        const char *key = json_object_iter_key(i);
        if (!json_is_integer(id)) return json_fail(r, WEIR_E_FORMAT, NULL, "the id of '%.40s' is no integer", key);
        TRY(set_token(r, v, json_integer_value(id), (tok_string){key, json_object_iter_key_len(i)}));
    }
    json_leave(r, before);
    v->n_model = v->n;
    return 0;
}

/* [["token", score], ...] */
static int read_unigram_vocab(json_reader *r, const json_t *model, vocabulary *v, tok_json *j) {
    const json_t *list = json_object_get(model, "vocab"), *item;
    const size_t n = json_array_size(list);
    if (n == 0) return json_fail(r, WEIR_E_FORMAT, "vocab", "is no array of tokens and their scores");
    j->scores = arena_array(r->memory, n, sizeof *j->scores);
    if (j->scores == NULL) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    size_t i;
    double least = DBL_MAX;
    const size_t before = json_enter(r, "vocab", 0);
    json_array_foreach(list, i, item) {
        const json_t *text = json_array_get(item, 0), *score = json_array_get(item, 1);
        const double value = json_number_value(score);
        if (!json_is_string(text) || !json_is_number(score) || !isfinite(value)) {
            json_enter(r, NULL, i);
            return json_fail(r, WEIR_E_FORMAT, NULL, "is not [token, score]");
        }
        TRY(set_token(r, v, (json_int_t)i, (tok_string){json_string_value(text), json_string_length(text)}));
        j->scores[i] = value;
        least = value < least ? value : least;
    }
    json_leave(r, before);
    j->unknown_score = least - 10.0; /* as SentencePiece: below the least probable token */
    v->n_model = v->n;
    return 0;
}

static int read_flag(json_reader *r, const json_t *object, const char *key, bool *out) {
    const int rc = json_read_bool(r, object, key, out);
    return rc < 0 ? rc : 0;
}

/* Of tokens that are equal once they are normalised the first is found: special ones come first, then the file's order, which
 * is that of the ids. */
static int special_first(const void *a, const void *b) {
    const json_added *x = a, *y = b;
    if (x->special != y->special) return x->special ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int read_added(json_reader *r, const json_t *root, tok_json *j, vocabulary *v) {
    const json_t *list = json_object_get(root, "added_tokens"), *item;
    if (list == NULL || json_is_null(list)) return 0;
    if (!json_is_array(list)) return json_fail(r, WEIR_E_FORMAT, "added_tokens", "is no array");
    j->added = arena_array(r->memory, json_array_size(list) + 1, sizeof *j->added);
    if (j->added == NULL) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    size_t i;
    const size_t whole = json_enter(r, "added_tokens", 0);
    json_array_foreach(list, i, item) {
        json_added *a = &j->added[j->n_added];
        const size_t before = json_enter(r, NULL, i);
        size_t id = 0;
        *a = (json_added){.normalized = true};
        int found = json_read_size(r, item, "id", 0, MAX_ID - 1, &id);
        TRY(found);
        if (!found) return json_fail(r, WEIR_E_FORMAT, "id", "is missing");
        TRY(json_need_text(r, item, "content", &a->content));
        a->id = (int32_t)id;
        TRY(read_flag(r, item, "special", &a->special));
        a->normalized = !a->special;
        TRY(read_flag(r, item, "normalized", &a->normalized));
        TRY(read_flag(r, item, "lstrip", &a->lstrip));
        TRY(read_flag(r, item, "rstrip", &a->rstrip));
        TRY(read_flag(r, item, "single_word", &a->single_word));
        TRY(set_token(r, v, (json_int_t)id, a->content));
        TRY(json_keep(r, &a->content));
        if (a->content.n_bytes) j->n_added++;
        json_leave(r, before);
    }
    json_leave(r, whole);
    qsort(j->added, j->n_added, sizeof *j->added, special_first);
    return 0;
}

/* A token that the model names by its text; -1 if it names none. */
static int named_token(json_reader *r, const tok *t, const json_t *model, const char *key, int32_t *out) {
    tok_string name;
    const int found = json_read_text(r, model, key, &name);
    *out = -1;
    if (found <= 0) return found;
    *out = look_up(t, name.text, name.n_bytes);
    return *out < 0 ? json_fail(r, WEIR_E_FORMAT, key, "'%.40s' is not in the vocabulary", name.text) : 0;
}

/* One merge: "left right" or [left, right]. */
static int read_merge(json_reader *r, const json_t *item, size_t rank, tok *t, buf *scratch) {
    tok_string left, right;
    if (json_is_array(item) && json_array_size(item) == 2 && json_is_string(json_array_get(item, 0)) &&
        json_is_string(json_array_get(item, 1))) {
        const json_t *a = json_array_get(item, 0), *b = json_array_get(item, 1);
        left = (tok_string){json_string_value(a), json_string_length(a)};
        right = (tok_string){json_string_value(b), json_string_length(b)};
    } else {
        const char *text = json_string_value(item), *space = text ? strchr(text, ' ') : NULL;
        if (space == NULL || strchr(space + 1, ' ')) return json_fail(r, WEIR_E_FORMAT, NULL, "is not two tokens");
        left = (tok_string){text, (size_t)(space - text)};
        right = (tok_string){space + 1, json_string_length(item) - left.n_bytes - 1};
    }
    const size_t skip = t->json->prefix.n_bytes; /* the mark of a word's inside stands in the second part only */
    const int32_t first = look_up(t, left.text, left.n_bytes), second = look_up(t, right.text, right.n_bytes);
    const tok_string missing = first < 0 ? left : right;
    if (first < 0 || second < 0)
        return json_fail(r, WEIR_E_FORMAT, NULL, "'%.*s' is not in the vocabulary",
                         (int)(missing.n_bytes < 40 ? missing.n_bytes : 40), missing.text);
    if (right.n_bytes < skip) return json_fail(r, WEIR_E_FORMAT, NULL, "the second part is shorter than the prefix");
    buf_clear(scratch);
    buf_append(scratch, left.text, left.n_bytes);
    buf_append(scratch, right.text + skip, right.n_bytes - skip);
    if (scratch->failed) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    const int32_t merged = look_up(t, scratch->data, scratch->n_bytes);
    if (merged < 0) return json_fail(r, WEIR_E_FORMAT, NULL, "makes '%.40s', which is not in the vocabulary", scratch->data);
    tok_pairs_add(&t->pairs, first, second, (uint32_t)rank, merged);
    return 0;
}

static int read_merges(json_reader *r, const json_t *model, tok *t) {
    const json_t *merges = json_object_get(model, "merges");
    const size_t n = json_array_size(merges);
    if (!json_is_array(merges)) return json_fail(r, WEIR_E_FORMAT, "merges", "is no array");
    if (n >= UINT32_MAX || !tok_pairs_reserve(&t->pairs, n)) return json_fail(r, WEIR_E_NOMEM, "merges", "out of memory");
    buf scratch = BUF_INIT;
    int rc = 0;
    const size_t whole = json_enter(r, "merges", 0);
    for (size_t i = n;
         i-- > 0 && rc == 0;) { /* from the end: of two equal merges the later counts, and the table keeps the first */
        const size_t before = json_enter(r, NULL, i);
        rc = read_merge(r, json_array_get(merges, i), i, t, &scratch);
        if (rc == 0) json_leave(r, before);
    }
    if (rc == 0) json_leave(r, whole);
    buf_free(&scratch);
    return rc;
}

/* Of the model's tokens; of equal ones the one that counts. */
static int open_trie(json_reader *r, tok *t, size_t n_model) {
    tok_string *texts = calloc(n_model + 1, sizeof *texts);
    for (size_t id = 0; texts && id < n_model; id++) {
        const tok_string text = t->texts[id];
        if (look_up(t, text.text, text.n_bytes) == (int32_t)id) texts[id] = text;
    }
    const bool done = texts && tok_trie_make(&t->words, texts, n_model);
    free(texts);
    return done ? 0 : json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
}

static int read_options(json_reader *r, const json_t *model, tok *t, size_t n_model) {
    tok_json *j = t->json;
    TRY(read_flag(r, model, "byte_fallback", &j->byte_fallback));
    if (j->model == JSON_UNIGRAM) {
        size_t unk;
        const int found = json_read_size(r, model, "unk_id", 0, n_model - 1, &unk);
        TRY(found);
        if (!found)
            return json_fail(r, WEIR_E_UNSUPPORTED, "unk_id",
                             "is missing; a Unigram model without an unknown token cannot encode every text");
        j->unk = (int32_t)unk;
        return open_trie(r, t, n_model);
    }
    TRY(named_token(r, t, model, "unk_token", &j->unk));
    if (j->model != JSON_BPE && j->unk < 0) return json_fail(r, WEIR_E_FORMAT, "unk_token", "is missing");
    if (j->model == JSON_WORDLEVEL) return 0;
    if (j->model == JSON_WORDPIECE) j->prefix = (tok_string){"##", 2};
    TRY(json_read_text(r, model, "continuing_subword_prefix", &j->prefix));
    TRY(json_keep(r, &j->prefix));
    if (j->model == JSON_WORDPIECE) {
        j->max_word = 100;
        TRY(json_read_size(r, model, "max_input_chars_per_word", 1, TOK_LONGEST_MATCH, &j->max_word));
        return open_trie(r, t, n_model);
    }
    TRY(json_read_text(r, model, "end_of_word_suffix", &j->suffix));
    TRY(json_keep(r, &j->suffix));
    TRY(read_flag(r, model, "fuse_unk", &j->fuse_unk));
    TRY(read_flag(r, model, "ignore_merges", &j->ignore_merges));
    return read_merges(r, model, t);
}

/* The model's kind; old files do not name it. */
static int model_kind(json_reader *r, const json_t *model, json_model *out) {
    static const char *const names[] = {"BPE", "Unigram", "WordPiece", "WordLevel"};
    tok_string type;
    if (!json_is_object(model)) return json_fail(r, WEIR_E_FORMAT, NULL, "is missing; expected an object");
    const int found = json_read_text(r, model, "type", &type);
    TRY(found);
    if (!found) {
        *out = json_object_get(model, "merges")                     ? JSON_BPE
               : json_is_array(json_object_get(model, "vocab"))     ? JSON_UNIGRAM
               : json_object_get(model, "max_input_chars_per_word") ? JSON_WORDPIECE
                                                                    : JSON_WORDLEVEL;
        return 0;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], type.text) != 0) continue;
        *out = (json_model)i;
        return 0;
    }
    return json_fail(r, WEIR_E_UNSUPPORTED, "type",
                     "the model '%.40s' is not supported; supported are BPE, Unigram, WordPiece and WordLevel", type.text);
}

static void find_bytes(tok *t) {
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        t->byte_ids[byte] = look_up(t, name, 6);
    }
}

/* Copies the vocabulary into t. Ids that nothing has are empty, unused tokens. */
static int fill(json_reader *r, tok *t, const vocabulary *v, const tok_vocab *extra) {
    tok_json *j = t->json;
    tok_vocab all = *extra;
    int32_t *types = arena_array(r->memory, v->n, sizeof *types);
    j->special = arena_array(r->memory, v->n, sizeof *j->special);
    if (types == NULL || j->special == NULL) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    for (size_t id = 0; id < v->n; id++) types[id] = v->texts[id].text ? TOK_NORMAL : TOK_UNUSED;
    for (size_t i = 0; i < j->n_added; i++) {
        types[j->added[i].id] = j->added[i].special ? TOK_CONTROL : TOK_USER_DEFINED;
        j->special[j->added[i].id] = j->added[i].special;
    }
    all.tokens = v->texts;
    all.types = types;
    all.scores = NULL;
    all.n_tokens = v->n;
    return tok_copy_tokens(t, &all, r->err);
}

/* The model's own tokens in a table of their own: added tokens are found in the text, never by the model. */
static int index_model(json_reader *r, const json_t *model, tok *t, const vocabulary *v) {
    tok_json *j = t->json;
    const json_t *object = json_object_get(model, "vocab");
    if (!tok_strings_reserve(&j->vocab, t->texts, v->n_model)) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    for (size_t id = v->n_model;
         id-- > 0;) { /* from the end: of two equal tokens the later is used, and the table keeps the first */
        const bool there = j->model == JSON_UNIGRAM ||
                           (v->texts[id].text && json_object_getn(object, v->texts[id].text, v->texts[id].n_bytes));
        if (there) tok_strings_add(&j->vocab, t->texts, (int32_t)id);
    }
    return 0;
}

static int read_all(json_reader *r, const json_t *root, tok *t, const tok_vocab *extra, vocabulary *v) {
    tok_json *j = t->json;
    const json_t *model = json_object_get(root, "model");
    const size_t before = json_enter(r, "model", 0);
    j->unk = -1;
    TRY(model_kind(r, model, &j->model));
    TRY(j->model == JSON_UNIGRAM ? read_unigram_vocab(r, model, v, j) : read_object_vocab(r, model, v));
    json_leave(r, before);
    TRY(read_added(r, root, j, v));
    TRY(fill(r, t, v, extra));
    json_enter(r, "model", 0);
    TRY(index_model(r, model, t, v));
    find_bytes(t);
    TRY(read_options(r, model, t, v->n_model));
    json_leave(r, before);
    t->unk = j->unk;
    return 0;
}

int json_read_model(json_reader *r, const json_t *root, tok *t, const tok_vocab *extra) {
    vocabulary v = {0};
    const int rc = read_all(r, root, t, extra, &v);
    free(v.texts);
    return rc;
}
