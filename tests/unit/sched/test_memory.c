/* Out of memory at every place: the n-th allocation of a session fails, for each n until none is left to fail. Whatever it
 * hits, each job ends with one terminal event, nothing is lost, and the engine serves the next request. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

/* The linker sends all allocations here (--wrap). */
void *__real_malloc(size_t n_bytes);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t n_bytes);
void *__real_aligned_alloc(size_t alignment, size_t n_bytes);
void *__wrap_malloc(size_t n_bytes);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t n_bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes);

static atomic_int until_failure;  /* -1 = never, 0 = the next one */
static _Thread_local bool exempt; /* the test's own allocations */

static bool fails(void) {
    return !exempt && atomic_load(&until_failure) >= 0 && atomic_fetch_sub(&until_failure, 1) == 0;
}

void *__wrap_malloc(size_t n_bytes) {
    return fails() ? NULL : __real_malloc(n_bytes);
}
void *__wrap_calloc(size_t count, size_t size) {
    return fails() ? NULL : __real_calloc(count, size);
}
void *__wrap_realloc(void *memory, size_t n_bytes) {
    return fails() ? NULL : __real_realloc(memory, n_bytes);
}
void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes) {
    return fails() ? NULL : __real_aligned_alloc(alignment, n_bytes);
}

static int submit_exposed(fixture *f, const weir_request *q, weir_job **job) {
    weir_error err = {0};
    exempt = false;
    int code = weir_job_submit(f->engine, q, job, &err);
    exempt = true;
    if (code != 0) {
        assert_int_equal(code, WEIR_E_NOMEM);
        assert_null(*job);
        assert_true(err.message[0] != '\0');
    }
    return code;
}

static int open_exposed(fixture *f) {
    weir_error err = {0};
    sched_backend backend = fake_backend(&f->backend);
    weir_engine_options options = {.n_parallel = 4, .n_batch = 16};
    exempt = false;
    int code = sched_open(&f->engine, &backend, &options, &err);
    exempt = true;
    return code;
}

static void run_jobs(fixture *f) {
    static const char *const stops[] = {"never said", "nor this"};
    static const weir_logit_bias bias = {'e', 3};
    const int32_t tokens[] = {'a', 'b', 'c'};
    weir_job *jobs[4] = {NULL};
    for (int i = 0; i < 4; i++) {
        weir_request q = plain_request(tokens, 3);
        q.max_tokens = 200;
        q.request_id = i == 0 ? "first" : NULL;
        if (i == 1) {
            q.stop = stops;
            q.n_stop = 2;
            q.ignore_eos = true;
            q.n_top_logprobs = 5;
        }
        if (i == 2) {
            q.sampling = (weir_sampling){.temperature = 1,
                                         .top_p = 0.9f,
                                         .repetition_penalty = 1.1f,
                                         .penalty_last_n = -1,
                                         .logit_bias = &bias,
                                         .n_logit_bias = 1};
        }
        if (i == 3) q.sampling = (weir_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
        submit_exposed(f, &q, &jobs[i]);
    }
    for (int i = 0; i < 4; i++) {
        if (jobs[i] == NULL) continue;
        reply r = finish_reply(&jobs[i]);
        if (r.end.type == WEIR_EVENT_ERROR) assert_int_equal(r.end.code, WEIR_E_NOMEM);
        reply_free(&r);
    }
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    int n = 0;
    exempt = true;
    for (bool failed = true; failed; n++) {
        fixture f;
        fixture_init(&f);
        atomic_store(&until_failure, n);
        int code = open_exposed(&f);
        if (code == 0) {
            run_jobs(&f);
            failed = atomic_load(&until_failure) < 0;
            atomic_store(&until_failure, -1);
            weir_job *job = submit_one(&f, 'z', 20);
            reply r = finish_reply(&job);
            assert_int_equal(r.n_events, 20);
            reply_free(&r);
            fixture_close(&f);
        } else {
            assert_int_equal(code, WEIR_E_NOMEM);
            assert_null(f.engine);
            assert_int_equal(atomic_load(&f.backend.n_closes), 1);
            fake_free(&f.backend);
        }
    }
    assert_true(n > 40);
}

int main(void) {
    atomic_store(&until_failure, -1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation_may_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
