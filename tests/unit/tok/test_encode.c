/* What text becomes and what ids give back, for each kind of vocabulary; special tokens; streaming; long words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "small_vocab.h"

static small_vocab v;

static tok *open_vocab(void) {
    tok *t = NULL;
    weir_error err = {0};
    if (tok_open(&t, &v.vocab, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    small_vocab_free(&v);
    return t;
}

/* The text's tokens as stored, joined with '|'. */
static void check(const tok *t, const char *text, size_t n_bytes, int flags, const char *expected) {
    enum { ADD = 1, PARSE = 2 };
    int32_t ids[256];
    buf joined = BUF_INIT;
    const int64_t n = tok_encode(t, text, n_bytes, flags & ADD, flags & PARSE, ids, 256);
    assert_in_range(n, 0, 256);
    for (int64_t i = 0; i < n; i++) {
        size_t n_piece;
        const char *piece = tok_piece(t, ids[i], true, &n_piece);
        if (i) buf_putc(&joined, '|');
        buf_append(&joined, piece, n_piece);
    }
    if (strcmp(joined.data ? joined.data : "", expected) != 0)
        fail_msg("'%s' became %s; %s is right", text, joined.data ? joined.data : "", expected);
    buf_free(&joined);
}
#define CHECK(t, text, flags, expected) check(t, text, sizeof(text) - 1, flags, expected)
enum { PLAIN = 0, ADD = 1, PARSE = 2 };

static void test_byte_level(void **state) {
    (void)state;
    small_vocab_gpt2(&v, "gpt-2");
    tok *t = open_vocab();
    CHECK(t, "", PLAIN, "");
    CHECK(t, "hello", PLAIN, "hello");
    CHECK(t, "hello world", PLAIN, "hello| world"); /* through " worl", which is no token */
    CHECK(t, "hello worl", PLAIN, "hello| |w|o|r|l");
    CHECK(t, "hell hel", PLAIN, "hell| |he|l");
    CHECK(t, "123 12", PLAIN, "123| |12");
    CHECK(t, "a  a", PLAIN, "a| | |a");
    CHECK(t, "<|end|>@@x", PLAIN, "<|||e|n|d|||>|@@|x");
    CHECK(t, "hello<|end|>hello", PARSE, "hello|<|end|>|hello");
    CHECK(t, "<|end", PARSE, "<|||e|n|d");
    assert_false(tok_adds_bos(t));
    tok_close(&t);
}

static void test_bytes_round_trip(void **state) {
    (void)state;
    static const char text[] = "a\0b\xff\xfe caf\xc3\xa9 \xe4\xb8 \xf0\x9f\x98\x80\xc0\x80 \xed\xa0\x80\r\n\xc2";
    static const char *const pres[] = {"gpt-2", "default", "llama-bpe", "deepseek-llm", "kimi-k2", "superbpe", "afmoe"};
    for (size_t i = 0; i < sizeof pres / sizeof pres[0]; i++) {
        small_vocab_gpt2(&v, pres[i]);
        tok *t = open_vocab();
        int32_t ids[64];
        buf out = BUF_INIT;
        const int64_t n = tok_encode(t, text, sizeof text, false, false, ids, 64);
        assert_in_range(n, 1, 64);
        assert_int_equal(tok_decode(t, ids, (size_t)n, false, &out, NULL), 0);
        assert_int_equal(out.n_bytes, sizeof text);
        assert_memory_equal(out.data, text, sizeof text);
        buf_free(&out);
        tok_close(&t);
    }
}

static void test_capacity(void **state) {
    (void)state;
    small_vocab_gpt2(&v, "gpt-2");
    tok *t = open_vocab();
    int32_t ids[3] = {-7, -7, -7};
    assert_int_equal(tok_encode(t, "hello world 12", 14, false, false, NULL, 0), 4);
    assert_int_equal(tok_encode(t, "hello world 12", 14, false, false, ids, 2), 4);
    assert_true(ids[0] >= 0 && ids[1] >= 0);
    assert_int_equal(ids[2], -7);
    tok_close(&t);
}

