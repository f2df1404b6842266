/* Token masks against the matcher, walks at random through masks, forced bytes, copies of states. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "grammar/grammar.h"

enum { N_TOKENS = 4000, MAX_WALK = 400 };

static uint64_t random_next(uint64_t *seed) {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    return *seed ^= *seed << 17;
}

/* All single bytes, pieces of JSON, words, code points cut in two, and long plain tokens. */
static grammar_vocab *make_vocab(grammar_token *tokens, char (*texts)[48]) {
    static const char *const parts[] = {"\"",   "\",",    "\": ",  "{\"",  "\"}", "}",    "]",    ", ",       "[",
                                        "a",    "b",      "name",  "1",    "23",  ".",    "-",    "e",        "true",
                                        "null", "\\",     "n",     "u00",  " ",   "\xc3", "\xa9", "\xc3\xa9", "\xe6\x97\xa5",
                                        "x",    "circle", "value", "next", "\n",  "0",    ":",    ",\""};
    uint64_t seed = 42;
    weir_error err;
    grammar_vocab *v;
    for (size_t i = 0; i < N_TOKENS; i++) {
        texts[i][0] = '\0';
        if (i < 256) {
            texts[i][0] = (char)i;
            tokens[i] = (grammar_token){texts[i], 1};
            continue;
        }
        size_t n = 0;
        const size_t n_parts = i % 97 == 0 ? 20 : 1 + random_next(&seed) % 4;
        for (size_t k = 0; k < n_parts; k++) {
            const char *part = parts[random_next(&seed) % (sizeof parts / sizeof parts[0])];
            if (n + strlen(part) >= sizeof texts[i]) break;
            memcpy(texts[i] + n, part, strlen(part));
            n += strlen(part);
        }
        tokens[i] = (grammar_token){texts[i], i % 501 == 0 ? 0 : n};
    }
    assert_int_equal(grammar_vocab_open(&v, tokens, N_TOKENS, &err), 0);
    return v;
}

static const char *const schemas[] = {
    "{\"type\":\"object\"}",
    ("{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":20},\"value\":{\"type\":\"integer\","
     "\"minimum\":0,\"maximum\":230}},"
     "\"required\":[\"name\"],\"additionalProperties\":false}"),
    "{\"type\":\"array\",\"items\":{\"type\":[\"number\",\"string\",\"null\"]},\"maxItems\":6}",
    "{\"type\":\"object\",\"properties\":{\"value\":{\"type\":\"integer\"},\"next\":{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":"
    "\"null\"}]}},\"required\":[\"next\"]}",
    "{\"type\":\"string\",\"pattern\":\"^[a-n]+x?$\"}",
    "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"boolean\"},\"maxProperties\":3}",
    "{\"type\":\"string\",\"maxLength\":300}",
};

/* Every token is in the mask exactly if the matcher takes it, in states that walks at random reach; what a walk that is steered
 * to its end makes is JSON. */
