/* Folders as Hugging Face's libraries write them: config.json, *.safetensors (one file, or shards with an index),
 * tokenizer.json, generation_config.json, chat templates. A folder is presented as a gguf object: metadata and tensors under
 * the names that GGUF has for them, so that nothing above sees a difference. The data stay in the mapped files.
 *
 * What differs from a file made by llama.cpp's converter: the vocabulary is the key `tokenizer.huggingface.json` (the whole
 * tokenizer.json) instead of tokenizer.ggml.model, .tokens and .merges, and rows that RoPE turns in pairs keep their stored
 * order (gguf_tensor.rope_head). Owns: reading the folder. Must not know: the architecture table, kernels. */
#ifndef WEIR_HF_H
#define WEIR_HF_H

#include "gguf/gguf.h"

/* Opens a model: a folder, or anything that is none as a GGUF file (gguf_open). Errors: WEIR_E_IO (a file is missing or cannot
 * be read), WEIR_E_FORMAT (place = file, JSON path or tensor), WEIR_E_UNSUPPORTED (a model type, tokenizer.model, a feature;
 * the message names it), WEIR_E_NOMEM. On failure *out is NULL. Any thread. */
int hf_open(gguf **out, const char *path, weir_error *err);
bool hf_is_folder(const char *path);
/* A folder, as a GGUF file made of it has it: with a vocabulary in tokenizer.ggml.*, which is checked to give the same ids as
 * tokenizer.json. Errors as hf_open, and WEIR_E_UNSUPPORTED for a tokenizer.json that these keys cannot say. */
int hf_open_for_gguf(gguf **out, const char *path, weir_error *err);

/* Told after each tensor: `done` of `total` bytes are written. false = stop. */
typedef bool (*hf_progress)(void *user, uint64_t done, uint64_t total);

/* Writes the folder as a GGUF file (see gguf_write.h: all or nothing), matrices in their own type, vectors as F32, as
 * llama.cpp's converter does. `progress` may be NULL. Errors: those of hf_open_for_gguf; WEIR_E_INVALID (no folder), WEIR_E_IO,
 * WEIR_E_NOMEM, WEIR_E_CANCELLED. */
int hf_convert(const char *folder, const char *path, hf_progress progress, void *user, weir_error *err);

#endif