static void test_ignore_merges(void **state) {
    (void)state;
    small_vocab_gpt2(&v, "llama-bpe");
    small_vocab_add(&v, "hex", TOK_NORMAL, 0); /* no merge makes it */
    tok *t = open_vocab();
    CHECK(t, "hex", PLAIN, "hex");
    CHECK(t, "hexa", PLAIN, "he|x|a");
    CHECK(t, "a", ADD, "<|x|>|a"); /* llama-bpe adds BOS where the file does not say */
    tok_close(&t);
    small_vocab_gpt2(&v, "qwen2");
    small_vocab_add(&v, "hex", TOK_NORMAL, 0);
    t = open_vocab();
    CHECK(t, "hex", PLAIN, "he|x");
    CHECK(t, "a", ADD, "a");
    tok_close(&t);
}

static void test_raw_bpe(void **state) {
    (void)state;
    small_vocab_gemma4(&v);
    tok *t = open_vocab();
    CHECK(t, "hi hi", PLAIN, "hi| hi");
    CHECK(t, "hi  hi", PLAIN, "hi|  |hi");
    CHECK(t, "hi\n\n\nhi", ADD, "<bos>|hi|\n\n\n|hi");
    CHECK(t, "\n\n\n\n", PLAIN, "\n\n|\n\n");
    CHECK(t, "\xc3\xa9\xc3\xa9z\xff", PLAIN, "\xc3\xa9\xc3\xa9|z|\xff");
    tok_close(&t);
}

static void test_spm(void **state) {
    (void)state;
    small_vocab_llama(&v);
    tok *t = open_vocab();
    CHECK(t, "", ADD, "<s>");
    CHECK(t, "hello", ADD, "<s>| hello");
    CHECK(t, "hello hello", PLAIN, " hello| hello");
    CHECK(t, "abc", PLAIN, " a|bc"); /* "bc" scores highest, then "\u2581a", which leaves nothing for "abc" */
    CHECK(t, "habc", PLAIN, " |h|abc");
    CHECK(t, "abz", PLAIN, " |ab|z"); /* z through its byte */
    CHECK(t, "  a", PLAIN, "  | a");
    CHECK(t, "\xe4\xb8\xad\xe6\x96\x87\xe6\x96\x87", PLAIN, " |\xe4\xb8\xad\xe6\x96\x87|\xe6|\x96|\x87");
    CHECK(t, "hello<tag>hello", PLAIN, " hello|<tag>| hello"); /* a space after each special token */
    CHECK(t, "hello</s>hello", PARSE | ADD, "<s>| hello|</s>| hello");
    CHECK(t, "a\xff", PLAIN, " a|\xff");
    assert_true(tok_adds_bos(t));
    assert_false(tok_adds_eos(t));
    tok_close(&t);
}

/* A token that reaches over a word's beginning is found although words are otherwise merged one by one. */
static void test_spm_inner_space(void **state) {
    (void)state;
    small_vocab_llama(&v);
    small_vocab_add(&v, "o\u2581", TOK_NORMAL, -0.5f);
    small_vocab_add(&v, "o\u2581a", TOK_NORMAL, -0.4f);
    tok *t = open_vocab();
    CHECK(t, "hello a", PLAIN, " |hell|o a");
    tok_close(&t);
}

static void test_spm_without_bytes(void **state) {
    (void)state;
    small_vocab_init(&v, "llama", "");
    v.vocab.unk = small_vocab_add(&v, "<unk>", TOK_UNKNOWN, 0);
    small_vocab_add(&v, "a", TOK_NORMAL, -1);
    v.vocab.has_add_bos = v.vocab.has_add_space_prefix = true;
    tok *t = open_vocab();
    CHECK(t, "az\xc3\xa9", ADD, "a|<unk>|<unk>");
    tok_close(&t);
}

static void test_wordpiece(void **state) {
    (void)state;
    small_vocab_bert(&v);
    tok *t = open_vocab();
    CHECK(t, "Hello, WORLD!", ADD, "[CLS]| hello| ,| world| !|[SEP]");
    CHECK(t, "unaffables", PLAIN, " un|aff|able|s");
    CHECK(t, "unknown \t hello", PLAIN, "[UNK]| hello");
    CHECK(t, "caf\xc3\xa9 \xe4\xb8\xad\xe4\xb8\xad", PLAIN, " cafe| \xe4\xb8\xad| \xe4\xb8\xad");
    CHECK(t, "hello\xff\x01world", PLAIN, "[UNK]");
    CHECK(t, "[MASK]hello", PARSE, "[MASK]| hello");
    int32_t ids[16];
    buf out = BUF_INIT;
    int64_t n = tok_encode(t, "it's hello, world!", 18, true, false, ids, 16);
    assert_int_equal(tok_decode(t, ids, (size_t)n, false, &out, NULL), 0);
    assert_string_equal(out.data, "it's hello, world!");
    buf_free(&out);
    char word[200];
    memset(word, 'a', sizeof word);
    assert_int_equal(tok_encode(t, word, 100, false, false, ids, 16), 100);
    assert_int_equal(tok_encode(t, word, 101, false, false, ids, 16), 1);
    assert_int_equal(ids[0], tok_find(t, "[UNK]", 5));
    tok_close(&t);
}

