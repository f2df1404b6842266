/* See folder.h. */
#include "unit/hf/folder.h"

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void require(bool condition, const char *what) {
    if (condition) return;
    perror(what);
    exit(99);
}

char *folder_make(void) {
    const char *root = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/weir-folder-XXXXXX", root ? root : "/tmp");
    require(mkdtemp(path) != NULL, path);
    return strdup(path);
}

void folder_remove(char *path) {
    DIR *dir = opendir(path);
    char file[1024];
    for (struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.') unlink(file);
    }
    if (dir) closedir(dir);
    rmdir(path);
    free(path);
}

void folder_write(const char *folder, const char *name, const void *bytes, size_t n_bytes) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    require(file && fwrite(bytes, 1, n_bytes, file) == n_bytes && fclose(file) == 0, path);
}

void folder_write_json(const char *folder, const char *name, const json_t *value) {
    char *text = json_dumps(value, JSON_COMPACT);
    folder_write(folder, name, text, strlen(text));
    free(text);
}

void folder_write_tokenizer(const char *folder, size_t n_tokens) {
    json_t *vocab = json_object();
    for (size_t i = 0; i < n_tokens; i++) {
        char name[16];
        if (i < 2)
            snprintf(name, sizeof name, "%s", i ? "</s>" : "<s>");
        else
            snprintf(name, sizeof name, "%c", (char)('!' + i));
        json_object_set_new(vocab, name, json_integer((json_int_t)i));
    }
    json_t *root = json_pack("{s:[{s:i,s:s,s:b},{s:i,s:s,s:b}], s:{s:s,s:b}, s:{s:s}, s:{s:s,s:o,s:[]}}", "added_tokens", "id",
                             0, "content", "<s>", "special", 1, "id", 1, "content", "</s>", "special", 1, "pre_tokenizer",
                             "type", "ByteLevel", "add_prefix_space", 0, "decoder", "type", "ByteLevel", "model", "type", "BPE",
                             "vocab", vocab, "merges");
    folder_write_json(folder, "tokenizer.json", root);
    json_decref(root);
}

/* The value of a weight; scripts/gen_hf_cases.py has the same. Its lower half is 0: it is a bfloat16. */
static float weight(const char *name, uint32_t i, bool plus_one) {
    uint32_t x = 2166136261u, bits;
    for (const char *c = name; *c; c++) x = (x ^ (unsigned char)*c) * 16777619u;
    x += i * 2654435769u;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    x ^= x >> 16;
    float u = (float)(x >> 8) / 8388608.0f - 1.0f;
    if (strstr(name, "norm"))
        u = u * 0.25f + (plus_one ? 0.0f : 1.0f);
    else
        u *= strstr(name, "embed") ? 0.5f : 0.25f;
    memcpy(&bits, &u, 4);
    bits &= 0xFFFF0000u;
    memcpy(&u, &bits, 4);
    return u;
}

void folder_write_safetensors(const char *folder, const char *name, const json_t *tensors, const char *dtype, bool plus_one) {
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt"), *shape;
    const size_t width = strcmp(dtype, "F32") == 0 ? 4 : 2;
    const char *key;
    size_t at = 0, capacity = 0;
    json_object_foreach((json_t *)tensors, key, shape) {
        size_t n = width, d;
        json_t *size;
        json_array_foreach(shape, d, size) n *= (size_t)json_integer_value(size);
        json_object_set_new(header, key,
                            json_pack("{s:s,s:O,s:[I,I]}", "dtype", dtype, "shape", shape, "data_offsets", (json_int_t)at,
                                      (json_int_t)(at + n)));
        at += n;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    const uint64_t n_header = strlen(text);
    capacity = 8 + n_header + at;
    unsigned char *bytes = malloc(capacity), *out = bytes;
    require(bytes != NULL, "memory");
    for (int i = 0; i < 8; i++) *out++ = (unsigned char)(n_header >> 8 * i);
    memcpy(out, text, n_header);
    out += n_header;
    json_object_foreach((json_t *)tensors, key, shape) {
        size_t n = 1, d;
        json_t *size;
        json_array_foreach(shape, d, size) n *= (size_t)json_integer_value(size);
        for (size_t i = 0; i < n; i++, out += width) {
            const float value = weight(key, (uint32_t)i, plus_one);
            memcpy(out, (const unsigned char *)&value + (4 - width), width);
        }
    }
    folder_write(folder, name, bytes, capacity);
    free(bytes);
    free(text);
    json_decref(header);
}

void folder_write_case(const char *folder, const json_t *spec, const char *dtype, size_t n_shards) {
    const json_t *config = json_object_get(spec, "config"), *tensors = json_object_get(spec, "tensors");
    const char *type = json_string_value(json_object_get(config, "model_type")), *key;
    const bool plus_one = type && strncmp(type, "gemma", 5) == 0;
    json_t *shape;
    folder_write_json(folder, "config.json", config);
    folder_write_tokenizer(folder, (size_t)json_integer_value(json_object_get(config, "vocab_size")));
    if (n_shards == 1) {
        folder_write_safetensors(folder, "model.safetensors", tensors, dtype, plus_one);
        return;
    }
    json_t *map = json_object();
    for (size_t s = 0; s < n_shards; s++) {
        char name[64];
        json_t *part = json_object();
        size_t i = 0;
        snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, n_shards);
        json_object_foreach((json_t *)tensors, key, shape) {
            if (i++ % n_shards != s) continue;
            json_object_set(part, key, shape);
            json_object_set_new(map, key, json_string(name));
        }
        folder_write_safetensors(folder, name, part, dtype, plus_one);
        json_decref(part);
    }
    json_t *index = json_pack("{s:{s:i},s:o}", "metadata", "total_size", 0, "weight_map", map);
    folder_write_json(folder, "model.safetensors.index.json", index);
    json_decref(index);
}
