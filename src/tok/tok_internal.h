/* Inside src/tok only: the tokeniser object, the tables it is made of, and the scratch memory of one tok_encode. */
#ifndef WEIR_TOK_INTERNAL_H
#define WEIR_TOK_INTERNAL_H

#include "base/arena.h"
#include "tok/tok.h"

typedef enum tok_kind { TOK_SPM, TOK_BPE, TOK_WORDPIECE, TOK_UNIGRAM } tok_kind;

typedef enum tok_attribute {
    TOK_IS_NORMAL = 1 << 0,
    TOK_IS_UNKNOWN = 1 << 1,
    TOK_IS_CONTROL = 1 << 2,
    TOK_IS_USER_DEFINED = 1 << 3,
    TOK_IS_UNUSED = 1 << 4,
    TOK_IS_BYTE = 1 << 5,
    TOK_IS_EOG = 1 << 6,
    TOK_HAS_LSTRIP = 1 << 7, /* swallows the white space before it */
    TOK_HAS_RSTRIP = 1 << 8, /* ... after it */
} tok_attribute;

/* ---- tok_table.c: hash tables with open addressing, keyed by a seed of the process (a file cannot flood them) ---------- */

/* Strings to their index. The strings themselves lie in an array that the caller passes each time. */
typedef struct tok_string_table {
    struct tok_string_slot {
        uint32_t tag;  /* upper half of the hash */
        int32_t index; /* -1 = empty */
    } * slots;
    size_t mask, n; /* capacity - 1; 0 while empty */
} tok_string_table;

/* Room for `n` strings in all. False = out of memory. */
bool tok_strings_reserve(tok_string_table *table, const tok_string *strings, size_t n);
void tok_strings_free(tok_string_table *table);
/* Index of the string, -1 if it is not there. */
int32_t tok_strings_find(const tok_string_table *table, const tok_string *strings, const char *text, size_t n_bytes);
/* Adds strings[index] unless an equal one is there; returns the index of the one that now is. The table must have room. */
int32_t tok_strings_add(tok_string_table *table, const tok_string *strings, int32_t index);

/* Pairs of symbols to the rank of their merge and the symbol it makes. */
typedef struct tok_pair_table {
    struct tok_pair_slot {
        int32_t left, right; /* left = -1: empty */
        uint32_t rank;
        int32_t merged;
    } * slots;
    size_t mask;
} tok_pair_table;

bool tok_pairs_reserve(tok_pair_table *table, size_t n);
void tok_pairs_free(tok_pair_table *table);
const struct tok_pair_slot *tok_pairs_find(const tok_pair_table *table, int32_t left, int32_t right);  /* NULL if absent */
void tok_pairs_add(tok_pair_table *table, int32_t left, int32_t right, uint32_t rank, int32_t merged); /* the first one stays */

/* Longer strings are not looked for in the text where a look at each of its bytes would have to follow them: no real token
 * comes near, and a file cannot make encoding quadratic. */
enum { TOK_LONGEST_MATCH = 512 };

/* A trie over bytes in a double array (Aoe 1989): the child of `node` over `byte` is at nodes[node].base ^ byte, if what lies
 * there has `node` as its parent. Node 0 is the root. */
typedef struct tok_trie_node {
    uint32_t base, parent; /* parent UINT32_MAX: the root, or unused */
    int32_t id;            /* of the token that ends here; -1 = none */
    float score;           /* of that token; 0 for user-defined ones */
} tok_trie_node;
typedef struct tok_trie {
    tok_trie_node *nodes; /* [n_nodes], a multiple of 256; NULL: holds no string */
    size_t n_nodes;
    bool starts[256]; /* whether any string begins with the byte */
} tok_trie;

/* The tokens of t->texts that have any of the attributes `any_of` (0: all tokens) and none of `none_of`; of equal ones the first. False = out
 * of memory (tok_trie_free all the same). */
