/* Inside src/hf only. */
#ifndef WEIR_HF_INTERNAL_H
#define WEIR_HF_INTERNAL_H

#include <jansson.h>

#include "base/buf.h"
#include "gguf/gguf_build.h"
#include "hf/hf.h"
#include "hf/safetensors.h"

/* A model type that can be read. */
typedef struct hf_family {
    const char *model_type, *arch; /* config.json's, general.architecture */
    const char *activation;
    bool pairs;         /* RoPE turns neighbours: q and k rows are stored as two halves */
    bool norm_plus_one; /* norms multiply by 1 + weight */
    bool four_norms;    /* norms before and after each block */
    bool windows;       /* some layers have windows: sliding_window counts */
    int32_t d_head;     /* when the file does not say; 0 = d_model / n_head */
    float norm_eps;     /* when the file does not say */
    bool tied;          /* when the file does not say and there is no lm_head */
} hf_family;

typedef struct hf_model {
    const char *dir;
    weir_error *err;
    gguf_build *builder;
    const hf_family *family;
    json_t *config;          /* of the text model */
    const char *config_path; /* "config.json" or "config.json: text_config" */
    int32_t n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab, n_ctx;
    bool tied;
    bool as_ggml; /* the vocabulary becomes tokenizer.ggml.* */
} hf_model;

/* hf_files.c. Files of the folder; `name` never leaves it. */
int hf_path(const hf_model *m, const char *name, char *out, size_t capacity);
/* 1 = *out set (json_decref it), 0 = there is no such file, negative = not readable, or no JSON object. */
int hf_read_json(const hf_model *m, const char *name, json_t **out);
/* The same for the file's text. */
int hf_read_text(const hf_model *m, const char *name, buf *out);
bool hf_has(const hf_model *m, const char *name);

/* hf_config.c. Reads config.json and puts the metadata. */
int hf_read_config(hf_model *m);
/* hf_tensors.c. Maps the weights and puts the tensors. */
int hf_read_tensors(hf_model *m);
/* hf_vocab.c. Puts tokeniser, special tokens and the chat template. */
int hf_read_vocab(hf_model *m);
/* hf_ggml_vocab.c. Puts tokenizer.ggml.* that give the same ids as the tokenizer.json text[n_bytes], parsed as root. */
int hf_put_ggml_vocab(hf_model *m, const json_t *root, const char *text, size_t n_bytes, int32_t bos, int32_t eos);

#endif
