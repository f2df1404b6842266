/* Jobs with a grammar: what they say is one of its texts, with speculation and without, alone and in company; where it ends, and
 * what is cut short. */
#include <stdlib.h>
#include <string.h>

#include "support.h"

static weir_grammars *open_grammars(void) {
    static fake backend; /* only for its pieces */
    static grammar_token tokens[FAKE_N_VOCAB];
    weir_grammars *grammars = NULL;
    weir_error err = {0};
    fake_init(&backend);
    sched_backend b = fake_backend(&backend);
    for (int32_t i = 0; i < FAKE_N_VOCAB; i++) {
        tokens[i] = (grammar_token){0};
        if (i < 256) tokens[i].bytes = b.piece(b.context, i, false, &tokens[i].n_bytes);
    }
    assert_int_equal(weir_grammars_open_tokens(&grammars, tokens, FAKE_N_VOCAB, &err), 0);
    fake_free(&backend);
    return grammars;
}

static weir_grammar *compile(weir_grammars *grammars, weir_grammar_kind kind, const char *text) {
    weir_grammar *g = NULL;
    weir_error err = {0};
    if (weir_grammar_open(&g, grammars, kind, text, strlen(text), &err) < 0) fail_msg("%s: %s", text, err.message);
    return g;
}

static void open_engine(fixture *f, int32_t n_draft, int32_t n_parallel) {
    weir_error err = {0};
    fixture_init(f);
    f->backend.period = 12;
    f->backend.decode_cost_us = 1000;
    f->backend.row_cost_us = 10;
    sched_backend backend = fake_backend(&f->backend);
    weir_engine_options options = {.n_parallel = n_parallel, .n_batch = 64, .n_draft = n_draft};
    assert_int_equal(sched_open(&f->engine, &backend, &options, &err), 0);
}

static reply said(fixture *f, weir_grammar *g, const char *after, int32_t first, int32_t max_tokens, float temperature) {
    const int32_t prompt[] = {first, 'x', 'y'};
    weir_request r = plain_request(prompt, 3);
    r.grammar = g;
    r.grammar_after = after;
    r.max_tokens = max_tokens;
    r.sampling.temperature = temperature;
    r.sampling.top_k = 0;
    r.sampling.top_p = 1;
    r.sampling.min_p = 0;
    r.sampling.seed = (uint64_t)first;
    weir_job *job = submit(f, &r);
    return finish_reply(&job);
}

static void the_answer_is_a_text_of_the_grammar(void **state) {
    (void)state;
    fixture f;
    weir_grammars *grammars = open_grammars();
    weir_grammar *g = compile(grammars, WEIR_GRAMMAR_REGEX, "[0-9]{3}-[A-F]{5}!");
    weir_grammar *same = compile(grammars, WEIR_GRAMMAR_REGEX, "[0-9]{3}-[A-F]{5}!");
    assert_ptr_equal(g, same); /* from the cache */
    weir_grammar_close(&same);
    weir_grammars_close(&grammars); /* the grammar lives on */
    open_engine(&f, -1, 4);
    for (int32_t first = 'a'; first < 'z'; first++) {
        reply r = said(&f, g, NULL, first, 40, first % 2 ? 1 : 0);
        assert_int_equal(r.end.type, WEIR_EVENT_END);
        assert_int_equal(r.end.stop_reason, WEIR_STOP_EOS); /* nothing can follow: no further token is drawn */
        assert_int_equal(r.text.n_bytes, 10);
        assert_true(strspn(r.text.data, "0123456789") == 3 && r.text.data[3] == '-' && strspn(r.text.data + 4, "ABCDEF") == 5 && r.text.data[9] == '!');
        reply_free(&r);
        r = said(&f, g, NULL, first, 6, 1);
        assert_int_equal(r.end.stop_reason, WEIR_STOP_LENGTH);
        assert_int_equal(r.text.n_bytes, 6);
        reply_free(&r);
    }
    fixture_close(&f);
    weir_grammar_close(&g);
}

/* The model wants the same twelve letters again and again; the grammar lets them pass, so guesses hold. */
static void speculation_changes_nothing(void **state) {
    (void)state;
    weir_grammars *grammars = open_grammars();
    static const char *const texts[] = {"[a-z]{150}", "([a-m]{2}[a-z]){50}", "([a-z]*0?){1,40}"};
    uint64_t accepted = 0;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        weir_grammar *g = compile(grammars, WEIR_GRAMMAR_REGEX, texts[i]);
        for (int32_t first = 'a'; first < 'i'; first++) {
            fixture with, without;
            open_engine(&with, 16, 4);
            open_engine(&without, -1, 4);
            reply a = said(&with, g, NULL, first, 140, first % 2 ? 0.7f : 0), b = said(&without, g, NULL, first, 140, first % 2 ? 0.7f : 0);
            assert_int_equal(a.tokens.n_bytes, b.tokens.n_bytes);
            assert_memory_equal(a.tokens.data, b.tokens.data, a.tokens.n_bytes);
            assert_int_equal(a.end.stop_reason, b.end.stop_reason);
            accepted += stats_of(&with).draft_accepted;
            reply_free(&a);
            reply_free(&b);
            fixture_close(&with);
            fixture_close(&without);
        }
        weir_grammar_close(&g);
    }
    weir_grammars_close(&grammars);
    assert_true(accepted > 200);
}

