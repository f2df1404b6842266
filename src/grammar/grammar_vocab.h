/* The vocabulary as tries, for grammar_vocab.c and grammar_mask.c. */
#ifndef WEIR_GRAMMAR_VOCAB_H
#define WEIR_GRAMMAR_VOCAB_H

#include "grammar/grammar_internal.h"

#define NO_TOKEN UINT32_MAX

/* In preorder; the children of node i begin at i + 1 and each next one where the one before ends. */
typedef struct trie_node {
    uint32_t end;   /* after the last node of the subtree */
    uint32_t token; /* the first token that ends here, or NO_TOKEN; others by same_as */
    uint16_t depth; /* 1 = first byte */
    uint8_t byte;
} trie_node;

/* Tokens by what they are made of. Plain code points stand for themselves in a JSON string and in most other free text: no
 * controls, quotes, backslashes; all of valid UTF-8. A state of enough freedom takes all PLAIN tokens without a look at them. */
typedef enum trie_kind { TRIE_PLAIN, TRIE_LONG, TRIE_OTHER, N_TRIES } trie_kind; /* LONG: plain, but over MAX_FREEDOM code points */

typedef struct trie {
    trie_node *nodes;
    uint32_t n_nodes;
} trie;

struct grammar_vocab {
    size_t n_tokens, n_words;
    char *bytes; /* of all tokens */
    size_t *offsets; /* [n_tokens + 1] */
    uint32_t *same_as; /* [n_tokens]: the next token with the same bytes, or NO_TOKEN */
    trie tries[N_TRIES];
    uint32_t *plain; /* [n_words]: the tokens of TRIE_PLAIN */
};

#endif
