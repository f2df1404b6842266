/* safetensors headers: whatever is accepted lies in the range, covers its data, and has the bytes of its shape. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "hf/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    safetensors s;
    weir_error err = {0};
    if (safetensors_parse(&s, data, size, "fuzz", &err) < 0) {
        require(err.code < 0 && err.place[0] && err.message[0] && s.n == 0);
        return 0;
    }
    uint64_t at = 0;
    for (size_t i = 0; i < s.n; i++) {
        const safetensor *t = &s.tensors[i];
        require(t->offset <= size && t->n_bytes <= size - t->offset && t->n_dims <= SAFETENSORS_MAX_DIMS && t->name[0]);
        require(i == 0 || t->offset == at);
        at = t->offset + t->n_bytes;
        if (t->format) require(t->n_bytes == t->n_values * (uint64_t)t->format->block_bytes);
        volatile uint8_t last = t->n_bytes ? data[at - 1] : 0;
        (void)last;
    }
    require(s.n == 0 || at == size);
    safetensors_free(&s);
    return 0;
}
