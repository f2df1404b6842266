/* Opening: pre-tokenisers and how they cut, vocabularies that are wrong on purpose, and the way from GGUF metadata. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fault/gguf_builder.h"
#include "model/vocab.h"
#include "small_vocab.h"
#include "tok/tok_internal.h"

static small_vocab v;

/* ---- pre-tokenisers ----------------------------------------------------------------------------------------------------- */

static void check_split(const char *name, const char *text, const char *expected) {
    tok_pre *pre = NULL;
    tok_pre_traits traits;
    weir_error err = {0};
    tok_work w = {0};
    buf joined = BUF_INIT;
    if (tok_pre_open(&pre, (tok_string){name, strlen(name)}, &traits, &err) != 0) fail_msg("%s: %s", name, err.message);
    assert_true(tok_pre_split(pre, &w, text, strlen(text)));
    for (size_t i = 0, begin = 0; i < w.n_ends; begin = w.ends[0][i++]) {
        if (i) buf_putc(&joined, '#');
        buf_append(&joined, text + begin, w.ends[0][i] - begin);
    }
    if (strcmp(joined.data, expected) != 0)
        fail_msg("%s cuts '%s' into '%s'; '%s' is right", name, text, joined.data, expected);
    buf_free(&joined);
    tok_pre_work_free(&w);
    tok_pre_close(&pre);
}

static void test_split(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"gpt-2", "I'm  12345 a!?\n\n b", "I#'m# # 12345# a#!?#\n\n# b"},
        {"gpt-2", "It'S", "It#'#S"},
        {"smollm", "a 123", "a# #1#2#3"},
        {"default", "x=3 12345", "x#=#3# #123#45"},
        {"falcon", "x=3 12345", "x#=#3# #123#45"},
        {"llama-bpe", "It'S 12345\r\n\r\n  x", "It#'S# #123#45#\r\n\r\n# # x"},
        {"llama-bpe", "(hello)foo", "(hello#)foo"},
        {"qwen2", "12 ab\xcc\x81", "1#2# ab#\xcc\x81"},
        {"qwen35", "12 ab\xcc\x81", "1#2# ab\xcc\x81"},
        {"gpt-4o", "camelCase HTTPServer's /\n", "camel#Case# HTTPServer's# /\n"},
        {"tekken", "camelCase's 12", "camel#Case#'s# #1#2"},
        {"deepseek-v3",
         "\xe4\xb8\xad\xe6\x96\x87"
         "12345",
         "\xe4\xb8\xad\xe6\x96\x87#123#45"},
        {"deepseek-llm", "a  \nb  ", "a#  #\n#b#  "},
        {"kimi-k2",
         "\xe4\xb8\xad\xe3\x80\x81"
         "ab",
         "\xe4\xb8\xad#\xe3\x80\x81"
         "ab"},
        {"bloom", "a b, c", "a# b#,# c"},
        {"afmoe", "1234567", "1#234#567"},
        {"tiny_aya", "1234567 12345a", "1#234#567# #123#45#a"},
        {"superbpe", "by the way 12345", "by the way #12#345"},
        {"minicpm5", "12345", "123#45"},
        {"jais-2", "a       b", "a#    #  # b"},
        {"gemma4", "a b\n\nc", "a b#\n\n#c"},
        {"chameleon", "IMGIMGABZ    x", "IMGIMGABZ#    #x"},
        {"exaone-moe", "a b c 1", "a b c# #1"},
        /* U+180E is no white space, U+0085 is. */
        {"gpt-2",
         "a\xe1\xa0\x8e"
         "b\xc2\x85",
         "a#\xe1\xa0\x8e#b#\xc2\x85"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_split(cases[i][0], cases[i][1], cases[i][2]);
}

