/* Stop strings, whole code points and the channel, without an engine. */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

#include "base/utf8.h"
#include "sched/answer.h"
#include "sched/channel.h"

static uint64_t random_state = 1;
static uint32_t random_below(uint32_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

/* ---- a second opinion, by brute force ---- */

/* Where the text ends: before the match that is complete first (the longest of several). */
static size_t expected_end(const char *text, size_t n, const char *const *stops, size_t n_stops, int *which) {
    *which = -1;
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (size_t s = 0; s < n_stops; s++) {
            size_t length = strlen(stops[s]);
            if (length > longest && length <= end && memcmp(text + end - length, stops[s], length) == 0) {
                longest = length;
                *which = (int)s;
            }
        }
        if (longest) return end - longest;
    }
    return n;
}

static size_t expected_held(const char *text, size_t n, const char *const *stops, size_t n_stops) {
    for (size_t held = n; held > 0; held--)
        for (size_t s = 0; s < n_stops; s++)
            if (held < strlen(stops[s]) && memcmp(text + n - held, stops[s], held) == 0) return held;
    return 0;
}

/* Pushes the text as tokens that end at the given cuts (a bit for each byte) and checks what leaves after each. */
static void check_split(const char *text, uint64_t cuts, const char *const *stops, size_t n_stops) {
    arena memory = ARENA_INIT;
    stop_set set;
    answer a;
    char sent[256];
    size_t n = strlen(text), n_sent = 0, start = 0;
    size_t begins[64]; /* where the text of each token begins, as far as it was whole */
    uint32_t n_tokens = 0, n_carried = 0;
    int which, stopped = 0;
    size_t end = expected_end(text, n, stops, n_stops, &which);
    assert_int_equal(stop_init(&set, stops, n_stops, &memory, NULL), 0);
    answer_init(&a, &set, -1);
    for (size_t i = 1; i <= n && !stopped; i++) {
        if (i < n && !(cuts >> i & 1)) continue;
        begins[n_tokens] = utf8_complete_prefix(text, start);
        stopped = answer_push(&a, (int32_t)n_tokens++, text + start, i - start, 0, NULL);
        assert_true(stopped >= 0);
        if (i == n && !stopped) stopped = answer_finish(&a);
        channel_record r;
        while (answer_take(&a, stopped || i == n, &r)) {
            assert_true(utf8_valid(r.text, r.text_bytes));
            for (uint32_t t = 0; t < r.n_tokens; t++) assert_int_equal(r.tokens[t], n_carried + t);
            n_carried += r.n_tokens;
            memcpy(sent + n_sent, r.text, r.text_bytes);
            n_sent += r.text_bytes;
            answer_sent(&a, &r);
            assert_true(begins[n_carried - 1] < n_sent);
            if (n_carried < n_tokens) assert_true(begins[n_carried] >= n_sent);
        }
        if (!stopped && i < n) {
            size_t whole = utf8_complete_prefix(text, i);
            assert_int_equal(n_sent, whole - expected_held(text, whole, stops, n_stops));
        }
        start = i;
    }
    assert_int_equal(stopped, which >= 0);
    if (which >= 0)
        assert_string_equal(stops[which], set.strings[a.stop_index].text);
    else
        assert_int_equal(n_carried, n_tokens);
    assert_int_equal(n_sent, end);
    assert_memory_equal(sent, text, end);
    answer_free(&a);
    arena_free(&memory);
}

