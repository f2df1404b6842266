/* weir convert: a Hugging Face folder becomes a GGUF file. Progress goes to stderr, and only to a terminal. */
#include <stdio.h>
#include <unistd.h>

#include "cli/commands.h"
#include "hf/hf.h"

static bool show_progress(void *user, uint64_t done, uint64_t total) {
    int *shown = user, percent = total ? (int)(100.0 * (double)done / (double)total) : 100;
    if (percent != *shown) fprintf(stderr, "\rWriting: %3d %%", percent);
    *shown = percent;
    return true;
}

int command_convert(const settings *s) {
    weir_error err = {0};
    int shown = -1;
    if (s->n_arguments != 2) return command_misused("convert needs a folder and the GGUF file to be written");
    const bool visible = !s->quiet && isatty(STDERR_FILENO);
    const int rc = hf_convert(s->arguments[0], s->arguments[1], visible ? show_progress : NULL, &shown, &err);
    if (visible && shown >= 0) fputs("\r\033[K", stderr);
    return rc < 0 ? command_failed(&err) : EXIT_OK;
}
