/* Tokenisers: text to token ids and back. Byte-level BPE (with the pre-tokenisers of a table), SPM; WordPiece and Unigram.
 * Owns: vocabulary look-up, merging, pre-tokenisation, special-token splitting, pieces, streaming detokenisation.
 * Knows nothing of GGUF, models or requests: it is built from a tok_vocab that the model layer fills in.
 * Immutable after tok_open; any thread. tok_stream is owned by one thread. */
#ifndef WEIR_TOK_H
#define WEIR_TOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "weir/weir_error.h"

typedef struct tok_string {
    const char *text; /* not NUL-terminated */
    size_t n_bytes;
} tok_string;

/* As tokenizer.ggml.token_type numbers them. */
typedef enum tok_type {
    TOK_NORMAL = 1,
    TOK_UNKNOWN = 2,
    TOK_CONTROL = 3,
    TOK_USER_DEFINED = 4,
    TOK_UNUSED = 5,
    TOK_BYTE = 6,
} tok_type;

/* What a tokeniser is made from. All arrays belong to the caller and are only read during tok_open. */
typedef struct tok_vocab {
    tok_string model; /* tokenizer.ggml.model: "llama" (SPM), "gpt2" (byte-level BPE), "bert" (WordPiece), "t5" (Unigram) */
    tok_string pre;   /* tokenizer.ggml.pre, or empty */
    size_t n_tokens;
    const tok_string *tokens; /* [n_tokens] */
    const float *scores;      /* [n_tokens] or NULL */
    const int32_t *types;     /* [n_tokens] tok_type, or NULL: all normal */
    size_t n_merges;
    const tok_string *merges;                            /* [n_merges] "left right" */
    int32_t bos, eos, eot, eom, unk, sep, pad, mask, nl; /* -1 = the file does not say; then SPM, WordPiece and Unigram use the
                                                            ids of their original vocabularies, byte-level BPE none */
    bool add_bos, add_eos, add_sep, add_space_prefix, remove_extra_whitespaces;
    bool has_add_bos, has_add_eos, has_add_space_prefix; /* whether the file says; else the tokeniser's own default holds */
    const int32_t *ends; /* [n_ends] further tokens that end a generation, or NULL */
    size_t n_ends;
    const int32_t *fim;            /* [TOK_N_FIM] prefix, suffix, middle, pad, repository, file separator; -1 = none; or NULL */
    bool has_lowercase, lowercase; /* WordPiece: fold to lower case (default: yes) */
    bool has_strip_accents, strip_accents; /* WordPiece: drop combining marks (default: as lowercase) */
    const unsigned char *charsmap;         /* Unigram: tokenizer.ggml.precompiled_charsmap, [n_charsmap], or NULL */
    size_t n_charsmap;
    bool special_rstrip; /* special tokens swallow the white space after them (the Phi-3 family) */
    bool mask_lstrip;    /* the mask token swallows the white space before it */
} tok_vocab;

enum { TOK_N_FIM = 6 };

typedef struct tok tok;

/* Of equal tokens the first is used; empty ones are never produced. A merge of parts that are no tokens is kept as a step on
 * the way to one that is. Errors: WEIR_E_UNSUPPORTED (model or pre-tokeniser that the tables lack; the message lists what is
 * supported), WEIR_E_FORMAT (inconsistent vocabulary), WEIR_E_NOMEM. On failure *out is NULL. */
int tok_open(tok **out, const tok_vocab *vocab, weir_error *err);
void tok_close(tok **t);

/* The names that tokenizer.ggml.pre and tokenizer.ggml.model may have, by index; NULL after the last. */
const char *tok_pre_name(size_t index);
const char *tok_model_name(size_t index);

int32_t tok_n_vocab(const tok *t);
int32_t tok_bos(const tok *t); /* -1 = none; likewise the next two */
int32_t tok_eos(const tok *t);
int32_t tok_find(const tok *t, const char *text, size_t n_bytes); /* id of a token's exact text as stored; -1 = none */
bool tok_is_eog(const tok *t, int32_t id); /* EOS, EOT, EOM and the known end-of-turn names among control tokens */
bool tok_is_control(const tok *t, int32_t id);
bool tok_adds_bos(const tok *t);
bool tok_adds_eos(const tok *t);

/* See weir_tokenize. Linear in n_bytes (times a logarithm), whatever the text: a 100,000-character word too. Any bytes: runs
 * that are not UTF-8 are words of their own and go through the byte tokens unchanged, so that decoding gives them back (only
 * WordPiece and Unigram read them as U+FFFD). WEIR_E_LIMIT for more than 1 GiB, WEIR_E_NOMEM. Special tokens are matched
 * leftmost, then longest; those of more than 512 bytes are not. */
int64_t tok_encode(const tok *t, const char *text, size_t n_bytes, bool add_special, bool parse_special, int32_t *ids,
                   size_t capacity);
/* See weir_token_bytes. Valid until tok_close. */
const char *tok_piece(const tok *t, int32_t id, bool special, size_t *n_bytes);
/* Appends the text of ids[n]: the pieces, less the one leading space that add_space_prefix put before the first text (SPM,
 * Unigram), and for WordPiece less the leading space and the spaces before . , ! ? and in contractions. WEIR_E_INVALID for an
 * id out of range (nothing is appended then), WEIR_E_NOMEM. */
int tok_decode(const tok *t, const int32_t *ids, size_t n, bool special, buf *out, weir_error *err);

/* Streaming UTF-8: bytes in, whole code points out. Bytes of an unfinished code point wait; an ill-formed sequence becomes
 * U+FFFD once per maximal subpart (as Unicode 15, section 3.9 recommends and Python's incremental decoder does). */
typedef struct tok_stream {
    char held[4];
    size_t n_held;
} tok_stream;
#define TOK_STREAM_INIT ((tok_stream){.n_held = 0})
void tok_stream_push(tok_stream *s, const char *bytes, size_t n_bytes, buf *out);
void tok_stream_finish(tok_stream *s, buf *out); /* an unfinished tail becomes U+FFFD */

#endif
