/* Opening a tokenizer.json, and the road of a text through its stages: see tok_json_internal.h. */
#include "tok/tok_json_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_json.h"

/* ---- post-processors
 * ---------------------------------------------------------------------------------------------------------- */

enum { MAX_LAYOUT = 256 };

typedef struct layout {
    int32_t items[MAX_LAYOUT];
    size_t n;
} layout;

static int put_item(json_reader *r, layout *l, int32_t item) {
    if (l->n == MAX_LAYOUT) return json_fail(r, WEIR_E_LIMIT, NULL, "puts more than %d things together", MAX_LAYOUT);
    l->items[l->n++] = item;
    return 0;
}

static int put_sequence(json_reader *r, layout *l, const layout *inner) {
    for (size_t i = 0; i < inner->n; i++) TRY(put_item(r, l, inner->items[i]));
    return 0;
}

static int put_token(json_reader *r, const tok *t, layout *l, const json_t *id) {
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= t->n_vocab)
        return json_fail(r, WEIR_E_FORMAT, NULL, "has a token id that is not in 0..%d", t->n_vocab - 1);
    return put_item(r, l, (int32_t)json_integer_value(id));
}

/* One piece of a template: {"SpecialToken": {"id": name}} or {"Sequence": {"id": "A"}}. */
static int read_piece(json_reader *r, const tok *t, const json_t *piece, const json_t *tokens, const layout *inner,
                      layout *out) {
    tok_string name;
    if (json_object_get(piece, "Sequence")) {
        TRY(json_need_text(r, json_object_get(piece, "Sequence"), "id", &name));
        if (strcmp(name.text, "A") != 0) return json_fail(r, WEIR_E_FORMAT, NULL, "asks for a second text");
        return put_sequence(r, out, inner);
    }
    const json_t *special = json_object_get(piece, "SpecialToken"), *id;
    if (special == NULL) return json_fail(r, WEIR_E_FORMAT, NULL, "is neither a SpecialToken nor a Sequence");
    TRY(json_need_text(r, special, "id", &name));
    const json_t *ids = json_object_get(json_object_get(tokens, name.text), "ids");
    if (!json_is_array(ids)) return json_fail(r, WEIR_E_FORMAT, NULL, "special_tokens has no ids for '%.40s'", name.text);
    size_t i;
    json_array_foreach(ids, i, id) TRY(put_token(r, t, out, id));
    return 0;
}

static int read_template(json_reader *r, const tok *t, const json_t *object, const layout *inner, layout *out) {
    const json_t *single = json_object_get(object, "single"), *piece;
    size_t i;
    if (!json_is_array(single)) return json_fail(r, WEIR_E_FORMAT, "single", "is no array");
    const size_t whole = json_enter(r, "single", 0);
    json_array_foreach(single, i, piece) {
        const size_t before = json_enter(r, NULL, i);
        TRY(read_piece(r, t, piece, json_object_get(object, "special_tokens"), inner, out));
        json_leave(r, before);
    }
    json_leave(r, whole);
    return 0;
}

/* BertProcessing and RobertaProcessing: [token, id] before and after. */
static int read_pair(json_reader *r, const tok *t, const json_t *object, const layout *inner, layout *out) {
    const size_t before = json_enter(r, "cls", 0);
    TRY(put_token(r, t, out, json_array_get(json_object_get(object, "cls"), 1)));
    json_leave(r, before);
    TRY(put_sequence(r, out, inner));
    json_enter(r, "sep", 0);
    TRY(put_token(r, t, out, json_array_get(json_object_get(object, "sep"), 1)));
    json_leave(r, before);
    return 0;
}

