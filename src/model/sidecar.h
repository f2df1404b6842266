/* Inside src/model only: the file that keeps packed weights between starts. What it holds, where it is, and loading it.
 * Opening thread; saving (weir_model_save_weights) may be on any other. */
#ifndef WEIR_MODEL_SIDECAR_H
#define WEIR_MODEL_SIDECAR_H

#include "model/loader.h"

/* A sidecar keeps m->weights between starts: a head, then, at data_offset, the block as it is in memory. Nothing in a file is
 * believed: the head that the model asks for is built anew, and a file must have the same one, byte for byte but for the sums
 * of its contents. Numbers are in the order of this machine's bytes; on another order the versions differ. */
typedef struct sidecar_start {
    char magic[8];
    uint32_t format_version, layout_version; /* of this file, KERN_LAYOUT_VERSION */
    unsigned char model[16];                 /* XXH3-128 of what tells the model file from another */
    uint64_t head_bytes, data_offset, data_bytes, n_entries;
    unsigned char checksum[16]; /* XXH3-128 of the head, with zeros here */
    unsigned char reserved[48];
} sidecar_start;

/* One for each binding, after the start. */
typedef struct sidecar_entry {
    char tensor[GGUF_MAX_NAME];
    char layout[16];                             /* kern_layout name; "vector" */
    uint64_t first, n_rows, n_cols, panel_bytes; /* a vector: 1 row */
    uint64_t offset, n_bytes;                    /* in the data, up to the next entry */
    unsigned char checksum[16];                  /* XXH3-128 of these bytes */
} sidecar_entry;

/* What a model knows about its sidecar; owned by the model. */
struct sidecar {
    char *paths[2];      /* where it may be, best first; NULL = none */
    const char *path;    /* the one that was loaded, else the first whose folder can be written; NULL = none */
    sidecar_start *head; /* [head->head_bytes], with the entries; no sums yet */
    bool loaded;
    weir_error rejected; /* why a file that is there was not loaded; code 0 = none was there, or it was */
};

/* Makes m->sidecar for the place that the options name; leaves it NULL when that is none. WEIR_E_NOMEM. */
int sidecar_plan(loader *l, const weir_model_options *options);
void sidecar_free(struct sidecar **s);
/* Gets m->weights from the sidecar: 1, or 0 when there is none that is sound, which m->sidecar->rejected tells.
 * WEIR_E_NOMEM, WEIR_E_CANCELLED, WEIR_E_INTERNAL. */
int sidecar_load(loader *l, const weir_model_options *options);
static inline sidecar_entry *sidecar_entries(const sidecar_start *head) {
    return (sidecar_entry *)(head + 1);
}
/* Fills in the sum of a head. */
void sidecar_seal(sidecar_start *head);
/* Whether the open file `fd` at `path` may be believed and holds the right head; *head (the caller frees it) is then a copy
 * with its sums. WEIR_E_IO, WEIR_E_FORMAT, WEIR_E_UNSUPPORTED (another version), WEIR_E_NOMEM. */
int sidecar_check(const struct sidecar *s, int fd, const char *path, const char *model_path, sidecar_start **head,
                  weir_error *err);
/* Whether others than its owner, the model's owner, this user and root could have written it: WEIR_E_IO then. */
int sidecar_trust(int fd, const char *path, const char *model_path, weir_error *err);
/* Where the sidecar of the model at `model_path` is looked for, by weir_model_options.weights_cache; the caller frees both. */
int sidecar_paths(const char *model_path, const char *where, char *paths[2], weir_error *err);
/* Whether a file can be made in the folder of `path`. */
bool sidecar_can_write(const char *path);

#endif
