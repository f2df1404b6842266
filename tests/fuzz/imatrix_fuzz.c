/* Fuzz target: importance matrix files, of both forms. What is accepted must be consistent. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/imatrix.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    imatrix *im;
    weir_error err = {0};
    int rc = imatrix_parse(&im, data, size, "fuzz", &err);
    if ((rc == 0) != (im != NULL) || (rc < 0 && err.message[0] == '\0')) abort();
    if (rc < 0) return 0;
    for (size_t i = 0; i < imatrix_n_entries(im); i++) {
        const imatrix_entry *e = imatrix_at(im, i);
        if (imatrix_find(im, e->name) != e || e->n_values == 0) abort();
        for (size_t k = 0; k < e->n_values; k++) {
            if (!isfinite(e->means[k]) || e->means[k] < 0) abort();
        }
    }
    if (imatrix_at(im, imatrix_n_entries(im)) || strlen(imatrix_dataset(im)) > size) abort();
    imatrix_close(&im);
    return 0;
}
