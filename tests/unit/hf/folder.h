/* Writes model folders for tests: from a case (scripts/gen_hf_cases.py), whose weights are computed from the tensors' names. */
#ifndef WEIR_TEST_FOLDER_H
#define WEIR_TEST_FOLDER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* A new temporary folder; folder_remove removes it with the files in it. The path is the caller's, to free. */
char *folder_make(void);
void folder_remove(char *path);
void folder_write(const char *folder, const char *name, const void *bytes, size_t n_bytes);
void folder_write_json(const char *folder, const char *name, const json_t *value);

/* A tokenizer.json of n tokens: bytes of GPT-2's alphabet, no merges. */
void folder_write_tokenizer(const char *folder, size_t n_tokens);
/* One safetensors file with these tensors ({name: shape}), as "F32" or "BF16". */
void folder_write_safetensors(const char *folder, const char *name, const json_t *tensors, const char *dtype, bool plus_one);
/* The whole folder of a case, in n_shards files (1: model.safetensors without an index). */
void folder_write_case(const char *folder, const json_t *spec, const char *dtype, size_t n_shards);

#endif