static void test_known_names(void **state) {
    (void)state;
    static const char *const names[] = {"",
                                        "default",
                                        "llama3",
                                        "llama-v3",
                                        "llama-bpe",
                                        "falcon3",
                                        "falcon-h1",
                                        "pixtral",
                                        "midm-2.0",
                                        "lfm2",
                                        "jina-v5-nano",
                                        "deepseek-llm",
                                        "deepseek-coder",
                                        "deepseek-v3",
                                        "spark2_5",
                                        "youtu",
                                        "falcon",
                                        "mpt",
                                        "starcoder",
                                        "gpt-2",
                                        "phi-2",
                                        "jina-es",
                                        "jina-de",
                                        "gigachat",
                                        "jina-v2-es",
                                        "jina-v2-de",
                                        "a.x-4.0",
                                        "mellum",
                                        "modern-bert",
                                        "jais-2",
                                        "gemma4",
                                        "granite-embed-multi-311m",
                                        "sarvam-moe",
                                        "jina-v1-en",
                                        "jina-v2-code",
                                        "roberta-bpe",
                                        "whitespace",
                                        "refact",
                                        "command-r",
                                        "qwen2",
                                        "deepseek-r1-qwen",
                                        "kormo",
                                        "f2llmv2",
                                        "qwen35",
                                        "stablelm2",
                                        "olmo",
                                        "dbrx",
                                        "smaug-bpe",
                                        "poro-chat",
                                        "chatglm-bpe",
                                        "glm4",
                                        "glm5",
                                        "viking",
                                        "jais",
                                        "tekken",
                                        "smollm",
                                        "codeshell",
                                        "bloom",
                                        "gpt3-finnish",
                                        "exaone",
                                        "exaone4",
                                        "exaone-moe",
                                        "chameleon",
                                        "minerva-7b",
                                        "megrez",
                                        "gpt-4o",
                                        "llama4",
                                        "kanana2",
                                        "talkie",
                                        "granite-embed-multi-97m",
                                        "tiny_aya",
                                        "cohere2moe",
                                        "superbpe",
                                        "trillion",
                                        "granite-docling",
                                        "bailingmoe",
                                        "bailingmoe2",
                                        "llada-moe",
                                        "seed-coder",
                                        "hunyuan",
                                        "hunyuan-dense",
                                        "hy_v4",
                                        "joyai-llm",
                                        "kimi-k2",
                                        "ufakzeka",
                                        "grok-2",
                                        "afmoe",
                                        "laguna",
                                        "minimax-m2",
                                        "solar-open",
                                        "mellum2",
                                        "minicpm5"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        tok_pre *pre = NULL;
        tok_pre_traits traits;
        weir_error err = {0};
        if (tok_pre_open(&pre, (tok_string){names[i], strlen(names[i])}, &traits, &err) != 0)
            fail_msg("%s: %s", names[i], err.message);
        tok_pre_close(&pre);
    }
}

/* ---- vocabularies that are wrong ---------------------------------------------------------------------------------------- */

/* Opening fails with the code and a message (or place) that has the words. */
static void check_refused(int code, const char *words) {
    tok *t = (tok *)&v;
    weir_error err = {0};
    const int rc = tok_open(&t, &v.vocab, &err);
    small_vocab_free(&v);
    assert_null(t);
    if (rc != code || (strstr(err.message, words) == NULL && strstr(err.place, words) == NULL))
        fail_msg("gave %d, %s: %s; %d and '%s' are right", rc, err.place, err.message, code, words);
}

