/* The prefix tree in a file: written when an engine closes, read when the next one opens. The file belongs to one model, one form of
 * the KV cache and one program version's kernels; any other is refused. See engine.h.
 *
 * A head, then a record and its page for each page of the tree, every one after the page that it stands behind, then a checksum
 * of all that. What is read goes straight into free pages; it is dropped again if the checksum says that the file is damaged. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/error.h"
#include "base/new_file.h"
#include "engine/engine_internal.h"
#include "weir/weir_version.h"

typedef struct file_head {
    char magic[8];
    char version[24];        /* of the program: kernels of another may give other bits */
    unsigned char model[16]; /* model_identify */
    uint64_t page_tokens, page_bytes, state_bytes, key_type, value_type, n_records;
} file_head;

typedef struct file_record {
    uint64_t salt;
    int64_t after; /* number of the record that it stands behind; -1 = none */
    int32_t n_tok, snapshot_length; /* 0 = no snapshot */
    int32_t tokens[KERN_PAGE];
} file_record;

static int make_head(const engine *e, file_head *head, weir_error *err) {
    memset(head, 0, sizeof *head);
    memcpy(head->magic, "weirkv1", 8);
    snprintf(head->version, sizeof head->version, "%s/%d", WEIR_VERSION, KERN_LAYOUT_VERSION);
    head->page_tokens = KERN_PAGE;
    head->page_bytes = e->page_bytes;
    head->state_bytes = e->state_bytes;
    head->key_type = e->kv.k;
    head->value_type = e->kv.v;
    return model_identify(e->model, head->model, err);
}

/* ---- writing ---------------------------------------------------------------------------------------------------------- */

typedef struct writer {
    const engine *e;
    FILE *file;
    XXH3_state_t *sum;
    int64_t *numbers; /* [n_pages] of the records of pages */
    int64_t n;
    bool counting;    /* nothing is written yet */
    bool failed;
} writer;

static void put(writer *w, const void *bytes, size_t n_bytes) {
    XXH3_64bits_update(w->sum, bytes, n_bytes);
    if (!w->failed && fwrite(bytes, 1, n_bytes, w->file) != n_bytes) w->failed = true;
}

static bool write_page(void *user, const pages_entry *entry) {
    writer *w = user;
    const engine *e = w->e;
    const engine_checkpoint *snapshot = pages_snapshot(e->pages, entry->page);
    w->numbers[entry->page] = w->n++;
    if (w->counting) return true;
    file_record r = {.salt = entry->salt, .after = entry->after == PAGES_NONE ? -1 : w->numbers[entry->after], .n_tok = entry->n_tok,
                     .snapshot_length = snapshot ? engine_checkpoint_length(snapshot) : 0};
    memcpy(r.tokens, entry->tokens, (size_t)entry->n_tok * sizeof r.tokens[0]);
    put(w, &r, sizeof r);
    put(w, e->slab + (size_t)entry->page * e->page_bytes, e->page_bytes);
    if (snapshot) put(w, engine_checkpoint_state(snapshot), e->state_bytes);
    return !w->failed;
}

static int write_all(writer *w, const char *path, weir_error *err) {
    file_head head;
    TRY(make_head(w->e, &head, err));
    w->counting = true;
    pages_visit(w->e->pages, write_page, w);
    head.n_records = (uint64_t)w->n;
    w->n = 0;
    w->counting = false;
    put(w, &head, sizeof head);
    pages_visit(w->e->pages, write_page, w);
    const uint64_t sum = XXH3_64bits_digest(w->sum);
    put(w, &sum, sizeof sum);
    FAIL_IF(w->failed || fflush(w->file) != 0, err, WEIR_E_IO, path, "the prefix cache cannot be written: %s", strerror(errno));
    return 0;
}

/* Through a stream of its own, as records are small. */
static int write_through(const engine *e, const new_file *f, const char *path, weir_error *err) {
    const int fd = dup(f->fd);
    writer w = {.e = e, .file = fd < 0 ? NULL : fdopen(fd, "wb"), .sum = XXH3_createState(), .numbers = calloc(e->slab_bytes / e->page_bytes, sizeof *w.numbers)};
    int rc = 0;
    if (w.file == NULL || w.sum == NULL || w.numbers == NULL) rc = error_set(err, WEIR_E_NOMEM, path, "no memory to write the prefix cache");
    if (w.sum) XXH3_64bits_reset(w.sum);
    if (rc == 0) rc = write_all(&w, path, err);
    if (w.file && fclose(w.file) != 0 && rc == 0) rc = error_set(err, WEIR_E_IO, path, "the prefix cache cannot be written: %s", strerror(errno));
    if (w.file == NULL && fd >= 0) close(fd);
    if (w.sum) XXH3_freeState(w.sum);
    free(w.numbers);
    return rc;
}

int engine_prefix_save(const engine *e, const char *path, weir_error *err) {
    new_file f;
    int rc = new_file_open(&f, path, S_IRUSR | S_IWUSR, err); /* it holds what users wrote */
    if (rc == 0) rc = write_through(e, &f, path, err);
    if (rc == 0) rc = new_file_commit(&f, err);
    new_file_close(&f);
    return rc;
}

/* ---- reading ---------------------------------------------------------------------------------------------------------- */

typedef struct reader {
    engine *e;
    FILE *file;
    const char *path;
    XXH3_state_t *sum;
    int32_t *pages; /* [n_records] of the records, held until all is read; PAGES_NONE = it found no room */
    uint64_t n;
    unsigned char *spare; /* a page and a state for records without room */
} reader;