/* Replaces *l by what the post-processor makes of it. */
static int read_post(json_reader *r, const tok *t, const json_t *object, layout *l, int depth) {
    const char *type;
    if (object == NULL || json_is_null(object)) return 0;
    TRY(json_read_type(r, object, &type));
    layout out = {.n = 0};
    if (strcmp(type, "ByteLevel") == 0) return 0; /* about offsets only */
    if (strcmp(type, "TemplateProcessing") == 0) {
        TRY(read_template(r, t, object, l, &out));
    } else if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
        TRY(read_pair(r, t, object, l, &out));
    } else if (strcmp(type, "Sequence") == 0) {
        const json_t *items = json_object_get(object, "processors"), *item;
        size_t i;
        if (!json_is_array(items)) return json_fail(r, WEIR_E_FORMAT, "processors", "is no array");
        if (depth == JSON_MAX_DEPTH) return json_fail(r, WEIR_E_LIMIT, NULL, "Sequences nest deeper than %d", JSON_MAX_DEPTH);
        const size_t whole = json_enter(r, "processors", 0);
        json_array_foreach(items, i, item) {
            const size_t before = json_enter(r, NULL, i);
            TRY(read_post(r, t, item, l, depth + 1));
            json_leave(r, before);
        }
        json_leave(r, whole);
        return 0;
    } else {
        return json_fail(
            r, WEIR_E_UNSUPPORTED, "type",
            "the post-processor '%.40s' is not supported; supported are TemplateProcessing, BertProcessing, RobertaProcessing, "
            "ByteLevel and Sequence",
            type);
    }
    *l = out;
    return 0;
}

static int read_layout(json_reader *r, tok *t, const json_t *object) {
    tok_json *j = t->json;
    layout l = {.items = {JSON_SEQUENCE}, .n = 1};
    TRY(read_post(r, t, object, &l, 0));
    j->layout = arena_array(r->memory, l.n, sizeof *j->layout);
    if (j->layout == NULL) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    memcpy(j->layout, l.items, l.n * sizeof *j->layout);
    j->n_layout = l.n;
    const bool opens = l.n > 1 && l.items[0] >= 0, closes = l.n > 1 && l.items[l.n - 1] >= 0;
    if (t->bos < 0 && opens) t->bos = l.items[0];
    t->add_bos = opens && l.items[0] == t->bos;
    t->add_eos = closes && l.items[l.n - 1] == t->eos;
    return 0;
}

/* ---- opening
 * -------------------------------------------------------------------------------------------------------------------- */

/* What an added token looks like behind the normalizer, copied. */
static int normalised_content(json_reader *r, const tok_json *j, json_text *text, tok_string *content) {
    text->bytes.limit = text->out.limit = json_limit(content->n_bytes);
    buf_clear(&text->bytes);
    buf_append(&text->bytes, content->text, content->n_bytes);
    json_normalise(&j->normalizer, text);
    *content = (tok_string){text->bytes.data, text->bytes.n_bytes};
    if (text->failed || text->bytes.failed) return json_fail(r, WEIR_E_NOMEM, "added_tokens", "out of memory");
    return json_keep(r, content);
}

/* The tries of added tokens. */
static int open_added(json_reader *r, tok *t) {
    tok_json *j = t->json;
    json_text text = {0};
    tok_string *raw = arena_array(r->memory, j->n_added, sizeof *raw),
               *normalised = arena_array(r->memory, j->n_added, sizeof *normalised);
    int rc = raw && normalised ? 0 : json_fail(r, WEIR_E_NOMEM, "added_tokens", "out of memory");
    for (size_t i = 0; i < j->n_added && rc == 0; i++) {
        if (!j->added[i].normalized)
            raw[i] = j->added[i].content;
        else
            normalised[i] = j->added[i].content, rc = normalised_content(r, j, &text, &normalised[i]);
    }
    json_text_free(&text);
    TRY(rc);
    if (!tok_trie_make(&j->raw, raw, j->n_added) || !tok_trie_make(&j->normalised, normalised, j->n_added))
        return json_fail(r, WEIR_E_NOMEM, "added_tokens", "out of memory");
    return 0;
}

static int take_ids(tok *t, const tok_vocab *extra, weir_error *err) {
    const struct {
        int32_t id;
        const char *key;
    } ids[] = {{extra->bos, "tokenizer.ggml.bos_token_id"},
               {extra->eos, "tokenizer.ggml.eos_token_id"},
               {extra->eot, "tokenizer.ggml.eot_token_id"},
               {extra->eom, "tokenizer.ggml.eom_token_id"}};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++)
        FAIL_IF(ids[i].id < -1 || ids[i].id >= t->n_vocab, err, WEIR_E_FORMAT, ids[i].key, "token id %d is not in 0..%d",
                ids[i].id, t->n_vocab - 1);
    t->bos = extra->bos;
    t->eos = extra->eos;
    t->sep = -1;
    return 0;
}