bool tok_trie_open(tok_trie *trie, const tok *t, uint16_t any_of, uint16_t none_of);
/* The same for any strings[n], empty ones left out; their ids are their places. */
bool tok_trie_make(tok_trie *trie, const tok_string *strings, size_t n);
void tok_trie_free(tok_trie *trie);
/* The child of `node` (0 = root) over `byte`; 0 if there is none. The trie is open. */
static inline uint32_t tok_trie_step(const tok_trie *trie, uint32_t node, unsigned char byte) {
    const uint32_t child = trie->nodes[node].base ^ byte;
    return trie->nodes[child].parent == node ? child : 0;
}
/* The longest string that the text begins with: its token, with *length set; -1 if none. */
int32_t tok_trie_longest(const tok_trie *trie, const char *text, size_t n_bytes, size_t *length);

/* ---- scratch of one tok_encode ------------------------------------------------------------------------------------------ */

/* A piece of text on its way to a token. */
typedef struct tok_symbol {
    uint32_t start, n_bytes; /* n_bytes 0: merged into its left neighbour */
    uint32_t prev, next;     /* UINT32_MAX = none */
    int32_t id;              /* symbol; -1 = none */
} tok_symbol;

/* Two neighbours that may be merged. */
typedef struct tok_pair {
    uint32_t order;   /* of the merge: lower ones first */
    uint32_t left;    /* the symbol on the left: of equal orders the leftmost first */
    uint32_t n_bytes; /* of both symbols together; when they no longer have it, the entry is out of date */
    int32_t merged;
    uint32_t next; /* in the list that it waits in */
} tok_pair;

typedef struct tok_work {
    int32_t *ids;
    size_t capacity;
    int64_t n_ids;
    bool failed; /* out of memory: the result is worthless */
    tok_symbol *symbols;
    size_t n_symbols, symbols_capacity;
    tok_pair *pairs; /* tok_merge.c: pairs that wait, and those of one order by position */
    size_t n_pairs, pairs_capacity;
    uint32_t *group;
    size_t group_capacity;
    uint64_t n_steps; /* looks at a pair and moves of one: what merging costs, for tests */
    size_t *ends[2]; /* pre-tokeniser: where the pieces end, before and after a rule */
    size_t n_ends, ends_capacity[2];
    void *match_data; /* pcre2_match_data */
    buf text;         /* the fragment as normalised */
} tok_work;

static inline void tok_emit(tok_work *w, int32_t id) {
    if ((size_t)w->n_ids < w->capacity) w->ids[w->n_ids] = id;
    w->n_ids++;
}
/* Grows an array of the scratch to hold `n` items of `size` bytes; false (and w->failed) = out of memory. */
bool tok_work_grow(tok_work *w, void **array, size_t *capacity, size_t n, size_t size);

/* ---- tok_pre.c: how text is cut into words before merging ------------------------------------------------------------------
 */

typedef struct tok_pre tok_pre; /* compiled rules */
typedef struct tok_pre_traits {
    bool raw;            /* merges run on the text itself, not on GPT-2's alphabet of bytes */
    bool escape_spaces;  /* ' ' is stored as U+2581 */
    bool drop_spaces;    /* white space is dropped after splitting */
    bool whole_newlines; /* a run of newlines that is a token is taken whole */
    bool ignore_merges;  /* a word that is a token is taken whole */
    bool add_bos;        /* default */
    bool force_bos;      /* whatever the file says */
} tok_pre_traits;

/* WEIR_E_UNSUPPORTED for a name that the table lacks (empty: "default"), WEIR_E_NOMEM, WEIR_E_INTERNAL. */
int tok_pre_open(tok_pre **out, tok_string name, tok_pre_traits *traits, weir_error *err);
void tok_pre_close(tok_pre **pre);
/* Cuts text[n_bytes], valid UTF-8, into words: w->ends[0][0..n_ends) are their ends. False (and w->failed) = out of memory. */
bool tok_pre_split(const tok_pre *pre, tok_work *w, const char *text, size_t n_bytes);
void tok_pre_work_free(tok_work *w);

/* ---- the tokeniser ----------------------------------------------------------------------------------------------------------
 */

typedef struct tok_charsmap { /* see tok_unigram.c */
    uint32_t *units;
    size_t n_units;
    const char *replacements;
    size_t n_replacements;
} tok_charsmap;

