/* Decoders of tokenizer.json: the texts of tokens become one text. A decoder is a list of steps over a list of strings; most
 * look at one string at a time, so that a stream can do the same for one token (json_make_pieces). */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_json_internal.h"

/* ---- steps for one token
 * -------------------------------------------------------------------------------------------------------- */

static void put(buf *out, tok_string s) {
    buf_append(out, s.text, s.n_bytes);
}

static bool begins_with(tok_string text, tok_string prefix) {
    return text.n_bytes >= prefix.n_bytes && (prefix.n_bytes == 0 || memcmp(text.text, prefix.text, prefix.n_bytes) == 0);
}

/* Takes out the spaces that writing English does not have: rule by rule, each over the whole text. */
static void clean_up(buf *text) {
    static const struct {
        const char *from, *to;
    } rules[] = {{" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
                 {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (size_t i = 0; i < sizeof rules / sizeof rules[0] && !text->failed && text->n_bytes; i++) {
        const size_t n_from = strlen(rules[i].from);
        buf out = BUF_INIT;
        size_t at = 0;
        for (const char *found; (found = memmem(text->data + at, text->n_bytes - at, rules[i].from, n_from)) != NULL;) {
            buf_append(&out, text->data + at, (size_t)(found - text->data) - at);
            buf_puts(&out, rules[i].to);
            at = (size_t)(found - text->data) + n_from;
        }
        if (at > 0) {
            buf_append(&out, text->data + at, text->n_bytes - at);
            buf_clear(text);
            text->failed = out.failed;
            buf_append(text, out.data, out.n_bytes);
        }
        buf_free(&out);
    }
}

static void run_wordpiece(const json_step *s, buf *out, tok_string token, bool first, bool last) {
    (void)last;
    buf text = BUF_INIT;
    if (!first && begins_with(token, s->text))
        token = (tok_string){token.text + s->text.n_bytes, token.n_bytes - s->text.n_bytes};
    else if (!first)
        buf_putc(&text, ' ');
    put(&text, token);
    if (s->flag) clean_up(&text);
    out->failed |= text.failed;
    if (text.n_bytes) buf_append(out, text.data, text.n_bytes);
    buf_free(&text);
}

static void run_metaspace(const json_step *s, buf *out, tok_string token, bool first, bool last) {
    (void)last;
    for (size_t at = 0; at < token.n_bytes;) {
        if (begins_with((tok_string){token.text + at, token.n_bytes - at}, s->text)) {
            if (!first || s->prepend == PREPEND_NEVER) buf_putc(out, ' ');
            at += s->text.n_bytes;
        } else {
            buf_putc(out, token.text[at++]);
        }
    }
}

static void run_replace(const json_step *s, buf *out, tok_string token, bool first, bool last) {
    (void)first;
    (void)last;
    pcre2_match_data *match_data = pcre2_match_data_create(1, NULL);
    if (match_data == NULL) {
        out->failed = true;
        return;
    }
    json_matcher m = {.s = s, .text = token, .last_end = SIZE_MAX, .match_data = match_data};
    size_t at = 0, from, to;
    while (token.n_bytes > 0 && json_next_match(&m, &from, &to)) {
        buf_append(out, token.text + at, from - at);
        put(out, s->text);
        at = to;
    }
    buf_append(out, token.text + at, token.n_bytes - at);
    pcre2_match_data_free(match_data);
}

static void run_strip(const json_step *s, buf *out, tok_string token, bool first, bool last) {
    (void)first;
    (void)last;
    for (size_t i = 0; i < s->start && token.n_bytes > 0 && begins_with(token, s->text); i++)
        token = (tok_string){token.text + s->text.n_bytes, token.n_bytes - s->text.n_bytes};
    for (size_t i = 0; i < s->stop && token.n_bytes >= s->text.n_bytes &&
                       memcmp(token.text + token.n_bytes - s->text.n_bytes, s->text.text, s->text.n_bytes) == 0;
         i++)
        token.n_bytes -= s->text.n_bytes;
    put(out, token);
}

static void run_bpe(const json_step *s, buf *out, tok_string token, bool first, bool last) {
    (void)first;
    for (size_t at = 0; at < token.n_bytes;) {
        if (s->text.n_bytes && begins_with((tok_string){token.text + at, token.n_bytes - at}, s->text)) {
            if (!last) buf_putc(out, ' ');
            at += s->text.n_bytes;
        } else {
            buf_putc(out, token.text[at++]);
        }
    }
}

/* ---- steps for all tokens
 * --------------------------------------------------------------------------------------------------------- */

static bool reserve(json_tokens *t, size_t n) {
    if (n <= t->out_capacity) return true;
    const size_t capacity = n + n / 2 + 16;
    size_t *grown = realloc(t->out_ends, capacity * sizeof *grown);
    t->failed |= grown == NULL;
    if (grown == NULL) return false;
    t->out_ends = grown;
    t->out_capacity = capacity;
    return true;
}

/* What was appended to t->out is a token. */
static void end_token(json_tokens *t) {
    if (reserve(t, t->n_out + 1)) t->out_ends[t->n_out++] = t->out.n_bytes;
}

static void swap(json_tokens *t) {
    const buf bytes = t->bytes;
    size_t *ends = t->ends;
    const size_t capacity = t->capacity;
    t->failed |= t->out.failed;
    t->bytes = t->out;
    t->ends = t->out_ends;
    t->capacity = t->out_capacity;
    t->n = t->n_out;
    t->out = bytes;
    t->out_ends = ends;
    t->out_capacity = capacity;
    buf_clear(&t->out);
    t->n_out = 0;
}

static tok_string token_at(const json_tokens *t, size_t i) {
    const size_t begin = i ? t->ends[i - 1] : 0;
    return (tok_string){t->bytes.n_bytes ? t->bytes.data + begin : "", t->ends[i] - begin};
}

static void put_lossy(buf *out, const char *bytes, size_t n_bytes) {
    tok_stream s = TOK_STREAM_INIT;
    tok_stream_push(&s, bytes, n_bytes, out);
    tok_stream_finish(&s, out);
}

/* The bytes that a token of GPT-2's alphabet stands for; a token with another character stands for itself. */
static void put_bytes(buf *out, tok_string token) {
    const size_t begin = out->n_bytes;
    for (size_t at = 0; at < token.n_bytes;) {
        uint32_t c;
        at += utf8_decode(token.text + at, token.n_bytes - at, &c);
        const int byte = tok_alphabet_byte(c);
        if (byte < 0) {
            if (!out->failed) out->n_bytes = begin;
            put(out, token);
            return;
        }
        buf_putc(out, (char)byte);
    }
}

static void run_byte_level(const json_step *s, json_tokens *t) {
    (void)s;
    buf bytes = BUF_INIT;
    for (size_t i = 0; i < t->n; i++) put_bytes(&bytes, token_at(t, i));
    t->failed |= bytes.failed;
    if (!bytes.failed && bytes.n_bytes) put_lossy(&t->out, bytes.data, bytes.n_bytes);
    buf_free(&bytes);
    end_token(t);
}

static void run_fuse(const json_step *s, json_tokens *t) {
    (void)s;
    if (t->bytes.n_bytes) buf_append(&t->out, t->bytes.data, t->bytes.n_bytes);
    end_token(t);
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte that "<0xAB>" names; -1 if it is something else. */
static int named_byte(tok_string s) {
    if (s.n_bytes != 6 || memcmp(s.text, "<0x", 3) != 0 || s.text[5] != '>') return -1;
    const int high = hex_digit(s.text[3]), low = hex_digit(s.text[4]);
    return low < 0 ? -1 : s.text[3] == '+' ? low : high < 0 ? -1 : high * 16 + low;
}

/* Runs of byte tokens become the text that they spell, or one U+FFFD for each, a token of its own. */
static void end_bytes(json_tokens *t, buf *bytes) {
    if (bytes->n_bytes == 0) return;
    if (utf8_valid(bytes->data, bytes->n_bytes)) {
        buf_append(&t->out, bytes->data, bytes->n_bytes);
        end_token(t);
    } else {
        for (size_t i = 0; i < bytes->n_bytes; i++) {
            buf_append(&t->out, "\xef\xbf\xbd", 3);
            end_token(t);
        }
    }
    t->failed |= bytes->failed;
    buf_clear(bytes);
}

static void run_byte_fallback(const json_step *s, json_tokens *t) {
    (void)s;
    buf bytes = BUF_INIT;
    for (size_t i = 0; i < t->n; i++) {
        const tok_string token = token_at(t, i);
        const int byte = named_byte(token);
        if (byte >= 0) {
            buf_putc(&bytes, (char)byte);
            continue;
        }
        end_bytes(t, &bytes);
        put(&t->out, token);
        end_token(t);
    }
    end_bytes(t, &bytes);
    buf_free(&bytes);
}

/* ---- reading
 * -------------------------------------------------------------------------------------------------------------------- */

static int read_all_kinds(json_reader *r, const json_t *object, json_steps *out) {
    static const struct {
        const char *type;
        void (*run)(const json_step *, json_tokens *);
    } kinds[] = {{"ByteLevel", run_byte_level}, {"Fuse", run_fuse}, {"ByteFallback", run_byte_fallback}};
    const char *type = json_string_value(json_object_get(object, "type"));
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(kinds[i].type, type) == 0) s->decode_all = kinds[i].run;
    return 0;
}

static int read_wordpiece(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->decode_token = run_wordpiece;
    s->text = (tok_string){"##", 2};
    s->flag = true;
    TRY(json_read_text(r, object, "prefix", &s->text));
    TRY(json_read_bool(r, object, "cleanup", &s->flag));
    return json_keep(r, &s->text);
}

static int read_metaspace(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->decode_token = run_metaspace;
    return json_read_metaspace(r, object, s);
}

static int read_replace(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->decode_token = run_replace;
    TRY(json_read_pattern(r, object, s));
    TRY(json_need_text(r, object, "content", &s->text));
    return json_keep(r, &s->text);
}

static int read_strip(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->decode_token = run_strip;
    s->text = (tok_string){" ", 1};
    TRY(json_read_char(r, object, "content", &s->text));
    TRY(json_keep(r, &s->text));
    TRY(json_read_size(r, object, "start", 0, 1 << 20, &s->start));
    TRY(json_read_size(r, object, "stop", 0, 1 << 20, &s->stop));
    return 0;
}

static int read_bpe(json_reader *r, const json_t *object, json_steps *out) {
    json_step *s = json_add_step(r, out);
    if (s == NULL) return r->code;
    s->decode_token = run_bpe;
    s->text = (tok_string){"</w>", 4};
    TRY(json_read_text(r, object, "suffix", &s->text));
    return json_keep(r, &s->text);
}

int json_read_decoder(json_reader *r, const json_t *object, json_steps *out) {
    static const json_step_kind kinds[] = {
        {"ByteLevel", read_all_kinds}, {"WordPiece", read_wordpiece},    {"Metaspace", read_metaspace},
        {"Replace", read_replace},     {"ByteFallback", read_all_kinds}, {"Fuse", read_all_kinds},
        {"Strip", read_strip},         {"BPEDecoder", read_bpe},         {"CTC", NULL},
    };
    return json_read_steps(r, object, out, kinds, sizeof kinds / sizeof kinds[0], "decoders", "decoder", 0);
}

/* ---- running
 * -------------------------------------------------------------------------------------------------------------------- */

bool tok_json_hides(const tok *t, int32_t id) {
    return t->json->special[id];
}

int tok_json_decode(const tok *t, const int32_t *ids, size_t n, bool special, buf *out) {
    const tok_json *j = t->json;
    json_tokens list = {0};
    size_t n_bytes = 0;
    for (size_t i = 0; i < n; i++) n_bytes += t->texts[ids[i]].n_bytes + 1;
    list.bytes.limit = list.out.limit = json_limit(n_bytes);
    for (size_t i = 0; i < n; i++) {
        if (!special && j->special[ids[i]]) continue;
        if (t->attributes[ids[i]] & TOK_IS_UNUSED) continue; /* no token has this id */
        if (!j->has_decoder && list.n_out) buf_putc(&list.out, ' ');
        put(&list.out, t->texts[ids[i]]);
        end_token(&list);
    }
    swap(&list);
    for (size_t i = 0; i < j->decoder.n && !list.failed && list.n > 0; i++) {
        const json_step *s = &j->decoder.steps[i];
        if (s->decode_all) s->decode_all(s, &list);
        for (size_t k = 0; s->decode_token && k < list.n; k++) {
            s->decode_token(s, &list.out, token_at(&list, k), k == 0, k + 1 == list.n);
            end_token(&list);
        }
        swap(&list);
    }
    if (list.bytes.n_bytes) buf_append(out, list.bytes.data, list.bytes.n_bytes);
    const bool failed = list.failed || out->failed;
    buf_free(&list.bytes);
    buf_free(&list.out);
    free(list.ends);
    free(list.out_ends);
    return failed ? WEIR_E_NOMEM : 0;
}

/* What one token adds to a text that has begun: byte tokens give their byte, and what is cut off the text's own ends is not. */
static void make_piece(const tok_json *j, tok_string token, buf *out, buf *scratch) {
    bool fused = false;
    buf_clear(out);
    if (!j->has_decoder) buf_putc(out, ' ');
    put(out, token);
    for (size_t i = 0; i < j->decoder.n; i++) {
        const json_step *s = &j->decoder.steps[i];
        const tok_string text = {out->n_bytes ? out->data : "", out->n_bytes};
        buf_clear(scratch);
        if (s->decode_all == run_fuse) fused = true;
        if (s->decode_all == run_byte_level) {
            put_bytes(scratch, text);
            fused = true;
        } else if (s->decode_all == run_byte_fallback) {
            const int byte = named_byte(text);
            if (byte >= 0)
                buf_putc(scratch, (char)byte);
            else
                put(scratch, text);
        } else if (s->decode_token && !(fused && s->decode_token == run_strip)) {
            s->decode_token(s, scratch, text, false, false);
        } else {
            put(scratch, text);
        }
        const buf swapped = *out;
        *out = *scratch;
        *scratch = swapped;
    }
}

int json_make_pieces(tok *t, weir_error *err) {
    buf out = BUF_INIT, scratch = BUF_INIT;
    bool failed = false;
    out.limit = scratch.limit = json_limit(0);
    for (int32_t id = 0; id < t->n_vocab && !failed; id++) {
        if (t->attributes[id] & TOK_IS_UNUSED) {
            t->pieces[id] = (tok_string){"", 0}; /* a number that the file gives to no token */
            continue;
        }
        make_piece(t->json, t->texts[id], &out, &scratch);
        const char *copy = arena_strndup(&t->memory, out.n_bytes ? out.data : "", out.n_bytes);
        failed = copy == NULL || out.failed || scratch.failed;
        t->pieces[id] = (tok_string){copy, out.n_bytes};
    }
    buf_free(&out);
    buf_free(&scratch);
    FAIL_IF(failed, err, WEIR_E_NOMEM, "tokenizer.json", "out of memory");
    return 0;
}
