/* See kit.h. */
#include "kit.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const struct {
    const char *folder;
    void (*run)(kit_report *r, const char *dir);
} folders[] = {
    {"dequant", kit_run_dequant},         {"tokenizer", kit_run_tokenizer}, {"jinja_core", kit_run_jinja_core},
    {"chat_template", kit_run_chat_template}, {"arch", kit_run_arch},       {"golden", kit_run_golden},
    {"json_schema", kit_run_json_schema},
};

void kit_pass(kit_report *r) { r->n_passed++; }

static void report(kit_report *r, const char *what, const char *format, va_list args) {
    enum { MAX_PRINTED = 20 };
    if (r->n_printed < MAX_PRINTED) {
        printf("%s %s: ", what, r->folder);
        vprintf(format, args);
        putchar('\n');
    } else if (r->n_printed == MAX_PRINTED) {
        printf("%s: more differences are only counted\n", r->folder);
    }
    r->n_printed++;
}

void kit_fail(kit_report *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    report(r, "FAIL", format, args);
    va_end(args);
    r->n_failed++;
}

void kit_skip(kit_report *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    report(r, "skip", format, args);
    va_end(args);
    r->n_skipped++;
}

char *kit_read_file(const char *path, size_t *n_bytes) {
    FILE *f = fopen(path, "rb");
    if (f == NULL) return NULL;
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    char *data = size < 0 ? NULL : malloc((size_t)size + 1);
    if (data && fread(data, 1, (size_t)size, f) != (size_t)size) {
        free(data);
        data = NULL;
    }
    fclose(f);
    if (data == NULL) return NULL;
    data[size] = '\0';
    if (n_bytes) *n_bytes = (size_t)size;
    return data;
}

const char *kit_path(const char *dir, const char *format, ...) {
    static char ring[8][1024];
    static unsigned next;
    char *out = ring[next++ % 8];
    int n = snprintf(out, sizeof ring[0], "%s/", dir);
    va_list args;
    va_start(args, format);
    if (n >= 0 && (size_t)n < sizeof ring[0]) vsnprintf(out + n, sizeof ring[0] - (size_t)n, format, args);
    va_end(args);
    return out;
}

int32_t kit_argmax(const float *x, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static int is_json(const struct dirent *entry) {
    const size_t n = strlen(entry->d_name);
    return n > 5 && strcmp(entry->d_name + n - 5, ".json") == 0;
}

void kit_each_json(kit_report *r, const char *dir, void (*run)(kit_report *r, const char *dir, json_t *document)) {
    struct dirent **entries;
    int n = scandir(dir, &entries, is_json, by_name);
    for (int i = 0; i < n; i++) {
        json_error_t error;
        json_t *document = json_load_file(kit_path(dir, "%s", entries[i]->d_name), 0, &error);
        if (document == NULL) kit_fail(r, "%s: %s", entries[i]->d_name, error.text);
        else run(r, dir, document);
        json_decref(document);
        free(entries[i]);
    }
    if (n >= 0) free(entries);
}

static bool is_folder(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: weir-kit DIR [SUB-FOLDER...]\n");
        return 2;
    }
    if (!is_folder(argv[1])) {
        fprintf(stderr, "weir-kit: %s is not a folder\n", argv[1]);
        return 2;
    }
    kit_report total = {0};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        bool wanted = argc == 2;
        for (int a = 2; a < argc; a++) wanted = wanted || strcmp(argv[a], folders[i].folder) == 0;
        const char *dir = kit_path(argv[1], "%s", folders[i].folder);
        if (!wanted || !is_folder(dir)) continue;
        char copy[1024];
        snprintf(copy, sizeof copy, "%s", dir);
        kit_report r = {.folder = folders[i].folder};
        folders[i].run(&r, copy);
        printf("%-14s %zu passed, %zu failed, %zu skipped\n", r.folder, r.n_passed, r.n_failed, r.n_skipped);
        fflush(stdout);
        total.n_passed += r.n_passed;
        total.n_failed += r.n_failed;
        total.n_skipped += r.n_skipped;
    }
    printf("%zu passed, %zu failed, %zu skipped\n", total.n_passed, total.n_failed, total.n_skipped);
    return total.n_failed ? 1 : 0;
}