static void test_unigram(void **state) {
    (void)state;
    small_vocab_t5(&v);
    tok *t = open_vocab();
    CHECK(t, "hello", ADD, " he|llo|</s>"); /* -4 - 5 beats -10.5 */
    CHECK(t, "  hello   x ", PLAIN, " he|llo| |x");
    CHECK(t, "zzhe", PLAIN, " |<unk>|he"); /* neighbouring unknown tokens become one */
    CHECK(t, "he<extra>he", PLAIN, " he|<extra>| he");
    CHECK(t, "   ", PLAIN, "");
    int32_t ids[16];
    buf out = BUF_INIT;
    int64_t n = tok_encode(t, "hello x", 7, true, false, ids, 16);
    assert_int_equal(tok_decode(t, ids, (size_t)n, false, &out, NULL), 0);
    assert_string_equal(out.data, "hello x");
    buf_free(&out);
    tok_close(&t);
}

/* A table of replacements with one entry, "x" to "he": root at 0 with children from 1 on; the node of 'x' is 1 ^ 'x'. */
static void test_charsmap(void **state) {
    (void)state;
    enum { N_UNITS = 256 };
    unsigned char map[4 + 4 * N_UNITS + 3] = {0};
    uint32_t units[N_UNITS] = {0};
    units[0] = 1u << 10;
    const uint32_t node = 1 ^ 'x', leaf = node ^ 3;
    units[node] = 3u << 10 | 1u << 8 | 'x';
    units[leaf] = 1u << 31;
    map[0] = (4 * N_UNITS) & 0xFF;
    map[1] = (4 * N_UNITS) >> 8;
    for (size_t i = 0; i < N_UNITS; i++)
        for (size_t j = 0; j < 4; j++) map[4 + 4 * i + j] = (unsigned char)(units[i] >> 8 * j);
    memcpy(map + 4 + 4 * N_UNITS, "he", 3);
    small_vocab_t5(&v);
    v.vocab.charsmap = map;
    v.vocab.n_charsmap = sizeof map;
    tok *t = open_vocab();
    CHECK(t, "xllo", PLAIN, " he|llo");
    tok_close(&t);
    /* The same for "x" and U+0301 together: an "x" is left as it is unless that mark follows. */
    enum { MARK = 128 ^ 0xCC, SECOND = 160 ^ 0x81 };
    units[node] = (uint32_t)(node ^ 128) << 10 | 'x';
    units[leaf] = 0;
    units[MARK] = (uint32_t)(MARK ^ 160) << 10 | 0xCC;
    units[SECOND] = (uint32_t)(SECOND ^ 192) << 10 | 1u << 8 | 0x81;
    units[192] = 1u << 31;
    for (size_t i = 0; i < N_UNITS; i++)
        for (size_t j = 0; j < 4; j++) map[4 + 4 * i + j] = (unsigned char)(units[i] >> 8 * j);
    small_vocab_t5(&v);
    v.vocab.charsmap = map;
    v.vocab.n_charsmap = sizeof map;
    t = open_vocab();
    CHECK(t, "hex", PLAIN, " he|x");
    CHECK(t, "hexx\u0301llo", PLAIN, " he|x|hello");
    CHECK(t, "x\u0301", PLAIN, " he");
    CHECK(t, "x h", PLAIN, " |x| |h");
    tok_close(&t);
    /* Units that lead out of the table replace nothing. */
    for (size_t i = 0; i < 4 * N_UNITS; i++) map[4 + i] = (unsigned char)(i * 37 + 255);
    small_vocab_t5(&v);
    v.vocab.charsmap = map;
    v.vocab.n_charsmap = sizeof map;
    t = open_vocab();
    char all[255];
    for (size_t i = 0; i < sizeof all; i++) all[i] = (char)(i + 1);
    assert_true(tok_encode(t, all, sizeof all, false, false, NULL, 0) > 0);
    tok_close(&t);
}

/* ---- special tokens ----------------------------------------------------------------------------------------------------- */

