/* The conformance runner: `weir-kit DIR` runs the cases of every sub-folder that it knows and that is there, prints the first
 * differences, and last the line "N passed, N failed, N skipped". One file a sub-folder (kit_NAME.c), one row in kit_main.c. */
#ifndef WEIR_KIT_H
#define WEIR_KIT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kit_report {
    const char *folder; /* the sub-folder being run, for messages */
    size_t n_passed, n_failed, n_skipped;
    size_t n_printed; /* failures printed for this folder; after 20 they are only counted */
} kit_report;

void kit_pass(kit_report *r);
void kit_fail(kit_report *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
void kit_skip(kit_report *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The whole file, NUL-terminated, to be freed with free(); NULL if it cannot be read. */
char *kit_read_file(const char *path, size_t *n_bytes);
/* "DIR/NAME" in a static ring of buffers. */
const char *kit_path(const char *dir, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The index of the largest of x[n]; the first on ties. */
int32_t kit_argmax(const float *x, int32_t n);
/* Calls run(r, dir, document) for every JSON file of `dir`, by name; one that does not parse is a failure. */
void kit_each_json(kit_report *r, const char *dir, void (*run)(kit_report *r, const char *dir, json_t *document));

/* Each runs one sub-folder; `dir` is that sub-folder and exists. */
void kit_run_dequant(kit_report *r, const char *dir);
void kit_run_tokenizer(kit_report *r, const char *dir);
void kit_run_jinja_core(kit_report *r, const char *dir);
void kit_run_chat_template(kit_report *r, const char *dir);
void kit_run_arch(kit_report *r, const char *dir);
void kit_run_json_schema(kit_report *r, const char *dir);
void kit_run_golden(kit_report *r, const char *dir);

#endif
