/* Inside src/tok only: what a tokenizer.json is compiled to. A pipeline of five stages, as Hugging Face's `tokenizers` runs it:
 * added tokens are cut out, the text between them is normalised, cut into pieces, each piece goes through the model, and the
 * post-processor puts special tokens around the ids; a decoder makes text of ids. Each stage is a flat list of steps, nested
 * Sequences being nothing but longer lists. Compiled once, read by any thread. */
#ifndef WEIR_TOK_JSON_INTERNAL_H
#define WEIR_TOK_JSON_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>

#include "tok/tok_internal.h"

/* ---- tok_json_read.c: members of JSON objects, with the path for messages ----------------------------------------------- */

typedef struct json_reader {
    weir_error *err;
    arena *memory;
    char path[192]; /* "pre_tokenizer.pretokenizers[1]" */
    size_t n_path;
    int code; /* of the last failure */
} json_reader;

/* Goes down to a member (key) or an item (key NULL); give the returned length to json_leave. */
size_t json_enter(json_reader *r, const char *key, size_t index);
void json_leave(json_reader *r, size_t before);
/* Describes a failure at the reader's path, or at its member `key` unless that is NULL. */
int json_fail(json_reader *r, int code, const char *key, const char *format, ...) __attribute__((format(printf, 4, 5)));
/* 1 = *out set, 0 = the member is absent or null (*out untouched), negative = another type than asked for. */
int json_read_bool(json_reader *r, const json_t *object, const char *key, bool *out);
int json_read_size(json_reader *r, const json_t *object, const char *key, size_t low, size_t high, size_t *out);
int json_read_text(json_reader *r, const json_t *object, const char *key, tok_string *out); /* not copied */
int json_need_text(json_reader *r, const json_t *object, const char *key, tok_string *out);
/* A string of exactly one character. */
int json_read_char(json_reader *r, const json_t *object, const char *key, tok_string *out);
/* A copy that lives as long as the tokeniser. */
int json_keep(json_reader *r, tok_string *text);
/* `type` of a step; WEIR_E_FORMAT without one. */
int json_read_type(json_reader *r, const json_t *object, const char **out);

/* ---- steps -------------------------------------------------------------------------------------------------------------- */

typedef enum json_behaviour {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_WITH_PREVIOUS,
    SPLIT_WITH_NEXT,
    SPLIT_CONTIGUOUS
} json_behaviour;
typedef enum json_prepend { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } json_prepend;

typedef struct json_step json_step;
struct json_text;
struct json_tokens;

struct json_step {
    void (*normalise)(const json_step *s, struct json_text *t);
    void (*split)(const json_step *s, struct json_text *t, tok_string text, bool first);
    /* A step of the decoder that sees one token at a time ... */
    void (*decode_token)(const json_step *s, buf *out, tok_string token, bool first, bool last);
    void (*decode_all)(const json_step *s, struct json_tokens *t); /* ... or all of them */
    pcre2_code *code;                                              /* pattern; or */
    tok_string literal;
    tok_string text; /* content, prefix, suffix, replacement: what the step puts in or takes off */
    json_behaviour behaviour;
    json_prepend prepend;
    bool invert, flag, lowercase, strip_accents, clean_text, chinese, left, right;
    uint32_t option; /* of utf8proc */
    size_t start, stop;
    tok_charsmap charsmap;
};

typedef struct json_steps {
    json_step *steps;
    size_t n, capacity;
} json_steps;

/* A new, empty step at the end; NULL = failed (described). */
json_step *json_add_step(json_reader *r, json_steps *steps); /* r->code says why */
void json_steps_free(json_steps *steps);

enum { JSON_MAX_STEPS = 64, JSON_MAX_DEPTH = 8 };

typedef int (*json_step_reader)(json_reader *r, const json_t *object, json_steps *out);
typedef struct json_step_kind {
    const char *type;
    json_step_reader read; /* NULL: known, not supported */
} json_step_kind;

/* Reads one step, or the steps of a Sequence whose list is the member `list`, by a table of kinds. `what` names the stage. */
int json_read_steps(json_reader *r, const json_t *object, json_steps *out, const json_step_kind *kinds, size_t n_kinds,
                    const char *list, const char *what, int depth);

int json_read_normalizer(json_reader *r, const json_t *object, json_steps *out);
int json_read_pre_tokenizer(json_reader *r, const json_t *object, json_steps *out);
int json_read_decoder(json_reader *r, const json_t *object, json_steps *out);
/* The members of a Metaspace, which is a pre-tokenizer and a decoder. */
int json_read_metaspace(json_reader *r, const json_t *object, json_step *s);

