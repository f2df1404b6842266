/* The merging loop of BPE and SPM: random vocabularies against a loop that looks at every pair for every merge, and the number
 * of steps of long words. Among the vocabularies are those that no trainer writes: merges out of order, scores that are equal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "small_vocab.h"
#include "tok/tok_internal.h"

enum { MAX_TOKEN = 8, MAX_MERGES = 80, MAX_WORD = 300 };

static small_vocab v;
static uint32_t random_state = 1;

static uint32_t random_below(uint32_t n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)random_state * n >> 32);
}

static char *random_word(char *out, size_t n, const char *letters) {
    const uint32_t n_letters = (uint32_t)strlen(letters);
    for (size_t i = 0; i < n; i++) out[i] = letters[random_below(n_letters)];
    return out;
}

static tok *open_vocab(void) {
    tok *t = NULL;
    weir_error err = {0};
    if (tok_open(&t, &v.vocab, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return t;
}

/* ---- random vocabularies --------------------------------------------------------------------------------------------------- */

static struct {
    char left[MAX_TOKEN + 1], right[MAX_TOKEN + 1];
} merges[MAX_MERGES];
static size_t n_merges;

/* Merges of letters and of what earlier merges make; with `shuffle` in an order in which parts come after what they make. */
static void random_merges(const char *letters, size_t n_wanted, bool shuffle) {
    static char made[MAX_MERGES + 26][MAX_TOKEN + 1];
    size_t n_made = 0;
    for (const char *letter = letters; *letter; letter++) memcpy(made[n_made++], (const char[]){*letter, 0}, 2);
    for (n_merges = 0; n_merges < n_wanted;) {
        const char *left = made[random_below((uint32_t)n_made)], *right = made[random_below((uint32_t)n_made)];
        if (strlen(left) + strlen(right) > MAX_TOKEN) continue;
        strcpy(merges[n_merges].left, left);
        strcpy(merges[n_merges++].right, right);
        strcpy(made[n_made], left);
        strcat(made[n_made++], right);
    }
    for (size_t i = n_merges - 1; shuffle && i > 0; i--) {
        const size_t k = random_below((uint32_t)i + 1);
        const __typeof__(merges[0]) kept = merges[i];
        merges[i] = merges[k];
        merges[k] = kept;
    }
}

static int32_t find_token(const char *text, size_t n_bytes) {
    for (size_t id = 0; id < v.vocab.n_tokens; id++)
        if (v.tokens[id].n_bytes == n_bytes && memcmp(v.tokens[id].text, text, n_bytes) == 0) return (int32_t)id;
    return -1;
}

static tok *bpe_vocab(const char *letters, size_t n_wanted, bool shuffle) {
    random_merges(letters, n_wanted, shuffle);
    small_vocab_init(&v, "gpt2", "gpt-2");
    small_vocab_add_alphabet(&v);
    for (size_t i = 0; i < n_merges; i++) {
        char text[2 * MAX_TOKEN + 2];
        strcat(strcat(strcpy(text, merges[i].left), " "), merges[i].right);
        small_vocab_merge(&v, text);
        strcat(strcpy(text, merges[i].left), merges[i].right);
        if (find_token(text, strlen(text)) < 0) small_vocab_add(&v, text, TOK_NORMAL, 0);
    }
    return open_vocab();
}

static tok *spm_vocab(const char *letters, size_t n_wanted, uint32_t n_scores) {
    random_merges(letters, n_wanted, true);
    small_vocab_init(&v, "llama", "");
    v.vocab.unk = small_vocab_add(&v, "<unk>", TOK_UNKNOWN, 0);
    v.vocab.has_add_space_prefix = true;
    small_vocab_add_bytes(&v);
    for (const char *letter = letters; *letter; letter++) small_vocab_add(&v, (const char[]){*letter, 0}, TOK_NORMAL, -1e3f);
    for (size_t i = 0; i < n_merges; i++) {
        char text[2 * MAX_TOKEN + 1];
        strcat(strcpy(text, merges[i].left), merges[i].right);
        if (find_token(text, strlen(text)) < 0) small_vocab_add(&v, text, TOK_NORMAL, -(float)random_below(n_scores));
    }
    return open_vocab();
}

/* ---- against a loop over all pairs ----------------------------------------------------------------------------------------- */