static void test_special_longest(void **state) {
    (void)state;
    small_vocab_gpt2(&v, "gpt-2");
    small_vocab_add(&v, "<a>", TOK_CONTROL, 0);
    small_vocab_add(&v, "<a><a>", TOK_CONTROL, 0);
    small_vocab_add(&v, "@@@", TOK_CONTROL, 0);
    tok *t = open_vocab();
    CHECK(t, "<a><a><a>", PARSE, "<a><a>|<a>");
    CHECK(t, "@@@", PARSE, "@@@");
    CHECK(t, "@@@", PLAIN, "@@|@");
    tok_close(&t);
}

static void test_strip(void **state) {
    (void)state;
    small_vocab_llama(&v);
    small_vocab_add(&v, "<|user|>", TOK_CONTROL, 0);
    small_vocab_add(&v, "<mask>", TOK_CONTROL, 0);
    v.vocab.special_rstrip = v.vocab.mask_lstrip = true;
    tok *t = open_vocab();
    CHECK(t, "a<|user|> \n a", PARSE, " a|<|user|>| a");
    CHECK(t, "a<s> a", PARSE, " a|<s>|  |a"); /* <s> strips nothing */
    CHECK(t, "a  <mask>a", PARSE, " a|<mask>| a");
    tok_close(&t);
}

static void check_eog(const tok *t, const char *const *names, size_t n, bool expected) {
    for (size_t i = 0; i < n; i++) {
        const int32_t id = tok_find(t, names[i], strlen(names[i]));
        assert_true(id >= 0);
        if (tok_is_eog(t, id) != expected) fail_msg("%s: end of generation should be %d", names[i], expected);
    }
}

static void test_end_of_generation(void **state) {
    (void)state;
    static const char *const ends[] = {"<|end|>", "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "custom eos", "custom eot"};
    static const char *const others[] = {"hello", "<|im_start|>", "@@"};
    small_vocab_gpt2(&v, "gpt-2");
    small_vocab_add(&v, "<|im_start|>", TOK_CONTROL, 0);
    small_vocab_add(&v, "<|im_end|>", TOK_NORMAL, 0); /* the file is wrong: it is a control token */
    small_vocab_add(&v, "<end_of_turn>", TOK_CONTROL, 0);
    small_vocab_add(&v, "<|eot_id|>", TOK_USER_DEFINED, 0);
    v.vocab.eos = small_vocab_add(&v, "custom eos", TOK_CONTROL, 0);
    v.vocab.eot = small_vocab_add(&v, "custom eot", TOK_CONTROL, 0);
    tok *t = open_vocab();
    check_eog(t, ends, sizeof ends / sizeof ends[0], true);
    check_eog(t, others, sizeof others / sizeof others[0], false);
    assert_true(tok_is_control(t, tok_find(t, "<|im_end|>", 10)));
    assert_false(tok_is_eog(t, -1));
    assert_false(tok_is_eog(t, tok_n_vocab(t)));
    tok_close(&t);
}

/* In Harmony's vocabulary <|end|> ends a message, and the channel markers are shown. */
static void test_harmony(void **state) {
    (void)state;
    static const char *const ends[] = {"<|return|>", "<|call|>"}, *const others[] = {"<|end|>", "<|channel|>"};
    small_vocab_gpt2(&v, "gpt-4o");
    for (size_t i = 0; i < 2; i++) small_vocab_add(&v, ends[i], TOK_CONTROL, 0);
    const int32_t channel = small_vocab_add(&v, "<|channel|>", TOK_CONTROL, 0);
    v.vocab.eos = -1;
    tok *t = open_vocab();
    size_t n_bytes;
    check_eog(t, ends, 2, true);
    check_eog(t, others, 2, false);
    assert_string_equal(tok_piece(t, channel, false, &n_bytes), "<|channel|>");
    tok_close(&t);
}

/* ---- decoding ----------------------------------------------------------------------------------------------------------- */

static void test_decode(void **state) {
    (void)state;
    small_vocab_llama(&v);
    tok *t = open_vocab();
    weir_error err = {0};
    size_t n_bytes;
    const int32_t hello = tok_find(t, "\u2581hello", 8), bos = tok_bos(t), byte = tok_find(t, "<0xE4>", 6);
    const int32_t ids[] = {bos, hello, hello, byte};
    buf out = BUF_INIT;
    buf_puts(&out, "kept:");
    assert_int_equal(tok_decode(t, ids, 4, false, &out, &err), 0);
    assert_string_equal(out.data, "kept:hello hello\xe4");
    buf_clear(&out);
    assert_int_equal(tok_decode(t, ids, 4, true, &out, &err), 0);
    assert_string_equal(out.data, "<s> hello hello\xe4");
    buf_clear(&out);
    const int32_t wrong[] = {hello, tok_n_vocab(t)}, negative[] = {-1};
    assert_int_equal(tok_decode(t, wrong, 2, true, &out, &err), WEIR_E_INVALID);
    assert_non_null(strstr(err.message, "token 1"));
    assert_int_equal(out.n_bytes, 0);
    assert_int_equal(tok_decode(t, negative, 1, true, &out, &err), WEIR_E_INVALID);
    buf_free(&out);
    assert_null(tok_piece(t, -1, true, &n_bytes));
    assert_int_equal(n_bytes, 0);
    assert_non_null(tok_piece(t, bos, false, &n_bytes));
    assert_int_equal(n_bytes, 0);
    assert_non_null(tok_piece(t, byte, false, &n_bytes));
    assert_int_equal(n_bytes, 1);
    tok_close(&t);
    tok_close(&t); /* a closed handle is accepted */
}

static void test_stream(void **state) {
    (void)state;
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"plain", "plain"},
        {"caf\xc3\xa9 \xf0\x9f\x98\x80!", "caf\xc3\xa9 \xf0\x9f\x98\x80!"},
        {"\xff\xc3(", "\ufffd\ufffd("},
        {"\xe4\xb8z\xf0\x9f\x98", "\ufffdz\ufffd"},                 /* one replacement for each maximal subpart */
        {"\xed\xa0\x80\xc0\xaf", "\ufffd\ufffd\ufffd\ufffd\ufffd"}, /* surrogates and overlong forms: one for each byte */
        {"\xf4\x90\x80\x80\xe2\x82", "\ufffd\ufffd\ufffd\ufffd\ufffd"},
        {"\xef\xbf\xbd", "\ufffd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t n = strlen(cases[i].bytes);
        for (size_t first = 0; first <= n; first++)
            for (size_t second = first; second <= n; second++) {
                tok_stream s = TOK_STREAM_INIT;
                buf out = BUF_INIT;
                tok_stream_push(&s, cases[i].bytes, first, &out);
                tok_stream_push(&s, cases[i].bytes + first, second - first, &out);
                tok_stream_push(&s, cases[i].bytes + second, n - second, &out);
                tok_stream_finish(&s, &out);
                assert_string_equal(out.data, cases[i].text);
                buf_free(&out);
            }
    }
}

