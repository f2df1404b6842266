/* A folder becomes a GGUF file: its metadata, and its tensors row by row in GGUF's order. */
#include "base/error.h"
#include "gguf/gguf_write.h"
#include "hf/hf.h"

static int put_data(gguf_writer *w, const gguf_tensor *t, weir_error *err) {
    if (t->rope_head == 0) return gguf_writer_data(w, t->data, (size_t)t->n_bytes, err);
    const size_t row_bytes = quant_row_bytes(t->format, (size_t)t->dims[0]);
    for (uint64_t row = 0; row < t->n_values / t->dims[0]; row++)
        TRY(gguf_writer_data(w, gguf_tensor_row(t, row), row_bytes, err));
    return 0;
}

/* The number of general.file_type: that of the format which takes most bytes. */
static uint32_t file_type(const gguf *g) {
    const char *name = gguf_file_type_name(g);
    return name[0] == 'B' ? 32 : name[1] == '1' ? 1 : 0; /* BF16, F16, F32 */
}

static int write_all(gguf_writer *w, const gguf *g, hf_progress progress, void *user, weir_error *err) {
    uint64_t total = 0, done = 0;
    gguf_writer_copy_all(w, g);
    gguf_writer_u32(w, "general.file_type", file_type(g));
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        gguf_writer_tensor(w, t->name.text, t->name.n_bytes, t->n_dims, t->dims, t->format);
        total += t->n_bytes;
    }
    TRY(gguf_writer_begin(w, err));
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        TRY(put_data(w, t, err));
        done += t->n_bytes;
        FAIL_IF(progress && !progress(user, done, total), err, WEIR_E_CANCELLED, "", "converting was stopped");
    }
    return gguf_writer_finish(w, err);
}

int hf_convert(const char *folder, const char *path, hf_progress progress, void *user, weir_error *err) {
    gguf *g = NULL;
    gguf_writer *w = NULL;
    FAIL_IF(!hf_is_folder(folder), err, WEIR_E_INVALID, folder,
            "is no folder; expected a model as Hugging Face's libraries save it");
    int rc = hf_open_for_gguf(&g, folder, err);
    if (rc >= 0) rc = gguf_writer_open(&w, path, err);
    if (rc >= 0) rc = write_all(w, g, progress, user, err);
    gguf_writer_close(&w);
    gguf_close(&g);
    return rc < 0 ? rc : 0;
}
