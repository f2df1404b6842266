/* Token tries: see grammar_vocab.h. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "grammar/grammar_vocab.h"

enum { MAX_TOKENS = 1 << 24, MAX_TOKEN_BYTES = UINT16_MAX };

typedef struct sorted_token {
    const char *bytes;
    uint32_t n_bytes, id;
} sorted_token;

static trie_kind kind_of(const char *bytes, size_t n_bytes) {
    if (!utf8_valid(bytes, n_bytes)) return TRIE_OTHER;
    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        if (c < ' ' || c == '"' || c == '\\' || c == 0x7F) return TRIE_OTHER;
    }
    return utf8_count(bytes, n_bytes) <= MAX_FREEDOM ? TRIE_PLAIN : TRIE_LONG;
}

static int compare_tokens(const void *a, const void *b) {
    const sorted_token *x = a, *y = b;
    const uint32_t n = x->n_bytes < y->n_bytes ? x->n_bytes : y->n_bytes;
    const int order = memcmp(x->bytes, y->bytes, n);
    if (order) return order;
    if (x->n_bytes != y->n_bytes) return x->n_bytes < y->n_bytes ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The code points that the rest of a token below a node adds to those of other tokens there. */
static void note_rest(trie *t, const uint32_t *path, const sorted_token *token) {
    unsigned rest = 0;
    for (uint32_t depth = token->n_bytes; depth > 0; depth--) {
        const bool inside = depth < token->n_bytes && ((uint8_t)token->bytes[depth] & 0xC0) == 0x80;
        trie_node *node = &t->nodes[path[depth]];
        if (inside)
            node->rest = NO_REST;
        else if (node->rest != NO_REST && rest > node->rest)
            node->rest = (uint8_t)(rest < NO_REST ? rest : NO_REST);
        rest += ((uint8_t)token->bytes[depth - 1] & 0xC0) != 0x80;
    }
}

/* Sorted tokens share a prefix with the one before: the rest of their bytes are new nodes. */
static int build_trie(trie *t, const sorted_token *tokens, size_t n, bool plain) {
    uint32_t *path = calloc(MAX_TOKEN_BYTES + 1, sizeof *path); /* the node at each depth of the last token */
    size_t n_nodes = 1;
    for (size_t i = 0; i < n; i++) n_nodes += tokens[i].n_bytes;
    t->nodes = malloc(n_nodes * sizeof *t->nodes);
    t->tokens = malloc((n + 1) * sizeof *t->tokens);
    if (path == NULL || t->nodes == NULL || t->tokens == NULL) {
        free(path);
        return WEIR_E_NOMEM;
    }
    uint32_t depth = 0, at = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t shared = 0;
        while (shared < depth && shared < tokens[i].n_bytes && tokens[i].bytes[shared] == tokens[i - 1].bytes[shared]) shared++;
        for (; depth > shared; depth--) t->nodes[path[depth]].end = at;
        while (depth < tokens[i].n_bytes) {
            const uint8_t byte = (uint8_t)tokens[i].bytes[depth++];
            path[depth] = at;
            t->nodes[at++] = (trie_node){0, (uint32_t)i, (uint16_t)depth, byte, plain ? 0 : NO_REST};
        }
        if (plain) note_rest(t, path, &tokens[i]);
        t->tokens[i] = tokens[i].id;
    }
    for (; depth > 0; depth--) t->nodes[path[depth]].end = at;
    t->nodes[at] = (trie_node){.tokens = (uint32_t)n, .rest = NO_REST};
    t->n_nodes = at;
    free(path);
    trie_node *shrunk = realloc(t->nodes, (at + 1) * sizeof *shrunk);
    if (shrunk) t->nodes = shrunk;
    return 0;
}

