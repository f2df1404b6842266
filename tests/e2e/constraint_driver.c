/* Texts that random logits say under a grammar, for test_constraint.py: `constraint_driver schema|regex|gbnf FILE COUNT SEED` prints
 * one JSON value a line: {"text": ..., "finish": "stop"|"length"}, or {"error": ...} when FILE does not compile. The vocabulary is
 * made up: all bytes, JSON's pieces in every cut, letters, digits and parts of code points. After 60 tokens the logits begin to
 * favour what closes things, so that most texts end. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "engine/constraint.h"
#include "engine/sampler.h"

enum { N_TOKENS = 4096, MAX_OUTPUT = 400, EOG = N_TOKENS - 1 };

static uint64_t state;
static uint32_t below(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

static void make_vocabulary(grammar_token *tokens) {
    static char bytes[256], pieces[N_TOKENS][24];
    static const char *const parts[] = {"\"", "\":", "\",", "\"}", "{\"", "[", "]", "}", "},{", ",", ":", " ", "true", "false", "null", "-", ".", "e", "0", "12",
                                        "2024", "-07", "\\n", "\\u00", "a", "the", "na", "me", "ab", "T1", "Z", "@", "é", "\xE2\x82", "\xAC", "🙂", "x", "_"};
    const uint32_t n_parts = sizeof parts / sizeof parts[0];
    for (int i = 0; i < 256; i++) bytes[i] = (char)i, tokens[i] = (grammar_token){&bytes[i], 1};
    for (int i = 256; i < EOG; i++) {
        size_t n = 0;
        for (uint32_t k = 1 + below(4); k > 0; k--) {
            const char *part = below(3) ? parts[below(n_parts)] : (const char[]){(char)('a' + below(26)), 0};
            const size_t n_part = strlen(part);
            if (n + n_part >= sizeof pieces[i]) break;
            memcpy(pieces[i] + n, part, n_part);
            n += n_part;
        }
        tokens[i] = (grammar_token){pieces[i], n};
    }
    tokens[EOG] = (grammar_token){NULL, 0};
}

static bool closes(const grammar_token *t) { return t->n_bytes > 0 && strchr("\"}],0", t->bytes[0]) && t->bytes[0]; }

/* 1 = the text has ended, 0 = it was cut, negative = a failure. */
static int say(weir_grammar *g, const grammar_token *tokens, const weir_sampling *p, buf *out) {
    static float logits[N_TOKENS];
    static const int32_t eog[] = {EOG};
    const sampler_vocab vocab = {.n_tokens = N_TOKENS};
    constraint *c = NULL;
    sampler *s = NULL;
    weir_error err = {0};
    int code = constraint_open(&c, g, NULL, eog, 1, &err);
    if (code == 0) code = sampler_open(&s, p, &vocab, &err);
    bool ended = false;
    for (int i = 0; i < MAX_OUTPUT && code >= 0 && !ended; i++) {
        const uint32_t *mask = NULL;
        code = constraint_mask(c, &mask, &err);
        if (code < 0) break;
        ended = code == CONSTRAINT_COMPLETE;
        if (ended) break;
        for (int t = 0; t < N_TOKENS; t++) logits[t] = (float)below(1000) / 100 + (i > 60 && closes(&tokens[t]) ? 0.1f * (float)(i - 60) : 0);
        logits[EOG] = (float)below(1000) / 100 + (i > 60 ? 20 : 0);
        int32_t token = sampler_draw(s, logits, mask);
        ended = token == EOG;
        if (token < 0) code = WEIR_E_INTERNAL;
        if (ended || token < 0) break;
        buf_append(out, tokens[token].bytes, tokens[token].n_bytes);
        code = constraint_accept(c, tokens[token].bytes, tokens[token].n_bytes, &err);
        sampler_accept(s, token);
    }
    sampler_close(&s);
    constraint_close(&c);
    return code < 0 ? code : ended;
}

int main(int argc, char **argv) {
    static grammar_token tokens[N_TOKENS];
    if (argc != 5) return 2;
    FILE *file = fopen(argv[2], "rb");
    if (file == NULL) return 2;
    static char text[1 << 20];
    size_t n_bytes = fread(text, 1, sizeof text, file);
    fclose(file);
    state = 1;
    make_vocabulary(tokens);
    state = strtoull(argv[4], NULL, 10) * 2 + 1;
    weir_grammar_kind kind = argv[1][0] == 's' ? WEIR_GRAMMAR_JSON_SCHEMA : argv[1][0] == 'r' ? WEIR_GRAMMAR_REGEX : WEIR_GRAMMAR_GBNF;
    weir_grammars *grammars = NULL;
    weir_grammar *g = NULL;
    weir_error err = {0};
    if (weir_grammars_open_tokens(&grammars, tokens, N_TOKENS, &err) < 0) return 1;
    if (weir_grammar_open(&g, grammars, kind, text, n_bytes, &err) < 0) {
        printf("{\"error\": \"%d\"}\n", err.code);
        weir_grammars_close(&grammars);
        return 0;
    }
    int failed = 0;
    for (int i = 0; i < atoi(argv[3]); i++) {
        buf out = BUF_INIT;
        weir_sampling p = {.temperature = 1, .top_k = i % 2 ? 40 : 0, .top_p = i % 3 ? 1 : 0.9f, .repetition_penalty = 1, .seed = (uint64_t)i};
        int end = say(g, tokens, &p, &out);
        json_t *line = end < 0 ? NULL : json_pack("{s:s%, s:s}", "text", out.data ? out.data : "", out.n_bytes, "finish", end ? "stop" : "length");
        if (line) {
            json_dumpf(line, stdout, JSON_COMPACT);
            putchar('\n');
        } else if (end != 0) { /* a text that was cut may end inside of a code point */
            printf("{\"failed\": %d}\n", end);
            failed = 1;
        }
        json_decref(line);
        buf_free(&out);
    }
    weir_grammar_close(&g);
    weir_grammars_close(&grammars);
    return failed;
}