typedef struct tok_json tok_json; /* tok_json_internal.h */

struct tok {
    arena memory;
    tok_json *json; /* the pipeline of a tokenizer.json; NULL for a vocabulary of a GGUF file */
    tok_kind kind;
    int32_t n_vocab;
    tok_string *texts;    /* [n_vocab] as stored */
    tok_string *pieces;   /* [n_vocab] as they come out */
    uint16_t *attributes; /* [n_vocab] tok_attribute */
    float *scores;        /* [n_vocab] */
    tok_string_table by_text;
    tok_trie special[2]; /* by parse_special: control, unknown and user-defined tokens, or the last only */
    int32_t bos, eos, unk, sep;
    bool add_bos, add_eos, add_space_prefix, remove_extra_whitespaces;
    int32_t byte_ids[256]; /* what stands for a byte that no other token covers; -1 = none */
    size_t longest;        /* bytes of the longest token */

    /* byte-level BPE. Symbols are the tokens and, after them, steps of merges that are no tokens. */
    tok_pre *pre;
    tok_pre_traits traits;
    tok_string
        *symbols; /* [n_symbols] the bytes each stands for; the same array as texts when traits.raw and nothing was added */
    size_t n_symbols, symbols_capacity;
    tok_string_table by_symbol;
    tok_pair_table pairs;
    int32_t byte_symbols[256];

    bool cut_at_spaces; /* SPM: U+2581 stands only at the beginning of tokens, so that words can be merged one by one */

    bool lowercase, strip_accents; /* WordPiece */
    tok_trie words;                /* WordPiece, Unigram: what text may be made of */
    tok_charsmap charsmap;         /* Unigram */
    bool plain[256];               /* Unigram: ASCII that no rule changes, unless something other than ASCII follows it */
    float unknown_score;
};

/* tok_pre.c: Unicode's White_Space. */
bool tok_is_space(uint32_t c);
/* tok_wordpiece.c: a Chinese character, as BERT counts them. */
bool tok_is_chinese(uint32_t c);
/* tok_unigram.c: reads a precompiled_charsmap, bytes[n]. */
int tok_charsmap_open(tok_charsmap *map, arena *memory, const unsigned char *bytes, size_t n, weir_error *err);
/* tok_bpe.c: the byte that a character of GPT-2's alphabet stands for; -1 = none. */
int tok_alphabet_byte(uint32_t c);
/* tok.c: fills n_vocab, texts, attributes, scores, by_text. */
int tok_copy_tokens(tok *t, const tok_vocab *vocab, weir_error *err);

/* tok_json*.c, for a tok with `json`. */
void tok_json_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes, bool add_special, bool parse_special);
int tok_json_decode(const tok *t, const int32_t *ids, size_t n, bool special, buf *out); /* 0 or WEIR_E_NOMEM */
bool tok_json_hides(const tok *t, int32_t id);                                           /* a special added token */
void tok_json_free(tok_json *j);                                                         /* NULL allowed */

#define TOK_SPACE "\xe2\x96\x81" /* U+2581, which stands for a space */

/* Each turns text[n_bytes], a fragment without special tokens, into ids. `first`: nothing or a special token precedes it. */
void tok_bpe_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes);
void tok_spm_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes, bool first);
void tok_wordpiece_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes);
void tok_unigram_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes);

/* What each kind needs beyond the vocabulary. t->texts and t->attributes are complete. */
int tok_bpe_open(tok *t, const tok_vocab *vocab, weir_error *err);
int tok_spm_open(tok *t, weir_error *err);
int tok_wordpiece_open(tok *t, const tok_vocab *vocab, weir_error *err);
int tok_unigram_open(tok *t, const tok_vocab *vocab, weir_error *err);

/* tok_merge.c: merges the symbols w->symbols[0..n) of `text` until nothing can be merged. */
void tok_merge(const tok *t, tok_work *w, const char *text);

/* tok_special.c: marks tokens by their names (end of generation, fill in the middle) and opens t->special. */
int tok_special_open(tok *t, const tok_vocab *vocab, weir_error *err);

#endif