/* How late the pair a[n_a] b[n_b], which stand side by side, is merged; larger than all others: never. */
static double order_of(const tok *t, const char *a, size_t n_a, size_t n_b) {
    if (t->kind == TOK_SPM) {
        const int32_t id = find_token(a, n_a + n_b);
        return id < 0 ? 1e9 : -(double)v.scores[id];
    }
    for (size_t i = 0; i < n_merges; i++)
        if (strlen(merges[i].left) == n_a && strlen(merges[i].right) == n_b && memcmp(merges[i].left, a, n_a) == 0 &&
            memcmp(merges[i].right, a + n_a, n_b) == 0)
            return (double)i;
    return 1e9;
}

static void check_word(const tok *t, const char *word, size_t n_bytes) {
    size_t lengths[MAX_WORD], n = n_bytes;
    for (size_t i = 0; i < n; i++) lengths[i] = 1;
    for (;;) {
        double lowest = 1e9;
        size_t best = n, at = 0;
        for (size_t i = 0; i + 1 < n; at += lengths[i++]) {
            const double order = order_of(t, word + at, lengths[i], lengths[i + 1]);
            if (order < lowest) {
                lowest = order;
                best = i;
            }
        }
        if (best == n) break;
        lengths[best] += lengths[best + 1];
        memmove(&lengths[best + 1], &lengths[best + 2], (--n - best - 1) * sizeof *lengths);
    }
    int32_t ids[MAX_WORD];
    assert_int_equal(tok_encode(t, word, n_bytes, false, false, ids, MAX_WORD), n);
    for (size_t i = 0, at = 0; i < n; at += lengths[i++]) {
        assert_int_equal(v.tokens[ids[i]].n_bytes, lengths[i]);
        assert_memory_equal(v.tokens[ids[i]].text, word + at, lengths[i]);
    }
}

static void test_all_pairs(void **state) {
    static const char *const alphabets[] = {"a", "ab", "abc", "etaoinsh"};
    static const uint32_t n_scores[] = {1, 3, 50};
    (void)state;
    for (uint32_t round = 0; round < 48; round++) {
        const char *letters = alphabets[round % 4];
        const size_t n_wanted = 1 + random_below(letters[1] ? MAX_MERGES - 1 : 6);
        tok *t = round % 8 < 4 ? bpe_vocab(letters, n_wanted, round % 16 < 8) : spm_vocab(letters, n_wanted, n_scores[round % 3]);
        for (uint32_t i = 0; i < 16; i++) {
            char word[MAX_WORD];
            const size_t n_bytes = 2 + random_below(i % 4 ? 100 : MAX_WORD - 2);
            check_word(t, random_word(word, n_bytes, letters), n_bytes);
        }
        tok_close(&t);
        small_vocab_free(&v);
    }
}

/* ---- steps ----------------------------------------------------------------------------------------------------------------- */

static double steps_per_letter(const tok *t, const char *word, size_t n_bytes) {
    tok_work w = {0};
    if (t->kind == TOK_SPM) tok_spm_encode(t, &w, word, n_bytes, false);
    else tok_bpe_encode(t, &w, word, n_bytes);
    assert_false(w.failed);
    const double steps = (double)w.n_steps / (double)n_bytes;
    free(w.symbols);
    free(w.pairs);
    free(w.group);
    tok_pre_work_free(&w);
    buf_free(&w.text);
    return steps;
}

/* A word of four times the letters takes four times the steps, up to what a position of three bytes costs more than one of two. */
static void check_growth(tok *t, const char *name, const char *letters) {
    enum { LEAST = 25000, MOST = 1600000 };
    char *word = random_word(malloc(MOST), MOST, letters);
    const double first = steps_per_letter(t, word, LEAST);
    assert_true(first >= 1);
    for (size_t n = 2 * LEAST; n <= MOST; n *= 2) {
        const double steps = steps_per_letter(t, word, n);
        if (steps > 1.08 * first)
            fail_msg("%s: %.2f steps a letter for a word of %d letters, %.2f for one of %zu", name, first, LEAST, steps, n);
    }
    free(word);
    tok_close(&t);
    small_vocab_free(&v);
}

static void test_growth(void **state) {
    static const char letters[] = "etaoinshrdlu";
    (void)state;
    check_growth(bpe_vocab(letters, MAX_MERGES, false), "BPE", letters);
    check_growth(bpe_vocab(letters, MAX_MERGES, true), "BPE, merges out of order", letters);
    check_growth(bpe_vocab("a", 6, false), "BPE, one letter", "a");
    check_growth(spm_vocab(letters, MAX_MERGES, 1000), "SPM", letters);
    check_growth(spm_vocab(letters, MAX_MERGES, 1), "SPM, one score", letters);
    check_growth(spm_vocab("a", 6, 3), "SPM, one letter", "a");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_pairs), cmocka_unit_test(test_growth)};
    return cmocka_run_group_tests_name("tok merge", tests, NULL, NULL);
}