static int open_root(json_reader *r, const json_t *root, tok *t, const tok_vocab *extra) {
    static const struct {
        const char *key;
        int (*read)(json_reader *, const json_t *, json_steps *);
        size_t offset;
    } stages[] = {{"normalizer", json_read_normalizer, offsetof(tok_json, normalizer)},
                  {"pre_tokenizer", json_read_pre_tokenizer, offsetof(tok_json, pre_tokenizer)},
                  {"decoder", json_read_decoder, offsetof(tok_json, decoder)}};
    if (!json_is_object(root)) return json_fail(r, WEIR_E_FORMAT, NULL, "is no JSON object");
    TRY(json_read_model(r, root, t, extra));
    for (size_t i = 0; i < sizeof stages / sizeof stages[0]; i++) {
        const size_t before = json_enter(r, stages[i].key, 0);
        TRY(stages[i].read(r, json_object_get(root, stages[i].key), (json_steps *)((char *)t->json + stages[i].offset)));
        json_leave(r, before);
    }
    t->json->has_decoder = json_is_object(json_object_get(root, "decoder"));
    TRY(take_ids(t, extra, r->err));
    TRY(open_added(r, t));
    const size_t before = json_enter(r, "post_processor", 0);
    TRY(read_layout(r, t, json_object_get(root, "post_processor")));
    json_leave(r, before);
    TRY(tok_special_open(t, extra, r->err));
    return json_make_pieces(t, r->err);
}

int tok_open_json(tok **out, const char *text, size_t n_bytes, const tok_vocab *extra, weir_error *err) {
    *out = NULL;
    json_error_t problem;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    FAIL_IF(root == NULL, err, WEIR_E_FORMAT, "tokenizer.json", "line %d, column %d: %s", problem.line, problem.column,
            problem.text);
    tok *t = calloc(1, sizeof *t);
    if (t) t->json = calloc(1, sizeof *t->json);
    int rc = WEIR_E_NOMEM;
    if (t && t->json) {
        json_reader r = {.err = err, .memory = &t->memory};
        t->kind = TOK_BPE; /* how tok_merge merges */
        rc = open_root(&r, root, t, extra);
    } else {
        error_set(err, WEIR_E_NOMEM, "tokenizer.json", "out of memory");
    }
    json_decref(root);
    if (rc == 0)
        *out = t;
    else
        tok_close(&t);
    return rc;
}

void tok_json_free(tok_json *j) {
    if (j == NULL) return;
    json_steps_free(&j->normalizer);
    json_steps_free(&j->pre_tokenizer);
    json_steps_free(&j->decoder);
    tok_trie_free(&j->raw);
    tok_trie_free(&j->normalised);
    tok_strings_free(&j->vocab);
    free(j);
}

/* ---- encoding
 * ------------------------------------------------------------------------------------------------------------------ */

typedef struct run {
    const tok *t;
    tok_work *w;
    json_text text;
    buf normalised; /* the fragment that is cut at normalised added tokens */
    bool parse_special;
} run;

/* The character that ends at text[at], and where it begins. */
static size_t character_before(const char *text, size_t at, uint32_t *c) {
    size_t begin = at - 1;
    while (begin > 0 && at - begin < 4 && ((unsigned char)text[begin] & 0xC0) == 0x80) begin--;
    utf8_decode(text + begin, at - begin, c);
    return begin;
}

/* Whether the added token may stand at [begin, end): it need not be a whole word, or is one. */
static bool stands_alone(const json_added *a, const char *text, size_t n_bytes, size_t begin, size_t end) {
    uint32_t c;
    if (!a->single_word) return true;
    if (begin > 0 && (character_before(text, begin, &c), json_is_word(c))) return false;
    return end == n_bytes || (utf8_decode(text + end, n_bytes - end, &c), !json_is_word(c));
}

/* Where the white space that ends at text[at] begins, `low` at the lowest. */
static size_t strip_left(const char *text, size_t low, size_t at) {
    uint32_t c;
    while (at > low) {
        const size_t before = character_before(text, at, &c);
        if (!tok_is_space(c)) break;
        at = before;
    }
    return at > low ? at : low;
}

