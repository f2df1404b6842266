/* What jinja_core and chat_template share: one case, rendered and compared. */
#ifndef WEIR_KIT_JINJA_H
#define WEIR_KIT_JINJA_H

#include <jansson.h>

#include "kit.h"

/* Renders `source` with the `vars` of `item` at the kit's fixed time and compares the outcome with `rendered`, `error` or
 * `lenient_rendered`. `name` is for the report. */
void kit_jinja_case(kit_report *r, const char *name, const char *source, size_t n_bytes, const json_t *item);

/* The time that renderings took since the last call, each the best of three: prints the median, the 99th percentile and the
 * slowest. Never fails: a busy machine is not a defect. */
void kit_jinja_times(kit_report *r);

#endif