/* ---- tok_json_pattern.c: patterns ---------------------------------------------------------------------------------------- */

/* The member `pattern` ({"String": s} or {"Regex": s}) into s->literal or s->code. */
int json_read_pattern(json_reader *r, const json_t *object, json_step *s);
/* Compiles an expression in Oniguruma's (Ruby) syntax. WEIR_E_UNSUPPORTED for what PCRE2 cannot say, WEIR_E_FORMAT. */
int json_compile(json_reader *r, tok_string expression, pcre2_code **out);

/* The next match at or after *at: 1 = *from, *to set and *at moved behind it; 0 = none. An empty match directly after another
 * match does not count. */
typedef struct json_matcher {
    const json_step *s;
    tok_string text;
    size_t at, last_end; /* last_end SIZE_MAX: no match yet */
    void *match_data;
} json_matcher;
bool json_next_match(json_matcher *m, size_t *from, size_t *to);

/* ---- text on its way to the model ---------------------------------------------------------------------------------------- */

typedef struct json_piece {
    size_t begin, end;
    bool first; /* begins where the whole text begins */
} json_piece;

typedef struct json_span {
    size_t begin, end;
    bool match;
} json_span;

typedef struct json_text {
    buf bytes, out; /* before and after a step */
    json_piece *pieces, *out_pieces;
    size_t n_pieces, pieces_capacity, n_out, out_capacity;
    json_span *spans; /* scratch of a split */
    size_t n_spans, spans_capacity;
    void *match_data; /* pcre2_match_data */
    bool trimmed;     /* the normaliser took characters off the beginning */
    bool failed;      /* out of memory */
} json_text;

void json_text_free(json_text *t);
bool json_text_match_data(json_text *t);
/* Runs the normalizer over t->bytes. */
void json_normalise(const json_steps *steps, json_text *t);
/* Makes t->bytes one piece and cuts it. */
void json_pre_tokenise(const json_steps *steps, json_text *t, bool first);

/* A word character, as Rust's `regex` has it. */
bool json_is_word(uint32_t c);
/* A byte of GPT-2's alphabet as UTF-8: appends the character that stands for it. */
void json_put_alphabet(buf *out, unsigned char byte);

/* ---- ids on their way to text -------------------------------------------------------------------------------------------- */

typedef struct json_tokens {
    buf bytes, out;
    size_t *ends, *out_ends;
    size_t n, n_out, capacity, out_capacity;
    bool failed;
} json_tokens;

/* ---- the model ------------------------------------------------------------------------------------------------------------
 */

typedef enum json_model { JSON_BPE, JSON_UNIGRAM, JSON_WORDPIECE, JSON_WORDLEVEL } json_model;

typedef struct json_added {
    tok_string content;
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
} json_added;

/* Most bytes that a stage may make of n: far beyond what any normalization form does, so that a file whose steps double the
 * text time and again ends with an error. */
static inline size_t json_limit(size_t n_bytes) {
    return n_bytes > (UINT32_MAX - 65536u) / 64 ? UINT32_MAX - 1 : 64 * n_bytes + 65536;
}

enum { JSON_SEQUENCE = -1 }; /* in the template: where the text's ids stand */

struct tok_json {
    json_steps normalizer, pre_tokenizer, decoder;
    bool has_decoder;
    json_added *added; /* [n_added] */
    size_t n_added;
    tok_trie raw, normalised; /* added tokens to look for before and after the normalizer; values are indices into added */
    int32_t *layout;          /* post-processor: ids and JSON_SEQUENCE */
    size_t n_layout;
    bool *special; /* [n_vocab] */

    json_model model;
    tok_string_table vocab; /* the model's own tokens, over tok.texts */
    double *scores;         /* Unigram */
    double unknown_score;
    int32_t unk;
    bool fuse_unk, byte_fallback, ignore_merges;
    tok_string prefix, suffix; /* of BPE and WordPiece; may be empty */
    size_t max_word;           /* WordPiece: characters */
};

/* Reads the model and the added tokens: vocabulary, merges. Fills t's vocabulary. */
int json_read_model(json_reader *r, const json_t *root, tok *t, const tok_vocab *extra);
void json_model_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes);
/* The pieces of all tokens, as a stream needs them. */
int json_make_pieces(tok *t, weir_error *err);

#endif
