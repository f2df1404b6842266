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

/* Sorted tokens share a prefix with the one before: the rest of their bytes are new nodes. */
static int build_trie(grammar_vocab *v, trie *t, const sorted_token *tokens, size_t n) {
    size_t n_nodes = 0;
    for (int pass = 0; pass < 2; pass++) {
        uint32_t *path = calloc(MAX_TOKEN_BYTES + 1, sizeof *path); /* the node at each depth of the last token */
        if (path == NULL) return WEIR_E_NOMEM;
        n_nodes = 0;
        uint32_t depth = 0;
        for (size_t i = 0; i < n; i++) {
            uint32_t shared = 0;
            if (i)
                while (shared < depth && shared < tokens[i].n_bytes && tokens[i].bytes[shared] == tokens[i - 1].bytes[shared]) shared++;
            for (; depth > shared; depth--)
                if (pass) t->nodes[path[depth]].end = (uint32_t)n_nodes;
            while (depth < tokens[i].n_bytes) {
                const uint8_t byte = (uint8_t)tokens[i].bytes[depth++];
                path[depth] = (uint32_t)n_nodes;
                if (pass) t->nodes[n_nodes] = (trie_node){0, NO_TOKEN, (uint16_t)depth, byte};
                n_nodes++;
            }
            if (!pass) continue;
            trie_node *node = &t->nodes[path[depth]];
            v->same_as[tokens[i].id] = node->token;
            node->token = tokens[i].id;
        }
        for (; depth > 0 && pass; depth--) t->nodes[path[depth]].end = (uint32_t)n_nodes;
        free(path);
        if (!pass && (t->nodes = malloc((n_nodes + 1) * sizeof *t->nodes)) == NULL) return WEIR_E_NOMEM;
    }
    t->n_nodes = (uint32_t)n_nodes;
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
            if (kind == TRIE_PLAIN) v->plain[i / 32] |= 1u << i % 32;
        }
        qsort(tokens, n, sizeof *tokens, compare_tokens);
        code = build_trie(v, &v->tries[kind], tokens, n);
    }
    free(tokens);
    return code;
}

int grammar_vocab_open(grammar_vocab **out, const grammar_token *tokens, size_t n_tokens, weir_error *err) {
    *out = NULL;
    size_t n_bytes = 0;
    FAIL_IF(n_tokens > MAX_TOKENS, err, WEIR_E_LIMIT, NULL, "a vocabulary of %zu tokens; at most %d are supported", n_tokens, MAX_TOKENS);
    for (size_t i = 0; i < n_tokens; i++) {
        FAIL_IF(tokens[i].n_bytes > MAX_TOKEN_BYTES, err, WEIR_E_LIMIT, NULL, "token %zu has %zu bytes; at most %d are supported", i,
                tokens[i].n_bytes, MAX_TOKEN_BYTES);
        n_bytes += tokens[i].n_bytes;
    }
    FAIL_IF(n_bytes > (size_t)1 << 30, err, WEIR_E_LIMIT, NULL, "a vocabulary of %zu bytes; at most 1 GiB is supported", n_bytes);
    grammar_vocab *v = calloc(1, sizeof *v);
    FAIL_IF(v == NULL, err, WEIR_E_NOMEM, NULL, "out of memory for a vocabulary");
    v->n_tokens = n_tokens;
    v->n_words = (n_tokens + 31) / 32;
    v->bytes = malloc(n_bytes + 1);
    v->offsets = malloc((n_tokens + 1) * sizeof *v->offsets);
    v->same_as = malloc((n_tokens + 1) * sizeof *v->same_as);
    v->plain = calloc(v->n_words + 1, sizeof *v->plain);
    int code = v->bytes && v->offsets && v->same_as && v->plain ? 0 : WEIR_E_NOMEM;
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
    free((*v)->same_as);
    free((*v)->plain);
    for (int kind = 0; kind < N_TRIES; kind++) free((*v)->tries[kind].nodes);
    free(*v);
    *v = NULL;
}

size_t grammar_vocab_mask_words(const grammar_vocab *v) { return v->n_words; }

int grammar_accept_token(grammar_state *s, const grammar_vocab *v, int32_t token, weir_error *err) {
    if (token < 0 || (size_t)token >= v->n_tokens || v->offsets[token] == v->offsets[token + 1]) return 0;
    return grammar_advance(s, v->bytes + v->offsets[token], v->offsets[token + 1] - v->offsets[token], err);
}
