/* Random vocabularies and texts: what the tries and fast paths find against a look at every token in turn. */
#include <float.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "small_vocab.h"

static small_vocab v;
static uint32_t random_state = 1;

static uint32_t random_below(uint32_t n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)random_state * n >> 32);
}

/* Few letters, so that tokens are each other's prefixes and the text is full of them. */
static size_t random_text(char *out, size_t n, const char *letters) {
    const uint32_t n_letters = (uint32_t)strlen(letters);
    for (size_t i = 0; i < n; i++) out[i] = letters[random_below(n_letters)];
    out[n] = '\0';
    return n;
}

static tok *open_copy(const tok_vocab *vocab) {
    tok *t = NULL;
    weir_error err = {0};
    if (tok_open(&t, vocab, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return t;
}

/* The longest user-defined (or `control`) token that the text begins with; -1 = none. */
static int32_t longest(const char *text, size_t n_bytes, bool control) {
    int32_t found = -1;
    size_t best = 0;
    for (size_t id = 0; id < v.vocab.n_tokens; id++) {
        const tok_string s = v.tokens[id];
        const bool counts = v.types[id] == TOK_USER_DEFINED || (control && v.types[id] == TOK_CONTROL);
        if (counts && s.n_bytes > best && s.n_bytes <= n_bytes && memcmp(s.text, text, s.n_bytes) == 0) {
            best = s.n_bytes;
            found = (int32_t)id;
        }
    }
    return found;
}

static size_t naive_special(const char *text, size_t n_bytes, bool control, int32_t *ids) {
    size_t n = 0;
    for (size_t at = 0; at < n_bytes;) {
        const int32_t id = longest(text + at, n_bytes - at, control);
        ids[n++] = id >= 0 ? id : (unsigned char)text[at]; /* the bytes' tokens are the ids 0..255 */
        at += id >= 0 ? v.tokens[id].n_bytes : 1;
    }
    return n;
}

static void test_special(void **state) {
    static const char *const alphabets[] = {"ab", "<|a>", "\x01\x7f\x80\xfe\xff", "abcdefghijklmnopqrstuvwxyz\xc3\xa9"};
    (void)state;
    for (size_t round = 0; round < 40; round++) {
        const char *letters = alphabets[round % 4];
        small_vocab_init(&v, "gpt2", "gpt-2");
        small_vocab_add_alphabet(&v);
        for (size_t i = 0; i < 1000; i++) {
            char name[16];
            random_text(name, 1 + random_below(1 + (uint32_t)(round / 4)), letters);
            small_vocab_add(&v, name, random_below(2) ? TOK_CONTROL : TOK_USER_DEFINED, 0);
        }
        tok *t = open_copy(&v.vocab);
        for (size_t i = 0; i < 20; i++) {
            char text[300];
            int32_t expected[300], got[300];
            const size_t n_bytes = random_text(text, 1 + random_below(299), letters);
            for (int parse = 0; parse < 2; parse++) {
                const size_t n = naive_special(text, n_bytes, parse, expected);
                assert_int_equal(tok_encode(t, text, n_bytes, false, parse, got, 300), n);
                assert_memory_equal(got, expected, n * sizeof *got);
            }
        }
        tok_close(&t);
        small_vocab_free(&v);
    }
}

/* ---- Unigram ------------------------------------------------------------------------------------------------------------ */

static int32_t find(const char *text, size_t n_bytes) {
    for (size_t id = 0; id < v.vocab.n_tokens; id++)
        if (v.tokens[id].n_bytes == n_bytes && memcmp(v.tokens[id].text, text, n_bytes) == 0) return (int32_t)id;
    return -1;
}

/* The probability of the best cover of ASCII text without spaces, where every letter is a token. */
static double best_score(const char *text, size_t n_bytes) {
    double best[128] = {0};
    for (size_t end = 1; end <= n_bytes; end++) {
        best[end] = -DBL_MAX;
        for (size_t begin = 0; begin < end; begin++) {
            const int32_t id = find(text + begin, end - begin);
            if (id >= 0 && best[begin] + (double)v.scores[id] > best[end]) best[end] = best[begin] + (double)v.scores[id];
        }
    }
    return best[n_bytes];
}

static void test_unigram(void **state) {
    (void)state;
    for (size_t round = 0; round < 20; round++) {
        small_vocab_init(&v, "t5", "");
        v.vocab.unk = small_vocab_add(&v, "<unk>", TOK_UNKNOWN, 0);
        v.vocab.eos = small_vocab_add(&v, "</s>", TOK_CONTROL, 0);
        v.vocab.has_add_space_prefix = true;
        for (const char *letter = "abc"; *letter; letter++) small_vocab_add(&v, (const char[]){*letter, 0}, TOK_NORMAL, -9);
        for (size_t i = 0; i < 300; i++) {
            char name[12];
            random_text(name, 2 + random_below(8), "abc");
            if (find(name, strlen(name)) < 0)
                small_vocab_add(&v, name, TOK_NORMAL, -1.0f - (float)random_below(100000) / 5000.0f);
        }
        tok *t = open_copy(&v.vocab);
        for (size_t i = 0; i < 30; i++) {
            char text[120];
            int32_t ids[120];
            const size_t n_bytes = random_text(text, 1 + random_below(119), "abc");
            const int64_t n = tok_encode(t, text, n_bytes, false, false, ids, 120);
            double score = 0;
            size_t at = 0;
            for (int64_t k = 0; k < n; k++) {
                const tok_string s = v.tokens[ids[k]];
                assert_memory_equal(text + at, s.text, s.n_bytes);
                at += s.n_bytes;
                score += (double)v.scores[ids[k]];
            }
            assert_int_equal(at, n_bytes);
            assert_true(score >= best_score(text, n_bytes) - 1e-9);
        }
        tok_close(&t);
        small_vocab_free(&v);
    }
}

/* ---- WordPiece ---------------------------------------------------------------------------------------------------------- */

/* ASCII read at once against the same text read character by character: between two letters, U+00AD (format, dropped) changes
 * nothing but the path the text takes. */
static void test_wordpiece_paths(void **state) {
    static const char letters[] = "aAbcHELLOworld ,.!?'-_#\t\n\x01\x7f\x1f$^";
    (void)state;
    small_vocab_bert(&v);
    for (const char *letter = "bcdehlorw,!?-_#$^"; *letter; letter++) {
        small_vocab_add(&v, (const char[]){'\xe2', '\x96', '\x81', *letter, 0}, TOK_NORMAL, 0);
        small_vocab_add(&v, (const char[]){*letter, 0}, TOK_NORMAL, 0);
    }
    for (int lowercase = 0; lowercase < 2; lowercase++) {
        v.vocab.has_lowercase = true;
        v.vocab.lowercase = lowercase;
        tok *t = open_copy(&v.vocab);
        for (size_t i = 0; i < 2000; i++) {
            char text[200], slow[600];
            int32_t fast_ids[600], slow_ids[600];
            size_t n_slow = 0;
            const size_t n_bytes = random_text(text, random_below(200), letters);
            for (size_t k = 0; k < n_bytes; k++) {
                slow[n_slow++] = text[k];
                memcpy(slow + n_slow, "\u00ad", 2);
                n_slow += 2;
            }
            const int64_t n = tok_encode(t, text, n_bytes, true, false, fast_ids, 600);
            assert_int_equal(tok_encode(t, slow, n_slow, true, false, slow_ids, 600), n);
            assert_memory_equal(fast_ids, slow_ids, (size_t)n * sizeof *slow_ids);
        }
        tok_close(&t);
    }
    small_vocab_free(&v);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_special), cmocka_unit_test(test_unigram),
                                       cmocka_unit_test(test_wordpiece_paths)};
    return cmocka_run_group_tests_name("tok differential", tests, NULL, NULL);
}
