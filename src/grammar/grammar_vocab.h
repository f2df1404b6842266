/* The vocabulary as tries, for grammar_vocab.c and grammar_mask.c. */
#ifndef WEIR_GRAMMAR_VOCAB_H
#define WEIR_GRAMMAR_VOCAB_H

#include "grammar/grammar_internal.h"

/* In preorder; the children of node i begin at i + 1 and each next one where the one before ends. A sentinel follows the last.
 */
typedef struct trie_node {
    uint32_t end;    /* after the last node of the subtree */
    uint32_t tokens; /* into trie.tokens: those that end here, up to the next node's; up to nodes[end]'s those of the subtree */
    uint16_t depth;  /* 1 = first byte */
    uint8_t byte;
    uint8_t rest; /* plain code points that follow at most below; NO_REST inside of a code point, and where not all is plain */
} trie_node;

#define NO_REST UINT8_MAX

/* Tokens by what they are made of. Plain code points stand for themselves in a JSON string and in most other free text: no
 * controls, quotes, backslashes; all of valid UTF-8. A state of enough freedom takes all PLAIN tokens without a look at them.
 */
typedef enum trie_kind {
    TRIE_PLAIN,
    TRIE_LONG,
    TRIE_OTHER,
    N_TRIES
} trie_kind; /* LONG: plain, but over MAX_FREEDOM code points */

typedef struct trie {
    trie_node *nodes; /* [n_nodes + 1] */
    uint32_t n_nodes;
    uint32_t *tokens; /* in the order of their bytes */
} trie;

struct grammar_vocab {
    size_t n_tokens, n_words;
    char *bytes;     /* of all tokens */
    size_t *offsets; /* [n_tokens + 1] */
    trie tries[N_TRIES];
    uint32_t *plain; /* [MAX_FREEDOM][n_words]: the tokens of TRIE_PLAIN of at most so many code points, less one */
};

#endif