/* ---- merging ------------------------------------------------------------------------------------------------------------ */

/* The definition, word for word: look for the first pair, merge it, look again. Symbols are strings of 'a' and 'b'. */
static size_t merge_simply(char symbols[][128], size_t n, const char *const *merges, size_t n_merges) {
    for (;;) {
        size_t best = n, best_rank = n_merges;
        for (size_t i = 0; i + 1 < n; i++) {
            char pair[260];
            snprintf(pair, sizeof pair, "%.127s %.127s", symbols[i], symbols[i + 1]);
            for (size_t m = 0; m < best_rank; m++)
                if (strcmp(pair, merges[m]) == 0) {
                    best = i;
                    best_rank = m;
                }
        }
        if (best == n) return n;
        memcpy(symbols[best] + strlen(symbols[best]), symbols[best + 1], strlen(symbols[best + 1]) + 1);
        memmove(symbols[best + 1], symbols[best + 2], (n - best - 2) * sizeof symbols[0]);
        n--;
    }
}

static void test_merge_order(void **state) {
    (void)state;
    static const char *const merges[] = {"a b", "b b", "ab a", "a a", "bb ab", "aba b", "aa aa", "ab ab", "b a", "aab bb"};
    enum { N_MERGES = sizeof merges / sizeof merges[0], MAX_LETTERS = 120 };
    static char symbols[MAX_LETTERS][128];
    small_vocab_init(&v, "gpt2", "gpt-2");
    small_vocab_add_alphabet(&v);
    for (size_t i = 0; i < N_MERGES; i++) {
        char joined[64] = {0}, *space = strchr(merges[i], ' ');
        snprintf(joined, sizeof joined, "%.*s%s", (int)(space - merges[i]), merges[i], space + 1);
        small_vocab_merge(&v, merges[i]);
        small_vocab_add(&v, joined, TOK_NORMAL, 0);
    }
    tok *t = open_vocab();
    uint32_t random = 1;
    for (size_t round = 0; round < 400; round++) {
        char word[MAX_LETTERS];
        const size_t n = 1 + round % (MAX_LETTERS - 1); /* below and above the length from which the heap is used */
        for (size_t i = 0; i < n; i++) {
            random = random * 1664525 + 1013904223;
            word[i] = random >> 30 ? 'a' : 'b';
            symbols[i][0] = word[i];
            symbols[i][1] = '\0';
        }
        int32_t ids[MAX_LETTERS];
        const size_t expected = merge_simply(symbols, n, merges, N_MERGES);
        assert_int_equal(tok_encode(t, word, n, false, false, ids, MAX_LETTERS), expected);
        for (size_t i = 0; i < expected; i++) {
            size_t n_piece;
            const char *piece = tok_piece(t, ids[i], true, &n_piece);
            assert_int_equal(n_piece, strlen(symbols[i]));
            assert_memory_equal(piece, symbols[i], n_piece);
        }
    }
    tok_close(&t);
}