static void masks_agree_with_the_matcher(void **unused) {
    (void)unused;
    static grammar_token tokens[N_TOKENS];
    static char texts[N_TOKENS][48];
    static uint32_t bits[(N_TOKENS + 31) / 32];
    grammar_vocab *v = make_vocab(tokens, texts);
    weir_error err;
    uint64_t seed = 7;
    size_t n_ended = 0;
    for (size_t i = 0; i < sizeof schemas / sizeof schemas[0]; i++) {
        grammar *g;
        grammar_masks *m;
        if (grammar_compile_json_schema(&g, schemas[i], strlen(schemas[i]), &err) < 0)
            fail_msg("%s: %s", schemas[i], err.message);
        assert_int_equal(grammar_masks_open(&m, g, v, &err), 0);
        for (int round = 0; round < 12; round++) {
            grammar_state *s;
            buf out = BUF_INIT;
            assert_int_equal(grammar_state_open(&s, g, &err), 0);
            for (int step = 0; step < MAX_WALK; step++) {
                if (grammar_can_end(s) && random_next(&seed) % 4 == 0) break;
                assert_int_equal(grammar_mask(m, s, bits, &err), 0);
                int32_t chosen = -1;
                size_t n_seen = 0;
                for (int32_t t = 0; t < N_TOKENS; t++) {
                    const bool allowed = bits[t / 32] >> t % 32 & 1;
                    if (step % 7 == 0) {
                        grammar_state *copy;
                        assert_int_equal(grammar_state_copy(&copy, s, &err), 0);
                        if (grammar_accept_token(copy, v, t, &err) != allowed)
                            fail_msg("%s after '%s': token %d", schemas[i], out.data ? out.data : "", t);
                        grammar_state_close(&copy);
                    }
                    if (allowed && random_next(&seed) % ++n_seen == 0) chosen = t;
                }
                /* Towards the end of the walk, close what is open. */
                for (const char *p = "\"}],:0nul"; step > 60 && *p; p++)
                    if (bits[(uint8_t)*p / 32] >> (uint8_t)*p % 32 & 1) {
                        chosen = (uint8_t)*p;
                        break;
                    }
                if (chosen < 0) {
                    assert_true(grammar_can_end(s));
                    break;
                }
                assert_int_equal(grammar_accept_token(s, v, chosen, &err), 1);
                buf_append(&out, tokens[chosen].bytes, tokens[chosen].n_bytes);
            }
            if (grammar_can_end(s)) {
                json_error_t error;
                json_t *value = json_loadb(out.data, out.n_bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
                if (value == NULL) fail_msg("%s: '%s': %s", schemas[i], out.data, error.text);
                json_decref(value);
                n_ended++;
            }
            buf_free(&out);
            grammar_state_close(&s);
        }
        grammar_masks_close(&m);
        grammar_close(&g);
    }
    assert_true(n_ended > 40);
    grammar_vocab_close(&v);
}

static void forced_bytes_stop_at_a_choice(void **unused) {
    (void)unused;
    static const char text[] = "root ::= \"begin \" (\"abc\" | \"abd\") \" end\"";
    grammar *g;
    grammar_state *s;
    weir_error err;
    buf out = BUF_INIT;
    assert_int_equal(grammar_compile_gbnf(&g, text, sizeof text - 1, &err), 0);
    assert_int_equal(grammar_state_open(&s, g, &err), 0);
    assert_int_equal(grammar_forced_bytes(s, 100, &out, &err), 0);
    assert_string_equal(out.data, "begin ab");
    assert_int_equal(grammar_advance(s, "begin abd", 9, &err), 1);
    assert_int_equal(grammar_advance(s, " x", 2, &err), 0);
    buf_clear(&out);
    assert_int_equal(grammar_forced_bytes(s, 2, &out, &err), 0);
    assert_string_equal(out.data, " e");
    assert_int_equal(grammar_advance(s, " end", 4, &err), 1);
    buf_clear(&out);
    assert_int_equal(grammar_forced_bytes(s, 100, &out, &err), 0);
    assert_int_equal(out.n_bytes, 0);
    assert_true(grammar_can_end(s));
    buf_free(&out);
    grammar_state_close(&s);
    grammar_close(&g);
}

/* Deep nesting and long texts: stacks are freed and shared on the way. */
static void long_texts_stay_small(void **unused) {
    (void)unused;
    grammar *g;
    grammar_state *s;
    weir_error err;
    assert_int_equal(grammar_compile_json_schema(&g, "true", 4, &err), 0);
    assert_int_equal(grammar_state_open(&s, g, &err), 0);
    for (int i = 0; i < 100000; i++) assert_int_equal(grammar_advance(s, "[", 1, &err), 1);
    for (int i = 0; i < 100000; i++) assert_int_equal(grammar_advance(s, "[{\"a\":1}],", 10, &err), 1);
    assert_int_equal(grammar_advance(s, "1", 1, &err), 1);
    for (int i = 0; i < 100000; i++) assert_int_equal(grammar_advance(s, "]", 1, &err), 1);
    assert_true(grammar_can_end(s));
    grammar_state_close(&s);
    grammar_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(masks_agree_with_the_matcher),
        cmocka_unit_test(forced_bytes_stop_at_a_choice),
        cmocka_unit_test(long_texts_stay_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
