/* The log line of a request: trace context by its grammar, what jobs add up to; and how long a refused client should wait. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "api/access.h"
#include "api/retry.h"
#include "base/log.h"

void weir_job_get_progress(const weir_job *job, weir_job_progress *progress) {
    (void)job;
    *progress = (weir_job_progress){.running = true, .n_prompt = 100, .n_output = 7, .max_output = 50};
}

#define GOOD "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

static void trace_context(void **state) {
    static const char *const bad[] = {
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
        GOOD "-",
        GOOD "-extra",
        GOOD "0",                                                  /* version 00 has four fields */
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", /* forbidden */
        "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", /* upper case */
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x", /* a later version: a field, or the end */
        (" " GOOD),
    };
    access_record r = {0};
    (void)state;
    assert_false(access_set_trace(&r, NULL));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (access_set_trace(&r, bad[i])) fail_msg("taken: %s", bad[i]);
        assert_string_equal(r.traceparent, "");
    }
    assert_true(access_set_trace(&r, GOOD));
    assert_string_equal(r.traceparent, GOOD);
    assert_true(access_set_trace(&r, "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later"));
    assert_string_equal(r.traceparent, "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
}

static void read_line(int fd, char *line, size_t capacity) {
    ssize_t n = read(fd, line, capacity - 1);
    line[n > 0 ? n : 0] = '\0';
}

static void line_of_a_request(void **state) {
    int ends[2];
    char line[4096];
    access_record r = {.id = "req-1", .arrived_us = 1000000, .headers_us = 1002500, .status = 200, .body_bytes = 300};
    const weir_event token = {.type = WEIR_EVENT_TOKEN};
    weir_event end = {
        .type = WEIR_EVENT_END,
        .stop_reason = WEIR_STOP_LENGTH,
        .timings = {.n_prompt = 10, .n_cached = 4, .n_output = 5, .queue_us = 1000, .prefill_us = 9000, .decode_us = 50000}};
    (void)state;
    assert_int_equal(pipe(ends), 0);
    log_setup(ends[1], false, LOG_INFO);
    access_set_trace(&r, GOOD);
    access_event(&r, &token, 1010000);
    access_event(&r, &token, 1020000);
    access_event(&r, &end, 1060000);
    end.timings.decode_us = 40000;
    access_event(&r, &end, 1070000);
    access_lost(&r, NULL);
    r.client_gone = true;
    access_log(&r, "POST", "/v1/x y=1", 1080000);
    read_line(ends[0], line, sizeof line);
    const char *const parts[] = {
        " INFO request method=POST path=\"/v1/x y=1\" status=200 request_id=req-1 traceparent=" GOOD " total_ms=80 "
        "headers_ms=2.5 bytes=300 client=gone first_token_ms=10 queue_ms=1 prefill_ms=9 decode_ms=50 n_prompt=120 "
        "n_cached=8 n_output=17 end=E_CANCELLED\n"};
    if (strstr(line, parts[0]) == NULL) fail_msg("the line is: %s", line);
    /* Probes are not worth a line, refusals are. */
    access_record probe = {.id = "p", .status = 200}, refused = {.id = "q", .status = 429}, lost = {.id = "r"};
    access_log(&probe, "GET", "/health", 5);
    access_log(&refused, "POST", "/v1/completions", 5);
    read_line(ends[0], line, sizeof line);
    assert_null(strstr(line, "/health"));
    assert_non_null(strstr(line, "status=429 request_id=q"));
    access_log(&lost, "POST", "/v1/completions", 5);
    read_line(ends[0], line, sizeof line);
    assert_non_null(strstr(line, "status=499"));
    log_setup(ends[1], true, LOG_INFO);
    access_log(&r, "GET", "/a\"b", 1080000);
    read_line(ends[0], line, sizeof line);
    assert_non_null(strstr(line, "\"path\":\"/a\\\"b\",\"status\":200,\"request_id\":\"req-1\",\"traceparent\":\"" GOOD "\""));
    close(ends[0]);
    close(ends[1]);
}

static void waiting_by_the_rate(void **state) {
    retry_rate r = {0};
    int64_t now = 5000000;
    (void)state;
    assert_int_equal(retry_after_s(&r, 100, 0, now), RETRY_LEAST_S); /* nothing is known yet */
    retry_sample(&r, 0, now);
    assert_int_equal(retry_after_s(&r, 100, 0, now + 7000000), 7);    /* nothing has ended for 7 s */
    assert_int_equal(retry_after_s(&r, 100, 50, now + 10000000), 20); /* 5 a second */
    assert_int_equal(retry_after_s(&r, 0, 50, now + 10000000), RETRY_LEAST_S);
    assert_int_equal(retry_after_s(&r, 1000000, 1, now + 10000000), RETRY_MOST_S);
    /* Two a second for two minutes, then four a second: only the last minute counts. */
    uint64_t n = 0;
    for (int i = 0; i < 120; i++) retry_sample(&r, n += 2, now += 1000000);
    assert_int_equal(retry_after_s(&r, 60, n, now), 30);
    for (int i = 0; i < 60; i++) retry_sample(&r, n += 4, now += 1000000);
    assert_int_equal(retry_after_s(&r, 60, n, now), 15);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(trace_context), cmocka_unit_test(line_of_a_request),
                                       cmocka_unit_test(waiting_by_the_rate)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