static void test_refused(void **state) {
    (void)state;
    small_vocab_init(&v, "rwkv", "");
    check_refused(WEIR_E_UNSUPPORTED, "'rwkv' is not supported; supported are llama");
    small_vocab_init(&v, "", "");
    check_refused(WEIR_E_UNSUPPORTED, "tokenizer.ggml.model");
    small_vocab_gpt2(&v, "gpt-2 ");
    check_refused(WEIR_E_UNSUPPORTED, "'gpt-2 ' is not known; the nearest name is gpt-2; supported are default, gpt-2");
    small_vocab_init(&v, "llama", "");
    check_refused(WEIR_E_FORMAT, "no tokens");
    small_vocab_llama(&v);
    v.vocab.bos = (int32_t)v.vocab.n_tokens;
    check_refused(WEIR_E_FORMAT, "bos_token_id");
    small_vocab_llama(&v);
    v.vocab.eos = -2;
    check_refused(WEIR_E_FORMAT, "token id -2 is not in 0..");
    small_vocab_llama(&v);
    v.vocab.eot = INT32_MAX;
    check_refused(WEIR_E_FORMAT, "eot_token_id");
    small_vocab_gpt2(&v, "gpt-2");
    small_vocab_merge(&v, "nospace");
    check_refused(WEIR_E_FORMAT, "merge 16 is not two parts");
    small_vocab_gpt2(&v, "gpt-2");
    small_vocab_merge(&v, "half ");
    check_refused(WEIR_E_FORMAT, "merge 16 is not two parts");
    small_vocab_gpt2(&v, "gpt-2");
    small_vocab_merge(&v, "");
    check_refused(WEIR_E_FORMAT, "merge 16 is not two parts");
    small_vocab_init(&v, "bert", "");
    small_vocab_add(&v, "\u2581a", TOK_NORMAL, 0);
    check_refused(WEIR_E_FORMAT, "needs the ids of its unknown");
    small_vocab_t5(&v);
    v.vocab.charsmap = (const unsigned char *)"\xff\xff\xff\xffxxxx";
    v.vocab.n_charsmap = 8;
    check_refused(WEIR_E_FORMAT, "does not fit in 8");
    small_vocab_t5(&v);
    v.vocab.charsmap = (const unsigned char *)"\x04\0\0\0aaaabbb";
    v.vocab.n_charsmap = 11;
    check_refused(WEIR_E_FORMAT, "does not end in NUL");
    small_vocab_t5(&v);
    v.scores[4] = 0.0f / (float)(v.vocab.n_merges); /* NaN */
    check_refused(WEIR_E_FORMAT, "the score of token 4 is not a finite number");
}

