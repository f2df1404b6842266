/* The head of a sidecar: made from the model, compared with that of a file. See sidecar.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/checked.h"
#include "base/error.h"
#include "model/sidecar.h"

enum {
    FORMAT_VERSION = 1,
    DATA_ALIGN = 2 << 20, /* a huge page of the file is then one of the mapping */
};
static const char magic[8] = {'W', 'E', 'I', 'R', 'P', 'A', 'C', 'K'};

_Static_assert(sizeof(sidecar_start) == 128 && sizeof(sidecar_entry) == 208, "the file's form has no padding");

static void put_sum(XXH128_hash_t sum, unsigned char out[16]) {
    XXH128_canonicalFromHash((XXH128_canonical_t *)out, sum);
}

void sidecar_seal(sidecar_start *head) {
    memset(head->checksum, 0, sizeof head->checksum);
    put_sum(XXH3_128bits(head, head->head_bytes), head->checksum);
}

/* The model is told by its metadata and tensor directory, and by size and time of modification of each part. That the tensors
 * themselves are the same is sampled when the sidecar is loaded. */
static int identify(const gguf *g, unsigned char out[16], weir_error *err) {
    XXH3_state_t *state = XXH3_createState();
    FAIL_IF(state == NULL, err, WEIR_E_NOMEM, gguf_path(g), "no memory for a checksum");
    XXH3_128bits_reset(state);
    for (uint32_t i = 0; i < gguf_n_parts(g); i++) {
        const gguf_part part = gguf_part_at(g, i);
        const uint64_t numbers[] = {part.file_bytes, (uint64_t)part.modified_ns, part.head_bytes};
        XXH3_128bits_update(state, numbers, sizeof numbers);
        XXH3_128bits_update(state, part.head, part.head_bytes);
    }
    put_sum(XXH3_128bits_digest(state), out);
    XXH3_freeState(state);
    return 0;
}

/* Samples of the packed weights tell what they were quantised to as they were loaded. */
int model_identify(const weir_model *m, unsigned char out[16], weir_error *err) {
    enum { N_SAMPLES = 64, SAMPLE = 4096 };
    XXH3_state_t *state = XXH3_createState();
    FAIL_IF(state == NULL, err, WEIR_E_NOMEM, m->info.path, "no memory for a checksum");
    int rc = identify(m->file, out, err);
    XXH3_128bits_reset(state);
    XXH3_128bits_update(state, out, 16);
    const size_t stride = m->weights_bytes / N_SAMPLES;
    for (size_t i = 0; i < N_SAMPLES && stride >= SAMPLE; i++) XXH3_128bits_update(state, m->weights + i * stride, SAMPLE);
    if (stride < SAMPLE) XXH3_128bits_update(state, m->weights, m->weights_bytes);
    put_sum(XXH3_128bits_digest(state), out);
    XXH3_freeState(state);
    return rc;
}

static void fill_entry(sidecar_entry *e, const binding *b) {
    const gguf_string name = b->tensor->name;
    memcpy(e->tensor, name.text, name.n_bytes < sizeof e->tensor ? name.n_bytes : sizeof e->tensor);
    snprintf(e->layout, sizeof e->layout, "%s%s", b->transposed ? "T " : b->make ? "made " : "",
             b->matrix ? b->matrix->layout->name : "vector");
    e->first = (uint64_t)b->first;
    e->n_rows = b->matrix ? (uint64_t)b->matrix->n_rows : 1;
    e->n_cols = b->matrix ? (uint64_t)b->matrix->n_cols : (uint64_t)b->n_values;
    e->panel_bytes = b->matrix ? b->matrix->panel_bytes : 0;
    e->offset = b->offset;
}

