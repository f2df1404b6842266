/* Grammars: the first byte chooses the notation, what follows up to a NUL byte is the schema, pattern or grammar, the rest a
 * text. Compilation must end with an answer; the matcher, its copies, its next bytes and its token masks must agree with each
 * other. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar.h"

enum { N_TOKENS = 256 + 8, MAX_TEXT = 200 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition) abort();
}

/* All bytes, and a few longer tokens; lives as long as the process. */
static const grammar_vocab *vocabulary(void) {
    static const char *const longer[8] = {"\"}", "\":", "true", "ab", "12", "[[", "\xc3\xa9", "],"};
    static char bytes[256];
    static grammar_vocab *v;
    grammar_token tokens[N_TOKENS];
    if (v) return v;
    for (int i = 0; i < 256; i++) {
        bytes[i] = (char)i;
        tokens[i] = (grammar_token){&bytes[i], 1};
    }
    for (int i = 0; i < 8; i++) tokens[256 + i] = (grammar_token){longer[i], strlen(longer[i])};
    require(grammar_vocab_open(&v, tokens, N_TOKENS, NULL) == 0);
    return v;
}

/* Masks against the matcher, in one state. */
static void check_state(grammar_masks *m, grammar_state *s) {
    uint32_t bits[(N_TOKENS + 31) / 32], next[8];
    grammar_next_bytes(s, next);
    if (grammar_mask(m, s, bits, NULL) < 0) return;
    require(memcmp(bits, next, sizeof next) == 0); /* the ids of single bytes are the bytes */
    for (int32_t t = 256; t < N_TOKENS; t++) {
        grammar_state *copy;
        require(grammar_state_copy(&copy, s, NULL) == 0);
        const int taken = grammar_accept_token(copy, vocabulary(), t, NULL);
        if (taken >= 0) require(taken == (int)(bits[t / 32] >> t % 32 & 1));
        grammar_state_close(&copy);
    }
    bool any = false;
    for (int i = 0; i < 8; i++) any = any || next[i];
    require(any || grammar_can_end(s)); /* no dead ends */
}

static void check_text(const grammar *g, const uint8_t *text, size_t n_bytes) {
    grammar_state *s;
    grammar_masks *m;
    if (grammar_state_open(&s, g, NULL) < 0) return;
    require(grammar_masks_open(&m, g, vocabulary(), NULL) == 0);
    check_state(m, s);
    for (size_t i = 0; i < n_bytes && i < MAX_TEXT; i++) {
        const int result = grammar_advance(s, (const char *)text + i, 1, NULL);
        if (result < 0) break;
        if (i < 20 || i % 16 == 0) check_state(m, s);
        if (result == 1) continue;
        /* Not this byte: go on with one that may come. */
        uint32_t next[8];
        int byte = 0;
        grammar_next_bytes(s, next);
        while (byte < 256 && !(next[byte / 32] >> byte % 32 & 1)) byte++;
        if (byte == 256) break;
        if (grammar_advance(s, &(char){(char)byte}, 1, NULL) < 0) break;
    }
    buf forced = BUF_INIT;
    if (grammar_forced_bytes(s, 32, &forced, NULL) == 0 && forced.n_bytes)
        require(grammar_advance(s, forced.data, forced.n_bytes, NULL) == 1);
    buf_free(&forced);
    grammar_masks_close(&m);
    grammar_state_close(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) return 0;
    const char *text = (const char *)data + 1;
    const uint8_t *end = memchr(text, '\0', size - 1);
    const size_t n_bytes = end ? (size_t)(end - data) - 1 : size - 1;
    grammar *g = NULL;
    weir_error err = {0};
    const int code = data[0] % 3 == 0   ? grammar_compile_json_schema(&g, text, n_bytes, &err)
                     : data[0] % 3 == 1 ? grammar_compile_regex(&g, text, n_bytes, &err)
                                        : grammar_compile_gbnf(&g, text, n_bytes, &err);
    require((code == 0) == (g != NULL) && (code == 0 || (err.code == code && err.message[0])));
    if (g) check_text(g, end ? end + 1 : data, end ? size - n_bytes - 2 : 0);
    grammar_close(&g);
    return 0;
}
