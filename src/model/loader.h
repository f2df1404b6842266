/* What the files that load weights share: the list of bindings from tensors to the slots of a model.
 *
 * Included by weights.c, bind.c, packing.c and the files of the sidecar only. */
#ifndef WEIR_MODEL_LOADER_H
#define WEIR_MODEL_LOADER_H

#include "model/model.h"
#include "model/quant_mix.h"


/* Something to be made from a tensor once the memory for all is there. */
typedef struct binding {
    const gguf_tensor *tensor;
    int64_t first;         /* row of the tensor (matrix) or value (vector) that it starts with */
    int64_t n_values;      /* of a vector */
    kern_matrix *matrix;   /* packed, or */
    const float **vector;  /* dequantised */
    const quant_format *format; /* what the matrix' rows are quantised to first; NULL = they are taken as they are */
    bool transposed;       /* the matrix is the transpose of n_cols rows of the tensor, in F32 */
    /* Not NULL: the vector, zero at first, is made from the tensor's n_values values. */
    void (*make)(const model_config *c, const float *values, float *out);
    size_t offset, n_bytes;
} binding;

typedef struct loader {
    weir_model *m;
    weir_error *err;
    binding *bindings;
    size_t n_bindings, capacity;
    size_t total_bytes, total_values, largest_row;
    quant_choice *choices; /* for each tensor of the file; NULL = none is quantised */
} loader;

/* All return a negative code on failure; the bind functions 1 when the tensor is there and 0 when it is absent and not required. */

/* Adds a binding whose n_bytes are set; its place in memory follows those before it. */
int loader_add(loader *l, binding b);
/* "64 x 128" */
void loader_format_shape(char out[64], const uint64_t *dims, uint32_t n_dims);
/* Fails for a tensor that is not there: its name, the shape that it should have, the nearest name of the file. */
int loader_missing(loader *l, const char *name, const char *shape);
/* Fails for a tensor whose type cannot be dequantised; 0 otherwise. */
int loader_check_readable(loader *l, const gguf_tensor *t, const char *name);
/* The tensor of that name with shape [n_rows][n_cols] (n_rows 0: a vector [n_cols]); NULL in *out if absent and not required. */
int loader_find(loader *l, const char *name, int64_t n_rows, int64_t n_cols, bool required, const gguf_tensor **out);
/* Rows [first, first + n_rows) of a tensor [n_rows_whole][n_cols] as a matrix. */
int loader_bind_rows(loader *l, kern_matrix *w, int64_t first, int64_t n_rows, int64_t n_rows_whole, int64_t n_cols, bool required,
                     const char *name);
int loader_bind_matrix(loader *l, kern_matrix *w, int64_t n_rows, int64_t n_cols, bool required, const char *name);
/* Values [first, first + n) of a vector tensor of n_whole. */
int loader_bind_part(loader *l, const float **v, int64_t first, int64_t n, int64_t n_whole, bool required, const char *name);
int loader_bind_vector(loader *l, const float **v, int64_t n, bool required, const char *name);

/* A tensor of n blocks of n_rows_whole rows: matrix k is rows [first, first + n_rows) of block k. *matrices gets an array of n that
 * the model owns. The blocks may be a dimension of the tensor ([n][n_rows_whole][n_cols]) or one after the other. */
int loader_bind_stack(loader *l, kern_matrix **matrices, int64_t n, int64_t first, int64_t n_rows, int64_t n_rows_whole, int64_t n_cols,
                      const char *name);
/* The same with matrix k being the transpose of those rows, [n_cols][n_rows]. */
int loader_bind_stack_transposed(loader *l, kern_matrix **matrices, int64_t n, int64_t first, int64_t n_rows, int64_t n_rows_whole,
                                 int64_t n_cols, const char *name);

/* A vector of n floats that `make` fills from the values of a tensor [n_rows][n_cols], in whatever shape. */
int loader_bind_made(loader *l, const float **v, size_t n, void (*make)(const model_config *c, const float *values, float *out),
                     int64_t n_rows, int64_t n_cols, const char *name);

/* ---- bind.c ----------------------------------------------------------------------------------------------------------- */

/* Allocates the layers of l->m and binds everything that its architecture has. */
int model_bind(loader *l);
/* What can be checked or made once the vectors are there. */
int model_bind_finish(loader *l);

/* ---- packing ---------------------------------------------------------------------------------------------------------- */

/* Packs all bindings into memory of their own, m->weights, with all threads; source pages leave the process as they are done
 * with, so that it never holds both. WEIR_E_NOMEM, WEIR_E_CANCELLED, WEIR_E_INTERNAL (threads). */
int packing_run(loader *l, const weir_model_options *options);
/* Writes the values of a vector to `memory` [n_bytes]. False without memory. */
bool packing_vector(const loader *l, const binding *b, void *memory);
/* Packs a transposed matrix into `memory`. `scratch` as for kern_pack. False without memory. */
bool packing_transposed(const binding *b, unsigned char *memory, float *scratch);
/* The first source row of a matrix. */
const unsigned char *packing_rows(const binding *b);
/* WEIR_E_NOMEM when m->weights would not fit. */
int packing_check_memory(loader *l);
/* Points matrices and vectors into m->weights. */
void packing_bind(loader *l);

#endif