static int make_head(const loader *l, sidecar_start **out, weir_error *err) {
    size_t n_bytes, data_offset;
    FAIL_IF(!checked_mul(l->n_bindings, sizeof(sidecar_entry), &n_bytes) ||
                !checked_add(n_bytes, sizeof(sidecar_start), &n_bytes) || !checked_round_up(n_bytes, DATA_ALIGN, &data_offset),
            err, WEIR_E_LIMIT, NULL, "the list of tensors exceeds the address space");
    sidecar_start *head = calloc(1, n_bytes);
    *out = head;
    FAIL_IF(head == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the list of tensors");
    memcpy(head->magic, magic, sizeof magic);
    head->format_version = FORMAT_VERSION;
    head->layout_version = KERN_LAYOUT_VERSION;
    head->head_bytes = n_bytes;
    head->data_offset = data_offset;
    head->data_bytes = l->total_bytes;
    head->n_entries = l->n_bindings;
    for (size_t i = 0; i < l->n_bindings; i++) {
        sidecar_entry *e = &sidecar_entries(head)[i];
        fill_entry(e, &l->bindings[i]);
        e->n_bytes = (i + 1 < l->n_bindings ? l->bindings[i + 1].offset : l->total_bytes) - e->offset;
    }
    return identify(l->m->file, head->model, err);
}

int sidecar_plan(loader *l, const weir_model_options *options) {
    weir_model *m = l->m;
    if (options == NULL || options->weights_cache == NULL || l->n_bindings == 0 || l->choices) return 0;
    if (gguf_version(m->file) == 0) return 0; /* a folder has no place for one, and no head that would tell it from another */
    struct sidecar *s = m->sidecar = calloc(1, sizeof *s);
    FAIL_IF(s == NULL, l->err, WEIR_E_NOMEM, NULL, "no memory for the list of tensors");
    TRY(make_head(l, &s->head, l->err));
    TRY(sidecar_paths(gguf_path(m->file), options->weights_cache, s->paths, l->err));
    for (int i = 0; i < 2 && s->path == NULL; i++)
        if (s->paths[i] && sidecar_can_write(s->paths[i])) s->path = s->paths[i];
    return 0;
}

void sidecar_free(struct sidecar **ss) {
    struct sidecar *s = *ss;
    if (s == NULL) return;
    free(s->paths[0]);
    free(s->paths[1]);
    free(s->head);
    free(s);
    *ss = NULL;
}

/* ---- checking a file -------------------------------------------------------------------------------------------------- */

int sidecar_trust(int fd, const char *path, const char *model_path, weir_error *err) {
    struct stat st, model;
    FAIL_IF(fstat(fd, &st) != 0, err, WEIR_E_IO, path, "cannot be examined: %s", strerror(errno));
    FAIL_IF(!S_ISREG(st.st_mode), err, WEIR_E_IO, path, "is not a regular file");
    const bool of_model = stat(model_path, &model) == 0 && st.st_uid == model.st_uid;
    FAIL_IF(st.st_uid != 0 && st.st_uid != geteuid() && !of_model, err, WEIR_E_IO, path,
            "belongs to user %u; only files of this user, of the model's owner or of root are used", (unsigned)st.st_uid);
    FAIL_IF(st.st_mode & (S_IWGRP | S_IWOTH), err, WEIR_E_IO, path,
            "others than its owner can write it (mode %03o); such a file is not used", (unsigned)st.st_mode & 0777);
    return 0;
}

/* What does not depend on the list of tensors. */
static int check_start(const sidecar_start *want, const sidecar_start *got, const char *path, weir_error *err) {
    FAIL_IF(memcmp(got->magic, magic, sizeof magic) != 0, err, WEIR_E_FORMAT, path, "holds no packed weights");
    FAIL_IF(got->format_version != want->format_version, err, WEIR_E_UNSUPPORTED, path, "has format %u; this program uses %u",
            got->format_version, want->format_version);
    FAIL_IF(got->layout_version != want->layout_version, err, WEIR_E_UNSUPPORTED, path,
            "has layouts of version %u; this program uses %u", got->layout_version, want->layout_version);
    FAIL_IF(memcmp(got->model, want->model, sizeof got->model) != 0, err, WEIR_E_FORMAT, path,
            "belongs to another model, or the model has changed");
    FAIL_IF(got->head_bytes != want->head_bytes || got->data_offset != want->data_offset ||
                got->data_bytes != want->data_bytes || got->n_entries != want->n_entries,
            err, WEIR_E_FORMAT, path, "holds %llu tensors in %llu bytes; the model needs %llu in %llu",
            (unsigned long long)got->n_entries, (unsigned long long)got->data_bytes, (unsigned long long)want->n_entries,
            (unsigned long long)want->data_bytes);
    return 0;
}

static int check_entries(const sidecar_start *want, const sidecar_start *got, const char *path, weir_error *err) {
    for (uint64_t i = 0; i < want->n_entries; i++) {
        const sidecar_entry *w = &sidecar_entries(want)[i];
        FAIL_IF(memcmp(w, &sidecar_entries(got)[i], offsetof(sidecar_entry, checksum)) != 0, err, WEIR_E_FORMAT, path,
                "holds tensor %.*s in another form", (int)sizeof w->tensor, w->tensor);
    }
    return 0;
}

/* Reads up to n bytes from the start of the file; how many there are. */
static ssize_t read_start(int fd, void *out, size_t n) {
    size_t at = 0;
    while (at < n) {
        ssize_t got = pread(fd, (char *)out + at, n - at, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return got;
        if (got == 0) break;
        at += (size_t)got;
    }
    return (ssize_t)at;
}

static int check_file(const struct sidecar *s, int fd, const char *path, sidecar_start *got, weir_error *err) {
    const sidecar_start *want = s->head;
    struct stat st;
    const ssize_t n = read_start(fd, got, want->head_bytes);
    FAIL_IF(n < 0 || fstat(fd, &st) != 0, err, WEIR_E_IO, path, "cannot be read: %s", strerror(errno));
    const uint64_t n_bytes = want->data_offset + want->data_bytes;
    if ((size_t)n >= sizeof *got) TRY(check_start(want, got, path, err));
    FAIL_IF((uint64_t)st.st_size != n_bytes || (uint64_t)n != want->head_bytes, err, WEIR_E_FORMAT, path,
            "is %llu bytes long; it should be %llu", (unsigned long long)st.st_size, (unsigned long long)n_bytes);
    unsigned char sum[16];
    memcpy(sum, got->checksum, sizeof sum);
    sidecar_seal(got);
    FAIL_IF(memcmp(sum, got->checksum, sizeof sum) != 0, err, WEIR_E_FORMAT, path,
            "is damaged: the checksum of its list of tensors is wrong");
    return check_entries(want, got, path, err);
}

int sidecar_check(const struct sidecar *s, int fd, const char *path, const char *model_path, sidecar_start **head,
                  weir_error *err) {
    *head = NULL;
    TRY(sidecar_trust(fd, path, model_path, err));
    sidecar_start *got = calloc(1, s->head->head_bytes);
    FAIL_IF(got == NULL, err, WEIR_E_NOMEM, path, "no memory for the list of tensors");
    int rc = check_file(s, fd, path, got, err);
    if (rc < 0)
        free(got);
    else
        *head = got;
    return rc;
}