static size_t strip_right(const char *text, size_t n_bytes, size_t at) {
    uint32_t c;
    while (at < n_bytes) {
        const size_t taken = utf8_decode(text + at, n_bytes - at, &c);
        if (!tok_is_space(c)) break;
        at += taken;
    }
    return at;
}

typedef void (*fragment_fn)(run *r, const char *text, size_t n_bytes, bool first);

/* Cuts out the added tokens of a trie: leftmost, then longest. `first`: the text begins where the whole text does. */
static void cut_added(run *r, const tok_trie *trie, const char *text, size_t n_bytes, bool first, fragment_fn next) {
    const tok_json *j = r->t->json;
    size_t done = 0;
    for (size_t at = 0; at < n_bytes && !r->w->failed;) {
        size_t length = 0;
        const int32_t found =
            trie->starts[(unsigned char)text[at]] ? tok_trie_longest(trie, text + at, n_bytes - at, &length) : -1;
        if (found < 0) {
            at++;
            continue;
        }
        const json_added *a = &j->added[found];
        size_t begin = at, end = at + length;
        at = end;
        if ((a->special && !r->parse_special) || !stands_alone(a, text, n_bytes, begin, end)) continue;
        if (a->lstrip) begin = strip_left(text, done, begin);
        if (a->rstrip) end = strip_right(text, n_bytes, end);
        if (begin > done) next(r, text + done, begin - done, first && done == 0);
        if (begin < end) tok_emit(r->w, a->id); /* white space that the token before has swallowed may leave nothing of it */
        done = end;
    }
    if (done < n_bytes) next(r, text + done, n_bytes - done, first && done == 0);
}

static void encode_fragment(run *r, const char *text, size_t n_bytes, bool first) {
    json_text *t = &r->text;
    buf_clear(&t->bytes);
    buf_append(&t->bytes, text, n_bytes);
    t->failed |= t->bytes.failed;
    if (!t->failed) json_pre_tokenise(&r->t->json->pre_tokenizer, t, first);
    for (size_t i = 0; i < t->n_pieces && !t->failed && !r->w->failed; i++)
        json_model_encode(r->t, r->w, t->bytes.data + t->pieces[i].begin, t->pieces[i].end - t->pieces[i].begin);
    r->w->failed |= t->failed;
}

static void normalise_fragment(run *r, const char *text, size_t n_bytes, bool first) {
    json_text *t = &r->text;
    buf_clear(&t->bytes);
    buf_append(&t->bytes, text, n_bytes);
    t->failed |= t->bytes.failed;
    if (!t->failed) json_normalise(&r->t->json->normalizer, t);
    buf_clear(&r->normalised);
    buf_append(&r->normalised, t->bytes.data, t->bytes.n_bytes);
    r->w->failed |= t->failed || r->normalised.failed;
    if (!r->w->failed) cut_added(r, &r->t->json->normalised, r->normalised.data, r->normalised.n_bytes, first, encode_fragment);
}

/* Text as the stages want it: what is not UTF-8 is read as U+FFFD. */
static void encode_text(run *r, const char *text, size_t n_bytes) {
    if (utf8_valid(text, n_bytes)) {
        cut_added(r, &r->t->json->raw, text, n_bytes, true, normalise_fragment);
        return;
    }
    buf mended = BUF_INIT;
    tok_stream s = TOK_STREAM_INIT;
    tok_stream_push(&s, text, n_bytes, &mended);
    tok_stream_finish(&s, &mended);
    r->w->failed |= mended.failed;
    if (!r->w->failed) cut_added(r, &r->t->json->raw, mended.data, mended.n_bytes, true, normalise_fragment);
    buf_free(&mended);
}

void tok_json_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes, bool add_special, bool parse_special) {
    const tok_json *j = t->json;
    run r = {.t = t, .w = w, .parse_special = parse_special};
    r.text.bytes.limit = r.text.out.limit = r.normalised.limit = json_limit(n_bytes); /* positions of symbols have 32 bits */
    for (size_t i = 0; i < j->n_layout && !w->failed; i++) {
        if (j->layout[i] == JSON_SEQUENCE)
            encode_text(&r, text, n_bytes);
        else if (add_special)
            tok_emit(w, j->layout[i]);
    }
    json_text_free(&r.text);
    buf_free(&r.normalised);
}