static void a_grammar_waits_for_its_text(void **state) {
    (void)state;
    fixture f;
    weir_grammars *grammars = open_grammars();
    weir_grammar *g = compile(grammars, WEIR_GRAMMAR_REGEX, "[0-9]{4}");
    open_engine(&f, -1, 4);
    /* Free text first: what it says without a grammar. */
    reply free_text = said(&f, NULL, NULL, 'q', 30, 0);
    assert_true(free_text.text.n_bytes == 30);
    char after[3] = {free_text.text.data[6], free_text.text.data[7], 0};
    const char *at = strstr(free_text.text.data, after);
    reply r = said(&f, g, after, 'q', 60, 0);
    size_t n_before = (size_t)(at - free_text.text.data) + 2;
    assert_int_equal(r.end.stop_reason, WEIR_STOP_EOS);
    assert_int_equal(r.text.n_bytes, n_before + 4);
    assert_memory_equal(r.text.data, free_text.text.data, n_before);
    assert_int_equal(strspn(r.text.data + n_before, "0123456789"), 4);
    reply_free(&r);
    reply_free(&free_text);
    fixture_close(&f);
    weir_grammar_close(&g);
    weir_grammars_close(&grammars);
}

static void tagged_values_may_follow_each_other(void **state) {
    (void)state;
    fixture f;
    weir_grammars *grammars = open_grammars();
    weir_grammar *one = compile(grammars, WEIR_GRAMMAR_TAGGED, "\n</c>\n{\"type\":\"boolean\"}"),
                 *more = compile(grammars, WEIR_GRAMMAR_TAGGED, "<c>\n</c>\n{\"enum\":[1,22]}"), *wrong = NULL;
    weir_error err = {0};
    assert_int_equal(weir_grammar_open(&wrong, grammars, WEIR_GRAMMAR_TAGGED, "<c>\n\n{}", 7, &err), WEIR_E_FORMAT);
    open_engine(&f, -1, 4);
    int n_several = 0;
    for (int32_t first = 'a'; first < 'z'; first++) {
        reply r = said(&f, one, NULL, first, 40, 3);
        char *text = r.text.data;
        assert_int_equal(r.end.stop_reason, WEIR_STOP_EOS);
        text += strspn(text, " \n");
        assert_true(strncmp(text, "true", 4) == 0 || strncmp(text, "false", 5) == 0);
        text += strcspn(text, " \n<");
        text += strspn(text, " \n");
        assert_memory_equal(text, "</c>", 4);
        assert_int_equal(strspn(text + 4, " \n"), strlen(text + 4));
        reply_free(&r);
        r = said(&f, more, NULL, first, 60, 3);
        n_several += strstr(r.text.data, "<c>") != NULL;
        reply_free(&r);
    }
    assert_true(n_several > 0);
    fixture_close(&f);
    weir_grammar_close(&one);
    weir_grammar_close(&more);
    weir_grammars_close(&grammars);
}

static void what_the_grammar_needs_may_be_banned(void **state) {
    (void)state;
    fixture f;
    weir_grammars *grammars = open_grammars();
    weir_grammar *g = compile(grammars, WEIR_GRAMMAR_REGEX, "7");
    open_engine(&f, -1, 4);
    const int32_t prompt[] = {'a'};
    const weir_logit_bias ban[] = {{'7', -1.0f / 0.0f}};
    weir_request r = plain_request(prompt, 1);
    r.grammar = g;
    r.max_tokens = 5;
    r.sampling.logit_bias = ban;
    r.sampling.n_logit_bias = 1;
    weir_job *job = submit(&f, &r);
    reply failed = finish_reply(&job);
    assert_int_equal(failed.end.type, WEIR_EVENT_ERROR);
    assert_int_equal(failed.end.code, WEIR_E_INTERNAL);
    reply_free(&failed);
    fixture_close(&f);
    weir_grammar_close(&g);
    weir_grammars_close(&grammars);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_answer_is_a_text_of_the_grammar),
        cmocka_unit_test(speculation_changes_nothing),
        cmocka_unit_test(a_grammar_waits_for_its_text),
        cmocka_unit_test(tagged_values_may_follow_each_other),
        cmocka_unit_test(what_the_grammar_needs_may_be_banned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