/* Sorts the tokens into the tries. */
static int build_tries(grammar_vocab *v) {
    sorted_token *tokens = malloc((v->n_tokens + 1) * sizeof *tokens);
    int code = tokens ? 0 : WEIR_E_NOMEM;
    for (int kind = 0; kind < N_TRIES && code == 0; kind++) {
        size_t n = 0;
        for (size_t i = 0; i < v->n_tokens; i++) {
            const char *bytes = v->bytes + v->offsets[i];
            const size_t n_bytes = v->offsets[i + 1] - v->offsets[i];
            if (n_bytes == 0 || kind_of(bytes, n_bytes) != (trie_kind)kind) continue;
            tokens[n++] = (sorted_token){bytes, (uint32_t)n_bytes, (uint32_t)i};
            for (size_t k = utf8_count(bytes, n_bytes) - 1; kind == TRIE_PLAIN && k < MAX_FREEDOM; k++)
                v->plain[k * v->n_words + i / 32] |= 1u << i % 32;
        }
        qsort(tokens, n, sizeof *tokens, compare_tokens);
        code = build_trie(&v->tries[kind], tokens, n, kind != TRIE_OTHER);
    }
    free(tokens);
    return code;
}

int grammar_vocab_open(grammar_vocab **out, const grammar_token *tokens, size_t n_tokens, weir_error *err) {
    *out = NULL;
    size_t n_bytes = 0;
    FAIL_IF(n_tokens > MAX_TOKENS, err, WEIR_E_LIMIT, NULL, "a vocabulary of %zu tokens; at most %d are supported", n_tokens,
            MAX_TOKENS);
    for (size_t i = 0; i < n_tokens; i++) {
        FAIL_IF(tokens[i].n_bytes > MAX_TOKEN_BYTES, err, WEIR_E_LIMIT, NULL,
                "token %zu has %zu bytes; at most %d are supported", i, tokens[i].n_bytes, MAX_TOKEN_BYTES);
        n_bytes += tokens[i].n_bytes;
    }
    FAIL_IF(n_bytes > (size_t)1 << 30, err, WEIR_E_LIMIT, NULL, "a vocabulary of %zu bytes; at most 1 GiB is supported",
            n_bytes);
    grammar_vocab *v = calloc(1, sizeof *v);
    FAIL_IF(v == NULL, err, WEIR_E_NOMEM, NULL, "out of memory for a vocabulary");
    v->n_tokens = n_tokens;
    v->n_words = (n_tokens + 31) / 32;
    v->bytes = malloc(n_bytes + 1);
    v->offsets = malloc((n_tokens + 1) * sizeof *v->offsets);
    v->plain = calloc(MAX_FREEDOM * v->n_words + 1, sizeof *v->plain);
    int code = v->bytes && v->offsets && v->plain ? 0 : WEIR_E_NOMEM;
    for (size_t i = 0, at = 0; i <= n_tokens && code == 0; i++) {
        v->offsets[i] = at;
        if (i == n_tokens) break;
        if (tokens[i].n_bytes) memcpy(v->bytes + at, tokens[i].bytes, tokens[i].n_bytes);
        at += tokens[i].n_bytes;
    }
    if (code == 0) code = build_tries(v);
    if (code < 0) {
        grammar_vocab_close(&v);
        return error_set(err, code, NULL, "out of memory for a vocabulary");
    }
    *out = v;
    return 0;
}

void grammar_vocab_close(grammar_vocab **v) {
    if (v == NULL || *v == NULL) return;
    free((*v)->bytes);
    free((*v)->offsets);
    free((*v)->plain);
    for (int kind = 0; kind < N_TRIES; kind++) {
        free((*v)->tries[kind].nodes);
        free((*v)->tries[kind].tokens);
    }
    free(*v);
    *v = NULL;
}

size_t grammar_vocab_mask_words(const grammar_vocab *v) {
    return v->n_words;
}

int grammar_accept_token(grammar_state *s, const grammar_vocab *v, int32_t token, weir_error *err) {
    if (token < 0 || (size_t)token >= v->n_tokens || v->offsets[token] == v->offsets[token + 1]) return 0;
    return grammar_advance(s, v->bytes + v->offsets[token], v->offsets[token + 1] - v->offsets[token], err);
}