static void stop_strings_at_every_split(void **state) {
    (void)state;
    static const char *const texts[] = {"hi <|e|> x", "aabaabaaab", "ab\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "abcabcabd"};
    static const char *const sets[][3] = {{"<|e|>", "zz", "<|"},
                                          {"aabaaab", "aaab", "baabaaab"},
                                          {"\xE2\x82\xAC", "\xE2\x82\xAE", "\xF0\x9F\x98\x81"},
                                          {"abcabd", "bcabcabd", "cabd"}};
    for (size_t t = 0; t < 4; t++) {
        size_t n = strlen(texts[t]);
        for (uint64_t cuts = 0; cuts < UINT64_C(1) << n; cuts += 2)
            for (size_t n_stops = 0; n_stops <= 3; n_stops++) check_split(texts[t], cuts, sets[t], n_stops);
    }
}

static void stop_strings_at_random(void **state) {
    (void)state;
    for (int round = 0; round < 20000; round++) {
        char text[41], words[4][8];
        const char *stops[4];
        size_t n_stops = random_below(5), n = 1 + random_below(40);
        for (size_t i = 0; i < n; i++) text[i] = (char)('a' + random_below(2 + (uint32_t)round % 2));
        text[n] = '\0';
        for (size_t s = 0; s < n_stops; s++) {
            size_t length = 1 + random_below(7);
            for (size_t i = 0; i < length; i++) words[s][i] = (char)('a' + random_below(2 + (uint32_t)round % 2));
            words[s][length] = '\0';
            stops[s] = words[s];
        }
        check_split(text, (uint64_t)random_below(1u << 31) << 20 ^ random_below(1u << 31), stops, n_stops);
    }
}

static void bad_stop_strings(void **state) {
    (void)state;
    static const char *const bad[] = {"", "\xC3", "\x80x", NULL};
    for (size_t i = 0; i < 4; i++) {
        arena memory = ARENA_INIT;
        stop_set set;
        weir_error err = {0};
        assert_int_equal(stop_init(&set, &bad[i], 1, &memory, &err), WEIR_E_INVALID);
        assert_string_equal(err.place, "stop");
        arena_free(&memory);
    }
}

/* ---- tokens and code points ---- */

static void tokens_travel_with_their_text(void **state) {
    (void)state;
    stop_set none = {0};
    answer a;
    channel_record r;
    weir_top_logprob top[2] = {{7, -0.5f}, {8, -1.5f}};
    answer_init(&a, &none, 2);
    /* The first token ends inside a code point, the second has no bytes at all, the third completes it. */
    assert_int_equal(answer_push(&a, 1, "x\xE2\x82", 3, -1, top), 0);
    assert_true(answer_take(&a, false, &r));
    assert_int_equal(r.text_bytes, 1);
    assert_int_equal(r.n_tokens, 1);
    answer_sent(&a, &r);
    assert_int_equal(answer_push(&a, 2, "", 0, -2, top), 0);
    assert_false(answer_take(&a, false, &r));
    assert_int_equal(answer_push(&a, 3, "\xAC!", 2, -3, top), 0);
    assert_true(answer_take(&a, false, &r));
    assert_int_equal(r.index, 1);
    assert_memory_equal(r.text, "\xE2\x82\xAC!", 4);
    assert_int_equal(r.n_tokens, 2);
    assert_int_equal(r.tokens[0], 2);
    assert_int_equal(r.tokens[1], 3);
    assert_float_equal(r.logprobs[0], -2, 0);
    assert_float_equal(r.logprobs[1], -3, 0);
    assert_int_equal(r.top[3].token, 8);
    answer_sent(&a, &r);
    /* What never becomes a code point is U+FFFD at the end. */
    assert_int_equal(answer_push(&a, 4, "\xF0\x9F", 2, -4, top), 0);
    assert_false(answer_take(&a, true, &r));
    assert_int_equal(answer_finish(&a), 0);
    assert_true(answer_take(&a, true, &r));
    assert_memory_equal(r.text, "\xEF\xBF\xBD", 3);
    assert_int_equal(r.n_tokens, 1);
    answer_sent(&a, &r);
    assert_false(answer_take(&a, true, &r));
    answer_free(&a);
}

/* ---- channel ---- */

static channel_record record_of(uint32_t index, const char *text, uint32_t n_tokens, const int32_t *tokens,
                                const float *logprobs, const weir_top_logprob *top, uint32_t n_top) {
    return (channel_record){index, text, (uint32_t)strlen(text), n_tokens, tokens, logprobs, top, n_top};
}

static void channel_keeps_order_and_content(void **state) {
    (void)state;
    channel c;
    channel_record r;
    channel_init(&c);
    assert_int_equal(channel_take(&c, &r), CHANNEL_NONE);
    assert_false(channel_ready(&c));
    uint32_t pushed = 0, taken = 0;
    for (int round = 0; round < 3000; round++) {
        char text[64];
        int32_t tokens[3] = {round, round + 1, round + 2};
        float logprobs[3] = {-1, -2, (float)-round};
        weir_top_logprob top[6] = {{1, -1}, {2, -2}, {3, -3}, {4, -4}, {5, -5}, {round, -6}};
        uint32_t n = random_below(4), burst = 1 + random_below(6);
        for (uint32_t i = 0; i < burst; i++, pushed++) {
            snprintf(text, sizeof text, "event %u %.*s", pushed, (int)random_below(30), "..............................");
            channel_record in =
                record_of(pushed, text, n, tokens, n % 2 ? logprobs : NULL, n == 3 ? top : NULL, n == 3 ? 2 : 0);
            assert_int_equal(channel_push(&c, &in), pushed == taken);
        }
        for (uint32_t i = random_below(8); i > 0 && taken < pushed; i--, taken++) {
            assert_true(channel_ready(&c));
            assert_int_equal(channel_take(&c, &r), CHANNEL_RECORD);
            snprintf(text, sizeof text, "event %u ", taken);
            assert_int_equal(r.index, taken);
            assert_memory_equal(r.text, text, strlen(text));
            assert_int_equal(r.text[r.text_bytes], 0);
            assert_int_equal(strlen(r.text), r.text_bytes);
            if (r.n_tokens > 0) assert_int_equal(r.tokens[r.n_tokens - 1], r.tokens[0] + (int32_t)r.n_tokens - 1);
            assert_int_equal(r.logprobs != NULL, r.n_tokens % 2);
            if (r.n_tokens == 3) assert_int_equal(r.top[5].token, r.tokens[0]);
        }
    }
    channel_end(&c);
    for (; taken < pushed; taken++) assert_int_equal(channel_take(&c, &r), CHANNEL_RECORD);
    assert_int_equal(channel_take(&c, &r), CHANNEL_END);
    assert_int_equal(channel_take(&c, &r), CHANNEL_NONE);
    assert_true(channel_drained(&c));
    channel_free(&c);
}

static void channel_is_bounded(void **state) {
    (void)state;
    channel c;
    channel_record r, small = record_of(0, "x", 0, NULL, NULL, NULL, 0);
    channel_init(&c);
    uint32_t n = 0;
    for (; !channel_full(&c); n++) assert_true(channel_push(&c, &small) >= 0);
    assert_int_equal(n, CHANNEL_MAX_EVENTS);
    assert_false(channel_drained(&c));
    for (uint32_t i = 0; i < CHANNEL_MAX_EVENTS / 2 - 1; i++) assert_int_equal(channel_take(&c, &r), CHANNEL_RECORD);
    assert_false(channel_full(&c));
    assert_false(channel_drained(&c));
    assert_int_equal(channel_take(&c, &r), CHANNEL_RECORD);
    assert_true(channel_drained(&c));
    channel_free(&c);

    /* By bytes, and with records larger than a chunk. */
    char *large = malloc(20001);
    memset(large, 'y', 20000);
    large[20000] = '\0';
    channel_init(&c);
    channel_record in = record_of(0, large, 0, NULL, NULL, NULL, 0);
    for (n = 0; !channel_full(&c); n++) assert_true(channel_push(&c, &in) >= 0);
    assert_in_range(n, CHANNEL_MAX_BYTES / 20100, CHANNEL_MAX_BYTES / 20000 + 1);
    while (channel_take(&c, &r) == CHANNEL_RECORD) assert_int_equal(r.text_bytes, 20000);
    assert_true(channel_drained(&c));
    channel_free(&c);
    free(large);
}

/* The bound must hold the answer that it promises to hold. */
static void channel_holds_a_long_answer(void **state) {
    (void)state;
    channel c;
    weir_top_logprob top[20] = {{1, -1}};
    int32_t token = 5;
    float logprob = -1;
    channel_record in = record_of(0, " a long word", 1, &token, &logprob, top, 20);
    channel_init(&c);
    for (int i = 0; i < 2048; i++) {
        assert_false(channel_full(&c));
        assert_true(channel_push(&c, &in) >= 0);
    }
    channel_free(&c);
}

enum { N_STREAMED = 200000 };

static void *push_all(void *arg) {
    channel *c = arg;
    for (uint32_t i = 0; i < N_STREAMED; i++) {
        char text[16];
        int32_t token = (int32_t)i;
        while (channel_full(c)) sched_yield();
        snprintf(text, sizeof text, "%u", i);
        channel_record in = record_of(i, text, 1, &token, NULL, NULL, 0);
        channel_push(c, &in);
    }
    channel_end(c);
    return NULL;
}

static void channel_between_threads(void **state) {
    (void)state;
    channel c;
    channel_record r;
    pthread_t producer;
    uint32_t n = 0;
    channel_init(&c);
    assert_int_equal(pthread_create(&producer, NULL, push_all, &c), 0);
    for (channel_taken taken = CHANNEL_NONE; taken != CHANNEL_END;) {
        taken = channel_take(&c, &r);
        if (taken == CHANNEL_NONE) sched_yield();
        if (taken != CHANNEL_RECORD) continue;
        char text[16];
        snprintf(text, sizeof text, "%u", n);
        assert_string_equal(r.text, text);
        assert_int_equal(r.tokens[0], n);
        n++;
    }
    assert_int_equal(n, N_STREAMED);
    pthread_join(producer, NULL);
    channel_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_strings_at_every_split),
        cmocka_unit_test(stop_strings_at_random),
        cmocka_unit_test(bad_stop_strings),
        cmocka_unit_test(tokens_travel_with_their_text),
        cmocka_unit_test(channel_keeps_order_and_content),
        cmocka_unit_test(channel_is_bounded),
        cmocka_unit_test(channel_holds_a_long_answer),
        cmocka_unit_test(channel_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