static void check_time(const tok *t, const char *name, const char *unit) {
    enum { N_BYTES = 100000, LIMIT_SECONDS = 10 }; /* quadratic work would take minutes */
    static char text[N_BYTES + 8];
    size_t n = 0;
    while (n < N_BYTES) {
        const size_t n_unit = strlen(unit);
        memcpy(text + n, unit, n_unit);
        n += n_unit;
    }
    for (int tail = 0; tail < 2; tail++) {
        const clock_t begin = clock();
        if (tail) text[n - 1] = '!';
        assert_true(tok_encode(t, text, n, false, true, NULL, 0) >= 0);
        const double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
        if (seconds > LIMIT_SECONDS) fail_msg("%s: 100,000 bytes of '%s' took %.1f s", name, unit, seconds);
    }
}

static void test_long_words(void **state) {
    (void)state;
    static const char *const pres[] = {
        "default",   "gpt-2",   "smollm",     "llama-bpe",  "jais-2",     "minicpm5",     "qwen2",          "qwen35",
        "ufakzeka",  "laguna",  "exaone-moe", "bailingmoe", "seed-coder", "deepseek-llm", "deepseek-coder", "deepseek-v3",
        "spark2_5",  "youtu",   "falcon",     "bloom",      "viking",     "tekken",       "gpt-4o",         "tiny_aya",
        "chameleon", "kimi-k2", "superbpe",   "afmoe",      "gemma4",     "sarvam-moe",   "whitespace"};
    static const char *const units[] = {"a",        "A",        " ",  "\n",   "1",  "!",      "aA", "a ", " 1", "\xe4\xb8\xad",
                                        "\xcc\x81", "\xc3\xa9", "'s", "\xff", "<|", "\t \r\n"};
    for (size_t i = 0; i < sizeof pres / sizeof pres[0]; i++) {
        small_vocab_gpt2(&v, pres[i]);
        tok *t = open_vocab();
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) check_time(t, pres[i], units[u]);
        tok_close(&t);
    }
    void (*const kinds[])(small_vocab *) = {small_vocab_gemma4, small_vocab_llama, small_vocab_bert, small_vocab_t5};
    for (size_t i = 0; i < 4; i++) {
        kinds[i](&v);
        tok *t = open_vocab();
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) check_time(t, "other kinds", units[u]);
        tok_close(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_byte_level),      cmocka_unit_test(test_bytes_round_trip),
        cmocka_unit_test(test_capacity),        cmocka_unit_test(test_ignore_merges),
        cmocka_unit_test(test_raw_bpe),         cmocka_unit_test(test_spm),
        cmocka_unit_test(test_spm_inner_space), cmocka_unit_test(test_spm_without_bytes),
        cmocka_unit_test(test_wordpiece),       cmocka_unit_test(test_unigram),
        cmocka_unit_test(test_charsmap),        cmocka_unit_test(test_special_longest),
        cmocka_unit_test(test_strip),           cmocka_unit_test(test_end_of_generation),
        cmocka_unit_test(test_harmony),         cmocka_unit_test(test_decode),
        cmocka_unit_test(test_stream),          cmocka_unit_test(test_merge_order),
        cmocka_unit_test(test_long_words),
    };
    return cmocka_run_group_tests_name("tok encode", tests, NULL, NULL);
}