/* Vocabularies that are odd, but work: every text is encoded to ids in range, without end or crash. */
static void check_works(const char *text, size_t n_bytes) {
    tok *t = NULL;
    weir_error err = {0};
    int32_t ids[512];
    buf out = BUF_INIT;
    if (tok_open(&t, &v.vocab, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    small_vocab_free(&v);
    const int64_t n = tok_encode(t, text, n_bytes, true, true, ids, 512);
    assert_in_range(n, 0, 512);
    for (int64_t i = 0; i < n; i++) assert_in_range(ids[i], 0, tok_n_vocab(t) - 1);
    assert_int_equal(tok_decode(t, ids, (size_t)n, true, &out, &err), 0);
    buf_free(&out);
    tok_close(&t);
}

static void test_odd_merges(void **state) {
    (void)state;
    static const char *const merges[] = {"a a",      "a a",        "aa aa", "a aa",  "zz zzz",     "\u4e2d a",
                                         "a \u4e2d", "\xff\xfe a", "  a",   "b b b", "hello hello"};
    for (size_t i = 0; i < sizeof merges / sizeof merges[0]; i++) {
        small_vocab_gpt2(&v, "llama-bpe");
        small_vocab_merge(&v, merges[i]);
        small_vocab_merge(&v, merges[i]);
        check_works("aaaaaaaaa hellohello zzzzz <|end|> b b b", 40);
        small_vocab_gemma4(&v);
        small_vocab_merge(&v, merges[i]);
        check_works("aaaaaaaaa hellohello zzzzz <bos> b b b", 38);
    }
    small_vocab_gpt2(&v, "gpt-2");
    v.vocab.n_merges = 0;
    check_works("hello", 5);
}

static void test_odd_tokens(void **state) {
    (void)state;
    static const char text[] = "twice unused \xff\xfe\x80 \xff strange type<0xZZ>\xe2\x96\x81\xe2\x96\x81\0x";
    void (*const kinds[])(small_vocab *) = {small_vocab_gemma4, small_vocab_llama, small_vocab_bert, small_vocab_t5};
    for (size_t kind = 0; kind < 5; kind++) {
        if (kind < 4) kinds[kind](&v);
        else small_vocab_gpt2(&v, "qwen2");
        const int32_t first = small_vocab_add(&v, "twice", TOK_NORMAL, 1);
        small_vocab_add(&v, "twice", TOK_CONTROL, 2);
        small_vocab_add(&v, "", TOK_NORMAL, 0);
        small_vocab_add(&v, "", TOK_CONTROL, 0);
        small_vocab_add(&v, "", TOK_USER_DEFINED, 0);
        small_vocab_add(&v, "\xff\xfe\x80", TOK_USER_DEFINED, 0);
        small_vocab_add(&v, "<0xZZ>", TOK_BYTE, 0);
        small_vocab_add(&v, "\u2581\u2581", TOK_CONTROL, 0);
        small_vocab_add(&v, "unused", TOK_UNUSED, 0);
        small_vocab_add(&v, "strange type", (tok_type)99, 0);
        small_vocab_add(&v, "negative type", (tok_type)-3, 0);
        tok_vocab saved = v.vocab;
        assert_int_equal(saved.n_tokens, (size_t)first + 11);
        check_works(text, sizeof text - 1);
    }
    small_vocab_init(&v, "llama", ""); /* one token, no bytes, no ids in range */
    small_vocab_add(&v, "x", TOK_NORMAL, 0);
    check_works("hello x", 7);
    small_vocab_init(&v, "gpt2", "gpt-2");
    small_vocab_add(&v, "", TOK_NORMAL, 0);
    check_works("hello", 5);
    small_vocab_gpt2(&v, "gpt-2");
    v.vocab.types = NULL;
    v.vocab.scores = NULL;
    check_works("hello <|end|>", 13);
}

/* A token of half a megabyte is legal; a text of its beginnings must not take quadratic time (which would be hours). */
static void test_huge_tokens(void **state) {
    (void)state;
    enum { N = 1 << 19 };
    void (*const kinds[])(small_vocab *) = {small_vocab_gemma4, small_vocab_llama, small_vocab_bert, small_vocab_t5};
    char *text = malloc(N + 1);
    assert_non_null(text);
    memset(text, 'h', N);
    text[N] = '\0';
    for (size_t kind = 0; kind < 5; kind++) {
        tok *t = NULL;
        if (kind < 4) kinds[kind](&v);
        else small_vocab_gpt2(&v, "llama-bpe");
        small_vocab_add(&v, text, TOK_CONTROL, 0);
        small_vocab_add(&v, text + 1, TOK_USER_DEFINED, 0);
        small_vocab_add(&v, text + 2, TOK_NORMAL, 0);
        assert_int_equal(tok_open(&t, &v.vocab, NULL), 0);
        assert_true(tok_encode(t, text, N - 3, false, true, NULL, 0) > 0);
        tok_close(&t);
        small_vocab_free(&v);
    }
    free(text);
}

static void test_equal_tokens(void **state) {
    (void)state;
    tok *t = NULL;
    int32_t ids[4];
    small_vocab_llama(&v);
    const int32_t first = small_vocab_add(&v, "\u2581twice", TOK_USER_DEFINED, 1);
    small_vocab_add(&v, "\u2581twice", TOK_USER_DEFINED, 9);
    assert_int_equal(tok_open(&t, &v.vocab, NULL), 0);
    assert_int_equal(tok_encode(t, "\u2581twice", 8, false, false, ids, 4), 1);
    assert_int_equal(ids[0], first);
    assert_int_equal(tok_find(t, "\u2581twice", 8), first);
    tok_close(&t);
    small_vocab_free(&v);
}

/* ---- from GGUF ---------------------------------------------------------------------------------------------------------- */

typedef void (*change_fn)(gguf_builder *b);

static int open_changed(change_fn change, tok **t, weir_error *err) {
    gguf_builder b;
    buf file = BUF_INIT;
    gguf *g = NULL;
    gguf_builder_init(&b);
    gguf_builder_llama(&b, NULL);
    if (change) change(&b);
    assert_true(gguf_builder_finish(&b, &file));
    assert_int_equal(gguf_parse(&g, file.data, file.n_bytes, "test.gguf", err), 0);
    const int rc = model_vocab_open(t, g, err);
    gguf_close(&g);
    buf_free(&file); /* the tokeniser keeps nothing of the file */
    gguf_builder_free(&b);
    return rc;
}

static void test_metadata(void **state) {
    (void)state;
    tok *t = NULL;
    weir_error err = {0};
    int32_t ids[8];
    if (open_changed(NULL, &t, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    assert_int_equal(tok_n_vocab(t), GGUF_BUILDER_LLAMA_VOCAB);
    assert_true(tok_is_eog(t, 0));
    assert_true(tok_is_eog(t, 2));
    assert_int_equal(tok_encode(t, "<|im_end|>", 10, false, true, ids, 8), 1);
    assert_int_equal(ids[0], 2);
    tok_close(&t);
}

static void no_model(gguf_builder *b) { gguf_builder_drop_key(b, "tokenizer.ggml.model"); }
static void no_tokens(gguf_builder *b) { gguf_builder_drop_key(b, "tokenizer.ggml.tokens"); }
static void no_merges(gguf_builder *b) { gguf_builder_drop_key(b, "tokenizer.ggml.merges"); }
static void model_number(gguf_builder *b) { gguf_builder_u32(b, "tokenizer.ggml.model", 3); }
static void tokens_string(gguf_builder *b) { gguf_builder_string(b, "tokenizer.ggml.tokens", "abc"); }
static void tokens_empty(gguf_builder *b) { gguf_builder_strings(b, "tokenizer.ggml.tokens", NULL, 0); }
static void tokens_numbers(gguf_builder *b) { gguf_builder_array(b, "tokenizer.ggml.tokens", GGUF_UINT8, "abc", 3, 1); }
static void merges_numbers(gguf_builder *b) { gguf_builder_array(b, "tokenizer.ggml.merges", GGUF_UINT8, "abc", 3, 1); }
static void types_short(gguf_builder *b) { gguf_builder_array(b, "tokenizer.ggml.token_type", GGUF_INT32, "\1\0\0\0", 1, 4); }
static void scores_short(gguf_builder *b) { gguf_builder_array(b, "tokenizer.ggml.scores", GGUF_FLOAT32, "\0\0\0\0", 1, 4); }
static void scores_strings(gguf_builder *b) {
    const char *s = "x";
    gguf_builder_strings(b, "tokenizer.ggml.scores", &s, 1);
}
static void bos_large(gguf_builder *b) { gguf_builder_u32(b, "tokenizer.ggml.bos_token_id", GGUF_BUILDER_LLAMA_VOCAB); }
static void eos_string(gguf_builder *b) { gguf_builder_string(b, "tokenizer.ggml.eos_token_id", "</s>"); }
static void fim_large(gguf_builder *b) { gguf_builder_u32(b, "tokenizer.ggml.fim_sep_token_id", UINT32_MAX); }
static void add_bos_string(gguf_builder *b) { gguf_builder_string(b, "tokenizer.ggml.add_bos_token", "yes"); }
static void pre_unknown(gguf_builder *b) { gguf_builder_string(b, "tokenizer.ggml.pre", "from the future"); }
static void charsmap_floats(gguf_builder *b) {
    gguf_builder_array(b, "tokenizer.ggml.precompiled_charsmap", GGUF_FLOAT32, "\0\0\0\0", 1, 4);
}

static void test_bad_metadata(void **state) {
    (void)state;
    static const struct {
        change_fn change;
        int code;
        const char *place, *words;
    } cases[] = {
        {no_model, WEIR_E_FORMAT, "tokenizer.ggml.model", "missing"},
        {no_tokens, WEIR_E_FORMAT, "tokenizer.ggml.tokens", "missing"},
        {no_merges, WEIR_E_FORMAT, "tokenizer.ggml.merges", "missing"},
        {model_number, WEIR_E_FORMAT, "tokenizer.ggml.model", ""},
        {tokens_string, WEIR_E_FORMAT, "tokenizer.ggml.tokens", "an array is needed"},
        {tokens_empty, WEIR_E_FORMAT, "tokenizer.ggml.tokens", "no tokens"},
        {tokens_numbers, WEIR_E_FORMAT, "tokenizer.ggml.tokens", "strings are needed"},
        {merges_numbers, WEIR_E_FORMAT, "tokenizer.ggml.merges", "strings are needed"},
        {types_short, WEIR_E_FORMAT, "tokenizer.ggml.token_type", "has 1 items for"},
        {scores_short, WEIR_E_FORMAT, "tokenizer.ggml.scores", "has 1 items for"},
        {scores_strings, WEIR_E_FORMAT, "tokenizer.ggml.scores", "numbers are needed"},
        {bos_large, WEIR_E_FORMAT, "tokenizer.ggml.bos_token_id", "is not in 0.."},
        {eos_string, WEIR_E_FORMAT, "tokenizer.ggml.eos_token_id", ""},
        {fim_large, WEIR_E_FORMAT, "tokenizer.ggml.fim_sep_token_id", "is not in 0.."},
        {add_bos_string, WEIR_E_FORMAT, "tokenizer.ggml.add_bos_token", ""},
        {pre_unknown, WEIR_E_UNSUPPORTED, "tokenizer.ggml.pre", "'from the future' is not known"},
        {charsmap_floats, WEIR_E_FORMAT, "tokenizer.ggml.precompiled_charsmap", "bytes are needed"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tok *t = NULL;
        weir_error err = {0};
        const int rc = open_changed(cases[i].change, &t, &err);
        assert_null(t);
        if (rc != cases[i].code || strstr(err.place, cases[i].place) == NULL || strstr(err.message, cases[i].words) == NULL)
            fail_msg("case %zu gave %d, %s: %s", i, rc, err.place, err.message);
    }
}

static void phi3_name(gguf_builder *b) { gguf_builder_string(b, "general.name", "My Phi-3 mini"); }
static void add_bos(gguf_builder *b) {
    gguf_builder_u32(b, "tokenizer.ggml.bos_token_id", 1);
    gguf_builder_bool(b, "tokenizer.ggml.add_bos_token", true);
    gguf_builder_bool(b, "tokenizer.ggml.add_eos_token", true);
}

static void test_flags(void **state) {
    (void)state;
    tok *t = NULL;
    weir_error err = {0};
    assert_int_equal(open_changed(add_bos, &t, &err), 0);
    assert_true(tok_adds_bos(t) && tok_adds_eos(t));
    assert_int_equal(tok_bos(t), 1);
    assert_int_equal(tok_encode(t, "", 0, true, false, NULL, 0), 2);
    tok_close(&t);
    assert_int_equal(open_changed(phi3_name, &t, &err), 0);
    assert_int_equal(tok_encode(t, "<|im_end|> \n", 12, false, true, NULL, 0), 1);
    tok_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),       cmocka_unit_test(test_known_names), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_odd_merges),  cmocka_unit_test(test_odd_tokens),  cmocka_unit_test(test_equal_tokens),
        cmocka_unit_test(test_huge_tokens), cmocka_unit_test(test_metadata),    cmocka_unit_test(test_bad_metadata),
        cmocka_unit_test(test_flags),
    };
    return cmocka_run_group_tests_name("tok open", tests, NULL, NULL);
}