static int get(reader *r, void *bytes, size_t n_bytes, weir_error *err) {
    FAIL_IF(fread(bytes, 1, n_bytes, r->file) != n_bytes, err, WEIR_E_FORMAT, r->path, "the prefix cache is shorter than it says");
    XXH3_64bits_update(r->sum, bytes, n_bytes);
    return 0;
}

static int check_record(const reader *r, const file_record *record, weir_error *err) {
    const engine *e = r->e;
    bool sound = record->n_tok > 0 && record->n_tok <= KERN_PAGE && record->after >= -1 && record->after < (int64_t)r->n &&
                 record->snapshot_length >= 0 && record->snapshot_length <= e->n_ctx && (record->snapshot_length == 0 || e->state_bytes > 0);
    for (int32_t i = 0; sound && i < record->n_tok; i++) sound = record->tokens[i] >= 0 && record->tokens[i] < e->model->config.n_vocab;
    FAIL_IF(!sound, err, WEIR_E_FORMAT, r->path, "record %llu of the prefix cache is damaged", (unsigned long long)r->n);
    return 0;
}

/* The state behind a page of the tree; more than what may be kept is passed over. */
static int read_snapshot(reader *r, const file_record *record, int32_t page, weir_error *err) {
    engine *e = r->e;
    engine_checkpoint *c = NULL;
    if (record->snapshot_length == 0) return 0;
    TRY(get(r, r->spare, e->state_bytes, err));
    if (page == PAGES_NONE || pages_snapshot(e->pages, page) || e->snapshot_bytes + e->state_bytes > e->most_snapshot_bytes) return 0;
    TRY(engine_checkpoint_make(record->snapshot_length, r->spare, e->state_bytes, &c, err));
    e->snapshot_bytes += e->state_bytes;
    pages_attach(e->pages, page, c);
    return 0;
}

static int read_record(reader *r, weir_error *err) {
    engine *e = r->e;
    file_record record;
    TRY(get(r, &record, sizeof record, err));
    TRY(check_record(r, &record, err));
    const int32_t after = record.after < 0 ? PAGES_NONE : r->pages[record.after];
    const bool hangs = record.after >= 0 && after == PAGES_NONE;
    const int32_t page = hangs || pages_n_available(e->pages) == pages_n_kept(e->pages) ? PAGES_NONE : pages_take(e->pages);
    unsigned char *to = page == PAGES_NONE ? r->spare : e->slab + (size_t)page * e->page_bytes;
    r->pages[r->n] = page;
    int rc = get(r, to, e->page_bytes, err);
    /* A record twice, or one behind part of a page, is not what was written. */
    if (rc == 0 && page != PAGES_NONE && ((record.after >= 0 && !pages_full(e->pages, after)) ||
                                          pages_keep(e->pages, record.salt, after, page, record.tokens, record.n_tok) != page))
        rc = error_set(err, WEIR_E_FORMAT, r->path, "record %llu of the prefix cache is damaged", (unsigned long long)r->n);
    r->n++;
    return rc < 0 ? rc : read_snapshot(r, &record, page, err);
}

static int read_all(reader *r, weir_error *err) {
    file_head wanted, head;
    TRY(make_head(r->e, &wanted, err));
    TRY(get(r, &head, sizeof head, err));
    wanted.n_records = head.n_records;
    FAIL_IF(memcmp(wanted.magic, head.magic, sizeof head.magic) != 0, err, WEIR_E_FORMAT, r->path, "this is no prefix cache");
    FAIL_IF(memcmp(&wanted, &head, sizeof head) != 0, err, WEIR_E_UNSUPPORTED, r->path,
            "the prefix cache was made with another model, cache type or version of weir");
    struct stat st;
    FAIL_IF(fstat(fileno(r->file), &st) != 0 || head.n_records > (uint64_t)st.st_size / sizeof(file_record), err, WEIR_E_FORMAT, r->path,
            "the prefix cache is shorter than it says");
    r->pages = calloc(head.n_records + 1, sizeof *r->pages);
    FAIL_IF(r->pages == NULL, err, WEIR_E_NOMEM, r->path, "no memory to read the prefix cache");
    while (r->n < head.n_records) TRY(read_record(r, err));
    const uint64_t sum = XXH3_64bits_digest(r->sum);
    uint64_t given = 0;
    TRY(get(r, &given, sizeof given, err));
    FAIL_IF(given != sum, err, WEIR_E_FORMAT, r->path, "the prefix cache is damaged: its checksum is wrong");
    return 0;
}

int engine_prefix_load(engine *e, const char *path, weir_error *err) {
    reader r = {.e = e, .file = fopen(path, "rb"), .path = path};
    if (r.file == NULL && errno == ENOENT) return 0;
    FAIL_IF(r.file == NULL, err, WEIR_E_IO, path, "the prefix cache cannot be read: %s", strerror(errno));
    r.sum = XXH3_createState();
    r.spare = malloc(e->page_bytes > e->state_bytes ? e->page_bytes : e->state_bytes);
    int rc = r.sum && r.spare ? 0 : error_set(err, WEIR_E_NOMEM, path, "no memory to read the prefix cache");
    if (rc == 0) {
        XXH3_64bits_reset(r.sum);
        rc = read_all(&r, err);
    }
    while (r.n > 0)
        if (r.pages[--r.n] != PAGES_NONE) pages_drop(e->pages, r.pages[r.n]);
    while (rc < 0 && pages_forget_one(e->pages)) {}
    fclose(r.file);
    if (r.sum) XXH3_freeState(r.sum);
    free(r.spare);
    free(r.pages);
    return rc < 0 ? rc : 1;
}
