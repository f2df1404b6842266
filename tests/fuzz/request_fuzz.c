/* Bodies of the worker contract: the first byte chooses the form, the rest is the body. Whatever it is, the answer is a request that the
 * scheduler may take, or a refusal with a status and well-formed text. */
#include <stdlib.h>

#include "api/worker_request.h"
#include "base/utf8.h"

static void require(bool condition) {
    if (!condition) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    worker_request request;
    worker_refusal refusal;
    if (worker_request_decode(&request, (const char *)data + 1, size - 1, data[0] & 1, data[0] & 2, &refusal) == 0) {
        const weir_sampling *s = &request.job.sampling;
        require(request.prompt_bytes > 0 && utf8_valid(request.prompt, request.prompt_bytes));
        require(request.job.max_tokens >= 1 && request.job.max_tokens <= 4096);
        require(s->temperature >= 0 && s->temperature <= 2 && s->top_p >= 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1);
        require(s->repetition_penalty > 0 && s->repetition_penalty <= 2 && s->top_k >= 0);
        require(request.job.n_stop <= WORKER_MAX_STOPS && refusal.status == 0);
        require((request.form == WORKER_SINGLE) == (request.job_id != NULL));
        for (size_t i = 0; i < request.job.n_stop; i++) require(request.stop[i] && request.stop[i][0]);
    } else {
        require(refusal.status == 400 || refusal.status == 422 || refusal.status == 500 || refusal.status == 503);
        require(refusal.body.n_bytes > 0 || refusal.status == 503);
        require(utf8_valid(refusal.body.data ? refusal.body.data : "", refusal.body.n_bytes));
        if (refusal.json) {
            json_t *errors = json_loadb(refusal.body.data, refusal.body.n_bytes, 0, NULL);
            require(json_array_size(json_object_get(errors, "errors")) > 0);
            json_decref(errors);
        }
    }
    buf_free(&refusal.body);
    worker_request_free(&request);
    return 0;
}
