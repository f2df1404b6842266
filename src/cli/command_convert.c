/* weir convert: a Hugging Face folder becomes a GGUF file, quantised on the way if that is asked for. Progress goes to stderr,
 * and only to a terminal. */
#include <stdio.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/error.h"
#include "cli/commands.h"
#include "hf/hf.h"
#include "model/quantise.h"

static bool show_progress(void *user, uint64_t done, uint64_t total) {
    int *shown = user, percent = total ? (int)(100.0 * (double)done / (double)total) : 100;
    if (percent != *shown) fprintf(stderr, "\rWriting: %3d %%", percent);
    *shown = percent;
    return true;
}

static bool show_tensor(void *user, size_t tensor, uint64_t done, uint64_t total) {
    (void)tensor;
    return show_progress(user, done, total);
}

static int quantise(const settings *s, const quant_mix *mix, quantise_progress progress, void *user, weir_error *err) {
    gguf *g = NULL;
    pool *threads = NULL;
    quantise_plan plan = {0};
    int rc = hf_open_for_gguf(&g, s->arguments[0], err);
    if (rc >= 0) rc = quantise_plan_make(&plan, g, mix, &(quant_mix_options){0}, false, NULL, NULL, err);
    if (rc >= 0) rc = pool_open(&threads, s->threads > 0 ? (int)s->threads : cpu_count_available(), err);
    if (rc >= 0) rc = quantise_run(&plan, s->arguments[1], threads, progress, user, err);
    pool_close(&threads);
    quantise_plan_free(&plan);
    gguf_close(&g);
    return rc;
}

int command_convert(const settings *s) {
    weir_error err = {0};
    int shown = -1;
    if (s->n_arguments != 2) return command_misused("convert needs a folder and the GGUF file to be written");
    const quant_mix *mix = s->quant ? quant_mix_named(s->quant) : NULL;
    if (s->quant && mix == NULL)
        return command_misused("--quant: \"%s\" is no type; weir quantize --help names them", s->quant);
    const bool visible = !s->quiet && isatty(STDERR_FILENO);
    int rc;
    if (!hf_is_folder(s->arguments[0]))
        rc = error_set(&err, WEIR_E_INVALID, s->arguments[0],
                       "is no folder; expected a model as Hugging Face's libraries save it");
    else if (mix)
        rc = quantise(s, mix, visible ? show_tensor : NULL, &shown, &err);
    else
        rc = hf_convert(s->arguments[0], s->arguments[1], visible ? show_progress : NULL, &shown, &err);
    if (visible && shown >= 0) fputs("\r\033[K", stderr);
    return rc < 0 ? command_failed(&err) : EXIT_OK;
}
